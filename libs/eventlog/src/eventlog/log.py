"""The contract of a log; testing.EventLogContract is its executable form."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from eventlog.records import (
    EVERYTHING,
    Append,
    Appended,
    Filter,
    Page,
    Snapshot,
    StoredEvent,
    StreamId,
    Verified,
    VerifiedStream,
)


class Auditing(Protocol):
    """What folds a range of events, in order, to find out whether they are what they were: Verifier, Audit."""

    @property
    def done(self) -> bool:
        """Whether nothing further can change the finding."""
        ...

    @property
    def position(self) -> int:
        """The last position found good, from where on events are wanted."""
        ...

    def check(self, events: Sequence[StoredEvent]) -> None: ...

    def unreadable(self, position: int, reason: str) -> None:
        """There are no good events at `position`, unless one before it is broken already."""
        ...


class EventLog(Protocol):
    """One append-only sequence of events, in streams with versions. Safe for any number of concurrent callers."""

    async def append(self, *appends: Append) -> Appended:
        """Store the events of all appends, or none; they are durable when this returns.

        Idempotent on event ids: a request whose ids are all stored with the same content succeeds as `duplicate`,
        whatever its expected versions and fences. Raises VersionConflict, FenceLost, DuplicateEventId, EventTooLarge,
        ValueError, QueueFull, AppendRefused, LogUnavailable, LogClosed. After LogUnavailable retry with the same event ids.
        """
        ...

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        """At most `limit` events with a position above `after`, ascending."""
        ...

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        """What a follower reads: the next events that match, and how far it has seen the log with them.

        At most `limit` events, fewer if they are large; an empty page at `after` if nothing is known to be new, then
        `wait_for(after + 1)`. What this process appended is there at once, what others appended as soon as this one
        hears of it (Limits.poll_interval_s at the latest); none is ever passed over. It may come from memory: to prove
        what is stored, `read`.
        """
        ...

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        """At most `limit` events of one stream with a version above `after`, ascending."""
        ...

    async def position_at(self, moment: datetime) -> int:
        """The position of the last event recorded at or before a moment; 0 if there is none. The log "as of" the moment
        is all events up to it.

        Times are those of the writers' clocks. Where one was set back, positions do not follow time for a while, and the
        answer is one of the positions at which the log passes the moment.
        """
        ...

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        ...

    async def wait_for(self, position: int, timeout_s: float) -> int:
        """The head, as soon as it is at `position` or beyond, or when the time is over."""
        ...

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        """Whether positions `first` to `last` (default: all) are complete and unchanged by their hash chain."""
        ...

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        """Whether the events of one stream are complete and unchanged by their own chain, without the rest of the log."""
        ...

    async def audit(self, audit: Auditing) -> None:
        """Give `audit` the stored events that it asks for, read anew from where they are kept."""
        ...

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        """Keep a folded state; an older version never replaces a newer one. Snapshots may be lost without harm."""
        ...

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        """The newest state of `stream` saved under `fold`, which names the fold and its version."""
        ...
