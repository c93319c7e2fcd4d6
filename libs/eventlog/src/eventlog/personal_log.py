"""A log for whom sealing is somebody else's business: it stands before a log, seals what is personal and opens it again.

For a service whose every event may hold what a person wrote: its codec (`Codec(..., sealed_below=True)`), its folds and its
views know nothing of keys. Whom an event is about is whom it names, else the actor in whose name it is appended.

An erasure must not overtake an append: what was sealed with a key that is destroyed before the events are stored would be
lost without a trace in the log. So every append is stored only if the stream of that person's erasures is where it was when
the key was fetched; this costs no question to the database, and keys are kept until an erasure shows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from synod.common.event import Event
from synod.common.personal import data_subject_of, holds_personal_data, personal_paths

from eventlog.errors import KeyUnusable, VersionConflict
from eventlog.log import Auditing, EventLog
from eventlog.records import (
    EVERYTHING,
    Append,
    Appended,
    Context,
    Filter,
    NewEvent,
    Page,
    Snapshot,
    StoredEvent,
    StreamId,
    Verified,
    VerifiedStream,
)
from eventlog.repeats import append_sealed
from eventlog.sealing import SubjectKey, opened_json, sealed_json
from eventlog.vault import SubjectErased, Vault, subject_stream

_KEYS_KEPT_MAX: Final = 4_096
_IDLE_WAIT_S: Final = 1.0
_ERASURES_MAX: Final = 8
"""So many erasures of one person may come between the decision on an append and its commit."""


async def follow_erasures(log: EventLog, forget: Callable[[], None]) -> None:
    """Call `forget` now and after every erasure, in whatever process: for who keeps what was folded from a PersonalLog.

    Runs until cancelled. Raises LogUnavailable; start it again then.
    """
    position = await log.head()
    forget()
    while True:
        await log.wait_for(position + 1, _IDLE_WAIT_S)
        page = await log.next_page(position, where=Filter(types=frozenset({SubjectErased.type_name()})))
        position = page.position
        if page.events:
            forget()


@dataclass(frozen=True, slots=True)
class _Held:
    """A person's key, and the version of the stream of their erasures that it stands for."""

    key: SubjectKey
    erasures: int

    def guard(self, context: Context) -> Append:
        return Append(subject_stream(self.key.tenant, self.key.subject), self.erasures, (), context)


class PersonalLog:
    """An EventLog over `stored`; `classes` are the events that may hold personal data. What `vault` has no key for reads as
    ERASED.

    Snapshots are not kept: an erasure would not reach what is in them.
    """

    def __init__(self, stored: EventLog, vault: Vault, classes: Iterable[type[Event]]) -> None:
        self.stored = stored
        self._vault = vault
        self._classes = {cls.type_name(): cls for cls in classes if holds_personal_data(cls)}
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()

    async def append(self, *appends: Append) -> Appended:
        """As EventLog.append. KeyUnusable if a person's data is erased faster than it can be stored."""
        for _ in range(_ERASURES_MAX):
            sealing = _Sealing()
            sealed = [await self._sealed(append, sealing) for append in appends]
            guards = [held.guard(appends[0].context) for held in sealing.held]
            try:
                appended = await append_sealed(self.stored, *sealed, *guards)
            except VersionConflict as conflict:
                if conflict.stream not in {guard.stream for guard in guards}:
                    raise
                for held in sealing.held:
                    self._held.pop((held.key.tenant, held.key.subject), None)
                continue
            return replace(appended, versions=appended.versions[: len(appends)])
        raise KeyUnusable("a person's key", "it is destroyed again and again while it is used")

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return await self._opened(await self.stored.read(after, limit=limit, where=where))

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        page = await self.stored.next_page(after, limit=limit, where=where)
        return page._replace(events=await self._opened(page.events))

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        return await self._opened(await self.stored.read_stream(stream, after=after, limit=limit))

    async def position_at(self, moment: datetime) -> int:
        return await self.stored.position_at(moment)

    async def head(self) -> int:
        return await self.stored.head()

    async def wait_for(self, position: int, timeout_s: float) -> int:
        return await self.stored.wait_for(position, timeout_s)

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        return await self.stored.verify(first, last)

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        return await self.stored.verify_stream(stream)

    async def audit(self, audit: Auditing) -> None:
        await self.stored.audit(audit)

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        """Keep nothing."""

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        return None

    async def _sealed(self, append: Append, sealing: _Sealing) -> Append:
        events = [await self._sealed_event(event, append.context, sealing) for event in append.events]
        return replace(append, events=tuple(events))

    async def _sealed_event(self, new: NewEvent, context: Context, sealing: _Sealing) -> NewEvent:
        cls = self._classes.get(new.type)
        if cls is None:
            return new
        event = cls.model_validate_json(new.data)
        if not any(personal_paths(event)):
            return new
        subject = new.data_subject or data_subject_of(event) or context.actor
        held = await self._key(context.tenant, subject)
        sealing.add(held)
        return replace(new, data=sealed_json(event, new.id, held.key), data_subject=subject)

    async def _key(self, tenant: str, subject: str) -> _Held:
        held = self._held.get((tenant, subject))
        if held is None:
            # First the erasures: one that comes in between is noticed, for it makes the version another one.
            erasures = await self._vault.erasures(tenant, subject)
            held = self._held[tenant, subject] = _Held(await self._vault.key(tenant, subject), erasures)
            while len(self._held) > _KEYS_KEPT_MAX:
                self._held.popitem(last=False)
        return held

    async def _opened(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        keys = await self._vault.keys(events)
        return [event._replace(data=opened_json(event, keys)) for event in events] if keys.keys else list(events)


class _Sealing:
    """The keys that one append was sealed with, each once."""

    def __init__(self) -> None:
        self.held: list[_Held] = []

    def add(self, held: _Held) -> None:
        if held not in self.held:
            self.held.append(held)
