"""What the executor tells about its calls: a span each, and counts by tool. Labels are names of the catalogue."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind, Tracer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from servicekit.telemetry import log_fields

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Telemetry:
    """`calls_max` may run at once."""

    def __init__(self, tracer: Tracer, registry: CollectorRegistry, calls_max: int) -> None:
        self._tracer = tracer
        self._calls = Counter("tool_calls_total", "Attempts that ended", ("tool", "outcome"), registry=registry)
        self._seconds = Histogram(
            "tool_call_seconds", "Time of an attempt", ("tool",), registry=registry, buckets=_SECONDS
        )
        self._running = Gauge("tool_calls_running", "Attempts that run", registry=registry)
        limit = Gauge("tool_calls_limit", "Attempts that may run at once", registry=registry)
        limit.set(calls_max)

    @contextmanager
    def attempt(self, tool: str, call_id: str, run_id: str, agent: str) -> Iterator[None]:
        """Names of attributes as in OpenTelemetry's conventions for generative AI."""
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.agent.name": agent,
        }
        span = self._tracer.start_as_current_span(f"execute_tool {tool}", kind=SpanKind.INTERNAL, attributes=attributes)
        with (
            span,
            log_fields(run=run_id, agent=agent),
            self._running.track_inprogress(),
            self._seconds.labels(tool).time(),
        ):
            yield

    def ended(self, tool: str, outcome: str) -> None:
        self._calls.labels(tool, outcome).inc()
