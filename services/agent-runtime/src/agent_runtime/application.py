"""What callers may do: start, look at, cancel and replay runs; open conversations and speak in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.errors import VersionConflict
from eventlog.log import EventLog
from eventlog.records import NO_STREAM, Append, Context, NewEvent
from synod.agent_runtime.events import ConversationStarted, RunCancelRequested, RunStarted
from synod.common.event import Event
from synod.common.ids import derived_id, new_id
from synod.common.personal import ERASED
from synod.common.values import Tag

from agent_runtime.conversations import ConversationState, start_turn
from agent_runtime.domain import RunState
from agent_runtime.errors import ConversationNotFound, InvalidRequest, RequestIdReused, RunErased, RunNotFound
from agent_runtime.ports import Pinned, Ports
from agent_runtime.replay import Replayed, replay
from agent_runtime.work.children import budget_of
from agent_runtime.work.histories import Histories
from agent_runtime.work.store import Conversations, Loaded, Runs, conversation_stream, run_stream

INPUT_BYTES_MAX: Final = 64 * 1024
REQUEST_ID_CHARS_MAX: Final = 128
CONFLICTS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class StartRun:
    """An order to start a run. An empty request id is never the same as another."""

    request_id: str
    definition: str
    input: str
    budget_nano_usd: int = 0
    workspace_id: str = ""
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True)
class Runtime:
    """The use cases. The context says in whose tenant and name; its correlation is set to the run at the root."""

    log: EventLog
    runs: Runs
    conversations: Conversations
    histories: Histories
    codec: Codec[Event]
    clock: Clock
    ports: Ports
    new_id: Callable[[str], str] = new_id

    async def start_run(self, context: Context, order: StartRun) -> RunState:
        """Idempotent by request id. Raises InvalidRequest, DefinitionNotFound, RequestIdReused, CallError."""
        _check(order)
        run_id = self._derived("run", context.tenant, order.request_id)
        if (existing := await self.runs.load(run_id)) is not None:
            return _same(existing.state, order)
        pinned = await self.ports.registry.definition(order.definition)
        started = await self._started(run_id, pinned, order)
        await self._set_budget(started)
        return await self._begin(context, started, order)

    async def get_run(self, tenant: str, run_id: str) -> RunState:
        """Raises RunNotFound, also for a run of another tenant."""
        return (await self._loaded(tenant, run_id)).state

    async def cancel_run(self, context: Context, run_id: str, reason: str) -> RunState:
        """Ask a run, and with it every run below it, to end. A run that has ended stays as it is."""
        for _ in range(CONFLICTS_MAX):
            loaded = await self._loaded(context.tenant, run_id)
            if loaded.state.ended or loaded.state.cancel_reason is not None:
                return loaded.state
            event = RunCancelRequested(run_id=run_id, reason=reason or f"cancelled by {context.actor}")
            correlated = replace(context, correlation=loaded.state.started.root_run_id)
            try:
                await self.log.append(Append(run_stream(run_id), loaded.version, (self._new(event),), correlated))
            except VersionConflict:
                continue
        return (await self._loaded(context.tenant, run_id)).state

    async def replay_run(self, tenant: str, run_id: str) -> Replayed:
        """Fold the run and all below it again and compare every decision. Asks nobody but the log. Raises RunErased."""
        run = await self.get_run(tenant, run_id)
        if run.started.input == ERASED:
            raise RunErased(run_id)
        histories = await self.histories.below(run_id)
        conversation = await self._conversation_of(run)
        return replay(run_id, histories, conversation)

    async def create_conversation(self, context: Context, request_id: str, definition: str) -> ConversationState:
        """Idempotent by request id. Raises InvalidRequest for a team."""
        conversation_id = self._derived("conv", context.tenant, request_id)
        if (existing := await self.conversations.load(conversation_id)) is not None:
            return existing
        pinned = await self.ports.registry.definition(definition)
        if pinned.kind != "Agent":
            raise InvalidRequest("definition", definition, "is a team; a conversation is held with one agent")
        event = ConversationStarted(
            conversation_id=conversation_id,
            definition_name=pinned.name,
            definition_digest=pinned.digest,
            spec_json=pinned.spec_json,
        )
        correlated = replace(context, correlation=conversation_id)
        await self._append_once(
            Append(conversation_stream(conversation_id), NO_STREAM, (self._new(event),), correlated)
        )
        return await self.get_conversation(context.tenant, conversation_id)

    async def get_conversation(self, tenant: str, conversation_id: str) -> ConversationState:
        """Raises ConversationNotFound, also for a conversation of another tenant."""
        state = await self.conversations.load(conversation_id)
        if state is None or state.tenant != tenant:
            raise ConversationNotFound(conversation_id)
        return state

    async def send_message(self, context: Context, request_id: str, conversation_id: str, text: str) -> RunState:
        """A turn, as a run. The turn and its run begin in one append. Raises TurnInProgress."""
        conversation = await self.get_conversation(context.tenant, conversation_id)
        order = StartRun(request_id, conversation.started.definition_name, text)
        _check(order)
        run_id = self._derived("run", conversation_id, request_id)
        if (existing := await self.runs.load(run_id)) is not None:
            return _same(existing.state, order)
        turn = start_turn(conversation, run_id, text)
        begun = conversation.started
        pinned = Pinned(begun.definition_name, "Agent", 0, begun.definition_digest, begun.spec_json)
        started = await self._started(run_id, pinned, order, conversation_id)
        await self._set_budget(started)
        stream = conversation_stream(conversation_id)
        correlated = replace(context, correlation=run_id)
        also = Append(stream, conversation.version, (self._new(turn),), correlated)
        return await self._begin(context, started, order, also)

    async def _started(self, run_id: str, pinned: Pinned, order: StartRun, conversation_id: str = "") -> RunStarted:
        agent_id = await self.ports.registry.ensure_agent(pinned) if pinned.kind == "Agent" else ""
        limits = [limit for limit in (order.budget_nano_usd, budget_of(pinned.spec_json)) if limit]
        return RunStarted(
            run_id=run_id,
            root_run_id=run_id,
            definition_name=pinned.name,
            definition_digest=pinned.digest,
            definition_kind=pinned.kind,
            spec_json=pinned.spec_json,
            agent_id=agent_id,
            input=order.input,
            conversation_id=conversation_id,
            workspace_id=order.workspace_id or run_id,
            budget_nano_usd=min(limits, default=0),
            tags=order.tags,
        )

    async def _set_budget(self, started: RunStarted) -> None:
        """Before the run exists, so that not even its first call can go unchecked."""
        if started.budget_nano_usd:
            await self.ports.ledger.set_budget(started.run_id, started.budget_nano_usd, root_run_id=started.run_id)

    async def _begin(self, context: Context, started: RunStarted, order: StartRun, *others: Append) -> RunState:
        correlated = replace(context, correlation=started.run_id)
        await self._append_once(
            Append(run_stream(started.run_id), NO_STREAM, (self._new(started),), correlated), *others
        )
        state = await self.get_run(context.tenant, started.run_id)
        return _same(state, order)

    async def _append_once(self, first: Append, *others: Append) -> None:
        """Append unless another request with the same id was faster. Any other conflict is the caller's."""
        try:
            await self.log.append(first, *others)
        except VersionConflict as conflict:
            if conflict.stream != first.stream:
                raise

    async def _loaded(self, tenant: str, run_id: str) -> Loaded:
        loaded = await self.runs.load(run_id)
        if loaded is None or loaded.state.tenant != tenant:
            raise RunNotFound(run_id)
        return loaded

    async def _conversation_of(self, state: RunState) -> ConversationState | None:
        conversation_id = state.started.conversation_id
        return await self.conversations.load(conversation_id) if conversation_id else None

    def _derived(self, prefix: str, scope: str, request_id: str) -> str:
        if len(request_id) > REQUEST_ID_CHARS_MAX:
            raise InvalidRequest("request_id", request_id, f"has more than {REQUEST_ID_CHARS_MAX} characters")
        return derived_id(prefix, scope, request_id) if request_id else self.new_id(prefix)

    def _new(self, event: Event) -> NewEvent:
        return self.codec.encode(event, at=self.clock.now())


def _check(order: StartRun) -> None:
    if not order.definition:
        raise InvalidRequest("definition", "", "is empty; name an agent or a team (name, name@version or digest)")
    if not order.input:
        raise InvalidRequest("input", "", "is empty; say what the run is to do")
    size = len(order.input.encode())
    if size > INPUT_BYTES_MAX:
        raise InvalidRequest("input", f"{size} bytes", f"is over the limit of {INPUT_BYTES_MAX} bytes")
    if order.budget_nano_usd < 0:
        raise InvalidRequest("budget_nano_usd", str(order.budget_nano_usd), "is negative; give 0 for no limit")


def _same(state: RunState, order: StartRun) -> RunState:
    """The run that an order started earlier. Raises RequestIdReused when it was another order."""
    started = state.started
    named = order.definition.partition("@")[0] in (started.definition_name, started.definition_digest)
    if started.input != order.input or started.tags != order.tags or not named:
        raise RequestIdReused(order.request_id, state.id)
    return state
