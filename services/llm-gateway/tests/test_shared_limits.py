"""Limits of several processes on one database, on a real event loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from llm_gateway.admission import Admission
from llm_gateway.errors import RateLimited, StoreUnavailable
from llm_gateway.limits import LimitRule, Line, Need
from llm_gateway.shared_limits import PostgresBooks, SharedLimits, book_key
from llm_gateway.slices import Amounts, Grant, SliceTerms, Want
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

WAIT_S = 20
TERMS = SliceTerms(slice_s=0.4)
ONE = Need(1, 1)

Pool = AsyncConnectionPool[AsyncConnection[Any]]


@dataclass
class Process:
    """One process of the service; `passed` are the times at which its calls passed."""

    shared: SharedLimits
    admission: Admission
    keeper: "asyncio.Task[None]"
    passed: list[float] = field(default_factory=list)

    async def call(self, seconds: float = WAIT_S, lasting_s: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        ticket = await self.admission.enter("t", "p/m", ONE, "normal", loop.time() + seconds)
        self.passed.append(loop.time())
        await asyncio.sleep(lasting_s)
        self.admission.leave(ticket, ONE)

    async def flood(self, calls: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(self.call())

    async def kill(self) -> None:
        self.keeper.cancel()
        with suppress(asyncio.CancelledError):
            await self.keeper


@asynccontextmanager
async def pool_of(dsn: str) -> AsyncIterator[Pool]:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False, kwargs={"autocommit": True}) as pool:
        yield pool


@asynccontextmanager
async def process(name: str, dsn: str, rule: LimitRule) -> AsyncIterator[Process]:
    async with pool_of(dsn) as pool:
        books = PostgresBooks(pool, TERMS)
        await books.prepare()
        shared = SharedLimits(name, books, TERMS)
        admission = Admission(Line((rule,), make=shared.meters), short=shared.wake)
        running = Process(shared, admission, asyncio.create_task(shared.run(admission)))
        try:
            yield running
        finally:
            await running.kill()


async def passed(count: int, *processes: Process) -> None:
    async with asyncio.timeout(WAIT_S):
        while sum(len(one.passed) for one in processes) < count:  # noqa: ASYNC110 - calls that pass offer no event
            await asyncio.sleep(0.002)


async def test_group_20_four_processes_share_a_rate_and_a_killed_one_adds_nothing(postgres_dsn: str) -> None:
    rule = LimitRule("model", requests_per_min=6000, burst_s=1.6)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        fleet = [await stack.enter_async_context(process(f"gw_{one}", postgres_dsn, rule)) for one in range(4)]
        floods = [group.create_task(one.flood(200)) for one in fleet]
        await passed(100, *fleet)
        floods[0].cancel()
        await fleet[0].kill()
        await passed(220, *fleet)
        for flood in floods:
            flood.cancel()
    times = sorted(at for one in fleet for at in one.passed)
    for first, start in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= 100 * (end - start + 1.6) + 1
    assert sum(bool(one.passed) for one in fleet[1:]) >= 2


async def test_calls_at_once_are_counted_over_all_processes(postgres_dsn: str) -> None:
    rule = LimitRule("model", concurrent=3)
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(process(f"gw_{one}", postgres_dsn, rule)) for one in range(2)]
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for one in fleet:
                for _ in range(6):
                    group.create_task(one.call(lasting_s=0.05))
    times = sorted(at for one in fleet for at in one.passed)
    assert len(times) == 12
    for start in times:
        assert sum(start - 0.045 < at <= start for at in times) <= 3


async def test_what_a_process_had_at_hand_is_there_for_others_when_it_stops(postgres_dsn: str) -> None:
    rule = LimitRule("model", concurrent=1)
    async with process("gw_1", postgres_dsn, rule) as first, process("gw_2", postgres_dsn, rule) as second:
        await first.call()
        await first.kill()
        await first.shared.close()
        began = asyncio.get_running_loop().time()
        await second.call()
        assert second.passed[0] - began < TERMS.held_s / 2


async def test_without_the_books_no_call_passes_and_each_is_told_in_time(postgres_dsn: str) -> None:
    class Gone:
        async def exchange(self, member: str, wants: Mapping[str, tuple[LimitRule, Want]]) -> Mapping[str, Grant]:
            raise StoreUnavailable("gone")

    rule = LimitRule("model", requests_per_min=6000)
    async with process("gw_1", postgres_dsn, rule) as one:
        one.shared.books = Gone()
        with pytest.raises(RateLimited):
            await one.call(seconds=0.3)
        assert one.passed == []


async def test_a_process_that_stands_still_with_the_book_open_is_thrown_out(postgres_dsn: str) -> None:
    rule, want = LimitRule("model", requests_per_min=60), Want(Amounts(1), Amounts(1))
    async with pool_of(postgres_dsn) as pool:
        books = PostgresBooks(pool, TERMS)
        await books.prepare()
        await books.exchange("gw_1", {"k": (rule, want)})
        still = await AsyncConnection.connect(postgres_dsn)
        try:
            await still.execute("select set_config('idle_in_transaction_session_timeout', '50', true)")
            await still.execute("select * from rate_limit_books for update")
            granted = await books.exchange("gw_2", {"k": (rule, want)})
            assert granted["k"].amounts.requests == 1
        finally:
            await still.close()


async def test_books_that_nobody_uses_are_forgotten(postgres_dsn: str) -> None:
    async with pool_of(postgres_dsn) as pool:
        books = PostgresBooks(pool, TERMS)
        await books.prepare()
        await books.exchange("gw_1", {key: (LimitRule("model", requests_per_min=60), Want()) for key in ("old", "new")})
        async with pool.connection() as connection:
            await connection.execute("update rate_limit_books set at = now() - interval '1 hour' where key = 'old'")
            await books.forget()
            rows = await (await connection.execute("select key from rate_limit_books")).fetchall()
    assert rows == [("new",)]


def test_a_limit_that_is_changed_keeps_its_book_and_limits_of_other_kinds_have_their_own() -> None:
    key = ("p/m",)
    assert book_key(LimitRule("model", requests_per_min=5), key) == book_key(
        LimitRule("model", requests_per_min=9), key
    )
    assert book_key(LimitRule("model", requests_per_min=5), key) != book_key(LimitRule("model", concurrent=5), key)
