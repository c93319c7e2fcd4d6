"""Answers on record, in a real database."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Kept
from llm_gateway.results import PostgresResults
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False, timeout=5) as opened:
        yield opened


@pytest.fixture
async def results(postgres_dsn: str, pool: AsyncConnectionPool) -> AsyncIterator[PostgresResults]:
    made = PostgresResults(postgres_dsn, pool, FakeClock(), kept_s=60)
    await made.prepare()
    await made.prepare()  # a second start finds the table
    yield made
    await made.close()


def kept(text: str, attempt: int = 1) -> Kept:
    return Kept(text.encode(), b"{}", attempt)


async def test_many_answers_at_once_are_all_found(results: PostgresResults) -> None:
    await asyncio.gather(*(results.keep(f"mc_{number}", kept(str(number))) for number in range(50)))
    assert [await results.find(f"mc_{number}") for number in (0, 49)] == [kept("0"), kept("49")]
    assert await results.find("mc_50") is None


async def test_a_later_attempt_replaces_an_earlier_one_and_never_the_other_way(results: PostgresResults) -> None:
    await results.keep("mc_1", kept("second", 2))
    await results.keep("mc_1", kept("first, late", 1))
    assert await results.find("mc_1") == kept("second", 2)
    await results.keep("mc_1", kept("third", 3))
    assert await results.find("mc_1") == kept("third", 3)


async def test_two_answers_to_one_call_in_one_batch_leave_the_later(results: PostgresResults) -> None:
    await asyncio.gather(results.keep("mc_0", kept("any")), *(results.keep("mc_1", kept(str(n), n)) for n in (3, 1, 2)))
    assert await results.find("mc_1") == kept("3", 3)


async def test_a_store_that_is_gone_is_told_to_all_who_wait(
    results: PostgresResults, pool: AsyncConnectionPool
) -> None:
    async with pool.connection() as connection:
        await connection.execute("drop table model_call_results")
    await pool.close()
    outcomes = await asyncio.gather(*(results.keep(f"mc_{n}", kept("x")) for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3


async def test_a_batch_that_fails_leaves_nobody_waiting_behind_it(
    results: PostgresResults, pool: AsyncConnectionPool
) -> None:
    await results.keep("mc_0", kept("x"))
    async with pool.connection() as connection:
        await connection.execute("drop table model_call_results")
    first = asyncio.create_task(results.keep("mc_1", kept("x")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # by now its batch is on the way: the next answer waits for another
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(first, results.keep("mc_2", kept("y")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2
    assert "does not exist" in str(outcomes[0])


async def test_a_connection_that_was_lost_between_two_answers_costs_none(
    results: PostgresResults, pool: AsyncConnectionPool
) -> None:
    await results.keep("mc_1", kept("x"))
    async with pool.connection() as connection:
        await connection.execute(
            "select pg_terminate_backend(pid, 30000) from pg_stat_activity where backend_type = 'client backend'"
            " and datname = current_database() and query ~ 'model_call_results' and pid <> pg_backend_pid()"
        )
    await results.keep("mc_2", kept("y"))
    assert [await results.find(f"mc_{number}") for number in (1, 2)] == [kept("x"), kept("y")]


async def test_an_answer_expires(results: PostgresResults) -> None:
    await results.keep("mc_1", kept("x"))
    assert isinstance(results.clock, FakeClock)
    results.clock.advance(61)
    assert await results.find("mc_1") is None
    await results.purge()
