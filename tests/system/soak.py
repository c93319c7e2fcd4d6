"""A steady load for minutes: does anything grow?  ``python -m system.soak [--seconds 600] [--rate 20]``

A sixth of the calls each goes through llm-gateway's OpenAI-compatible edge, through that of ws-gateway and over gRPC, whole and
as a stream, within hard budgets, quotas, rolling windows and limits per user; every event is published and folded into
views. Each service is a process.

Before the clock starts, a book is given 10,000 reservations, more than the 4,000 closed ones that it remembers. Other memories
are filled by the load itself, such as the last 4,096 events that each log keeps: some 2,000 calls. So the first quarter is
warm-up: `--seconds` times `--rate` should be 8,500 or more. Memory is the resident set of each process; flat means that its
median in the last quarter of the time is at most 5 % above that in the second.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final

import aiohttp
import grpc
from launcher.layout import Layout
from launcher.system import System
from launcher.testing import free_port_base
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub
from synod_client import Endpoints, Synod

SECONDS: Final = 600
RATE: Final = 20.0
GROWTH_MAX: Final = 0.05
FILL: Final = 10_000
FILLED_AT_ONCE: Final = 64
SAMPLES: Final = 240
IN_FLIGHT_MAX: Final = 256
"""A call that would be one more is counted as left out: then the rate was too high for the machine."""
USERS: Final = 10
RICH: Final = 10**15
MODEL: Final = "simulator/sim-1"
ANSWER: Final = "answer: " + "word " * 20
OUT: Final = Path("build/soak.json")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Growth:
    """Of one process, in MiB; `ratio` is 0.05 for one that grew by 5 %."""

    process: str
    early_mib: float
    late_mib: float

    @property
    def ratio(self) -> float:
        return self.late_mib / self.early_mib - 1

    @property
    def is_flat(self) -> bool:
        return self.ratio <= GROWTH_MAX


@dataclass
class Soaked:
    """What a soak found; samples of memory in MiB by process, at equal distances in time."""

    seconds: float
    rate: float
    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def growths(self) -> tuple[Growth, ...]:
        return tuple(growth(process, samples) for process, samples in sorted(self.samples.items()))

    @property
    def holds(self) -> bool:
        """Whether every call was answered and every service is flat."""
        return not self.failures and all(each.is_flat for each in self.growths())


def growth(process: str, samples: Sequence[float]) -> Growth:
    """From the second to the last quarter of the samples, of which there are four at least."""
    quarter = len(samples) // 4
    return Growth(process, median(samples[quarter : 2 * quarter]), median(samples[-quarter:]))


@dataclass(frozen=True)
class Load:
    """The ways into a running system, each with one call."""

    synod: Synod
    edge: aiohttp.ClientSession
    through: aiohttp.ClientSession
    gateway: LlmGatewayStub

    async def call(self, number: int) -> None:
        await self.ways[number % len(self.ways)](number)

    def way(self, number: int) -> str:
        return self.ways[number % len(self.ways)].__name__

    @property
    def ways(self) -> Sequence[Callable[[int], Awaitable[None]]]:
        whole = (self.edge_unary, self.through_unary, self.grpc_unary)
        return (*whole, self.edge_stream, self.through_stream, self.grpc_stream)

    async def edge_unary(self, number: int) -> None:
        await self._over_http(self.edge, number, stream=False)

    async def edge_stream(self, number: int) -> None:
        await self._over_http(self.edge, number, stream=True)

    async def through_unary(self, number: int) -> None:
        await self._over_http(self.through, number, stream=False)

    async def through_stream(self, number: int) -> None:
        await self._over_http(self.through, number, stream=True)

    async def grpc_unary(self, number: int) -> None:
        await self.gateway.Generate(request(number), metadata=await self.synod.connection.metadata())

    async def grpc_stream(self, number: int) -> None:
        stream = self.synod.connection.stream(self.gateway.Stream, pb.StreamRequest(request=request(number)))
        async with aclosing(stream) as messages:
            ends = [message.WhichOneof("event") async for message in messages]
        assert ends[-1] == "completed"

    async def _over_http(self, edge: aiohttp.ClientSession, number: int, *, stream: bool) -> None:
        texts = (("system", ANSWER), ("user", f"call {number}"))
        messages = [{"role": role, "content": text} for role, text in texts]
        body = {"model": MODEL, "messages": messages, "stream": stream, "user": f"usr_{number % USERS}"}
        async with edge.post("/v1/chat/completions", json=body) as answer:
            content = await answer.read()
            assert answer.status == 200, content
            assert not stream or b"[DONE]" in content


def request(number: int) -> pb.GenerateRequest:
    texts = ((pb.ROLE_SYSTEM, ANSWER), (pb.ROLE_USER, f"call {number}"))
    messages = [pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts]
    owner = ledger_pb.Attribution(user_id=f"usr_{number % USERS}", agent="soak", run_id=f"run_{number % USERS}")
    return pb.GenerateRequest(request_id=new_id("req"), model=MODEL, messages=messages, attribution=owner)


async def soak(system: System, seconds: float, rate: float, *, fill: int = FILL) -> Soaked:
    """The load on a running system, after what is bounded by a number is full."""
    found = Soaked(seconds, rate)
    headers = {"Authorization": f"Bearer {system.dev_key}"}
    async with (
        Synod.connect(Endpoints.discover({}, system.layout.data)) as synod,
        aiohttp.ClientSession(system.endpoints["models"], headers=headers) as edge,
        aiohttp.ClientSession(system.endpoints["http"], headers=headers) as through,
    ):
        await set_budgets(synod)
        await fill_books(synod, fill)
        load = Load(synod, edge, through, LlmGatewayStub(synod.connection.channel("llm-gateway")))
        sampling = asyncio.create_task(sample(system, seconds / SAMPLES, found.samples))
        await keep_up(load, found)
        sampling.cancel()
    return found


async def set_budgets(synod: Synod) -> None:
    budgets = (
        ledger_pb.SetBudgetRequest(budget_id="soak-day", window="day", time_zone="Europe/Berlin"),
        ledger_pb.SetBudgetRequest(budget_id="soak-hour", window="rolling", rolling={"seconds": 3_600}),
        ledger_pb.SetBudgetRequest(budget_id="soak-user", window="month", per="user_id"),
    )
    for budget in budgets:
        budget.limit_nano_usd, budget.hard = RICH, True
        await synod.put_budget(budget)
    quota = ledger_pb.SetBudgetRequest(budget_id="soak-tokens", window="hour", unit="tokens", limit_quantity=RICH)
    await synod.put_budget(quota)


async def fill_books(synod: Synod, calls: int) -> None:
    ledger = CostLedgerStub(synod.connection.channel("cost-ledger"))
    numbers, run = iter(range(calls)), new_id("fill")

    async def caller() -> None:
        for number in numbers:
            name, metadata = f"{run}-{number}", await synod.connection.metadata()
            owner = ledger_pb.Attribution(user_id=f"usr_{number % USERS}", agent="soak")
            held = ledger_pb.ReserveRequest(
                reservation_id=name, attribution=owner, model=MODEL, input_tokens_max=100, output_tokens_max=100
            )
            await ledger.Reserve(held, metadata=metadata)
            used = [ledger_pb.UsageLine(direction="output", quantity=20)]
            await ledger.Settle(
                ledger_pb.SettleRequest(reservation_id=name, usage=used, usage_source="provider_final"),
                metadata=metadata,
            )

    await asyncio.gather(*(caller() for _ in range(FILLED_AT_ONCE)))


async def keep_up(load: Load, found: Soaked) -> None:
    """A call each 1/rate seconds, however long those before it take."""
    begun, under_way = monotonic(), set[asyncio.Task[None]]()
    for number in range(int(found.rate * found.seconds)):
        await asyncio.sleep(begun + number / found.rate - monotonic())
        if len(under_way) >= IN_FLIGHT_MAX:
            found.failures["left out"] += 1
            continue
        task = asyncio.create_task(counted(load, number, found))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def counted(load: Load, number: int, found: Soaked) -> None:
    try:
        await load.call(number)
    except (AssertionError, aiohttp.ClientError, grpc.aio.AioRpcError) as error:
        found.failures[f"{load.way(number)}: {type(error).__name__} {str(error)[:200]}"] += 1
    else:
        found.calls[load.way(number)] += 1


async def sample(system: System, every_s: float, samples: dict[str, list[float]]) -> None:
    """Adds to the samples of each service until it is cancelled."""
    while True:
        for service in system.layout.services:
            if pid := system.services[service.name].pid:
                samples.setdefault(service.name, []).append(resident_mib(pid))
        await asyncio.sleep(every_s)


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def report(found: Soaked) -> str:
    lines = [f"{found.calls.total():,} calls in {found.seconds:.0f} s, {found.failures.total()} failed"]
    lines += [f"  {times} times {failure}" for failure, times in found.failures.most_common()]
    lines += [
        f"{each.process:16}{each.early_mib:8.1f} MiB {each.late_mib:8.1f} MiB {100 * each.ratio:+6.1f} %"
        f"{'' if each.is_flat else '   GROWS'}"
        for each in found.growths()
    ]
    return "\n".join(lines)


def as_json(found: Soaked) -> Mapping[str, object]:
    return {
        "holds": found.holds,
        "seconds": found.seconds,
        "rate": found.rate,
        "calls": dict(found.calls),
        "failures": dict(found.failures),
        "growths": [{**asdict(each), "ratio": each.ratio, "is_flat": each.is_flat} for each in found.growths()],
        "samples_mib": found.samples,
    }


async def run(seconds: float, rate: float) -> Soaked:
    with tempfile.TemporaryDirectory(prefix="synod-soak-") as directory:
        async with System(Layout(Path(directory), free_port_base(), simulator=True), fresh=True) as system:
            return await soak(system, seconds, rate)


def main(arguments: Sequence[str]) -> int:
    """0 if every call was answered and nothing grew."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rate", type=float, default=RATE, help="calls a second")
    options = parser.parse_args(arguments)
    found = asyncio.run(run(options.seconds, options.rate))
    print(report(found))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(as_json(found), indent=2) + "\n")
    print(f"wrote {OUT}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
