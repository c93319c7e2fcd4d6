"""The seam between the edge and a wire format. Everything behind it is pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from servicekit.errors import ServiceError
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.mistakes import Places


class Turn(NamedTuple):
    """A message as the gateway takes it, and where each of its parts stood in the body."""

    message: pb.Message
    places: list[str]

    @classmethod
    def of(cls, role: "pb.Role.ValueType", said: Iterable[tuple[str, pb.Part]]) -> "Turn":
        """From parts with their places."""
        places, parts = [], []
        for place, part in said:
            places.append(place)
            parts.append(part)
        return cls(pb.Message(role=role, parts=parts), places)

    @classmethod
    def of_one(cls, role: "pb.Role.ValueType", place: str, part: pb.Part) -> "Turn":
        return cls(pb.Message(role=role, parts=[part]), [place])

    def extend(self, other: "Turn") -> None:
        self.message.parts.extend(other.message.parts)
        self.places.extend(other.places)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the gateway takes it, and how its answer is wanted. `created` is in Unix seconds; `places` are those of
    the parts of its messages.
    """

    request: pb.GenerateRequest
    stream: bool
    include_usage: bool
    created: int
    places: Places


@dataclass(frozen=True, slots=True)
class CountAsked:
    """A question for the tokens of an input, with the places of its parts."""

    request: pb.CountTokensRequest
    places: Places


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
