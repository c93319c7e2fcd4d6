"""The tables of one copy of a view: a schema of its own, with the position in it.

Position and content live in one schema, so one rename swaps both. Beside the view's tables it holds `_position` (how
far it is folded, at which version of the view) and `_parked` (events that could not be folded).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Composed, Identifier, Literal

from eventlog import session_locks
from eventlog.envelope import from_headers, to_headers
from eventlog.records import StoredEvent

Connection = AsyncConnection[Any]

_PREPARE = SQL("""
create schema if not exists {schema};
set local search_path to {schema};
create table if not exists _position (
    one boolean primary key default true check (one), position bigint not null, version integer not null);
create table if not exists _parked (
    position bigint primary key, type text not null, error text not null, headers jsonb not null, data bytea not null,
    parked_at timestamptz not null default clock_timestamp());
""")

_TAKE = """
select pg_advisory_xact_lock(hashtextextended({name}, 0)), set_config('synchronous_commit', 'off', true),
    set_config('search_path', quote_ident({name}), true);
select position, version from {schema}._position
"""

_ROWS_DIGEST = SQL("""
select encode(sha256(convert_to(coalesce(string_agg(row, '' order by row collate "C"), ''), 'UTF8')), 'hex')
from (select encode(sha256(convert_to(t::text, 'UTF8')), 'hex') as row from {table} t) digests
""")


class Standing(NamedTuple):
    """How far a copy is folded, and by which version of its view."""

    position: int
    version: int


class Parked(NamedTuple):
    """An event that a view could not fold, and why."""

    event: StoredEvent
    error: str
    parked_at: Any


class ViewTables:
    """Statements on the schema `schema`, on connections that the caller brings inside a transaction."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        # Said anew for every batch of events: put together once.
        self._take = self._sql(_TAKE).as_bytes()
        self._move = self._sql("update {schema}._position set position = %s").as_bytes()

    def _sql(self, text: str) -> Composed:
        return SQL(text).format(schema=Identifier(self.schema), name=Literal(self.schema))

    async def lock(self, connection: Connection) -> None:
        """Take the copy for this transaction. By name, not by row: a swap changes which rows the name means.

        Its commit waits for no disk: what a crash takes, tables and position alike, is folded again from the log.
        """
        await connection.execute(
            self._sql(
                "select pg_advisory_xact_lock(hashtextextended({name}, 0)), set_config('synchronous_commit', 'off', true)"
            )
        )

    async def take(self, connection: Connection) -> Standing | None:
        """As `lock` and `standing`, in one round trip. Until the transaction ends, unqualified names mean this copy."""
        try:
            results = await connection.execute(self._take, prepare=False)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return None
        results.nextset()
        row = await results.fetchone()
        return None if row is None else Standing(*row)

    async def claim(self, connection: Connection) -> bool:
        """Become the only connection that makes or swaps copies of the view, until `release`; False if another one is."""
        statement = self._sql("select pg_try_advisory_lock(hashtextextended({name} || ':copies', 0))")
        return await session_locks.take(connection, statement)

    async def release(self, connection: Connection) -> None:
        """Give the claim back. If that fails the connection is closed, which does the same."""
        statement = self._sql("select pg_advisory_unlock(hashtextextended({name} || ':copies', 0))")
        await session_locks.give_back(connection, statement)

    async def standing(self, connection: Connection) -> Standing | None:
        """Where the copy stands; None if there is none."""
        exists = await connection.execute(self._sql("select to_regclass(quote_ident({name}) || '._position')"))
        (found,) = await exists.fetchone() or (None,)
        if found is None:
            return None
        row = await (await connection.execute(self._sql("select position, version from {schema}._position"))).fetchone()
        return None if row is None else Standing(*row)

    async def create(self, connection: Connection, tables: str, version: int) -> None:
        """Make the copy, empty, at position 0."""
        await connection.execute(_PREPARE.format(schema=Identifier(self.schema)))
        await connection.execute(tables.encode())
        await connection.execute("insert into _position (position, version) values (0, %s)", [version])

    async def move(self, connection: Connection, position: int) -> None:
        await connection.execute(self._move, [position])

    async def park(self, connection: Connection, event: StoredEvent, error: str) -> None:
        headers = orjson.dumps(to_headers(event, "")).decode()
        await connection.execute(
            self._sql(
                "insert into {schema}._parked (position, type, error, headers, data) values (%s, %s, %s, %s, %s)"
                " on conflict (position) do update set error = excluded.error"
            ),
            [event.position, event.type, error, headers, event.data],
        )

    async def parked(self, connection: Connection) -> list[Parked]:
        rows = await connection.execute(
            self._sql("select position, headers, data, error, parked_at from {schema}._parked order by position")
        )
        return [Parked(from_headers(row[0], row[1], row[2]), row[3], row[4]) for row in await rows.fetchall()]

    async def parked_count(self, connection: Connection) -> int:
        """How many are parked; 0 before the copy exists."""
        if await self.standing(connection) is None:
            return 0
        rows = await connection.execute(self._sql("select count(*) from {schema}._parked"))
        (count,) = await rows.fetchone() or (0,)
        return int(count)

    async def unpark(self, connection: Connection, position: int) -> StoredEvent | None:
        """Take an event off the list; None if it is not on it."""
        rows = await connection.execute(
            self._sql("delete from {schema}._parked where position = %s returning headers, data"), [position]
        )
        row = await rows.fetchone()
        return None if row is None else from_headers(position, *row)

    async def checksum(self, connection: Connection) -> dict[str, str]:
        """SHA-256 over the rows of each table, whatever order they are stored in."""
        names = await connection.execute(
            self._sql(
                "select table_name from information_schema.tables where table_schema = {name}"
                " and table_type = 'BASE TABLE' and table_name not in ('_position', '_parked') order by 1"
            )
        )
        return {name: await self._digest(connection, name) for (name,) in await names.fetchall()}

    async def _digest(self, connection: Connection, table: str) -> str:
        rows = await connection.execute(_ROWS_DIGEST.format(table=Identifier(self.schema, table)))
        (digest,) = await rows.fetchone() or ("",)
        return str(digest)

    async def drop(self, connection: Connection) -> None:
        await connection.execute(self._sql("drop schema if exists {schema} cascade"))

    async def rename(self, connection: Connection, schema: str) -> None:
        await connection.execute(
            SQL("alter schema {old} rename to {new}").format(old=Identifier(self.schema), new=Identifier(schema))
        )
