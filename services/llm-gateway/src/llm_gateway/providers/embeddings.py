"""Texts to vectors over HTTP: an Embedder for any wire format that has vectors."""

import base64
import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from llm_gateway.domain import EmbeddingRequest, Embeddings, Vector
from llm_gateway.errors import MalformedResponse, ProviderError, RequestRejected
from llm_gateway.providers.failures import retry_after_s
from llm_gateway.providers.http import Endpoint, readable
from llm_gateway.providers.transport import HttpReply, Transport


class EmbeddingDialect(Protocol):
    """One wire format of vectors; pure, as Dialect is. `texts_max` is the most that one request may hold."""

    @property
    def texts_max(self) -> int: ...

    def path(self, model: str) -> str: ...

    def headers(self, api_key: str) -> dict[str, str]: ...

    def encode(self, request: EmbeddingRequest) -> bytes: ...

    def decode(self, body: bytes, model: str) -> Embeddings: ...

    def failure(
        self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None
    ) -> ProviderError: ...


class HttpEmbedder:
    """Implements Embedder. It keeps no state between calls; `now` gives aware UTC times."""

    def __init__(
        self, endpoint: Endpoint, dialect: EmbeddingDialect, transport: Transport, now: Callable[[], datetime]
    ) -> None:
        self._endpoint = endpoint
        self._dialect = dialect
        self._transport = transport
        self._now = now
        self._base_url = endpoint.base_url.rstrip("/")
        self._headers = {
            "content-type": "application/json",
            **dialect.headers(endpoint.api_key),
            **endpoint.headers,
        }

    @property
    def name(self) -> str:
        return self._endpoint.name

    async def embed(self, request: EmbeddingRequest, deadline: float) -> Embeddings:
        try:
            self._check(request)
            url, body = self._base_url + self._dialect.path(request.model), self._dialect.encode(request)
            async with self._transport.post(url, self._headers, body, deadline) as reply:
                if reply.status != 200:
                    raise self._failure(reply, await reply.refusal())
                answer = await reply.body()
            found = readable(lambda body: self._dialect.decode(body, request.model), answer)
            return _checked(found, request)
        except ProviderError as error:
            error.provider = self.name
            raise

    def _check(self, request: EmbeddingRequest) -> None:
        most = self._dialect.texts_max
        if len(request.texts) > most:
            error = RequestRejected(f"{len(request.texts)} texts are too many for one request; send at most {most}")
            error.dispatched = False
            raise error

    def _failure(self, reply: HttpReply, body: bytes) -> ProviderError:
        key = self._endpoint.api_key.encode()
        hidden = body.replace(key, b"***") if key else body
        after_s = retry_after_s(reply.headers, self._now())
        return self._dialect.failure(reply.status, hidden, reply.headers.get("x-request-id"), after_s)


def vector(wire: str | Sequence[float]) -> Vector:
    """From base64 of little-endian 32-bit floats, or from numbers. Raises ValueError."""
    if isinstance(wire, str):
        values = base64.b64decode(wire, validate=True)
        if len(values) % 4:
            raise ValueError(f"{len(values)} bytes are no 32-bit floats")
        return Vector(values)
    try:
        return Vector(struct.pack(f"<{len(wire)}f", *wire))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"not a vector of 32-bit floats: {error}") from None


def _checked(found: Embeddings, request: EmbeddingRequest) -> Embeddings:
    if len(found.vectors) != len(request.texts):
        raise MalformedResponse(f"{len(found.vectors)} vectors came for {len(request.texts)} texts", status=200)
    if any(not one.values for one in found.vectors):
        raise MalformedResponse("a vector is empty", status=200)
    return found
