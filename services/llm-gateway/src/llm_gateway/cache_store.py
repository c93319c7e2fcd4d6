"""Cached answers in the service's own database, where all replicas find them. They expire, as recorded answers do."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from servicekit.clock import Clock

from llm_gateway.ports import Entry
from llm_gateway.store import connected

PURGE_EVERY_S: Final = 60.0

_TABLE: Final = """
    create table if not exists model_answer_cache (
        key text primary key, tenant text not null, answer bytea not null, expires_at timestamptz not null
    );
    create index if not exists model_answer_cache_expiry on model_answer_cache (expires_at);
    create index if not exists model_answer_cache_tenant on model_answer_cache (tenant, expires_at desc);
"""
_FIND: Final = "select answer, expires_at from model_answer_cache where key = %s and expires_at > %s"
_PUT: Final = """
    insert into model_answer_cache (key, tenant, answer, expires_at) values (%s, %s, %s, %s)
    on conflict (key) do update set answer = excluded.answer, expires_at = excluded.expires_at
"""
_PURGE_EXPIRED: Final = "delete from model_answer_cache where expires_at <= %s"
_PURGE_BEYOND: Final = """
    delete from model_answer_cache using (
        select key, row_number() over (partition by tenant order by expires_at desc, key) as place
        from model_answer_cache
    ) as placed
    where model_answer_cache.key = placed.key and placed.place > %s
"""


@dataclass(frozen=True, slots=True)
class PostgresCacheStore:
    """Implements CacheStore. Between two purges a tenant may have more than `entries_max`; those to expire first go."""

    pool: AsyncConnectionPool
    clock: Clock
    entries_max: int

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self._connection() as connection:
            await connection.execute(_TABLE)

    async def find(self, key: str) -> Entry | None:
        async with self._connection() as connection:
            row = await (await connection.execute(_FIND, (key, self.clock.now()))).fetchone()
        return Entry(bytes(row[0]), row[1]) if row else None

    async def put(self, key: str, tenant: str, entry: Entry) -> None:
        async with self._connection() as connection:
            await connection.execute(_PUT, (key, tenant, entry.answer, entry.expires_at))

    async def purge(self) -> None:
        async with self._connection() as connection:
            await connection.execute(_PURGE_EXPIRED, (self.clock.now(),))
            await connection.execute(_PURGE_BEYOND, (self.entries_max,))

    async def purge_forever(self) -> None:
        while True:
            await self.purge()
            await asyncio.sleep(PURGE_EVERY_S)

    def _connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        return connected(self.pool, "cached answers cannot be reached")
