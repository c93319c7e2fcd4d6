"""Embeddings are calls like any other: reserved, recorded, retried, repeated and cached alike. What differs is said here.

A call's messages hold one text each, and its answer one vector each.
"""

import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from llm_gateway.catalogue import Catalogue, Target
from llm_gateway.domain import Answer, EmbeddingRequest, Message, ModelRequest, ModelResponse, StreamPart, Text, Vector
from llm_gateway.errors import RequestRejected
from llm_gateway.providers.provider import Embedder


@dataclass(frozen=True, slots=True)
class EmbeddingTerms:
    """`dimensions` None for as many as the model has of its own."""

    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingProvider:
    """Implements Provider over an Embedder."""

    embedder: Embedder
    terms: EmbeddingTerms

    @property
    def name(self) -> str:
        return self.embedder.name

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse:
        texts = tuple(message.text for message in request.messages)
        found = await self.embedder.embed(EmbeddingRequest(request.model, texts, self.terms.dimensions), deadline)
        answer = Message("assistant", found.vectors)
        return ModelResponse(answer, "stop", "", found.usage, "", found.model, simulated=found.simulated)

    async def check(self, deadline: float) -> None:
        raise RequestRejected("nothing that has to do with vectors is free to ask for")

    async def count_tokens(self, request: ModelRequest, deadline: float) -> int | None:
        return None

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        raise RequestRejected("vectors come whole")
        yield  # what makes this a generator


def target_of(catalogue: Catalogue, model: str, terms: EmbeddingTerms) -> Target:
    """Raises UnknownModel, ModelUnavailable."""
    found = catalogue.embedder(model)
    return Target(found.id, found.model, EmbeddingProvider(found.embedder, terms), found.simulated, found.abort)


def request_of(model: str, texts: tuple[str, ...]) -> ModelRequest:
    """The texts as the messages of a call; a vector has no output tokens."""
    messages = tuple(Message("user", (Text(text),)) for text in texts)
    return replace(ModelRequest(model, messages), max_output_tokens=0)


def floats_of(answer: Answer) -> tuple[float, ...] | None:
    """The first vector of an answer."""
    values = next((part.values for part in answer.message.parts if isinstance(part, Vector)), b"")
    return struct.unpack(f"<{len(values) // 4}f", values) or None
