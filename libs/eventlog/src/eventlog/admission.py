"""Which requests of a group are stored: the pure core of a log.

A group is decided under the lock of the head: `Admission` starts from the head, the ends of the streams named and the
stored events whose ids the group repeats, and admits request after request in the order of arrival. What it admitted is
in `accepted`, numbered, hashed, ready to be stored; `head` and `streams` are then as they will be. A refused request
leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from eventlog.chain import GENESIS, link_facts
from eventlog.errors import DuplicateEventId, EventLogError, EventTooLarge, FenceLost, VersionConflict
from eventlog.limits import Limits
from eventlog.records import ANY, Append, Appended, NewEvent, StoredEvent, StreamId
from eventlog.side_table import SideRow

BEGINNING: Final = datetime.fromtimestamp(0, UTC)
"""Before anything was recorded."""

Request = Sequence[Append]
"""The appends of one caller: all of them are stored, or none."""


def streams_of(request: Request) -> Iterator[StreamId]:
    """Every stream whose version the decision depends on."""
    for append in request:
        yield append.stream
        if append.fence is not None:
            yield append.fence.stream


Outcome = Appended | EventLogError
"""What a request came to."""


def rows_beside(requests: Sequence[Request], outcomes: Sequence[Outcome]) -> list[SideRow]:
    """The rows of the requests that are stored now. Those of a repeat were stored with its events."""
    return [
        row
        for request, outcome in zip(requests, outcomes, strict=True)
        if isinstance(outcome, Appended) and not outcome.duplicate
        for append in request
        for row in append.rows
    ]


class Known(NamedTuple):
    """What a stored event shows of itself to one that repeats its id."""

    position: int
    stream: StreamId
    version: int
    type: str
    type_version: int
    data: bytes


Stored = Known | StoredEvent | EventLogError
"""What an id stands for in the log; an error if that cannot be read: the id is taken, and nothing more is known."""


class Head(NamedTuple):
    """Position and hash of the last event, the last position that is archived, and when the newest event was recorded."""

    position: int
    hash: bytes
    archived_to: int = 0
    recorded_at: datetime = BEGINNING


class StreamHead(NamedTuple):
    """Version and hash of the last event of a stream; None for a hash that cannot be had, then nothing names it."""

    version: int
    hash: bytes | None


NEW_STREAM: Final = StreamHead(0, GENESIS)
"""Of a stream without events."""


class Admission:
    """Decides the requests of one group. Raises what the caller of a refused request shall see.

    `now` counts unless the head was recorded later: clocks are set back, and differ, but the order of recording is that
    of the positions, so that what lies in a time can be found by position.
    """

    def __init__(
        self, head: Head, streams: dict[StreamId, StreamHead], known: dict[UUID, Stored], now: datetime
    ) -> None:
        self.accepted: list[StoredEvent] = []
        self.streams = streams
        self._before = head
        self._position = head.position
        self._hash = head.hash
        self._known = known
        self._own: dict[int, StoredEvent] = {}
        self._recorded_at = max(now, head.recorded_at)

    @property
    def head(self) -> Head:
        """The head as it will be."""
        if not self.accepted:
            return self._before
        return Head(self._position, self._hash, self._before.archived_to, self._recorded_at)

    def admit(self, request: Request) -> Appended:
        """Number and hash the request's events.

        Raises FenceLost, VersionConflict, or DuplicateEventId if only some of the ids are stored or stand for other content;
        of a repeated id that cannot be read, the error why not.
        """
        ids = [event.id for append in request for event in append.events]
        if self._repeats(ids):
            return self._repeat(request, all(self._stored(event_id) is not None for event_id in ids))
        self._check_fences(request)
        self._check_versions(request)
        versions = tuple([self._accept(append) for append in request])
        return Appended(self._position, versions, duplicate=False)

    def _repeats(self, ids: Sequence[UUID]) -> bool:
        """Whether any of the ids is stored, or was admitted before. By number: a UUID is hashed in Python."""
        if self._own and not self._own.keys().isdisjoint([event_id.int for event_id in ids]):
            return True
        return bool(self._known) and not self._known.keys().isdisjoint(ids)

    def _stored(self, event_id: UUID) -> Stored | None:
        return self._own.get(event_id.int) or self._known.get(event_id)

    def _repeat(self, request: Request, complete: bool) -> Appended:
        last = 0
        versions = []
        for append in request:
            version = self._version(append.stream)
            for event in append.events:
                known = self._same(append.stream, event, complete)
                version, last = known.version, max(last, known.position)
            versions.append(version)
        return Appended(last, tuple(versions), duplicate=True)

    def _same(self, stream: StreamId, event: NewEvent, complete: bool) -> Known | StoredEvent:
        known = self._stored(event.id)
        if known is None or not complete:
            raise DuplicateEventId(event.id, "some events of the request are stored already, others are not")
        if isinstance(known, EventLogError):
            raise known
        if (known.stream, known.type, known.type_version, known.data) != (
            stream,
            event.type,
            event.type_version,
            event.data,
        ):
            raise DuplicateEventId(event.id, f"stored at position {known.position} with other content")
        return known

    def _version(self, stream: StreamId) -> int:
        return self.streams.get(stream, NEW_STREAM).version

    def _check_versions(self, request: Request) -> None:
        """That each append finds its stream as expected, with what those before it append."""
        ahead: dict[StreamId, int] = {}
        for append in request:
            actual = ahead.get(append.stream)
            if actual is None:
                actual = self._version(append.stream)
            if append.expected is not ANY and append.expected != actual:
                raise VersionConflict(append.stream, append.expected, actual)
            ahead[append.stream] = actual + len(append.events)

    def _check_fences(self, request: Request) -> None:
        for append in request:
            if append.fence is not None:
                current = self._version(append.fence.stream)
                if append.fence.epoch != current:
                    raise FenceLost(append.fence.name, append.fence.epoch, current)

    def _accept(self, append: Append) -> int:
        """The version of the append's stream with its events, which are numbered and hashed."""
        stream, context = append.stream, append.context
        version, before = self.streams.get(stream, NEW_STREAM)
        for event in append.events:
            version += 1
            self._position += 1
            facts = (
                self._position,
                stream,
                version,
                event.id,
                event.type,
                event.type_version,
                context.tenant,
                event.data_subject,
                event.occurred_at,
                self._recorded_at,
                context.causation,
                context.correlation,
                context.actor,
                context.traceparent,
                event.data,
                before,
            )
            previous, self._hash = self._hash, link_facts(self._hash, facts)
            stored = StoredEvent(*facts, previous, self._hash)
            self.accepted.append(stored)
            self._own[event.id.int] = stored
            before = self._hash
        self.streams[stream] = StreamHead(version, before)
        return version


class Size(NamedTuple):
    """What a request weighs; `bytes` is the data of its events and its rows."""

    events: int
    bytes: int
    rows: int = 0


def check_request(request: Request, limits: Limits) -> Size:
    """The size of a request that is well formed in itself.

    Raises ValueError (nothing or too much to append), EventTooLarge, DuplicateEventId (an id twice in the request).
    """
    events = [event for append in request for event in append.events]
    if not 1 <= len(events) <= limits.request_events_max:
        raise ValueError(f"a request has 1 to {limits.request_events_max} events, this one has {len(events)}")
    size = rows = 0
    for event in events:
        length = len(event.data)
        if length > limits.data_bytes_max:
            raise EventTooLarge(event.type, length, limits.data_bytes_max)
        size += length
    if len(events) > 1:
        _check_distinct(events)
    for append in request:
        for row in append.rows:
            rows += 1
            size += sum([len(value) for value in row if value is not None])
    return Size(len(events), size, rows)


def check_side_table(size: Size, *, opened: bool) -> None:
    """Raises ValueError for rows beside events in a log that was opened without a side table."""
    if size.rows and not opened:
        raise ValueError("rows beside events need a log that was opened with their side table")


def _check_distinct(events: Sequence[NewEvent]) -> None:
    numbers = [event.id.int for event in events]
    if len(set(numbers)) < len(numbers):
        twice = next(event.id for at, event in enumerate(events) if event.id.int in numbers[:at])
        raise DuplicateEventId(twice, "occurs twice in one request")
