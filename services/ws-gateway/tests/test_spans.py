"""Each request of the edge is a span, of the caller's trace if there is one, and named without ids."""

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from servicekit.health import Health
from servicekit.telemetry import Metrics, Tracing, traceparent
from ws_gateway.edge import Outer
from ws_gateway.sessions import Meters
from ws_gateway.settings import EdgeLimits

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(spans: InMemorySpanExporter) -> httpx2.AsyncClient:
    runs, app = APIRouter(prefix="/runs"), FastAPI()

    @runs.get("/{run_id}/steps")
    async def steps(run_id: str) -> dict[str, str]:
        return {"run": run_id, "within": traceparent()}

    app.include_router(runs, prefix="/api/v1")
    tracing = Tracing("ws-gateway", processors=(SimpleSpanProcessor(spans),))
    metrics = Metrics()
    outer = Outer(app, Meters(CollectorRegistry()), tracing, EdgeLimits(), Health(metrics.ready, metrics.problem))
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=outer), base_url="http://edge")


async def test_a_request_is_a_span_of_the_callers_trace_named_by_its_route(
    client: httpx2.AsyncClient, spans: InMemorySpanExporter
) -> None:
    answer = await client.get("/api/v1/runs/run_1/steps", headers={"traceparent": PARENT})
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("GET /api/v1/runs/{run_id}/steps", SpanKind.SERVER)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/api/v1/runs/{run_id}/steps",
        "http.response.status_code": 200,
    }
    assert PARENT.split("-")[1] in answer.json()["within"]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


async def test_what_is_not_there_gives_a_span_no_name_of_its_own(
    client: httpx2.AsyncClient, spans: InMemorySpanExporter
) -> None:
    await client.get("/api/v1/anything/somebody/made/up")
    (span,) = spans.get_finished_spans()
    assert (span.name, (span.attributes or {})["http.response.status_code"]) == ("GET", 404)
