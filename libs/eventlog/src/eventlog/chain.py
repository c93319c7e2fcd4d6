"""The hash chains that make a log tamper-evident: one through the log, and one through each of its streams.

hash(n) = SHA-256(hash(n-1) ‖ canonical(n)), hash(0) = 32 zero bytes. The canonical form is every other stored column:
a head of fixed size, big-endian (position, version, type version, both times in microseconds since 1970, the lengths of
all that follows), then the bytes in this order: stream, id, type, tenant, data subject, causation, correlation, actor,
traceparent, data. Text is UTF-8, an id is its 16 bytes, an absent value has the length 0xFFFFFFFF. Lengths before bytes
make the form unambiguous: no two different events share it.

One of the columns is the hash of the event before in the same stream, 32 zero bytes for the first. So one hash for each
event serves both chains. The log's finds whatever is done to any event, at its position. A stream's is for whoever is
handed that stream alone, an auditor of one run: each event names the one before, so that to believe the last is to
believe all, and one inclusion proof (merkle.py) is enough for a stream of any length. That there is no newer event no
chain can prove to who does not see the log.

Events stored before there was a chain for each stream have none of that column, and keep their hashes: it stands in
the canonical form only where there is a value, as an eleventh length and the last of the bytes, and the head then begins
with the byte 0x81. A form without it begins with the first byte of a position, which is below 0x80.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

from eventlog.records import (
    StoredEvent,
    StreamEnd,
    StreamId,
    Verified,
    VerifiedStream,
    name_bytes,
    stream_bytes,
)

GENESIS: Final = bytes(32)
"""The hash before the first event of the log, and of each stream."""

STREAMS_FOLLOWED_MAX: Final = 65_536
"""Of so many streams, those met last, a verification of the log knows the last event."""

Facts = tuple[
    int,  # position
    StreamId,
    int,  # version
    UUID,  # id
    str,  # type
    int,  # type version
    str,  # tenant
    str | None,  # data subject
    datetime,  # occurred at
    datetime,  # recorded at
    UUID | None,  # causation
    str,  # correlation
    str,  # actor
    str,  # traceparent
    bytes,  # data
    bytes | None,  # hash of the event before in its stream
]
"""The columns of a StoredEvent, in its order, without the two hashes of the log's chain."""

_HEAD: Final = struct.Struct(">qqiqq10I")
_LINKED_HEAD: Final = struct.Struct(">Bqqiqq11I")
_LINKED: Final = 0x81
_ABSENT: Final = 0xFFFFFFFF
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def sealed(event: StoredEvent, previous_hash: bytes) -> StoredEvent:
    """The event with both hashes of the log's chain filled in."""
    return StoredEvent(*event[:-2], previous_hash, link(previous_hash, event))


def link(previous_hash: bytes, event: StoredEvent) -> bytes:
    """The hash of `event` as successor of `previous_hash` in the log; the event's own `previous_hash` and `hash` are not
    read.
    """
    return link_facts(previous_hash, event[:-2])


def link_facts(previous_hash: bytes, facts: Facts) -> bytes:
    """As `link`, for an event that has no hashes yet."""
    return sha256(previous_hash + canonical(facts)).digest()


def canonical(facts: Facts) -> bytes:
    """The bytes that are hashed."""
    # One unpacking instead of eighteen attributes, and names encoded once: this runs for every event appended or verified.
    (
        position,
        stream_id,
        version,
        event_id,
        type_name,
        type_version,
        tenant,
        subject,
        occurred_at,
        recorded_at,
        cause,
        correlation,
        actor,
        traceparent,
        data,
        stream_previous,
    ) = facts
    parts = [
        stream_bytes(stream_id),
        event_id.int.to_bytes(16, "big"),
        name_bytes(type_name),
        name_bytes(tenant),
        b"" if subject is None else subject.encode(),
        b"" if cause is None else cause.int.to_bytes(16, "big"),
        correlation.encode(),
        name_bytes(actor),
        traceparent.encode(),
        data,
    ]
    if stream_previous is not None:
        parts.append(stream_previous)
    lengths = list(map(len, parts))
    if subject is None:
        lengths[4] = _ABSENT
    if cause is None:
        lengths[5] = _ABSENT
    occurred_us, recorded_us = (occurred_at - _EPOCH) // _MICROSECOND, (recorded_at - _EPOCH) // _MICROSECOND
    numbers = position, version, type_version, occurred_us, recorded_us
    if stream_previous is None:
        head = _HEAD.pack(*numbers, *lengths)
    else:
        head = _LINKED_HEAD.pack(_LINKED, *numbers, *lengths)
    return b"".join((head, *parts))


class Verifier:
    """Folds a range of events, in order, into a finding.

    `anchor` is the trusted hash before `first`: GENESIS for the whole log, else the stored hash at `first - 1`. An event
    must name the one before it in its stream wherever that was in the range, among the last `streams_max` streams.
    """

    def __init__(self, first: int, last: int, anchor: bytes, streams_max: int = STREAMS_FOLLOWED_MAX) -> None:
        self._first = first
        self._last = last
        self._position = first - 1
        self._hash = anchor
        self._streams: OrderedDict[StreamId, bytes] = OrderedDict()
        self._streams_max = streams_max
        self._broken: tuple[int, str] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing further can change the finding."""
        return self._broken is not None or self._position >= self._last

    @property
    def position(self) -> int:
        """The last position found good."""
        return self._position

    @property
    def hash(self) -> bytes:
        """The hash of the event at `position`."""
        return self._hash

    def check(self, events: Iterable[StoredEvent]) -> None:
        for event in events:
            if self.done:
                return
            self._check_one(event)

    def unreadable(self, position: int, reason: str) -> None:
        """The event at `position` is not there to be checked, or not as it was stored."""
        if self._broken is None:
            self._broken = (position, reason)

    def finding(self, head_hash: bytes | None = None) -> Verified:
        """The finding; `head_hash`, if given, is what the log claims as hash of the last event."""
        if self._broken is None and self._position < self._last:
            self._broken = (self._position + 1, "the event is missing")
        if self._broken is None and head_hash not in (None, self._hash):
            self._broken = (self._last, "the head names another hash than the last event")
        count = self._position - self._first + 1
        if self._broken is None:
            return Verified(self._first, self._last, count, ok=True, head_hash=self._hash)
        broken_at, reason = self._broken
        return Verified(self._first, self._last, count, False, broken_at, reason, self._hash)

    def _check_one(self, event: StoredEvent) -> None:
        expected = self._position + 1
        if event.position != expected:
            self._broken = (expected, "the event is missing")
        elif event.previous_hash != self._hash:
            self._broken = (expected, "the event does not name its predecessor's hash")
        elif event.hash != link(self._hash, event):
            self._broken = (expected, "the event differs from what was hashed")
        elif not self._continues_its_stream(event):
            self._broken = (expected, f"the event does not name the hash of its predecessor in {event.stream}")
        else:
            self._position, self._hash = expected, event.hash

    def _continues_its_stream(self, event: StoredEvent) -> bool:
        streams, stream = self._streams, event.stream
        before = GENESIS if event.version == 1 else streams.pop(stream, None)
        streams[stream] = event.hash
        if len(streams) > self._streams_max:
            streams.popitem(last=False)
        return before is None or event.stream_previous_hash in (None, before)


class StreamVerifier:
    """Folds all events of one stream, in order, into a finding: without the rest of the log, and without knowing whether
    the log has them. Each event's hash is recomputed upon the `previous_hash` that it came with.
    """

    def __init__(self, stream: StreamId) -> None:
        self._stream = stream
        self._last = StreamEnd(0, 0, GENESIS)
        self._ends: list[StreamEnd] = []
        self._broken: tuple[int, str] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing further can change the finding."""
        return self._broken is not None

    @property
    def version(self) -> int:
        """The last version found good."""
        return self._last.version

    def check(self, events: Iterable[StoredEvent]) -> None:
        for event in events:
            if self.done:
                return
            self._check_one(event)

    def unreadable(self, reason: str) -> None:
        """The event after `version` is not there to be checked, or not as it was stored."""
        if self._broken is None:
            self._broken = (self.version + 1, reason)

    def finding(self) -> VerifiedStream:
        broken_at, reason = self._broken or (None, "")
        ends = (*self._ends, self._last) if self._last.version else ()
        return VerifiedStream(self._stream, self._last.version, ends, broken_at, reason)

    def _check_one(self, event: StoredEvent) -> None:
        if problem := self._problem(event):
            self._broken = (self.version + 1, problem)
            return
        if event.stream_previous_hash is None and self._last.version:
            self._ends.append(self._last)
        self._last = StreamEnd(event.version, event.position, event.hash)

    def _problem(self, event: StoredEvent) -> str:
        if event.stream != self._stream:
            return f"the event is one of {event.stream}"
        if event.version != self._last.version + 1:
            return "the event is missing"
        if event.position <= self._last.position:
            return f"the event stands at position {event.position}, the one before it at {self._last.position}"
        if event.stream_previous_hash not in (None, self._last.hash):
            return "the event does not name its predecessor's hash"
        if event.hash != link(event.previous_hash, event):
            return "the event differs from what was hashed"
        return ""
