"""One trace from the edge through a run to models, tools and money, as a collector of OpenTelemetry sees it."""

import asyncio
import secrets

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from synod_client import Synod
from websockets.asyncio.client import connect

from .collector import CollectedSpan, TraceCollector
from .conftest import RunningSystem
from .definitions import CALCULATOR

pytestmark = pytest.mark.system

COLLECT_S = 60
RESERVE, COMPLETE = "/synod.cost_ledger.v1.CostLedger/Reserve", "/synod.llm_gateway.v1.LlmGateway/Complete"
START = "/synod.agent_runtime.v1.AgentRuntime/StartRun"


async def test_a_run_that_the_edge_began_is_one_trace(
    running: RunningSystem, synod: Synod, collector: TraceCollector
) -> None:
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    run_id = await start_by_the_edge(running, f"00-{trace}-{caller}-01")
    await synod.wait(run_id)
    expected = {"POST /api/v1/runs", START, "command run", "chat simulator/sim-1", "execute_tool calc", RESERVE}
    spans = await asyncio.to_thread(collector.trace, trace, caller, expected, COLLECT_S)
    assert expected <= {span.name for span in spans}
    by_id = {span.id: span for span in spans}
    assert {span.parent for span in spans} <= by_id.keys() | {caller}
    (edge,) = (span for span in spans if span.parent == caller)
    assert (edge.service, edge.attributes["http.response.status_code"]) == ("ws-gateway", 201)
    reserved = next(span for span in spans if span.name == RESERVE)
    services = [span.service for span in ancestors(reserved, by_id)]
    assert list(dict.fromkeys(services)) == ["cost-ledger", "llm-gateway", "agent-runtime", "ws-gateway"]


async def test_a_model_call_is_told_by_the_conventions_for_generative_ai(
    running: RunningSystem, synod: Synod, collector: TraceCollector
) -> None:
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    await synod.wait(await start_by_the_edge(running, f"00-{trace}-{caller}-01"))
    expected = {"chat simulator/sim-1", "execute_tool calc"}
    spans = await asyncio.to_thread(collector.trace, trace, caller, expected, COLLECT_S)
    calls = [span for span in spans if span.name == "chat simulator/sim-1"]
    assert {(call.service, call.kind) for call in calls} == {("llm-gateway", Span.SPAN_KIND_CLIENT)}
    for call in calls:
        told = call.attributes
        assert told["gen_ai.operation.name"] == "chat"
        assert told["gen_ai.provider.name"] == "simulator"
        assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "simulator/sim-1"
        assert told["gen_ai.agent.name"] == "calculator"
        assert told["gen_ai.usage.input_tokens"] > 0
        assert told["gen_ai.usage.output_tokens"] > 0
        assert told["gen_ai.response.finish_reasons"]
    used = next(span for span in spans if span.name == "execute_tool calc")
    assert used.service == "tool-executor"
    assert used.attributes["gen_ai.operation.name"] == "execute_tool"
    assert used.attributes["gen_ai.tool.name"] == "calc"


async def start_by_the_edge(running: RunningSystem, traceparent: str) -> str:
    headers = {"Authorization": f"Bearer {running.endpoints.api_key}", "traceparent": traceparent}
    url = f"{running.system.layout.endpoints()['http']}/api/v1/runs"
    async with httpx2.AsyncClient() as client:
        answer = await client.post(url, headers=headers, json={"definition": "calculator", "input": "go"}, timeout=60)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["id"])


def ancestors(span: CollectedSpan, by_id: dict[str, CollectedSpan]) -> list[CollectedSpan]:
    """The span, what it was done for, and so on."""
    found = [span]
    while (parent := by_id.get(found[-1].parent)) is not None:
        found.append(parent)
    return found


async def test_what_a_client_says_over_a_websocket_is_a_span(running: RunningSystem, collector: TraceCollector) -> None:
    url = running.system.layout.endpoints()["http"].replace("http", "ws", 1)
    headers = {"Authorization": f"Bearer {running.endpoints.api_key}"}
    async with connect(f"{url}/ws", additional_headers=headers) as socket:
        await socket.send('{"type": "ping", "id": "1"}')
        found = await asyncio.to_thread(collector.find, "ws Ping", COLLECT_S)
    assert found is not None
    assert found.service == "ws-gateway"
