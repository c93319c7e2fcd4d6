"""The seam to a model provider."""

from collections.abc import AsyncGenerator
from typing import Protocol

from llm_gateway.domain import EmbeddingRequest, Embeddings, ModelRequest, ModelResponse, StreamPart


class Provider(Protocol):
    """One provider account that can be called. Safe for concurrent use; retries nothing by itself.

    `deadline` is an absolute time in seconds on the clock of the running event loop (`loop.time()`). Every failure is
    a ProviderError whose class says whether it may be retried. Cancelling the task, or closing the stream's generator,
    closes the connection to the provider.
    """

    @property
    def name(self) -> str:
        """The provider's name in requests, prices and metrics, as `openai` or `anthropic`."""
        ...

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse: ...

    async def check(self, deadline: float) -> None:
        """Asks for something free. Raises when the key or the address is of no use: AuthenticationRejected and others."""
        ...

    async def count_tokens(self, request: ModelRequest, deadline: float) -> int | None:
        """What the provider counts for the input, for free; None when it does not."""
        ...

    def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        """Parts in order, the last one Completed; without it the generator raises.

        Use it inside `contextlib.aclosing`, so that leaving early closes the connection at once.
        """
        ...


class Embedder(Protocol):
    """One provider account that turns texts into vectors. As Provider in all else."""

    @property
    def name(self) -> str: ...

    async def embed(self, request: EmbeddingRequest, deadline: float) -> Embeddings: ...
