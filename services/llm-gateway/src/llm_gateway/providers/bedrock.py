"""Claude on Amazon Bedrock: the messages format, but for where models are listed and how streams are framed. Pure.

Streams come in AWS's binary encoding; each message holds one event of the messages format, base64 in JSON. They are put
into the words of server-sent events, so that one parser reads the stream of every provider.
"""

import base64
from typing import Final, NamedTuple

import orjson

from llm_gateway.domain import ModelResponse
from llm_gateway.errors import MalformedResponse, ProviderError
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.event_stream import EventStreamParser, Message
from llm_gateway.providers.failures import failure, inside_answer

_ERROR_TYPES: Final = {
    "throttlingException": "rate_limit_error",
    "serviceUnavailableException": "overloaded_error",
    "modelTimeoutException": "timeout_error",
    "validationException": "invalid_request_error",
    "accessDeniedException": "permission_error",
    "resourceNotFoundException": "not_found_error",
}
"""What Bedrock calls its errors, in the words of the messages format; any other is an error of the server."""


class BedrockMessagesDialect(AnthropicMessagesDialect):
    """`control_url` is the origin where Bedrock tells which models there are; it runs them at another one."""

    def __init__(self, control_url: str) -> None:
        self._control_url = control_url.rstrip("/")

    def models_path(self) -> str:
        return f"{self._control_url}/foundation-models?byProvider=anthropic"

    def count_path(self, model: str) -> str | None:
        return None

    def decode(self, body: bytes) -> ModelResponse:
        error = _error_of(body)
        if error is not None:
            raise inside_answer(failure(500, error.message, code=error.code))
        return super().decode(body)

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        error = _error_of(body)
        if error is None:
            return super().failure(status, body, request_id, retry_after_s)
        return failure(status, error.message, code=error.code, request_id=request_id, retry_after_s=retry_after_s)


class BedrockStream:
    """Server-sent events of what Bedrock streams. Feed it chunks as they arrive. Raises MalformedResponse."""

    def __init__(self) -> None:
        self._parser = EventStreamParser()

    def feed(self, chunk: bytes) -> bytes:
        return b"".join(_sent(message) for message in self._parser.feed(chunk))


def _sent(message: Message) -> bytes:
    kind = message.headers.get(":message-type", "")
    if kind == "event":
        return _event(message.payload) if message.headers.get(":event-type") == "chunk" else b""
    name = message.headers.get(":exception-type") or message.headers.get(":error-code", "")
    told = _error_of(message.payload)
    return _error(name, message.headers.get(":error-message") or (told.message if told else ""))


def _event(payload: bytes) -> bytes:
    try:
        data = base64.b64decode(orjson.loads(payload)["bytes"], validate=True)
        return b"event: %b\ndata: %b\n\n" % (orjson.loads(data)["type"].encode(), data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedResponse(f"an event of the stream cannot be read: {error!r}", status=200) from error


def _error(name: str, message: str) -> bytes:
    error = {"type": _ERROR_TYPES.get(name, "api_error"), "message": message or name}
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": error}) + b"\n\n"


class _Error(NamedTuple):
    message: str
    code: str | None


def _error_of(body: bytes) -> _Error | None:
    """An error as AWS writes it: a text as message, and its name where it is not in a header. None for all else."""
    try:
        parsed = orjson.loads(body)
        message, code = parsed["message"], parsed.get("code")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return _Error(message, code) if isinstance(message, str) else None
