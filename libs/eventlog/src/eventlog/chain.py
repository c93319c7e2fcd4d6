"""The hash chain that makes a log tamper-evident.

hash(n) = SHA-256(hash(n-1) ‖ canonical(n)), hash(0) = 32 zero bytes. The canonical form is every other stored column:
a head of fixed size, big-endian (position, version, type version, both times in microseconds since 1970, the lengths of
all that follows), then the bytes in this order: stream, id, type, tenant, data subject, causation, correlation, actor,
traceparent, data. Text is UTF-8, an id is its 16 bytes, an absent value has the length 0xFFFFFFFF. Lengths before bytes
make the form unambiguous: no two different events share it.

There is no second chain per stream. The log chain commits to every event's stream and version, and no position can be
left out; so whoever holds the log knows each stream complete and in order (versions 1, 2, 3, ... are an index of the
table), and whatever is done to one of them is found at its position (a test does all that can be done). A chain per
stream would cost a column and a hash for each event, and prove nothing more: to somebody who is shown one stream only,
neither chain can prove that its last event is the newest; an inclusion proof for each event (merkle.py) proves the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

from eventlog.records import StoredEvent, StreamId, Verified, name_bytes, stream_bytes

GENESIS: Final = bytes(32)
"""The hash before the first event."""

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
]
"""The columns of a StoredEvent, in its order, without the two hashes."""

_HEAD: Final = struct.Struct(">qqiqq10I")
_ABSENT: Final = 0xFFFFFFFF
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def sealed(event: StoredEvent, previous_hash: bytes) -> StoredEvent:
    """The event with both hashes filled in."""
    return StoredEvent(*event[:-2], previous_hash, link(previous_hash, event))


def link(previous_hash: bytes, event: StoredEvent) -> bytes:
    """The hash of `event` as successor of `previous_hash`; the event's own two hashes are not read."""
    return link_facts(previous_hash, event[:-2])


def link_facts(previous_hash: bytes, facts: Facts) -> bytes:
    """As `link`, for an event that has no hashes yet."""
    return sha256(previous_hash + canonical(facts)).digest()


def canonical(facts: Facts) -> bytes:
    """The bytes that are hashed."""
    # One unpacking instead of seventeen attributes, and names encoded once: this runs for every event appended or verified.
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
    ) = facts
    parts = (
        stream_bytes(stream_id),
        event_id.bytes,
        name_bytes(type_name),
        name_bytes(tenant),
        b"" if subject is None else subject.encode(),
        b"" if cause is None else cause.bytes,
        correlation.encode(),
        name_bytes(actor),
        traceparent.encode(),
        data,
    )
    lengths = list(map(len, parts))
    if subject is None:
        lengths[4] = _ABSENT
    if cause is None:
        lengths[5] = _ABSENT
    times = _microseconds(occurred_at), _microseconds(recorded_at)
    return b"".join((_HEAD.pack(position, version, type_version, *times, *lengths), *parts))


class Verifier:
    """Folds a range of events, in order, into a finding.

    `anchor` is the trusted hash before `first`: GENESIS for the whole log, else the stored hash at `first - 1`.
    """

    def __init__(self, first: int, last: int, anchor: bytes) -> None:
        self._first = first
        self._last = last
        self._position = first - 1
        self._hash = anchor
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
        else:
            self._position, self._hash = expected, event.hash


def _microseconds(value: datetime) -> int:
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
