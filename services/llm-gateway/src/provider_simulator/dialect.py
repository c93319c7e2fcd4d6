"""The seam between the server and a wire format."""

from collections.abc import Mapping
from typing import Protocol

from provider_simulator.conversation import Ask, JsonObject, Reply

KNOWN_STATUS_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


class Dialect(Protocol):
    """One wire format. All methods are pure; `parse` raises BadRequest naming the field that is wrong."""

    @property
    def name(self) -> str: ...

    @property
    def id_prefix(self) -> str: ...

    @property
    def stream_type(self) -> str:
        """The media type of a stream."""
        ...

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask: ...

    def unary(self, reply: Reply) -> JsonObject: ...

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        """The whole answer as the frames of a stream; the last one is the terminal event."""
        ...

    def error(self, status: int, message: str, code: str | None) -> JsonObject: ...

    def error_frame(self, message: str, code: str | None) -> bytes:
        """The event that reports an error inside a response with status 200."""
        ...
