"""A model call through the whole gateway, with budget, events, limits and metrics on, beside a bare forwarder.

Every service is a process as in production; the provider is the simulator, which answers without delay. CPU is what the
kernel has counted for the processes named, for each request; a stream has 50 words. "unary" and "stream" are asked through
the OpenAI-compatible edge of llm-gateway itself; "by ws-gateway" through the one edge for everything, of which ws-gateway and
llm-gateway are counted together; "gRPC" as the services ask. What the ledger and PostgreSQL spend besides stands in rows of
its own.

The callers call without a pause, so nearly all of their calls find a reservation made ahead (llm-gateway's stock.py);
"each for itself" is what a call waits that does not, because no other was like it.

LiteLLM is measured in the same run where ``make bench-peers`` has installed it: bare, and with budgets and metrics as far
as it has them without a database; ``litellm_proxy.py`` says what it does in each.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
from harness import Load, Report, Row, Size, closed_loop
from launcher.layout import Layout
from launcher.processes import free_port
from launcher.system import System
from launcher.testing import free_port_base
from litellm_proxy import BARE, BUDGETED, Proxy, litellm_proxies
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

SECONDS = {"tiny": 0.5, "small": 3.0, "full": 30.0}
CALLERS = 16
TURNS = 3
REST_S, REST_MAX_S = 0.2, 60.0
CPU_AT_REST = 0.4
"""Seconds of CPU a second that all processes may spend together: idle they spend 0.11."""
MODEL = "simulator/sim-1"
WORDS = 50
SCRIPTS = {"unary": "answer: " + "word " * 10, "stream": "answer: " + "word " * WORDS}
TICKS = os.sysconf("SC_CLK_TCK")
RICH_NANO = 10**15
FORWARDER = Path(__file__).parent / "peers" / "forwarder.py"
TARGETS = {"unary": 1.5, "stream": 6.0}
# Its first few hundred requests cost twice what later ones do.
LITELLM_WARM_S = 5.0
TIMES_LITELLM = {BARE: 8.0, BUDGETED: None}

Call = Callable[[int], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """A closed loop, and the CPU milliseconds that each group of processes spent for one of its requests."""

    load: Load
    cpu_ms: Mapping[str, float]


@dataclass(frozen=True)
class Stage:
    """The running system and the forwarder, with a client for each way into them."""

    system: System
    pids: Mapping[str, Sequence[int]]
    edge: aiohttp.ClientSession
    through: aiohttp.ClientSession
    plain: aiohttp.ClientSession
    gateway: LlmGatewayStub
    forwarder: LlmGatewayStub
    token: str
    litellm: Mapping[str, Proxy]

    async def over_http(self, session: aiohttp.ClientSession, kind: str, model: str) -> None:
        stream = kind == "stream"
        messages = [{"role": "system", "content": SCRIPTS[kind]}, {"role": "user", "content": "go"}]
        body = {"model": model, "messages": messages, "stream": stream}
        async with session.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            assert not stream or b"[DONE]" in await answer.read()
            await answer.read()

    async def over_grpc(self, stub: LlmGatewayStub, kind: str, conversation_id: str = "") -> None:
        metadata, request = (("authorization", f"Bearer {self.token}"),), asked(kind, conversation_id)
        if kind == "unary":
            await stub.Generate(request, metadata=metadata)
            return
        events = [event async for event in stub.Stream(pb.StreamRequest(request=request), metadata=metadata)]
        assert events[-1].WhichOneof("event") == "completed"


def asked(kind: str, conversation_id: str = "") -> pb.GenerateRequest:
    texts = ((pb.ROLE_SYSTEM, SCRIPTS[kind]), (pb.ROLE_USER, "go"))
    messages = [pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts]
    owner = ledger_pb.Attribution(conversation_id=conversation_id)
    return pb.GenerateRequest(request_id=new_id("req"), model=MODEL, messages=messages, attribution=owner)


async def measure(size: Size) -> Report:
    rows: list[Row] = []
    async with staged() as stage:
        for kind in ("unary", "stream"):
            rows += await rows_of(stage, kind, SECONDS[size])
        rows += [
            Row("after the load", f"memory of {name}", "MiB", resident_mib(stage.pids[name]))
            for name in ("llm-gateway", "ws-gateway", "forwarder")
        ]
    return Report(
        "gateway", "intent and outcome of every call flushed to disk, its budget reserved (fsync on)", tuple(rows)
    )


async def rows_of(stage: Stage, kind: str, seconds: float) -> list[Row]:
    ways: dict[str, tuple[tuple[str, ...], Call]] = {
        "edge": (("llm-gateway",), lambda _: stage.over_http(stage.edge, kind, MODEL)),
        "through": (("ws-gateway", "llm-gateway"), lambda _: stage.over_http(stage.through, kind, MODEL)),
        "http forwarder": (("forwarder",), lambda _: stage.over_http(stage.plain, kind, "sim-1")),
        "grpc": (("llm-gateway",), lambda _: stage.over_grpc(stage.gateway, kind)),
        "grpc forwarder": (("forwarder",), lambda _: stage.over_grpc(stage.forwarder, kind)),
    }
    for name, proxy in stage.litellm.items():
        ways[name] = ((name,), lambda _, peer=proxy.session: stage.over_http(peer, kind, "sim-1"))
    # One after the other and then again, so that a slow moment of the machine does not meet one of them only.
    runs: dict[str, list[Measured]] = {way: [] for way in ways}
    for way, (_, call) in ways.items():
        await closed_loop(CALLERS, LITELLM_WARM_S if way in stage.litellm else seconds / 6, call)
        runs[way].clear()
    for _ in range(2):
        for way, (_, call) in ways.items():
            runs[way].append(await measured(stage, call, seconds / 2))
    lone: dict[str, Call] = {way: call for way, (_, call) in ways.items()}
    lone["apart"] = lambda _: stage.over_grpc(stage.gateway, kind, new_id("conv"))
    alone = await alone_p50_ms(stage, seconds / 4, lone)
    cpu = {way: sum(mean(runs[way], name) for name in names) for way, (names, _) in ways.items()}
    edge, grpc_ = runs["edge"][-1].load, runs["grpc"][-1].load
    return [
        *(row for name in stage.litellm for row in beside(name, kind, cpu, runs[name][-1].load)),
        Row(kind, "CPU ms/request", "ms", cpu["edge"], TARGETS[kind], "bare HTTP forwarder", cpu["http forwarder"]),
        Row(f"{kind}, by ws-gateway", "CPU ms/request", "ms", cpu["through"]),
        Row(
            f"{kind}, gRPC",
            "CPU ms/request",
            "ms",
            cpu["grpc"],
            TARGETS[kind],
            "bare gRPC forwarder",
            cpu["grpc forwarder"],
        ),
        Row(f"{kind}, gRPC", "added p50", "ms", max(0.0, alone["grpc"] - alone["grpc forwarder"]), 2.0),
        Row(f"{kind}, gRPC, each for itself", "added p50", "ms", max(0.0, alone["apart"] - alone["grpc forwarder"])),
        Row(kind, "added p50", "ms", max(0.0, alone["edge"] - alone["http forwarder"])),
        Row(f"{kind}, by ws-gateway", "added p50", "ms", max(0.0, alone["through"] - alone["http forwarder"])),
        Row(kind, f"p99 of {CALLERS} callers", "ms", edge.percentile_ms(99)),
        Row(f"{kind}, gRPC", f"p99 of {CALLERS} callers", "ms", grpc_.percentile_ms(99)),
        Row(kind, "requests/s", "1/s", edge.per_second),
        Row(kind, "requests/s per core of the gateway", "1/s", 1000 / cpu["edge"]),
        Row(f"{kind}, gRPC", "requests/s", "1/s", grpc_.per_second),
        Row(f"{kind}, gRPC", "requests/s per core of the gateway", "1/s", 1000 / cpu["grpc"]),
        Row(kind, "CPU ms/request of cost-ledger", "ms", mean(runs["edge"], "cost-ledger")),
        Row(kind, "CPU ms/request of PostgreSQL", "ms", mean(runs["edge"], "postgres")),
    ]


async def alone_p50_ms(stage: Stage, seconds: float, ways: Mapping[str, Call]) -> Mapping[str, float]:
    """What one caller waits for who calls steadily, with nothing left to do of what was measured before. In turns, as the
    others. His first calls find no reservation made ahead: they are as those "each for itself".
    """
    loads = {way: Load() for way in ways}
    for _ in range(TURNS):
        for way, call in ways.items():
            await at_rest(stage)
            await closed_loop(1, seconds / 5, call)
            loads[way].latencies_s += (await closed_loop(1, seconds, call)).latencies_s
    return {way: load.percentile_ms(50) for way, load in loads.items()}


async def at_rest(stage: Stage) -> None:
    """Until what was called has been published, counted and settled: what it costs, the processes do for a while after."""
    async with asyncio.timeout(REST_MAX_S):
        while True:
            before = sum(map(cpu_ms, stage.pids.values()))
            await asyncio.sleep(REST_S)
            if sum(map(cpu_ms, stage.pids.values())) - before < CPU_AT_REST * 1000 * REST_S:
                return


def beside(name: str, kind: str, cpu: Mapping[str, float], load: Load) -> list[Row]:
    """What a way of LiteLLM's spends, and what our edge spends of that."""
    return [
        Row(kind, f"times less CPU than {name}", "x", cpu[name] / cpu["edge"], TIMES_LITELLM[name]),
        Row(f"{kind}, {name}", "CPU ms/request", "ms", cpu[name]),
        Row(f"{kind}, {name}", "requests/s", "1/s", load.per_second),
    ]


async def measured(stage: Stage, call: Call, seconds: float) -> Measured:
    before = {name: cpu_ms(pids) for name, pids in stage.pids.items()}
    load = await closed_loop(CALLERS, seconds, call)
    requests = max(1, len(load.latencies_s))
    return Measured(load, {name: (cpu_ms(pids) - before[name]) / requests for name, pids in stage.pids.items()})


def mean(runs: Sequence[Measured], name: str) -> float:
    """At least one tick of the kernel's clock, which is all that a tiny run may see."""
    requests = sum(len(run.load.latencies_s) for run in runs)
    spent = sum(run.cpu_ms[name] * len(run.load.latencies_s) for run in runs)
    return max(spent, 1000 / TICKS) / max(1, requests)


def cpu_ms(pids: Sequence[int]) -> float:
    return sum(1000 * ticks_of(pid) / TICKS for pid in pids)


def ticks_of(pid: int) -> int:
    """User and system time of a process in ticks (proc(5), fields 14 and 15); 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def resident_mib(pids: Sequence[int]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="synod-bench-") as directory:
        layout = Layout(Path(directory), free_port_base(), simulator=True)
        async with (
            System(layout, fresh=True) as system,
            forwarding(layout.simulator_url) as (process, http, grpc_port),
            litellm_proxies(layout.simulator_url) as litellm,
        ):
            key = {"Authorization": f"Bearer {system.dev_key}"}
            addresses = {**system.endpoints, "forwarder": f"127.0.0.1:{grpc_port}"}
            async with (
                aiohttp.ClientSession(system.endpoints["models"], headers=key) as edge,
                aiohttp.ClientSession(system.endpoints["http"], headers=key) as through,
                aiohttp.ClientSession(f"http://127.0.0.1:{http}") as plain,
                grpc.aio.insecure_channel(addresses["agent-registry"]) as registry,
                grpc.aio.insecure_channel(addresses["llm-gateway"]) as gateway,
                grpc.aio.insecure_channel(addresses["forwarder"]) as forwarder,
                grpc.aio.insecure_channel(addresses["cost-ledger"]) as ledger,
            ):
                token = (await authenticated(registry, system.dev_key)).token
                await enrich(ledger, token)
                peers = {"forwarder": (process,), **{name: (proxy.process.pid,) for name, proxy in litellm.items()}}
                pids = {**pids_of(system), **peers}
                stubs = LlmGatewayStub(gateway), LlmGatewayStub(forwarder)
                yield Stage(system, pids, edge, through, plain, *stubs, token, litellm)


def pids_of(system: System) -> dict[str, Sequence[int]]:
    """The process of each program; of PostgreSQL also those that it has started by now."""
    own = {name: status.pid for name, status in system.services.items() if status.pid}
    found: dict[str, Sequence[int]] = {name: (pid,) for name, pid in own.items()}
    return found | {"postgres": (own["postgres"], *children_of(own["postgres"]))}


def children_of(pid: int) -> tuple[int, ...]:
    return tuple(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def authenticated(channel: grpc.aio.Channel, key: str) -> registry_pb.AuthenticateResponse:
    return await AgentRegistryStub(channel).Authenticate(registry_pb.AuthenticateRequest(api_key=key))


async def enrich(channel: grpc.aio.Channel, token: str) -> None:
    """A hard budget over all that is measured, large enough for it."""
    budget = ledger_pb.SetBudgetRequest(budget_id="bench", limit_nano_usd=RICH_NANO, hard=True, window="day")
    await CostLedgerStub(channel).SetBudget(budget, metadata=(("authorization", f"Bearer {token}"),))


@asynccontextmanager
async def forwarding(origin: str) -> AsyncIterator[tuple[int, int, int]]:
    """The forwarder's process and its two ports."""
    http, grpc_port = free_port(), free_port()
    arguments = (sys.executable, str(FORWARDER), origin, str(http), str(grpc_port))
    process = await asyncio.create_subprocess_exec(*arguments)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, asyncio.timeout(30):
            await channel.channel_ready()
        yield process.pid, http, grpc_port
    finally:
        process.terminate()
        await process.wait()
