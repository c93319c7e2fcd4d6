"""gRPC in: translate, call, translate."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import grpc
from servicekit.clock import Clock
from servicekit.context import current_call, current_principal, event_context
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc

from llm_gateway import translate
from llm_gateway.application import Gateway

PERMISSIONS: Final = {
    "Generate": "models.generate",
    "Stream": "models.generate",
    "Embed": "models.generate",
    "CountTokens": "models.read",
    "ListModels": "models.read",
    "ListDeployments": "models.read",
}

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class LlmGatewayRpc(llm_gateway_pb2_grpc.LlmGatewayServicer):
    gateway: Gateway
    clock: Clock

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        asked = translate.to_asked(request, current_principal().tenant)
        answer = await self.gateway.generate(
            asked, event_context(correlation=asked.attribution.root_run_id or asked.attribution.run_id), self._left_s()
        )
        return translate.from_answer(answer)

    async def Stream(self, request: pb.StreamRequest, context: Context) -> AsyncIterator[pb.StreamEvent]:
        asked = translate.to_asked(request.request, current_principal().tenant)
        events = self.gateway.stream(
            asked, event_context(correlation=asked.attribution.root_run_id or asked.attribution.run_id), self._left_s()
        )
        sequence = 0
        async with aclosing(events):
            async for event in events:
                sequence += 1
                yield translate.from_event(sequence, event)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        asked = translate.to_embedding(request, current_principal().tenant)
        answer = await self.gateway.generate(
            asked, event_context(correlation=asked.attribution.root_run_id or asked.attribution.run_id), self._left_s()
        )
        return translate.from_embeddings(answer)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        tokens, method = await self.gateway.count_tokens(translate.to_countable(request), exact=request.exact)
        return pb.CountTokensResponse(input_tokens=tokens, method=method)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        waiting = self.gateway.calls_waiting()
        cards = self.gateway.models(request.provider)
        return pb.ListModelsResponse(models=[translate.from_card(card, waiting.get(card.id, 0)) for card in cards])

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Context) -> pb.ListDeploymentsResponse:
        states = await self.gateway.deployments(request.provider, check=request.check)
        return pb.ListDeploymentsResponse(deployments=[translate.from_deployment(state) for state in states])

    def _left_s(self) -> float | None:
        """What the caller's deadline leaves, in seconds."""
        deadline = current_call().deadline
        return None if deadline is None else deadline - self.clock.monotonic()
