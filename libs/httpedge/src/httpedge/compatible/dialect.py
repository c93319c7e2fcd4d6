"""The seam between the edge and a wire format. Everything behind it is pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from servicekit.errors import ServiceError
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the gateway takes it, and how its answer is wanted. `created` is in Unix seconds."""

    request: pb.GenerateRequest
    stream: bool
    include_usage: bool
    created: int


class Writer(Protocol):
    """Writes one stream. What it gives for the terminal event is the end of the stream."""

    def write(self, event: pb.StreamEvent) -> bytes: ...


class Dialect(Protocol):
    def parse(self, body: bytes, request_id: str, created: int) -> Asked:
        """Raises InvalidArgument naming the field."""
        ...

    def whole(self, answer: pb.GenerateResponse, asked: Asked) -> Mapping[str, object]: ...

    def writer(self, asked: Asked) -> Writer: ...

    def failure(self, error: ServiceError) -> tuple[int, Mapping[str, object]]:
        """HTTP status and body of a refusal."""
        ...
