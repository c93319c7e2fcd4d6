"""Cached answers in PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from llm_gateway.cache_store import PostgresCacheStore
from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Entry
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresCacheStore]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=2, open=False) as pool:
        store = PostgresCacheStore(pool, FakeClock(), entries_max=2)
        await store.prepare()
        yield store


def entry(store: PostgresCacheStore, answer: bytes, ttl_s: float) -> Entry:
    return Entry(answer, store.clock.now() + timedelta(seconds=ttl_s))


async def test_an_entry_is_found_until_it_expires_and_replaced_by_a_later_one(store: PostgresCacheStore) -> None:
    await store.prepare()
    await store.put("key", "local", entry(store, b"first", 10))
    later = entry(store, b"second", 20)
    await store.put("key", "local", later)

    assert await store.find("key") == later
    assert isinstance(store.clock, FakeClock)
    store.clock.advance(20)
    assert await store.find("key") is None


async def test_a_purge_removes_what_has_expired_and_what_is_beyond_a_tenants_bound(store: PostgresCacheStore) -> None:
    for number in range(4):
        await store.put(f"a{number}", "a", entry(store, b"", 10 + number))
    await store.put("b", "b", entry(store, b"", 1))
    assert isinstance(store.clock, FakeClock)
    store.clock.advance(1)
    await store.purge()

    async with store.pool.connection() as connection:
        rows = await (await connection.execute("select key from model_answer_cache order by key")).fetchall()
    assert [key for (key,) in rows] == ["a2", "a3"]


async def test_a_database_that_is_gone_is_said_to_be_unavailable() -> None:
    pool = AsyncConnectionPool("host=127.0.0.1 port=1 dbname=gone", min_size=1, open=False, timeout=0.1)
    await pool.open(wait=False)
    try:
        with pytest.raises(StoreUnavailable):
            await PostgresCacheStore(pool, FakeClock(), 1).find("key")
    finally:
        await pool.close()
