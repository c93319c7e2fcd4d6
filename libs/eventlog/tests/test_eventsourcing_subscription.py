"""A subscription replays, then follows: no gap, no duplicate, through losses of every connection."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import psycopg
import pytest
from eventlog.clock import SystemClock
from eventlog.eventsourcing.names import TypeNames
from eventlog.eventsourcing.recorders import Application, EventLogApplicationRecorder
from eventlog.eventsourcing.thread import LogThread
from eventlog.eventsourcing.translate import Translation
from eventlog.limits import Limits
from eventlog.postgres import PostgresEventLog
from eventlog.records import Context, StreamId
from eventlog.sql import statements
from eventlog.testing import an_append
from eventlog.writer import GroupWriter
from eventsourcing.persistence import (
    InterfaceError,
    Notification,
    OperationalError,
    ProgrammingError,
    StoredEvent,
    Subscription,
)
from launcher.testing import RunningPostgres
from synod.common.ids import new_id, uuid7


def an_event(topic: str = "Happened") -> StoredEvent:
    return StoredEvent(uuid7(), 1, topic, b"{}")


@pytest.fixture(scope="module")
def database(postgres_server: RunningPostgres) -> Iterator[str]:
    """One database for all tests, each in a schema of its own."""
    with postgres_server.fresh_database() as dsn:
        yield dsn


@pytest.fixture
def schema() -> str:
    return new_id("case")


def opened(dsn: str, schema: str) -> EventLogApplicationRecorder:
    thread = LogThread(lambda: PostgresEventLog.open(dsn, schema=schema))
    translation = Translation("aggregate", 1, "uuid", TypeNames())
    return EventLogApplicationRecorder(Application(thread, translation, Context("local", "tester"), SystemClock()))


@pytest.fixture
def recorder(database: str, schema: str) -> Iterator[EventLogApplicationRecorder]:
    recorder = opened(database, schema)
    yield recorder
    recorder.application.thread.close()


def ids(subscription: Subscription[object], count: int) -> list[int]:
    return [notification.id for notification in islice(subscription, count)]


def cut_connections(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and datname = current_database() and pid <> pg_backend_pid()"
        )


def test_what_eight_threads_save_arrives_in_order_and_once(recorder: EventLogApplicationRecorder) -> None:
    recorder.insert_events([an_event() for _ in range(700)])
    with recorder.subscribe() as subscription, ThreadPoolExecutor(8) as callers:
        saving = callers.map(lambda _: recorder.insert_events([an_event()]), range(400))
        assert ids(subscription, 1100) == list(range(1, 1101))
        assert len(list(saving)) == 400


def test_what_another_process_saves_arrives(database: str, schema: str, recorder: EventLogApplicationRecorder) -> None:
    other = opened(database, schema)
    with recorder.subscribe() as subscription:
        for position in range(1, 6):
            other.insert_events([an_event()])
            assert ids(subscription, 1) == [position]
    other.application.thread.close()


async def test_an_event_without_notice_arrives(
    database: str, schema: str, recorder: EventLogApplicationRecorder
) -> None:
    """E6: the stock subscription would deliver it only after the next notice."""
    writer = GroupWriter(database, statements(schema), Limits(), SystemClock(), lambda *_: None)
    writer.start()
    with recorder.subscribe() as subscription:
        reading = asyncio.create_task(asyncio.to_thread(ids, subscription, 1))
        await writer.submit([an_append(StreamId("aggregate", str(uuid7())))])
        assert await asyncio.wait_for(reading, timeout=10) == [1]
    await writer.close()


def test_a_subscription_outlives_its_connections(
    database: str, schema: str, recorder: EventLogApplicationRecorder
) -> None:
    """E8: the stock subscription ends with an error, and nothing starts it again."""
    with recorder.subscribe() as subscription:
        for position in range(1, 4):
            recorder.insert_events([an_event()])
            assert ids(subscription, 1) == [position]
            cut_connections(database)


class UnreachableOnce(EventLogApplicationRecorder):
    """Cannot reach the database at the first reading."""

    failed = False

    def select_notifications(self, *args: Any, **kwargs: Any) -> Sequence[Notification]:
        if not self.failed:
            self.failed = True
            raise OperationalError("the log cannot be read")
        return super().select_notifications(*args, **kwargs)


def test_a_database_that_is_away_for_long_delays_a_subscription_only(recorder: EventLogApplicationRecorder) -> None:
    unreachable = UnreachableOnce(recorder.application)
    unreachable.insert_events([an_event()])
    with unreachable.subscribe() as subscription:
        assert ids(subscription, 1) == [1]
    assert unreachable.failed


def test_chosen_topics_arrive_and_others_do_not(recorder: EventLogApplicationRecorder) -> None:
    topics = ["Opened", "Deposited", "Closed"]
    for number in range(30):
        recorder.insert_events([an_event(topics[number % 3])])
    with recorder.subscribe(gt=3, topics=["Closed"]) as subscription:
        assert ids(subscription, 9) == list(range(6, 31, 3))
        recorder.insert_events([an_event("Opened"), an_event("Closed")])
        assert ids(subscription, 1) == [32]


def test_stopping_ends_a_reader_that_waits(recorder: EventLogApplicationRecorder) -> None:
    subscription, read = recorder.subscribe(), []
    reader = threading.Thread(target=lambda: read.extend(subscription))
    reader.start()
    recorder.insert_events([an_event()])
    subscription.stop()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert len(read) <= 1


def test_closing_the_application_ends_a_reader_with_an_error(recorder: EventLogApplicationRecorder) -> None:
    with recorder.subscribe() as subscription:
        recorder.application.thread.close()
        with pytest.raises(InterfaceError, match="the log is closed"):
            next(subscription)


def test_a_subscription_is_entered_once(recorder: EventLogApplicationRecorder) -> None:
    with recorder.subscribe() as subscription, pytest.raises(ProgrammingError):
        subscription.__enter__()
