"""An application's history arrives whole and in order, or the import says where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import pytest
from eventlog.clock import SystemClock
from eventlog.eventsourcing import Imported, environment, import_events
from eventlog.eventsourcing.errors import ImportMismatch
from eventlog.eventsourcing.names import TypeNames
from eventlog.eventsourcing.recorders import Application, EventLogApplicationRecorder
from eventlog.eventsourcing.thread import LogThread
from eventlog.eventsourcing.translate import Translation
from eventlog.memory import MemoryEventLog
from eventlog.records import Context
from eventsourcing.application import Application as LibraryApplication
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.popo import POPOApplicationRecorder
from synod.common.ids import uuid7

LONG_AGO = datetime(2021, 3, 4, 5, 6, tzinfo=UTC)


class Account(Aggregate):
    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.cents = 0

    @event("Deposited")
    def deposit(self, cents: int) -> None:
        self.cents += cents


class Bank(LibraryApplication[UUID]):
    def open(self, owner: str, cents: int) -> UUID:
        account = Account(owner)
        account.deposit(cents)
        self.save(account)
        return account.id


def events_of(aggregate_id: UUID, *versions: int, topic: str = "Happened") -> list[StoredEvent]:
    return [StoredEvent(aggregate_id, version, topic, b"state %d" % version) for version in versions]


@pytest.fixture
def source() -> POPOApplicationRecorder:
    return POPOApplicationRecorder()


@contextmanager
def a_target(types: TypeNames) -> Iterator[EventLogApplicationRecorder]:
    async def open_log() -> MemoryEventLog:
        return MemoryEventLog()

    thread = LogThread(open_log)
    translation = Translation("aggregate", 1, "uuid", types)
    yield EventLogApplicationRecorder(Application(thread, translation, Context("local", "import"), SystemClock()))
    thread.close()


@pytest.fixture
def target() -> Iterator[EventLogApplicationRecorder]:
    with a_target(TypeNames()) as target:
        yield target


def test_an_application_on_the_stock_recorder_is_brought_over(postgres_dsn: str) -> None:
    stock = environment(postgres_dsn) | {"PERSISTENCE_MODULE": "eventsourcing.postgres"}
    with Bank(env=stock) as old, Bank(env=environment(postgres_dsn)) as new:
        accounts = [old.open(f"owner {number}", number) for number in range(1, 300)]
        with pytest.raises(IntegrityError):  # which leaves a hole in the stock recorder's ids
            old.recorder.insert_events(old.recorder.select_events(accounts[0]))
        last = old.open("last", 7)
        assert isinstance(new.recorder, EventLogApplicationRecorder)

        imported = import_events(
            old.recorder, new.recorder, lambda stored: old.mapper.to_domain_event(stored).timestamp
        )

        assert imported == Imported(events=600, aggregates=300, copied=600, ids_kept=False)
        account: Account = new.repository.get(last)
        assert (account.owner, account.cents, account.version) == ("last", 7, 2)
        account.deposit(1)
        assert new.save(account)[0].notification.id == 601
        recorded = new.recorder.application.thread.call(lambda log: log.read(limit=1))[0]
        assert recorded.occurred_at == next(old.events.get(accounts[0])).timestamp


def test_ids_are_kept_where_the_source_has_no_holes(
    source: POPOApplicationRecorder, target: EventLogApplicationRecorder
) -> None:
    one, other = uuid7(), uuid7()
    source.insert_events([*events_of(one, 1, 2), *events_of(other, 1), *events_of(one, 3)])

    assert import_events(source, target) == Imported(events=4, aggregates=2, copied=4, ids_kept=True)

    assert list(target.select_notifications(1, 10)) == list(source.select_notifications(1, 10))


def test_an_import_that_was_broken_off_is_completed(
    source: POPOApplicationRecorder, target: EventLogApplicationRecorder
) -> None:
    events = [each for number in range(300) for each in events_of(uuid7(), 1, 2, 3)]
    source.insert_events(events)
    target.import_events(events[:500], [LONG_AGO] * 500)

    assert import_events(source, target) == Imported(events=900, aggregates=300, copied=400, ids_kept=True)
    assert import_events(source, target) == Imported(events=900, aggregates=300, copied=0, ids_kept=True)


def test_a_page_imported_twice_is_stored_once(target: EventLogApplicationRecorder) -> None:
    events = events_of(uuid7(), 1, 2, 3)
    target.import_events(events, [LONG_AGO] * 3)
    target.import_events(events, [LONG_AGO] * 3)
    assert target.max_notification_id() == 3


def test_a_log_with_another_history_is_left_as_it_is(
    source: POPOApplicationRecorder, target: EventLogApplicationRecorder
) -> None:
    source.insert_events(events_of(uuid7(), 1, 2))
    target.insert_events(events_of(uuid7(), 1))

    with pytest.raises(ImportMismatch, match=r"at position 1: Happened of .* stands where") as mismatch:
        import_events(source, target)

    assert mismatch.value.position == 1
    assert target.max_notification_id() == 1


def test_a_log_that_holds_more_is_no_copy(source: POPOApplicationRecorder, target: EventLogApplicationRecorder) -> None:
    events = events_of(uuid7(), 1, 2)
    source.insert_events(events[:1])
    target.insert_events(events)
    with pytest.raises(ImportMismatch, match="at position 2: the log holds more than its source"):
        import_events(source, target)


def test_a_source_that_grows_meanwhile_is_found(
    source: POPOApplicationRecorder, target: EventLogApplicationRecorder
) -> None:
    aggregate_id = uuid7()
    source.insert_events(events_of(aggregate_id, 1))

    def occurred_at(_: StoredEvent) -> datetime:
        source.insert_events(events_of(uuid7(), 1))
        return LONG_AGO

    with pytest.raises(ImportMismatch, match="at position 2: the log lacks an event of its source"):
        import_events(source, target, occurred_at)


def test_former_topics_are_stored_under_the_stable_name(source: POPOApplicationRecorder) -> None:
    types = TypeNames()
    types.register("AccountOpened", "accounts:Account.Opened", "bank.domain:Account.Opened")
    source.insert_events(events_of(uuid7(), 1, topic="bank.domain:Account.Opened"))
    with a_target(types) as target:
        imported = import_events(source, target)

        assert imported.events == 1
        assert target.select_notifications(1, 1)[0].topic == "accounts:Account.Opened"
        assert target.application.thread.call(lambda log: log.read())[0].type == "AccountOpened"


def test_an_import_of_nothing_is_nothing(source: POPOApplicationRecorder, target: EventLogApplicationRecorder) -> None:
    assert import_events(source, target) == Imported(events=0, aggregates=0, copied=0, ids_kept=True)
