"""Rows of a table outside the log, stored with the events that promise them: all of both, or nothing.

For what belongs to an event and cannot be in it, because it is large, or must not stay for ever. Written before its event
such a row costs a commit and a round trip of its own, and may be left without the event; written after it, it may be missing.
Here the statement that stores the events of a group stores its rows too.
"""

from __future__ import annotations

import re
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
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class SideTable:
    """A table of the log's database, found by the search path. Its owner makes it before the first row.

    `columns` are names and types; the first is its key, primary or unique. Of rows with one key the table keeps the one with
    the greatest value in the column `rank`, and of those, or without a rank, the last. It may have further columns that need
    no value. ValueError for what no table of a log can be.
    """

    name: str
    columns: Mapping[str, SideType]
    rank: str = ""

    def __post_init__(self) -> None:
        for name in (self.name, *self.columns):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a side table or its column: it must match {_NAME.pattern}")
        if unknown := set(self.columns.values()) - set(_KINDS):
            wrong, right = ", ".join(sorted(unknown)), ", ".join(_KINDS)
            raise ValueError(f"columns of the side table {self.name} cannot be {wrong}, only {right}")
        if not self.columns:
            raise ValueError(f"the side table {self.name} needs a column at least, its key")
        if self.rank and self.rank not in self.columns:
            raise ValueError(f"the rank {self.rank!r} of the side table {self.name} is none of its columns")

    def row(self, *values: SideValue) -> SideRow:
        """A value for each column, or None in one that is neither key nor rank. Raises ValueError for more or fewer, and for
        a value of another type what its packing raises.
        """
        row: list[bytes | None] = []
        for (name, kind), value in zip(self.columns.items(), values, strict=True):
            if value is not None:
                row.append(_KINDS[kind].packed(value))
            elif name in (self._key, self.rank):
                raise ValueError(f"a row of the side table {self.name} needs a value in {name}")
            else:
                row.append(None)
        return tuple(row)

    def storing_one(self, source: str, parameters: Iterator[int]) -> str:
        """The statement that stores a row for the one row of `source`, or none if that has none; the row's values are the
        next parameters.
        """
        values = ", ".join(f"${next(parameters)}::{kind}" for kind in self.columns.values())
        return self._storing(f"select {values} from {source}")

    def storing_all(self, source: str, parameters: Iterator[int]) -> str:
        """As `storing_one` for any number of rows, of which the next parameters are the columns (`arrays`).

        The source is no part of what is selected from: its columns may have names of ours. "#" is no name of a column.
        """
        arrays = ", ".join(f"${next(parameters)}::{kind}[]" for kind in self.columns.values())
        names, key = self._names(), _quoted(self._key)
        order = ", ".join([key, *([f"{_quoted(self.rank)} desc"] if self.rank else []), '"#" desc'])
        # A statement may meet each key once.
        return self._storing(
            f'select distinct on ({key}) {names} from unnest({arrays}) with ordinality as new ({names}, "#")'
            f" where exists (select from {source}) order by {order}"
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

    @property
    def _key(self) -> str:
        return next(iter(self.columns))

    def _names(self) -> str:
        return ", ".join(map(_quoted, self.columns))


def _quoted(name: str) -> str:
    return Identifier(name).as_string(None)
