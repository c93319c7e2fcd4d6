"""Money: a rush on a budget through gateways that are killed, and reservations from admission to settlement.

Failure group 1: never more admitted than the budget is for, and spend is what the provider counted, to the nano-dollar.
"""

import tempfile
import time
from itertools import count
from pathlib import Path

from cost_ledger.main import compose
from cost_ledger.settings import Settings
from harness import Load, Report, Row, Size, closed_loop, nats_server, postgres
from launcher.layout import SERVICES, Layout
from launcher.system import System
from launcher.testing import free_port_base
from servicekit.testing import serve_in_process, settings_for
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod_client import Endpoints, Synod
from system.replicas import gateways
from system.rush import AFFORDED, MOMENTS, REPLICAS, REQUESTS, Moment, Outcome, check, rush

SECONDS = {"tiny": 0.2, "small": 5, "full": 20}
CALLERS = 64
RUSHES: dict[Size, tuple[Moment, ...]] = {
    "tiny": (),
    "small": tuple(MOMENTS),
    "full": tuple(MOMENTS) * 5,
}
"""When a gateway is killed in each of them; tests/system has one of its own."""
NEEDED = frozenset({"agent-registry", "cost-ledger", "tool-executor", "llm-gateway"})
MODEL = "simulator/sim-1"
AGENT = "agent-0"


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
    case = f"reserve, {CALLERS} callers, 4 budgets match, then settle"
    rows = (
        Row(case, "reservations/s", "1/s", load.per_second),
        Row(case, "latency of reserving p50", "ms", load.percentile_ms(50)),
        Row(case, "latency of reserving p99", "ms", load.percentile_ms(99)),
        Row(case, "CPU of ledger and callers for both", "ms", 1_000 * cpu / len(load.latencies_s)),
        *(_rush_rows(outcomes) if outcomes else ()),
    )
    return Report("budget", "each reservation and settlement flushed to disk before its answer (fsync on)", rows)


# --- through gRPC ---


async def _set_up(ledger: CostLedgerStub) -> None:
    price = pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=1_000, output_pico_usd=4_000)
    await ledger.SetPrice(price)
    budgets = (
        pb.SetBudgetRequest(budget_id="tenant", window="month", time_zone="Europe/Berlin"),
        pb.SetBudgetRequest(budget_id="hour", window="rolling", rolling={"seconds": 3_600}),
        pb.SetBudgetRequest(budget_id="agent", window="day", scope=pb.Attribution(agent=AGENT)),
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
        owner = pb.Attribution(agent=AGENT, conversation_id=f"conv_{caller}", run_id=f"run_{caller}")
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
    compared = sum(len(each.settlements) for each in outcomes)
    rows = (
        Row(case, "admitted", "", max(each.admitted for each in outcomes), AFFORDED),
        Row(f"{case}, {len(outcomes)} times", "spend", "nUSD", spent, None, "the simulator's own count", counted),
        Row(f"{case}, {len(outcomes)} times", "calls settled as the simulator counted each", "", compared),
    )
    unknown = sum(each.unknown for each in outcomes)
    by_invoice = Row(f"{case}, {len(outcomes)} times", "calls that only the invoice explains", "", unknown)
    return (*rows, by_invoice) if unknown else rows
