"""A book folded anew is the one that decided the events, however it is cut into pages; so are the views.

Failure group 23. The same with a million events and a database is `make bench ONLY=ledger-rebuild SIZE=full`.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import pytest
from cost_ledger import snapshots
from cost_ledger.book import EMPTY, Book
from cost_ledger.books import CODEC, event_id
from cost_ledger.commands import (
    Charge,
    Cleared,
    ClearSuspense,
    CloseStock,
    Command,
    Doubt,
    Expire,
    ImportInvoice,
    InvoiceLine,
    Price,
    Release,
    Renew,
    Rerate,
    Reserve,
    ResumeBudget,
    ReturnStock,
    SetBudget,
    SetPrice,
    SetPriceFactor,
    Settle,
    SuspendBudget,
    TellForecast,
)
from cost_ledger.domain import decide
from cost_ledger.folding import fold
from cost_ledger.importing import Importing
from cost_ledger.prices import load_price_book
from cost_ledger.projections import BudgetsView, ReservationsView, SpendView
from cost_ledger.queries import Queries
from cost_ledger.rates import flat_card
from eventlog.memory import MemoryEventLog
from eventlog.projections import Projector, ProjectorLimits
from eventlog.records import Append, Context, StreamId
from eventlog.sources import LogSource
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import EVENTS as REGISTERED
from synod.cost_ledger.events import Hold, PriceBookImported, Quantity

EVENTS = 2_000
START = datetime(2026, 1, 31, 20, tzinfo=UTC)
PRICE = Price(flat_card(1_000, 4_000, 100, 1_250), "book 1", "book")
MODEL = "acme/m1"
ACME = Context("acme", "usr_1")
PAGE_EVENTS = 7
Decided = tuple[Command, tuple[Event, ...]]


def history() -> Iterator[Command]:
    """Calls over the end of a month, each with another course."""
    yield SetBudget("month", Attribution(), 10**12, True, "month", START, time_zone="Europe/Berlin")
    yield SetBudget("hour", Attribution(), 10**12, True, "rolling", START, rolling_s=3_600)
    yield SetBudget("talk", Attribution(), 10**4, False, "lifetime", START, per="conversation_id")
    yield SetBudget("time", Attribution(), 10**9, False, "day", START, unit="tool_ms")
    yield SetBudget("poor", Attribution(agent="poor"), 1, True, "lifetime", START)
    yield SetBudget("watched", Attribution(agent="watched"), 10**9, True, "lifetime", START)
    for number in count():
        at, name = START + timedelta(seconds=20 * number), f"req_{number}:1"
        owner = Attribution(tenant_id="acme", model=MODEL, conversation_id=f"conv_{number // 14}")
        reserve = Reserve(name, name, owner, MODEL, 800, 200, None, PRICE, at, at + timedelta(minutes=1))
        yield reserve
        yield from course(number, reserve)


def course(number: int, reserve: Reserve) -> Iterator[Command]:
    name, owner, at = reserve.reservation_id, reserve.attribution, reserve.at
    output = 90 + number % 400
    used = UsageLine(direction="input", quantity=700), UsageLine(direction="output", quantity=output)
    settle = Settle(name, used, None, "provider_final", at)
    match number % 14:
        case 0:
            yield Release(name, "refused")
        case 1:
            yield Expire(name, at + timedelta(minutes=1))
            yield settle
        case 2:
            yield Doubt(name)
        case 3:
            time = (Quantity(unit="tool_ms", quantity=40),)
            yield Charge(f"call_{number}", Attribution(tenant_id="acme", tool="sql"), 5, at, number, time)
            yield settle
        case 4:
            yield Renew(name, at, at + timedelta(minutes=9))
            yield settle
        case 5:
            yield settle
            before = 700 + 4 * output
            talk = Hold(budget_id="talk", window_start="lifetime", share=owner.conversation_id)
            yield Rerate(name, 1, owner, MODEL, before, 1_000 * (before + 9), PRICE, (talk,), at, "a new price")
        case 6:
            yield from stocked(number, reserve)
        case 7:
            yield replace(
                reserve, reservation_id=f"{name}:poor", attribution=owner.model_copy(update={"agent": "poor"})
            )
        case 8:
            guess = Price(PRICE.rates, f"book {number}", "book_fuzzy", (MODEL,))
            yield replace(reserve, reservation_id=f"{name}:guess", book_price=guess)
        case 9:
            yield from suspended(number, reserve)
        case 10:
            yield SetPrice("acme", f"own-{number}", number, number, number, number)
            yield SetPriceFactor("other", f"m{number}", 900_000)
            yield settle
        case 11:
            late = number % 28 < 14
            moments = (at + timedelta(days=1), at + timedelta(hours=1)) if late else (None, None)
            yield TellForecast("month", "2026-01", late, *moments, 10, 10**12, at)
        case 12:
            yield from invoiced(number, reserve)
        case _:
            yield settle


def stocked(number: int, reserve: Reserve) -> Iterator[Command]:
    """Reserved ahead: one is used, one returned, and what is left is freed as the holder ends."""
    holder = f"gw_{number}"
    names = [f"{holder}:{each}" for each in range(3)]
    yield from (replace(reserve, reservation_id=name, holder=holder) for name in names)
    yield Settle(names[0], (UsageLine(direction="output", quantity=9),), None, "provider_final", reserve.at)
    yield ReturnStock(holder, (names[1],))
    yield CloseStock(holder)


def suspended(number: int, reserve: Reserve) -> Iterator[Command]:
    """Of two suspensions one is left to the next that comes here."""
    watched = reserve.attribution.model_copy(update={"agent": "watched"})
    yield SuspendBudget("watched", f"a leaked key, {number}")
    yield replace(reserve, reservation_id=f"{reserve.reservation_id}:watched", attribution=watched)
    if number % 28 < 14:
        yield ResumeBudget("watched")
    yield SetBudget("watched", Attribution(agent="watched"), 10**9 + number, True, "lifetime", reserve.at)


def invoiced(number: int, reserve: Reserve) -> Iterator[Command]:
    """An invoice that says of two in suspense what they came to, and one that corrects it."""
    doubtful = [f"{reserve.reservation_id}:{each}" for each in ("billed", "not")]
    for name in doubtful:
        yield replace(reserve, reservation_id=name)
        yield Doubt(name)
    line = InvoiceLine(MODEL, reserve.at, reserve.at + timedelta(seconds=1), 30, 20)
    cleared = (Cleared(doubtful[0], 20), Cleared(doubtful[1], 0))
    invoice = ImportInvoice(f"inv_{number}", "acme", "sha", (line,))
    yield ClearSuspense(invoice, cleared)
    yield invoice
    yield ImportInvoice(f"inv_{number}b", "acme", "sha b", (replace(line, invoiced=25),), f"inv_{number}")


@dataclass(frozen=True)
class Written:
    """A book, what was decided for it, and its events as they come back from their stored bytes."""

    book: Book
    decided: tuple[Decided, ...]
    events: tuple[Event, ...]

    def halves(self) -> tuple[Sequence[Decided], Sequence[Decided]]:
        """Each has about as many commands as the other."""
        half = len(self.decided) // 2
        return self.decided[:half], self.decided[half:]


def decided() -> tuple[Book, list[Decided]]:
    book, found, events = EMPTY, list[Decided](), 0
    for command in history():
        made = decide(book, command)
        book = fold(book, made)
        found.append((command, made))
        events += len(made)
        if events >= EVENTS:
            return book, found
    raise AssertionError("the history has no end")


@pytest.fixture(scope="module")
def written() -> Written:
    book, found = decided()
    made = [event for _, events in found for event in events]
    stored = [CODEC.encode(event, at=START) for event in made]
    read = tuple(type(event).model_validate_json(new.data) for event, new in zip(made, stored, strict=True))
    return Written(book, tuple(found), read)


def pages(events: Sequence[Event], size: int) -> Iterator[list[Event]]:
    rest = iter(events)
    while page := list(islice(rest, size)):
        yield page


def test_group_23_each_half_of_the_history_has_every_event_that_a_book_can_have(written: Written) -> None:
    expected = {event for event in REGISTERED if event.AGGREGATE == "book"}
    assert expected == set(REGISTERED) - {PriceBookImported}
    for half in written.halves():
        assert {type(event) for _, events in half for event in events} == expected


@pytest.mark.parametrize("size", [1, PAGE_EVENTS, 1_000, EVENTS * 2])
def test_group_23_a_rebuilt_book_is_the_one_that_decided_whatever_the_pages(written: Written, size: int) -> None:
    book = EMPTY
    for page in pages(written.events, size):
        book = fold(book, page)
    assert dict(book.balances) == dict(written.book.balances)
    assert book == written.book
    assert sum(book.balances.values()) == 0


def test_group_23_a_rebuild_from_a_snapshot_in_the_middle_comes_to_the_same_and_decides_the_same(
    written: Written,
) -> None:
    first, second = written.halves()
    restored = snapshots.load(snapshots.dump(fold(EMPTY, [event for _, events in first for event in events])))
    for command, events in second:
        assert decide(restored, command) == events
        restored = fold(restored, events)
    assert restored == written.book


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


async def logged(events: Sequence[Event]) -> MemoryEventLog:
    """A log with the events in the book of a tenant, and the price book that came into use before."""
    log, stream, version = MemoryEventLog(), StreamId("book", ACME.tenant), 0
    await Importing(log, FakeClock(START)).tell(load_price_book())
    for page in pages(events, 100):
        new = tuple(CODEC.encode(event, id=event_id(stream.id, event), at=START) for event in page)
        await log.append(Append(stream, version, new, ACME))
        version += len(page)
    return log


async def test_group_23_every_view_of_every_event_is_rebuilt_as_it_was_and_says_what_the_book_says(
    written: Written, pool: AsyncConnectionPool
) -> None:
    log = await logged(written.events)
    assert {stored.type for stored in await log.read(limit=2 * EVENTS)} == {each.type_name() for each in REGISTERED}
    views = [
        Projector(pool, view, LogSource(log, "cost-ledger"), ProjectorLimits(batch_events=PAGE_EVENTS))
        for view in (SpendView(), BudgetsView(), ReservationsView())
    ]
    for view in views:
        await view.catch_up()
        before = await view.checksum()
        await view.rebuild()
        assert await view.checksum() == before
        assert await view.parked() == []

    queries, book = Queries(pool), written.book
    assert await queries.balances(ACME.tenant) == dict(book.balances)
    known = {each.budget.budget_id: each.budget for each in await queries.budgets(ACME.tenant, "", 9, START)}
    assert known == dict(book.budgets)
    for name in {*book.open, *book.closed.values}:
        found, kept = await queries.find(ACME.tenant, name), book.reservation(name)
        assert found is not None and kept is not None
        assert (found.state, found.settled, found.overrun) == (kept.state, kept.settled, kept.overrun)
