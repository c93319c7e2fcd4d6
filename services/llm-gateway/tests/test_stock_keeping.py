"""When the stock of a holder that is gone is closed, and when not yet."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import orjson
import pytest
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.projections import Projector
from eventlog.records import ANY, Append, Appended, Context, NewEvent, StreamId
from eventlog.sources import LogSource
from llm_gateway.projections import OpenStock, Queries, ReservationsView
from llm_gateway.stock_journal import StockJournal
from llm_gateway.stock_keeping import GONE_S, Absences, StockKeeper, unused
from llm_gateway.testing import FakeWorkers
from llm_gateway.workers import PostgresWorkers
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.ids import uuid7
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import (
    EVENTS,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ReservationStockClosed,
)

CODEC: Codec[Event] = Codec(EVENTS)
GONE = "gw_gone.1"
WAIT_S = 20


def started(reservation_id: str, attempt: int = 1) -> Event:
    return ModelCallAttemptStarted(
        request_id="req",
        attempt=attempt,
        model="fake/m",
        provider="fake",
        reservation_id=reservation_id,
        attribution=Attribution(tenant_id="local", run_id="run_1"),
    )


def failed(reservation_id: str, attempt: int = 1) -> Event:
    return ModelCallAttemptFailed(
        request_id="req",
        attempt=attempt,
        model="fake/m",
        reservation_id=reservation_id,
        failure=Failure(reason="GATEWAY_STOPPED", message="gone"),
        billed="unknown",
    )


def test_a_holder_is_long_gone_a_minute_after_its_lock_was_first_found_free() -> None:
    absences = Absences()
    assert absences.long_gone({"a"}, 100.0) == set()
    assert absences.long_gone({"a", "b"}, 159.9) == set()
    assert absences.long_gone({"a", "b"}, 160.0) == {"a"}
    assert absences.long_gone({"b"}, 219.9) == {"b"}


def test_a_lock_that_was_held_in_between_counts_from_when_it_was_found_free_again() -> None:
    absences = Absences()
    absences.long_gone({"a"}, 0.0)
    absences.long_gone((), 30.0)
    assert absences.long_gone({"a"}, 60.0) == set()
    assert absences.long_gone({"a"}, 120.0) == {"a"}


def test_a_stock_is_in_use_while_an_attempt_runs_under_one_of_its_reservations() -> None:
    stocks = [
        OpenStock("acme", "gw_1.1"),
        OpenStock("acme", "gw_1.11"),
        OpenStock("local", "gw_1.11"),
        OpenStock("acme", "gw_2.1"),
    ]
    assert unused(stocks, ["gw_1.11:7", "mc_1:1", "gw_2:1"]) == [
        OpenStock("acme", "gw_1.1"),
        OpenStock("acme", "gw_2.1"),
    ]


class Stumbling(MemoryEventLog):
    """While `down` it cannot be written."""

    down = False

    async def append(self, *appends: Append) -> Appended:
        if self.down:
            raise LogUnavailable("down")
        return await super().append(*appends)


@dataclass
class Stage:
    """Keepers of several processes on one log and one view."""

    pool: AsyncConnectionPool
    log: Stumbling = field(default_factory=Stumbling)
    clock: FakeClock = field(default_factory=FakeClock)
    workers: FakeWorkers = field(default_factory=FakeWorkers)
    told: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = StockJournal(self.log, CODEC, self.clock)
        self.view = Projector(self.pool, ReservationsView(), LogSource(self.log, "llm-gateway"))
        self.keeper = self.another()

    def another(self) -> StockKeeper:
        queries = Queries(self.pool)
        return StockKeeper(queries, self.view, self.workers, self.journal, self.clock, self.told.append, fresh_s=0.05)

    async def happened(self, *events: Event, call: str = "mc") -> None:
        await self.stored(*(CODEC.encode(event, at=self.clock.now()) for event in events), call=call)

    async def stored(self, *new: NewEvent, call: str = "mc") -> None:
        await self.log.append(Append(StreamId("model-call", call), ANY, new, Context("local", "usr_ada")))

    async def look(self) -> list[str]:
        """A look at a view that does not lag; whose stocks have been closed by then."""
        await self.view.catch_up()
        await self.keeper.look()
        return await self.closed()

    async def closed(self) -> list[str]:
        told = [each for each in await self.log.read() if each.type == ReservationStockClosed.type_name()]
        return [f"{each.tenant} {orjson.loads(each.data)['holder']}" for each in told]


@pytest.fixture
async def stage(postgres_dsn: str) -> AsyncIterator[Stage]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        stage = Stage(pool)
        await stage.view.prepare()
        yield stage


async def test_the_stocks_of_a_holder_that_is_gone_are_closed_a_minute_after_that_was_seen(stage: Stage) -> None:
    for tenant in ("acme", "local"):
        await stage.journal.opened(tenant, GONE)
    stage.clock.advance(1000)  # how long it was gone before, nobody knows
    assert await stage.look() == []
    stage.clock.advance(GONE_S - 0.1)
    assert await stage.look() == []
    stage.clock.advance(0.1)
    assert await stage.look() == [f"acme {GONE}", f"local {GONE}"]
    stage.clock.advance(GONE_S)
    assert await stage.look() == [f"acme {GONE}", f"local {GONE}"]
    assert stage.told == []


async def test_what_a_holder_that_is_gone_has_opened_later_is_closed_as_well(stage: Stage) -> None:
    await stage.journal.opened("acme", GONE)
    await stage.look()
    stage.clock.advance(GONE_S)
    await stage.look()
    await stage.journal.opened("local", GONE)
    stage.clock.advance(GONE_S)
    await stage.look()
    stage.clock.advance(GONE_S)
    assert await stage.look() == [f"acme {GONE}", f"local {GONE}"]


async def test_the_stock_of_a_living_holder_stays_open(stage: Stage) -> None:
    stage.workers.living.add("gw_2.1")
    for holder in (stage.workers.holder, "gw_2.1"):
        await stage.journal.opened("local", holder)
    await stage.look()
    stage.clock.advance(2 * GONE_S)
    assert await stage.look() == []


async def test_the_stock_of_a_process_whose_connection_ends_is_closed_by_another(
    stage: Stage, postgres_dsn: str
) -> None:
    ours, theirs = (PostgresWorkers(postgres_dsn, stage.pool, own) for own in ("gw_a", "gw_b"))
    stage.keeper.workers = ours
    for each in (ours, theirs):
        await each.enter()
        await stage.journal.opened("local", each.holder)
    await stage.look()
    stage.clock.advance(GONE_S)
    assert await stage.look() == []
    await theirs.leave()
    async with asyncio.timeout(WAIT_S):
        while await ours.alive(theirs.holder):
            continue
    await stage.look()
    stage.clock.advance(GONE_S)
    assert await stage.look() == [f"local {theirs.holder}"]
    await ours.leave()


async def test_a_process_closes_the_stock_of_its_own_former_holder_by_and_by(stage: Stage) -> None:
    former = stage.workers.holder
    await stage.journal.opened("local", former)
    stage.workers.lose_lock()
    await stage.journal.opened("local", stage.workers.holder)
    assert await stage.look() == []
    stage.clock.advance(GONE_S)
    assert await stage.look() == [f"local {former}"]


async def test_a_stock_stays_open_while_an_attempt_runs_under_it(stage: Stage) -> None:
    await stage.journal.opened("local", GONE)
    await stage.happened(started("mc:1"), started(f"{GONE}:2", 2), failed("mc:1"))
    await stage.look()
    stage.clock.advance(10 * GONE_S)
    assert await stage.look() == []
    await stage.happened(failed(f"{GONE}:2", 2))
    assert await stage.look() == [f"local {GONE}"]


async def test_a_call_that_has_ended_leaves_nothing_running(stage: Stage) -> None:
    cancelled = ModelCallCancelled(
        request_id="req", attempt=1, reservation_id=f"{GONE}:1", usage=(), usage_source="gateway_counted"
    )
    await stage.journal.opened("local", GONE)
    await stage.happened(started(f"{GONE}:1"))
    await stage.look()
    await stage.happened(cancelled)
    stage.clock.advance(GONE_S)
    assert await stage.look() == [f"local {GONE}"]


async def test_nothing_is_closed_by_a_view_that_lags(stage: Stage) -> None:
    await stage.journal.opened("local", GONE)
    await stage.look()
    await stage.happened(started(f"{GONE}:1"))
    stage.clock.advance(GONE_S)
    await stage.keeper.look()
    assert await stage.closed() == []
    assert await stage.look() == []  # now it knows why
    await stage.happened(failed(f"{GONE}:1"))
    assert await stage.look() == [f"local {GONE}"]


async def test_a_look_waits_for_the_view(stage: Stage) -> None:
    await stage.journal.opened("local", GONE)
    await stage.look()
    await stage.happened(started("mc:1"))
    stage.clock.advance(GONE_S)
    stage.keeper.fresh_s = WAIT_S
    looking = asyncio.create_task(stage.keeper.look())
    await stage.view.catch_up()
    await looking
    assert await stage.closed() == [f"local {GONE}"]


async def test_nothing_is_closed_while_the_view_lacks_an_event(stage: Stage) -> None:
    await stage.journal.opened("local", GONE)
    await stage.look()
    await stage.stored(NewEvent("ModelCallAttemptStarted", 1, b"{}", uuid7(), stage.clock.now()))
    stage.clock.advance(GONE_S)
    assert await stage.look() == []
    (parked,) = await stage.view.parked()
    await stage.view.redrive(parked.event.position, skip=True)
    assert await stage.look() == [f"local {GONE}"]


async def test_what_fails_is_told_and_tried_again_at_the_next_look(stage: Stage) -> None:
    await stage.journal.opened("local", GONE)
    await stage.look()
    stage.clock.advance(GONE_S)
    stage.workers.down = True
    assert await stage.look() == []
    stage.workers.down, stage.log.down = False, True
    assert await stage.look() == []
    stage.log.down = False
    assert await stage.look() == [f"local {GONE}"]
    assert [str(error) for error in stage.told] == ["the store is down", "down"]


async def test_of_two_processes_that_look_at_once_one_closes(stage: Stage) -> None:
    other = stage.another()
    await stage.journal.opened("local", GONE)
    await stage.view.catch_up()
    await asyncio.gather(stage.keeper.look(), other.look())
    stage.clock.advance(GONE_S)
    await asyncio.gather(stage.keeper.look(), other.look())
    assert await stage.closed() == [f"local {GONE}"]
    assert stage.told == []


async def test_a_process_that_stops_closes_its_own_stocks_at_once(stage: Stage) -> None:
    own = stage.workers.holder
    for tenant, holder in (("acme", own), ("local", own), ("local", GONE)):
        await stage.journal.opened(tenant, holder)
    await stage.happened(started(f"{own}:1"), failed(f"{own}:1"))
    await stage.keeper.close_own()  # nobody has folded the view before
    assert await stage.closed() == [f"acme {own}", f"local {own}"]
    await stage.keeper.close_own()
    assert await stage.closed() == [f"acme {own}", f"local {own}"]


async def test_a_process_that_could_not_record_an_outcome_leaves_its_stock_to_others(stage: Stage) -> None:
    own = stage.workers.holder
    await stage.journal.opened("local", own)
    await stage.happened(started(f"{own}:1"))
    await stage.keeper.close_own()
    assert await stage.closed() == []


async def test_a_stop_does_not_fail_for_want_of_the_log(stage: Stage) -> None:
    await stage.journal.opened("local", stage.workers.holder)
    stage.log.down = True
    await stage.keeper.close_own()
    assert [str(error) for error in stage.told] == ["down"]
