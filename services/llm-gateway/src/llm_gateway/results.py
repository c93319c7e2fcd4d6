"""Recorded answers in the service's own database. They are not facts: the log has their hash, they expire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from servicekit.clock import Clock

from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Kept

PURGE_EVERY_S: Final = 600.0

_TABLE: Final = """
    create table if not exists model_call_results (
        call_id text primary key, answer bytea not null, completed bytea not null, expires_at timestamptz not null
    );
    alter table model_call_results add column if not exists attempt int not null default 1;
    create index if not exists model_call_results_expiry on model_call_results (expires_at);
"""
_KEEP: Final = """
    insert into model_call_results as known (call_id, answer, completed, attempt, expires_at) values (%s, %s, %s, %s, %s)
    on conflict (call_id) do update
    set answer = excluded.answer, completed = excluded.completed, attempt = excluded.attempt,
        expires_at = excluded.expires_at
    where known.attempt <= excluded.attempt
"""
_FIND: Final = "select answer, completed, attempt from model_call_results where call_id = %s and expires_at > %s"
_PURGE: Final = "delete from model_call_results where expires_at <= %s"


@dataclass(frozen=True, slots=True)
class PostgresResults:
    pool: AsyncConnectionPool
    clock: Clock
    kept_s: float

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self._connection() as connection:
            await connection.execute(_TABLE)

    async def keep(self, call_id: str, kept: Kept) -> None:
        expires_at = self.clock.now() + timedelta(seconds=self.kept_s)
        async with self._connection() as connection:
            await connection.execute(_KEEP, (call_id, kept.answer, kept.completed, kept.attempt, expires_at))

    async def find(self, call_id: str) -> Kept | None:
        async with self._connection() as connection:
            row = await (await connection.execute(_FIND, (call_id, self.clock.now()))).fetchone()
        return Kept(bytes(row[0]), bytes(row[1]), row[2]) if row else None

    async def purge(self) -> None:
        async with self._connection() as connection:
            await connection.execute(_PURGE, (self.clock.now(),))

    async def purge_forever(self) -> None:
        while True:
            await self.purge()
            await asyncio.sleep(PURGE_EVERY_S)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        try:
            async with self.pool.connection() as connection:
                yield connection
        except (psycopg.OperationalError, PoolTimeout) as error:
            raise StoreUnavailable(f"recorded answers cannot be reached: {error}") from error
