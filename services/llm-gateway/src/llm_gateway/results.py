"""Recorded answers in the service's own database. They are not facts: the log has their hash, they expire."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from eventlog.side_table import SideRow, SideTable
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from servicekit.clock import Clock

from llm_gateway.ports import Kept
from llm_gateway.store import connected

PURGE_EVERY_S: Final = 600.0

# The column `completed` is former releases': they recorded an answer first, and with it the event that was to follow. What
# is to be changed of a table is asked first: it waits for every writer of the log, and they for it, also when it is nothing.
_TABLE: Final = """
    create table if not exists model_call_results (
        call_id text primary key,
        answer bytea not null,
        completed bytea not null default '',
        expires_at timestamptz not null,
        attempt int not null default 1
    );
    do $$ declare
        results regclass := 'model_call_results'::regclass;
    begin
        if not exists (select from pg_attribute where attrelid = results and attname = 'attempt') then
            alter table model_call_results add column attempt int not null default 1;
        end if;
        if not exists (select from pg_attribute where attrelid = results and attname = 'completed' and atthasdef) then
            alter table model_call_results alter column completed set default '';
        end if;
        if to_regclass('model_call_results_expiry') is null then
            create index model_call_results_expiry on model_call_results (expires_at);
        end if;
    end $$;
"""
ANSWERS: Final = SideTable(
    "model_call_results",
    {"call_id": "text", "answer": "bytea", "attempt": "bigint", "expires_at": "timestamptz"},
    rank="attempt",
)
"""Stored by the log, with the event that promises the answer."""
_FIND: Final = "select answer, attempt from model_call_results where call_id = %s and expires_at > %s"
_PURGE: Final = "delete from model_call_results where expires_at <= %s"


@dataclass(frozen=True, slots=True)
class PostgresResults:
    """The rows of ANSWERS in the log's database."""

    pool: AsyncConnectionPool
    clock: Clock
    kept_s: float

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self._connection() as connection:
            await connection.execute(_TABLE)

    def row(self, call_id: str, kept: Kept) -> SideRow:
        expires_at = self.clock.now() + timedelta(seconds=self.kept_s)
        return ANSWERS.row(call_id, kept.answer, kept.attempt, expires_at)

    async def find(self, call_id: str) -> Kept | None:
        async with self._connection() as connection:
            row = await (await connection.execute(_FIND, (call_id, self.clock.now()))).fetchone()
        return Kept(bytes(row[0]), row[1]) if row else None

    async def purge(self) -> None:
        async with self._connection() as connection:
            await connection.execute(_PURGE, (self.clock.now(),))

    async def purge_forever(self) -> None:
        while True:
            await self.purge()
            await asyncio.sleep(PURGE_EVERY_S)

    def _connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        return connected(self.pool, "recorded answers cannot be reached")
