"""Runs and conversations as folds of their streams, kept in memory and brought up to date by what is newer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from eventlog.codec import Codec, UnknownEvent
from eventlog.log import EventLog
from eventlog.records import StoredEvent, StreamId
from synod.agent_runtime.events import EVENTS, ConversationStarted, RunStarted
from synod.common.event import Event

from agent_runtime.conversations import ConversationState, evolve_conversation
from agent_runtime.domain import RunState, begin, evolve
from agent_runtime.errors import HistoryInvalid

PAGE_EVENTS: Final = 1000
CACHE_RUNS_MAX: Final = 4096


def run_stream(run_id: str) -> StreamId:
    return StreamId("run", run_id)


def conversation_stream(conversation_id: str) -> StreamId:
    return StreamId("conversation", conversation_id)


def codec() -> Codec[Event]:
    return Codec(EVENTS, sealed_below=True)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run at one version of its stream; `forgotten` says since which call of `forget` it was folded."""

    state: RunState
    version: int
    forgotten: int = 0


class Runs:
    """The newest state of any run. A run that ended is never read again while it is in memory."""

    def __init__(self, log: EventLog, codec: Codec[Event], cache_max: int = CACHE_RUNS_MAX) -> None:
        self._log = log
        self._codec = codec
        self._cache: OrderedDict[str, Loaded] = OrderedDict()
        self._cache_max = cache_max
        self._forgotten = 0

    async def load(self, run_id: str) -> Loaded | None:
        """None when there is no such run. Raises HistoryInvalid for a stream that is no run."""
        loaded = self._cache.get(run_id)
        if loaded is not None and loaded.state.ended:
            return loaded
        return await self.newer(run_id, loaded)

    async def newer(self, run_id: str, loaded: Loaded | None) -> Loaded | None:
        """`loaded` with the events that came after it; folded anew if somebody was erased since."""
        if loaded is not None and self.is_stale(loaded):
            loaded = None
        forgotten = self._forgotten
        while True:
            after = loaded.version if loaded else 0
            page = await self._log.read_stream(run_stream(run_id), after=after, limit=PAGE_EVENTS)
            for stored in page:
                loaded = self.fold(loaded, stored)
            if len(page) < PAGE_EVENTS:
                return self.remember(replace(loaded, forgotten=forgotten)) if loaded else None

    def fold(self, loaded: Loaded | None, stored: StoredEvent) -> Loaded:
        event = known(self._codec, stored)
        if loaded is not None:
            return Loaded(evolve(loaded.state, event, stored.occurred_at), stored.version)
        if not isinstance(event, RunStarted):
            raise HistoryInvalid(stored.stream.id, f"it begins with {stored.type} instead of RunStarted")
        state = begin(event, stored.tenant, stored.actor, stored.occurred_at, stored.traceparent)
        return Loaded(state, stored.version)

    def forget(self) -> None:
        """Somebody was erased: keep no state that was folded from what they said."""
        self._forgotten += 1
        self._cache.clear()

    def is_stale(self, loaded: Loaded) -> bool:
        """Whether somebody was erased since it was folded: it may hold what they said."""
        return loaded.forgotten != self._forgotten

    def remember(self, loaded: Loaded) -> Loaded:
        if self.is_stale(loaded):
            return loaded
        run_id = loaded.state.id
        kept = self._cache.get(run_id)
        if kept is None or kept.version < loaded.version:
            self._cache[run_id] = kept = loaded
        self._cache.move_to_end(run_id)
        while len(self._cache) > self._cache_max:
            self._cache.popitem(last=False)
        return kept


class Conversations:
    """Conversations, folded from their beginning or from memory."""

    def __init__(self, log: EventLog, codec: Codec[Event], cache_max: int = CACHE_RUNS_MAX) -> None:
        self._log = log
        self._codec = codec
        self._cache: OrderedDict[str, ConversationState] = OrderedDict()
        self._cache_max = cache_max
        self._forgotten = 0

    async def load(self, conversation_id: str) -> ConversationState | None:
        """None when there is no such conversation."""
        state, forgotten = self._cache.get(conversation_id), self._forgotten
        while True:
            after = state.version if state else 0
            stream = conversation_stream(conversation_id)
            page = await self._log.read_stream(stream, after=after, limit=PAGE_EVENTS)
            for stored in page:
                state = self._fold(state, stored)
            if len(page) < PAGE_EVENTS:
                if state is not None and forgotten == self._forgotten:
                    self._remember(state)
                return state

    def forget(self) -> None:
        """Somebody was erased: keep no state that was folded from what they said."""
        self._forgotten += 1
        self._cache.clear()

    def _fold(self, state: ConversationState | None, stored: StoredEvent) -> ConversationState:
        event = known(self._codec, stored)
        if state is not None:
            return evolve_conversation(state, event, stored.occurred_at)
        if not isinstance(event, ConversationStarted):
            raise HistoryInvalid(stored.stream.id, f"it begins with {stored.type} instead of ConversationStarted")
        return ConversationState(event, stored.tenant, stored.occurred_at)

    def _remember(self, state: ConversationState) -> None:
        self._cache[state.started.conversation_id] = state
        self._cache.move_to_end(state.started.conversation_id)
        while len(self._cache) > self._cache_max:
            self._cache.popitem(last=False)


def known(codec: Codec[Event], stored: StoredEvent) -> Event:
    """The decoded event. Raises HistoryInvalid for a type that this release does not know: half a fold is no fold."""
    event = codec.decode(stored)
    if isinstance(event, UnknownEvent):
        raise HistoryInvalid(stored.stream.id, f"event type {stored.type} is unknown to this release")
    return event
