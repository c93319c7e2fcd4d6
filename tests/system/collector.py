"""A collector of traces: takes OTLP over gRPC, as the OpenTelemetry collector does, and keeps every span."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it was sent; ids are hexadecimal, `parent` is empty for the root of a trace."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: dict[str, Any]


@dataclass
class TraceCollector(TraceServiceServicer):
    """Listens on a free port of this machine within its block."""

    spans: list[CollectedSpan] = field(default_factory=list)
    endpoint: str = ""
    _arrived: Condition = field(default_factory=Condition)

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._arrived:
            self.spans.extend(_collected(request))
            self._arrived.notify_all()
        return ExportTraceServiceResponse()

    def trace(self, id: str, caller: str, names: set[str], timeout_s: float) -> list[CollectedSpan]:
        """The spans of a trace that a caller began with its span `caller`.

        Waits until there are some of each of `names` and every parent is among them, or the time is over.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: _complete(self._of(id), caller, names), timeout_s)
            return self._of(id)

    def find(self, name: str, timeout_s: float) -> CollectedSpan | None:
        """A span of this name, once there is one; None when the time is over."""
        with self._arrived:
            self._arrived.wait_for(lambda: any(span.name == name for span in self.spans), timeout_s)
            return next((span for span in self.spans if span.name == name), None)

    def _of(self, trace: str) -> list[CollectedSpan]:
        return [span for span in self.spans if span.trace == trace]


def _complete(spans: list[CollectedSpan], caller: str, names: set[str]) -> bool:
    return names <= {span.name for span in spans} and {span.parent for span in spans} <= {span.id for span in spans} | {
        caller
    }


def _collected(request: ExportTraceServiceRequest) -> list[CollectedSpan]:
    return [
        CollectedSpan(
            service=_values(each.resource.attributes)["service.name"],
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            kind=span.kind,
            attributes=_values(span.attributes),
        )
        for each in request.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each) for each in attributes}


def _value(attribute: KeyValue) -> Any:
    kind = attribute.value.WhichOneof("value")
    value = getattr(attribute.value, kind)
    return [item.string_value for item in value.values] if kind == "array_value" else value
