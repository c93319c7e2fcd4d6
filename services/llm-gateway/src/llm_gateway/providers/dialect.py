"""What an adapter must know of a wire format. Everything here is pure."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from llm_gateway.domain import ModelRequest, ModelResponse, StreamPart
from llm_gateway.errors import ProviderError
from llm_gateway.providers.sse import SseEvent

SIMULATOR_FINGERPRINT = "synod-simulator"
"""The `system_fingerprint` of answers from the provider simulator, in every dialect."""


class Assembler(Protocol):
    """Turns one stream's events into parts and, at the terminal event, into the whole response.

    Raises ProviderError for an error the provider reports in the stream. A shape that the wire format does not allow
    may raise KeyError, TypeError, ValueError, AttributeError or IndexError; the adapter makes MalformedResponse of it.
    """

    def feed(self, event: SseEvent) -> Sequence[StreamPart]: ...


class Dialect(Protocol):
    """One wire format. `decode` raises like Assembler.feed; `encode` FinalProviderError for what cannot be said."""

    @property
    def name(self) -> str: ...

    def path(self, model: str, *, stream: bool) -> str:
        """The path below the endpoint's base URL to which a request is posted."""
        ...

    def models_path(self) -> str:
        """Where the models that a key may use are listed for free."""
        ...

    def count_path(self, model: str) -> str | None:
        """Where the provider counts the tokens of a request for free; None where it does not."""
        ...

    def encode_count(self, request: ModelRequest) -> bytes: ...

    def decode_count(self, body: bytes) -> int: ...

    def headers(self, api_key: str) -> Mapping[str, str]: ...

    def encode(self, request: ModelRequest, *, stream: bool) -> bytes: ...

    def decode(self, body: bytes) -> ModelResponse: ...

    def assembler(self) -> Assembler: ...

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        """The error for an answer with a status other than 200, whatever its body holds."""
        ...
