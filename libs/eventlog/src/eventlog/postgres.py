"""The log in PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from eventlog.archive import Archivist
from eventlog.binary import to_int
from eventlog.chain import GENESIS, StreamVerifier, Verifier
from eventlog.clock import Clock, SystemClock
from eventlog.errors import ArchiveDamaged, ArchiveMissing, LogClosed, LogUnavailable
from eventlog.limits import Limits
from eventlog.log import Auditing
from eventlog.newest import Newest, page_of
from eventlog.observer import Observer
from eventlog.patience import NOTICE_THAT_WE_LEFT, ImpatientConnection, NoAnswer, unhurried
from eventlog.prepared import PreparedConnection, rows
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
from eventlog.segments import Segment, forget_read
from eventlog.side_table import SideTable
from eventlog.signal import HeadSignal, settle, settled
from eventlog.sql import Statements, statements, stored_events
from eventlog.writer import ArchivedReads, GroupWriter

_CLOCKS_DIFFER_AT_MOST = timedelta(minutes=1)
"""By so much may events recorded by former releases lie out of order; since then a writer never goes back in time."""

_LAST_WORDS_S = 0.5
"""So long a close waits until other processes were told of the last commits."""

_log = logging.getLogger(__name__)


class PostgresEventLog:
    """An EventLog in one schema of one database. Any number of processes may open the same log at once.

    Holds one connection for writing, one for notifications, up to `limits.readers_max` for reading, and one for as long as
    it archives.
    """

    def __init__(
        self,
        dsn: str,
        schema: str,
        limits: Limits,
        clock: Clock,
        observer: Observer | None = None,
        archive: Path | None = None,
        side_table: SideTable | None = None,
    ) -> None:
        sql = statements(schema, side_table)
        self._sql = sql
        self._limits = limits
        self._signal = HeadSignal()
        self._newest = Newest(limits.newest_events, limits.newest_bytes)
        archive_of_writer = ArchivedReads(self._archived_event, self._archived_end)
        self._writer = GroupWriter(dsn, sql, limits, clock, self._committed, observer, archive_of_writer)
        self._readers: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
            dsn,
            connection_class=ImpatientConnection,
            min_size=1,
            max_size=limits.readers_max,
            timeout=limits.reconnect_timeout_s,
            kwargs={"autocommit": True, "answer_timeout_s": limits.answer_timeout_s},
            configure=_prepare_reader,
            open=False,
        )
        self._archivist = Archivist(self, dsn, self._readers, schema, archive)
        self._watch = HeadWatch(dsn, sql, limits, self._signal.advance)
        self._closed = False

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        schema: str = "eventlog",
        limits: Limits | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
        archive: Path | None = None,
        side_table: SideTable | None = None,
    ) -> PostgresEventLog:
        """Open the log in `schema`, creating its tables if there are none; LogUnavailable if the database is.

        `observer` is told of every transaction that commits appends. `archive` is the directory of archived events, the
        same for every process; ArchiveMissing without it if there are any. `side_table` takes the rows beside events.
        """
        try:
            await _create_tables(dsn, statements(schema), schema)
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"the database cannot be reached: {error}") from error
        log = cls(dsn, schema, limits or Limits(), clock or SystemClock(), observer, archive, side_table)
        await log._readers.open(wait=True)
        try:
            await log._open_archive()
        except ArchiveMissing:
            await log._readers.close()
            raise
        log._writer.start()
        log._watch.start()
        return log

    async def __aenter__(self) -> PostgresEventLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Commit all that waits, then release every connection."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self._watch.stop()
        await self._readers.close()

    @property
    def backlog_events(self) -> int:
        """How many events wait to be committed: a measure of load."""
        return self._writer.backlog_events

    async def append(self, *appends: Append) -> Appended:
        self._require_open()
        return await self._writer.submit(appends)

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        first, last = await self._bounds(after, where)
        while True:
            archive = self._archivist.known  # one view of files and border: more may become known meanwhile
            archived = await archive.read(first, limit, where) if first < archive.last else []
            if len(archived) == limit:
                return archived
            border = max(first, archive.last)
            events, archived_to = await self._read(border, last, limit - len(archived), where)
            if archived_to <= border:
                return archived + events
            await self._archivist.learn_to(archived_to)  # somebody took events out that were asked for: read again

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        self._require_open()
        if (newer := self._newest.after(after)) is not None:
            return page_of(newer, after, self._newest.head, where, limit, self._limits.page_bytes)
        if 0 < self._signal.head <= after:
            return Page((), after)
        head = self._signal.head  # before reading: what the filter leaves out up to it has been seen
        events, more = await self._read_on(after, limit, where)
        last = events[-1].position if events else after
        return Page(events, last, True) if more else Page(events, max(last, head))

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        ((archived_to, *columns),) = await self._fetch(self._sql.read_stream, [str(stream), after, limit])
        events = stored_events(columns)
        if archived_to == 0 or (events and events[0].version == after + 1):
            return events
        archived = await self._read_archived_stream(stream, after, limit)
        border = archived[-1].version if archived else after
        # Some of the rows may have been archived between the two look-ups.
        return (archived + [event for event in events if event.version > border])[:limit]

    async def position_at(self, moment: datetime) -> int:
        ((position, archived_to),) = await self._fetch(self._sql.position_at, [moment])
        return int(position) if position > archived_to else await self._archived_position_at(moment, archived_to)

    async def head(self) -> int:
        ((position,),) = await self._fetch(self._sql.head, [])
        return int(position)

    async def wait_for(self, position: int, timeout_s: float) -> int:
        self._require_open()
        return await self._signal.wait_for(position, timeout_s)

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        ((head, head_hash),) = await self._fetch(self._sql.head_and_hash, [])
        verifier = Verifier(first, head if last is None else last, await self._anchor(first))
        await self.audit(verifier)
        return verifier.finding(head_hash if last in (None, head) else None)

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        verifier = StreamVerifier(stream)
        forget_read()
        await self._verify_events(verifier, stream)
        return verifier.finding()

    async def audit(self, audit: Auditing) -> None:
        first = audit.position + 1
        forget_read()
        await self._audit_events(audit)
        try:
            await self._archivist.known.compare(first, audit.position)
        except ArchiveDamaged as damage:  # in what no event shows: its header, its index
            audit.unreadable(max(first, damage.position), str(damage))

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        self._require_open()
        try:
            async with self._readers.connection() as connection:
                await connection.execute(self._sql.save_snapshot, (str(stream), fold, version, data), binary=True)
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise LogUnavailable(f"the snapshot of {stream} cannot be saved: {error}") from error

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        rows = await self._fetch(self._sql.load_snapshot, [str(stream), fold])
        return Snapshot(stream, rows[0][0], fold, rows[0][1]) if rows else None

    async def archive(self, *, keep_events: int, segment_events: int = 1_000_000) -> list[Segment]:
        """Move the oldest events to files of `segment_events` each, as long as `keep_events` stay in the database.

        Reading, verifying, proofs and rebuilding go on over both. The segments that were moved. Raises ArchiveMissing,
        ArchiveDamaged (nothing is taken out of the database then).
        """
        self._require_open()
        return await self._archivist.archive(keep_events=keep_events, segment_events=segment_events)

    async def _audit_events(self, audit: Auditing) -> None:
        limit = self._limits.page_events
        while not audit.done:
            try:
                page = await self.read(audit.position, limit=limit)
            except ArchiveDamaged as damage:
                readable = damage.position - 1 - audit.position
                if not 0 < readable < limit:
                    return audit.unreadable(audit.position + 1, str(damage))
                limit = readable  # up to the damage first: something before it may be broken too
                continue
            if not page:
                return None
            audit.check(page)
            limit = self._limits.page_events
        return None

    async def _verify_events(self, verifier: StreamVerifier, stream: StreamId) -> None:
        limit = self._limits.page_events
        while not verifier.done:
            try:
                page = await self.read_stream(stream, after=verifier.version, limit=limit)
            except ArchiveDamaged as damage:
                if limit == 1:
                    return verifier.unreadable(str(damage))
                limit //= 2  # a position says nothing of versions: halving finds the last one before the damage
                continue
            if not page:
                return None
            verifier.check(page)
        return None

    async def _read(self, after: int, last: int | None, limit: int, where: Filter) -> tuple[list[StoredEvent], int]:
        """What the table has, and the last position that had been taken out of it at that moment."""
        query, parameters = self._sql.filtered(where, last)
        # With a filter the best way depends on its values (a rare type, a common one): planned anew each time.
        ((archived_to, *columns),) = await self._fetch(query, [after, *parameters, limit], prepare=where is EVERYTHING)
        return stored_events(columns), archived_to

    async def _read_archived_stream(self, stream: StreamId, after: int, limit: int) -> list[StoredEvent]:
        rows = await self._fetch(self._sql.archived_in, [str(stream), after])
        firsts = [row[0] for row in rows]
        if not firsts:
            return []
        await self._archivist.learn_to(firsts[-1])
        return await self._archivist.known.read_stream(stream, after, limit, firsts)

    async def _archived_position_at(self, moment: datetime, border: int) -> int:
        low, high = 0, border + 1
        while high - low > 1:
            middle = (low + high) // 2
            event = await self._archived_event(middle)
            low, high = (middle, high) if event.recorded_at <= moment else (low, middle)
        return low

    async def _archived_event(self, position: int) -> StoredEvent:
        await self._archivist.learn_to(position)
        (event,) = await self._archivist.known.read(position - 1, 1)
        return event

    async def _archived_end(self, stream: StreamId, version: int) -> StoredEvent:
        (event,) = await self._read_archived_stream(stream, version - 1, 1)
        return event

    async def _open_archive(self) -> None:
        await self._archivist.refresh()
        self._archivist.known.require_readable()
        await self._archivist.note_subjects()
        await self._archivist.note_hashes()

    async def _read_on(self, after: int, limit: int, where: Filter) -> tuple[list[StoredEvent], bool]:
        """Events for one page, and whether it is full: so many, or so many bytes. Asked for in pieces: the bytes are
        known only when they are here.
        """
        events: list[StoredEvent] = []
        room = self._limits.page_bytes
        while len(events) < limit and room > 0:
            asked = min(limit - len(events), self._limits.page_events)
            piece = await self.read(events[-1].position if events else after, limit=asked, where=where)
            events += piece
            if len(piece) < asked:
                return events, False
            room -= sum(len(event.data) for event in piece)
        return events, True

    async def _bounds(self, after: int, where: Filter) -> tuple[int, int | None]:
        """The positions between which the time asked for lies, so that nothing else need be looked at."""
        since, until = where.since, where.until
        first = after if since is None else max(after, await self.position_at(since - _CLOCKS_DIFFER_AT_MOST))
        return first, None if until is None else await self.position_at(until + _CLOCKS_DIFFER_AT_MOST)

    def _committed(self, head: int, events: Sequence[StoredEvent], observe: Callable[[], None]) -> None:
        self._newest.extend(events)
        self._signal.announce(head, observe)
        self._watch.tell(head)

    async def _anchor(self, first: int) -> bytes:
        """The hash before `first`; a missing event there is found as a broken link."""
        rows = await self._fetch(self._sql.hash_at, [first - 1])
        return rows[0][0] if rows else GENESIS

    async def _fetch(self, query: bytes, parameters: Sequence[object], *, prepare: bool = True) -> list[TupleRow]:
        """All rows. A reader whose connection was lost is replaced: asking each one first would double every read."""
        for attempts_left in reversed(range(self._limits.readers_max + 1)):
            self._require_open()
            try:
                async with self._readers.connection() as connection:
                    cursor = await connection.execute(query, parameters, prepare=prepare, binary=True)
                    return await cursor.fetchall()
            except (PoolTimeout, psycopg.OperationalError) as error:
                if attempts_left == 0 or isinstance(error, (PoolTimeout, NoAnswer)):
                    raise LogUnavailable(f"the log cannot be read: {error}") from error
        raise AssertionError("the last attempt returned or raised")

    def _require_open(self) -> None:
        if self._closed:
            raise LogClosed


class HeadWatch:
    """Follows the head for other processes' appends, and tells them of this one's: by notification, and by a poll where
    that is lost. `known` is told of each head that the one or the other shows.

    Others are told after the commit and not by it, since a transaction that notifies takes a lock that all such take, and
    wakes every listener before it answers: a fifth of the time that a caller waits for it.
    """

    def __init__(self, dsn: str, sql: Statements, limits: Limits, known: Callable[[int], None]) -> None:
        self._dsn = dsn
        self._sql = sql
        self._limits = limits
        self._known = known
        self._committed = self._told = 0
        self._soon: asyncio.TimerHandle | None = None
        self._is_due = False
        self._resting: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[None] | None = None
        self._connecting = False
        self._stopping = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="eventlog-watch")

    def tell(self, head: int) -> None:
        """Tell other processes of a head that this one has committed: soon, and once for all that come until then."""
        self._committed = head
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(self._limits.announce_s, self._tell_now)

    async def stop(self) -> None:
        """Tell others of the last commits, if the database answers at once, and end the task. Never while it connects: the
        server would wait a minute for the rest of the handshake, and with it whoever drops a database.
        """
        self._stopping = True
        if self._soon is not None:
            self._soon.cancel()
            self._tell_now()
        if self._task is not None:
            if self._is_due:
                await asyncio.wait([self._task], timeout=_LAST_WORDS_S)
            if not self._connecting:
                self._task.cancel()
            await asyncio.wait([self._task])

    def _tell_now(self) -> None:
        self._soon, self._is_due = None, True
        if self._resting is not None:
            settle(self._resting)

    async def _run(self) -> None:
        while not self._stopping:
            try:
                with await self._connect() as connection:
                    await self._follow(connection)
            except psycopg.Error as error:
                if self._stopping:
                    return
                _log.warning("lost the notification connection, reconnecting: %s", error)
                self._is_due = self._told < self._committed
                await asyncio.sleep(self._limits.poll_interval_s)

    async def _connect(self) -> PreparedConnection:
        self._connecting = True
        statements = [self._sql.head, self._sql.announce]
        try:
            return await PreparedConnection.open(
                self._dsn, self._sql.listen, statements, self._heard, self._limits.answer_timeout_s
            )
        finally:
            self._connecting = False

    async def _follow(self, connection: PreparedConnection) -> None:
        loop = asyncio.get_running_loop()
        while self._is_due or not self._stopping:
            # Read after LISTEN, not before: what is committed between the two would otherwise go unseen.
            for (position,) in rows(await connection.run(self._sql.head)):
                self._known(to_int(position))
            read_again_at = loop.time() + self._limits.poll_interval_s
            while (left_s := read_again_at - loop.time()) > 0 and (self._is_due or not self._stopping):
                if self._is_due:
                    await self._announce(connection)
                else:
                    await self._rest(left_s)

    async def _announce(self, connection: PreparedConnection) -> None:
        self._is_due, head = False, self._committed
        await connection.run(self._sql.announce, [b"%d" % head])
        self._told = head

    async def _rest(self, time_s: float) -> None:
        """Until others are to be told, or the time is over."""
        self._resting = asyncio.get_running_loop().create_future()
        try:
            await settled(self._resting, time_s)
        finally:
            self._resting = None

    def _heard(self, position: str) -> None:
        self._known(int(position))


async def _create_tables(dsn: str, sql: Statements, schema: str) -> None:
    async with await ImpatientConnection.connect(dsn) as connection:
        with unhurried(connection):  # of a large log, and behind other processes that do the same
            await connection.execute("set client_min_messages = warning")
            await connection.execute(sql.lock_schema, [f"eventlog:{schema}"])
            await connection.execute(sql.create)


async def _prepare_reader(connection: AsyncConnection[TupleRow]) -> None:
    # Statistics of a young table must not talk the planner out of the indexes.
    await connection.execute(b"set timezone = 'UTC'; set enable_seqscan = off; " + NOTICE_THAT_WE_LEFT)
