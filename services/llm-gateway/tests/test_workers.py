"""Which processes and holders live, by the database's word."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf

import psycopg
import pytest
from llm_gateway.testing import FakeWorkers
from llm_gateway.workers import FORMER_KEPT_S, PostgresWorkers
from psycopg_pool import AsyncConnectionPool

WAIT_S = 30
OTHERS_LOCKS = """
    select pid from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()
    and pid in (select pid from pg_locks where locktype = 'advisory')
"""


class Time:
    """A clock that stands still; `read` is set whenever somebody reads it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.read = asyncio.Event()

    def __call__(self) -> float:
        self.read.set()
        return self.now


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, open=False) as pool:
        yield pool


async def backend_of_the_locks(pool: AsyncConnectionPool) -> int:
    async with pool.connection() as connection:
        row = await (await connection.execute(OTHERS_LOCKS)).fetchone()
    assert row is not None
    return int(row[0])


async def lose_connection(pool: AsyncConnectionPool) -> None:
    async with pool.connection() as connection:
        await connection.execute(f"select pg_terminate_backend(pid) from ({OTHERS_LOCKS}) as held")


async def until_dead(workers: PostgresWorkers, name: str) -> None:
    """PostgreSQL gives the lock up when it has noticed that the connection is gone, or has told that it ends it."""
    async with asyncio.timeout(WAIT_S):
        while await workers.alive(name):
            continue


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of a confirmation
            await asyncio.sleep(0)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def stopped(staying: asyncio.Task[None]) -> None:
    staying.cancel()
    with suppress(asyncio.CancelledError):
        await staying


async def test_a_process_and_its_holder_are_alive_until_its_connection_ends(
    postgres_dsn: str, pool: AsyncConnectionPool
) -> None:
    ours, theirs = PostgresWorkers(postgres_dsn, pool, "gw_a"), PostgresWorkers(postgres_dsn, pool, "gw_b")
    assert not await ours.alive("gw_b")
    await ours.enter()
    await theirs.enter()
    assert ours.holder != theirs.holder
    for name in ("gw_b", theirs.holder, theirs.holder, "gw_a", ours.holder):
        assert await ours.alive(name)
    await theirs.leave()
    await until_dead(ours, "gw_b")
    await until_dead(ours, theirs.holder)
    assert await ours.alive("gw_a")
    assert await ours.alive(ours.holder)
    await ours.leave()


async def test_a_process_that_lost_its_lock_comes_back_as_another_holder(
    postgres_dsn: str, pool: AsyncConnectionPool
) -> None:
    time = Time(100.0)
    worker = PostgresWorkers(postgres_dsn, pool, "gw_a", now=time)
    await worker.enter()
    former = worker.holder
    await lose_connection(pool)
    await until_dead(worker, former)
    time.now = 110.0
    with pytest.raises(psycopg.OperationalError):
        await worker.stay()
    assert (worker.holder, worker.confirmed_at(former)) == (former, 100.0)

    time.now = 120.0
    staying = asyncio.create_task(worker.stay())
    await until(lambda: worker.holder != former)
    assert await worker.alive("gw_a")
    assert await worker.alive(worker.holder)
    assert not await worker.alive(former)
    assert worker.confirmed_at(former) == 100.0
    assert worker.confirmed_at(worker.holder) == 120.0
    await stopped(staying)


async def test_a_holder_is_confirmed_again_and_again(postgres_dsn: str, pool: AsyncConnectionPool) -> None:
    time = Time(100.0)
    worker = PostgresWorkers(postgres_dsn, pool, "gw_a", check_s=0.01, now=time)
    assert worker.confirmed_at(worker.holder) == -inf
    await worker.enter()
    assert worker.confirmed_at(worker.holder) == 100.0
    staying = asyncio.create_task(worker.stay())
    for now in (105.0, 110.0):
        time.now = now
        await until(lambda: worker.confirmed_at(worker.holder) == time.now)
    await stopped(staying)
    assert worker.confirmed_at(worker.holder) == 110.0
    assert worker.confirmed_at("gw_b.1") == -inf


async def test_a_database_that_is_frozen_confirms_nothing_and_then_the_time_before_it_was_asked(
    postgres_dsn: str, pool: AsyncConnectionPool
) -> None:
    time = Time(100.0)
    worker = PostgresWorkers(postgres_dsn, pool, "gw_a", now=time)
    await worker.enter()
    with frozen(await backend_of_the_locks(pool)):
        time.read.clear()
        time.now = 200.0
        staying = asyncio.create_task(worker.stay())
        async with asyncio.timeout(WAIT_S):
            await time.read.wait()
        time.now = 300.0
        assert await worker.alive(worker.holder)
        assert worker.confirmed_at(worker.holder) == 100.0
    await until(lambda: worker.confirmed_at(worker.holder) == 200.0)
    await stopped(staying)


async def test_a_holder_that_is_long_gone_is_forgotten(postgres_dsn: str, pool: AsyncConnectionPool) -> None:
    time = Time()
    worker = PostgresWorkers(postgres_dsn, pool, "gw_a", now=time)
    holders = []
    for _ in range(3):
        await worker.enter()
        holders.append(worker.holder)
        await worker.leave()
        time.now += FORMER_KEPT_S - 1
    assert len(set(holders)) == 3
    assert [worker.confirmed_at(holder) for holder in holders] == [-inf, FORMER_KEPT_S - 1, 2 * (FORMER_KEPT_S - 1)]


async def test_the_fake_tells_of_a_lock_that_is_lost() -> None:
    living: set[str] = set()
    ours, theirs = FakeWorkers("gw_a", living), FakeWorkers("gw_b", living)
    former, now = ours.holder, asyncio.get_running_loop().time
    assert ours.confirmed_at(former) <= now()
    assert await theirs.alive(former)
    ours.lose_lock()
    lost_at = ours.confirmed_at(former)
    assert ours.holder != former
    assert not await theirs.alive(former)
    assert await theirs.alive(ours.holder)
    await until(lambda: now() > lost_at)
    assert ours.confirmed_at(former) == lost_at < ours.confirmed_at(ours.holder)
    assert ours.confirmed_at(theirs.holder) == -inf
