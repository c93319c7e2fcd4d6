"""Whole columns as PostgreSQL binary arrays.

psycopg's own list dumper looks at every item and cannot type a list of nothing but None; a column of events is of one
known type, so packing it is one join. Layout: PostgreSQL's array_send (src/backend/utils/adt/arrayfuncs.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

from psycopg import AsyncConnection, pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper

from eventlog.records import StreamId

_HEADER = struct.Struct("!iiIii")
_NULL = b"\xff\xff\xff\xff"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_LENGTH_8 = (8).to_bytes(4, "big")
_LENGTH_16 = (16).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Packed:
    """The base of packed arrays; one subclass for each element type."""

    data: bytes


class Bigints(Packed):
    """bigint[]"""


class Texts(Packed):
    """text[]"""


class Byteas(Packed):
    """bytea[]"""


class Uuids(Packed):
    """uuid[]"""


class Times(Packed):
    """timestamptz[]"""


def bigints(values: Iterable[int]) -> Bigints:
    return Bigints(_array(20, [_LENGTH_8 + value.to_bytes(8, "big", signed=True) for value in values]))


def texts(values: Iterable[str | None]) -> Texts:
    return Texts(_array(25, [_sized(None if value is None else value.encode()) for value in values]))


def names(values: Iterable[str]) -> Texts:
    """Texts that repeat: each is encoded once."""
    return Texts(_array(25, list(map(_sized_name, values))))


def streams(values: Iterable[StreamId]) -> Texts:
    return Texts(_array(25, list(map(_sized_stream, values))))


def byteas(values: Iterable[bytes | None]) -> Byteas:
    return Byteas(_array(17, [_sized(value) for value in values]))


def uuids(values: Iterable[UUID | None]) -> Uuids:
    return Uuids(_array(2950, [_NULL if value is None else _LENGTH_16 + value.bytes for value in values]))


def times(values: Iterable[datetime]) -> Times:
    return Times(_array(1184, [_LENGTH_8 + _microseconds(value) for value in values]))


def register(connection: AsyncConnection[object]) -> None:
    """Teach the connection to send packed arrays."""
    for packed, array_oid in ((Bigints, 1016), (Texts, 1009), (Byteas, 1001), (Uuids, 2951), (Times, 1185)):
        connection.adapters.register_dumper(packed, _dumper(array_oid))


def _array(element_oid: int, items: list[bytes]) -> bytes:
    if not items:
        return struct.pack("!iiI", 0, 0, element_oid)
    has_null = int(_NULL in items)
    return _HEADER.pack(1, has_null, element_oid, len(items), 1) + b"".join(items)


@lru_cache(maxsize=4_096)
def _sized_name(value: str) -> bytes:
    return _sized(value.encode())


@lru_cache(maxsize=65_536)
def _sized_stream(value: StreamId) -> bytes:
    return _sized(str(value).encode())


def _sized(value: bytes | None) -> bytes:
    return _NULL if value is None else len(value).to_bytes(4, "big") + value


def _microseconds(value: datetime) -> bytes:
    since = value - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds).to_bytes(8, "big", signed=True)


def _dumper(array_oid: int) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = pq.Format.BINARY
        oid = array_oid

        def dump(self, obj: Packed) -> Buffer:
            return obj.data

    return PackedDumper
