"""Aggregates on a log: load a state by folding its stream, decide on it, append what was decided.

accounts = Aggregates(log, "account", Account, evolve, Codec(EVENTS), clock)
executed = await accounts.execute("acc-1", lambda account: deposit(account, 100), context)
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Generic, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from synod.common.ids import uuid7

from eventlog.clock import Clock
from eventlog.codec import Codec, EventModel, UnknownEvent
from eventlog.errors import DuplicateEventId, UnknownEventType, VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, NewEvent, StoredEvent, StreamId
from eventlog.repeats import append_sealed
from eventlog.sealing import NO_KEYS, SubjectKey
from eventlog.vault import Vault

S = TypeVar("S")
E = TypeVar("E", bound=EventModel)

EventIds = Sequence[UUID] | Callable[[int], UUID]
"""The ids of the events decided: in their order, or as a function of their index from 0."""

_PAGE_EVENTS = 1_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotPolicy(Generic[S]):
    """Save the state every `every` events, and whenever folding took `fold_s` seconds or more.

    It is kept under the name `fold` and its `version`: raise that whenever the fold's result changes. What `load` cannot
    read (it raises ValueError, TypeError or LookupError), and what another version saved, is folded anew and replaced.
    """

    fold: str
    dump: Callable[[S], bytes]
    load: Callable[[bytes], S]
    every: int = 50
    fold_s: float = 0.02
    version: int = 1

    @property
    def key(self) -> str:
        """What the log keeps the snapshot under."""
        return f"{self.fold}@{self.version}"


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A state and the version of the stream it stands for; version 0 is the initial state.

    `personal`: folded from personal data that could be read. Such a state is kept nowhere, neither in the cache nor in
    a snapshot: an erasure would not reach it there.
    """

    state: S
    version: int
    personal: bool = False


@dataclass(frozen=True)
class Executed(Generic[S, E]):
    """What a decision led to. `position` is 0 if it led to no event; `events` is empty too if all was stored before."""

    state: S
    version: int
    position: int
    events: tuple[E, ...]


class Aggregates(Generic[S, E]):
    """All aggregates of one kind. `evolve` must not change the state it is given: states are cached.

    The cache holds `cache` states, least recently used out first, and is brought up to date by reading only what is
    newer. Commands on one aggregate take turns within a process; between processes the expected version decides. So a
    command whose events are stored upon a cached state has read nothing: it was the newest.
    With a `vault`, personal fields are sealed and opened; without one they cannot be appended, and read as ERASED.
    `stopwatch` tells seconds from any start.
    """

    def __init__(
        self,
        log: EventLog,
        aggregate: str,
        initial: Callable[[], S],
        evolve: Callable[[S, E], S],
        codec: Codec[E],
        clock: Clock,
        *,
        cache: int = 1024,
        snapshots: SnapshotPolicy[S] | None = None,
        vault: Vault | None = None,
        stopwatch: Callable[[], float] = perf_counter,
    ) -> None:
        self._log = log
        self._aggregate = aggregate
        self._initial = initial
        self._evolve = evolve
        self._codec = codec
        self._clock = clock
        self._cache_max = cache
        self._cache: OrderedDict[str, Loaded[S]] = OrderedDict()
        self._snapshots = snapshots
        self._vault = vault
        self._stopwatch = stopwatch
        self._forgotten = 0
        self._saving: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def load(self, id: str) -> Loaded[S]:
        """The newest state of an aggregate; the initial one if it has no events.

        Raises UnknownEventType if its stream holds what the codec does not know: half a fold would be a wrong state.
        """
        stream, forgotten = StreamId(self._aggregate, id), self._forgotten
        start = loaded = self._cache.get(id) or await self._start(stream)
        begun = self._stopwatch()
        while True:
            page = await self._log.read_stream(stream, after=loaded.version, limit=_PAGE_EVENTS)
            loaded = await self._advance(loaded, page)
            if len(page) < _PAGE_EVENTS:
                self._save_after_folding(stream, start, loaded, self._stopwatch() - begun)
                return self._remember(id, loaded, forgotten)

    async def load_as_of(self, id: str, moment: datetime) -> Loaded[S]:
        """The state an aggregate had at a moment, by when its events were recorded. Folded from the first one, and not
        kept. Raises as `load`.
        """
        stream, last = StreamId(self._aggregate, id), await self._log.position_at(moment)
        loaded = Loaded(self._initial(), 0)
        while True:
            page = await self._log.read_stream(stream, after=loaded.version, limit=_PAGE_EVENTS)
            by_then = [stored for stored in page if stored.position <= last]
            loaded = await self._advance(loaded, by_then)
            if len(by_then) < _PAGE_EVENTS:
                return loaded

    async def execute(
        self,
        id: str,
        decide: Callable[[S], Sequence[E]],
        context: Context,
        *,
        retries: int = 8,
        event_ids: EventIds | None = None,
    ) -> Executed[S, E]:
        """Append what `decide` returns for the newest state; no events is a decision too.

        `decide` is called again on the newer state after a conflict, at most `retries` times, then VersionConflict is
        raised; and once more where what was decided first cannot stand without looking. What `decide` raises passes
        through. With `event_ids` the command may be repeated without harm.
        """
        turn = self._turns.setdefault(id, asyncio.Lock())
        async with turn:
            executed = await self._execute_on_cached(id, decide, context, event_ids)
            if executed is not None:
                return executed
            while True:
                forgotten = self._forgotten
                loaded = await self.load(id)
                events = tuple(decide(loaded.state))
                try:
                    executed = await self._append(id, loaded, events, context, event_ids, forgotten)
                except VersionConflict:
                    retries -= 1
                    if retries < 0:
                        raise
                else:
                    return executed

    def forget(self) -> None:
        """Keep no state: over a PersonalLog, what was folded from the data of somebody who was erased must go."""
        self._forgotten += 1
        self._cache.clear()

    async def settle(self) -> None:
        """Wait for the snapshots that are being saved; call before the log is closed."""
        await asyncio.gather(*self._saving)

    async def _execute_on_cached(
        self, id: str, decide: Callable[[S], Sequence[E]], context: Context, event_ids: EventIds | None
    ) -> Executed[S, E] | None:
        """None unless the cached state proves to be the newest, which it does when the decision's events are stored upon
        it. A refusal, or that there is nothing to do, proves nothing.
        """
        cached, forgotten = self._cache.get(id), self._forgotten
        if cached is None:
            return None
        try:
            events = tuple(decide(cached.state))
        except Exception:  # noqa: BLE001  # whatever it is, the newest state is asked next and raises it again
            return None
        try:
            return await self._append(id, cached, events, context, event_ids, forgotten) if events else None
        except (VersionConflict, DuplicateEventId):
            return None

    async def _append(
        self,
        id: str,
        loaded: Loaded[S],
        events: tuple[E, ...],
        context: Context,
        event_ids: EventIds | None,
        forgotten: int,
    ) -> Executed[S, E]:
        if not events:
            return Executed(loaded.state, loaded.version, 0, ())
        stream = StreamId(self._aggregate, id)
        subjects = [self._codec.sealed_for(event) for event in events]
        async with self._sealing(context.tenant, subjects) as keys:
            new = self._encode(
                events, event_ids, [None if subject is None else keys.get(subject) for subject in subjects]
            )
            appended = await append_sealed(self._log, Append(stream, loaded.version, new, context))
        if appended.duplicate:
            newest = await self.load(id)
            return Executed(newest.state, newest.version, appended.position, ())
        (version,) = appended.versions
        folded = Loaded(self._fold(loaded.state, events), version, loaded.personal or bool(keys))
        after = self._remember(id, folded, forgotten)
        self._save_after_appending(stream, loaded.version, after)
        return Executed(after.state, version, appended.position, events)

    def _encode(
        self, events: tuple[E, ...], event_ids: EventIds | None, keys: Sequence[SubjectKey | None]
    ) -> tuple[NewEvent, ...]:
        """The events as they are stored, each with its key or none."""
        at = self._clock.now()
        return tuple(
            [
                self._codec.encode(event, id=id, at=at, key=key)
                for event, id, key in zip(events, _ids(event_ids, len(events)), keys, strict=True)
            ]
        )

    def _sealing(
        self, tenant: str, subjects: Iterable[str | None]
    ) -> AbstractAsyncContextManager[Mapping[str, SubjectKey]]:
        """The keys of the persons that events are about, held against an erasure while the events are appended."""
        named = [subject for subject in subjects if subject is not None]
        return nullcontext({}) if self._vault is None else self._vault.sealing(tenant, named)

    async def _advance(self, loaded: Loaded[S], page: Sequence[StoredEvent]) -> Loaded[S]:
        if not page:
            return loaded
        keys = NO_KEYS if self._vault is None else await self._vault.keys(page)
        events = [self._known(self._codec.decode(stored, keys)) for stored in page]
        return Loaded(self._fold(loaded.state, events), page[-1].version, loaded.personal or bool(keys.keys))

    def _fold(self, state: S, events: Sequence[E]) -> S:
        for event in events:
            state = self._evolve(state, event)
        return state

    def _known(self, event: E | UnknownEvent) -> E:
        if isinstance(event, UnknownEvent):
            raise UnknownEventType(event.type, event.version, f"aggregate {self._aggregate} cannot fold it")
        return event

    async def _start(self, stream: StreamId) -> Loaded[S]:
        if self._snapshots is not None:
            snapshot = await self._log.load_snapshot(stream, self._snapshots.key)
            if snapshot is not None:
                try:
                    return Loaded(self._snapshots.load(snapshot.data), snapshot.version)
                except (ValueError, TypeError, LookupError) as error:
                    _log.warning("snapshot of %s at version %d is unreadable: %r", stream, snapshot.version, error)
        return Loaded(self._initial(), 0)

    def _remember(self, id: str, loaded: Loaded[S], forgotten: int) -> Loaded[S]:
        """Keep a state, unless what it was folded from may have been read before `forget` was called."""
        if loaded.personal or forgotten != self._forgotten:
            return loaded
        kept = self._cache.get(id)
        if kept is None or kept.version < loaded.version:
            self._cache[id] = kept = loaded
        self._cache.move_to_end(id)
        while len(self._cache) > self._cache_max:
            self._cache.popitem(last=False)
        return kept

    def _save_after_folding(self, stream: StreamId, before: Loaded[S], after: Loaded[S], took_s: float) -> None:
        """Spare the next one a long fold, also of a stream that is only read."""
        policy, folded = self._snapshots, after.version - before.version
        if policy is not None and folded > 0 and (folded >= policy.every or took_s >= policy.fold_s):
            self._save_snapshot(stream, policy, after)

    def _save_after_appending(self, stream: StreamId, before: int, after: Loaded[S]) -> None:
        policy = self._snapshots
        if policy is not None and before // policy.every != after.version // policy.every:
            self._save_snapshot(stream, policy, after)

    def _save_snapshot(self, stream: StreamId, policy: SnapshotPolicy[S], after: Loaded[S]) -> None:
        """Save beside the caller's way: a snapshot is worth no command's time."""
        if after.personal:
            return
        saving = self._log.save_snapshot(stream, after.version, policy.key, policy.dump(after.state))
        task = asyncio.create_task(saving, name=f"snapshot {stream}")
        self._saving.add(task)
        task.add_done_callback(self._saved)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("%s was not saved: %s", task.get_name(), error)


def _ids(event_ids: EventIds | None, count: int) -> list[UUID]:
    if event_ids is None:
        return [uuid7() for _ in range(count)]
    if callable(event_ids):
        return [event_ids(index) for index in range(count)]
    if len(event_ids) < count:
        raise ValueError(f"{count} events were decided, ids are given for {len(event_ids)}")
    return list(event_ids[:count])
