"""A book folded anew has the balances of the one that decided the events, however it is cut into pages.

Failure group 23. The same with a million events and a database is `make bench ONLY=ledger-rebuild SIZE=full`.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import pytest
from cost_ledger import snapshots
from cost_ledger.book import EMPTY, Book
from cost_ledger.books import CODEC
from cost_ledger.commands import Charge, Command, Doubt, Expire, Price, Release, Reserve, SetBudget, Settle
from cost_ledger.domain import decide
from cost_ledger.folding import fold
from cost_ledger.rates import flat_card
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Quantity

EVENTS = 2_000
START = datetime(2026, 1, 31, 20, tzinfo=UTC)
PRICE = Price(flat_card(1_000, 4_000, 100, 1_250), "book 1", "book")
MODEL = "acme/m1"


def history() -> Iterator[Command]:
    """Calls over the end of a month, each with another course."""
    yield SetBudget("month", Attribution(), 10**12, True, "month", START, time_zone="Europe/Berlin")
    yield SetBudget("hour", Attribution(), 10**12, True, "rolling", START, rolling_s=3_600)
    yield SetBudget("talk", Attribution(), 10**6, False, "lifetime", START, per="conversation_id")
    yield SetBudget("time", Attribution(), 10**9, False, "day", START, unit="tool_ms")
    for number in count():
        at, name = START + timedelta(seconds=20 * number), f"req_{number}:1"
        owner = Attribution(tenant_id="acme", model=MODEL, conversation_id=f"conv_{number % 7}")
        yield Reserve(name, name, owner, MODEL, 800, 200, None, PRICE, at, at + timedelta(minutes=1))
        yield from course(number, name, owner, at)


def course(number: int, name: str, owner: Attribution, at: datetime) -> Iterator[Command]:
    used = UsageLine(direction="input", quantity=700), UsageLine(direction="output", quantity=90 + number % 400)
    settle = Settle(name, used, None, "provider_final", at)
    match number % 6:
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
        case _:
            yield settle


def decided() -> tuple[Book, list[Event]]:
    book, events = EMPTY, list[Event]()
    for command in history():
        made = decide(book, command)
        book = fold(book, made)
        events += made
        if len(events) >= EVENTS:
            return book, events
    raise AssertionError("the history has no end")


@pytest.fixture(scope="module")
def written() -> tuple[Book, list[Event]]:
    """A book, and its events as they come back from their stored bytes."""
    book, events = decided()
    stored = [CODEC.encode(event, at=START) for event in events]
    return book, [type(event).model_validate_json(new.data) for event, new in zip(events, stored, strict=True)]


def pages(events: Sequence[Event], size: int) -> Iterator[list[Event]]:
    rest = iter(events)
    while page := list(islice(rest, size)):
        yield page


@pytest.mark.parametrize("size", [1, 7, 1_000, EVENTS * 2])
def test_group_23_a_rebuilt_book_is_the_one_that_decided_whatever_the_pages(
    written: tuple[Book, list[Event]], size: int
) -> None:
    expected, events = written
    book = EMPTY
    for page in pages(events, size):
        book = fold(book, page)
    assert dict(book.balances) == dict(expected.balances)
    assert book == expected
    assert sum(book.balances.values()) == 0


def test_group_23_a_rebuild_from_a_snapshot_in_the_middle_comes_to_the_same(written: tuple[Book, list[Event]]) -> None:
    expected, events = written
    half = len(events) // 2
    restored = snapshots.load(snapshots.dump(fold(EMPTY, events[:half])))
    assert fold(restored, events[half:]) == expected
