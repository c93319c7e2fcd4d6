"""Use cases of llm-gateway: answer, stream, count, list. Calls run apart from their callers, one for each request id."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, Literal

from eventlog.records import Context
from synod.common.ids import derived_id
from synod.common.values import Attribution

from llm_gateway import counting, embedding
from llm_gateway.caching import Cacheable, CachePolicy
from llm_gateway.catalogue import Catalogue, ModelCard
from llm_gateway.domain import Answer, ModelRequest
from llm_gateway.errors import CallEnded, CallRefused, GatewayStopping, ProviderError, RequestIdReused, TooManyCalls
from llm_gateway.execution import Asked, Execution, Recorder, Tools
from llm_gateway.flight import CallEvent, Flight
from llm_gateway.inspection import DeploymentState, Inspector
from llm_gateway.router import Router
from llm_gateway.routing import Choice, affinity_of

ACTOR: Final = "llm-gateway"
COUNT_S: Final = 5.0
"""How long a provider may take to count tokens."""
LANDED_REMEMBERED_MAX: Final = 10_000
"""Repeats of these look up what is on record before anything else."""
EMBED_S: Final = 5.0
"""How long what was said may take to become a vector; a call waits for that before it asks its model."""
CountMethod = Literal["provider", "upper_bound"]


class Gateway:
    """Model calls of all tenants. A caller who leaves does not stop a call: its answer is paid for and goes on record."""

    def __init__(self, catalogue: Catalogue, tools: Tools) -> None:
        self._tools = tools
        self._router = Router(catalogue, tools.circuits, tools.loads, tools.balancing, tools.draw)
        self._flights: dict[str, Flight] = {}
        self._landed_before: OrderedDict[str, None] = OrderedDict()
        self._draining: dict[str, asyncio.TimerHandle] = {}
        self._stopping = False
        if tools.similar is not None:
            tools.similar.embed = self.embed_said

    async def generate(self, asked: Asked, context: Context, left_s: float | None) -> Answer:
        """The whole answer. `left_s` is the time the caller has. Raises CallRefused, CallEnded."""
        id, flight = self._join(asked, context, left_s, stream=False)
        try:
            return await flight.answer()
        finally:
            self._leave(id, flight)

    async def stream(self, asked: Asked, context: Context, left_s: float | None) -> AsyncGenerator[CallEvent, None]:
        """The answer as it is produced; the last event is Answer or Broken. Raises, before the first, as generate."""
        id, flight = self._join(asked, context, left_s, stream=True)
        try:
            async for event in flight.events():
                yield event
        finally:
            self._leave(id, flight)

    async def count_tokens(self, request: ModelRequest, *, exact: bool) -> tuple[int, CountMethod]:
        """The input tokens and who counted them. Raises UnknownModel, ModelUnavailable."""
        target = self._router.catalogue.target(request.model)
        if exact:
            deadline = asyncio.get_running_loop().time() + COUNT_S
            # The bound is always at hand, whatever keeps the provider from counting.
            with suppress(ProviderError):
                counted = await target.provider.count_tokens(replace(request, model=target.model), deadline)
                if counted is not None:
                    return counted, "provider"
        return counting.input_bound(request.messages, request.tools), "upper_bound"

    async def embed_said(self, call_id: str, text: str, context: Context, owner: Attribution) -> Sequence[float] | None:
        """The vector of what was said in a call, for the semantic cache. A call must not fail for want of it."""
        assert self._tools.similar is not None
        terms = self._tools.similar.terms
        sha256 = hashlib.sha256(f"{terms.dimensions} {text}".encode()).hexdigest()
        asked = Asked(
            request_id=f"{call_id}.said",
            model=terms.model,
            fallback_models=(),
            request=embedding.request_of(terms.model, (text,)),
            attribution=owner,
            sha256=sha256,
            cacheable=Cacheable(CachePolicy("on"), sha256),
            embedding=embedding.EmbeddingTerms(terms.dimensions),
        )
        try:
            answer = await self.generate(asked, context, EMBED_S)
        except (CallRefused, CallEnded):
            return None
        return embedding.floats_of(answer)

    def use(self, catalogue: Catalogue) -> None:
        """From the next call on; calls that run keep the targets they have."""
        self._router.catalogue = catalogue

    def models(self, provider: str = "") -> tuple[ModelCard, ...]:
        return self._router.catalogue.cards(provider)

    def calls_waiting(self) -> Mapping[str, int]:
        """How many calls wait for room within the limits, by model."""
        return self._tools.admission.line.depths()

    async def deployments(self, provider: str = "", *, check: bool = False) -> tuple[DeploymentState, ...]:
        inspector = Inspector(self._tools.circuits, self._tools.loads)
        return await inspector.look(self._router.catalogue, provider, check=check)

    async def end_orphans(self, orphans: Sequence[tuple[str, Context]]) -> None:
        """Ends what a process that is gone left running: calls by id, with the context to record it under."""
        for id, context in orphans:
            recorder = Recorder(id, context, self._tools)
            call = await recorder.load()
            if id not in self._flights and not await recorder.runs_elsewhere(call):
                await recorder.end_orphan(call)

    async def close(self) -> None:
        """Ends all calls in flight with an unknown outcome, and waits until that is recorded."""
        self._stopping = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.stop()
        for flight in flights:
            await flight.landed()

    def _join(self, asked: Asked, context: Context, left_s: float | None, *, stream: bool) -> tuple[str, Flight]:
        """The call in flight for this request, started if none is, and its id. Who joins has to leave."""
        id = call_id(context.tenant, asked.request_id)
        now = asyncio.get_running_loop().time()
        flight = self._flights.get(id) or self._start(id, asked, context, now, stream=stream)
        if flight.request_sha256 != asked.sha256:
            raise RequestIdReused(asked.request_id)
        flight.want_until(None if left_s is None else now + left_s)
        flight.callers += 1
        flight.keep()
        self._undrain(id)
        return id, flight

    def _leave(self, id: str, flight: Flight) -> None:
        flight.callers -= 1
        if not flight.callers and self._flights.get(id) is flight:
            self._drain(id, flight)

    def _start(self, id: str, asked: Asked, context: Context, now: float, *, stream: bool) -> Flight:
        choice = self._choice(asked, context.tenant, now)
        self._admit()
        flight = Flight(asked.sha256, now + self._tools.terms.call_max_s)
        execution = Execution(
            id,
            asked,
            choice.targets,
            context,
            flight,
            self._tools,
            stream=stream,
            considered=choice.considered,
            repeated=id in self._landed_before,
        )
        self._flights[id] = flight
        self._tools.telemetry.in_flight.set(len(self._flights))
        flight.carry(asyncio.create_task(execution.run(), name=f"model call {id}"), lambda: self._landed(id))
        return flight

    def _choice(self, asked: Asked, tenant: str, now: float) -> Choice:
        if asked.embedding is not None:
            return Choice((embedding.target_of(self._router.catalogue, asked.model, asked.embedding),), ())
        output_tokens = asked.request.max_output_tokens or self._tools.terms.output_tokens_default
        return self._router.choose(
            (asked.model, *asked.fallback_models),
            asked.policy,
            lambda: affinity_of(tenant, asked.attribution.conversation_id, asked.request),
            lambda: (counting.request_bound(asked.request), output_tokens),
            now,
        )

    def _admit(self) -> None:
        if self._stopping:
            raise GatewayStopping
        if len(self._flights) >= self._tools.terms.calls_max:
            raise TooManyCalls(self._tools.terms.calls_max)

    def _landed(self, id: str) -> None:
        self._undrain(id)
        self._flights.pop(id, None)
        self._landed_before[id] = None
        if len(self._landed_before) > LANDED_REMEMBERED_MAX:
            self._landed_before.popitem(last=False)
        self._tools.telemetry.in_flight.set(len(self._flights))

    def _drain(self, id: str, flight: Flight) -> None:
        """Nobody waits: go on for a while, where the rest is billed anyway, unless too many calls do so already."""
        terms = self._tools.terms
        if flight.abort != "drain" or len(self._draining) >= terms.drains_max:
            flight.abandon()
            return
        self._draining[id] = asyncio.get_running_loop().call_later(terms.drain_s, flight.abandon)
        self._tools.telemetry.draining.set(len(self._draining))

    def _undrain(self, id: str) -> None:
        timer = self._draining.pop(id, None)
        if timer is not None:
            timer.cancel()
            self._tools.telemetry.draining.set(len(self._draining))


def call_id(tenant: str, request_id: str) -> str:
    """Follows from what the caller names, so that a repeat finds the same call."""
    return derived_id("mc", tenant, request_id)
