"""Every event names the one before it in the log and the one before it in its stream, also beside those that do not."""

from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest
from eventlog.chain import GENESIS, StreamVerifier, Verifier, canonical, sealed
from eventlog.limits import Limits
from eventlog.memory import MemoryEventLog
from eventlog.postgres import PostgresEventLog
from eventlog.records import StoredEvent, StreamEnd, StreamId
from eventlog.segments import Segment, SegmentReader, forget_read
from eventlog.testing import an_append, an_event, rechained
from synod.common.ids import uuid7

GOLDEN = Path(__file__).parent / "golden"
ONE, TWO = StreamId("order", "one"), StreamId("order", "two")


async def history(*streams: StreamId) -> list[StoredEvent]:
    """One event for each stream named, in order."""
    log = MemoryEventLog()
    for stream in streams:
        await log.append(an_append(stream))
    return await log.read()


def of_before(events: list[StoredEvent], *versions: int) -> list[StoredEvent]:
    """The same, but the events of these versions as they were stored before there was a chain for each stream."""
    forged: list[StoredEvent] = []
    ends: dict[StreamId, bytes] = {}
    previous = events[0].previous_hash
    for event in events:
        before = None if event.version in versions else ends.get(event.stream, GENESIS)
        forged.append(sealed(event._replace(stream_previous_hash=before), previous))
        previous = ends[event.stream] = forged[-1].hash
    return forged


def verified(events: list[StoredEvent], streams_max: int = 10) -> str:
    """What does not hold in the whole log; empty if all does."""
    verifier = Verifier(1, len(events), GENESIS, streams_max)
    verifier.check(events)
    found = verifier.finding()
    return found.reason and f"{found.broken_at}: {found.reason}"


def alone(events: list[StoredEvent], stream: StreamId = ONE) -> str:
    """What does not hold of one stream, known by its events alone."""
    verifier = StreamVerifier(stream)
    verifier.check(event for event in events if event.stream == stream)
    found = verifier.finding()
    return found.reason and f"{found.broken_at}: {found.reason}"


def without(events: list[StoredEvent], version: int) -> list[StoredEvent]:
    return [event for event in events if (event.stream, event.version) != (ONE, version)]


def with_changed(events: list[StoredEvent], at_version: int, **columns: object) -> list[StoredEvent]:
    changed = ONE, at_version
    return [e._replace(**columns) if (e.stream, e.version) == changed else e for e in events]  # type: ignore[arg-type]


async def test_the_two_forms_of_an_event_can_never_be_the_same_bytes() -> None:
    (event,) = await history(ONE)
    linked, of_before = canonical(event[:-2]), canonical(event._replace(stream_previous_hash=None)[:-2])
    last = event._replace(position=2**63 - 1, stream_previous_hash=None)
    assert linked[0] == 0x81
    assert max(of_before[0], canonical(last[:-2])[0]) < 0x80
    assert event.hash == sha256(GENESIS + linked).digest()


async def test_a_log_holds_that_has_events_of_before_at_its_begin_in_its_middle_or_alone() -> None:
    events = await history(ONE, TWO, ONE, ONE, TWO, ONE)
    for versions in ((1,), (1, 2), (3,), (1, 2, 3, 4)):
        assert verified(of_before(events, *versions)) == alone(of_before(events, *versions)) == ""


@pytest.mark.parametrize(
    ("versions", "ends"), [((), [4]), ((1,), [4]), ((1, 2), [1, 4]), ((3,), [2, 4]), ((1, 2, 3, 4), [1, 2, 3, 4])]
)
async def test_what_no_later_event_names_must_be_believed_by_itself(versions: tuple[int, ...], ends: list[int]) -> None:
    events = of_before(await history(ONE, TWO, ONE, ONE, ONE), *versions)
    verifier = StreamVerifier(ONE)
    verifier.check(event for event in events if event.stream == ONE)
    by_version = {event.version: event for event in events if event.stream == ONE}
    expected = [StreamEnd(version, by_version[version].position, by_version[version].hash) for version in ends]
    assert list(verifier.finding().ends) == expected


Attack = Callable[[list[StoredEvent]], list[StoredEvent]]


@pytest.mark.parametrize(
    ("attack", "finding"),
    [
        (lambda events: without(events, 1), "1: the event is missing"),
        (lambda events: without(events, 2), "2: the event is missing"),
        (lambda events: with_changed(without(events, 2), 3, version=2), "2: the event does not name its predecessor's"),
        (lambda events: with_changed(events, 2, data=b"[]"), "2: the event differs from what was hashed"),
        (lambda events: with_changed(events, 2, stream_previous_hash=None), "2: the event differs from what was"),
        (lambda events: with_changed(events, 3, stream_previous_hash=GENESIS), "3: the event does not name its pred"),
        (lambda events: with_changed(events, 3, hash=bytes(32)), "3: the event differs from what was hashed"),
        (lambda events: with_changed(events, 2, position=1), "2: the event stands at position 1, the one before it"),
        (lambda events: [event._replace(stream=ONE) for event in events], "2: the event is missing"),
    ],
)  # fmt: skip
async def test_whatever_is_done_to_a_stream_is_found_without_the_rest_of_the_log(attack: Attack, finding: str) -> None:
    assert alone(attack(await history(ONE, TWO, ONE, ONE))).startswith(finding)


async def test_an_event_rewritten_with_its_own_hash_is_betrayed_by_its_successor() -> None:
    events = await history(ONE, TWO, ONE, ONE)
    forged = sealed(events[2]._replace(data=b"[]"), events[2].previous_hash)
    assert alone([*events[:2], forged, events[3]]) == "3: the event does not name its predecessor's hash"


async def test_events_of_another_stream_are_no_part_of_it() -> None:
    verifier = StreamVerifier(ONE)
    verifier.check(await history(TWO))
    assert verifier.finding().reason == "the event is one of order/two"


async def test_a_rewritten_log_in_which_an_event_names_no_predecessor_of_its_stream_is_found() -> None:
    """By whoever sees the whole log, although every hash of the log's own chain is right."""
    events = await history(ONE, TWO, ONE, ONE)
    wrong = sealed(events[3]._replace(stream_previous_hash=events[1].hash), events[3].previous_hash)
    assert verified([*events[:3], wrong]) == "4: the event does not name the hash of its predecessor in order/one"
    begun = sealed(events[0]._replace(stream_previous_hash=bytes(31) + b"x"), GENESIS)
    assert verified([begun]).startswith("1: the event does not name")


async def test_of_streams_beyond_the_bound_those_met_longest_ago_are_not_followed() -> None:
    events = await history(ONE, TWO, ONE)
    wrong = [*events[:2], sealed(events[2]._replace(stream_previous_hash=bytes(32)), events[2].previous_hash)]
    assert verified(wrong, streams_max=1) == ""
    assert verified(wrong, streams_max=2).startswith("3: ")


async def test_forging_a_tail_completely_leaves_both_chains_whole() -> None:
    """That is what checkpoints are for."""
    first, *others = await history(ONE, TWO, ONE, ONE)
    forged = rechained([first._replace(data=b"[]"), *others])
    assert (verified(forged), alone(forged)) == ("", "")
    assert forged[-1].hash != others[-1].hash


def test_a_file_of_before_is_read_and_holds_as_it_did() -> None:
    """Written by the release that knew one chain only."""
    digest = bytes.fromhex("b064d80dfe0788119b04e21f47d934bdc601939af77e69508133181790b643e4")
    segment = Segment(1, 5, "archive-1.events.gz", 788, digest, 707)
    reader = SegmentReader(GOLDEN, segment)
    assert reader.verify(GENESIS).hex() == "7db5d6712d1e09a159957fa42e95fee6da527c6819a18813ce7c5506c3b1f615"
    assert [event.stream_previous_hash for event in reader.events(0)] == [None] * 5


@pytest.fixture
async def log(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as log:
        yield log


async def run_sql(dsn: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def append_as_before(dsn: str, stream: StreamId, version: int) -> None:
    """As a writer of the release before does: it knows nothing of the column."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute("select position, hash from eventlog.head for update")).fetchone()
        assert row is not None
        (event,) = await history(stream)
        moved = event._replace(position=row[0] + 1, version=version, id=uuid7(), stream_previous_hash=None)
        stored = sealed(moved, row[1])._asdict() | {"stream": str(stream)}
        columns = [name for name in stored if name != "stream_previous_hash"]
        await connection.execute(
            f"insert into eventlog.events ({', '.join(columns)})"
            f" values ({', '.join(f'%({name})s' for name in columns)})".encode(),
            stored,
        )
        await connection.execute("update eventlog.head set position = %(position)s, hash = %(hash)s", stored)


async def linked(log: PostgresEventLog, stream: StreamId) -> list[bool]:
    """Of each event of a stream, whether it names the one before it."""
    events = await log.read_stream(stream)
    hashes = [GENESIS, *[event.hash for event in events]]
    return [event.stream_previous_hash == before for event, before in zip(events, hashes, strict=False)]


async def test_two_releases_append_to_one_stream_in_turn(postgres_dsn: str, log: PostgresEventLog) -> None:
    """What the newer one remembers of the stream is never what it was before the older one wrote."""
    for version in (1, 4, 7):
        await append_as_before(postgres_dsn, ONE, version)
        await log.append(an_append(ONE))
        await log.append(an_append(ONE))
    assert await linked(log, ONE) == [False, True, True] * 3
    assert (await log.verify()).ok
    found = await log.verify_stream(ONE)
    assert (found.ok, [end.version for end in found.ends]) == (True, [3, 6, 9])


async def test_a_database_of_before_gets_the_column_and_keeps_its_hashes(postgres_dsn: str, tmp_path: Path) -> None:
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path):
        await append_as_before(postgres_dsn, ONE, 1)
        await append_as_before(postgres_dsn, ONE, 2)
    await run_sql(postgres_dsn, "alter table eventlog.events drop column stream_previous_hash")
    await run_sql(postgres_dsn, "alter table eventlog.archived_streams drop column hash")
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as log:
        await log.append(an_append(ONE))
        assert await linked(log, ONE) == [False, False, True]
        assert (await log.verify()).ok
        await log.archive(keep_events=0, segment_events=3)
        await log.append(an_append(ONE))
        assert await linked(log, ONE) == [False, False, True, True]
        assert (await log.verify()).ok


async def test_two_writers_of_one_stream_name_each_others_events(postgres_dsn: str, log: PostgresEventLog) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as other:
        for _ in range(4):
            await log.append(an_append(ONE), an_append(TWO))
            await other.append(an_append(ONE, an_event(), an_event()))
    assert await linked(log, ONE) == [True] * 12
    assert (await log.verify()).ok


@pytest.mark.parametrize("noted", [True, False], ids=["archived", "archived by a former release"])
async def test_the_next_event_of_an_archived_stream_names_the_archived_one(
    postgres_dsn: str, log: PostgresEventLog, noted: bool
) -> None:
    for _ in range(3):
        await log.append(an_append(ONE), an_append(TWO))
    await log.archive(keep_events=0, segment_events=2)
    if not noted:
        await run_sql(postgres_dsn, "update eventlog.archived_streams set hash = null")
    await log.append(an_append(ONE, expected=3))
    await log.append(an_append(ONE, expected=4))
    assert await linked(log, ONE) == [True] * 5
    assert (await log.verify()).ok
    assert (await log.verify_stream(ONE)).events == 5


async def test_what_an_archived_stream_ends_with_is_known_without_its_file(
    log: PostgresEventLog, tmp_path: Path
) -> None:
    await log.append(an_append(ONE))
    (segment,) = await log.archive(keep_events=0, segment_events=1)
    (tmp_path / segment.file).rename(tmp_path / "away")
    forget_read()
    await log.append(an_append(ONE, expected=1))
    (tmp_path / "away").rename(tmp_path / segment.file)
    assert await linked(log, ONE) == [True, True]


async def test_what_a_former_release_archived_is_read_once_at_the_open_and_not_by_a_writer(
    postgres_dsn: str, log: PostgresEventLog, tmp_path: Path
) -> None:
    for _ in range(2):
        await log.append(an_append(ONE), an_append(TWO))
    segments = await log.archive(keep_events=0, segment_events=2)
    await run_sql(postgres_dsn, "alter table eventlog.archived_streams drop column hash")
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as reopened:
        for segment in segments:
            (tmp_path / segment.file).rename(tmp_path / f"away-{segment.first}")
        forget_read()
        await reopened.append(an_append(ONE, expected=2), an_append(TWO, expected=2))
    for segment in segments:
        (tmp_path / f"away-{segment.first}").rename(tmp_path / segment.file)
    assert await linked(log, ONE) == await linked(log, TWO) == [True] * 3
    assert (await log.verify()).ok


async def test_no_hash_is_noted_from_a_file_of_a_former_release_that_is_not_as_it_was_written(
    postgres_dsn: str, log: PostgresEventLog, tmp_path: Path
) -> None:
    await log.append(an_append(ONE))
    await log.append(an_append(TWO))
    damaged, _ = await log.archive(keep_events=0, segment_events=1)
    await run_sql(postgres_dsn, "update eventlog.archived_streams set hash = null")
    data = (tmp_path / damaged.file).read_bytes()
    (tmp_path / damaged.file).write_bytes(data[:20] + bytes([data[20] ^ 0xFF]) + data[21:])
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path):
        assert await streams_without_hash(postgres_dsn) == [str(ONE)]
    (tmp_path / damaged.file).write_bytes(data)
    async with await PostgresEventLog.open(postgres_dsn, archive=tmp_path):
        assert await streams_without_hash(postgres_dsn) == []


async def streams_without_hash(dsn: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("select stream from eventlog.archived_streams where hash is null")
        return [row[0] for row in await cursor.fetchall()]


async def test_where_the_file_of_a_former_release_is_damaged_the_next_event_is_stored_all_the_same(
    postgres_dsn: str, log: PostgresEventLog, tmp_path: Path
) -> None:
    await log.append(an_append(ONE))
    (segment,) = await log.archive(keep_events=0, segment_events=1)
    await run_sql(postgres_dsn, "update eventlog.archived_streams set hash = null")
    (tmp_path / segment.file).rename(tmp_path / "away")
    forget_read()
    await log.append(an_append(ONE, expected=1))
    found = await log.verify_stream(ONE)
    assert (found.broken_at, segment.file in found.reason) == (1, True)
    (tmp_path / "away").rename(tmp_path / segment.file)
    assert await linked(log, ONE) == [True, False]
    assert (await log.verify()).ok
    assert [end.version for end in (await log.verify_stream(ONE)).ends] == [1, 2]


async def test_a_stream_of_many_pages_verifies(postgres_dsn: str) -> None:
    async with await PostgresEventLog.open(postgres_dsn, limits=Limits(streams_remembered_max=1)) as log:
        for _ in range(3):
            await log.append(an_append(ONE, *[an_event() for _ in range(800)]), an_append(TWO))
        found = await log.verify_stream(ONE)
        assert (found.ok, found.events, len(found.ends)) == (True, 2400, 1)


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        ("update eventlog.events set data = '[]' where position = 3", 2),
        ("update eventlog.events set stream_previous_hash = null where position = 3", 2),
        ("delete from eventlog.events where position = 3", 2),
        ("delete from eventlog.events where position = 1", 1),
    ],
)
async def test_a_tampered_stream_is_found_alone_and_the_others_hold(
    postgres_dsn: str, log: PostgresEventLog, tampering: str, broken_at: int
) -> None:
    for _ in range(3):
        await log.append(an_append(ONE), an_append(TWO))
    await run_sql(postgres_dsn, tampering)
    assert (await log.verify_stream(ONE)).broken_at == broken_at
    assert (await log.verify_stream(TWO)).ok
