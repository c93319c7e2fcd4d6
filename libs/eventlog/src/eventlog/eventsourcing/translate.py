"""Between the library's records and the log's: the only file that knows both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Literal
from uuid import UUID

from eventsourcing.persistence import Notification
from eventsourcing.persistence import StoredEvent as LibraryEvent
from synod.common.ids import derived_uuid

from eventlog.eventsourcing.names import TypeNames, from_token, to_token
from eventlog.records import Append, Context, NewEvent, StoredEvent, StreamId

TYPE_VERSION = 1
"""Of every event: the library keeps the version of a class inside the state."""


@dataclass(frozen=True, slots=True)
class Translation:
    """How one application's events are written in its log."""

    aggregate: str
    first_version: Literal[0, 1]
    originator_ids: Literal["uuid", "text"]
    types: TypeNames

    def stream(self, originator_id: UUID | str) -> StreamId:
        """The stream of an aggregate; ValueError for an id that is too long, or no UUID where UUIDs are expected."""
        if self.originator_ids == "uuid" and not isinstance(originator_id, UUID):
            originator_id = UUID(originator_id)
        return StreamId(self.aggregate, to_token(str(originator_id)))

    def version(self, originator_version: int) -> int:
        """The version in the log, which counts from 1."""
        return originator_version + 1 - self.first_version

    def appends(
        self, events: Sequence[LibraryEvent], times: Sequence[datetime], context: Context, call: str
    ) -> tuple[Append, ...]:
        """The events in their order, one append for each run of versions that follow each other in one stream.

        `call` becomes part of the ids: the same events with the same call are a retry, with another call a conflict.
        """
        return tuple(self._append(run, times[start:], context, call) for start, run in _runs(events))

    def library_event(self, event: StoredEvent) -> LibraryEvent:
        return LibraryEvent(
            originator_id=self._originator_id(event.stream),
            originator_version=event.version - 1 + self.first_version,
            topic=self.types.topic_of(event.type),
            state=event.data,
        )

    def notification(self, event: StoredEvent) -> Notification:
        return Notification(
            originator_id=self._originator_id(event.stream),
            originator_version=event.version - 1 + self.first_version,
            topic=self.types.topic_of(event.type),
            state=event.data,
            id=event.position,
        )

    def _originator_id(self, stream: StreamId) -> UUID | str:
        return UUID(stream.id) if self.originator_ids == "uuid" else from_token(stream.id)

    def _append(self, run: Sequence[LibraryEvent], times: Sequence[datetime], context: Context, call: str) -> Append:
        stream = self.stream(run[0].originator_id)
        expected = self.version(run[0].originator_version) - 1
        if expected < 0:
            raise ValueError(
                f"originator_version {run[0].originator_version} of {stream} is below {self.first_version}; "
                f"set EVENTLOG_FIRST_VERSION to the aggregates' INITIAL_VERSION"
            )
        new = tuple(self._new_event(stream, event, at, call) for event, at in zip(run, times, strict=False))
        return Append(stream, expected, new, context)

    def _new_event(self, stream: StreamId, event: LibraryEvent, at: datetime, call: str) -> NewEvent:
        content = sha256(event.state).hexdigest()
        event_id = derived_uuid(str(stream), str(event.originator_version), event.topic, content, call)
        return NewEvent(self.types.type_of(event.topic), TYPE_VERSION, event.state, event_id, at)


def _runs(events: Sequence[LibraryEvent]) -> Iterator[tuple[int, Sequence[LibraryEvent]]]:
    """Where each run starts, and its events."""
    start = 0
    for end in range(1, len(events) + 1):
        if end == len(events) or not _follows(events[end - 1], events[end]):
            yield start, events[start:end]
            start = end


def _follows(before: LibraryEvent, after: LibraryEvent) -> bool:
    return before.originator_id == after.originator_id and before.originator_version + 1 == after.originator_version
