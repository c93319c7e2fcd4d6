"""What a service tells about itself: JSON logs on stderr, W3C traces, Prometheus metrics.

Traces leave the process by OTLP only when an endpoint is set. Without one no span is recorded, but ids are still
made, passed on and stored with events, at a tenth of the cost.
"""

import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from pathlib import Path
from random import getrandbits
from threading import Timer
from typing import Final, TextIO

import orjson
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from servicekit import meters

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$")
_TRACE_ID = slice(3, 35)
"""Of a traceparent."""
_GROUP_EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

EXPORT_S: Final = 5.0
"""How long spans are offered to a collector that does not take them, before they are dropped."""
CLOSE_S: Final = 2.0
"""The same when the service stops, which no collector may hold up."""

_MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of the own control group as a container sees it, by version 2 and by version 1."""
_NO_LIMIT_BYTES: Final = 2**62
"""Version 2 says "max" where there is no limit, version 1 a number beyond all memory."""

_unrecorded: ContextVar[str] = ContextVar("servicekit_traceparent", default="")
"""The current span where nobody records it; empty where the context of OpenTelemetry has it, or there is none."""
_bound: ContextVar[dict[str, str]] = ContextVar("servicekit_log_fields", default={})  # noqa: B039 - never mutated


# --- traces -----------------------------------------------------------------------------------------------------------


class Tracing:
    """The tracer of one service. `processors` receive finished spans; without them and an endpoint none is recorded."""

    def __init__(
        self, service: str, otlp_endpoint: str | None = None, processors: tuple[SpanProcessor, ...] = ()
    ) -> None:
        self._exporter = _otlp(otlp_endpoint) if otlp_endpoint else None
        processors += (BatchSpanProcessor(self._exporter),) if self._exporter else ()
        self._provider = _provider(service, processors) if processors else None
        self.tracer = self._provider.get_tracer("servicekit") if self._provider else Unrecorded()

    def start(self, name: str, kind: SpanKind, parent: str = "") -> Span:
        """Start a span and make it current in this task. `parent` is a traceparent; empty continues the current one."""
        if self._provider is None:
            _unrecorded.set(_next(parent))
            return INVALID_SPAN
        span = self.tracer.start_span(name, context=_remote(parent), kind=kind)
        otel_context.attach(trace.set_span_in_context(span))
        return span

    @contextmanager
    def span(self, name: str, parent: str = "", kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
        """A span of work inside the process, current within the block."""
        with self.tracer.start_as_current_span(name, context=_remote(parent), kind=kind) as span:
            yield span

    def close(self) -> None:
        """Send what is recorded, for CLOSE_S at most, and stop."""
        # Without it the SDK would offer batch after batch, each for as long as an export may take.
        giving_up = Timer(CLOSE_S, self._exporter.shutdown) if self._exporter else None
        if giving_up:
            giving_up.start()
        if self._provider:
            self._provider.shutdown()
        if giving_up:
            giving_up.cancel()


class Unrecorded(Tracer):
    """Gives the current work an id, which continues the trace it is part of, and no more.

    Its spans take whatever is said to them and keep nothing. An id is text from the start, because all that is ever done
    with it is to pass it on: spans that are dropped cost a call a hundred Python calls, this costs it ten.
    """

    def start_span(self, name: str, context: otel_context.Context | None = None, *_: object, **__: object) -> Span:
        return INVALID_SPAN

    def start_as_current_span(  # type: ignore[override]  # theirs may also decorate a function
        self, name: str, context: otel_context.Context | None = None, *_: object, **__: object
    ) -> "_Unrecorded":
        return _Unrecorded(_next("" if context is None else _told(context)))


class _Unrecorded:
    """A span that is current within a block, and kept nowhere. A class, because a generator costs twice as much."""

    __slots__ = ("_before", "_traceparent")

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    def __enter__(self) -> Span:
        self._before = _unrecorded.set(self._traceparent)
        return INVALID_SPAN

    def __exit__(self, *_: object) -> None:
        _restore(self._before)


def _provider(service: str, processors: Sequence[SpanProcessor]) -> TracerProvider:
    resource = Resource({"service.name": service, "service.namespace": "synod"})
    # The exit hook of the SDK would outlive a service that runs inside a test; Tracing.close is called instead.
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=resource, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


@contextmanager
def continuing(parent: str) -> Iterator[None]:
    """Continue, within the block, the trace that an event or message of before was part of. `parent` is a traceparent."""
    remote = _remote(parent)
    if remote is None:
        yield
        return
    token, unrecorded = otel_context.attach(remote), _unrecorded.set("")
    try:
        yield
    finally:
        _restore(unrecorded)
        otel_context.detach(token)


def traceparent() -> str:
    """The current span as a W3C traceparent header; empty outside of any trace."""
    return _unrecorded.get() or _told(None)


def format_traceparent(span: SpanContext) -> str:
    if not span.is_valid:
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _told(context: otel_context.Context | None) -> str:
    """The span of a context of OpenTelemetry, or of the current one."""
    known = otel_context.get_current() if context is None else context
    # Mostly nothing is in it, which is soon seen; to ask for its span takes ten calls.
    return format_traceparent(trace.get_current_span(known).get_span_context()) if known else ""


def _next(parent: str) -> str:
    """The traceparent of a new span that nobody records: in the trace of `parent`, or of what is current, or a new one."""
    found = _TRACEPARENT.match(parent)
    if found and int(found[1], 16) and int(found[2], 16):
        trace_id = found[1]
    else:
        trace_id = traceparent()[_TRACE_ID] or f"{getrandbits(128) or 1:032x}"
    return f"00-{trace_id}-{getrandbits(64) or 1:016x}-00"


def _restore(before: Token[str]) -> None:
    # A generator that is closed by another task than read it has that task's context, in which nothing was changed.
    with suppress(ValueError):
        _unrecorded.reset(before)


def _remote(parent: str) -> otel_context.Context | None:
    if not (match := _TRACEPARENT.match(parent)):
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return trace.set_span_in_context(NonRecordingSpan(remote)) if remote.is_valid else None


def _otlp(endpoint: str) -> SpanExporter:
    # Imported here because the exporter costs 100 ms and 20 MB that a process without an endpoint need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_S)


# --- logs -------------------------------------------------------------------------------------------------------------


class Logger:
    """Structured log of a service: an event name for programs and fields, no prose.

    >>> Logger("cost-ledger").info("budget_created", budget="bdg_1")
    """

    def __init__(self, service: str) -> None:
        self._logger = logging.getLogger(f"synod.{service}")

    def debug(self, event: str, **fields: object) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, *, error: BaseException | None = None, **fields: object) -> None:
        """`error` adds its stack trace."""
        exc_info = (type(error), error, error.__traceback__) if error else None
        self._logger.error(event, exc_info=exc_info, extra={"fields": fields})


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Add fields, such as run and agent, to every log line written within the block and the tasks it starts."""
    token = _bound.set(_bound.get() | fields)
    try:
        yield
    finally:
        _bound.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, service, event, trace_id, run, agent, then the fields of the event."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "service": self._service,
            "event": record.getMessage(),
        }
        if not record.name.startswith("synod."):
            line["logger"] = record.name
        line.update(_trace_fields())
        line.update(_bound.get())
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure_logging(service: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Send every log line of the process, also those of libraries, to `stream` as JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These say per request or per message at INFO what our own metrics count.
    for noisy in ("aiohttp.access", "faststream", "nats", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _trace_fields() -> dict[str, object]:
    trace_id = traceparent()[_TRACE_ID]
    return {"trace_id": trace_id} if trace_id else {}


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- metrics ----------------------------------------------------------------------------------------------------------


class Metrics:
    """The Prometheus metrics every service has, in a registry of its own, so that two services fit in one test.

    Labels are bounded: methods, codes and verbs are named in code. Ids never become labels.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.rpc_requests = meters.Counter(
            "rpc_requests_total", "gRPC calls answered", ("method", "code"), registry=registry
        )
        self.rpc_seconds = meters.Histogram(
            "rpc_seconds", "Time to answer a gRPC call", ("method",), registry=registry, buckets=_SECONDS
        )
        self.rpc_open = meters.Gauge("rpc_open", "gRPC calls and streams being served", registry=registry)
        self.commands = Counter("commands_total", "Commands handled", ("verb", "outcome"), registry=registry)
        self.command_seconds = Histogram(
            "command_seconds", "Time to handle a command", ("verb",), registry=registry, buckets=_SECONDS
        )
        self.task_restarts = Counter(
            "task_restarts_total", "Supervised tasks restarted after a crash", ("task",), registry=registry
        )
        self.eventlog_head = Gauge("eventlog_head", "Position of the last event", registry=registry)
        self.eventlog_queue_events = Gauge(
            "eventlog_queue_events", "Events that wait to be committed", registry=registry
        )
        self.eventlog_group_events = meters.Histogram(
            "eventlog_group_events", "Events committed together", registry=registry, buckets=_GROUP_EVENTS
        )
        self.eventlog_commit_seconds = meters.Histogram(
            "eventlog_commit_seconds", "Time to commit a group durably", registry=registry, buckets=_SECONDS
        )
        self.eventlog_queue_limit = Gauge(
            "eventlog_queue_limit_events", "Events that may wait before appends are held back", registry=registry
        )
        self.eventlog_events = meters.Counter("eventlog_events_total", "Events stored", ("type",), registry=registry)
        self.eventlog_broken = Gauge(
            "eventlog_broken", "1 since the log was found not to be what was chained and signed", registry=registry
        )
        self.eventlog_erasures = Gauge(
            "eventlog_erasures_pending", "Erasures that were begun and have not ended", registry=registry
        )
        self.relay_lag = Gauge("relay_lag_events", "Events not yet published to JetStream", registry=registry)
        self.view_position = Gauge("view_position", "Position a view has reached", ("view",), registry=registry)
        self.view_lag = Gauge("view_lag", "Events a view is behind its log", ("view",), registry=registry)
        self.view_parked = Gauge(
            "view_parked_events", "Events that a view could not fold", ("view",), registry=registry
        )
        self.certificate_expires = Gauge(
            "tls_certificate_expires_seconds",
            "Unix time at which the certificate expires; 0 without TLS",
            registry=registry,
        )
        self.ready = Gauge("service_ready", "1 while the service accepts work", registry=registry)
        self.problem = Gauge(
            "service_problem", "1 while a component of the service does not work", ("component",), registry=registry
        )
        _measure_process(registry)


def _measure_process(registry: CollectorRegistry) -> None:
    ProcessCollector(registry=registry)
    # A scrape has the time of who scrapes; the difference is how far the two clocks are apart.
    clock = Gauge("process_clock_seconds", "This machine's clock, in seconds since 1970", registry=registry)
    clock.set_function(time.time)
    limit = Gauge(
        "process_memory_limit_bytes", "Memory that the process may use; +Inf without limit", registry=registry
    )
    limit.set(memory_limit_bytes())


def memory_limit_bytes(files: Sequence[Path] = _MEMORY_LIMITS) -> float:
    """What the control group allows; infinite without one, or without a limit."""
    for file in files:
        with suppress(OSError):
            text = file.read_text(encoding="ascii").strip()
            limited = text.isdecimal() and int(text) < _NO_LIMIT_BYTES
            return float(text) if limited else float("inf")
    return float("inf")
