"""Rows beside events: both are stored, or neither, whatever happens in between."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from eventlog.at_rest import EncryptedLog
from eventlog.binary import to_int
from eventlog.data_keys import DataKeys
from eventlog.errors import AppendRefused, LogUnavailable, VersionConflict
from eventlog.limits import Limits
from eventlog.log import EventLog
from eventlog.memory import MemoryEventLog
from eventlog.observer import GroupCommitted
from eventlog.personal_log import PersonalLog
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, Append, Appended, ExpectedVersion, StreamId
from eventlog.side_table import SideRow, SideTable
from eventlog.sql import FEW
from eventlog.testing import NOON, FakeKms, KmsMasterKey, a_stream, an_append, an_event
from eventlog.vault import Vault
from lossy_proxy import lossy_proxy
from psycopg_pool import AsyncConnectionPool

ANSWERS = SideTable("answers", {"id": "text", "attempt": "bigint", "text": "bytea"}, rank="attempt")
TABLE = "create table answers (id text primary key, attempt bigint not null, text bytea not null)"
UNPAIRED = (
    "select coalesce(event.stream, answer.id) from eventlog.events event full join answers answer"
    " on event.stream = answer.id where event.stream is null or answer.id is null"
)
"""What of either kind is there without the other, where each event has a row that is named as its stream."""

Kept = dict[str, tuple[int, bytes]]


def answered(
    stream: StreamId, *, expected: ExpectedVersion = ANY, id: str = "", attempt: int = 1, text: bytes = b"yes"
) -> Append:
    """An append of one event with one row beside it, by default named as the stream."""
    return replace(an_append(stream, expected=expected), rows=(ANSWERS.row(id or str(stream), attempt, text),))


class SideTableContract:
    """What every log with a side table does. Subclasses give the fixtures `log`, and `kept` to read the table."""

    async def test_a_row_is_stored_with_its_event(self, log: EventLog, kept: Callable[[], Awaitable[Kept]]) -> None:
        await log.append(an_append(a_stream()), answered(a_stream(), id="a"))
        assert (await kept(), await log.head()) == ({"a": (1, b"yes")}, 2)

    async def test_what_is_refused_leaves_no_row(self, log: EventLog, kept: Callable[[], Awaitable[Kept]]) -> None:
        stream = a_stream()
        await log.append(an_append(stream))
        with pytest.raises(VersionConflict):
            await log.append(answered(a_stream(), id="a"), answered(stream, expected=7, id="b"))
        assert (await kept(), await log.head()) == ({}, 1)

    async def test_a_repeat_stores_its_row_no_second_time(
        self, log: EventLog, kept: Callable[[], Awaitable[Kept]]
    ) -> None:
        append = answered(a_stream(), id="a")
        await log.append(append)
        again = await log.append(replace(append, rows=(ANSWERS.row("a", 2, b"no"),)))
        assert (again.duplicate, await kept()) == (True, {"a": (1, b"yes")})

    async def test_a_row_of_lower_rank_replaces_none_and_the_last_of_equals_stays(
        self, log: EventLog, kept: Callable[[], Awaitable[Kept]]
    ) -> None:
        for attempt, text in ((2, b"first"), (2, b"last"), (1, b"late")):
            await log.append(answered(a_stream(), id="a", attempt=attempt, text=text))
        equals = tuple(ANSWERS.row("b", 1, text) for text in (b"first", b"last"))
        await log.append(replace(an_append(a_stream()), rows=equals))
        assert await kept() == {"a": (2, b"last"), "b": (1, b"last")}

    async def test_of_many_rows_of_one_key_at_once_the_table_keeps_what_it_would_one_by_one(
        self, log: EventLog, kept: Callable[[], Awaitable[Kept]]
    ) -> None:
        attempts = [3, 1, 2]
        await asyncio.gather(*[log.append(answered(a_stream(), id="a", attempt=each)) for each in attempts])
        await log.append(
            replace(answered(a_stream(), id="b"), rows=(ANSWERS.row("b", 2, b"late"), ANSWERS.row("b", 1, b"early")))
        )
        assert await kept() == {"a": (3, b"yes"), "b": (2, b"late")}


class TestPostgresSideTable(SideTableContract):
    @pytest.fixture
    async def log(self, database: str) -> AsyncIterator[PostgresEventLog]:
        async with await opened(database) as log:
            yield log

    @pytest.fixture
    def kept(self, database: str) -> Callable[[], Awaitable[Kept]]:
        return lambda: kept_in(database)


class TestMemorySideTable(SideTableContract):
    @pytest.fixture
    def answers(self) -> Kept:
        return {}

    @pytest.fixture
    def log(self, answers: Kept) -> MemoryEventLog:
        def store(rows: Sequence[SideRow]) -> None:
            for row in rows:
                id, attempt, text = row
                assert id is not None and attempt is not None and text is not None
                known = answers.get(id.decode())
                if known is None or known[0] <= to_int(attempt):
                    answers[id.decode()] = (to_int(attempt), text)

        return MemoryEventLog(side_table=store)

    @pytest.fixture
    def kept(self, answers: Kept) -> Callable[[], Awaitable[Kept]]:
        async def read() -> Kept:
            return answers

        return read


@pytest.fixture
async def database(postgres_dsn: str) -> str:
    """A database in which the table is."""
    await run_sql(postgres_dsn, TABLE)
    return postgres_dsn


async def opened(dsn: str, **options) -> PostgresEventLog:
    return await PostgresEventLog.open(dsn, side_table=ANSWERS, **options)


async def run_sql(dsn: str, statement: str) -> list[tuple]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def kept_in(dsn: str) -> Kept:
    return {id: (attempt, text) for id, attempt, text in await run_sql(dsn, "select id, attempt, text from answers")}


@asynccontextmanager
async def one_group(dsn: str, log: PostgresEventLog, events: int) -> AsyncIterator[None]:
    """What is appended inside is committed together: the head is locked until `events` wait."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection, asyncio.timeout(30):
        await connection.execute("select * from eventlog.head for update")
        first = asyncio.create_task(log.append(an_append(a_stream())))
        while not await (await connection.execute("select from pg_locks where not granted")).fetchall():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        yield
        while log.backlog_events < events:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await first


async def trigger(dsn: str, body: str) -> None:
    """Run `body` before each row of the table is stored."""
    await run_sql(dsn, f"create function act() returns trigger language plpgsql as $$ begin {body}; return new; end $$")
    await run_sql(dsn, "create trigger act before insert on answers for each row execute function act()")


async def test_a_server_that_dies_between_event_and_row_keeps_neither(database: str) -> None:
    async with await opened(database, limits=Limits(reconnect_timeout_s=0.5)) as log:
        await trigger(database, "perform pg_terminate_backend(pg_backend_pid())")
        append = answered(a_stream())
        for _ in range(2):  # under the lock, and anew
            with pytest.raises(LogUnavailable, match="cannot be reached"):
                await log.append(append)
        assert (await log.head(), await kept_in(database)) == (0, {})
        await run_sql(database, "drop trigger act on answers")
        assert await log.append(append) == Appended(1, (1,), duplicate=False)
        assert await run_sql(database, UNPAIRED) == []


async def test_a_server_that_dies_between_event_and_row_from_memory_costs_neither(database: str) -> None:
    async with await opened(database) as log:
        await log.append(answered(a_stream()))
        await run_sql(database, "create sequence tries")
        await trigger(database, "if nextval('tries') < 3 then perform pg_terminate_backend(pg_backend_pid()); end if")
        assert (await log.append(answered(a_stream(), expected=0))).position == 2
        assert await run_sql(database, "select last_value from tries") == [(3,)]
        assert (await run_sql(database, UNPAIRED), len(await kept_in(database))) == ([], 2)


async def test_killed_connections_leave_no_event_without_its_row_nor_a_row_without_its_event(database: str) -> None:
    async with await opened(database) as log:

        async def append_all() -> None:
            for _ in range(40):
                await asyncio.gather(*[log.append(answered(a_stream(), expected=0)) for _ in range(5)])

        appending = asyncio.create_task(append_all())
        for position in (20, 60, 120):
            await log.wait_for(position, timeout_s=30)
            await run_sql(
                database,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where backend_type = 'client backend' and datname = current_database() and pid <> pg_backend_pid()",
            )
            assert await run_sql(database, UNPAIRED) == []
        await appending
        assert (await run_sql(database, UNPAIRED), await log.head()) == ([], 200)


async def test_an_append_whose_answer_is_lost_after_commit_has_its_row(database: str) -> None:
    async with lossy_proxy(database) as proxy, await opened(proxy.dsn) as log:
        await log.append(answered(a_stream()))
        proxy.lose_commits = 1
        assert await log.append(answered(a_stream(), expected=0)) == Appended(2, (1,), duplicate=False)
        assert proxy.lose_commits == 0
        assert (await run_sql(database, UNPAIRED), len(await kept_in(database))) == ([], 2)


def rows_of(*ids: str) -> tuple[SideRow, ...]:
    return tuple(ANSWERS.row(id, 1, b"yes") for id in ids)


@pytest.mark.parametrize("late", [("late",), ("late", "too")])
async def test_rows_whose_event_another_process_forestalled_are_not_stored(
    database: str, late: tuple[str, ...]
) -> None:
    """The writer tries on what it remembers, finds the head moved, and refuses under the lock."""
    stream = a_stream()
    async with await opened(database) as one, await opened(database) as other:
        await one.append(answered(stream, id="first"))
        await other.append(an_append(stream))
        with pytest.raises(VersionConflict):
            await one.append(replace(an_append(stream, expected=1), rows=rows_of(*late)))
    assert await kept_in(database) == {"first": (1, b"yes")}


@pytest.mark.parametrize("late", [("late",), ("late", "too")])
async def test_rows_whose_stream_is_in_the_archive_are_not_stored(
    database: str, tmp_path: Path, late: tuple[str, ...]
) -> None:
    """The writer remembers the head, and not what it never heard of: the statement finds the stream in the archive."""
    stream = a_stream()
    async with await opened(database, archive=tmp_path) as log:
        for each in (stream, a_stream(), a_stream()):
            await log.append(an_append(each))
        assert await log.archive(keep_events=1, segment_events=2)
    async with await opened(database, archive=tmp_path) as log:
        for _ in range(2):
            await log.append(an_append(a_stream()))
        with pytest.raises(VersionConflict):
            await log.append(replace(an_append(stream, expected=0), rows=rows_of(*late)))
        assert (await log.head(), await kept_in(database)) == (5, {})


async def test_writers_that_take_turns_store_the_rows_of_all(database: str) -> None:
    async with await opened(database) as one, await opened(database) as other:
        for _ in range(20):
            for log in (one, one, other):
                await log.append(answered(a_stream(), expected=0))
        assert (await run_sql(database, UNPAIRED), await one.head()) == ([], 60)


async def test_a_refused_request_of_a_group_leaves_no_row_and_the_others_have_theirs(database: str) -> None:
    async with await opened(database) as log:
        async with one_group(database, log, events=4):
            good = [log.append(answered(a_stream(), id=f"good {number}")) for number in range(3)]
            bad = log.append(answered(a_stream(), expected=5, id="bad"))
            outcomes = asyncio.gather(*good[:2], bad, *good[2:], return_exceptions=True)
        assert [type(each) for each in await outcomes] == [Appended, Appended, VersionConflict, Appended]
        assert set(await kept_in(database)) == {"good 0", "good 1", "good 2"}


async def test_rows_whose_table_is_gone_fail_their_own_appends_alone_until_it_is_back(database: str) -> None:
    async with await opened(database) as log:
        await log.append(answered(a_stream()))
        await run_sql(database, "drop table answers")
        for _ in range(2):  # while the statement is prepared, and when it cannot be
            good = [log.append(an_append(a_stream())) for _ in range(4)]
            bad = log.append(answered(a_stream()))
            outcomes = await asyncio.gather(*good[:2], bad, *good[2:], return_exceptions=True)
            assert [type(each) for each in outcomes] == [Appended] * 2 + [AppendRefused] + [Appended] * 2
            assert '"answers" does not exist' in str(outcomes[2])
        assert await log.head() == 9
        await run_sql(database, TABLE)
        await log.append(answered(a_stream(), id="back"))
    assert await kept_in(database) == {"back": (1, b"yes")}


async def test_a_row_too_large_for_an_index_is_refused_at_once_and_alone(database: str) -> None:
    async with await opened(database) as log:
        await log.append(answered(a_stream()))
        too_long = os.urandom(10_000).hex()  # what repeats is compressed
        appends = [log.append(answered(a_stream(), id=id)) for id in ("a", too_long, "b")]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Appended, AppendRefused, Appended]
        assert "index row requires" in str(outcomes[1])
        assert (await log.head(), len(await kept_in(database))) == (3, 3)


async def test_a_disk_too_full_for_the_row_holds_its_event_back(database: str) -> None:
    async with await opened(database, limits=Limits(reconnect_timeout_s=0.5)) as log:
        await log.append(answered(a_stream()))
        await trigger(database, "raise 'No space left on device' using errcode = 'disk_full'")
        append = answered(a_stream(), expected=0)
        with pytest.raises(LogUnavailable, match="No space left on device"):
            await log.append(append)
        assert (await log.head(), len(await kept_in(database))) == (1, 1)
        await run_sql(database, "drop trigger act on answers")
        assert await log.append(append) == Appended(2, (1,), duplicate=False)
        assert await run_sql(database, UNPAIRED) == []


async def test_rows_count_towards_the_size_of_a_group(database: str) -> None:
    groups: list[int] = []

    class Hearing:
        def committed(self, group: GroupCommitted) -> None:
            groups.append(group.requests)

    async with await opened(database, observer=Hearing(), limits=Limits(group_bytes_max=1_000)) as log:
        async with one_group(database, log, events=4):
            appends = asyncio.gather(*[log.append(answered(a_stream(), text=bytes(400))) for _ in range(4)])
        await appends
    assert groups == [1, 2, 2]


@pytest.mark.parametrize("memory", [True, False])
async def test_rows_in_a_log_without_a_side_table_are_refused(postgres_dsn: str, memory: bool) -> None:
    log = MemoryEventLog() if memory else await PostgresEventLog.open(postgres_dsn)
    with pytest.raises(ValueError, match="opened with their side table"):
        await log.append(answered(a_stream()))
    assert await log.head() == 0
    await log.close()


def test_a_table_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="the side table answers needs a column at least, its key"):
        SideTable("answers", {})
    with pytest.raises(ValueError, match="cannot be uuid, only text, bytea"):
        SideTable("answers", {"id": "uuid"})  # type: ignore[dict-item]
    for name, column in (
        ("app.answers", "id"),
        ("", "id"),
        ("answers", "#"),
        ("answers", "{id}"),
        ("answers", "a" * 64),
    ):
        with pytest.raises(ValueError, match="is no name for a side table or its column"):
            SideTable(name, {column: "text"})
    with pytest.raises(ValueError, match="the rank 'tries' of the side table answers is none of its columns"):
        SideTable("answers", {"id": "text"}, rank="tries")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (("a", 1), ValueError),
        (("a", 1, b"yes", 2), ValueError),
        (("a", 2**63, b"yes"), OverflowError),
        (("a", "1", b"yes"), AttributeError),
        (("a", 1, "yes"), TypeError),
        ((b"a", 1, b"yes"), TypeError),
        ((None, 1, b"yes"), ValueError),
        (("a", None, b"yes"), ValueError),
    ],
)
def test_what_is_no_row_of_the_table_fails_its_own_caller(values: tuple, error: type[Exception]) -> None:
    with pytest.raises(error):
        ANSWERS.row(*values)


async def test_any_value_is_stored_as_it_is(postgres_dsn: str) -> None:
    """Alone and with others, which are sent in two ways."""
    await run_sql(postgres_dsn, 'create table "order" (id text primary key, "from" bytea, c bigint, d timestamptz)')
    noted = SideTable("order", {"id": "text", "from": "bytea", "c": "bigint", "d": "timestamptz"})
    rows = [("zo\u00eb", b"\x00\xff", -(2**63), NOON), ("", b"", 0, NOON), ("null", None, None, None)]
    async with await PostgresEventLog.open(postgres_dsn, side_table=noted) as log:
        await log.append(replace(an_append(a_stream()), rows=tuple(noted.row(*row) for row in rows)))
        assert set(await run_sql(postgres_dsn, 'select * from "order"')) == set(rows)
        for id, *rest in rows:
            await log.append(replace(an_append(a_stream()), rows=(noted.row(id + " alone", *rest),)))
    alone = await run_sql(postgres_dsn, "select * from \"order\" where id like '%alone'")
    assert alone == [(id + " alone", *rest) for id, *rest in rows]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("events", range(1, FEW + 2))
async def test_rows_go_with_any_number_of_events(database: str, events: int, rows: int) -> None:
    append = replace(
        an_append(a_stream(), *(an_event() for _ in range(events))),
        rows=tuple(ANSWERS.row(f"{number}", 1, b"yes") for number in range(rows)),
    )
    async with await opened(database) as log:
        await log.append(an_append(a_stream()))
        assert await log.append(append) == Appended(1 + events, (events,), duplicate=False)
    assert await kept_in(database) == {f"{number}": (1, b"yes") for number in range(rows)}


async def test_of_a_table_without_a_rank_the_last_stays(postgres_dsn: str) -> None:
    """Its columns are called as some of ours, which the statements have beside them."""
    await run_sql(postgres_dsn, "create table moved (position text primary key, number text)")
    last = SideTable("moved", {"position": "text", "number": "text"})
    async with await PostgresEventLog.open(postgres_dsn, side_table=last) as log:
        for numbers in (("one", "two", "three"), ("four",), ("six", "five")):
            rows = tuple(last.row("a", number) for number in numbers)
            await log.append(replace(an_append(a_stream()), rows=rows))
            assert await run_sql(postgres_dsn, "select * from moved") == [("a", numbers[-1])]


async def test_a_table_of_keys_alone_keeps_each_once(postgres_dsn: str) -> None:
    await run_sql(postgres_dsn, "create table keys (key text primary key)")
    keys = SideTable("keys", {"key": "text"})
    async with await PostgresEventLog.open(postgres_dsn, side_table=keys) as log:
        for names in ("a", "ab", "bb"):
            await log.append(replace(an_append(a_stream()), rows=tuple(map(keys.row, names))))
    assert await run_sql(postgres_dsn, "select * from keys order by key") == [("a",), ("b",)]


async def test_rows_are_stored_behind_an_archive(database: str, tmp_path: Path) -> None:
    async with await opened(database, archive=tmp_path) as log:
        for _ in range(3):
            await log.append(an_append(a_stream()))
        assert await log.archive(keep_events=1, segment_events=2)
        for id in ("under the lock", "from memory"):
            await log.append(answered(a_stream(), id=id))
    assert set(await kept_in(database)) == {"under the lock", "from memory"}


async def test_rows_pass_through_logs_that_seal_and_encrypt(database: str) -> None:
    master = KmsMasterKey(FakeKms(), "kms-1")
    master.kms.create_key()
    async with (
        await opened(database) as stored,
        AsyncConnectionPool(database, min_size=1, max_size=2, open=False) as pool,
    ):
        encrypted = EncryptedLog(stored, DataKeys(pool, master))
        await encrypted.prepare()
        vault = Vault(pool, encrypted, master)
        await vault.prepare()
        await PersonalLog(encrypted, vault, ()).append(answered(a_stream(), id="a"))
    assert await kept_in(database) == {"a": (1, b"yes")}
