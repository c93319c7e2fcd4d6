"""Views: folded exactly once, rebuilt beside the live one, parked where they cannot be folded."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import nats
import psycopg
import pytest
from eventlog.ending import end
from eventlog.errors import (
    FoldFailed,
    LogUnavailable,
    NoOldView,
    NotParked,
    RebuildRunning,
    SourceTruncated,
    ViewSuperseded,
)
from eventlog.folding import ProjectorLimits, is_away
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import Page, StoredEvent
from eventlog.relay import Relay, RelayConfig
from eventlog.sources import LogSource, Reader, StreamSource
from eventlog.testing import a_stream, an_append, an_event
from launcher.testing import RunningNats
from nats.aio.client import Client
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from synod.common.ids import uuid7
from synod.common.subjects import event_stream

QUICK = ProjectorLimits(batch_events=50, attempts_max=2, retry_pause_s=0.01)


class Totals:
    """Counts events by type; chokes on events whose data is `poison` until told how to digest them."""

    name = "totals"
    tables = "create table totals (type text primary key, events bigint not null, last bigint not null)"

    def __init__(self, version: int = 1, types: frozenset[str] | None = None) -> None:
        self.version = version
        self.types = types
        self.poison = b"poison"
        self.batches: list[int] = []

    async def apply(self, connection: AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        self.batches.append(len(events))
        for event in events:
            if event.data == self.poison:
                raise ValueError("cannot digest it")
            await connection.execute(
                "insert into totals as t values (%s, 1, %s)"
                " on conflict (type) do update set events = t.events + 1, last = excluded.last",
                [event.type, event.position],
            )


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        yield log


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[Any]]]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=6, open=False) as pool:
        yield pool


@pytest.fixture
def projector(pool: AsyncConnectionPool[AsyncConnection[Any]], log: PostgresEventLog) -> Projector:
    return Projector(pool, Totals(), LogSource(log), QUICK)


@asynccontextmanager
async def running(projector: Projector) -> AsyncIterator[Projector]:
    task = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        await end(task)
    assert task.cancelled()


async def append(log: PostgresEventLog, count: int, type_name: str = "Happened", data: bytes = b"{}") -> None:
    for size in [100] * (count // 100) + [count % 100]:
        if size:
            await log.append(an_append(a_stream(), *[an_event(type_name, data) for _ in range(size)]))


async def totals(pool: AsyncConnectionPool[AsyncConnection[Any]], schema: str = "view_totals") -> dict[str, int]:
    async with pool.connection() as connection:
        rows = await connection.execute(f"select type, events from {schema}.totals".encode())
        return dict(await rows.fetchall())


async def test_a_view_follows_its_log(projector: Projector, log: PostgresEventLog, pool) -> None:
    await append(log, 120)
    async with running(projector):
        assert await projector.wait_for(120, timeout_s=30) == 120
        await append(log, 5, "Ended")
        assert await projector.wait_for(125, timeout_s=30) == 125
    assert await totals(pool) == {"Happened": 120, "Ended": 5}
    assert (await projector.position(), await projector.lag()) == (125, 0)


async def test_a_view_that_stands_still_lags_by_what_comes_meanwhile(
    projector: Projector, log: PostgresEventLog
) -> None:
    await append(log, 20)
    assert (await projector.position(), await projector.lag()) == (0, 20)
    await projector.catch_up(15)
    await append(log, 2)
    status = await projector.status()
    assert (status.position, status.lag, await projector.lag()) == (15, 7, 7)


async def test_events_are_folded_in_batches(pool, log: PostgresEventLog) -> None:
    view = Totals()
    await append(log, 120)
    assert await Projector(pool, view, LogSource(log), QUICK).catch_up() == 120
    assert view.batches == [50, 50, 20]


async def test_a_view_of_some_types_passes_over_the_others(pool, log: PostgresEventLog) -> None:
    await append(log, 60)
    await append(log, 3, "Ended")
    await append(log, 60)
    projector = Projector(pool, Totals(types=frozenset({"Ended"})), LogSource(log), QUICK)
    assert await projector.catch_up() == 123
    assert await totals(pool) == {"Ended": 3}
    assert await projector.lag() == 0


async def test_a_restarted_view_goes_on_where_it_was(pool, log: PostgresEventLog) -> None:
    await append(log, 10)
    await Projector(pool, Totals(), LogSource(log)).catch_up()
    await append(log, 10)
    view = Totals()
    await Projector(pool, view, LogSource(log)).catch_up()
    assert sum(view.batches) == 10
    assert await totals(pool) == {"Happened": 20}


async def test_two_processes_of_a_view_count_each_event_once(pool, log: PostgresEventLog) -> None:
    rivals = [Projector(pool, Totals(), LogSource(log), QUICK) for _ in range(2)]
    async with running(rivals[0]), running(rivals[1]):
        for _ in range(5):
            await append(log, 100)
        for rival in rivals:
            assert await rival.wait_for(500, timeout_s=30) >= 500
    assert await totals(pool) == {"Happened": 500}


async def test_a_poison_event_is_parked_and_the_view_goes_on(pool, log: PostgresEventLog) -> None:
    projector = Projector(pool, Totals(), LogSource(log, "orders"), QUICK)
    await append(log, 10)
    await append(log, 1, "Bad", b"poison")
    await append(log, 10)
    assert await projector.catch_up() == 21
    assert await totals(pool) == {"Happened": 20}
    (parked,) = await projector.parked()
    assert parked.event == (await log.read(10, limit=1))[0]
    assert parked.error == "ValueError: cannot digest it"
    status = await projector.status()
    assert (status.source, status.position, status.lag, status.parked) == ("orders", 21, 0, 1)
    assert await projector.parked_count() == 1


class Names:
    """Keeps the data of events under an index that takes at most some 2,700 bytes of it."""

    name, version, types = "names", 1, None
    tables = "create table names (name text primary key)"

    async def apply(self, connection: AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        for event in events:
            await connection.execute("insert into names values (%s)", [event.data.decode()])


async def test_an_event_that_a_living_database_refuses_is_parked(pool, log: PostgresEventLog) -> None:
    """A value too long for its index is an OperationalError to psycopg, as a lost connection is."""
    await append(log, 1, data=os.urandom(6_000).hex().encode())
    await append(log, 1, data=b"short")
    projector = Projector(pool, Names(), LogSource(log), QUICK)
    async with running(projector):
        assert await projector.wait_for(2, timeout_s=30) == 2
    (parked,) = await projector.parked()
    assert (parked.event.position, parked.error.partition(":")[0]) == (1, "ProgramLimitExceeded")
    with pytest.raises(FoldFailed):
        await projector.redrive(1)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (psycopg.OperationalError("the connection is lost"), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (LogUnavailable("restarting"), True),
        (psycopg.errors.QueryCanceled(), False),
        (psycopg.errors.ProgramLimitExceeded(), False),
        (psycopg.errors.UniqueViolation(), False),
        (ValueError("cannot digest it"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_only_what_says_that_the_infrastructure_is_away_makes_a_view_wait(error: Exception, away: bool) -> None:
    assert is_away(error) == away


async def test_a_parked_event_is_folded_again_once_the_view_can(pool, log: PostgresEventLog) -> None:
    view = Totals()
    projector = Projector(pool, view, LogSource(log), QUICK)
    await append(log, 1, "Bad", b"poison")
    await projector.catch_up()
    with pytest.raises(FoldFailed, match="still cannot fold position 1: ValueError: cannot digest"):
        await projector.redrive(1)
    assert len(await projector.parked()) == 1
    view.poison = b"other"
    await projector.redrive(1)
    assert await totals(pool) == {"Bad": 1}
    with pytest.raises(NotParked, match="no parked event at position 1"):
        await projector.redrive(1)


async def test_a_parked_event_may_be_skipped(pool, log: PostgresEventLog) -> None:
    projector = Projector(pool, Totals(), LogSource(log), QUICK)
    await append(log, 1, "Bad", b"poison")
    await projector.catch_up()
    await projector.redrive(1, skip=True)
    assert (await projector.parked(), await totals(pool)) == ([], {})


async def test_a_rebuild_swaps_in_a_fresh_fold_while_appends_go_on(pool, log: PostgresEventLog) -> None:
    projector = Projector(pool, Totals(), LogSource(log), QUICK)
    rebuilt = asyncio.Event()

    async def append_on() -> int:
        head = 500
        while not rebuilt.is_set():
            await append(log, 5)
            head += 5
            await projector.wait_for(head, timeout_s=30)
        return head

    async with running(projector):
        await append(log, 500)
        await projector.wait_for(500, timeout_s=30)
        async with pool.connection() as connection:
            await connection.execute("update view_totals.totals set events = -7")
        appending = asyncio.create_task(append_on())
        folded = await projector.rebuild()
        rebuilt.set()
        head = await appending
        assert await projector.wait_for(head, timeout_s=30) == head
    assert folded >= 500
    assert await totals(pool) == {"Happened": head}
    assert await totals(pool, "view_totals__old") == {"Happened": folded - 507}
    assert (await projector.verify()).equal


async def test_a_rollback_brings_the_old_copy_up_to_date_and_swaps_it_in(pool, log: PostgresEventLog) -> None:
    projector = Projector(pool, Totals(), LogSource(log), QUICK)
    await append(log, 100)
    await projector.catch_up()
    await projector.rebuild()
    async with pool.connection() as connection:
        await connection.execute("update view_totals.totals set events = -7")
    async with running(projector):
        await append(log, 60)
        assert await projector.wait_for(160, timeout_s=30) == 160
        assert await projector.rollback() >= 160
        await append(log, 5)
        assert await projector.wait_for(165, timeout_s=30) == 165
    assert await totals(pool) == {"Happened": 165}
    assert await totals(pool, "view_totals__old") == {"Happened": 53}
    assert (await projector.verify()).equal


async def test_a_rollback_may_itself_be_rolled_back(pool, log: PostgresEventLog) -> None:
    projector = Projector(pool, Totals(), LogSource(log), QUICK)
    await append(log, 10)
    await projector.catch_up()
    await projector.rebuild()
    async with pool.connection() as connection:
        await connection.execute("update view_totals.totals set events = 3")
    await projector.rollback()
    await projector.rollback()
    assert await totals(pool) == {"Happened": 3}


async def test_without_an_old_copy_of_its_version_a_view_is_not_rolled_back(pool, log: PostgresEventLog) -> None:
    first = Projector(pool, Totals(), LogSource(log), QUICK)
    await first.prepare()
    with pytest.raises(NoOldView, match="no old copy of view totals at version 1"):
        await first.rollback()
    second = Projector(pool, Totals(version=2), LogSource(log), QUICK)
    await second.prepare()
    with pytest.raises(NoOldView, match="at version 2"):
        await second.rollback()


async def test_the_release_before_goes_back_to_the_copy_that_was_kept(pool, log: PostgresEventLog) -> None:
    await append(log, 10)
    await Projector(pool, Totals(), LogSource(log)).catch_up()
    await Projector(pool, Totals(version=2), LogSource(log)).prepare()
    await append(log, 10)
    view = Totals()
    assert await Projector(pool, view, LogSource(log)).catch_up() == 20
    assert sum(view.batches) == 10
    assert await totals(pool) == {"Happened": 20}


async def test_a_new_version_of_a_view_rebuilds_it_before_it_runs(pool, log: PostgresEventLog) -> None:
    await append(log, 10)
    await Projector(pool, Totals(), LogSource(log)).catch_up()

    class Wider(Totals):
        tables = Totals.tables.replace(")", ", note text)")

    await Projector(pool, Wider(version=2), LogSource(log)).prepare()
    async with pool.connection() as connection:
        rows = await connection.execute("select events, note from view_totals.totals")
        assert await rows.fetchall() == [(10, None)]


async def test_the_old_version_of_a_view_stops_when_a_newer_one_takes_over(pool, log: PostgresEventLog) -> None:
    old = Projector(pool, Totals(), LogSource(log), QUICK)
    await old.prepare()
    running_old = asyncio.create_task(old.run())
    await append(log, 1)
    await old.wait_for(1, timeout_s=30)
    await Projector(pool, Totals(version=2), LogSource(log), QUICK).prepare()
    await append(log, 1)
    with pytest.raises(ViewSuperseded, match="version 2 in the database, this process has version 1"):
        await running_old


async def test_a_release_that_was_replaced_takes_its_view_back_only_when_nobody_folds_it(
    pool, log: PostgresEventLog
) -> None:
    limits = replace(QUICK, abandoned_after_s=0.5)
    old, new = (Projector(pool, Totals(version=version), LogSource(log), limits) for version in (1, 2))
    await old.prepare()
    await append(log, 3)
    following = asyncio.create_task(new.run())
    await new.wait_for(3, timeout_s=30)
    again = asyncio.create_task(old.run())
    for _ in range(20):
        reached = await log.head() + 1
        await append(log, 1)
        assert await new.wait_for(reached, timeout_s=30) == reached
    assert not again.done()
    following.cancel()
    await asyncio.wait([following])
    await append(log, 1)
    head = await log.head()
    assert await old.wait_for(head, timeout_s=30) == head
    assert (await old.verify()).equal
    again.cancel()
    await asyncio.wait([again])


async def test_verify_finds_a_manipulated_view(projector: Projector, log: PostgresEventLog, pool) -> None:
    await append(log, 100)
    await projector.catch_up()
    good = await projector.verify()
    assert (good.equal, good.position, good.differing_tables) == (True, 100, ())
    async with pool.connection() as connection:
        await connection.execute("update view_totals.totals set events = events + 1")
    bad = await projector.verify()
    assert (bad.equal, bad.differing_tables) == (False, ("totals",))
    assert bad.checksum == good.checksum
    async with pool.connection() as connection:
        rows = await connection.execute("select nspname from pg_namespace where nspname like 'view_%'")
        assert await rows.fetchall() == [("view_totals",)]


async def test_a_view_that_lags_is_verified_where_it_stands(projector: Projector, log: PostgresEventLog) -> None:
    await append(log, 100)
    await projector.catch_up(70)
    verified = await projector.verify()
    assert (verified.equal, verified.position) == (True, 70)


async def test_a_second_rebuild_of_a_view_is_refused(projector: Projector, log: PostgresEventLog) -> None:
    await append(log, 10)
    await projector.catch_up()
    results = await asyncio.gather(projector.rebuild(), projector.rebuild(), return_exceptions=True)
    assert [type(result) for result in results] == [int, RebuildRunning]


async def test_a_rebuild_is_refused_while_another_process_is_at_it(pool, log: PostgresEventLog) -> None:
    await append(log, 300)
    one, other = (Projector(pool, Totals(), LogSource(log), QUICK) for _ in range(2))
    await one.prepare()
    results = await asyncio.gather(one.rebuild(), other.rebuild(), return_exceptions=True)
    assert sorted(map(type, results), key=str) == [RebuildRunning, int]
    assert await other.rebuild() == 300


async def test_replicas_of_a_new_release_that_start_at_once_prepare_its_view_once(pool, log: PostgresEventLog) -> None:
    await append(log, 300)
    await Projector(pool, Totals(version=1), LogSource(log), QUICK).catch_up()
    limits = replace(QUICK, copy_events=50, poll_interval_s=0.01)
    views = [Totals(version=2) for _ in range(3)]
    await asyncio.gather(*[Projector(pool, view, LogSource(log), limits).prepare() for view in views])
    assert sorted(sum(view.batches) for view in views) == [0, 0, 300]
    assert await totals(pool) == await totals(pool, "view_totals__old") == {"Happened": 300}


async def test_a_view_survives_the_loss_of_its_connections(
    projector: Projector,
    log: PostgresEventLog,
    pool,
    postgres_dsn: str,
) -> None:
    async with running(projector):
        await append(log, 100)
        await projector.wait_for(10, timeout_s=30)
        async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where backend_type = 'client backend' and datname = current_database() and pid <> pg_backend_pid()"
            )
        await append(log, 100)
        async with asyncio.timeout(30):
            while await log.head() < 200 or await projector.wait_for(200, timeout_s=1) < 200:
                continue
    assert await totals(pool) == {"Happened": 200}


@pytest.mark.parametrize("name", ["", "Totals", "a b", "x" * 41])
def test_a_name_that_is_no_schema_is_refused(name: str, pool, log: PostgresEventLog) -> None:
    view = Totals()
    view.name = name
    with pytest.raises(ValueError, match="must be 1 to 40 characters"):
        Projector(pool, view, LogSource(log))


@asynccontextmanager
async def relayed(log: PostgresEventLog, client: Client, service: str) -> AsyncIterator[Relay]:
    relay = Relay(log, client, service, RelayConfig(ack_timeout_s=0.5, idle_check_s=0.1, retry_pause_max_s=0.1))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        await end(task)


async def test_a_view_follows_a_foreign_log(pool, log: PostgresEventLog, client: Client) -> None:
    service = f"svc-{uuid7().hex}"
    projector = Projector(pool, Totals(), StreamSource(client, service), QUICK)
    async with running(projector), relayed(log, client, service):
        for batch in (130, 1, 70):
            await append(log, batch)
            head = await log.head()
            assert await projector.wait_for(head, timeout_s=30) == head
    assert await totals(pool) == {"Happened": 201}
    assert (await projector.verify()).equal
    assert await projector.rebuild() == 201


async def test_a_reader_that_fell_behind_goes_on_by_pages_not_event_by_event(
    log: PostgresEventLog, client: Client
) -> None:
    service = f"svc-{uuid7().hex}"
    reader = StreamSource(client, service).reader(None)
    async with relayed(log, client, service) as relay:
        await append(log, 10)
        await relay.wait_for(10, timeout_s=30)
        assert len((await reader.read(0, 10)).events) == 10
        await append(log, 100)
        await relay.wait_for(110, timeout_s=30)
        await reader.wait(10, timeout_s=5)
        position, reads = 10, 0
        while position < 110:
            page = await reader.read(position, 20)
            position, reads = page.position, reads + 1
            if not page.events:
                await reader.wait(position, timeout_s=5)
    await reader.close()
    assert reads <= 8  # one event that was waited for, five pages, perhaps an empty one


async def test_a_view_of_a_foreign_log_survives_the_loss_of_the_stream(
    pool,
    log: PostgresEventLog,
    fresh_nats: RunningNats,
) -> None:
    client = await nats.connect(fresh_nats.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    projector = Projector(pool, Totals(), StreamSource(client, "orders"), QUICK)
    async with running(projector), relayed(log, client, "orders"):
        await append(log, 100)
        await projector.wait_for(100, timeout_s=30)
        await client.jetstream().delete_stream(event_stream("orders"))
        await append(log, 100)
        assert await projector.wait_for(200, timeout_s=30) == 200
        fresh_nats.kill()
        await append(log, 100)
        fresh_nats.start()
        assert await projector.wait_for(300, timeout_s=60) == 300
    assert await totals(pool) == {"Happened": 300}
    await client.close()


async def test_who_waits_is_let_go_when_the_server_that_was_asked_is_gone(
    log: PostgresEventLog, fresh_nats: RunningNats
) -> None:
    """The next server knows nothing of the request: its answer would be waited for in vain."""
    client = await nats.connect(fresh_nats.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    reader = StreamSource(client, "orders").reader(None)
    async with relayed(log, client, "orders") as relay:
        await append(log, 1)
        await relay.wait_for(1, timeout_s=30)
        waiting = asyncio.create_task(reader.wait(1, timeout_s=300))
        await until_consumed(client, "orders")
        fresh_nats.kill()
        fresh_nats.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 60)
        assert (await eventually_read(reader)).position == 1
        await reader.close()
    await client.close()


async def until_consumed(client: Client, service: str) -> None:
    """Until somebody waits for an event of the stream."""
    async with asyncio.timeout(30):
        while not any(info.num_waiting for info in await client.jetstream().consumers_info(event_stream(service))):
            pass


async def eventually_read(reader: Reader) -> Page:
    async with asyncio.timeout(30):
        while True:
            try:
                return await reader.read(0, 10)
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(0.01)


async def test_a_reader_that_waits_for_every_event_keeps_its_consumer(log: PostgresEventLog, client: Client) -> None:
    """The server says after a batch that it is complete, which is not the answer to the next request."""
    service = f"svc-{uuid7().hex}"
    reader, consumers = StreamSource(client, service).reader(None), set()
    async with relayed(log, client, service) as relay:
        await append(log, 1)
        await relay.wait_for(1, timeout_s=30)
        assert (await reader.read(0, 100)).position == 1
        for position in range(2, 7):
            waiting = asyncio.create_task(reader.wait(position - 1, 30))
            await append(log, 1)
            await waiting
            assert [event.position for event in (await reader.read(position - 1, 100)).events] == [position]
            assert not (await reader.read(position, 100)).events
            consumers |= {info.name for info in await client.jetstream().consumers_info(event_stream(service))}
        await reader.close()
    assert len(consumers) == 1


async def test_a_stream_that_no_longer_holds_what_a_view_needs_is_named(client: Client) -> None:
    service = f"svc-{uuid7().hex}"
    js = client.jetstream()
    await js.add_stream(name=event_stream(service), subjects=[f"synod.*.evt.{service}.>"], max_msgs=2)
    for _ in range(5):
        await js.publish(f"synod.local.evt.{service}.x.y.Z", b"{}")
    reader = StreamSource(client, service).reader(None)
    with pytest.raises(SourceTruncated, match="starts at 4, the view stands at 0"):
        await reader.read(0, 10)
