"""The recorded events of a run and of every run below it, stream by stream."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import StoredEvent
from synod.agent_runtime.events import StepStarted
from synod.common.event import Event

from agent_runtime.replay import History, Recorded
from agent_runtime.work.store import PAGE_EVENTS, known, run_stream


@dataclass(frozen=True, slots=True)
class Histories:
    """Follows the runs that each run names as started: a log of any length is read only where the run is."""

    log: EventLog
    codec: Codec[Event]

    async def below(self, run_id: str) -> dict[str, History]:
        """The run's own history and those of all runs below it, by run id."""
        return {stored[0].stream.id: self._history(stored) for stored in (await self.streams(run_id)).values()}

    async def streams(self, run_id: str) -> dict[str, list[StoredEvent]]:
        """The same events as they are stored. A run that was never started is left out."""
        found: dict[str, list[StoredEvent]] = {}
        wanted = deque([run_id])
        while wanted:
            stored = await self._stream(wanted.popleft())
            if stored:
                found[stored[0].stream.id] = stored
            wanted.extend(child for event in stored for child in self._children(event))
        return found

    async def _stream(self, run_id: str) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        while True:
            page = await self.log.read_stream(run_stream(run_id), after=len(events), limit=PAGE_EVENTS)
            events += page
            if len(page) < PAGE_EVENTS:
                return events

    def _children(self, stored: StoredEvent) -> tuple[str, ...]:
        if stored.type != StepStarted.type_name():
            return ()
        event = known(self.codec, stored)
        return event.child_run_ids if isinstance(event, StepStarted) else ()

    def _history(self, events: list[StoredEvent]) -> History:
        first = events[0]
        recorded = tuple(Recorded(stored.position, known(self.codec, stored), stored.occurred_at) for stored in events)
        return History(first.stream.id, first.tenant, first.actor, recorded)
