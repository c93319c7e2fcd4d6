"""Alerts are told once: under concurrency, by rival processes, across restarts from snapshots, and in a replay.

Failure group 17: an alert fires once under concurrency and after a replay.
"""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from cost_ledger.book import EMPTY
from cost_ledger.books import CODEC, Books
from cost_ledger.commands import Charge, Price, Reserve, SetBudget, Settle
from cost_ledger.decoding import known_event
from cost_ledger.folding import fold
from cost_ledger.rates import UNPRICED
from eventlog.memory import MemoryEventLog
from eventlog.records import Context, StreamId
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import BudgetThresholdReached

NOW = datetime(2026, 10, 25, 21, 30, tzinfo=UTC)
ACME = Context("acme", "usr_1")


def charge(number: int, clock: FakeClock, amount: int = 1) -> Charge:
    return Charge(f"c{number}", Attribution(tenant_id="acme", agent="writer", tool="sql"), amount, clock.now(), number)


async def told(log: MemoryEventLog) -> Counter[tuple[str, str, int]]:
    stored = await log.read_stream(StreamId("book", "acme"), limit=1_000)
    events: list[Event] = [known_event(CODEC.decode(each)) for each in stored]
    return Counter(
        (event.budget_id, event.window_start, event.threshold_percent)
        for event in events
        if isinstance(event, BudgetThresholdReached)
    )


async def test_group_17_rival_processes_and_restarts_tell_each_threshold_once() -> None:
    log, clock = MemoryEventLog(), FakeClock(NOW)
    rivals = [Books(log, clock, snapshot_events=3) for _ in range(3)]
    await rivals[0].execute(SetBudget("day", Attribution(), 40, False, "day", NOW, time_zone="Europe/Berlin"), ACME)
    for start in range(0, 60, 12):
        numbers = range(start, start + 12)
        await asyncio.gather(*(rivals[number % 3].execute(charge(number, clock), ACME) for number in numbers))
        await rivals[start // 12 % 3].close()
        rivals[start // 12 % 3] = Books(log, clock, snapshot_events=3)
    assert await told(log) == {("day", "2026-10-25", percent): 1 for percent in (50, 80, 95, 100)}
    for rival in rivals:
        await rival.close()


async def test_group_17_a_new_day_of_the_place_is_told_anew_and_a_day_of_25_hours_is_one() -> None:
    log, clock = MemoryEventLog(), FakeClock(datetime(2026, 10, 24, 22, 30, tzinfo=UTC))
    books = Books(log, clock)
    await books.execute(SetBudget("day", Attribution(), 10, False, "day", NOW, time_zone="Europe/Berlin"), ACME)
    for hour in range(26):
        await books.execute(charge(hour, clock, amount=10), ACME)
        clock.advance(3_600)
    # 25 hours of Sunday, then one of Monday.
    assert await told(log) == {
        ("day", day, percent): 1 for day in ("2026-10-25", "2026-10-26") for percent in (50, 80, 95, 100)
    }
    await books.close()


@pytest.mark.parametrize("order", list(permutations(range(4))))
async def test_group_17_a_rolling_budget_tells_each_threshold_once_in_whatever_order_calls_end(
    order: tuple[int, ...],
) -> None:
    log, clock = MemoryEventLog(), FakeClock(NOW)
    books = Books(log, clock)
    await books.execute(rolling(limit=4), ACME)
    for number in range(4):
        await books.execute(held(number, clock), ACME)
        clock.advance(6)  # two slices
    for number in order:
        await books.execute(ended(number, clock), ACME)
        clock.advance(1)
    assert await percents(log) == {50: 1, 80: 1, 95: 1, 100: 1}
    await books.close()


async def test_group_17_a_late_settlement_tells_of_the_window_now_and_not_of_the_one_that_is_over() -> None:
    log, clock = MemoryEventLog(), FakeClock(NOW)
    books = Books(log, clock)
    await books.execute(rolling(limit=2), ACME)
    for number in range(3):
        await books.execute(held(number, clock), ACME)
        clock.advance(30)
    # The first is out of the window by now, the other two are in it.
    await books.execute(ended(0, clock), ACME)
    await books.execute(ended(1, clock), ACME)
    assert await percents(log) == {50: 1}
    await books.execute(ended(2, clock), ACME)
    assert await percents(log) == {50: 1, 80: 1, 95: 1, 100: 1}
    await books.close()


async def test_group_17_what_a_clock_that_is_ahead_has_told_is_not_told_again() -> None:
    log, clock, ahead = MemoryEventLog(), FakeClock(NOW), FakeClock(NOW + timedelta(seconds=12))
    books = Books(log, clock)
    await books.execute(rolling(limit=2), ACME)
    for number in range(2):
        await books.execute(held(number, clock), ACME)
    await books.execute(ended(0, ahead), ACME)
    await books.execute(ended(1, clock), ACME)
    assert await percents(log) == {50: 1, 80: 1, 95: 1, 100: 1}
    await books.close()


async def test_group_17_a_cost_that_is_told_late_counts_in_the_rolling_window_of_its_telling() -> None:
    log, clock = MemoryEventLog(), FakeClock(NOW)
    books = Books(log, clock)
    await books.execute(rolling(limit=2), ACME)
    first = charge(0, clock)
    clock.advance(12)
    await books.execute(charge(1, clock), ACME)
    clock.advance(40)
    await books.execute(replace(first, at=clock.now()), ACME)
    assert await percents(log) == {50: 1, 80: 1, 95: 1, 100: 1}
    await books.close()


def rolling(limit: int) -> SetBudget:
    """Of a minute, in slices of three seconds."""
    return SetBudget("minute", Attribution(), limit, False, "rolling", NOW, rolling_s=60)


def held(number: int, clock: FakeClock) -> Reserve:
    price = Price(UNPRICED, "", "fixed")
    at, later = clock.now(), clock.now() + timedelta(minutes=10)
    return Reserve(f"r{number}", "sha", Attribution(tenant_id="acme"), "", 0, 0, 1, price, at, later)


def ended(number: int, clock: FakeClock) -> Settle:
    return Settle(f"r{number}", (), 1, "provider_final", clock.now())


async def percents(log: MemoryEventLog) -> Counter[int]:
    """How often each threshold was told, in whatever slices."""
    return Counter(percent for _, _, percent in (await told(log)).elements())


async def test_group_17_a_replay_of_the_events_tells_nothing_new() -> None:
    log, clock = MemoryEventLog(), FakeClock(NOW)
    books = Books(log, clock)
    await books.execute(SetBudget("all", Attribution(), 10, False, "lifetime", NOW), ACME)
    for number in range(10):
        await books.execute(charge(number, clock), ACME)
    stored = await log.read_stream(StreamId("book", "acme"), limit=1_000)
    assert fold(EMPTY, (known_event(CODEC.decode(each)) for each in stored)) == await books.read("acme")
    again = Books(log, clock)
    for number in range(10):
        await again.execute(charge(number, clock), ACME)
    assert sum((await told(log)).values()) == 4
    await again.close()
    await books.close()
