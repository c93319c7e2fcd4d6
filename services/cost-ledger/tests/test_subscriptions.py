"""What other services publish: delivered twice, out of order, before its reservation, after expiry, across restarts.

Failure group 3: a settlement delivered twice, out of order, before its reservation, after expiry. Group 4: the ledger was
down when it came. Group 5: redelivery and restart.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import nats
import pytest
from cost_ledger import books as books_module
from cost_ledger.application import CostLedger, ReservationRequest, Settlement
from cost_ledger.book import Reservation
from cost_ledger.books import Books
from cost_ledger.commands import Expire, Price, SetBudget, SetPrice
from cost_ledger.main import compose
from cost_ledger.prices import load_price_book
from cost_ledger.rates import rate_of
from cost_ledger.settings import Settings
from cost_ledger.subscriptions import LLM_GATEWAY, TOOL_EXECUTOR, ModelUsage, ToolUsage
from cost_ledger.terms import terms_of
from cost_ledger.testing import FakeHistory, FakePrices
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.projections import Projector
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.relay import Relay
from eventlog.sources import LogSource
from launcher.testing import RunningNats
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock, serve_in_process, settings_for
from synod.common.event import Event
from synod.common.ids import derived_uuid
from synod.common.values import Attribution, Failure, UsageLine
from synod.cost_ledger.events import Quantity
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway import events as llm
from synod.tool_executor import events as tools

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LOCAL = Context("local", "svc_llm-gateway", correlation="run_1")
SIM = "simulator/sim-1"
OWNER = Attribution(agent="writer", run_id="run_2", root_run_id="run_1", model=SIM)
WAIT_S = 30
HOLDER = "llm-gateway/1"
USAGE = (UsageLine(direction="input", quantity=30), UsageLine(direction="output", quantity=10))
COST = 30 + 20


@dataclass(slots=True)
class Publisher:
    """Another service's log."""

    codec: Codec[Event]
    clock: FakeClock
    log: MemoryEventLog = field(default_factory=MemoryEventLog)

    async def publish(self, event: Event) -> None:
        position = await self.log.head() + 1
        new = self.codec.encode(event, id=derived_uuid(event.type_name(), str(position)), at=self.clock.now())
        stream = StreamId(event.AGGREGATE, f"id_{position}")
        await self.log.append(Append(stream, ANY, (new,), LOCAL))


@dataclass(slots=True)
class World:
    """A ledger on a log in memory, with the subscriptions' positions in a real database."""

    ledger: CostLedger
    gateway: Publisher
    tools: Publisher
    models: Projector
    tool_calls: Projector
    clock: FakeClock

    async def reserve(self, reservation_id: str = "req_1:1", holder: str = "") -> Reservation:
        request = ReservationRequest(reservation_id, OWNER, SIM, 100, 50, 0, timedelta(seconds=60), holder=holder)
        return await self.ledger.reserve(request, LOCAL)

    async def stock(self, *numbers: int) -> None:
        """Reserve ahead, under a budget that can spare it."""
        scope = Attribution(root_run_id="run_1")
        await self.ledger.set_budget(SetBudget("run_1", scope, 10_000, True, "lifetime", NOW), LOCAL)
        for number in numbers:
            await self.reserve(f"{HOLDER}:{number}", HOLDER)

    async def states(self, *numbers: int) -> list[str]:
        return [(await self.reservation(f"{HOLDER}:{number}")).state for number in numbers]

    async def publish(self, *events: Event) -> None:
        """Have the gateway publish events, and take them in."""
        for event in events:
            await self.gateway.publish(event)
        await self.models.catch_up()

    async def publish_tools(self, *events: Event) -> None:
        for event in events:
            await self.tools.publish(event)
        await self.tool_calls.catch_up()

    async def reservation(self, reservation_id: str = "req_1:1") -> Reservation:
        return await self.ledger.get_reservation(reservation_id, LOCAL)

    async def amounts(self) -> tuple[int, int]:
        """What is posted and what is pending."""
        status = await self.ledger.get_budget("run_1", LOCAL)
        return status.posted, status.pending


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


@pytest.fixture
async def world(pool: AsyncConnectionPool) -> AsyncIterator[World]:
    clock = FakeClock(NOW)
    books = Books(MemoryEventLog(), clock)
    ledger = CostLedger(books, FakePrices(), FakeHistory(), clock)
    gateway, executor = Publisher(Codec(llm.EVENTS), clock), Publisher(Codec(tools.EVENTS, sealed_below=True), clock)
    models = Projector(pool, ModelUsage(ledger), LogSource(gateway.log, LLM_GATEWAY))
    tool_calls = Projector(pool, ToolUsage(ledger), LogSource(executor.log, TOOL_EXECUTOR))
    await ledger.set_price(SetPrice("simulator", "sim-1", 1_000, 2_000, 1_000, 1_000), LOCAL)
    scope = Attribution(root_run_id="run_1")
    await ledger.set_budget(SetBudget("run_1", scope, 1_000, True, "lifetime", NOW), LOCAL)
    yield World(ledger, gateway, executor, models, tool_calls, clock)
    await books.close()


def completed(reservation_id: str = "req_1:1", **more: object) -> llm.ModelCallCompleted:
    values: dict[str, object] = {
        "request_id": "req_1",
        "attempt": 1,
        "model": SIM,
        "provider": "simulator",
        "reservation_id": reservation_id,
        "attribution": OWNER,
        "input_tokens": 30,
        "output_tokens": 10,
        "usage": USAGE,
        "usage_source": "provider_final",
        "finish_reason": "stop",
        "response_sha256": "",
        "duration_ms": 5,
    }
    return llm.ModelCallCompleted.model_validate(values | more)


def failed(reservation_id: str, billed: str) -> llm.ModelCallAttemptFailed:
    failure = Failure(reason="RATE_LIMITED", message="429 from the provider")
    values = {"request_id": "req_1", "attempt": 1, "model": SIM, "reservation_id": reservation_id}
    return llm.ModelCallAttemptFailed.model_validate({**values, "failure": failure, "billed": billed})


def cancelled(reservation_id: str) -> llm.ModelCallCancelled:
    return llm.ModelCallCancelled(
        request_id="req_1", attempt=1, reservation_id=reservation_id, usage=USAGE, usage_source="gateway_counted"
    )


def tool_completed(call_id: str, cost: int) -> tools.ToolCallCompleted:
    return tools.ToolCallCompleted(
        call_id=call_id,
        attempt=1,
        tool="sql",
        result_json="{}",
        isolation="none",
        duration_ms=1,
        attribution=Attribution(agent="writer", run_id="run_2", root_run_id="run_1"),
        cost_nano_usd=cost,
    )


async def test_a_completed_call_settles_its_reservation(world: World) -> None:
    await world.reserve()
    await world.publish(completed())
    settled = await world.reservation()
    assert (settled.state, settled.settled) == ("settled", COST)
    assert await world.amounts() == (COST, 0)


async def test_group_03_an_event_delivered_twice_counts_once(world: World) -> None:
    await world.reserve()
    await world.publish(completed(), completed())
    await world.publish(completed())
    assert await world.amounts() == (COST, 0)


async def test_group_03_a_call_and_its_event_settle_once_between_them(world: World) -> None:
    await world.reserve()
    await world.ledger.settle(Settlement("req_1:1", USAGE, None, "provider_final"), LOCAL)
    await world.publish(completed())
    assert await world.amounts() == (COST, 0)


async def test_group_03_events_out_of_order_end_in_the_same_balance(world: World) -> None:
    names = [f"r{number}" for number in range(5)]
    for name in names:
        await world.reserve(name)
    await world.publish(*(completed(name) for name in reversed(names)))
    assert await world.amounts() == (5 * COST, 0)


async def test_group_03_a_call_that_was_never_reserved_is_charged_all_the_same(world: World) -> None:
    await world.publish(completed("early:1", model="sim-1"))
    assert await world.amounts() == (COST, 0)
    late = await world.reserve("early:1")
    assert (late.state, late.overrun) == ("settled", COST)
    assert await world.amounts() == (COST, 0)


async def test_group_03_an_outcome_after_expiry_is_posted_and_frees_the_suspense(world: World) -> None:
    await world.reserve()
    world.clock.advance(61)
    await world.ledger.books.execute(Expire("req_1:1", world.clock.now()), LOCAL)
    assert (await world.reservation()).state == "suspense"
    assert await world.amounts() == (0, 200)
    await world.publish(completed())
    assert await world.amounts() == (COST, 0)


async def test_group_03_an_attempt_not_billed_frees_its_hold_and_an_unknown_one_puts_it_in_suspense(
    world: World,
) -> None:
    await world.reserve("a")
    await world.reserve("b")
    await world.publish(
        failed("a", "no"), failed("never-reserved", "no"), failed("b", "unknown"), failed("c", "unknown")
    )
    assert (await world.reservation("a")).state == "released"
    assert (await world.reservation("b")).state == "suspense"
    assert await world.models.parked() == []


async def test_group_07_a_cancelled_call_is_charged_for_what_was_delivered(world: World) -> None:
    await world.reserve()
    await world.publish(cancelled("req_1:1"))
    assert (await world.reservation()).settled == COST


async def test_a_cancelled_call_nobody_knows_is_parked_and_blocks_nothing(world: World) -> None:
    await world.reserve()
    await world.publish(cancelled("nowhere"), completed())
    assert await world.amounts() == (COST, 0)
    (parked,) = await world.models.parked()
    assert "nowhere" in parked.error


def returned(*numbers: int, holder: str = HOLDER) -> llm.ReservationsReturned:
    return llm.ReservationsReturned(holder=holder, reservation_ids=tuple(f"{HOLDER}:{number}" for number in numbers))


async def test_group_03_what_was_reserved_ahead_and_not_used_is_freed_and_no_more_by_a_second_delivery(
    world: World,
) -> None:
    await world.stock(1, 2, 3)
    await world.publish(returned(1, 2), returned(1, 2), completed(f"{HOLDER}:3"))
    await world.publish(returned(1, 2))
    assert await world.states(1, 2, 3) == ["released", "released", "settled"]
    assert await world.amounts() == (COST, 0)
    assert await world.models.parked() == []


async def test_what_is_returned_is_freed_from_suspense_too(world: World) -> None:
    await world.stock(1)
    world.clock.advance(61)
    await world.ledger.books.execute(Expire(f"{HOLDER}:1", world.clock.now()), LOCAL)
    await world.publish(returned(1))
    assert (await world.states(1), await world.amounts()) == (["released"], (0, 0))


async def test_a_closed_stock_is_freed_after_what_was_told_before_in_the_same_batch(world: World) -> None:
    await world.stock(1, 2, 3, 4, 5)
    await world.publish(
        llm.ReservationStockOpened(holder=HOLDER),
        completed(f"{HOLDER}:1"),
        failed(f"{HOLDER}:2", "unknown"),
        failed(f"{HOLDER}:3", "no"),
        returned(4),
        llm.ReservationStockClosed(holder=HOLDER),
    )
    assert await world.states(1, 2, 3, 4, 5) == ["settled", "suspense", "released", "released", "released"]
    assert await world.amounts() == (COST, 200)
    await world.publish(llm.ReservationStockClosed(holder=HOLDER), completed(f"{HOLDER}:2"))
    assert await world.amounts() == (2 * COST, 0)


async def test_a_use_that_is_told_after_the_close_is_charged_all_the_same(world: World) -> None:
    await world.stock(1)
    await world.publish(llm.ReservationStockClosed(holder=HOLDER), completed(f"{HOLDER}:1"))
    await world.publish(returned(1))
    assert (await world.states(1), await world.amounts()) == (["settled"], (COST, 0))
    assert await world.models.parked() == []


async def test_a_holder_that_nobody_knows_frees_nothing(world: World) -> None:
    await world.stock(1)
    await world.reserve()
    head = await world.ledger.books.log.head()
    nobody = [llm.ReservationStockClosed(holder=name) for name in ("", "llm-gateway/2")]
    await world.publish(*nobody, returned(1, holder="llm-gateway/2"), returned(1, holder=""), returned(7))
    assert (await world.ledger.books.log.head(), await world.states(1)) == (head, ["held"])
    assert await world.models.parked() == []


async def test_what_is_recorded_of_a_stock_is_under_its_holder(world: World, pool: AsyncConnectionPool) -> None:
    await world.stock(1)
    await world.publish(returned(1), completed(), llm.ReservationStockClosed(holder=HOLDER))
    async with pool.connection() as connection:
        cursor = await connection.execute("select type, subject from view_model_usage.recorded order by position")
        assert await cursor.fetchall() == [
            ("ReservationsReturned", HOLDER),
            ("ModelCallCompleted", "req_1:1"),
            ("ReservationStockClosed", HOLDER),
        ]
    released = (await world.ledger.books.log.read())[-2]
    cause = (await world.gateway.log.read())[0]
    assert (released.type, released.actor, released.causation) == ("ReservationReleased", LOCAL.actor, cause.id)


async def test_a_book_that_is_busy_parks_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.reserve()
    await world.gateway.publish(completed())
    with monkeypatch.context() as crowded:
        crowded.setattr(books_module, "WAITING_COMMANDS_MAX", 0)
        with pytest.raises(LogUnavailable):
            await world.models.catch_up()
    await world.models.catch_up()
    assert await world.amounts() == (COST, 0)
    assert await world.models.parked() == []


async def test_a_tool_that_costs_is_charged_once_and_one_that_does_not_is_not(world: World) -> None:
    await world.publish_tools(tool_completed("call_1", 40), tool_completed("call_1", 40), tool_completed("call_2", 0))
    assert await world.amounts() == (40, 0)
    book = await world.ledger.books.read("local")
    assert book.balances["expense:tool/sql"] == 40


async def test_events_are_recorded_in_the_name_of_who_caused_them(world: World) -> None:
    await world.reserve()
    await world.publish(completed())
    settled = (await world.ledger.books.log.read())[-1]
    cause = (await world.gateway.log.read())[-1]
    assert (settled.type, settled.actor, settled.correlation) == ("CostSettled", "svc_llm-gateway", "run_1")
    assert settled.causation == cause.id


async def test_group_05_a_rebuild_of_the_subscriptions_counts_nothing_twice(world: World) -> None:
    await world.reserve()
    await world.publish(completed())
    await world.publish_tools(tool_completed("call_1", 40))
    for view in (world.models, world.tool_calls):
        assert (await view.verify()).equal
        await view.rebuild()
    assert await world.amounts() == (COST + 40, 0)


async def test_group_04_what_was_published_while_the_ledger_was_down_is_in_the_next_answer(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    """The whole service: its position survives, and a query waits for what the stream holds."""
    settings, gateway = (
        settings_for(Settings, postgres_dsn, fresh_nats.url),
        Publisher(Codec(llm.EVENTS), FakeClock(NOW)),
    )
    client = await nats.connect(fresh_nats.url)
    relay = Relay(gateway.log, client, LLM_GATEWAY)
    running = asyncio.create_task(relay.run())
    async with serve_in_process(compose, settings) as served:
        stub = CostLedgerStub(served.channel)
        await stub.SetPrice(
            pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=1_000, output_pico_usd=2_000)
        )
        for number in range(6):
            await stub.Reserve(pb.ReserveRequest(reservation_id=f"r{number}", model=SIM, input_tokens_max=100))
        await gateway.publish(completed("r0"))
        assert await relay.wait_for(1, WAIT_S) == 1
        assert (await stub.QuerySpend(pb.QuerySpendRequest())).total_nano_usd == COST
    for number in range(6):
        await gateway.publish(completed(f"r{number}"))
    assert await relay.wait_for(7, WAIT_S) == 7
    async with serve_in_process(compose, settings) as served:
        answer = await CostLedgerStub(served.channel).QuerySpend(pb.QuerySpendRequest())
    assert (answer.total_nano_usd, answer.rows[0].calls, answer.rows[0].pending_nano_usd) == (6 * COST, 6, 0)
    await end(running)
    await client.close()


async def test_the_events_of_a_stock_come_by_nats_and_the_views_have_them(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    """The whole service: what a gateway reserved by gRPC is freed by what it publishes."""
    gateway = Publisher(Codec(llm.EVENTS), FakeClock(NOW))
    client = await nats.connect(fresh_nats.url)
    relay = Relay(gateway.log, client, LLM_GATEWAY)
    running = asyncio.create_task(relay.run())
    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, fresh_nats.url)) as served:
        stub, views = CostLedgerStub(served.channel), EventLogStub(served.channel)
        wanted = [
            pb.ReserveRequest(reservation_id=f"{HOLDER}:{number}", model=SIM, input_tokens_max=100, holder=HOLDER)
            for number in range(3)
        ]
        batch = pb.ReserveManyRequest(items=[pb.ReserveManyRequest.Item(reserve=each) for each in wanted])
        held = (await stub.ReserveMany(batch)).outcomes
        assert [(each.state, each.holder) for each in held] == [(pb.RESERVATION_STATE_HELD, HOLDER)] * 3
        for event in (returned(0), completed(f"{HOLDER}:1"), llm.ReservationStockClosed(holder=HOLDER)):
            await gateway.publish(event)
        assert await relay.wait_for(3, WAIT_S) == 3
        assert (await stub.QuerySpend(pb.QuerySpendRequest())).rows[0].pending_nano_usd == 0
        again = (await stub.ReserveMany(batch)).outcomes
        freed, used = pb.RESERVATION_STATE_RELEASED, pb.RESERVATION_STATE_SETTLED
        assert [(each.state, each.holder) for each in again] == [(each, HOLDER) for each in (freed, used, freed)]
        for name in ("reservations", "model_usage"):
            assert (await views.VerifyView(log_pb.VerifyViewRequest(name=name))).equal
    await end(running)
    await client.close()


def tool_failed(call_id: str, cpu_ms: int | None = None) -> tools.ToolCallFailed:
    failure = Failure(reason="TIMED_OUT", message="after 5 s")
    return tools.ToolCallFailed(
        call_id=call_id,
        attempt=1,
        tool="sql",
        outcome="timed_out",
        failure=failure,
        duration_ms=5_000,
        cpu_ms=cpu_ms,
    )


async def reserve_tool(world: World, call_id: str) -> None:
    time = (Quantity(unit="tool_ms", quantity=9_000),)
    await world.ledger.set_budget(
        SetBudget("time", Attribution(), 10_000, True, "day", NOW, time_zone="Europe/Berlin", unit="tool_ms"), LOCAL
    )
    request = ReservationRequest(call_id, OWNER, "", 0, 0, 100, timedelta(seconds=60), quantities=time)
    await world.ledger.reserve(request, LOCAL)


async def tool_time(world: World) -> tuple[int, int]:
    status = await world.ledger.get_budget("time", LOCAL)
    return status.posted, status.pending


async def test_the_end_of_a_tool_call_settles_what_was_reserved_for_it(world: World) -> None:
    await reserve_tool(world, "call_1")
    assert await tool_time(world) == (0, 9_000)
    await world.publish_tools(tool_completed("call_1", 40), tool_completed("call_1", 40))
    assert await tool_time(world) == (1, 0)
    assert await world.amounts() == (40, 0)
    assert (await world.reservation("call_1")).state == "settled"


async def test_a_failed_tool_call_settles_its_time_and_no_money(world: World) -> None:
    await reserve_tool(world, "call_1")
    await world.publish_tools(tool_failed("call_1"), tool_failed("nobody reserved this"))
    assert await tool_time(world) == (5_000, 0)
    assert await world.amounts() == (0, 0)


async def test_a_failed_tool_call_whose_processor_time_was_measured_settles_that_too(world: World) -> None:
    await world.ledger.set_budget(SetBudget("cpu", Attribution(), 10_000, True, "day", NOW, unit="cpu_ms"), LOCAL)
    cpu = (Quantity(unit="cpu_ms", quantity=9_000),)
    for call_id in ("measured", "unmeasured"):
        await world.ledger.reserve(ReservationRequest(call_id, OWNER, "", 0, 0, 0, None, quantities=cpu), LOCAL)
        await world.publish_tools(tool_failed(call_id, cpu_ms=700 if call_id == "measured" else None))
        posted = (await world.ledger.get_budget("cpu", LOCAL)).posted
        assert posted == (700 if call_id == "measured" else 700 + 9_000)


async def test_group_03_what_a_tool_call_of_unknown_outcome_holds_is_in_suspense_until_somebody_says(
    world: World,
) -> None:
    await reserve_tool(world, "call_1")
    lost = tools.ToolCallOutcomeUnknown(call_id="call_1", attempt=1, tool="pay", evidence="its worker died")
    await world.publish_tools(lost, lost)
    assert (await world.reservation("call_1")).state == "suspense"
    assert await world.amounts() == (0, 100)

    await world.publish_tools(reconciled("call_1", happened=True, cost=60))
    assert (await world.reservation("call_1")).state == "settled"
    assert await world.amounts() == (60, 0)
    assert await tool_time(world) == (9_000, 0)


async def test_a_tool_call_that_did_not_happen_after_all_gives_back_what_it_held(world: World) -> None:
    await reserve_tool(world, "call_1")
    await world.publish_tools(
        tools.ToolCallOutcomeUnknown(call_id="call_1", attempt=1, tool="pay", evidence="cancelled"),
        reconciled("call_1", happened=False),
        reconciled("nobody reserved this", happened=False),
        reconciled("nor this", happened=True),
    )
    assert (await world.reservation("call_1")).state == "released"
    assert (await world.amounts(), await tool_time(world)) == ((0, 0), (0, 0))


def reconciled(call_id: str, *, happened: bool, cost: int = 0) -> tools.ToolCallReconciled:
    return tools.ToolCallReconciled(
        call_id=call_id, happened=happened, result_json="", reason="looked", by="usr_ada", cost_nano_usd=cost
    )


async def test_the_time_of_a_free_tool_call_counts_where_a_quota_does(world: World) -> None:
    await reserve_tool(world, "call_1")
    await world.publish_tools(tool_completed("call_2", 0))
    assert await tool_time(world) == (1, 9_000)


async def test_a_tool_call_whose_settled_reservation_the_book_forgot_is_not_charged_again(world: World) -> None:
    await reserve_tool(world, "call_1")
    await world.publish_tools(tool_completed("call_1", 40))
    history = world.ledger.history
    assert isinstance(history, FakeHistory)
    # What a view has of it; the book of another process starts from a snapshot that has forgotten it.
    history.reservations["local", "call_0"] = replace(await world.reservation("call_1"), reservation_id="call_0")
    await world.publish_tools(tool_completed("call_0", 40))
    assert await world.amounts() == (40, 0)


async def test_a_cancelled_call_that_the_book_forgot_is_not_parked_when_it_is_told_again(world: World) -> None:
    history = world.ledger.history
    assert isinstance(history, FakeHistory)
    await reserve_tool(world, "call_1")
    await world.publish_tools(tool_completed("call_1", 40))
    # What a view has of it; the book has forgotten it.
    history.reservations["local", "req_0:1"] = replace(await world.reservation("call_1"), reservation_id="req_0:1")
    await world.publish(cancelled("req_0:1"))
    assert await world.models.parked() == []
    assert await world.amounts() == (40, 0)


async def test_group_03_what_happened_after_all_is_posted_though_the_book_forgot_its_release(world: World) -> None:
    history = world.ledger.history
    assert isinstance(history, FakeHistory)
    await reserve_tool(world, "call_1")
    await world.ledger.release("call_1", "never began", LOCAL)
    await world.reserve("req_1:1")
    await world.ledger.release("req_1:1", "never sent", LOCAL)
    # What a view has of them; the book has forgotten them, and what tells of them does not say whose they were.
    for forgotten, known in (("call_0", "call_1"), ("req_0:1", "req_1:1")):
        released = replace(await world.reservation(known), reservation_id=forgotten, rates=())
        history.reservations["local", forgotten] = released
    for _ in range(2):
        await world.publish_tools(reconciled("call_0", happened=True, cost=40))
        await world.publish(cancelled("req_0:1"))
    assert await world.models.parked() == await world.tool_calls.parked() == []
    assert await world.amounts() == (40 + COST, 0)


async def test_what_no_call_can_have_used_is_parked_and_stays_held(world: World) -> None:
    await world.reserve()
    await world.publish(completed(usage=(UsageLine(direction="input", quantity=10**18),)))
    (parked,) = await world.models.parked()
    assert "more than one call may" in parked.error
    assert await world.amounts() == (0, (await world.reservation()).reserved)


async def test_group_14_a_tier_that_the_provider_served_instead_is_the_one_that_is_billed(world: World) -> None:
    priced = replace(world.ledger, prices=load_price_book())
    fast, model = terms_of({"service_tier": "fast"}), "openai/gpt-5.5"
    world.models.view = ModelUsage(priced)  # type: ignore[misc]
    for name in ("as asked", "downgraded", "untold"):
        owner = OWNER.model_copy(update={"run_id": "run_9", "root_run_id": "run_9", "model": model})
        await priced.reserve(ReservationRequest(name, owner, model, 30, 10, 0, None, fast), LOCAL)
    for name, tier in (("as asked", "fast"), ("downgraded", "default"), ("untold", "")):
        await world.publish(completed(name, model=model, provider="openai", service_tier=tier))

    asked, downgraded, untold = [await priced.get_reservation(n, LOCAL) for n in ("as asked", "downgraded", "untold")]
    standard = priced.prices.price(model, NOW)
    assert downgraded.settled == 30 * standard_nano(standard, "input") + 10 * standard_nano(standard, "output")
    assert asked.settled == untold.settled > downgraded.settled
    assert (asked.price_context, downgraded.price_context) == ("service_tier=fast", "")


async def test_group_14_a_tier_without_a_price_is_not_free_under_a_hard_budget(world: World) -> None:
    priced = replace(world.ledger, prices=load_price_book())
    world.models.view = ModelUsage(priced)  # type: ignore[misc]
    model = "openai/gpt-4o"
    assert priced.prices.price(model, NOW, terms_of({"service_tier": "scale"})).source == "unpriced"
    scope = Attribution(root_run_id="run_9")
    await priced.set_budget(SetBudget("run_9", scope, 10**6, True, "lifetime", NOW), LOCAL)
    owner = OWNER.model_copy(update={"run_id": "run_9", "root_run_id": "run_9", "model": model})
    await priced.reserve(ReservationRequest("reserved", owner, model, 30, 10, 0, None), LOCAL)
    more = {"model": model, "provider": "openai", "service_tier": "scale", "attribution": owner}
    await world.publish(completed("reserved", **more), completed("never reserved", **more))

    standard = priced.prices.price(model, NOW)
    cost = 30 * standard_nano(standard, "input") + 10 * standard_nano(standard, "output")
    assert cost > 0
    for name in ("reserved", "never reserved"):
        known = await priced.get_reservation(name, LOCAL)
        assert (known.settled, known.price_source, known.price_context) == (cost, "book_fuzzy", "service_tier=scale")
    assert (await priced.get_budget("run_9", LOCAL)).posted == 2 * cost


def standard_nano(price: Price, unit: str) -> int:
    return rate_of(price.rates, (unit,), 30) // 1_000
