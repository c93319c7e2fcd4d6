"""What our recorders promise beyond the library's own cases."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import UUID

import pytest
from eventlog.clock import SystemClock
from eventlog.eventsourcing import EventLogFactory, acting, environment
from eventlog.eventsourcing.names import TypeNames
from eventlog.eventsourcing.recorders import (
    Application,
    EventLogApplicationRecorder,
    EventLogProcessRecorder,
)
from eventlog.eventsourcing.thread import LogThread
from eventlog.eventsourcing.translate import Translation
from eventlog.limits import Limits
from eventlog.postgres import PostgresEventLog
from eventlog.records import Context, StoredEvent, Verified
from eventsourcing.application import Application as LibraryApplication
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    Tracking,
)
from eventsourcing.persistence import StoredEvent as LibraryEvent
from launcher.testing import RunningPostgres
from lossy_proxy import lossy_proxy
from synod.common.ids import new_id, uuid7

IMPATIENT = Limits(reconnect_timeout_s=0.5)
ALL_OF_THEM = 1_000
WAIT_S = 30
Saved = TypeVar("Saved")
CONTEXT = Context(tenant="local", actor="tester")


class Account(Aggregate):
    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.cents = 0

    @event("Deposited")
    def deposit(self, cents: int) -> None:
        self.cents += cents


def an_event(aggregate_id: UUID | None = None, version: int = 1, state: bytes = b"{}") -> LibraryEvent:
    return LibraryEvent(aggregate_id or uuid7(), version, "Happened", state)


@pytest.fixture(scope="module")
def database(postgres_server: RunningPostgres) -> Iterator[str]:
    """One database for all tests, each in a schema of its own."""
    with postgres_server.fresh_database() as dsn:
        yield dsn


def opened(dsn: str, limits: Limits | None = None) -> Application:
    schema = new_id("case")
    thread = LogThread(lambda: PostgresEventLog.open(dsn, schema=schema, limits=limits))
    return Application(thread, Translation("aggregate", 1, "uuid", TypeNames()), CONTEXT, SystemClock())


@pytest.fixture
def application(database: str) -> Iterator[Application]:
    application = opened(database)
    yield application
    application.thread.close()


@pytest.fixture
def recorder(application: Application) -> EventLogApplicationRecorder:
    return EventLogApplicationRecorder(application)


@pytest.fixture
def process_recorder(application: Application) -> EventLogProcessRecorder:
    return EventLogProcessRecorder(application)


def stored(application: Application) -> list[StoredEvent]:
    return application.thread.call(lambda log: log.read())


# Retries and conflicts


async def test_an_answer_lost_after_commit_is_a_success_and_stored_once(database: str) -> None:
    async with lossy_proxy(database) as proxy:
        application = await asyncio.to_thread(opened, proxy.dsn)
        recorder, new = EventLogApplicationRecorder(application), an_event()
        proxy.lose_commits = 1

        assert await asyncio.to_thread(recorder.insert_events, [new]) == [1]

        assert proxy.lose_commits == 0
        assert len(await asyncio.to_thread(stored, application)) == 1
        await asyncio.to_thread(application.thread.close)


async def repeated(save: Callable[[], Saved]) -> Saved:
    """What saving gives in the end. On a slow machine the time to reconnect may be over before there is a connection."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await asyncio.to_thread(save)
            except OperationalError:
                continue


async def test_a_save_of_unknown_outcome_may_be_repeated(database: str) -> None:
    async with lossy_proxy(database) as proxy:
        application = await asyncio.to_thread(opened, proxy.dsn, IMPATIENT)
        recorder, new = EventLogApplicationRecorder(application), an_event()
        proxy.lose_commits = ALL_OF_THEM
        with pytest.raises(OperationalError):
            await asyncio.to_thread(recorder.insert_events, [new])
        proxy.lose_commits = 0

        assert await repeated(lambda: recorder.insert_events([new])) == [1]

        assert len(await asyncio.to_thread(stored, application)) == 1
        await asyncio.to_thread(application.thread.close)


async def test_a_processed_position_of_unknown_outcome_may_be_repeated(database: str) -> None:
    async with lossy_proxy(database) as proxy:
        application = await asyncio.to_thread(opened, proxy.dsn, IMPATIENT)
        recorder, new = EventLogProcessRecorder(application), an_event()

        def insert() -> object:
            return recorder.insert_events([new], tracking=Tracking("upstream", 7))

        proxy.lose_commits = ALL_OF_THEM
        with pytest.raises(OperationalError):
            await asyncio.to_thread(insert)
        proxy.lose_commits = 0

        assert await repeated(insert) == [2]

        with pytest.raises(IntegrityError):
            await asyncio.to_thread(insert)
        assert await asyncio.to_thread(recorder.max_tracking_id, "upstream") == 7
        assert len(await asyncio.to_thread(stored, application)) == 2
        await asyncio.to_thread(application.thread.close)


def test_the_same_events_saved_by_two_are_a_conflict_for_the_second(application: Application) -> None:
    new = an_event()
    EventLogApplicationRecorder(application).insert_events([new])
    with pytest.raises(IntegrityError, match="is at version 1, expected 0"):
        EventLogApplicationRecorder(application).insert_events([new])


def test_of_many_threads_that_save_one_version_one_wins(recorder: EventLogApplicationRecorder) -> None:
    aggregate_id = uuid7()

    def insert(number: int) -> bool:
        try:
            recorder.insert_events([an_event(aggregate_id, 1, b"%d" % number)])
        except IntegrityError:
            return False
        return True

    with ThreadPoolExecutor(8) as callers:
        outcomes = list(callers.map(insert, range(16)))

    assert outcomes.count(True) == 1
    assert len(recorder.select_events(aggregate_id)) == 1


def test_a_conflict_of_one_aggregate_leaves_nothing_of_the_others(recorder: EventLogApplicationRecorder) -> None:
    old = an_event()
    recorder.insert_events([old])
    with pytest.raises(IntegrityError):
        recorder.insert_events([an_event(), an_event(old.originator_id, 1, b"late"), an_event()])
    assert recorder.max_notification_id() == 1


def test_events_of_several_aggregates_keep_their_order(recorder: EventLogApplicationRecorder) -> None:
    one, other = uuid7(), uuid7()
    events = [an_event(one, 1), an_event(other, 1), an_event(one, 2), an_event(one, 3), an_event(other, 2)]

    assert recorder.insert_events(events) == [1, 2, 3, 4, 5]

    found = recorder.select_notifications(1, 10)
    assert [(each.originator_id, each.originator_version) for each in found] == [
        (each.originator_id, each.originator_version) for each in events
    ]


def test_a_hole_in_the_versions_is_refused(recorder: EventLogApplicationRecorder) -> None:
    aggregate_id = uuid7()
    recorder.insert_events([an_event(aggregate_id, 1)])
    with pytest.raises(IntegrityError, match="is at version 1, expected 2"):
        recorder.insert_events([an_event(aggregate_id, 3)])


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (an_event(version=0), "set EVENTLOG_FIRST_VERSION"),
        (LibraryEvent("no uuid", 1, "Happened", b""), "badly formed hexadecimal UUID"),
        (LibraryEvent(UUID(int=1), 1, "T" * 129, b""), "type 'T+' must be 1 to 128 characters"),
        (an_event(state=b"x" * (768 * 1024 + 1)), "the limit is 786432"),
    ],
)
def test_what_cannot_be_stored_is_named(recorder: EventLogApplicationRecorder, new: LibraryEvent, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        recorder.insert_events([new])


def test_a_closed_application_says_so(application: Application, recorder: EventLogApplicationRecorder) -> None:
    application.thread.close()
    with pytest.raises(InterfaceError, match="the log is closed"):
        recorder.max_notification_id()
    with pytest.raises(InterfaceError, match="the log is closed"):
        recorder.insert_events([an_event()])


# What is recorded with the events


def test_events_carry_who_acts(application: Application, recorder: EventLogApplicationRecorder) -> None:
    acme = Context("acme", "usr_1", "run_7", uuid7(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with acting(acme):
        recorder.insert_events([an_event()])
    recorder.insert_events([an_event()])

    by_acme, by_default = stored(application)

    recorded = (by_acme.tenant, by_acme.actor, by_acme.correlation, by_acme.causation, by_acme.traceparent)
    assert recorded == (acme.tenant, acme.actor, acme.correlation, acme.causation, acme.traceparent)
    assert (by_default.tenant, by_default.actor) == ("local", "tester")


def test_the_history_of_an_application_is_proven_by_the_log(postgres_dsn: str) -> None:
    with LibraryApplication[UUID](env=environment(postgres_dsn)) as bank:
        alice, bob = Account("Alice"), Account("Bob")
        alice.deposit(100)
        bank.save(alice, bob)
        factory = bank.factory
        assert isinstance(factory, EventLogFactory)

        recorder = bank.recorder
        assert isinstance(recorder, EventLogApplicationRecorder)
        verified: Verified = recorder.application.thread.call(lambda log: log.verify())

        assert (verified.ok, verified.events) == (True, 3)
        account: Account = bank.repository.get(alice.id)
        assert account.cents == 100


def test_threads_share_commits(application: Application, recorder: EventLogApplicationRecorder) -> None:
    with ThreadPoolExecutor(32) as callers:
        list(callers.map(lambda _: recorder.insert_events([an_event()]), range(640)))

    events = stored(application)
    assert len(events) == 640
    assert len({each.recorded_at for each in events}) < 320  # a group has one time; alone, each event has its own


# Positions processed


def test_a_position_counts_only_together_with_its_events(process_recorder: EventLogProcessRecorder) -> None:
    old = an_event()
    process_recorder.insert_events([old], tracking=Tracking("upstream", 1))
    with pytest.raises(IntegrityError):
        process_recorder.insert_events([old], tracking=Tracking("upstream", 2))
    assert process_recorder.max_tracking_id("upstream") == 1


def test_of_many_workers_each_position_is_processed_by_one(application: Application) -> None:
    def process(position: int) -> int:
        recorder = EventLogProcessRecorder(application)
        try:
            recorder.insert_events([an_event()], tracking=Tracking("upstream", position))
        except IntegrityError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as workers:
        processed = sum(workers.map(process, sorted([*range(1, 11)] * 4)))

    recorder = EventLogProcessRecorder(application)
    assert recorder.max_tracking_id("upstream") == 10
    assert len(recorder.select_notifications(None, 100)) == processed <= 10


def test_positions_are_found_again_by_another_process(application: Application) -> None:
    recorder = EventLogProcessRecorder(application)
    for position in range(1, 40):
        recorder.insert_tracking(Tracking("upstream", position * 3))
        assert EventLogProcessRecorder(application).max_tracking_id("upstream") == position * 3
    assert recorder.max_tracking_id("somebody else") is None


def test_noted_positions_are_no_notifications(process_recorder: EventLogProcessRecorder) -> None:
    process_recorder.insert_events([an_event()], tracking=Tracking("upstream", 1))
    for position in range(2, 30):
        process_recorder.insert_tracking(Tracking("upstream", position))

    assert [each.id for each in process_recorder.select_notifications(None, 100)] == [2]
    assert process_recorder.max_notification_id() == 2


# Reading


@pytest.mark.parametrize(
    ("selection", "versions"),
    [
        ({}, range(1, 1206)),
        ({"gt": 1200}, range(1201, 1206)),
        ({"lte": 3}, range(1, 4)),
        ({"gt": 2, "lte": 4}, range(3, 5)),
        ({"gt": 4, "lte": 4}, ()),
        ({"limit": 1001}, range(1, 1002)),
        ({"desc": True, "limit": 2}, (1205, 1204)),
        ({"desc": True, "lte": 1001, "limit": 1}, (1001,)),
        ({"limit": 0}, ()),
    ],
)
def test_a_long_aggregate_is_selected_page_by_page(
    long_aggregate: Callable[..., list[int]], selection: dict[str, int], versions: range
) -> None:
    assert long_aggregate(**selection) == list(versions)


@pytest.fixture(scope="module")
def long_aggregate(database: str) -> Iterator[Callable[..., list[int]]]:
    application, aggregate_id = opened(database), uuid7()
    recorder = EventLogApplicationRecorder(application)
    for versions in (range(1, 604), range(604, 1206)):
        recorder.insert_events([an_event(aggregate_id, version) for version in versions])
    yield lambda **selection: [each.originator_version for each in recorder.select_events(aggregate_id, **selection)]
    application.thread.close()


def test_a_forgotten_application_closes_even_after_a_conflict(database: str) -> None:
    recorder, old = EventLogApplicationRecorder(opened(database)), an_event()
    recorder.insert_events([old])
    with pytest.raises(IntegrityError):
        recorder.insert_events([old])
    thread = weakref.ref(recorder.application.thread)

    del recorder
    gc.collect()

    assert thread() is None
