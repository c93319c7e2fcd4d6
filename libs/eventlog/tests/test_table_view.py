"""A view of one table is folded as its functions say, whatever comes in one batch."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar

import pytest
from eventlog.aggregates import Aggregates
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.errors import RowMissing
from eventlog.folding import PersonalView, ProjectorLimits
from eventlog.master_keys import LocalMasterKey
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import ANY, Append, Context, StoredEvent, StreamId
from eventlog.sources import LogSource
from eventlog.table_view import TableView, begins, on
from eventlog.testing import NOON
from eventlog.vault import Vault
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.common.personal import ERASED, DataSubject, Personal

CONTEXT = Context(tenant="local", actor="test")


class Opened(Event):
    AGGREGATE = "account"
    owner: str


class Deposited(Event):
    AGGREGATE = "account"
    cents: int


class Withdrawn(Event):
    AGGREGATE = "account"
    cents: int


class Closed(Event):
    AGGREGATE = "account"


class Labelled(Event):
    AGGREGATE = "account"
    VERSION = 2
    label: str


class Invited(Event):
    AGGREGATE = "account"
    guest: Annotated[str, DataSubject()]
    email: Annotated[str, Personal()]


CODEC: Codec[Event] = Codec([Opened, Deposited, Withdrawn, Closed, Labelled, Invited])


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    owner: str
    opened_at: datetime
    cents: int = 0
    moves: tuple[int, ...] = ()
    last_at: datetime | None = None


class AccountsView(TableView[Account]):
    name, version, row = "accounts", 1, Account
    indexes = ("(owner) where cents > 0",)

    @begins
    def opened(self, event: Opened, stored: StoredEvent) -> Account:
        return Account(stored.stream.id, event.owner, stored.occurred_at)

    @on
    def moved(self, account: Account, event: Deposited | Withdrawn, stored: StoredEvent) -> Account:
        cents = event.cents if isinstance(event, Deposited) else -event.cents
        moves = (*account.moves, cents)
        return replace(account, cents=account.cents + cents, moves=moves, last_at=stored.occurred_at)

    @on
    def closed(self, account: Account, event: Closed, stored: StoredEvent) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Label:
    tenant: str
    label: str


class LabelsView(TableView[Label]):
    """Keyed by what the event says; its first version called the label otherwise."""

    name, version, row = "labels", 1, Label
    key = ("tenant", "label")
    upcasters: ClassVar = {("Labelled", 1): lambda fields: {"label": fields["title"]}}

    def key_of(self, event: Labelled, stored: StoredEvent) -> tuple[object, ...]:
        return (stored.tenant, event.label)

    @begins
    def labelled(self, event: Labelled, stored: StoredEvent) -> Label:
        return Label(stored.tenant, event.label)


@dataclass(frozen=True, slots=True)
class Guest:
    id: str
    email: str


class GuestsView(TableView[Guest]):
    name, version, row, personal = "guests", 1, Guest, True

    @begins
    def invited(self, event: Invited, stored: StoredEvent) -> Guest:
        return Guest(event.guest, str(event.email))


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        yield log


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[Any]]]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


async def append(log: PostgresEventLog, stream: str, *events: Event) -> None:
    encoded = tuple(CODEC.encode(event, at=NOON) for event in events)
    await log.append(Append(StreamId("account", stream), ANY, encoded, CONTEXT))


async def rows(pool: AsyncConnectionPool[AsyncConnection[Any]], table: str) -> list[tuple[object, ...]]:
    async with pool.connection() as connection:
        return await (await connection.execute(f"select * from view_{table}.{table} order by 1, 2".encode())).fetchall()


def test_table_and_types_follow_from_the_row_and_the_functions() -> None:
    assert AccountsView.types == {"Opened", "Deposited", "Withdrawn", "Closed"}
    assert AccountsView.tables == (
        'create table "accounts" (\n'
        '    "id" text not null,\n'
        '    "owner" text not null,\n'
        '    "opened_at" timestamptz not null,\n'
        '    "cents" bigint not null,\n'
        '    "moves" bigint[] not null,\n'
        '    "last_at" timestamptz,\n'
        '    primary key ("id")\n'
        ");\n"
        'create index on "accounts" (owner) where cents > 0;\n'
    )


def test_a_field_that_can_be_no_column_is_refused_where_the_view_is_written() -> None:
    @dataclass(frozen=True)
    class Odd:
        id: str
        thing: object

    with pytest.raises(TypeError, match=r"Odd\.thing"):
        type("OddView", (TableView,), {"name": "odd", "version": 1, "row": Odd})


def test_two_functions_for_one_type_of_event_are_refused_where_the_view_is_written() -> None:
    with pytest.raises(TypeError, match=r"TwiceView: deposited and counted both take Deposited"):

        class TwiceView(TableView[Account]):
            name, version, row = "twice", 1, Account

            @on
            def deposited(self, account: Account, event: Deposited, stored: StoredEvent) -> Account:
                return replace(account, cents=account.cents + event.cents)

            @on
            def counted(self, account: Account, event: Withdrawn | Deposited, stored: StoredEvent) -> Account:
                return replace(account, cents=account.cents + 1)


def deposited_at_noon() -> StoredEvent:
    """What a fold reads of an event; the rest is not there."""
    absent = [None] * (len(StoredEvent._fields) - 3)
    return StoredEvent(1, StreamId("account", "a"), 1, *absent)._replace(type="Deposited", occurred_at=NOON)


def test_functions_are_inherited_and_replaced_by_one_of_the_same_name() -> None:
    class GenerousView(AccountsView):
        name = "generous"

        @on
        def moved(self, account: Account, event: Deposited, stored: StoredEvent) -> Account:
            return replace(account, cents=account.cents + 2 * event.cents)

    assert GenerousView.types == {"Opened", "Deposited", "Closed"}
    stored = deposited_at_noon()
    doubled = GenerousView().fold(Account("a", "ada", NOON), Deposited(cents=7), stored)
    assert doubled == Account("a", "ada", NOON, 14)
    with pytest.raises(TypeError, match=r"moved and more both take Withdrawn"):

        class MoreView(AccountsView):
            @on
            def more(self, account: Account, event: Withdrawn, stored: StoredEvent) -> Account:
                return account


def test_a_function_that_takes_events_is_not_replaced_by_one_that_does_not_say_so() -> None:
    with pytest.raises(TypeError, match=r"moved replaces one that takes events; mark it with @on"):

        class SilentView(AccountsView):
            def moved(self, account: Account, event: Deposited, stored: StoredEvent) -> Account:
                return account


@pytest.mark.parametrize("batch_events", [1, 100])
async def test_a_row_that_a_batch_begins_again_and_ends_is_gone(
    log: PostgresEventLog, pool: AsyncConnectionPool[AsyncConnection[Any]], batch_events: int
) -> None:
    projector = Projector(pool, AccountsView(), LogSource(log), ProjectorLimits(batch_events=batch_events))
    await append(log, "a", Opened(owner="ada"))
    await projector.catch_up()
    await append(log, "a", Opened(owner="eva"), Closed())
    await projector.catch_up()
    assert await rows(pool, "accounts") == []
    assert (await projector.verify()).equal


@pytest.mark.parametrize("batch_events", [1, 2, 100])
async def test_what_comes_out_is_the_same_in_whatever_batches(
    log: PostgresEventLog, pool: AsyncConnectionPool[AsyncConnection[Any]], batch_events: int
) -> None:
    await append(log, "a", Opened(owner="ada"), Deposited(cents=5))
    await append(log, "b", Opened(owner="bob"))
    await append(log, "a", Withdrawn(cents=2))
    await append(log, "b", Deposited(cents=1), Closed())
    await append(log, "c", Opened(owner="eve"), Closed(), Opened(owner="eva"))
    projector = Projector(pool, AccountsView(), LogSource(log), ProjectorLimits(batch_events=batch_events))
    await projector.catch_up()
    assert await rows(pool, "accounts") == [("a", "ada", NOON, 3, [5, -2], NOON), ("c", "eva", NOON, 0, [], None)]
    assert (await projector.verify()).equal
    assert await projector.parked() == []


async def test_an_event_about_a_row_that_is_not_there_is_parked_alone(
    log: PostgresEventLog, pool: AsyncConnectionPool[AsyncConnection[Any]]
) -> None:
    await append(log, "a", Opened(owner="ada"))
    await append(log, "lost", Deposited(cents=5))
    await append(log, "a", Deposited(cents=1))
    projector = Projector(pool, AccountsView(), LogSource(log), ProjectorLimits(attempts_max=1))
    await projector.catch_up()
    (parked,) = await projector.parked()
    assert (parked.event.position, parked.error) == (
        2,
        "RowMissing: view accounts has no row ('lost',) for a Deposited to change",
    )
    assert [row[3] for row in await rows(pool, "accounts")] == [1]


def test_a_row_is_folded_without_a_database() -> None:
    stored = deposited_at_noon()
    account = Account("a", "ada", NOON)
    assert AccountsView().fold(account, Deposited(cents=7), stored) == replace(
        account, cents=7, moves=(7,), last_at=NOON
    )
    with pytest.raises(RowMissing):
        AccountsView().fold(None, Deposited(cents=7), stored)


async def test_a_key_of_several_columns_and_an_old_version_of_an_event(
    log: PostgresEventLog, pool: AsyncConnectionPool[AsyncConnection[Any]]
) -> None:
    old = replace(CODEC.encode(Labelled(label="-"), at=NOON), type_version=1, data=b'{"title":"red"}')
    await log.append(Append(StreamId("account", "a"), ANY, (old,), CONTEXT))
    await append(log, "b", Labelled(label="red"), Labelled(label="blue"))
    await Projector(pool, LabelsView(), LogSource(log)).catch_up()
    assert await rows(pool, "labels") == [("local", "blue"), ("local", "red")]


async def test_what_is_personal_is_shown_as_long_as_its_key_lives(
    log: PostgresEventLog, pool: AsyncConnectionPool[AsyncConnection[Any]]
) -> None:
    vault = Vault(pool, log, LocalMasterKey(os.urandom(32), "test"))
    await vault.prepare()
    guests = Aggregates(log, "account", str, lambda _, __: "", CODEC, SystemClock(), vault=vault)
    await guests.execute("a", lambda _: [Invited(guest="g1", email="ada@example.org")], CONTEXT)
    view = GuestsView(vault)
    assert isinstance(view, PersonalView)
    assert view.personal
    projector = Projector(pool, view, LogSource(log))
    await projector.catch_up()
    assert await rows(pool, "guests") == [("g1", "ada@example.org")]
    await vault.erase("local", "g1", actor="test", reason="asked")
    await projector.forget()
    assert await rows(pool, "guests") == [("g1", str(ERASED))]
