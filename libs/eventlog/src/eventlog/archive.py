"""The archived part of a log, and how it grows.

The oldest events of a log, one segment of positions after another, are moved to files (segments.py). In the database a
narrow row stays of each: its id, so that repeating it stays idempotent, and its hash, so that proofs go on; of each
stream its version and hash; and of an event about a person whom it is about, so that an erasure reaches all that they left. A
segment is moved in two steps: first the file is written, flushed, read back, verified and made known; then one
transaction takes the rows out of `events` and moves `archived_to`. A crash in between leaves both, and the next archiving
goes on from there; what had not become a whole file by then it deletes.

Whoever reads meanwhile misses nothing, however late they hear of a file: every statement that reads `events` gives
`archived_to` as it is in its own snapshot, and who finds it beyond the files that they know learns of them and reads
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice, starmap
from pathlib import Path
from typing import Protocol, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier, Literal
from psycopg_pool import AsyncConnectionPool

from eventlog.chain import GENESIS
from eventlog.errors import ArchiveDamaged, ArchiveMissing
from eventlog.patience import ImpatientConnection, unhurried
from eventlog.records import EVERYTHING, Filter, StoredEvent, StreamId
from eventlog.segments import BLOCK_EVENTS, Segment, SegmentReader, SegmentWriter, sweep

_log = logging.getLogger(__name__)

_Notes = TypeVar("_Notes", list[tuple[int, str, str, str, str]], list[tuple[bytes, str, int, int]])


class Reading(Protocol):
    """What archiving needs of a log."""

    async def head(self) -> int: ...

    async def read(self, after: int = 0, *, limit: int = 1000) -> list[StoredEvent]: ...


@dataclass(frozen=True, slots=True)
class Archive:
    """Segments of one log by position, from the first on, as files in `location`: what was known at one moment."""

    location: Path | None
    segments: tuple[Segment, ...] = ()

    @property
    def last(self) -> int:
        """The last position of the segments, 0 if there is none."""
        return self.segments[-1].last if self.segments else 0

    @property
    def directory(self) -> Path:
        """ArchiveMissing if the log was opened without one."""
        if self.location is None:
            raise ArchiveMissing
        return self.location

    def require_readable(self) -> None:
        """ArchiveMissing if there are segments, and nothing says where."""
        if self.segments and self.location is None:
            raise ArchiveMissing

    async def read(self, after: int, limit: int, where: Filter = EVERYTHING) -> list[StoredEvent]:
        """At most `limit` archived events with a position above `after`, ascending."""
        readers = [self._reader(segment) for segment in self.segments if segment.last > after]
        found = (event for reader in readers for event in reader.events(after) if where.matches(event))
        return await asyncio.to_thread(_taken, found, limit)

    async def read_stream(self, stream: StreamId, after: int, limit: int, firsts: Sequence[int]) -> list[StoredEvent]:
        """At most `limit` events of one stream with a version above `after`, from the segments that begin at `firsts`."""
        readers = [self._reader(segment) for segment in self.segments if segment.first in firsts]
        found = (event for reader in readers for event in reader.stream(stream, after))
        return await asyncio.to_thread(_taken, found, limit)

    async def verify(self, segment: Segment, previous_hash: bytes) -> bytes:
        """The hash of the segment's last event, once file and chain were found good; ArchiveDamaged if not."""
        return await asyncio.to_thread(self._reader(segment).verify, previous_hash)

    async def compare(self, first: int, last: int) -> None:
        """ArchiveDamaged for the first file within the positions `first` to `last` that is not the one written."""
        for segment in self.segments:
            if first <= segment.first and segment.last <= last:
                await asyncio.to_thread(self._reader(segment).compare)

    async def subjects(self, segment: Segment) -> list[tuple[int, str, str, str, str]]:
        """Position, stream, type, tenant and person of each event of a segment that is about one."""
        return await asyncio.to_thread(lambda: list(_about_persons(self._reader(segment))))

    async def ends(self, segment: Segment) -> list[tuple[bytes, str, int, int]]:
        """Hash, stream, first position of the segment, and version of the last event that each stream has in it.

        ArchiveDamaged unless the file is the one written: what it says is believed from then on.
        """
        return await asyncio.to_thread(_ends, self._reader(segment))

    def _reader(self, segment: Segment) -> SegmentReader:
        return SegmentReader(self.directory, segment)


def _taken(events: Iterator[StoredEvent], limit: int) -> list[StoredEvent]:
    return list(islice(events, limit))


def _about_persons(reader: SegmentReader) -> Iterator[tuple[int, str, str, str, str]]:
    for event in reader.events(0):
        if event.data_subject is not None:
            yield event.position, str(event.stream), event.type, event.tenant, event.data_subject


def _ends(reader: SegmentReader) -> list[tuple[bytes, str, int, int]]:
    reader.compare()
    last = {event.stream: event for event in reader.events(0)}
    return [(event.hash, str(stream), reader.segment.first, event.version) for stream, event in last.items()]


class Archivist:
    """Moves the oldest events of one log to its archive. Any number may run: they take turns."""

    def __init__(
        self,
        log: Reading,
        dsn: str,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        schema: str,
        location: Path | None,
    ) -> None:
        self._log = log
        self._dsn = dsn
        self._pool = pool
        self._known = Archive(location)
        self._sql = ArchiveStatements(schema)

    @property
    def known(self) -> Archive:
        """The archive as far as this process knows of it; what another one archived may be lacking."""
        return self._known

    async def refresh(self) -> None:
        """Learn of what others archived."""
        segments = await self.segments()
        if len(segments) > len(self._known.segments):
            self._known = Archive(self._known.location, tuple(segments))

    async def learn_to(self, position: int) -> None:
        """Know the segment that holds an archived position. ArchiveDamaged if there is none."""
        if position > self._known.last:
            await self.refresh()
        if position > self._known.last:
            raise ArchiveDamaged("archived_segments", position, f"no segment holds position {position}")

    async def segments(self) -> list[Segment]:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(self._sql.segments)).fetchall()
        return [Segment(*row) for row in rows]

    async def archive(self, *, keep_events: int, segment_events: int) -> list[Segment]:
        """Archive whole segments as long as `keep_events` events stay in the database. The segments moved.

        Raises ArchiveMissing, ArchiveDamaged.
        """
        if segment_events < 1 or keep_events < 0:
            raise ValueError(f"segment_events {segment_events} must be 1 or more, keep_events {keep_events} 0 or more")
        await asyncio.to_thread(self._known.directory.mkdir, parents=True, exist_ok=True)
        moved: list[Segment] = []
        async with self._turn():
            await asyncio.to_thread(sweep, self._known.directory)
            known = await self.segments()
            moved += await self._finish(known)
            last = known[-1].last if known else 0
            upto = await self._log.head() - keep_events
            while last + segment_events <= upto:
                segment = await self._write(last + 1, last + segment_events)
                await self._make_known(segment)
                moved += await self._finish([segment])
                last = segment.last
        return moved

    async def note_subjects(self) -> None:
        """Let erasures reach what a former release archived, which left nothing in the database of whom events are about."""
        async for segment, subjects in self._read_back(self._sql.unnoted, self._known.subjects):
            async with self._transaction() as cursor:
                await cursor.executemany(self._sql.note_subject, subjects)
                await cursor.execute(self._sql.noted, (segment.first,))

    async def note_hashes(self) -> None:
        """Let streams go on from what a former release archived, of which it noted the version alone: otherwise a writer
        would look for their hashes in the files, with the head locked.
        """
        async for _, ends in self._read_back(self._sql.unhashed, self._known.ends):
            async with self._transaction() as cursor:
                await cursor.executemany(self._sql.note_hash, ends)

    async def _read_back(
        self, wanting: bytes, read: Callable[[Segment], Awaitable[_Notes]]
    ) -> AsyncIterator[tuple[Segment, _Notes]]:
        """What `read` finds in each segment of which the database knows too little, as `wanting` selects them."""
        async with self._pool.connection() as connection:
            with unhurried(connection):  # every stream that was ever archived
                rows = await (await connection.execute(wanting)).fetchall()
        for segment in starmap(Segment, rows):
            try:
                yield segment, await read(segment)
            except ArchiveDamaged as damage:  # who needs the file will be told; it is asked again at the next open
                _log.warning("what is missing of %s in the database cannot be noted: %s", segment.file, damage)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncCursor[TupleRow]]:
        async with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            yield cursor

    async def _write(self, first: int, last: int) -> Segment:
        previous_hash = await self._hash_at(first - 1) if first > 1 else GENESIS
        writer = await asyncio.to_thread(SegmentWriter, self._known.directory, first, last, previous_hash)
        try:
            for after in range(first - 1, last, BLOCK_EVENTS):
                events = await self._log.read(after, limit=min(BLOCK_EVENTS, last - after))
                await asyncio.to_thread(writer.add, events)
            segment = await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abandon()
            raise
        if await self._known.verify(segment, previous_hash) != await self._hash_at(last):
            raise ArchiveDamaged(segment.file, segment.last, "it does not end with the hash that the log has there")
        return segment

    async def _make_known(self, segment: Segment) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(
                self._sql.register,
                (segment.first, segment.last, segment.file, segment.size, segment.sha256, segment.index_at),
            )
        await self.refresh()

    async def _finish(self, known: Iterable[Segment]) -> list[Segment]:
        """Take out of the database what is archived, but still there."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(self._sql.archived_to)).fetchone()
        archived_to = row[0] if row else 0
        pending = [segment for segment in known if segment.last > archived_to]
        for segment in pending:
            await self._take_out(segment)
        return pending

    async def _take_out(self, segment: Segment) -> None:
        async with self._pool.connection() as connection:
            with unhurried(connection):  # a million events
                await self._move(connection, segment)

    async def _move(self, connection: AsyncConnection[TupleRow], segment: Segment) -> None:
        async with connection.transaction():
            await connection.execute(self._sql.note_streams, (segment.first, segment.first, segment.last))
            await connection.execute(self._sql.note_subjects, (segment.first, segment.last))
            await connection.execute(self._sql.noted, (segment.first,))
            await connection.execute(self._sql.move, (segment.first, segment.last))
            await connection.execute(self._sql.archived, (segment.last,))  # last: it holds up every writer

    async def _hash_at(self, position: int) -> bytes:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(self._sql.hash_at, (position,))).fetchone()
        return row[0] if row else b""

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """On a connection of its own, which holds the lock until it is closed: those that wait leave readers theirs."""
        async with await ImpatientConnection.connect(self._dsn, autocommit=True) as connection:
            with unhurried(connection):
                await connection.execute(self._sql.lock)
            yield


class ArchiveStatements:
    """The statements of archiving, rendered for one schema."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            key = Literal(f"eventlog archive:{schema}")
            return SQL(text).format(schema=Identifier(schema), key=key).as_bytes(None)

        self.lock = render("select pg_advisory_lock(hashtextextended({key}, 0))")
        self.segments = render(
            "select first, last, file, size, sha256, index_at from {schema}.archived_segments order by first"
        )
        self.register = render(
            "insert into {schema}.archived_segments (first, last, file, size, sha256, index_at)"
            " values (%s, %s, %s, %s, %s, %s)"
        )
        self.archived_to = render("select archived_to from {schema}.head")
        self.hash_at = render("select hash from {schema}.hashes where position = %s")
        self.note_streams = render(
            "insert into {schema}.archived_streams (stream, segment, version, hash)"
            " select distinct on (stream) stream, %s::bigint, version, hash from {schema}.events"
            " where position between %s and %s order by stream, version desc"
        )
        self.note_subjects = render(
            "insert into {schema}.archived_subjects (position, stream, type, tenant, data_subject)"
            " select position, stream, type, tenant, data_subject from {schema}.events"
            " where position between %s and %s and data_subject is not null"
        )
        self.unnoted = render(
            "select first, last, file, size, sha256, index_at from {schema}.archived_segments"
            " where not subjects_noted and last <= (select archived_to from {schema}.head) order by first"
        )
        self.note_subject = render(
            "insert into {schema}.archived_subjects (position, stream, type, tenant, data_subject)"
            " values (%s, %s, %s, %s, %s) on conflict do nothing"
        )
        self.noted = render("update {schema}.archived_segments set subjects_noted = true where first = %s")
        self.unhashed = render(
            "select first, last, file, size, sha256, index_at from {schema}.archived_segments"
            " where first in (select segment from {schema}.archived_streams where hash is null) order by first"
        )
        self.note_hash = render(
            "update {schema}.archived_streams set hash = %s"
            " where stream = %s and segment = %s and version = %s and hash is null"
        )
        self.move = render(
            "with gone as (delete from {schema}.events where position between %s and %s returning position, id, hash)"
            " insert into {schema}.archived_events (position, id, hash) select position, id, hash from gone"
        )
        self.archived = render("update {schema}.head set archived_to = %s")
