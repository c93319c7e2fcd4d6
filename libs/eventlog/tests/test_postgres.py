"""The log in PostgreSQL keeps the contract, and what only a database can break."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from eventlog.chain import sealed
from eventlog.clock import SystemClock
from eventlog.errors import AppendRefused, ChainBroken, FenceLost, LogClosed, LogUnavailable, QueueFull, VersionConflict
from eventlog.fences import take_fence
from eventlog.limits import Limits
from eventlog.observer import GroupCommitted
from eventlog.postgres import PostgresEventLog
from eventlog.records import NO_STREAM, Append, Appended, Context, Filter, StreamId
from eventlog.sql import FEW, statements
from eventlog.testing import CONTEXT, NOON, EventLogContract, a_stream, an_append, an_event, positions
from eventlog.writer import GroupWriter
from lossy_proxy import lossy_proxy
from synod.common.ids import uuid7

HERE = Path(__file__).parent


class TestPostgresEventLog(EventLogContract):
    @pytest.fixture
    async def log(self, postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
        async with await PostgresEventLog.open(postgres_dsn) as log:
            yield log


class TestPostgresEventLogThatRemembersOneStream(EventLogContract):
    """Whatever its writer has forgotten is found out again."""

    @pytest.fixture
    async def log(self, postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
        async with await PostgresEventLog.open(postgres_dsn, limits=Limits(streams_remembered_max=1)) as log:
            yield log


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        yield log


async def run_sql(dsn: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(statement.encode())


@asynccontextmanager
async def head_locked(dsn: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds the head as another process's writer would, so that nothing is committed meanwhile.

    Gives what waits until a writer has come to the lock.
    """
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("select * from eventlog.head for update")

        async def writer_waits() -> None:
            async with asyncio.timeout(30):
                while True:
                    waits = await connection.execute("select 1 from pg_locks where not granted")
                    if await waits.fetchone():
                        return
                    await asyncio.sleep(0.005)

        yield writer_waits


async def following(dsn: str) -> None:
    """Until a log that was opened has the connection by which it follows."""
    head = statements("eventlog").head.decode()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection, asyncio.timeout(30):
        while True:
            follows = await connection.execute(
                "select 1 from pg_stat_activity where datname = current_database() and query = %s and state = 'idle'",
                [head],
            )
            if await follows.fetchone():
                return
            await asyncio.sleep(0.005)


async def until(condition, timeout_s: float = 30) -> None:
    """Returns as soon as the condition holds; fails at the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_was_appended_is_there_after_a_reopen(postgres_dsn: str) -> None:
    stream = a_stream()
    async with await PostgresEventLog.open(postgres_dsn) as log:
        await log.append(an_append(stream))
    async with await PostgresEventLog.open(postgres_dsn) as log:
        assert (await log.append(an_append(stream, expected=1))).position == 2
        assert (await log.verify()).ok


async def test_two_schemas_of_a_database_are_two_logs(postgres_dsn: str) -> None:
    async with (
        await PostgresEventLog.open(postgres_dsn, schema="one") as one,
        await PostgresEventLog.open(postgres_dsn, schema="two") as two,
    ):
        await one.append(an_append(a_stream()))
        assert (await one.head(), await two.head()) == (1, 0)


async def test_many_may_open_an_empty_database_at_once(postgres_dsn: str) -> None:
    logs = await asyncio.gather(*[PostgresEventLog.open(postgres_dsn) for _ in range(5)])
    await asyncio.gather(*[log.append(an_append(a_stream())) for log in logs])
    assert await logs[0].head() == 5
    await asyncio.gather(*[log.close() for log in logs])


async def test_writers_in_two_processes_stay_contiguous(postgres_dsn: str, log: PostgresEventLog) -> None:
    stream = a_stream()
    programs = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "appender.py"), postgres_dsn, str(stream), "100"
        )
        for _ in range(2)
    ]
    assert await asyncio.gather(*[program.wait() for program in programs]) == [0, 0]
    assert positions(await log.read()) == list(range(1, 401))
    assert [event.version for event in await log.read_stream(stream)] == list(range(1, 201))
    assert (await log.verify()).ok


async def test_writers_that_take_turns_on_a_stream_see_each_others_appends(postgres_dsn: str) -> None:
    """Each remembers a version that is no longer true when it comes to its next turn."""
    stream = a_stream()
    async with await PostgresEventLog.open(postgres_dsn) as one, await PostgresEventLog.open(postgres_dsn) as other:
        for version in range(0, 40, 4):
            await one.append(an_append(stream, expected=version))
            await one.append(an_append(stream, expected=version + 1))
            await other.append(an_append(stream, expected=version + 2))
            assert (await other.append(an_append(stream))).versions == (version + 4,)
        assert [event.version for event in await one.read_stream(stream)] == list(range(1, 41))
        assert (await one.verify()).ok


async def test_a_version_that_another_writer_raised_is_the_one_a_conflict_names(postgres_dsn: str) -> None:
    stream = a_stream()
    async with await PostgresEventLog.open(postgres_dsn) as one, await PostgresEventLog.open(postgres_dsn) as other:
        await one.append(an_append(stream))
        await other.append(an_append(stream, an_event(), an_event()))
        with pytest.raises(VersionConflict) as conflict:
            await one.append(an_append(stream, expected=1))
        assert conflict.value.actual == 3


async def test_a_forgotten_stream_is_not_taken_for_a_new_one(postgres_dsn: str) -> None:
    async with await PostgresEventLog.open(postgres_dsn, limits=Limits(streams_remembered_max=1)) as log:
        forgotten = a_stream()
        await log.append(an_append(forgotten))
        await log.append(an_append(a_stream(), expected=0))
        with pytest.raises(VersionConflict) as conflict:
            await log.append(an_append(forgotten, expected=0))
        assert conflict.value.actual == 1
        await log.append(an_append(a_stream(), expected=0))
        with pytest.raises(VersionConflict):
            await log.append(Append(forgotten, 0, (), CONTEXT), an_append(a_stream(), expected=0))


async def test_a_fence_taken_in_another_process_shuts_out_this_one(postgres_dsn: str, log: PostgresEventLog) -> None:
    fence = await take_fence(log, "run-7", CONTEXT, NOON)
    await log.append(replace(an_append(a_stream(), expected=0), fence=fence))
    program = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "appender.py"), postgres_dsn, "fence", "run-7", stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await program.communicate()
    assert answer.decode().strip() == "2"
    with pytest.raises(FenceLost) as lost:
        await log.append(replace(an_append(a_stream(), expected=0), fence=fence))
    assert (lost.value.epoch, lost.value.current) == (1, 2)


async def test_an_observer_hears_of_each_transaction(postgres_dsn: str) -> None:
    observer = Hearing()
    async with await PostgresEventLog.open(postgres_dsn, observer=observer) as log:
        async with head_locked(postgres_dsn) as writer_waits:
            first = asyncio.create_task(log.append(an_append(a_stream())))
            await writer_waits()
            others = [asyncio.create_task(log.append(an_append(a_stream(), an_event(), an_event()))) for _ in range(3)]
            await until(lambda: log.backlog_events == 6)
        await asyncio.gather(first, *others)
        assert log.backlog_events == 0
    assert [(group.requests, group.events) for group in observer.groups] == [(1, 1), (3, 6)]
    assert all(group.seconds > 0 for group in observer.groups)


async def test_an_observer_is_told_what_was_stored_by_type_and_not_what_was_refused(postgres_dsn: str) -> None:
    observer, stream = Hearing(), a_stream()
    repeated = an_append(stream, an_event("Noted"), an_event("Noted"), an_event("Closed"))
    async with await PostgresEventLog.open(postgres_dsn, observer=observer) as log:
        await log.append(repeated)
        await log.append(repeated)
        with pytest.raises(VersionConflict):
            await log.append(an_append(stream, an_event("Late"), expected=NO_STREAM))
    assert [dict(group.types) for group in observer.groups] == [{"Noted": 2, "Closed": 1}, {}, {}]


class Hearing:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.groups: list[GroupCommitted] = []

    def committed(self, group: GroupCommitted) -> None:
        self.groups.append(group)


async def test_followers_are_served_from_memory_without_asking_the_database(
    postgres_dsn: str, log: PostgresEventLog
) -> None:
    await log.append(an_append(a_stream(), *[an_event() for _ in range(3)]))
    async with await psycopg.AsyncConnection.connect(postgres_dsn) as connection:
        await connection.execute("lock table eventlog.events in access exclusive mode")
        async with asyncio.timeout(30):
            page = await log.next_page(1)
            nothing = await log.next_page(3)
    assert (positions(page.events), page.position, page.more) == ([2, 3], 3, False)
    assert (list(nothing.events), nothing.position) == ([], 3)
    assert list(page.events) == await log.read(1)


async def test_who_appends_is_answered_before_who_follows_is_told(postgres_dsn: str, log: PostgresEventLog) -> None:
    """The relay and the views have work for the thread by which the caller goes on."""
    order: list[str] = []

    def follow(head: int, stored: object, observe: object) -> None:
        asyncio.get_running_loop().call_soon(order.append, "follower")

    writer = GroupWriter(postgres_dsn, statements("eventlog"), Limits(), SystemClock(), follow)
    writer.start()
    for _ in range(2):  # under the lock, and from memory
        await writer.submit([an_append(a_stream())])
        order.append("caller")
        await asyncio.sleep(0)
    await writer.close()
    assert order == ["caller", "follower"] * 2


async def test_whom_the_appender_answers_goes_on_before_who_follows(postgres_dsn: str) -> None:
    order: list[str] = []
    async with await PostgresEventLog.open(postgres_dsn, limits=Limits(poll_interval_s=60)) as log:
        await log.append(an_append(a_stream()))

        async def follow() -> None:
            await log.wait_for(2, timeout_s=30)
            order.append("follower")

        async def call() -> None:
            await asyncio.shield(asyncio.create_task(log.append(an_append(a_stream()))))
            order.append("caller")

        await asyncio.gather(follow(), call())
    assert order == ["caller", "follower"]


async def test_other_processes_are_told_of_commits_once_for_all_that_come_close_together(postgres_dsn: str) -> None:
    limits = Limits(announce_s=0.5, poll_interval_s=60)
    async with (
        await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as listener,
        await PostgresEventLog.open(postgres_dsn, limits=limits) as log,
    ):
        await listener.execute("listen eventlog_appended")
        for _ in range(5):
            await log.append(an_append(a_stream()))
        told = [notify.payload async for notify in listener.notifies(timeout=30, stop_after=1)]
    assert told == ["5"]


async def test_other_processes_are_told_of_what_is_committed_while_the_telling_connection_is_opened(
    postgres_dsn: str,
) -> None:
    async with (
        await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as listener,
        await PostgresEventLog.open(postgres_dsn, limits=Limits(announce_s=0, poll_interval_s=60)) as log,
    ):
        await listener.execute("listen eventlog_appended")
        await log.append(an_append(a_stream()))
        told = [notify.payload async for notify in listener.notifies(timeout=30, stop_after=1)]
    assert told == ["1"]


async def test_other_processes_are_told_of_what_is_committed_just_before_a_close(postgres_dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as listener:
        await listener.execute("listen eventlog_appended")
        async with await PostgresEventLog.open(postgres_dsn, limits=Limits(announce_s=60)) as log:
            await following(postgres_dsn)
            await log.append(an_append(a_stream()))
        told = [notify.payload async for notify in listener.notifies(timeout=30, stop_after=1)]
    assert told == ["1"]


async def test_who_follows_in_another_process_hears_of_a_commit_without_a_poll(postgres_dsn: str) -> None:
    limits = Limits(poll_interval_s=60)
    async with (
        await PostgresEventLog.open(postgres_dsn, limits=limits) as elsewhere,
        await PostgresEventLog.open(postgres_dsn, limits=limits) as log,
    ):
        heard, position = 0, 0
        async with asyncio.timeout(30):
            while not heard:  # it begins to listen only after it was opened
                await elsewhere.append(an_append(a_stream()))
                position += 1
                heard = await log.wait_for(position, timeout_s=0.5)
    assert heard == position


@pytest.mark.parametrize("number", range(1, FEW + 2))
async def test_events_are_stored_alike_however_many_they_are(log: PostgresEventLog, number: int) -> None:
    context = Context("acme", "agent zoë", "c", uuid7(), "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    events = [
        replace(an_event(data=b"\xff" * size), data_subject=None if size % 2 else "zoë") for size in range(number)
    ]
    for stream in (a_stream(), a_stream()):
        await log.append(an_append(stream, *[replace(event, id=uuid7()) for event in events], context=context))
    # In memory is what was decided, in the database what was stored of it.
    assert await log.read() == list((await log.next_page(0)).events)
    assert (await log.verify()).ok


async def test_what_follows_from_memory_equals_what_is_stored(log: PostgresEventLog) -> None:
    await log.append(an_append(a_stream(), an_event(data=b"\xff"), context=Context("acme", "agent zoë", "c", uuid7())))
    page = await log.next_page(0)
    assert list(page.events) == await log.read()


async def test_a_follower_misses_nothing_that_other_processes_append_in_between(
    postgres_dsn: str, log: PostgresEventLog
) -> None:
    async def append(to: PostgresEventLog) -> None:
        for _ in range(60):
            await to.append(an_append(a_stream()))

    async def follow() -> list[int]:
        seen: list[int] = []
        while len(seen) < 180:
            page = await log.next_page(seen[-1] if seen else 0)
            seen += positions(page.events)
            if not page.events:
                await log.wait_for(page.position + 1, timeout_s=30)
        return seen

    async with (
        await PostgresEventLog.open(postgres_dsn) as second,
        await PostgresEventLog.open(postgres_dsn) as third,
        asyncio.timeout(60),
    ):
        seen, *_ = await asyncio.gather(follow(), append(log), append(second), append(third))
    assert seen == list(range(1, 181))


async def test_a_page_from_the_database_ends_when_it_is_large_enough(postgres_dsn: str) -> None:
    limits = Limits(page_events=2, page_bytes=100)
    async with await PostgresEventLog.open(postgres_dsn) as log:
        await log.append(an_append(a_stream(), *[an_event(data=bytes(30)) for _ in range(7)]))
    async with await PostgresEventLog.open(postgres_dsn, limits=limits) as log:
        first = await log.next_page(0)
        assert (positions(first.events), first.position, first.more) == ([1, 2, 3, 4], 4, True)
        rest = await log.next_page(4)
        assert (positions(rest.events), rest.position, rest.more) == ([5, 6, 7], 7, False)


class Adjustable:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = NOON

    def now(self) -> datetime:
        return self.at


@pytest.mark.parametrize("restarted", [False, True], ids=["the same writer", "another writer"])
async def test_a_clock_that_is_set_back_hides_nothing_from_a_reader_by_time(postgres_dsn: str, restarted: bool) -> None:
    clock, since = Adjustable(), Filter(since=NOON - timedelta(minutes=30))
    async with await PostgresEventLog.open(postgres_dsn, clock=clock) as log:
        for _ in range(3):
            await log.append(an_append(a_stream()))
        clock.at -= timedelta(hours=1)
        if not restarted:
            await log.append(an_append(a_stream()))
            await log.append(an_append(a_stream()))
    async with await PostgresEventLog.open(postgres_dsn, clock=clock) as log:
        if restarted:
            await log.append(an_append(a_stream()))
            await log.append(an_append(a_stream()))
        assert {event.recorded_at for event in await log.read()} == {NOON}
        assert positions(await log.read(where=since)) == [1, 2, 3, 4, 5]
        assert await log.read(where=Filter(until=NOON - timedelta(minutes=30))) == []
        clock.at = NOON + timedelta(seconds=1)
        await log.append(an_append(a_stream()))
        assert await log.position_at(NOON) == 5


async def test_a_follower_by_time_sees_the_same_from_memory_and_from_the_database(postgres_dsn: str) -> None:
    clock, where = Adjustable(), Filter(until=NOON + timedelta(minutes=30))
    async with await PostgresEventLog.open(postgres_dsn, clock=clock) as log:
        for minutes in (0, 60, -60, 90):
            clock.at = NOON + timedelta(minutes=minutes)
            await log.append(an_append(a_stream()))
        own = positions((await log.next_page(0, where=where)).events)
        async with await PostgresEventLog.open(postgres_dsn) as other:
            assert await other.wait_for(4, timeout_s=30) == 4
            assert positions((await other.next_page(0, where=where)).events) == own == [1]


async def test_a_log_of_a_former_release_learns_when_its_newest_event_was_recorded(postgres_dsn: str) -> None:
    clock = Adjustable()
    async with await PostgresEventLog.open(postgres_dsn, clock=clock) as log:
        await log.append(an_append(a_stream()))
    await run_sql(postgres_dsn, "alter table eventlog.head drop column recorded_at")
    clock.at -= timedelta(hours=1)
    async with await PostgresEventLog.open(postgres_dsn, clock=clock) as log:
        await log.append(an_append(a_stream()))
        assert [event.recorded_at for event in await log.read()] == [NOON, NOON]


async def test_a_waiter_wakes_for_what_another_process_appends(postgres_dsn: str, log: PostgresEventLog) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as other:
        waiting = asyncio.create_task(log.wait_for(1, timeout_s=30))
        await other.append(an_append(a_stream()))
        assert await waiting == 1


async def test_a_waiter_wakes_although_notifications_are_lost(postgres_dsn: str, log: PostgresEventLog) -> None:
    waiting = asyncio.create_task(log.wait_for(1, timeout_s=30))
    await run_sql(
        postgres_dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query ~ 'head'"
        " and pid <> pg_backend_pid()",
    )
    async with await PostgresEventLog.open(postgres_dsn) as other:
        await other.append(an_append(a_stream()))
    assert await waiting == 1


async def test_an_append_whose_answer_is_lost_after_commit_is_stored_once(postgres_dsn: str) -> None:
    async with lossy_proxy(postgres_dsn) as proxy, await PostgresEventLog.open(proxy.dsn) as log:
        await log.append(an_append(a_stream()))
        stream = a_stream()
        proxy.lose_commits = 1
        appended = await log.append(an_append(stream, an_event(), an_event(), expected=0))
        assert proxy.lose_commits == 0
        assert appended == Appended(position=3, versions=(2,), duplicate=False)  # to the caller it is the first one
        assert await log.head() == 3
        assert len(await log.read_stream(stream)) == 2


async def test_a_repeat_whose_answer_is_lost_stays_a_duplicate(postgres_dsn: str) -> None:
    async with lossy_proxy(postgres_dsn) as proxy, await PostgresEventLog.open(proxy.dsn) as log:
        repeated = an_append(a_stream())
        await log.append(repeated)
        proxy.lose_commits = 1
        both = await asyncio.gather(log.append(repeated), log.append(an_append(a_stream())))
        assert proxy.lose_commits == 0
        assert [(appended.position, appended.duplicate) for appended in both] == [(1, True), (2, False)]


async def test_an_append_goes_on_when_a_table_was_altered_under_its_statements(
    postgres_dsn: str, log: PostgresEventLog
) -> None:
    first = an_append(a_stream())
    await log.append(first)
    await run_sql(postgres_dsn, "alter table eventlog.events alter column type_version type bigint")
    assert await log.append(first) == Appended(position=1, versions=(1,), duplicate=True)


async def test_an_append_is_flushed_although_the_database_is_set_not_to(postgres_dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(postgres_dsn)["dbname"]
    await run_sql(postgres_dsn, f'alter database "{name}" set synchronous_commit = off')
    # What the statement that stores runs under, as its own transaction tells it.
    await run_sql(postgres_dsn, "create table seen (setting text)")
    async with await PostgresEventLog.open(postgres_dsn) as log:
        await run_sql(
            postgres_dsn,
            "create function see() returns trigger language plpgsql as $$ begin"
            " insert into public.seen values (current_setting('synchronous_commit')); return null; end $$;"
            " create trigger see after insert on eventlog.events for each statement execute function see()",
        )
        await log.append(an_append(a_stream()))
    async with await psycopg.AsyncConnection.connect(postgres_dsn) as connection:
        assert await (await connection.execute("select setting from seen")).fetchall() == [("on",)]


async def test_killed_connections_cost_no_append_and_double_none(postgres_dsn: str, log: PostgresEventLog) -> None:
    stream = a_stream()

    async def append_all() -> None:
        for version in range(200):
            await log.append(an_append(stream, expected=version))

    appending = asyncio.create_task(append_all())
    for position in (20, 60, 120):
        await log.wait_for(position, timeout_s=30)
        await run_sql(
            postgres_dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and datname = current_database() and pid <> pg_backend_pid()",
        )
    await appending
    assert [event.version for event in await log.read_stream(stream)] == list(range(1, 201))
    assert (await log.verify()).ok


async def test_a_full_disk_holds_appends_back_until_there_is_room(postgres_dsn: str) -> None:
    async with await PostgresEventLog.open(postgres_dsn, limits=Limits(reconnect_timeout_s=0.5)) as log:
        await log.append(an_append(a_stream()))
        await run_sql(
            postgres_dsn,
            "create function full_disk() returns trigger language plpgsql as"
            " $$ begin raise 'could not extend file: No space left on device' using errcode = 'disk_full'; end $$",
        )
        await run_sql(
            postgres_dsn,
            "create trigger full_disk before insert on eventlog.events for each row execute function full_disk()",
        )
        asked = an_append(a_stream())
        with pytest.raises(LogUnavailable, match="No space left on device"):
            await log.append(asked)
        assert positions(await log.read()) == [1]
        await run_sql(postgres_dsn, "drop trigger full_disk on eventlog.events")
        assert await log.append(asked) == Appended(2, (1,), duplicate=False)
        assert (await log.verify()).ok


async def test_a_request_the_database_refuses_fails_alone(postgres_dsn: str, log: PostgresEventLog) -> None:
    await run_sql(postgres_dsn, "alter table eventlog.events add check (type <> 'Poison')")
    good = [log.append(an_append(a_stream())) for _ in range(20)]
    bad = log.append(an_append(a_stream(), an_event("Poison")))
    results = await asyncio.gather(*good[:10], bad, *good[10:], return_exceptions=True)
    assert [type(result) for result in results] == [Appended] * 10 + [AppendRefused] + [Appended] * 10
    assert positions(await log.read()) == list(range(1, 21))


async def test_a_full_queue_holds_callers_back_then_refuses(postgres_dsn: str) -> None:
    limits = Limits(queue_events_max=2, queue_timeout_s=0.05)
    async with await PostgresEventLog.open(postgres_dsn, limits=limits) as log:
        async with head_locked(postgres_dsn) as writer_waits:
            first = asyncio.create_task(log.append(an_append(a_stream())))
            await writer_waits()
            others = [asyncio.create_task(log.append(an_append(a_stream()))) for _ in range(5)]
            await until(lambda: sum(task.done() for task in others) == 3)
            refused = [task for task in others if task.done()]
            assert [type(task.exception()) for task in refused] == [QueueFull] * 3
        await asyncio.gather(first, *(set(others) - set(refused)))
        assert await log.head() == 3


async def test_callers_held_back_go_on_when_there_is_room(postgres_dsn: str) -> None:
    limits = Limits(queue_events_max=2, queue_timeout_s=30)
    async with await PostgresEventLog.open(postgres_dsn, limits=limits) as log:
        await asyncio.gather(*[log.append(an_append(a_stream())) for _ in range(50)])
        assert await log.head() == 50


async def test_a_cancelled_caller_leaves_nothing_behind(postgres_dsn: str, log: PostgresEventLog) -> None:
    async with head_locked(postgres_dsn) as writer_waits:
        first = asyncio.create_task(log.append(an_append(a_stream())))
        await writer_waits()
        cancelled = asyncio.create_task(log.append(an_append(a_stream(), an_event("Cancelled"))))
        await until(lambda: log.backlog_events == 1)
        cancelled.cancel()
    await first
    await log.append(an_append(a_stream()))
    assert [event.type for event in await log.read()] == ["Happened", "Happened"]


async def test_close_commits_what_waits(postgres_dsn: str) -> None:
    log = await PostgresEventLog.open(postgres_dsn)
    async with head_locked(postgres_dsn) as writer_waits:
        appends = [asyncio.create_task(log.append(an_append(a_stream()))) for _ in range(10)]
        await writer_waits()
        closing = asyncio.create_task(log.close())
    await closing
    assert {appended.position for appended in await asyncio.gather(*appends)} == set(range(1, 11))
    with pytest.raises(LogClosed):
        await log.append(an_append(a_stream()))


async def test_close_commits_what_is_held_back_behind_a_queue_that_was_cancelled(postgres_dsn: str) -> None:
    log = await PostgresEventLog.open(postgres_dsn, limits=Limits(queue_events_max=2, queue_timeout_s=30))
    async with head_locked(postgres_dsn) as writer_waits:
        first = asyncio.create_task(log.append(an_append(a_stream())))
        await writer_waits()
        queued = [asyncio.create_task(log.append(an_append(a_stream()))) for _ in range(2)]
        await until(lambda: log.backlog_events == 2)
        held_back = asyncio.create_task(log.append(an_append(a_stream())))
        await asyncio.sleep(0)
        for each in queued:
            each.cancel()
        closing = asyncio.create_task(log.close())
    await closing
    async with asyncio.timeout(30):
        assert [(await first).position, (await held_back).position] == [1, 2]


async def test_an_unreachable_database_is_named(postgres_dsn: str) -> None:
    limits = Limits(reconnect_timeout_s=0.5)
    async with lossy_proxy(postgres_dsn) as proxy, await PostgresEventLog.open(proxy.dsn, limits=limits) as log:
        address = proxy.dsn
        await proxy.stop()
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            await log.append(an_append(a_stream()))
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            await PostgresEventLog.open(address)


@pytest.mark.parametrize(
    ("tampering", "broken_at", "reason"),
    [
        ("update eventlog.events set data = '{\"x\":2}' where position = 5", 5, "differs from what was hashed"),
        ("update eventlog.events set tenant = 'other' where position = 5", 5, "differs from what was hashed"),
        ("update eventlog.events set recorded_at = recorded_at + interval '1 us' where position = 5", 5, "differs"),
        ("update eventlog.events set hash = previous_hash where position = 5", 5, "differs from what was hashed"),
        (
            "update eventlog.events set stream_previous_hash = hash where position = 5",
            5,
            "differs from what was hashed",
        ),
        (
            "update eventlog.events set stream_previous_hash = null where position = 5",
            5,
            "differs from what was hashed",
        ),
        ("delete from eventlog.events where position = 5", 5, "missing"),
        ("delete from eventlog.events where position > 8", 9, "missing"),
        ("update eventlog.head set hash = '\\x00'", 10, "the head names another hash"),
    ],
)
async def test_tampering_is_found(
    postgres_dsn: str, log: PostgresEventLog, tampering: str, broken_at: int, reason: str
) -> None:
    await log.append(an_append(a_stream(), *[an_event() for _ in range(10)]))
    await run_sql(postgres_dsn, tampering)
    verified = await log.verify()
    assert (verified.ok, verified.broken_at) == (False, broken_at)
    assert reason in verified.reason
    with pytest.raises(ChainBroken, match=f"position {broken_at}"):
        verified.or_raise()


ONE = "stream = 'order/one'"


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        (f"delete from eventlog.events where {ONE} and version = 2", 3),
        (
            f"delete from eventlog.events where {ONE} and version = 2;"
            f"update eventlog.events set version = 2 where {ONE} and version = 3",
            3,
        ),
        (f"delete from eventlog.events where {ONE} and version = 3", 5),
        (f"update eventlog.events set version = 9 where {ONE} and version = 3", 5),
        (f"update eventlog.events set stream = 'order/three' where {ONE} and version = 3", 5),
        (
            f"update eventlog.events set version = -version where {ONE};"
            f"update eventlog.events set version = 4 + version where {ONE}",
            1,
        ),
        (f"delete from eventlog.events where {ONE}", 1),
        ("update eventlog.events set stream = 'order/one', version = 4 where position = 6", 6),
    ],
    ids=["gap", "closed gap", "lost end", "moved", "taken out", "turned round", "all gone", "put in"],
)
async def test_whatever_is_done_to_one_stream_breaks_the_chain_of_the_log(
    postgres_dsn: str, log: PostgresEventLog, tampering: str, broken_at: int
) -> None:
    """A stream's events, their order, their number and its end are under the log's chain too."""
    for _ in range(3):  # at positions 1, 3 and 5, and at 2, 4 and 6
        await log.append(an_append(StreamId("order", "one")))
        await log.append(an_append(StreamId("order", "two")))
    await run_sql(postgres_dsn, tampering)
    assert (await log.verify()).broken_at == broken_at


async def test_a_forged_successor_chain_is_found_at_the_head(postgres_dsn: str, log: PostgresEventLog) -> None:
    """Whoever rewrites the last event with a fitting hash is betrayed by the head."""
    await log.append(an_append(StreamId("order", "1"), an_event()))
    (event,) = await log.read()
    forged = sealed(event._replace(data=b"[]"), event.previous_hash)
    await run_sql(postgres_dsn, f"update eventlog.events set data = '[]', hash = '\\x{forged.hash.hex()}'")
    assert (await log.verify()).reason == "the head names another hash than the last event"
