"""Which calls were about to hold something at cost-ledger, so that what a dead worker held for a call that never began
can be given back.

Not facts: of a call that began, the log says so. A note is made before the hold and is of no use once the call has begun.
Whoever is about to begin a call and whoever releases its hold take the row of its note one after the other.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from eventlog.records import Context
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

_TABLE: Final = """
    create table if not exists tool_call_holds (
        id text primary key, tenant text not null, call_id text not null, actor text not null,
        correlation text not null, worker text not null, noted_at timestamptz not null
    );
    create index if not exists tool_call_holds_noted on tool_call_holds (noted_at);
"""
_NOTE: Final = """
    insert into tool_call_holds (id, tenant, call_id, actor, correlation, worker, noted_at)
    values (%s, %s, %s, %s, %s, %s, %s)
    on conflict (id) do update
    set actor = excluded.actor, correlation = excluded.correlation, worker = excluded.worker,
        noted_at = excluded.noted_at
"""
_FORGET: Final = "delete from tool_call_holds where id = %s"
_FORGET_BEGUN: Final = """
    delete from tool_call_holds using view_tool_calls.tool_calls as begun
    where begun.id = tool_call_holds.id and noted_at < %s
"""
_LEFT: Final = """
    select id, tenant, call_id, actor, correlation, worker from tool_call_holds
    where noted_at < %s and id > %s order by id limit %s
"""
_TAKE: Final = "select from tool_call_holds where id = %s and worker = %s for update"


@dataclass(frozen=True, slots=True)
class NotedHold:
    """A call, named by its stream, that `worker` was about to begin in the name of the actor."""

    id: str
    tenant: str
    call_id: str
    actor: str
    correlation: str
    worker: str

    @property
    def context(self) -> Context:
        return Context(self.tenant, self.actor, self.correlation)


class Holds(Protocol):
    """Raises psycopg.Error."""

    async def note(self, hold: NotedHold, at: datetime) -> None:
        """Before anything is held: instead of an older note of the call, once nobody is at that one."""
        ...

    async def forget(self, id: str) -> None:
        """Nothing is held."""
        ...


@dataclass(frozen=True, slots=True)
class PostgresHolds:
    """In the service's own database."""

    pool: AsyncConnectionPool

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self.pool.connection() as connection:
            await connection.execute(_TABLE)

    async def note(self, hold: NotedHold, at: datetime) -> None:
        values = (hold.id, hold.tenant, hold.call_id, hold.actor, hold.correlation, hold.worker, at)
        async with self.pool.connection() as connection:
            await connection.execute(_NOTE, values)

    async def forget(self, id: str) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(_FORGET, (id,))

    async def forget_begun(self, before: datetime) -> None:
        """Those noted before a moment whose calls are on record."""
        async with self.pool.connection() as connection:
            await connection.execute(_FORGET_BEGUN, (before,))

    async def left(self, before: datetime, after: str, limit: int) -> list[NotedHold]:
        """Those noted before a moment, in order of id."""
        async with (
            self.pool.connection() as connection,
            connection.cursor(row_factory=class_row(NotedHold)) as cursor,
        ):
            await cursor.execute(_LEFT, (before, after, limit))
            return await cursor.fetchall()

    @asynccontextmanager
    async def taken(self, hold: NotedHold) -> AsyncIterator[bool]:
        """Whether the note is still that worker's. If so nobody else begins the call meanwhile, and the note is gone at the
        end; it stays if an error ends it.
        """
        async with self.pool.connection() as connection, connection.transaction():
            found = await _take(connection, hold)
            yield found
            if found:
                await connection.execute(_FORGET, (hold.id,))


async def _take(connection: AsyncConnection, hold: NotedHold) -> bool:
    cursor = await connection.execute(_TAKE, (hold.id, hold.worker))
    return cursor.rowcount == 1
