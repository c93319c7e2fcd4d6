"""The dialect of POST /embeddings, as OpenAI, Ollama, vLLM and many others speak it. Pure."""

from typing import TypedDict

import orjson

from llm_gateway.domain import EmbeddingRequest, Embeddings, Usage, UsageLine
from llm_gateway.errors import InvalidUsage, ProviderError
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT
from llm_gateway.providers.embeddings import vector
from llm_gateway.providers.failures import failure
from llm_gateway.providers.openai_chat import error_of


class _Embedding(TypedDict):
    index: int
    embedding: str | list[float]


class _Usage(TypedDict, total=False):
    prompt_tokens: int


class _Body(TypedDict, total=False):
    data: list[_Embedding]
    model: str
    usage: _Usage | None
    system_fingerprint: str


class OpenAiEmbeddings:
    """Implements EmbeddingDialect. Vectors are asked for as base64, which some servers answer with numbers."""

    texts_max = 2048

    def path(self, model: str) -> str:
        return "/embeddings"

    def headers(self, api_key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def encode(self, request: EmbeddingRequest) -> bytes:
        dimensions = {"dimensions": request.dimensions} if request.dimensions else {}
        body = {"model": request.model, "input": request.texts, "encoding_format": "base64", **dimensions}
        return orjson.dumps(body)

    def decode(self, body: bytes, model: str) -> Embeddings:
        parsed: _Body = orjson.loads(body)
        data = sorted(parsed["data"], key=lambda one: one["index"])
        return Embeddings(
            tuple(vector(one["embedding"]) for one in data),
            _usage(parsed.get("usage")),
            parsed.get("model") or model,
            parsed.get("system_fingerprint") == SIMULATOR_FINGERPRINT,
        )

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        message, code = error_of(body)
        return failure(status, message, code=code, request_id=request_id, retry_after_s=retry_after_s)


def _usage(usage: _Usage | None) -> Usage | None:
    """None for what cannot be believed: no request is without tokens."""
    try:
        return Usage.of((UsageLine("input", usage["prompt_tokens"]),)) if usage and usage.get("prompt_tokens") else None
    except InvalidUsage:
        return None
