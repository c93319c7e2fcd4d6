"""Notes of what calls are about to hold: one after the other, and gone when they are of no use."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from psycopg_pool import AsyncConnectionPool
from tool_executor.holds import NotedHold, PostgresHolds

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
NOTED = NotedHold("call_1", "acme", "c1", "agt_1", "run_1", "wrk_a")
REPEATED = replace(NOTED, worker="wrk_b")


@pytest.fixture
async def holds(postgres_dsn: str) -> AsyncIterator[PostgresHolds]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        holds = PostgresHolds(pool)
        await holds.prepare()
        yield holds


async def left(holds: PostgresHolds, before: datetime = LATER) -> list[NotedHold]:
    return await holds.left(before, "", 10)


async def test_only_what_was_noted_before_the_moment_is_left(holds: PostgresHolds) -> None:
    await holds.note(NOTED, NOON)
    assert await left(holds, before=NOON) == []
    assert await left(holds) == [NOTED]
    await holds.forget(NOTED.id)
    assert await left(holds) == []


async def test_a_note_that_was_taken_is_gone(holds: PostgresHolds) -> None:
    await holds.note(NOTED, NOON)
    async with holds.taken(NOTED) as ours:
        assert ours
    assert await left(holds) == []


async def test_a_note_that_another_worker_has_renewed_is_not_taken(holds: PostgresHolds) -> None:
    await holds.note(NOTED, NOON)
    await holds.note(REPEATED, NOON)
    async with holds.taken(NOTED) as ours:
        assert not ours
    assert await left(holds) == [REPEATED]


async def test_who_repeats_a_call_waits_until_its_hold_is_given_back(holds: PostgresHolds) -> None:
    await holds.note(NOTED, NOON)
    async with holds.taken(NOTED):
        repeat = asyncio.create_task(holds.note(REPEATED, NOON))
        async with asyncio.timeout(30), holds.pool.connection() as connection:
            while not (await (await connection.execute("select 1 from pg_locks where not granted")).fetchone()):
                assert not repeat.done()
    await repeat
    assert await left(holds) == [REPEATED]


async def test_what_could_not_be_given_back_is_still_noted(holds: PostgresHolds) -> None:
    await holds.note(NOTED, NOON)
    with pytest.raises(ConnectionError):
        async with holds.taken(NOTED):
            raise ConnectionError
    assert await left(holds) == [NOTED]
