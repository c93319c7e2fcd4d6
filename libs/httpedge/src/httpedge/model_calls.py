"""llm-gateway as the edge needs it: the same messages, whether they go by gRPC or stay in the process."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.callers import Caller


class ModelCalls(Protocol):
    """Every method acts in the name of `caller`, raises ServiceError as llm-gateway answers it, and ends its call when the
    task that waits for it is cancelled. `timeout_s` is how long the answer is of use.
    """

    async def generate(self, request: pb.GenerateRequest, caller: Caller, timeout_s: float) -> pb.GenerateResponse: ...

    def stream(
        self, request: pb.GenerateRequest, caller: Caller, timeout_s: float
    ) -> AsyncGenerator[pb.StreamEvent, None]:
        """A refusal is raised before the first event; the last one is `completed` or `error`."""
        ...

    async def embed(self, request: pb.EmbedRequest, caller: Caller, timeout_s: float) -> pb.EmbedResponse: ...

    async def count_tokens(self, request: pb.CountTokensRequest, caller: Caller) -> pb.CountTokensResponse: ...

    async def models(self, caller: Caller) -> Sequence[pb.Model]: ...
