"""POST /v1/embeddings, as the SDK openai 3.54 speaks it. Pure."""

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.caching import CacheAsked
from httpedge.compatible.wire import Count, ModelName, read
from httpedge.mistakes import wrong


class _Request(CacheAsked):
    model: ModelName
    input: str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...]
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: object = None


@dataclass(frozen=True, slots=True)
class EmbeddingAsked:
    """A request as the gateway takes it, and how the vectors are wanted."""

    request: pb.EmbedRequest
    base64: bool


def parse(body: bytes, request_id: str) -> EmbeddingAsked:
    """Raises InvalidArgument naming the field."""
    asked = read(_Request, body)
    if not asked.input:
        raise wrong("input", asked.input, "is empty; give a text")
    request = pb.EmbedRequest(
        request_id=request_id,
        model=asked.model,
        texts=list(_texts(asked.input)),
        dimensions=asked.dimensions or 0,
        cache=asked.cache_policy(),
    )
    return EmbeddingAsked(request, asked.encoding_format == "base64")


def answer(found: pb.EmbedResponse, asked: EmbeddingAsked) -> Mapping[str, object]:
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(each.values, as_base64=asked.base64)}
        for index, each in enumerate(found.embeddings)
    ]
    tokens = found.usage.input_tokens
    return {
        "object": "list",
        "data": data,
        "model": found.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **({"system_fingerprint": "synod-simulator"} if found.simulated else {}),
    }


def _texts(given: str | Sequence[object]) -> Iterator[str]:
    if isinstance(given, str):
        yield given
        return
    for index, one in enumerate(given):
        if not isinstance(one, str):
            raise wrong("input", one, "send texts; tokens mean something else to each model")
        if not one:
            raise wrong(f"input.{index}", one, "is empty; give a text")
        yield one


def _vector(values: Sequence[float], *, as_base64: bool) -> str | list[float]:
    if not as_base64:
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
