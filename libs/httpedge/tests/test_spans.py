"""Each request under /v1 is a span, of the caller's trace if there is one, and counted."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from httpedge.compatible.endpoints import Compatible, CompatibleLimits, Stage
from httpedge.meters import answers_counter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from servicekit.health import Health
from servicekit.telemetry import Metrics, Tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@dataclass
class Wire:
    """A request under /v1 that nobody knows."""

    method: str = "GET"
    path: str = "/v1/made/up"
    headers: dict[str, str] = field(default_factory=lambda: {"traceparent": PARENT})
    keep_alive: bool = True

    async def whole(self, status: int, headers: bytes, body: bytes) -> None:
        self.status = status


@pytest.mark.parametrize(("phase", "kept"), [("ready", True), ("stopping", False)])
async def test_a_request_is_a_span_and_counted(spans: InMemorySpanExporter, phase: str, kept: bool) -> None:
    registry, metrics, wire = CollectorRegistry(), Metrics(), Wire()
    health = Health(metrics.ready, metrics.problem)
    health.enter(phase)
    unused: Any = None
    stage = Stage(
        service="an edge",
        callers=unused,
        models=unused,
        limits=CompatibleLimits(1, 1),
        health=health,
        tracing=Tracing("an edge", processors=(SimpleSpanProcessor(spans),)),
        log=unused,
        clock=unused,
        requests=answers_counter(registry),
    )
    await Compatible(stage)(wire)  # type: ignore[arg-type]  # as far as it is used
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, wire.status, wire.keep_alive) == ("GET", SpanKind.SERVER, 404, kept)
    assert dict(span.attributes or {}) == {"http.request.method": "GET", "http.response.status_code": 404}
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert registry.get_sample_value("edge_requests_total", {"method": "GET", "status": "404"}) == 1
