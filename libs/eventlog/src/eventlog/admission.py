"""Which requests of a group are stored: the pure core of a log.

A group is decided under the lock of the head: `Admission` starts from the head, the versions of the streams named and
the stored events whose ids the group repeats, and admits request after request in the order of arrival. What it
admitted is in `accepted`, numbered, hashed, ready to be stored. A refused request leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from eventlog.chain import sealed
from eventlog.errors import DuplicateEventId, EventTooLarge, VersionConflict
from eventlog.limits import Limits
from eventlog.records import ANY, Append, Appended, NewEvent, StoredEvent, StreamId

Request = Sequence[Append]
"""The appends of one caller: all of them are stored, or none."""


class Known(NamedTuple):
    """What a stored event shows of itself to one that repeats its id."""

    position: int
    stream: StreamId
    version: int
    type: str
    type_version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Position and hash of the last event."""

    position: int
    hash: bytes


class Admission:
    """Decides the requests of one group. Raises what the caller of a refused request shall see."""

    def __init__(
        self, head: Head, versions: dict[StreamId, int], known: dict[UUID, Known], recorded_at: datetime
    ) -> None:
        self.head = head
        self.accepted: list[StoredEvent] = []
        self._versions = versions
        self._known = known
        self._recorded_at = recorded_at

    def admit(self, request: Request) -> Appended:
        """Number and hash the request's events.

        Raises VersionConflict, or DuplicateEventId if only some of the ids are stored or stand for other content.
        """
        ids = [event.id for append in request for event in append.events]
        repeated = [event_id for event_id in ids if event_id in self._known]
        if repeated:
            return self._repeat(request, len(repeated) == len(ids))
        self._check_versions(request)
        versions = tuple(self._accept(append) for append in request)
        return Appended(self.head.position, versions, duplicate=False)

    def _repeat(self, request: Request, complete: bool) -> Appended:
        last = 0
        versions = []
        for append in request:
            version = self._versions.get(append.stream, 0)
            for event in append.events:
                known = self._same(append.stream, event, complete)
                version, last = known.version, max(last, known.position)
            versions.append(version)
        return Appended(last, tuple(versions), duplicate=True)

    def _same(self, stream: StreamId, event: NewEvent, complete: bool) -> Known:
        known = self._known.get(event.id)
        if known is None or not complete:
            raise DuplicateEventId(event.id, "some events of the request are stored already, others are not")
        if (known.stream, known.type, known.type_version, known.data) != (
            stream,
            event.type,
            event.type_version,
            event.data,
        ):
            raise DuplicateEventId(event.id, f"stored at position {known.position} with other content")
        return known

    def _check_versions(self, request: Request) -> None:
        ahead: dict[StreamId, int] = {}
        for append in request:
            actual = ahead.get(append.stream, self._versions.get(append.stream, 0))
            if append.expected is not ANY and append.expected != actual:
                raise VersionConflict(append.stream, append.expected, actual)
            ahead[append.stream] = actual + len(append.events)

    def _accept(self, append: Append) -> int:
        version = self._versions.get(append.stream, 0)
        for event in append.events:
            version += 1
            self._store(append, event, version)
        self._versions[append.stream] = version
        return version

    def _store(self, append: Append, event: NewEvent, version: int) -> None:
        position, context = self.head.position + 1, append.context
        stored = sealed(
            StoredEvent(
                position=position,
                stream=append.stream,
                version=version,
                id=event.id,
                type=event.type,
                type_version=event.type_version,
                tenant=context.tenant,
                data_subject=event.data_subject,
                occurred_at=event.occurred_at,
                recorded_at=self._recorded_at,
                causation=context.causation,
                correlation=context.correlation,
                actor=context.actor,
                traceparent=context.traceparent,
                data=event.data,
                previous_hash=self.head.hash,
                hash=b"",
            ),
            self.head.hash,
        )
        self.accepted.append(stored)
        self._known[event.id] = Known(position, append.stream, version, event.type, event.type_version, event.data)
        self.head = Head(position, stored.hash)


def check_request(request: Request, limits: Limits) -> int:
    """The number of events of a request that is well formed in itself.

    Raises ValueError (nothing or too much to append), EventTooLarge, DuplicateEventId (an id twice in the request).
    """
    events = [event for append in request for event in append.events]
    if not 1 <= len(events) <= limits.request_events_max:
        raise ValueError(f"a request has 1 to {limits.request_events_max} events, this one has {len(events)}")
    for event in events:
        if len(event.data) > limits.data_bytes_max:
            raise EventTooLarge(event.type, len(event.data), limits.data_bytes_max)
    _check_distinct(event.id for event in events)
    return len(events)


def _check_distinct(ids: Iterable[UUID]) -> None:
    seen: set[UUID] = set()
    for event_id in ids:
        if event_id in seen:
            raise DuplicateEventId(event_id, "occurs twice in one request")
        seen.add(event_id)
