"""Whole columns as PostgreSQL binary arrays.

psycopg's own list dumper looks at every item and cannot type a list of nothing but None; a column is of one known type,
so packing it is one join. Layout: PostgreSQL's array_send (src/backend/utils/adt/arrayfuncs.c): the number of dimensions,
whether there are nulls, the element type; the number of items, the index of the first; each item's length and value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

from eventlog.binary import from_int, from_time

NULL: Final = b"\xff\xff\xff\xff"
"""An item that is null: the length -1, and no value."""

# One dimension; nulls are possible (whether there are any, the server sees for itself).
BIGINTS: Final = struct.pack("!iiI", 1, 1, 20)
BYTEAS: Final = struct.pack("!iiI", 1, 1, 17)
TEXTS: Final = struct.pack("!iiI", 1, 1, 25)
TIMES: Final = struct.pack("!iiI", 1, 1, 1184)
UUIDS: Final = struct.pack("!iiI", 1, 1, 2950)
"""How a column of the type begins."""

_dimension: Final = struct.Struct("!ii").pack
length_of: Final = struct.Struct("!I").pack
"""What stands before a value of so many bytes."""
_LENGTH_8: Final = (8).to_bytes(4, "big")
_LENGTH_16: Final = (16).to_bytes(4, "big")


def bigints(values: Iterable[int]) -> bytes:
    """bigint[]"""
    return column(BIGINTS, [_LENGTH_8 + from_int(value) for value in values])


def texts(values: Iterable[str | None]) -> bytes:
    """text[]"""
    return column(TEXTS, [NULL if value is None else sized(value.encode()) for value in values])


def byteas(values: Iterable[bytes | None]) -> bytes:
    """bytea[]"""
    return column(BYTEAS, [NULL if value is None else length_of(len(value)) + value for value in values])


def uuids(values: Iterable[UUID | None]) -> bytes:
    """uuid[]"""
    return column(UUIDS, [NULL if value is None else _LENGTH_16 + value.bytes for value in values])


def times(values: Iterable[datetime]) -> bytes:
    """timestamptz[], of aware datetimes."""
    return column(TIMES, [_LENGTH_8 + from_time(value) for value in values])


def column(begun: bytes, items: Sequence[bytes]) -> bytes:
    """The array of items, each of which is NULL or has its length before it."""
    # An array without items has no dimension either: it ends with the element type.
    return columns([begun], [items])[0] if items else bytes(8) + begun[8:]


def columns(begun: Iterable[bytes], items: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The arrays of several columns that are equally long, and not empty."""
    dimension = _dimension(len(items[0]), 1)
    return [start + dimension + b"".join(each) for start, each in zip(begun, items, strict=True)]


def sized(value: bytes) -> bytes:
    """The value with its length before it."""
    return length_of(len(value)) + value


@lru_cache(maxsize=16_384)
def sized_text(value: str) -> bytes:
    """For texts that repeat, whether in every event or in those of one call: encoded once."""
    return sized(value.encode())
