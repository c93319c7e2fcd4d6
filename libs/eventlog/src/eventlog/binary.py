"""Single values in PostgreSQL's binary format, for statements that are sent past psycopg (prepared.py).

Layouts: the send and recv functions of each type (src/backend/utils/adt). Whole columns are in arrays.py.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def from_int(value: int) -> bytes:
    """bigint; OverflowError beyond its 64 bits."""
    return value.to_bytes(8, "big", signed=True)


def from_time(value: datetime) -> bytes:
    """timestamptz, of an aware datetime."""
    return from_int(microseconds(value))


def microseconds(value: datetime) -> int:
    """Since 2000, of an aware datetime: what a timestamptz counts."""
    return (value - _EPOCH) // _MICROSECOND


def to_int(data: bytes) -> int:
    """Of a smallint, integer or bigint."""
    return int.from_bytes(data, "big", signed=True)


def to_time(data: bytes) -> datetime:
    """Of a timestamptz, in UTC; OverflowError before the year 1, after 9999, and for infinity."""
    return _EPOCH + to_int(data) * _MICROSECOND


def to_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)
