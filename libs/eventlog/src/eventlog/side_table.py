"""Rows of a table outside the log, stored with the events that promise them: all of both, or nothing.

For what belongs to an event and cannot be in it, because it is large, or must not stay for ever. Written before its event
such a row costs a commit and a round trip of its own, and may be left without the event; written after it, it may be missing.
Here the log's writer stores the rows of a group on its connection, in the transaction of the group's events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from psycopg.sql import Identifier

from eventlog.arrays import BIGINTS, BYTEAS, NULL, TEXTS, TIMES, columns, sized
from eventlog.binary import from_int, from_time

SideValue = str | bytes | int | datetime | None
SideRow = tuple[bytes, ...]
"""A row as `SideTable.row` packs it: what cannot be packed fails its own caller, before it meets the rows of others."""
SideType = Literal["text", "bytea", "bigint", "timestamptz"]

_PACKED: Final[Mapping[SideType, Callable[[Any], bytes]]] = {
    "text": str.encode,
    "bytea": lambda value: value,  # what is no bytes, sized() does not take
    "bigint": from_int,
    "timestamptz": from_time,
}
_BEGUN: Final[Mapping[SideType, bytes]] = {
    "text": TEXTS,
    "bytea": BYTEAS,
    "bigint": BIGINTS,
    "timestamptz": TIMES,
}
_STORED: Final = "{stored}"


@dataclass(frozen=True, slots=True)
class SideTable:
    """How rows are stored in a table of the log's database, whose owner makes it before the first of them:

        insert into answers as known (id, attempt, text)
        select distinct on (id) * from unnest($1::text[], $2::bigint[], $3::bytea[]) as new (id, attempt, text)
        where {stored} order by id, attempt desc
        on conflict (id) do update set attempt = excluded.attempt, text = excluded.text
        where known.attempt <= excluded.attempt

    The rows of a group come as one array per column, which may hold a key twice. {stored} stands for: "the group's events
    were stored", by a statement before this one in the same transaction. It must be a condition of the whole statement,
    which is tried also where another process wrote meanwhile, and the events are decided on anew.
    """

    statement: str
    types: tuple[SideType, ...]

    def __post_init__(self) -> None:
        if _STORED not in self.statement:
            raise ValueError("the statement of a side table needs {stored}: it may run where no event is stored")

    def row(self, *values: SideValue) -> SideRow:
        """One value for each of the types, or None. Raises ValueError for more or fewer, and for a value of another type what
        its packing raises.
        """
        pairs = zip(self.types, values, strict=True)
        return tuple([NULL if value is None else sized(_PACKED[kind](value)) for kind, value in pairs])

    def rendered(self, schema: str) -> bytes:
        """The statement beside the log in `schema`. After a group the head has its last hash, which no other group has."""
        head = Identifier(schema, "head").as_string(None)
        stored = f"exists (select from {head} where hash = ${len(self.types) + 1})"
        return self.statement.replace(_STORED, stored).encode()

    def parameters(self, rows: Sequence[SideRow], head_hash: bytes) -> list[bytes]:
        """Those of the rendered statement, for rows of events behind which the head has this hash."""
        begun = [_BEGUN[kind] for kind in self.types]
        return [*columns(begun, list(zip(*rows, strict=True))), head_hash]
