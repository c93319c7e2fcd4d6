"""The dialect of POST /v1beta/models/<model>:batchEmbedContents. Pure.

Reference: https://ai.google.dev/api/embeddings. Counts of tokens are not in every answer.
"""

from typing import TypedDict

import orjson

from llm_gateway.domain import EmbeddingRequest, Embeddings, Json, Usage, UsageLine
from llm_gateway.errors import InvalidUsage, ProviderError
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT
from llm_gateway.providers.embeddings import vector
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect


class _Embedding(TypedDict):
    values: list[float]


class _UsageMetadata(TypedDict, total=False):
    promptTokenCount: int


class _Body(TypedDict, total=False):
    embeddings: list[_Embedding]
    usageMetadata: _UsageMetadata
    system_fingerprint: str


class GeminiEmbeddings:
    """Implements EmbeddingDialect."""

    texts_max = 100

    def path(self, model: str) -> str:
        return f"/v1beta/models/{model}:batchEmbedContents"

    def headers(self, api_key: str) -> dict[str, str]:
        return {"x-goog-api-key": api_key}

    def encode(self, request: EmbeddingRequest) -> bytes:
        dimensions: dict[str, Json] = {"outputDimensionality": request.dimensions} if request.dimensions else {}
        each = [
            {"model": f"models/{request.model}", "content": {"parts": [{"text": text}]}, **dimensions}
            for text in request.texts
        ]
        return orjson.dumps({"requests": each})

    def decode(self, body: bytes, model: str) -> Embeddings:
        parsed: _Body = orjson.loads(body)
        vectors = tuple(vector(one["values"]) for one in parsed["embeddings"])
        simulated = parsed.get("system_fingerprint") == SIMULATOR_FINGERPRINT
        return Embeddings(vectors, _usage(parsed), model, simulated)

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        return GeminiGenerateDialect().failure(status, body, request_id, retry_after_s)


def _usage(body: _Body) -> Usage | None:
    tokens = body.get("usageMetadata", {}).get("promptTokenCount")
    try:
        return Usage.of((UsageLine("input", tokens),)) if tokens else None
    except InvalidUsage:
        return None
