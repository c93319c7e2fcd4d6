"""The simulator's dialects at the addresses that clouds give them."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Final

import orjson

from provider_simulator.anthropic_messages import AnthropicMessages
from provider_simulator.conversation import Ask, BadRequest, JsonObject, Reply

VERTEX_PATH: Final = "/projects/{project}/locations/{region}/publishers/anthropic/models/{model}:{method}"
BEDROCK_PATH: Final = "/model/{model}/{method:invoke|invoke-with-response-stream}"
BEDROCK_MODELS_PATH: Final = "/foundation-models"
AZURE_PATH: Final = "/openai/deployments/{deployment}/chat/completions"


class VertexMessages(AnthropicMessages):
    """Anthropic messages on Vertex AI: the model stands in the path and the version in the body."""

    def __init__(self, model: str) -> None:
        self._model = model

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        return super().parse(*self._plain(body))

    def parse_countable(self, body: bytes, headers: Mapping[str, str]) -> tuple[str, ...]:
        return super().parse_countable(*self._plain(body))

    def _plain(self, body: bytes) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers as Anthropic itself would get them."""
        try:
            request = {"model": self._model, **orjson.loads(body)}
        except (orjson.JSONDecodeError, TypeError) as error:
            raise BadRequest(f"body: {error}") from None
        return orjson.dumps(request), {"anthropic-version": str(request.get("anthropic_version", ""))}


class BedrockMessages(AnthropicMessages):
    """Anthropic messages on Bedrock: model and streaming stand in the path, the version in the body, and streams come in
    AWS's binary encoding.
    """

    stream_type = "application/vnd.amazon.eventstream"

    def __init__(self, model: str, *, stream: bool) -> None:
        self._asked = {"model": model, "stream": stream}

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        try:
            request = {**orjson.loads(body), **self._asked}
        except (orjson.JSONDecodeError, TypeError) as error:
            raise BadRequest(f"body: {error}") from None
        version = str(request.get("anthropic_version", ""))
        return super().parse(orjson.dumps(request), {"anthropic-version": version})

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        return [_chunk(frame) for frame in super().stream(reply, ask)]

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        return {"message": message, "code": code} if code else {"message": message}

    def error_frame(self, message: str, code: str | None) -> bytes:
        headers = {":message-type": "exception", ":exception-type": "internalServerException"}
        return event_message(headers, orjson.dumps({"message": message}))


def event_message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message of AWS's binary encoding, with these text headers."""
    head = b"".join(_text_header(name.encode(), value.encode()) for name, value in headers.items())
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _text_header(name: bytes, value: bytes) -> bytes:
    return struct.pack(">B", len(name)) + name + struct.pack(">BH", 7, len(value)) + value


def _chunk(frame: bytes) -> bytes:
    """An event of the messages format as Bedrock sends it, padded so that its length tells nothing."""
    data = frame.partition(b"data: ")[2].strip()
    headers = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    return event_message(headers, orjson.dumps({"bytes": base64.b64encode(data).decode(), "p": "abcdefghijkl"}))
