"""Durable agent steps without a model: each tool call intended, carried out and recorded before the next begins.

One process of agent-runtime with PostgreSQL, NATS and gRPC as in production; models and tools answer at once, so that
what is measured is the runtime's own work. A step is one model answer or one tool call, each recorded with its intent.
"""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from agent_runtime.clients import NatsTokens
from agent_runtime.main import compose_with
from agent_runtime.ports import Ports
from agent_runtime.settings import Settings
from agent_runtime.testing import (
    FakeConsensus,
    FakeLedger,
    FakeModels,
    FakeRegistry,
    FakeTools,
    an_agent,
    scripted,
)
from harness import Load, Report, Row, Size, nats_server, peer, postgres
from servicekit.host import Host
from servicekit.testing import serve_in_process, settings_for
from synod.agent_runtime.v1 import agent_runtime_pb2 as pb
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import AgentRuntimeStub
from synod.common.ids import new_id
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub

TOOL_CALLS = 20
# Each tool call is asked for by a model answer; one more answer ends the run.
STEPS = 2 * TOOL_CALLS + 1
RUNS = {"tiny": 2, "small": 40, "full": 400}
PEER = Path(__file__).parent / "peers" / "langgraph_steps.py"


async def measure(size: Size) -> Report:
    async with postgres() as dsn:
        alone = await ours(dsn, runs=max(2, RUNS[size] // 8), at_once=1)
        many = await ours(dsn, runs=RUNS[size], at_once=16)
        peer_alone = await asyncio.to_thread(langgraph, dsn, 1, max(2, RUNS[size] // 8))
        peer_many = await asyncio.to_thread(langgraph, dsn, 16, RUNS[size])
    name = "LangGraph, PostgreSQL checkpointer, durability sync"
    rows: tuple[Row, ...] = (
        Row("1 run at a time", "steps/s", "1/s", steps_per_second(alone), None, name, peer_alone),
        Row("16 runs at a time", "steps/s", "1/s", steps_per_second(many), None, name, peer_many),
        Row("1 run at a time", "run of 41 steps p50", "ms", alone.percentile_ms(50)),
        Row("1 run at a time", "run of 41 steps p99", "ms", alone.percentile_ms(99)),
    )
    if peer_many:
        rows += (Row("16 runs at a time", "times the peer", "x", steps_per_second(many) / peer_many, 10),)
    return Report("step", "intent and outcome of every step flushed to disk (fsync on)", rows)


def steps_per_second(load: Load) -> float:
    return STEPS * load.per_second


async def ours(dsn: str, runs: int, at_once: int) -> Load:
    models = FakeModels(scripted({"ann": [*([[("double", {"number": 2})]] * TOOL_CALLS), "done"]}))
    tools = FakeTools({"double": lambda arguments: {"result": arguments["number"]}})
    registry = FakeRegistry()
    registry.add(an_agent("ann", tools=("double",), max_turns=TOOL_CALLS + 1))

    async def compose(host: Host[Settings]) -> None:
        ports = Ports(models, tools, registry, FakeLedger(), FakeConsensus(), NatsTokens(host.nats))
        await compose_with(host, ports)

    async with nats_server() as url:
        settings = settings_for(Settings, dsn, url)
        async with serve_in_process(compose, settings) as served:
            ended = asyncio.create_task(endings(EventLogStub(served.channel), waiting := defaultdict(asyncio.Event)))
            try:
                return await batch(AgentRuntimeStub(served.channel), waiting, runs, at_once)
            finally:
                ended.cancel()


Waiting = defaultdict[str, asyncio.Event]


async def endings(log: EventLogStub, waiting: Waiting) -> None:
    """One subscription to the log tells when runs have ended, as any service that starts runs would listen."""
    request = log_pb.SubscribeRequest(filter=log_pb.EventFilter(types=["RunCompleted"]))
    async for event in log.Subscribe(request):
        waiting[event.stream.removeprefix("run/")].set()


async def batch(stub: AgentRuntimeStub, waiting: Waiting, runs: int, at_once: int) -> Load:
    """So many runs, so many at a time, each timed from its start to its recorded end."""
    load, loop = Load(), asyncio.get_running_loop()
    left = iter(range(runs))
    start = loop.time()

    async def caller() -> None:
        for _ in left:
            begun = loop.time()
            run = await stub.StartRun(pb.StartRunRequest(request_id=new_id("req"), definition="ann", input="go"))
            await waiting[run.id].wait()
            load.latencies_s.append(loop.time() - begun)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    load.took_s = loop.time() - start
    return load


def langgraph(dsn: str, at_once: int, runs: int) -> float | None:
    """Steps a second of the peer, in an environment of its own; None where it is not installed."""
    python = peer("langgraph", "python")
    if python is None:
        return None
    command = [python, PEER, dsn, str(at_once), str(runs), str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the peer failed: {done.stderr[-500:]}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout)["steps_per_second"])
