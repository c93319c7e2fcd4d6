"""A team that works for some seconds, with models, tools and a step that waits for two others."""

import asyncio
import json
from collections import Counter

from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED, Run
from synod.eventlog.v1.eventlog_pb2 import EventFilter
from synod_client import Synod

WAIT_S = 180
WORKER = """
apiVersion: synod/v1
kind: Agent
metadata: {name: porter}
spec:
  behaviour: react
  model: {name: simulator/sim-1}
  tools: [calc, python_exec]
  instructions: |
    1. call calc with {"expression": "2 ** 10"}
    2. call python_exec with {"code": "import time\\ntime.sleep(0.4)\\nresult = sum(range(1000))"}
    3. call calc with {"expression": "{{1.value}} + {{2.value}}"}
    answer: {"total": {{3.value}}}
---
apiVersion: synod/v1
kind: Team
metadata: {name: porters}
spec:
  pattern: parallel
  steps:
    - {id: left, agent: porter, task: "left {{input}}"}
    - {id: right, agent: porter, task: "right {{input}}"}
  aggregator: {id: sum, agent: porter, task: "{{steps.left.output}} and {{steps.right.output}}"}
"""


async def prepared(synod: Synod) -> None:
    await synod.define(WORKER)
    for tool in ("calc", "python_exec"):
        await synod.grant("porter", tool)
    await synod.set_price("simulator", "sim-1", 100_000, 400_000)


async def seen(synod: Synod, run_id: str, type: str) -> None:
    async with asyncio.timeout(WAIT_S):
        async for update in synod.watch(run_id):
            if update.type == type:
                return


async def finished(synod: Synod, run_id: str) -> Run:
    async with asyncio.timeout(WAIT_S):
        run = await synod.wait(run_id)
    assert run.state == RUN_STATE_COMPLETED, run.failure
    return run


async def assert_tools_ran_once(synod: Synod, run_id: str) -> None:
    where = EventFilter(types=("ToolCallCompleted",), correlation_id=run_id)
    page = await synod.read("tool-executor", limit=1000, where=where)
    outcomes = Counter(json.loads(event.data)["call_id"] for event in page.events)
    assert len(outcomes) == 9
    assert set(outcomes.values()) == {1}
