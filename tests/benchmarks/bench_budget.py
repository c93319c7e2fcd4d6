"""Money: a rush on a budget through gateways that are killed, reservations from admission to settlement, and a book
rebuilt from a million of its events.

Failure group 1: never more admitted than the budget is for, and spend is what the provider counted, to the nano-dollar.
Failure group 23: the rebuilt book has the balances of the one that decided the events.
"""

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from cost_ledger.book import EMPTY, Book
from cost_ledger.books import AGGREGATE, CODEC, Books
from cost_ledger.commands import Command, Expire, Price, Release, Reserve, SetBudget, Settle
from cost_ledger.domain import decide
from cost_ledger.folding import fold
from cost_ledger.main import compose
from cost_ledger.rates import flat_card
from cost_ledger.settings import Settings
from eventlog.postgres import PostgresEventLog
from eventlog.records import Append, Context, StreamId
from harness import Load, Report, Row, Size, closed_loop, nats_server, postgres
from launcher.layout import SERVICES, Layout
from launcher.system import System
from launcher.testing import free_port_base
from servicekit.clock import SystemClock
from servicekit.testing import serve_in_process, settings_for
from synod.common.event import Event
from synod.common.ids import uuid7
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod_client import Endpoints, Synod
from system.replicas import gateways
from system.rush import AFFORDED, MOMENTS, REPLICAS, REQUESTS, Moment, Outcome, check, rush

SECONDS = {"tiny": 0.2, "small": 5, "full": 20}
EVENTS = {"tiny": 2_000, "small": 50_000, "full": 1_000_000}
CALLERS = 64
RUSHES: dict[Size, tuple[Moment, ...]] = {
    "tiny": (),
    "small": tuple(MOMENTS),
    "full": tuple(MOMENTS) * 5,
}
"""When a gateway is killed in each of them; tests/system has one of its own."""
NEEDED = frozenset({"agent-registry", "cost-ledger", "tool-executor", "llm-gateway"})
START = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = "local"
MODEL = "simulator/sim-1"
AGENTS = tuple(f"agent-{number}" for number in range(50))


async def measure(size: Size) -> Report:
    async with (
        postgres() as dsn,
        nats_server() as url,
        serve_in_process(compose, settings_for(Settings, dsn, url)) as served,
    ):
        ledger = CostLedgerStub(served.channel)
        await _set_up(ledger)
        cpu = time.process_time()
        load = await _calls(ledger, SECONDS[size])
        cpu = time.process_time() - cpu
    outcomes = await _rushes(RUSHES[size]) if RUSHES[size] else []
    async with postgres() as dsn:
        written, took = await _rebuilt(dsn, EVENTS[size])
    case = f"reserve, {CALLERS} callers, 4 budgets match, then settle"
    rows = (
        Row(case, "reservations/s", "1/s", load.per_second),
        Row(case, "latency of reserving p50", "ms", load.percentile_ms(50)),
        Row(case, "latency of reserving p99", "ms", load.percentile_ms(99)),
        Row(case, "CPU of ledger and callers for both", "ms", 1_000 * cpu / len(load.latencies_s)),
        *(_rush_rows(outcomes) if outcomes else ()),
        Row("book rebuilt without a snapshot", "events/s", "1/s", written / took),
        Row("book rebuilt without a snapshot", "seconds per million events", "s", 1e6 * took / written),
    )
    return Report("budget", "each reservation and settlement flushed to disk before its answer (fsync on)", rows)


# --- through gRPC ---


async def _set_up(ledger: CostLedgerStub) -> None:
    price = pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=1_000, output_pico_usd=4_000)
    await ledger.SetPrice(price)
    budgets = (
        pb.SetBudgetRequest(budget_id="tenant", window="month", time_zone="Europe/Berlin"),
        pb.SetBudgetRequest(budget_id="hour", window="rolling", rolling={"seconds": 3_600}),
        pb.SetBudgetRequest(budget_id="agent", window="day", scope=pb.Attribution(agent=AGENTS[0])),
        pb.SetBudgetRequest(budget_id="talk", window="lifetime", per="conversation_id"),
    )
    for budget in budgets:
        budget.limit_nano_usd, budget.hard = 10**15, True
        await ledger.SetBudget(budget)


async def _calls(ledger: CostLedgerStub, seconds: float) -> Load:
    """Reservations, timed, each settled before the next of its caller."""
    numbers, reserving = count(), Load()

    async def call(caller: int) -> None:
        name = f"req_{next(numbers)}:1"
        owner = pb.Attribution(agent=AGENTS[0], conversation_id=f"conv_{caller}", run_id=f"run_{caller}")
        begun = time.perf_counter()
        await ledger.Reserve(
            pb.ReserveRequest(
                reservation_id=name, attribution=owner, model=MODEL, input_tokens_max=800, output_tokens_max=200
            )
        )
        reserving.latencies_s.append(time.perf_counter() - begun)
        used = [pb.UsageLine(direction="input", quantity=700), pb.UsageLine(direction="output", quantity=90)]
        await ledger.Settle(pb.SettleRequest(reservation_id=name, usage=used, usage_source="provider_final"))

    reserving.took_s = (await closed_loop(CALLERS, seconds, call)).took_s
    return reserving


# --- through gateways that are killed ---


async def _rushes(moments: tuple[Moment, ...]) -> list[Outcome]:
    """One rush after the other on one system, with as many gateways again before each."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="synod-bench-") as directory:
        services = tuple(service for service in SERVICES if service.name in NEEDED)
        layout = Layout(Path(directory), free_port_base(), services, simulator=True)
        async with (
            System(layout, fresh=True) as system,
            Synod.connect(Endpoints.discover({}, layout.data)) as synod,
            gateways(system, REPLICAS) as replicas,
        ):
            for moment in moments:
                await replicas.restore()
                outcomes.append(await rush(replicas, synod, moment))
                check(outcomes[-1])
    return outcomes


def _rush_rows(outcomes: list[Outcome]) -> tuple[Row, ...]:
    case = f"{REQUESTS} at once for the price of {AFFORDED}, {REPLICAS} gateways, one killed"
    spent, counted = (sum(each.spent_nano for each in outcomes), sum(each.simulator_nano for each in outcomes))
    rows = (
        Row(case, "admitted", "", max(each.admitted for each in outcomes), AFFORDED),
        Row(f"{case}, {len(outcomes)} times", "spend", "nUSD", spent, None, "the simulator's own count", counted),
    )
    unknown = sum(each.unknown for each in outcomes)
    by_invoice = Row(f"{case}, {len(outcomes)} times", "calls that only the invoice explains", "", unknown)
    return (*rows, by_invoice) if unknown else rows


# --- a million events ---


async def _rebuilt(dsn: str, events: int) -> tuple[int, float]:
    """How many events were written, and the seconds in which a process that starts without a snapshot has the book."""
    log = await PostgresEventLog.open(dsn)
    written, expected = await _filled(log, events)
    books = Books(log, SystemClock(), snapshot_events=10**9)
    begun = time.perf_counter()
    found = await books.read(TENANT)
    took = time.perf_counter() - begun
    await books.close()
    await log.close()
    assert found == expected
    assert sum(found.balances.values()) == 0
    return written, took


async def _filled(log: PostgresEventLog, events: int) -> tuple[int, Book]:
    """A history of decided commands in the log, and the book that those who decided it had at its end."""
    book, version, clock = EMPTY, 0, SystemClock()
    stream, context = StreamId(AGGREGATE, TENANT), Context(TENANT, "bench")
    batch: list[Event] = []
    for command in _history():
        decided = decide(book, command)
        book = fold(book, decided)
        batch += decided
        if len(batch) >= 500 or version + len(batch) >= events:
            new = tuple(CODEC.encode(event, id=uuid7(), at=clock.now()) for event in batch)
            await log.append(Append(stream, version, new, context))
            version, batch = version + len(batch), []
        if version >= events:
            break
    return version, book


def _history() -> Iterator[Command]:
    """Calls without end: most are settled, some are released, some expire and are settled late."""
    price = Price(flat_card(1_000, 4_000, 100, 1_250), "book 1", "book")
    yield SetBudget("all", Attribution(), 10**15, True, "month", START)
    yield SetBudget("hour", Attribution(), 10**15, True, "rolling", START, rolling_s=3_600)
    for agent in AGENTS:
        yield SetBudget(agent, Attribution(agent=agent), 10**15, False, "day", START)
    usage = (UsageLine(direction="input", quantity=700), UsageLine(direction="output", quantity=90))
    for number in count():
        at, name = START + timedelta(seconds=number), f"req_{number}:1"
        owner = Attribution(tenant_id=TENANT, agent=AGENTS[number % len(AGENTS)], model=MODEL)
        yield Reserve(name, name, owner, MODEL, 800, 200, None, price, at, at + timedelta(minutes=1))
        if number % 10 == 0:
            yield Release(name, "refused")
            continue
        if number % 10 == 1:
            yield Expire(name, at + timedelta(minutes=1))
        yield Settle(name, usage, None, "provider_final", at)
