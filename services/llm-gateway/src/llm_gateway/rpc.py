"""gRPC in: translate, call, translate. And the same for calls that come another way into this process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from eventlog.records import Context as EventContext
from httpedge.callers import Caller
from servicekit.clock import Clock
from servicekit.context import Call, current_call, current_principal, enter_call, event_context
from servicekit.errors import DeadlineExceeded, ErrorMap, ServiceError
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc

from llm_gateway import translate
from llm_gateway.application import Gateway
from llm_gateway.execution import Asked

PERMISSIONS: Final = {
    "Generate": "models.generate",
    "Stream": "models.generate",
    "Embed": "models.generate",
    "CountTokens": "models.read",
    "ListModels": "models.read",
    "ListDeployments": "models.read",
}

Context = grpc.aio.ServicerContext[object, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Handlers:
    """The use cases by their messages, in the name of the current call."""

    gateway: Gateway
    clock: Clock

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        asked = translate.to_asked(request, current_principal().tenant)
        answer = await self.gateway.generate(asked, _context_of(asked), self._left_s())
        return translate.from_answer(answer)

    async def stream(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.StreamEvent, None]:
        asked = translate.to_asked(request, current_principal().tenant)
        events = self.gateway.stream(asked, _context_of(asked), self._left_s())
        sequence = 0
        async with aclosing(events):
            async for event in events:
                sequence += 1
                yield translate.from_event(sequence, event)

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        asked = translate.to_embedding(request, current_principal().tenant)
        answer = await self.gateway.generate(asked, _context_of(asked), self._left_s())
        return translate.from_embeddings(answer)

    async def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        tokens, method = await self.gateway.count_tokens(translate.to_countable(request), exact=request.exact)
        return pb.CountTokensResponse(input_tokens=tokens, method=method)

    def models(self, provider: str) -> list[pb.Model]:
        waiting = self.gateway.calls_waiting()
        return [translate.from_card(card, waiting.get(card.id, 0)) for card in self.gateway.models(provider)]

    async def deployments(self, request: pb.ListDeploymentsRequest) -> list[pb.Deployment]:
        states = await self.gateway.deployments(request.provider, check=request.check)
        return [translate.from_deployment(state) for state in states]

    def _left_s(self) -> float | None:
        """What the caller's deadline leaves, in seconds."""
        deadline = current_call().deadline
        return None if deadline is None else deadline - self.clock.monotonic()


def _context_of(asked: Asked) -> EventContext:
    """Under which a call's events are appended: as part of the run that it is made for."""
    return event_context(correlation=asked.attribution.root_run_id or asked.attribution.run_id)


@dataclass(frozen=True, slots=True)
class LlmGatewayRpc(llm_gateway_pb2_grpc.LlmGatewayServicer):
    handlers: Handlers

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self.handlers.generate(request)

    async def Stream(self, request: pb.StreamRequest, context: Context) -> AsyncIterator[pb.StreamEvent]:
        async with aclosing(self.handlers.stream(request.request)) as events:
            async for event in events:
                yield event

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return await self.handlers.embed(request)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        return await self.handlers.count_tokens(request)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.handlers.models(request.provider))

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Context) -> pb.ListDeploymentsResponse:
        return pb.ListDeploymentsResponse(deployments=await self.handlers.deployments(request))


@dataclass(frozen=True, slots=True)
class OwnModelCalls:
    """Calls that are made inside this process; see httpedge.model_calls.ModelCalls.

    What servicekit's guard does for a call by gRPC is done here: permission, principal, deadline, errors. It is traced and
    counted where it comes in. `errors` are those of gRPC's calls.
    """

    handlers: Handlers
    errors: ErrorMap

    async def generate(self, request: pb.GenerateRequest, caller: Caller, timeout_s: float) -> pb.GenerateResponse:
        with self._entered("Generate", caller, timeout_s):
            return await _within(timeout_s, self.handlers.generate(request))

    async def stream(
        self, request: pb.GenerateRequest, caller: Caller, timeout_s: float
    ) -> AsyncGenerator[pb.StreamEvent, None]:
        ends_at = asyncio.get_running_loop().time() + timeout_s
        with self._entered("Stream", caller, timeout_s):
            async with aclosing(self.handlers.stream(request)) as events:
                # Not around the whole, which would end whoever writes an event in the middle of it.
                while event := await _within(timeout_s, anext(events, None), ends_at):
                    yield event

    async def embed(self, request: pb.EmbedRequest, caller: Caller, timeout_s: float) -> pb.EmbedResponse:
        with self._entered("Embed", caller, timeout_s):
            return await _within(timeout_s, self.handlers.embed(request))

    async def count_tokens(self, request: pb.CountTokensRequest, caller: Caller) -> pb.CountTokensResponse:
        with self._entered("CountTokens", caller):
            return await self.handlers.count_tokens(request)

    async def models(self, caller: Caller) -> Sequence[pb.Model]:
        with self._entered("ListModels", caller):
            return self.handlers.models("")

    @contextmanager
    def _entered(self, method: str, caller: Caller, timeout_s: float | None = None) -> Iterator[None]:
        """Within it the current task calls `method` in the caller's name. Raises ServiceError for all that is known."""
        caller.require(PERMISSIONS[method])
        deadline = None if timeout_s is None else self.handlers.clock.monotonic() + timeout_s
        enter_call(Call(caller.principal, deadline))
        try:
            yield
        except ServiceError:
            raise
        except Exception as error:
            if known := self.errors.translate(error):
                raise known from error
            raise


async def _within(timeout_s: float, answer: Awaitable[T], ends_at: float | None = None) -> T:
    """The answer, if it comes in time: from now on, or before `ends_at` on the clock of the event loop."""
    try:
        async with asyncio.timeout(timeout_s) if ends_at is None else asyncio.timeout_at(ends_at) as scope:
            return await answer
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded(
            f"the call took longer than the {timeout_s:g} s it may take; repeat it with the same id for its answer",
            reason="SERVER_DEADLINE",
        ) from error
