"""Use cases of tool-executor: a call is recorded before its effect, run once, and its end is recorded."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from eventlog.aggregates import Aggregates
from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, StreamId
from pydantic import JsonValue
from synod.common.event import Event
from synod.common.ids import derived_id
from synod.common.subjects import SHARED_TENANT
from synod.common.values import Attribution
from synod.tool_executor.events import (
    SandboxCapabilitiesProbed,
    ToolCallRequested,
    ToolCallStarted,
    ToolRegistered,
)

from tool_executor import arguments, domain
from tool_executor.arguments import Arguments
from tool_executor.domain import Attempt, Reconcile, ToolCall
from tool_executor.errors import CallCancelled, CallUnknown, LedgerRefused, WallLimit
from tool_executor.flights import Flights
from tool_executor.grants import GrantIndex
from tool_executor.holds import Holds, NotedHold
from tool_executor.manifests import Catalogue, Offer
from tool_executor.outcomes import end_of
from tool_executor.slots import Slots
from tool_executor.spending import OVERRUN_S, Ledger, Reservation, reservation_of
from tool_executor.telemetry import Telemetry
from tool_executor.tools.runner import ToolResult
from tool_executor.tools.tool import Tool
from tool_executor.workers import Workers
from tool_executor.workspaces import Workspaces

SERVICE: Final = "tool-executor"
LOOK_AGAIN_S: Final = 1.0
"""How soon a caller who waits for a call in another process looks whether that process lives."""
ANSWER_MARGIN_S: Final = 0.5
"""What a tool is given less than its caller waits, so that a call that runs out of time is still answered."""

Decide = Callable[[ToolCall], Sequence[Event]]


class ToolRunner(Protocol):
    """Runs one tool. Raises ToolCallFailed; the tool's process is gone when it ends, also when it is cancelled."""

    async def run(
        self, tool: Tool, arguments: Mapping[str, JsonValue], workspace_dir: Path, deadline_s: float
    ) -> ToolResult: ...


@dataclass(frozen=True, slots=True)
class Order:
    """A call as it is asked for. ``time_left_s``: how long the caller waits; None for as long as the tool may take."""

    call_id: str
    tool: str
    arguments_json: str
    agent: str
    workspace_id: str
    attribution: Attribution
    time_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """``replayed``: an earlier request, not this one, had the call run."""

    call: ToolCall
    replayed: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """What the executor is made of."""

    log: EventLog
    codec: Codec[Event]
    clock: Clock
    catalogue: Catalogue
    runner: ToolRunner
    grants: GrantIndex
    flights: Flights
    slots: Slots
    workers: Workers
    workspaces: Workspaces
    telemetry: Telemetry
    ledger: Ledger
    holds: Holds
    worker: str


@dataclass(frozen=True, slots=True)
class _Job:
    """A call that may run: everything is checked."""

    id: str
    call_id: str
    agent: str
    offer: Offer
    arguments: Arguments
    directory: Path
    attempt: Attempt
    deadline_s: float
    reservation: Reservation | None
    context: Context


class ToolExecutor:
    """Tool calls of all tenants. The stream of a call is named by tenant and call id."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._calls: Aggregates[ToolCall, Event] = Aggregates(
            parts.log, "tool-call", ToolCall, domain.evolve_call, parts.codec, parts.clock
        )

    def forget(self) -> None:
        """Somebody was erased: keep no call that they asked for."""
        self._calls.forget()

    async def execute(self, order: Order, context: Context) -> Answer:
        """Run a call, or answer what the same call came to before. Raises Refused and SandboxUnavailable.

        A call that fails is an answer. The caller may leave: the call goes on, and its end is there when he asks again.
        """
        id = call_stream(context.tenant, order.call_id)
        given = arguments.parse(order.arguments_json)
        requested = (await self._calls.load(id)).state.requested
        if requested is None:
            began = await self._begin(id, order, given, context)
            return await self._outcome(id, began, order, context)
        domain.check_same(requested, order.tool, given.sha256, order.agent)
        return await self._outcome(id, False, order, context)

    async def call(self, call_id: str, context: Context) -> ToolCall:
        """A call as it stands. Raises CallUnknown."""
        return await self.settle(await self._known(call_id, context), context)

    async def cancel(self, call_id: str, context: Context) -> ToolCall:
        """Its process is gone when this returns. A call that has ended stays as it is. Raises CallUnknown."""
        id = await self._known(call_id, context)
        took_ms = self._parts.flights.duration_ms(id)
        executed = await self._calls.execute(id, lambda state: domain.cancel(state, context.actor, took_ms), context)
        await self._parts.flights.stop(id)
        return executed.state

    async def reconcile(self, call_id: str, command: Reconcile, context: Context) -> ToolCall:
        """Raises CallUnknown, NotReconcilable."""
        id = await self._known(call_id, context)
        await self.settle(id, context)
        return (await self._calls.execute(id, lambda state: domain.reconcile(state, command), context)).state

    async def settle(self, id: str, context: Context) -> ToolCall:
        """The call; if its worker has died in an at-most-once call, its outcome is recorded as unknown now."""
        state = (await self._calls.load(id)).state
        if state.status != "running" or not state.at_most_once or await self._is_flying(id, state):
            return state
        lost = state.attempt
        return (await self._calls.execute(id, lambda now: domain.give_up(now, lost, domain.WORKER_DIED), context)).state

    async def has_begun(self, id: str) -> bool:
        """Whether a call, named by its stream, is on record."""
        return (await self._calls.load(id)).version > 0

    async def _known(self, call_id: str, context: Context) -> str:
        """The stream of a call. Calls of other tenants do not exist for this one."""
        id = call_stream(context.tenant, call_id)
        if (await self._calls.load(id)).version == 0:
            raise CallUnknown(call_id)
        return id

    async def _outcome(self, id: str, began: bool, order: Order, context: Context) -> Answer:
        """Wait for the end of a call, wherever it runs; begin another attempt when its worker has died."""
        while True:
            if flight := self._parts.flights.get(id):
                return Answer(await asyncio.shield(flight.landed), replayed=not began)
            state = (await self._calls.load(id)).state
            if state.status != "running":
                return Answer(state, replayed=not began)
            if not await self._is_flying(id, state):
                began = await self._begin_again(id, state, order, context)
            elif self._parts.flights.get(id) is None:
                await self._parts.log.wait_for(await self._parts.log.head() + 1, LOOK_AGAIN_S)

    async def _is_flying(self, id: str, state: ToolCall) -> bool:
        assert state.started is not None
        if state.started.worker == self._parts.worker:
            return self._parts.flights.get(id) is not None
        return await self._parts.workers.alive(state.started.worker)

    # --- starting -------------------------------------------------------------------------------------------------------

    async def _begin(self, id: str, order: Order, given: Arguments, context: Context) -> bool:
        """Check everything, then request and start the call. False if somebody else has started it meanwhile."""
        offer = self._parts.catalogue.find(order.tool)
        arguments.check(offer.tool.name, offer.parameters, given)
        grant_id = self._parts.grants.find(context.tenant, order.agent, offer.tool.name)
        requested = _requested(order, offer, given, grant_id)
        job = await self._job(id, requested, offer, order.time_left_s, context)
        return await self._parts.flights.start(
            self._start(job, lambda state: domain.start(state, requested, job.attempt))
        )

    async def _begin_again(self, id: str, state: ToolCall, order: Order, context: Context) -> bool:
        """Another attempt of a call whose worker has died; False if there must not be one, or somebody else was faster."""
        requested, lost = state.requested, state.attempt
        assert requested is not None
        if state.at_most_once:
            await self.settle(id, context)
            return False
        offer = self._parts.catalogue.find(f"{requested.tool}@{requested.tool_version}")
        self._parts.grants.find(context.tenant, requested.agent, requested.tool)
        job = await self._job(id, requested, offer, order.time_left_s, context)
        return await self._parts.flights.start(self._start(job, lambda now: domain.start_again(now, lost, job.attempt)))

    async def _job(
        self, id: str, requested: ToolCallRequested, offer: Offer, time_left_s: float | None, context: Context
    ) -> _Job:
        level = self._parts.catalogue.level(offer.tool)
        return _Job(
            id=id,
            call_id=requested.call_id,
            agent=requested.agent,
            offer=offer,
            arguments=arguments.parse(requested.arguments_json),
            directory=await asyncio.to_thread(self._parts.workspaces.directory, context.tenant, requested.workspace_id),
            attempt=Attempt(self._parts.worker, level.name),
            deadline_s=deadline_s(offer.manifest.timeout_ms / 1000, time_left_s),
            reservation=reservation_of(requested, offer),
            context=context,
        )

    async def _start(self, job: _Job, decide: Decide) -> bool:
        """Hold what it may take, record the start, and only then let the tool run."""
        with ExitStack() as held:
            held.enter_context(self._parts.slots.taken(job.context.tenant, job.agent))
            if job.reservation is not None:
                await self._hold(job, job.reservation)
            executed = await self._calls.execute(job.id, decide, job.context)
            number = next((event.attempt for event in executed.events if isinstance(event, ToolCallStarted)), 0)
            if number:
                self._parts.flights.launch(job.id, self._run(job), partial(self._land, job, number), held.pop_all())
            return number > 0

    async def _hold(self, job: _Job, reservation: Reservation) -> None:
        """Noted first, so that it is given back should this worker die before it has recorded the start."""
        context = job.context
        noted = NotedHold(job.id, context.tenant, job.call_id, context.actor, context.correlation, self._parts.worker)
        await self._parts.holds.note(noted, self._parts.clock.now())
        try:
            await self._parts.ledger.reserve(reservation, context)
        except LedgerRefused:
            await self._parts.holds.forget(job.id)
            raise

    # --- running --------------------------------------------------------------------------------------------------------

    async def _run(self, job: _Job) -> ToolResult:
        parts, tool = self._parts, job.offer.tool
        with parts.telemetry.attempt(tool.name, job.call_id, job.context.correlation, job.agent):
            try:
                async with asyncio.timeout(job.deadline_s + OVERRUN_S):
                    return await parts.runner.run(tool, job.arguments.value, job.directory, job.deadline_s)
            except TimeoutError as error:
                raise WallLimit(f"the call, its sandbox included, took longer than {job.deadline_s:g} s") from error

    async def _land(self, job: _Job, number: int, work: "asyncio.Task[ToolResult]", took_ms: int) -> ToolCall:
        """Record how an attempt ended. Raises CallCancelled when the executor stops and the call remains open."""
        end = end_of(work, took_ms)
        executed = await self._calls.execute(job.id, lambda state: domain.finish(state, number, end), job.context)
        state = executed.state
        self._parts.telemetry.ended(job.offer.tool.name, state.status)
        if state.status == "running":
            raise CallCancelled(f"{domain.EXECUTOR_STOPPED}; repeat the call with the same call id", retryable=True)
        return state


async def announce(parts: Parts) -> None:
    """Register the tools that run here, each version once for each digest, and what this worker's sandboxes can do."""
    context = Context(tenant=SHARED_TENANT, actor=SERVICE)
    tools: Aggregates[ToolRegistered | None, Event] = Aggregates(
        parts.log, "tool", lambda: None, domain.evolve_tool, parts.codec, parts.clock
    )
    await asyncio.gather(
        *(
            tools.execute(tool_stream(manifest), partial(domain.register, manifest=manifest), context)
            for manifest in parts.catalogue.manifests
        )
    )
    probed = parts.codec.encode(_probed(parts), at=parts.clock.now())
    await parts.log.append(Append(StreamId("sandbox", parts.worker), ANY, (probed,), context))


def call_stream(tenant: str, call_id: str) -> str:
    return derived_id("call", tenant, call_id)


def tool_stream(manifest: ToolRegistered) -> str:
    return f"{manifest.name}-{manifest.tool_version.replace('.', '-')}"


def deadline_s(timeout_s: float, time_left_s: float | None) -> float:
    """How long a tool may run: its own timeout, or less if its caller waits less."""
    if time_left_s is None:
        return timeout_s
    return min(timeout_s, max(time_left_s - ANSWER_MARGIN_S, time_left_s / 2))


def _requested(order: Order, offer: Offer, given: Arguments, grant_id: str) -> ToolCallRequested:
    manifest = offer.manifest
    return ToolCallRequested(
        call_id=order.call_id,
        tool=manifest.name,
        tool_version=manifest.tool_version,
        tool_digest=manifest.digest,
        agent=order.agent,
        workspace_id=order.workspace_id,
        arguments_json=given.text,
        arguments_sha256=given.sha256,
        effect=manifest.effect,
        grant_id=grant_id,
        attribution=order.attribution.model_copy(update={"tool": manifest.name}),
        price_nano_usd=offer.price_nano_usd,
    )


def _probed(parts: Parts) -> SandboxCapabilitiesProbed:
    found = parts.catalogue.capabilities
    return SandboxCapabilitiesProbed(
        worker=parts.worker,
        best_level=found.best.name,
        levels=tuple(level.name for level in found.levels),
        landlock_abi=found.landlock_abi,
        reasons=tuple(f"{each.primitive}: {each.reason}" for each in found.missing),
    )
