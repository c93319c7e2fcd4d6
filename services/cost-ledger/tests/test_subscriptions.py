"""What other services publish: delivered twice, out of order, before its reservation, after expiry, across restarts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nats
import pytest
from cost_ledger.main import compose
from cost_ledger.settings import Settings
from eventlog.codec import Codec
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.relay import Relay
from google.protobuf.duration_pb2 import Duration
from launcher.testing import RunningNats
from servicekit.testing import FakeClock, Served, serve_in_process, settings_for
from synod.common.event import Event
from synod.common.ids import derived_uuid
from synod.common.values import Attribution, Failure, UsageLine
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
WAIT_S = 10
USAGE = (UsageLine(direction="input", quantity=30), UsageLine(direction="output", quantity=10))
COST = 30 + 20


@dataclass(slots=True)
class Publisher:
    """Another service: a log of its own, relayed to JetStream as a real service does it."""

    codec: Codec[Event]
    clock: FakeClock
    log: MemoryEventLog = field(default_factory=MemoryEventLog)

    async def publish(self, event: Event) -> int:
        """Publish an event; its position."""
        position = await self.log.head() + 1
        new = self.codec.encode(event, id=derived_uuid(event.type_name(), str(position)), at=self.clock.now())
        stream = StreamId(event.AGGREGATE, f"id_{position}")
        return (await self.log.append(Append(stream, ANY, (new,), LOCAL))).position


@dataclass(slots=True)
class World:
    served: Served[Settings]
    gateway: Publisher
    tools: Publisher
    clock: FakeClock

    @property
    def ledger(self) -> CostLedgerStub:
        return CostLedgerStub(self.served.channel)

    @property
    def log(self) -> EventLogStub:
        return EventLogStub(self.served.channel)

    async def reservation(self, reservation_id: str) -> pb.Reservation:
        return await self.ledger.GetReservation(pb.GetReservationRequest(reservation_id=reservation_id))

    async def budget(self) -> pb.Budget:
        return await self.ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))

    async def recorded(self, view: str, position: int) -> None:
        """Wait until the ledger has taken in an event."""

        async def taken_in() -> bool:
            views = (await self.log.ListViews(log_pb.ListViewsRequest())).views
            return next(found.position for found in views if found.name == view) >= position

        await until(taken_in)


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if await found():
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def publishing(url: str, service: str, publisher: Publisher) -> AsyncIterator[None]:
    client = await nats.connect(url)
    relay = asyncio.create_task(Relay(publisher.log, client, service).run())
    try:
        yield
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        await client.close()


@pytest.fixture
def settings(postgres_dsn: str, fresh_nats: RunningNats) -> Settings:
    return settings_for(Settings, postgres_dsn, fresh_nats.url)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    clock = FakeClock(NOW)
    gateway, executor = Publisher(Codec(llm.EVENTS), clock), Publisher(Codec(tools.EVENTS), clock)
    async with (
        publishing(settings.nats_url, "llm-gateway", gateway),
        publishing(settings.nats_url, "tool-executor", executor),
        serve_in_process(compose, settings, clock=clock) as served,
    ):
        world = World(served, gateway, executor, clock)
        await prepare(world)
        yield world


async def prepare(world: World) -> None:
    price = pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=1_000, output_pico_usd=2_000)
    await world.ledger.SetPrice(price)
    scope = pb.Attribution(root_run_id="run_1")
    budget = pb.SetBudgetRequest(budget_id="run_1", scope=scope, limit_nano_usd=1_000, hard=True, window="lifetime")
    await world.ledger.SetBudget(budget)


def hold(reservation_id: str = "req_1:1") -> pb.ReserveRequest:
    return pb.ReserveRequest(
        reservation_id=reservation_id,
        attribution=pb.Attribution(agent="writer", run_id="run_2", root_run_id="run_1"),
        model=SIM,
        input_tokens_max=100,
        output_tokens_max=50,
        ttl=Duration(seconds=60),
    )


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
    await world.ledger.Reserve(hold())
    await world.gateway.publish(completed())
    spend = await world.ledger.QuerySpend(pb.QuerySpendRequest(group_by=["root_run_id", "agent"]))
    await world.recorded("model_usage", 1)
    settled = await world.reservation("req_1:1")
    assert (settled.state, settled.settled_nano_usd) == (pb.RESERVATION_STATE_SETTLED, COST)
    assert (await world.budget()).posted_nano_usd == COST
    assert len(spend.rows) == 1


async def test_spend_contains_what_was_published_before_it_was_asked_for(world: World) -> None:
    for number in range(20):
        await world.ledger.Reserve(hold(f"r{number}"))
        await world.gateway.publish(completed(f"r{number}"))
        await world.ledger.Settle(
            pb.SettleRequest(reservation_id=f"r{number}", amount_nano_usd=COST, usage_source="provider_final")
        )
    spend = await world.ledger.QuerySpend(pb.QuerySpendRequest())
    assert spend.total_nano_usd == 20 * COST


async def test_an_event_delivered_twice_counts_once(world: World) -> None:
    await world.ledger.Reserve(hold())
    await world.gateway.publish(completed())
    await world.recorded("model_usage", await world.gateway.publish(completed()))
    assert (await world.budget()).posted_nano_usd == COST


async def test_a_call_that_was_never_reserved_is_charged_all_the_same(world: World) -> None:
    await world.recorded("model_usage", await world.gateway.publish(completed("early:1")))
    assert (await world.budget()).posted_nano_usd == COST
    late = await world.ledger.Reserve(hold("early:1"))
    assert (late.state, late.overrun_nano_usd) == (pb.RESERVATION_STATE_SETTLED, COST)
    assert (await world.budget()).pending_nano_usd == 0


async def test_an_outcome_after_expiry_is_posted_and_frees_the_suspense(world: World) -> None:
    await world.ledger.Reserve(hold())
    world.clock.advance(61)

    async def in_suspense() -> bool:
        return (await world.reservation("req_1:1")).state == pb.RESERVATION_STATE_SUSPENSE

    await until(in_suspense)
    await world.recorded("model_usage", await world.gateway.publish(completed()))
    state = await world.budget()
    assert (state.posted_nano_usd, state.pending_nano_usd) == (COST, 0)


async def test_an_attempt_that_was_not_billed_frees_its_hold_and_an_unknown_one_keeps_it(world: World) -> None:
    await world.ledger.Reserve(hold("a"))
    await world.ledger.Reserve(hold("b"))
    await world.gateway.publish(failed("a", "no"))
    await world.gateway.publish(failed("never-reserved", "no"))
    await world.recorded("model_usage", await world.gateway.publish(failed("b", "unknown")))
    assert (await world.reservation("a")).state == pb.RESERVATION_STATE_RELEASED
    assert (await world.reservation("b")).state == pb.RESERVATION_STATE_HELD


async def test_a_cancelled_call_is_charged_for_what_was_delivered(world: World) -> None:
    await world.ledger.Reserve(hold())
    await world.recorded("model_usage", await world.gateway.publish(cancelled("req_1:1")))
    assert (await world.reservation("req_1:1")).settled_nano_usd == COST


async def test_a_cancelled_call_nobody_knows_is_parked_and_blocks_nothing(world: World) -> None:
    await world.ledger.Reserve(hold())
    await world.gateway.publish(cancelled("nowhere"))
    await world.recorded("model_usage", await world.gateway.publish(completed()))
    assert (await world.budget()).posted_nano_usd == COST
    parked = (await world.log.ListParked(log_pb.ListParkedRequest(view="model_usage"))).parked
    assert len(parked) == 1
    assert "nowhere" in parked[0].error


async def test_a_tool_that_costs_is_charged_once_and_one_that_does_not_is_not(world: World) -> None:
    await world.tools.publish(tool_completed("call_1", 40))
    await world.tools.publish(tool_completed("call_1", 40))
    await world.recorded("tool_usage", await world.tools.publish(tool_completed("call_2", 0)))
    assert (await world.budget()).posted_nano_usd == 40
    spend = await world.ledger.QuerySpend(pb.QuerySpendRequest(group_by=["tool"]))
    assert [(row.group[0], row.cost_nano_usd, row.calls) for row in spend.rows] == [("sql", 40, 1)]


async def test_a_rebuild_of_the_subscriptions_counts_nothing_twice(world: World) -> None:
    await world.ledger.Reserve(hold())
    await world.gateway.publish(completed())
    await world.tools.publish(tool_completed("call_1", 40))
    await world.recorded("model_usage", 1)
    await world.recorded("tool_usage", 1)
    for name in ("model_usage", "tool_usage"):
        assert (await world.log.VerifyView(log_pb.VerifyViewRequest(name=name))).equal
        await world.log.RebuildView(log_pb.RebuildViewRequest(name=name))
    assert (await world.budget()).posted_nano_usd == COST + 40


async def test_what_was_published_while_the_ledger_was_down_is_settled_when_it_is_back(settings: Settings) -> None:
    clock = FakeClock(NOW)
    gateway = Publisher(Codec(llm.EVENTS), clock)
    async with publishing(settings.nats_url, "llm-gateway", gateway):
        async with serve_in_process(compose, settings, clock=clock) as served:
            world = World(served, gateway, gateway, clock)
            await prepare(world)
            for number in range(6):
                await world.ledger.Reserve(hold(f"r{number}"))
            await world.recorded("model_usage", await gateway.publish(completed("r0")))
        for number in range(6):
            await gateway.publish(completed(f"r{number}"))
        async with serve_in_process(compose, settings, clock=clock) as served:
            world = World(served, gateway, gateway, clock)
            await world.recorded("model_usage", 7)
            state = await world.budget()
            assert (state.posted_nano_usd, state.pending_nano_usd) == (6 * COST, 0)
