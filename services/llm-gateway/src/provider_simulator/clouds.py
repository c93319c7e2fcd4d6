"""The simulator's dialects at the addresses that clouds give them."""

from collections.abc import Mapping
from typing import Final

import orjson

from provider_simulator.anthropic_messages import AnthropicMessages
from provider_simulator.conversation import Ask, BadRequest

VERTEX_PATH: Final = "/projects/{project}/locations/{region}/publishers/anthropic/models/{model}:{method}"
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
