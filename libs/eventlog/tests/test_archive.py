"""The oldest events become files, and nobody who reads, verifies or appends can tell."""

import asyncio
import errno
import fcntl
import gzip
import os
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from eventlog.chain import GENESIS
from eventlog.checkpoints import Checkpoints
from eventlog.errors import ArchiveDamaged, ArchiveMissing, DuplicateEventId, VersionConflict
from eventlog.limits import Limits
from eventlog.merkle import verify_inclusion
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import Append, Appended, Context, Filter, NewEvent, StoredEvent, StreamId
from eventlog.segments import SegmentReader, SegmentWriter, forget_read, sweep
from eventlog.signing import SigningKey
from eventlog.sources import LogSource
from eventlog.testing import NOON, a_stream, an_append, an_event, positions
from psycopg_pool import AsyncConnectionPool
from synod.common.ids import uuid7

QUICK = Limits(poll_interval_s=0.01)
DEAF = Limits(poll_interval_s=600)
"""Of a process that hears of nothing that others do."""
OLD = StreamId("order", "old")
GROWING = StreamId("order", "growing")


@pytest.fixture
async def log(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[PostgresEventLog]:
    """Positions 1 to 60 in turn on a stream that ends at 40 and on one that goes on."""
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as log:
        for _ in range(20):
            await log.append(an_append(OLD, an_event("Placed", b'{"n":1}')), an_append(GROWING))
        await log.append(an_append(GROWING, *[an_event() for _ in range(20)]))
        yield log


async def value(dsn: str, query: str) -> object:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def run_sql(dsn: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def until_registered(dsn: str, count: int) -> None:
    async with asyncio.timeout(30):
        while await value(dsn, "select count(*) from eventlog.archived_segments") != count:
            pass


class Positions:
    """Which events were seen."""

    name = "positions"
    version = 1
    types = None
    tables = "create table seen (position bigint primary key)"

    async def apply(self, connection: psycopg.AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        for event in events:
            await connection.execute("insert into seen values (%s)", [event.position])


class LearnsWhileReading(PostgresEventLog):
    """Hears of every segment in the middle of a read by time."""

    async def position_at(self, moment: datetime) -> int:
        position = await super().position_at(moment)
        await self._archivist.refresh()
        return position


async def test_whole_segments_are_moved_as_long_as_enough_stays(log: PostgresEventLog, postgres_dsn: str) -> None:
    moved = await log.archive(keep_events=15, segment_events=20)
    assert [(segment.first, segment.last) for segment in moved] == [(1, 20), (21, 40)]
    assert await value(postgres_dsn, "select min(position) from eventlog.events") == 41
    assert await log.archive(keep_events=15, segment_events=20) == []


async def test_what_is_read_is_the_same_before_and_after(log: PostgresEventLog) -> None:
    wheres = [Filter(), Filter(types=frozenset({"Placed"})), Filter(stream=OLD), Filter(tenant="other")]

    async def all_that_is_read() -> list[object]:
        pages = [
            await log.read(after, limit=7, where=where) for where in wheres for after in (0, 3, 19, 20, 37, 55, 60)
        ]
        streams = [await log.read_stream(s, after=v, limit=9) for s in (OLD, GROWING) for v in (0, 5, 18, 20, 33, 99)]
        return [*pages, *streams, await log.read(), await log.read_stream(GROWING), await log.read_stream(a_stream())]

    before = await all_that_is_read()
    await log.archive(keep_events=15, segment_events=20)
    assert await all_that_is_read() == before


async def test_every_column_survives_the_file(postgres_dsn: str, tmp_path: Path) -> None:
    event = NewEvent("Paid", 3, b"\x00\xff{}", uuid7(), NOON.replace(microsecond=123_456), data_subject="user-7")
    context = Context("acme", "agent zoë", "corr-1", uuid7(), "00-ab-cd-01")
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as log:
        await log.append(Append(a_stream(), 0, (event,), context), an_append(a_stream()))
        before = await log.read()
        await log.archive(keep_events=0, segment_events=2)
        assert await value(postgres_dsn, "select count(*) from eventlog.events") == 0
        assert await log.read() == before


async def test_versions_go_on_where_the_archive_ends(log: PostgresEventLog) -> None:
    await log.archive(keep_events=0, segment_events=20)
    assert (await log.append(an_append(OLD, expected=20))).versions == (21,)
    assert (await log.append(an_append(GROWING))).versions == (41,)
    assert positions(await log.read_stream(OLD, after=18)) == [37, 39, 61]


async def test_an_archived_stream_is_not_begun_again(log: PostgresEventLog) -> None:
    await log.archive(keep_events=0, segment_events=20)
    await log.append(an_append(a_stream()))  # the writer has learned the new head, and forgotten its streams
    with pytest.raises(VersionConflict) as conflict:
        await log.append(an_append(OLD, expected=0))
    assert conflict.value.actual == 20


async def test_archived_ids_stay_idempotency_keys(log: PostgresEventLog) -> None:
    stream, event = a_stream(), an_event(data=b"[1]")
    first = await log.append(an_append(stream, event))
    await log.append(an_append(a_stream(), *[an_event() for _ in range(19)]))
    await log.archive(keep_events=0, segment_events=20)
    await log.append(an_append(a_stream()))
    again = await log.append(an_append(stream, event, expected=0))
    assert (again.position, again.versions, again.duplicate) == (first.position, (1,), True)
    with pytest.raises(DuplicateEventId, match="other content"):
        await log.append(an_append(stream, an_event(data=b"[2]", event_id=event.id)))
    await log.append(an_append(a_stream()))
    with pytest.raises(DuplicateEventId, match="other content"):
        await log.append(an_append(a_stream(), event, expected=0))  # nothing but the id is known of this one
    assert await log.head() == 82


async def test_a_repeat_of_an_archived_event_that_cannot_be_read_fails_alone(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    (lost,) = await log.read(4, limit=1)
    (segment,) = await log.archive(keep_events=40, segment_events=20)
    (tmp_path / segment.file).unlink()
    forget_read()
    repeat = log.append(an_append(OLD, an_event(event_id=lost.id)))
    refused, *others = await asyncio.gather(
        repeat, *[log.append(an_append(a_stream())) for _ in range(3)], return_exceptions=True
    )
    assert isinstance(refused, ArchiveDamaged)
    assert [isinstance(other, Appended) for other in others] == [True] * 3


async def test_a_writer_that_was_opened_before_there_was_an_archive_goes_on_without_it(
    log: PostgresEventLog, postgres_dsn: str
) -> None:
    (old,) = await log.read(4, limit=1)
    async with await PostgresEventLog.open(postgres_dsn, limits=DEAF) as other:
        await log.archive(keep_events=40, segment_events=20)
        repeat = other.append(an_append(OLD, an_event(event_id=old.id)))
        refused, stored = await asyncio.gather(repeat, other.append(an_append(a_stream())), return_exceptions=True)
        assert isinstance(refused, ArchiveMissing)
        assert isinstance(stored, Appended)
        with pytest.raises(ArchiveMissing):
            await other.read()


async def test_a_writer_that_does_not_know_yet_stores_nothing_twice(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    """Its memory says that nobody wrote since; the archiving of another process must end that memory."""
    archived = await log.read(0, limit=1)
    repeated = an_append(a_stream(), an_event("Placed", b'{"n":1}', event_id=archived[0].id))
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as other:
        await other.archive(keep_events=0, segment_events=20)
    with pytest.raises(DuplicateEventId):
        await log.append(repeated)


async def test_the_chain_verifies_across_the_border(log: PostgresEventLog) -> None:
    await log.archive(keep_events=15, segment_events=20)
    assert (await log.verify()).events == 60
    assert (await log.verify(15, 45)).or_raise().events == 31
    assert (await log.verify(41)).or_raise().events == 20


async def test_checkpoints_and_proofs_hold_across_the_border(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        await pool.open()
        checkpoints = Checkpoints(pool, log, "shop", SigningKey.generate())
        await checkpoints.prepare()
        await checkpoints.make()
        await log.archive(keep_events=15, segment_events=20)
        await log.append(an_append(a_stream()))
        await checkpoints.make()
        assert (await checkpoints.verify()).attested_to == 61
        for position in (3, 40, 41, 61):
            proven = await checkpoints.prove(position)
            assert verify_inclusion(proven.event.hash, proven.proof, proven.checkpoint.root_hash)


async def test_a_reader_of_another_process_misses_nothing(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as other:
        archiving = asyncio.create_task(log.archive(keep_events=0, segment_events=5))
        while not archiving.done():
            assert positions(await other.read()) == list(range(1, 61))
            assert [event.version for event in await other.read_stream(GROWING)] == list(range(1, 41))
        assert len(await archiving) == 12


async def test_a_reader_that_heard_of_no_archiving_misses_nothing(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    async with await PostgresEventLog.open(postgres_dsn, limits=DEAF, archive=tmp_path) as reader:
        times = [event.recorded_at for event in await reader.read()]
        await log.archive(keep_events=40, segment_events=20)
        assert positions(await reader.read()) == list(range(1, 61))
        await log.archive(keep_events=20, segment_events=20)
        assert [event.version for event in await reader.read_stream(GROWING)] == list(range(1, 41))
        await log.archive(keep_events=10, segment_events=10)
        assert positions((await reader.next_page()).events) == list(range(1, 61))
        await log.archive(keep_events=0, segment_events=10)
        assert await reader.position_at(times[54]) == await log.position_at(times[54]) > 50


async def test_a_view_of_a_process_that_heard_of_no_archiving_is_complete(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    async with (
        await PostgresEventLog.open(postgres_dsn, limits=DEAF, archive=tmp_path) as reader,
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool,
    ):
        await log.archive(keep_events=20, segment_events=20)
        await Projector(pool, Positions(), LogSource(reader)).catch_up()
        assert await value(postgres_dsn, "select count(*) from view_positions.seen") == 60


async def test_an_archived_event_that_no_segment_holds_is_an_error(log: PostgresEventLog, postgres_dsn: str) -> None:
    await run_sql(postgres_dsn, "delete from eventlog.events where position <= 20")
    await run_sql(postgres_dsn, "update eventlog.head set archived_to = 20")
    with pytest.raises(ArchiveDamaged, match="no segment"):
        await log.read()


async def test_a_segment_that_becomes_known_during_a_read_is_not_read_twice(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    """Its rows are still in the table: the archiver waits for the head, which somebody holds."""
    await log.archive(keep_events=40, segment_events=20)
    async with (
        await LearnsWhileReading.open(postgres_dsn, limits=DEAF, archive=tmp_path) as reader,
        await psycopg.AsyncConnection.connect(postgres_dsn) as holder,
    ):
        await holder.execute("select from eventlog.head for update")
        archiving = asyncio.create_task(log.archive(keep_events=20, segment_events=20))
        await until_registered(postgres_dsn, 2)
        assert positions(await reader.read(where=Filter(since=NOON))) == list(range(1, 61))
        await holder.rollback()
        assert [segment.last for segment in await archiving] == [40]


async def test_appends_go_on_while_events_are_archived(log: PostgresEventLog) -> None:
    archiving = asyncio.create_task(log.archive(keep_events=0, segment_events=20))
    while not archiving.done():
        await log.append(an_append(GROWING))
    await archiving
    head = await log.head()
    assert (await log.verify()).or_raise().events == head
    assert len(await log.read_stream(GROWING, limit=head)) == head - 20


async def test_an_archiving_that_was_interrupted_is_finished_by_the_next(
    log: PostgresEventLog, postgres_dsn: str
) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_dsn) as holder:
        await holder.execute("select from eventlog.head for update")
        archiving = asyncio.create_task(log.archive(keep_events=40, segment_events=20))
        await until_registered(postgres_dsn, 1)
        archiving.cancel()
        await asyncio.wait([archiving])
    assert await value(postgres_dsn, "select count(*) from eventlog.events") == 60
    await log.archive(keep_events=40, segment_events=20)
    assert await value(postgres_dsn, "select archived_to from eventlog.head") == 20
    assert positions(await log.read()) == list(range(1, 61))


async def test_archivers_of_one_process_take_turns_and_leave_the_readers_alone(
    postgres_dsn: str, tmp_path: Path
) -> None:
    frugal = Limits(poll_interval_s=0.01, readers_max=1, reconnect_timeout_s=5)
    async with await PostgresEventLog.open(postgres_dsn, limits=frugal, archive=tmp_path) as log:
        await log.append(an_append(OLD, *[an_event() for _ in range(20)]))
        moved = await asyncio.gather(*[log.archive(keep_events=0, segment_events=10) for _ in range(5)])
        assert sorted(map(len, moved)) == [0, 0, 0, 0, 2]
        assert positions(await log.read()) == list(range(1, 21))


async def test_two_writers_of_one_segment_do_not_spoil_each_others_file(log: PostgresEventLog, tmp_path: Path) -> None:
    """As when an archiver lost its lock, and with it its turn, without noticing."""
    events = await log.read(limit=20)
    first, second = (SegmentWriter(tmp_path, 1, 20, GENESIS) for _ in range(2))
    first.add(events)
    segment = first.finish()
    second.abandon()
    assert list(SegmentReader(tmp_path, segment).events(0)) == events
    late = SegmentWriter(tmp_path, 1, 20, GENESIS)
    late.add(events)
    assert SegmentReader(tmp_path, segment).verify(GENESIS) == events[-1].hash
    assert late.finish() == segment
    assert [file.name for file in tmp_path.iterdir()] == [segment.file]


async def test_what_a_killed_archiver_had_begun_is_gone_after_the_next_archiving(
    log: PostgresEventLog, tmp_path: Path
) -> None:
    left = tmp_path / f"{1:020d}-{20:020d}.events.{uuid7().hex}.unfinished"
    left.write_bytes(b"half a segment")
    (segment,) = await log.archive(keep_events=40, segment_events=20)
    assert [file.name for file in tmp_path.iterdir()] == [segment.file]


async def test_what_another_archiver_is_writing_is_not_swept_away(log: PostgresEventLog, tmp_path: Path) -> None:
    events = await log.read(limit=20)
    writing = SegmentWriter(tmp_path, 1, 20, GENESIS)
    sweep(tmp_path)
    writing.add(events)
    segment = writing.finish()
    assert SegmentReader(tmp_path, segment).verify(GENESIS) == events[-1].hash


def test_what_was_left_is_swept_where_only_a_writable_file_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a lock of a whole file is one of its bytes."""
    lock = fcntl.flock

    def nfs_lock(file: Any, operation: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs_lock)
    (tmp_path / "left.unfinished").write_bytes(b"half a segment")
    writing = SegmentWriter(tmp_path, 1, 20, GENESIS)
    sweep(tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name != "left.unfinished"
    writing.abandon()


async def test_the_file_is_json_lines_for_anybody(log: PostgresEventLog, tmp_path: Path) -> None:
    (segment,) = await log.archive(keep_events=40, segment_events=20)
    header, *events, index = map(orjson.loads, gzip.decompress((tmp_path / segment.file).read_bytes()).splitlines())
    assert (header["format"], header["first"], header["last"]) == ("eventlog-archive", 1, 20)
    assert header["previous_hash"] == bytes(32).hex()
    assert [event["position"] for event in events] == list(range(1, 21))
    assert index["streams"] == {"order/old": [0], "order/growing": [0]}


async def test_nothing_is_taken_out_of_a_log_whose_chain_does_not_hold(
    log: PostgresEventLog, postgres_dsn: str
) -> None:
    await run_sql(postgres_dsn, "update eventlog.events set data = '[]' where position = 7")
    with pytest.raises(ArchiveDamaged, match="position 7"):
        await log.archive(keep_events=15, segment_events=20)
    assert await value(postgres_dsn, "select count(*) from eventlog.events") == 60


async def test_a_damaged_or_missing_file_is_named(log: PostgresEventLog, tmp_path: Path) -> None:
    damaged, missing = await log.archive(keep_events=15, segment_events=20)
    path = tmp_path / damaged.file
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / missing.file).unlink()
    with pytest.raises(ArchiveDamaged, match=damaged.file):
        await log.read()
    with pytest.raises(ArchiveDamaged, match=missing.file):
        await log.read(20)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


async def test_verification_reads_the_files_as_they_are_now(log: PostgresEventLog, tmp_path: Path) -> None:
    _, second = await log.archive(keep_events=15, segment_events=20)
    assert len(await log.read()) == 60  # and keeps what it read
    damage(tmp_path / second.file, second.size // 2)
    found = await log.verify()
    assert (found.ok, found.broken_at) == (False, 21)
    assert second.file in found.reason
    assert (await log.verify(1, 20)).ok
    assert (await log.verify(30)).broken_at == 30
    assert (await log.verify(41)).ok


async def test_a_file_whose_events_hold_is_still_compared_with_what_was_written(
    log: PostgresEventLog, tmp_path: Path
) -> None:
    _, second = await log.archive(keep_events=15, segment_events=20)
    damage(tmp_path / second.file, 20)  # the header, which no reader needs
    found = await log.verify()
    assert (found.ok, found.broken_at) == (False, 21)


async def test_what_was_added_to_a_file_is_found(log: PostgresEventLog, tmp_path: Path) -> None:
    _, second = await log.archive(keep_events=15, segment_events=20)
    with (tmp_path / second.file).open("ab") as file:
        file.write(b"more")
    assert (await log.verify()).broken_at == 21


async def test_what_is_broken_before_a_damaged_file_is_found_first(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    _, second = await log.archive(keep_events=15, segment_events=20)
    (tmp_path / second.file).unlink()
    block = SegmentWriter(tmp_path, 1, 20, GENESIS)
    events = await log.read(limit=20)
    block.add([event._replace(data=b"[]") if event.position == 7 else event for event in events])
    forged = block.finish()
    sizes = f"size = {forged.size}, index_at = {forged.index_at}"
    await run_sql(postgres_dsn, f"update eventlog.archived_segments set {sizes} where first = 1")
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as fresh:
        assert (await fresh.verify()).broken_at == 7


@pytest.mark.parametrize("damaged_from", [1, 21], ids=["first segment", "second segment"])
async def test_verification_of_a_stream_finds_the_first_version_that_cannot_be_read(
    log: PostgresEventLog, tmp_path: Path, damaged_from: int
) -> None:
    segments = await log.archive(keep_events=15, segment_events=20)
    (segment,) = [segment for segment in segments if segment.first == damaged_from]
    damage(tmp_path / segment.file, segment.size // 2)
    found = await log.verify_stream(GROWING)
    assert (found.ok, found.broken_at) == (False, damaged_from // 2 + 1)
    assert segment.file in found.reason


async def test_verification_with_checkpoints_finds_a_damaged_file(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        checkpoints = Checkpoints(pool, log, "shop", SigningKey.generate())
        await checkpoints.prepare()
        await checkpoints.make()
        _, second = await log.archive(keep_events=15, segment_events=20)
        await log.read()
        damage(tmp_path / second.file, second.size // 2)
        assert (await checkpoints.verify()).broken_at == 21


async def test_a_log_with_an_archive_is_not_opened_without_it(log: PostgresEventLog, postgres_dsn: str) -> None:
    with pytest.raises(ArchiveMissing):
        async with await PostgresEventLog.open(postgres_dsn) as without:
            await without.archive(keep_events=0)
    await log.archive(keep_events=15, segment_events=20)
    with pytest.raises(ArchiveMissing):
        await PostgresEventLog.open(postgres_dsn)


async def test_a_log_of_a_release_that_knew_no_archive_is_opened_as_it_is(postgres_dsn: str, tmp_path: Path) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        await log.append(an_append(GROWING, *[an_event() for _ in range(20)]))
    await run_sql(
        postgres_dsn,
        "drop view eventlog.hashes, eventlog.subjects; drop table eventlog.archived_events, eventlog.archived_streams,"
        " eventlog.archived_subjects, eventlog.archived_segments; alter table eventlog.head drop column archived_to",
    )
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as log:
        await log.append(an_append(GROWING, expected=20))
        assert len(await log.archive(keep_events=0, segment_events=10)) == 2
        assert (await log.verify()).or_raise().events == 21


async def test_the_command_archives_and_takes_a_dsn_from_a_file(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    dsn = tmp_path / "dsn"
    dsn.write_text(postgres_dsn)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventlog", "archive", f"@{dsn}", str(tmp_path), "--keep", "15", "--segment", "20"),
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await program.communicate()
    assert [line.partition(":")[0] for line in answer.decode().splitlines()] == ["1 to 20", "21 to 40"]
    assert positions(await log.read()) == list(range(1, 61))


async def test_reading_by_time_and_as_of_a_moment_reach_into_the_archive(log: PostgresEventLog) -> None:
    times = [event.recorded_at for event in await log.read()]
    wheres = [Filter(since=times[10], until=times[30]), Filter(since=times[30]), Filter(until=times[10])]

    async def all_that_is_read() -> list[object]:
        found: list[object] = [await log.position_at(at) for at in (NOON, times[4], times[30], times[59])]
        return found + [await log.read(where=where) for where in wheres]

    before = await all_that_is_read()
    await log.archive(keep_events=15, segment_events=20)
    assert await all_that_is_read() == before
    assert before[0] == 0
    assert before[3] == 60


async def test_a_follower_that_stands_in_the_archive_comes_out_of_it_without_a_gap(
    log: PostgresEventLog, postgres_dsn: str, tmp_path: Path
) -> None:
    await log.archive(keep_events=15, segment_events=20)
    async with await PostgresEventLog.open(postgres_dsn, limits=QUICK, archive=tmp_path) as fresh:
        seen: list[int] = []
        while len(seen) < 60:
            page = await fresh.next_page(seen[-1] if seen else 0, limit=7)
            assert page.events
            seen += positions(page.events)
    assert seen == list(range(1, 61))
