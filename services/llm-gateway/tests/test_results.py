"""Answers on record, in a real database: the log stores them with the events that promise them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.limits import Limits
from eventlog.postgres import PostgresEventLog
from eventlog.records import Appended, Context
from eventlog.testing import a_stream, an_append
from llm_gateway.errors import StoreUnavailable
from llm_gateway.journal import Journal, Seen
from llm_gateway.ports import Kept
from llm_gateway.results import ANSWERS, PostgresResults
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock
from synod.common.ids import uuid7
from synod.common.values import Failure
from synod.llm_gateway.events import EVENTS, ModelCallFailed

FORMER_TABLE = """
    create table model_call_results (
        call_id text primary key, answer bytea not null, completed bytea not null, expires_at timestamptz not null
    );
    insert into model_call_results values ('mc_old', 'old', '{}', '2100-01-01');
"""


@dataclass
class Store:
    """A log, and beside it the answers on record."""

    log: PostgresEventLog
    results: PostgresResults

    async def keep(self, call_id: str, kept: Kept) -> Appended:
        return await self.log.append(replace(an_append(a_stream()), rows=(self.results.row(call_id, kept),)))

    async def run(self, statement: str) -> None:
        async with self.results.pool.connection() as connection:
            await connection.execute(statement.encode())


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[Store]:
    limits = Limits(reconnect_timeout_s=0.3)
    async with (
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False, timeout=5) as pool,
        await PostgresEventLog.open(postgres_dsn, limits=limits, side_table=ANSWERS) as log,
    ):
        yield Store(log, PostgresResults(pool, FakeClock(), kept_s=60))


@pytest.fixture
async def prepared(store: Store) -> Store:
    await store.results.prepare()
    await store.results.prepare()  # a second start finds the table
    return store


def kept(text: str, attempt: int = 1) -> Kept:
    return Kept(text.encode(), attempt)


async def test_many_answers_at_once_are_all_found(prepared: Store) -> None:
    await asyncio.gather(*(prepared.keep(f"mc_{number}", kept(str(number))) for number in range(50)))
    assert [await prepared.results.find(f"mc_{number}") for number in (0, 49)] == [kept("0"), kept("49")]
    assert await prepared.results.find("mc_50") is None


async def test_a_later_attempt_replaces_an_earlier_one_and_never_the_other_way(prepared: Store) -> None:
    await prepared.keep("mc_1", kept("second", 2))
    await prepared.keep("mc_1", kept("first, late", 1))
    assert await prepared.results.find("mc_1") == kept("second", 2)
    await prepared.keep("mc_1", kept("third", 3))
    assert await prepared.results.find("mc_1") == kept("third", 3)


async def test_two_answers_to_one_call_at_once_leave_the_later(prepared: Store) -> None:
    await asyncio.gather(
        prepared.keep("mc_0", kept("any")), *(prepared.keep("mc_1", kept(str(n), n)) for n in (3, 1, 2))
    )
    assert await prepared.results.find("mc_1") == kept("3", 3)


async def test_an_answer_that_the_server_did_not_live_to_store_is_not_promised_either(prepared: Store) -> None:
    await prepared.run(
        "create function die() returns trigger language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$;"
        " create trigger die before insert on model_call_results for each row execute function die()"
    )
    with pytest.raises(LogUnavailable, match="cannot be reached"):
        await prepared.keep("mc_1", kept("x"))
    assert (await prepared.log.head(), await prepared.results.find("mc_1")) == (0, None)


async def test_answers_without_their_table_are_told_as_a_store_that_is_gone_and_promised_by_no_event(
    store: Store,
) -> None:
    journal = Journal(store.log, Codec(EVENTS), SystemClock())
    failed = ModelCallFailed(request_id="req", failure=Failure(reason="GONE", message="gone"))
    row, context = store.results.row("mc_1", kept("x")), Context("local", "usr_ada")
    with pytest.raises(StoreUnavailable, match=r"answers cannot be recorded: .*model_call_results.* does not exist"):
        await journal.append("mc_1", Seen(), lambda _: (failed,), context, uuid7(), (row,))
    assert await store.log.head() == 0


async def test_a_table_of_a_former_release_keeps_its_answers_and_takes_new_ones(store: Store) -> None:
    await store.run(FORMER_TABLE)
    await store.results.prepare()
    await store.keep("mc_new", kept("new"))
    assert [await store.results.find(id) for id in ("mc_old", "mc_new")] == [kept("old"), kept("new")]


async def test_a_table_that_is_as_it_should_be_is_prepared_without_a_wait_for_who_writes(prepared: Store) -> None:
    """Writers of the log would wait behind whoever waits here."""
    async with prepared.results.pool.connection() as connection, asyncio.timeout(5):
        await connection.execute("insert into model_call_results values ('mc_1', 'x', '', '2100-01-01')")
        await prepared.results.prepare()


async def test_an_answer_expires(prepared: Store) -> None:
    await prepared.keep("mc_1", kept("x"))
    assert isinstance(prepared.results.clock, FakeClock)
    prepared.results.clock.advance(61)
    assert await prepared.results.find("mc_1") is None
    await prepared.results.purge()
    prepared.results.clock.advance(-61)
    assert await prepared.results.find("mc_1") is None
