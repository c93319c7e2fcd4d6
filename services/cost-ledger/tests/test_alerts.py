"""Alerts are told once: under concurrency, by rival processes, across restarts from snapshots, and in a replay.

Failure group 17: an alert fires once under concurrency and after a replay.
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime

from cost_ledger.book import EMPTY
from cost_ledger.books import CODEC, Books
from cost_ledger.commands import Charge, SetBudget
from cost_ledger.decoding import known_event
from cost_ledger.folding import fold
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
