"""The test cases that the library ships, unchanged, against our recorders.

Where a case has to be told something, the reason stands there. Two facts recur:

- Some cases number an aggregate's versions from 0, others from 1, and the stock recorders take any number. Our log counts
  without holes, so each case is told where its numbers start, as an application tells by EVENTLOG_FIRST_VERSION.
- The cases import the cipher on pycryptodome; the library's twin on `cryptography` is named alike and reads the same
  texts, so it stands in and no second cryptographic library is needed.
"""

# ruff: noqa: E402  # the stand-in must be there before the cases are imported
import gc
import sys
from collections.abc import Iterator
from typing import ClassVar
from unittest import TestCase
from uuid import UUID

import eventsourcing.cryptography
import psycopg
import pytest
from eventsourcing.persistence import InfrastructureFactory, TrackingRecorder
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.utils import Environment
from launcher.testing import RunningPostgres
from psycopg.sql import SQL, Composed, Identifier
from synod.common.ids import new_id

sys.modules.setdefault("eventsourcing.cipher", eventsourcing.cryptography)

from eventlog.eventsourcing import EventLogFactory, environment
from eventlog.eventsourcing.recorders import (
    EventLogAggregateRecorder,
    EventLogApplicationRecorder,
    EventLogProcessRecorder,
    SnapshotRecorder,
)
from eventsourcing.tests import application as applications
from eventsourcing.tests import persistence as recorders
from eventsourcing.tests import projection as projections


@pytest.fixture(scope="module")
def database(postgres_server: RunningPostgres) -> Iterator[str]:
    """One database for all cases, each in schemas of its own: half the time of one database for each."""
    with postgres_server.fresh_database() as dsn:
        yield dsn


class OnOurLog:
    """Gives each case empty schemas, and closes what it opened."""

    versions_from_0: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture(autouse=True)
    def _settings(self, database: str) -> Iterator[None]:
        schema = new_id("case")
        self.settings = environment(database) | {"POSTGRES_SCHEMA": schema, "POSTGRES_POOL_SIZE": "1"}
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(SQL("create schema {}").format(Identifier(schema)))
        self.opened: list[EventLogFactory] = []
        yield
        for factory in self.opened:
            factory.close()

    def open(self) -> EventLogFactory:
        first = "0" if self._testMethodName in self.versions_from_0 else "1"
        factory = InfrastructureFactory.construct(self.settings | {"EVENTLOG_FIRST_VERSION": first})
        assert isinstance(factory, EventLogFactory)
        self.opened.append(factory)
        return factory


class TestAggregateRecorder(OnOurLog, recorders.AggregateRecorderTestCase):
    INITIAL_VERSION = 0  # the case itself starts its second aggregate at 0
    versions_from_0 = frozenset({"test_insert_and_select", "test_performance"})

    def create_recorder(self) -> EventLogAggregateRecorder:
        recorder = self.open().aggregate_recorder()
        assert isinstance(recorder, EventLogAggregateRecorder)
        return recorder


class TestSnapshotRecorder(OnOurLog, recorders.AggregateRecorderTestCase):
    """Only what a cache of snapshots shares with a record of events."""

    def create_recorder(self) -> SnapshotRecorder:
        recorder = self.open().aggregate_recorder(purpose="snapshots")
        assert isinstance(recorder, SnapshotRecorder)
        return recorder

    def test_insert_and_select(self) -> None:
        """The shipped case demands a conflict where a snapshot is taken twice, which failed saves already stored."""
        recorder, aggregate_id = self.create_recorder(), self.new_originator_id()
        taken = [recorders.StoredEvent(aggregate_id, version, "topic", b"state") for version in (2, 4)]

        recorder.insert_events(taken)
        recorder.insert_events([recorders.StoredEvent(aggregate_id, 4, "topic", b"taken again")])

        assert recorder.select_events(aggregate_id) == taken
        assert recorder.select_events(aggregate_id, desc=True, limit=1) == taken[1:]
        assert recorder.select_events(aggregate_id, lte=3, desc=True, limit=1) == taken[:1]


class TestApplicationRecorder(OnOurLog, recorders.ApplicationRecorderTestCase[EventLogApplicationRecorder]):
    versions_from_0 = frozenset({"test_concurrent_no_conflicts", "test_concurrent_throughput"})

    def create_recorder(self) -> EventLogApplicationRecorder:
        recorder = self.open().application_recorder()
        assert isinstance(recorder, EventLogApplicationRecorder)
        return recorder

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestApplicationRecorderWithTextIds(TestApplicationRecorder):
    def new_originator_id(self) -> str:
        return f"customer {super().new_originator_id()}, gold/\N{EURO SIGN}_5F"

    def open(self) -> EventLogFactory:
        self.settings["ORIGINATOR_ID_TYPE"] = "text"
        return super().open()


class TestNonInterleavingNotificationIds(OnOurLog, recorders.NonInterleavingNotificationIDsBaseCase):
    versions_from_0 = frozenset({"test"})

    def create_recorder(self) -> EventLogApplicationRecorder:
        recorder = self.open().application_recorder()
        assert isinstance(recorder, EventLogApplicationRecorder)
        return recorder


class TestTrackingRecorder(OnOurLog, recorders.TrackingRecorderTestCase):
    def create_recorder(self) -> TrackingRecorder:
        return self.open().tracking_recorder()


class TestProcessRecorderAsTrackingRecorder(OnOurLog, recorders.TrackingRecorderTestCase):
    def create_recorder(self) -> EventLogProcessRecorder:
        recorder = self.open().process_recorder()
        assert isinstance(recorder, EventLogProcessRecorder)
        return recorder


class TestProcessRecorder(OnOurLog, recorders.ProcessRecorderTestCase):
    versions_from_0 = frozenset({"test_performance"})

    def create_recorder(self) -> EventLogProcessRecorder:
        recorder = self.open().process_recorder()
        assert isinstance(recorder, EventLogProcessRecorder)
        return recorder


class PostgresCounters(PostgresTrackingRecorder, projections.EventCountersView):
    """A view in the library's own manner: its counters and its tracking change in one transaction."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        create = "create table if not exists {} (name text primary key, count bigint not null)"
        self.sql_create_statements.append(self._sql(create))

    def get_created_event_counter(self) -> int:
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: recorders.Tracking) -> None:
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: recorders.Tracking) -> None:
        self._increment("subsequent", tracking)

    def _count(self, name: str) -> int:
        with self.datastore.transaction() as cursor:
            row = cursor.execute(self._sql("select count from {} where name = %s"), [name]).fetchone()
        return row["count"] if row else 0

    def _increment(self, name: str, tracking: recorders.Tracking) -> None:
        upsert = "insert into {} as c values (%s, 1) on conflict (name) do update set count = c.count + 1"
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self._sql(upsert), [name])

    def _sql(self, text: str) -> Composed:
        return SQL(text).format(Identifier(self.datastore.schema, "counters"))


class TestFactory(OnOurLog, recorders.InfrastructureFactoryTestCase[EventLogFactory]):
    @pytest.fixture(autouse=True)
    def _environment(self, _settings: None) -> None:
        self.env = Environment(name="TestCase", env=self.settings)

    def expected_factory_class(self) -> type[EventLogFactory]:
        return EventLogFactory

    def expected_aggregate_recorder_class(self) -> type[EventLogAggregateRecorder]:
        return EventLogAggregateRecorder

    def expected_application_recorder_class(self) -> type[EventLogApplicationRecorder]:
        return EventLogApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[TrackingRecorder]:
        return PostgresTrackingRecorder

    def tracking_recorder_subclass(self) -> type[TrackingRecorder]:
        return PostgresCounters

    def expected_process_recorder_class(self) -> type[EventLogProcessRecorder]:
        return EventLogProcessRecorder


class InTheEnvironment(OnOurLog):
    """For cases that construct applications themselves: the process's environment selects our factory.

    They leave it to the collector to close them, which must be over before the database is.
    """

    @pytest.fixture(autouse=True)
    def _environment(self, _settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for key, value in self.settings.items():
            monkeypatch.setenv(key, value)
        yield
        gc.collect()


class TestExampleApplication(InTheEnvironment, applications.ExampleApplicationTestCase):
    expected_factory_topic = "eventlog.eventsourcing.factory:EventLogFactory"


@pytest.mark.filterwarnings("default:'log' is deprecated")
class TestApplication(InTheEnvironment, applications.ApplicationTestCase):
    pass


class TestView(OnOurLog, projections.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> projections.EventCountersView:
        return self.open().tracking_recorder(PostgresCounters)


class TestProjection(InTheEnvironment, projections.AggregateEventCountersProjectionTestCase):
    view_class = PostgresCounters


class TestEventSourcedProjection(InTheEnvironment, projections.EventSourcedProjectionTestCase):
    pass


def test_no_shipped_case_of_a_recorder_is_left_out() -> None:
    shipped = {
        name
        for name, case in vars(recorders).items()
        if isinstance(case, type)
        and issubclass(case, TestCase)
        and name.endswith("Case")
        and name not in {"RecorderTestCase", "TranscoderTestCase"}  # a base, and nothing that is recorded
        and case.__module__ == recorders.__name__
    }
    run = {base.__name__ for case in globals().values() if isinstance(case, type) for base in case.__mro__}

    assert len(shipped) >= 6
    assert shipped <= run


def test_ids_are_uuids_unless_text_is_chosen(postgres_dsn: str) -> None:
    factory = InfrastructureFactory.construct(environment(postgres_dsn))
    recorder = factory.application_recorder()
    aggregate_id = UUID(int=7)

    recorder.insert_events([recorders.StoredEvent(aggregate_id, 1, "topic", b"state")])

    assert recorder.select_notifications(1, 1)[0].originator_id == aggregate_id
    factory.close()
