"""Embeddings over HTTP, in the wire formats of OpenAI and Gemini."""

import asyncio
import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Protocol

from aiohttp import web
from pydantic import Field

from provider_simulator.conversation import BadRequest, Json, JsonObject, TokenUsage
from provider_simulator.embeddings import DIMENSIONS, DIMENSIONS_MAX, EMBEDDING_MODEL, embed
from provider_simulator.exchange import FAULT_HEADER, json_response
from provider_simulator.faults import FaultPlan, fault_of_model
from provider_simulator.gemini_generate import GeminiGenerate
from provider_simulator.openai_chat import OpenAiChat
from provider_simulator.reply import FINGERPRINT, count_input
from provider_simulator.usage import ServedRequest, UsageBook, counted
from provider_simulator.wire import WireModel, read


@dataclass(frozen=True, slots=True)
class EmbeddingAsk:
    """What was asked for; `encoding` is how the vectors are to be written."""

    model: str
    texts: tuple[str, ...]
    dimensions: int
    encoding: str = "float"

    def vectors(self) -> list[tuple[float, ...]]:
        return [embed(text, self.dimensions) for text in self.texts]


class EmbeddingWire(Protocol):
    """One wire format. Pure; `parse` raises BadRequest."""

    @property
    def name(self) -> str: ...

    def parse(self, body: bytes) -> EmbeddingAsk: ...

    def answer(self, ask: EmbeddingAsk, tokens: int | None) -> JsonObject:
        """`tokens` None leaves the usage out."""
        ...

    def error(self, status: int, message: str, code: str | None) -> JsonObject: ...


@dataclass(frozen=True, slots=True)
class EmbeddingExchange:
    """One request: parse, apply the fault, answer, count."""

    wire: EmbeddingWire
    faults: FaultPlan
    usage: UsageBook
    sequence: int

    async def serve(self, request: web.Request) -> web.StreamResponse:
        try:
            ask = self.wire.parse(await request.read())
            fault = self.faults.take(request.headers.get(FAULT_HEADER), ask.model)
        except BadRequest as error:
            return self._refuse("", 400, str(error), None)
        if ask.model != EMBEDDING_MODEL and fault_of_model(ask.model) is None:
            return self._refuse(ask.model, 404, f"The model {ask.model!r} does not exist.", "model_not_found")
        await asyncio.sleep(fault.first_byte_delay_s)
        if fault.status is not None:
            message = fault.message or f"{responses.get(fault.status, 'Overloaded')} (simulated)"
            response = self._refuse(ask.model, fault.status, message, fault.code)
            response.headers.update(fault.headers)
            return response
        tokens = count_input(ask.texts)
        served = ServedRequest(self.sequence, self.wire.name, ask.model, False, 200, "answered")
        self.usage.record(counted(served, TokenUsage(tokens, 0)))
        return json_response(self.wire.answer(ask, None if fault.omit_usage else tokens))

    def _refuse(self, model: str, status: int, message: str, code: str | None) -> web.Response:
        self.usage.record(ServedRequest(self.sequence, self.wire.name, model, False, status, "failed"))
        return json_response(self.wire.error(status, message, code), status=status)


class _OpenAiRequest(WireModel):
    model: str
    input: str | tuple[str, ...]
    encoding_format: str = "float"
    dimensions: int = Field(default=DIMENSIONS, ge=1, le=DIMENSIONS_MAX)


class OpenAiEmbeddings:
    """POST /v1/embeddings."""

    name = "openai-embeddings"

    def parse(self, body: bytes) -> EmbeddingAsk:
        asked = read(_OpenAiRequest, body)
        texts = (asked.input,) if isinstance(asked.input, str) else asked.input
        return EmbeddingAsk(asked.model, texts, asked.dimensions, asked.encoding_format)

    def answer(self, ask: EmbeddingAsk, tokens: int | None) -> JsonObject:
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, ask.encoding)}
            for index, vector in enumerate(ask.vectors())
        ]
        return {
            "object": "list",
            "model": ask.model,
            "system_fingerprint": FINGERPRINT,
            "simulated": True,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens} if tokens is not None else None,
        }

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        return OpenAiChat().error(status, message, code)


class _Part(WireModel):
    text: str


class _Content(WireModel):
    parts: tuple[_Part, ...]


class _GeminiOne(WireModel):
    model: str
    content: _Content
    outputDimensionality: int = Field(default=DIMENSIONS, ge=1, le=DIMENSIONS_MAX)  # noqa: N815 - the wire's spelling


class _GeminiRequest(WireModel):
    requests: tuple[_GeminiOne, ...] = Field(min_length=1, max_length=100)


@dataclass(frozen=True, slots=True)
class GeminiEmbeddings:
    """POST /v1beta/models/<model>:batchEmbedContents. Reference: https://ai.google.dev/api/embeddings."""

    model: str
    name = "gemini-embeddings"

    def parse(self, body: bytes) -> EmbeddingAsk:
        asked = read(_GeminiRequest, body).requests
        if {one.model for one in asked} != {f"models/{self.model}"}:
            raise BadRequest(f"each request must name models/{self.model}")
        texts = tuple("".join(part.text for part in one.content.parts) for one in asked)
        return EmbeddingAsk(self.model, texts, asked[0].outputDimensionality)

    def answer(self, ask: EmbeddingAsk, tokens: int | None) -> JsonObject:
        usage: JsonObject = {"usageMetadata": {"promptTokenCount": tokens}} if tokens is not None else {}
        return {
            "embeddings": [{"values": list(vector)} for vector in ask.vectors()],
            "system_fingerprint": FINGERPRINT,
            **usage,
        }

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        return GeminiGenerate(self.model, stream=False).error(status, message, code)


def _encoded(vector: Sequence[float], encoding: str) -> Json:
    """Base64 holds little-endian 32-bit floats; it is what the openai SDK asks for unless told otherwise."""
    if encoding != "base64":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
