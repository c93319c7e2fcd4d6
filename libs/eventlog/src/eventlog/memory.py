"""A log in memory: the twin of PostgresEventLog for tests of whatever stands on a log."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from uuid import UUID

from eventlog.admission import (
    NEW_STREAM,
    Admission,
    Head,
    Stored,
    StreamHead,
    check_request,
    check_side_table,
    rows_beside,
    streams_of,
)
from eventlog.chain import GENESIS, StreamVerifier, Verifier
from eventlog.clock import Clock, SystemClock
from eventlog.errors import LogClosed
from eventlog.limits import Limits
from eventlog.log import Auditing
from eventlog.newest import page_of
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
from eventlog.side_table import SideRow
from eventlog.signal import HeadSignal


class MemoryEventLog:
    """Keeps every promise of EventLog but durability.

    `side_table` takes the rows beside the events of an append. If it raises, nothing is stored, and the caller is told.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        side_table: Callable[[Sequence[SideRow]], None] | None = None,
    ) -> None:
        self.side_table = side_table
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._events: list[StoredEvent] = []
        self._streams: defaultdict[StreamId, list[StoredEvent]] = defaultdict(list)
        self._known: dict[UUID, Stored] = {}
        self._snapshots: dict[tuple[StreamId, str], Snapshot] = {}
        self._signal = HeadSignal()
        self._closed = False

    async def append(self, *appends: Append) -> Appended:
        check_side_table(check_request(appends, self._limits), opened=self.side_table is not None)
        self._require_open()
        await asyncio.sleep(0)  # as with a real log, others run while the caller waits
        streams = {stream: self._end(stream) for stream in streams_of(appends)}
        admission = Admission(self._head(), streams, self._known, self._clock.now())
        appended = admission.admit(appends)
        if self.side_table is not None and (beside := rows_beside([appends], [appended])):
            self.side_table(beside)
        self._store(admission.accepted)
        return appended

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        self._require_open()
        return list(islice(filter(where.matches, islice(self._events, max(after, 0), None)), limit))

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        self._require_open()
        newer = self._events[max(after, 0) :]
        return page_of(newer, after, len(self._events), where, limit, self._limits.page_bytes)

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        self._require_open()
        return self._streams[stream][after : after + limit]

    async def position_at(self, moment: datetime) -> int:
        self._require_open()
        return bisect_right(self._events, moment, key=lambda event: event.recorded_at)

    async def head(self) -> int:
        self._require_open()
        return len(self._events)

    async def wait_for(self, position: int, timeout_s: float) -> int:
        self._require_open()
        return await self._signal.wait_for(position, timeout_s)

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        self._require_open()
        whole = last is None
        verifier = Verifier(first, len(self._events) if last is None else last, self._hash_before(first))
        await self.audit(verifier)
        return verifier.finding(self._head().hash if whole else None)

    async def audit(self, audit: Auditing) -> None:
        self._require_open()
        audit.check(self._events[audit.position :])

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        self._require_open()
        verifier = StreamVerifier(stream)
        verifier.check(self._streams[stream])
        return verifier.finding()

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        self._require_open()
        kept = self._snapshots.get((stream, fold))
        if kept is None or kept.version <= version:
            self._snapshots[stream, fold] = Snapshot(stream, version, fold, data)

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        self._require_open()
        return self._snapshots.get((stream, fold))

    async def close(self) -> None:
        """Refuse every further call."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise LogClosed

    def _head(self) -> Head:
        if not self._events:
            return Head(0, GENESIS)
        newest = self._events[-1]
        return Head(newest.position, newest.hash, recorded_at=newest.recorded_at)

    def _end(self, stream: StreamId) -> StreamHead:
        events = self._streams[stream]
        return StreamHead(events[-1].version, events[-1].hash) if events else NEW_STREAM

    def _hash_before(self, position: int) -> bytes:
        return self._events[position - 2].hash if position > 1 else GENESIS

    def _store(self, events: list[StoredEvent]) -> None:
        for event in events:
            self._events.append(event)
            self._known[event.id] = event
            self._streams[event.stream].append(event)
        self._signal.advance(len(self._events))
