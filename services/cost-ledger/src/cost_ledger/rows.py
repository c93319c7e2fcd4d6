"""Many rows in one statement: they travel as one JSON document, and PostgreSQL takes it apart.

A batch of events changes hundreds of rows of a view. A statement for each costs both sides more than the rows do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.sql import SQL, Composable, Composed, Identifier
from pydantic_core import to_json

Row = Mapping[str, object]
"""A value for each column: text, numbers, times, and what is JSON itself. No two rows of a statement have one key."""


async def write(connection: AsyncConnection[Any], statement: bytes, rows: Iterable[Row]) -> None:
    """Carry out a statement of this module; nothing without rows."""
    if document := list(rows):
        await connection.execute(statement, (to_json(document).decode(),))


def insert(table: str, columns: Sequence[str]) -> bytes:
    """Adds rows."""
    return _insert(table, columns).as_bytes()


def insert_or(table: str, key: Sequence[str], columns: Sequence[str], otherwise: LiteralString) -> bytes:
    """Adds rows; what to do instead where the key is there, such as "nothing"."""
    return _insert_or(table, key, columns, SQL(otherwise)).as_bytes()


def replace(table: str, key: Sequence[str], columns: Sequence[str]) -> bytes:
    """Adds rows, each instead of the one with its key."""
    changed = (SQL("{0} = excluded.{0}").format(Identifier(name)) for name in columns if name not in key)
    return _insert_or(table, key, columns, SQL("update set ") + SQL(", ").join(changed)).as_bytes()


def _insert(table: str, columns: Sequence[str]) -> Composed:
    names = SQL(", ").join(map(Identifier, columns))
    text = "insert into {table} ({names}) select {names} from jsonb_populate_recordset(null::{table}, %s::jsonb)"
    return SQL(text).format(table=Identifier(table), names=names)


def _insert_or(table: str, key: Sequence[str], columns: Sequence[str], otherwise: Composable) -> Composed:
    keys = SQL(", ").join(map(Identifier, key))
    return SQL("{} on conflict ({}) do {}").format(_insert(table, columns), keys, otherwise)
