"""Rows of a table outside the log, stored with the events that promise them: all of both, or nothing.

For what belongs to an event and cannot be in it, because it is large, or must not stay for ever. Written before its event
such a row costs a commit and a round trip of its own, and may be left without the event; written after it, it may be missing.
Here the statement that stores the events of a group stores its rows too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from psycopg.sql import Identifier

from eventlog.arrays import BIGINTS, BYTEAS, NULL, TEXTS, TIMES, columns, sized
from eventlog.binary import from_int, from_time

SideValue = str | bytes | int | datetime | None
SideRow = tuple[bytes | None, ...]
"""A row as `SideTable.row` packs it: what cannot be packed fails its own caller, before it meets the rows of others."""
SideType = Literal["text", "bytea", "bigint", "timestamptz"]


def _from_bytes(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"a bytea is bytes, and not {value!r}")
    return value


class _Kind(NamedTuple):
    packed: Callable[[Any], bytes]
    begun: bytes
    """How an array of it begins."""


_KINDS: Final[Mapping[SideType, _Kind]] = {
    "text": _Kind(str.encode, TEXTS),
    "bytea": _Kind(_from_bytes, BYTEAS),
    "bigint": _Kind(from_int, BIGINTS),
    "timestamptz": _Kind(from_time, TIMES),
}


@dataclass(frozen=True, slots=True)
class SideTable:
    """A table of the log's database, whose owner makes it before the first row; it may have columns that rows do not have.

    `columns` are names and types; the first is the key of the table. Of rows with one key the table keeps the one with the
    greatest value of the column `rank`, and of those, or without a rank, the last.
    """

    name: str
    columns: Mapping[str, SideType]
    rank: str = ""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"the side table {self.name} needs a column at least, its key")
        if self.rank and self.rank not in self.columns:
            raise ValueError(f"the rank {self.rank!r} of the side table {self.name} is none of its columns")

    def row(self, *values: SideValue) -> SideRow:
        """A value for each column, or None. Raises ValueError for more or fewer, and for a value of another type what its
        packing raises.
        """
        pairs = zip(self.columns.values(), values, strict=True)
        return tuple([None if value is None else _KINDS[kind].packed(value) for kind, value in pairs])

    def storing_one(self, source: str, parameters: Iterator[int]) -> str:
        """The statement that stores a row for the one row of `source`, or none if that has none; the row's values are the
        next parameters.
        """
        values = ", ".join(f"${next(parameters)}::{kind}" for kind in self.columns.values())
        return self._storing(f"select {values} from {source}")

    def storing_all(self, source: str, parameters: Iterator[int]) -> str:
        """As `storing_one` for any number of rows, of which the next parameters are the columns (`arrays`)."""
        arrays = ", ".join(f"${next(parameters)}::{kind}[]" for kind in self.columns.values())
        names, key = self._names(), _quoted(next(iter(self.columns)))
        order = ", ".join([key, *([f"{_quoted(self.rank)} desc"] if self.rank else []), '"#" desc'])
        # A statement may meet each key once.
        return self._storing(
            f"select distinct on ({key}) {names} from {source}"
            f' cross join unnest({arrays}) with ordinality as new ({names}, "#") order by {order}'
        )

    def arrays(self, rows: Sequence[SideRow]) -> list[bytes]:
        """The columns of some rows, one at least."""
        begun = [_KINDS[kind].begun for kind in self.columns.values()]
        items = [[NULL if value is None else sized(value) for value in column] for column in zip(*rows, strict=True)]
        return columns(begun, items)

    def _storing(self, rows: str) -> str:
        key, *others = map(_quoted, self.columns)
        changes = ", ".join(f"{name} = excluded.{name}" for name in others)
        known = f" where known.{_quoted(self.rank)} <= excluded.{_quoted(self.rank)}" if self.rank else ""
        return (
            f"insert into {_quoted(self.name)} as known ({self._names()}) {rows}"
            f" on conflict ({key}) do {f'update set {changes}{known}' if changes else 'nothing'}"
        )

    def _names(self) -> str:
        return ", ".join(map(_quoted, self.columns))


def _quoted(name: str) -> str:
    return Identifier(name).as_string(None)
