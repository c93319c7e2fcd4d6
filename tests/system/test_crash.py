"""Kill agent-runtime in the middle of a run: the same result, no effect twice, no cent twice."""

import asyncio
import json
from collections import Counter

import pytest
from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED, Run
from synod.cost_ledger.v1.cost_ledger_pb2 import Attribution
from synod.eventlog.v1.eventlog_pb2 import EventFilter
from synod_client import Synod

from .definitions import WORKER

pytestmark = pytest.mark.system
WAIT_S = 60


async def prepared(synod: Synod) -> None:
    await synod.define(WORKER)
    for tool in ("calc", "python_exec"):
        await synod.grant("worker", tool)
    await synod.set_price("simulator", "sim-1", 100_000, 400_000)


async def family(synod: Synod, run_id: str) -> list[str]:
    """The run and the runs below it."""
    run = await synod.run(run_id)
    return [run_id, *[id for child in run.child_run_ids for id in await family(synod, child)]]


async def events(synod: Synod, service: str, run_id: str, *types: str) -> list[dict[str, object]]:
    """Payloads of a run's events in a service's log."""
    page = await synod.read(service, limit=1000, where=EventFilter(types=types, correlation_id=run_id))
    return [json.loads(event.data) for event in page.events]


@pytest.mark.parametrize("moment", ["ModelCallRequested", "ToolCallIntended", "ToolCallSucceeded", "StepStarted"])
async def test_killed_worker_changes_nothing(running, synod: Synod, moment: str) -> None:  # type: ignore[no-untyped-def]
    await prepared(synod)
    undisturbed = await finished(synod, (await synod.start("crew", "the load")).id)
    started = await synod.start("crew", "the load")
    async with asyncio.timeout(WAIT_S):
        async for update in synod.watch(started.id):
            if update.type == moment:
                running.system.kill("agent-runtime")
                break
        await asyncio.to_thread(running.call, running.system.wait_ready("agent-runtime"))
        disturbed = await finished(synod, started.id)
    assert disturbed.result_sha256 == undisturbed.result_sha256
    await assert_done_once(synod, disturbed)
    assert (await synod.replay(started.id)).equal


async def finished(synod: Synod, run_id: str) -> Run:
    run = await synod.wait(run_id)
    assert run.state == RUN_STATE_COMPLETED, run.failure
    return run


async def assert_done_once(synod: Synod, run: Run) -> None:
    """Each tool call has one outcome and one execution, each model call one answer, and each of them one settlement."""
    tools = await events(synod, "tool-executor", run.id, "ToolCallStarted", "ToolCallCompleted")
    outcomes = Counter(str(event["call_id"]) for event in tools if "result_json" in event)
    attempts = Counter(str(event["call_id"]) for event in tools if "result_json" not in event)
    answers = await events(synod, "llm-gateway", run.id, "ModelCallCompleted")
    assert set(outcomes.values()) == {1}
    assert set(attempts.values()) == {1}
    assert len({event["request_id"] for event in answers}) == len(answers)
    recorded = await events(synod, "agent-runtime", run.id, "ModelCallSucceeded")
    assert {event["call_id"] for event in recorded} == {event["request_id"] for event in answers}
    # What our own process computes, as calc does, reserves nothing and costs nothing.
    apart = [event for event in tools if "result_json" in event and event["tool"] == "python_exec"]
    await assert_settled_once(synod, run, len(answers) + len(apart))


async def assert_settled_once(synod: Synod, run: Run, calls: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            spend = await synod.spend("root_run_id", scope=Attribution(root_run_id=run.id))
            if spend.rows and spend.rows[0].calls >= calls and not spend.rows[0].pending_nano_usd:
                break
    assert spend.rows[0].calls == calls
