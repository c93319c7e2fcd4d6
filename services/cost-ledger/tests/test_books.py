"""Books on a log: concurrency, several processes, restarts, what is forgotten.

Failure group 1: 200 concurrent requests for the price of 10, by one process and by several.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger import books as books_module
from cost_ledger import snapshots
from cost_ledger.book import EMPTY, Book
from cost_ledger.books import CODEC, Books, Executed
from cost_ledger.commands import Charge, Command, Price, Reserve, SetBudget, Settle
from cost_ledger.errors import AlreadyRecorded, BookBusy, BookContended, ReservationNotFound, TooMuchAtOnce
from cost_ledger.folding import evolve
from cost_ledger.rates import flat_card
from eventlog.errors import LogUnavailable, VersionConflict
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended, Context, StreamId
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import CostReserved, FuzzyPriceUsed, Hold, ReservationDenied

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACME = Context("acme", "usr_1")
STREAM = StreamId("book", "acme")
PRICE = Price(flat_card(1_000, 1_000, 1_000, 1_000), "book 1", "book")
HOLD = Hold(budget_id="team", window_start="lifetime")
WAIT_S = 30.0


class CountingLog(MemoryEventLog):
    """A log in memory that counts commits and fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.answers_lost = 0
        self.conflicts = 0

    async def append(self, *appends: Append) -> Appended:
        self.commits += 1
        if self.conflicts:
            self.conflicts -= 1
            raise VersionConflict(STREAM, 0, 1)
        appended = await super().append(*appends)
        if self.answers_lost:
            self.answers_lost -= 1
            raise LogUnavailable("the answer was lost")
        return appended


@pytest.fixture
def log() -> CountingLog:
    return CountingLog()


@pytest.fixture
async def books(log: CountingLog) -> AsyncIterator[Books]:
    books = Books(log, FakeClock(NOW))
    yield books
    await books.close()


def budget(limit: int) -> SetBudget:
    return SetBudget("team", Attribution(), limit, True, "lifetime", NOW)


def reserve(reservation_id: str, amount: int = 10) -> Reserve:
    return Reserve(
        reservation_id=reservation_id,
        request_sha256=f"sha {amount}",
        attribution=Attribution(tenant_id="acme", model="openai/gpt-5.5"),
        model="openai/gpt-5.5",
        input_tokens_max=0,
        output_tokens_max=0,
        fixed=amount,
        book_price=PRICE,
        at=NOW,
        expires_at=NOW + timedelta(minutes=10),
    )


def settle(reservation_id: str, amount: int = 7) -> Settle:
    return Settle(reservation_id, (), amount, "provider_final", NOW)


def granted(executed: list[Executed]) -> int:
    return sum(isinstance(event, CostReserved) for each in executed for event in each.events)


async def stored(log: MemoryEventLog) -> list[Event]:
    events = [CODEC.decode(event) for event in await log.read_stream(STREAM)]
    assert all(isinstance(event, Event) for event in events)
    return [event for event in events if isinstance(event, Event)]


async def replayed(log: MemoryEventLog) -> Book:
    book = EMPTY
    for event in await stored(log):
        book = evolve(book, event)
    return book


async def test_group_01_200_concurrent_reservations_for_the_price_of_10_grant_exactly_10(
    books: Books, log: CountingLog
) -> None:
    await books.execute(budget(100), ACME)
    before = log.commits
    executed = await asyncio.gather(*(books.execute(reserve(f"r{number}"), ACME) for number in range(200)))
    assert granted(executed) == 10
    assert sum(isinstance(event, ReservationDenied) for each in executed for event in each.events) == 190
    assert log.commits - before <= 5


async def test_group_01_two_processes_on_one_log_never_grant_more_than_there_is(log: CountingLog) -> None:
    first, second = Books(log, FakeClock(NOW)), Books(log, FakeClock(NOW))
    await first.execute(budget(100), ACME)
    executed = await asyncio.gather(
        *((first, second)[number % 2].execute(reserve(f"r{number}"), ACME) for number in range(200))
    )
    assert granted(executed) == 10
    assert (await first.read("acme")).pending(HOLD) == (await second.read("acme")).pending(HOLD) == 100
    await first.close()
    await second.close()


async def test_group_14_a_guessed_price_is_told_once_by_two_processes_that_use_it_together(log: CountingLog) -> None:
    guess = Price(PRICE.rates, "book 1", "book_fuzzy", ("openai/gpt-5.4",))
    processes = [Books(log, FakeClock(NOW)) for _ in range(2)]
    wanted = [(process, replace(reserve(f"r{n}"), book_price=guess)) for n, process in enumerate(processes * 5)]
    await asyncio.gather(*(process.execute(command, ACME) for process, command in wanted))
    told = [event for event in await stored(log) if isinstance(event, FuzzyPriceUsed)]
    assert told == [FuzzyPriceUsed(model="openai/gpt-5.5", price_version="book 1", priced_as="openai/gpt-5.4")]
    for process in processes:
        await process.close()


async def test_what_another_process_wrote_is_seen_by_a_read_and_by_a_refusal(log: CountingLog) -> None:
    first, second = Books(log, FakeClock(NOW)), Books(log, FakeClock(NOW))
    with pytest.raises(ReservationNotFound):
        await second.execute(settle("r1"), ACME)
    await first.execute(reserve("r1"), ACME)
    settled = await second.execute(settle("r1"), ACME)
    assert settled.events
    known = (await first.read("acme")).reservation("r1")
    assert known is not None
    assert known.state == "settled"
    await first.close()
    await second.close()


async def test_commands_of_several_callers_keep_their_own_context(books: Books, log: CountingLog) -> None:
    other = Context("acme", "usr_2", correlation="run_1")
    await asyncio.gather(books.execute(reserve("a"), ACME), books.execute(reserve("b"), other))
    events = await log.read_stream(STREAM)
    assert [(event.actor, event.correlation) for event in events] == [("usr_1", ""), ("usr_2", "run_1")]


async def test_tenants_have_books_of_their_own(books: Books) -> None:
    await books.execute(budget(5), ACME)
    executed = await books.execute(reserve("r1"), Context("globex", "usr_9"))
    assert granted([executed]) == 1


async def test_a_refused_command_refuses_no_other_of_its_batch(books: Books) -> None:
    outcomes = await asyncio.gather(
        books.execute(reserve("a"), ACME),
        books.execute(settle("nowhere"), ACME),
        books.execute(reserve("b"), ACME),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], ReservationNotFound)
    assert granted([outcome for outcome in outcomes if isinstance(outcome, Executed)]) == 2


async def test_commands_given_together_are_decided_in_order_and_committed_at_once(
    books: Books, log: CountingLog
) -> None:
    await books.execute(budget(25), ACME)
    before = log.commits
    commands: list[Command] = [reserve("a"), settle("nowhere"), reserve("b"), settle("a"), reserve("c"), reserve("d")]
    outcomes = await books.execute_many([(command, ACME) for command in commands])
    assert log.commits - before == 1
    assert isinstance(outcomes[1], ReservationNotFound)
    executed = [outcome for outcome in outcomes if isinstance(outcome, Executed)]
    assert [type(each.events[0]).__name__ for each in executed] == [
        "CostReserved",
        "CostReserved",
        "CostSettled",
        "ReservationDenied",
        "ReservationDenied",
    ]


async def test_group_18_commands_given_together_whose_answer_is_lost_are_found_again_by_each(
    books: Books, log: CountingLog
) -> None:
    log.answers_lost = 1
    with pytest.raises(LogUnavailable):
        await books.execute_many([(reserve("a"), ACME), (reserve("b"), ACME)])
    again = await books.execute_many([(reserve("b"), ACME), (reserve("c"), ACME), (reserve("a"), ACME)])
    assert [isinstance(each, Executed) and len(each.events) for each in again] == [0, 1, 0]
    assert await log.head() == 3


async def test_of_commands_given_together_those_above_what_may_wait_are_refused(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_module, "WAITING_COMMANDS_MAX", 3)
    outcomes = await books.execute_many([(reserve(f"r{number}"), ACME) for number in range(4)])
    assert [type(outcome) for outcome in outcomes] == [Executed, Executed, Executed, BookBusy]


async def test_who_gives_up_many_commands_while_they_wait_has_none_decided(books: Books, log: CountingLog) -> None:
    impatient = asyncio.create_task(books.execute_many([(reserve("a"), ACME), (reserve("b"), ACME)]))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    assert not (await books.read("acme")).open
    assert await log.head() == 0


async def test_a_caller_who_gave_up_while_waiting_is_not_decided_for(books: Books, log: CountingLog) -> None:
    impatient = asyncio.create_task(books.execute(reserve("r1"), ACME))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    assert (await books.read("acme")).reservation("r1") is None
    assert await log.head() == 0


async def test_group_18_a_lost_answer_is_found_again_by_the_same_command(books: Books, log: CountingLog) -> None:
    log.answers_lost = 1
    with pytest.raises(LogUnavailable):
        await books.execute(reserve("r1"), ACME)
    again = await books.execute(reserve("r1"), ACME)
    assert again.events == ()
    assert again.book.reservation("r1") is not None
    assert await log.head() == 1


async def test_a_book_that_others_always_change_first_is_given_up(books: Books, log: CountingLog) -> None:
    log.conflicts = 10**6
    with pytest.raises(BookContended):
        await books.execute(reserve("r1"), ACME)
    log.conflicts = 0
    assert granted([await books.execute(reserve("r1"), ACME)]) == 1


async def test_commands_that_may_wait_are_committed_with_the_next_that_may_not_and_decided_before_it(
    books: Books, log: CountingLog
) -> None:
    await books.execute(budget(10), ACME)
    await books.execute(reserve("a"), ACME)
    before = log.commits
    settled = asyncio.create_task(books.execute_many([(settle("a", 0), ACME)], patience_s=3_600))
    await asyncio.sleep(0)
    # There is room for it only once the first is settled.
    assert granted([await books.execute(reserve("b"), ACME)]) == 1
    assert [isinstance(outcome, Executed) for outcome in await settled] == [True]
    assert log.commits - before == 1


async def test_who_may_not_wait_is_answered_before_those_that_he_was_decided_after(books: Books) -> None:
    await books.execute(reserve("a"), ACME)
    order: list[str] = []

    async def execute(command: Reserve | Settle, patience_s: float) -> None:
        await books.execute_many([(command, ACME)], patience_s)
        order.append(command.reservation_id)

    settled = asyncio.create_task(execute(settle("a", 0), 3_600))
    await asyncio.sleep(0)
    await asyncio.gather(settled, execute(reserve("b"), 0))
    assert order == ["b", "a"]


async def test_commands_that_may_wait_are_committed_by_themselves_once_their_patience_is_over(books: Books) -> None:
    await books.execute(reserve("a"), ACME)
    for _ in range(2):
        async with asyncio.timeout(5):
            outcomes = await books.execute_many([(settle("a"), ACME)], patience_s=0.001)
        assert [isinstance(outcome, Executed) for outcome in outcomes] == [True]


async def test_commands_that_may_wait_are_carried_out_before_the_books_are_closed(books: Books) -> None:
    await books.execute(reserve("a"), ACME)
    settled = asyncio.create_task(books.execute_many([(settle("a"), ACME)], patience_s=3_600))
    await asyncio.sleep(0)
    await books.close()
    assert [isinstance(outcome, Executed) for outcome in await settled] == [True]


async def test_too_many_waiting_commands_are_refused(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "WAITING_COMMANDS_MAX", 3)
    outcomes = await asyncio.gather(
        *(books.execute(reserve(f"r{number}"), ACME) for number in range(4)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(BookBusy) == 1


async def test_a_long_batch_is_cut_into_requests_the_log_takes(
    log: CountingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_module, "BATCH_EVENTS_MAX", 3)
    books = Books(log, FakeClock(NOW))
    executed = await asyncio.gather(*(books.execute(reserve(f"r{number}"), ACME) for number in range(10)))
    assert granted(executed) == 10
    assert log.commits == 4
    await books.close()


async def told_of_by(books: Books, agent: str, budgets: int) -> Reserve:
    """A reservation of the agent that has four alerts for each of so many budgets, and what has to be there for it."""
    scope = Attribution(agent=agent)
    for number in range(budgets):
        await books.execute(SetBudget(f"{agent}-{number}", scope, 1, False, "lifetime", NOW), ACME)
    owner = Attribution(tenant_id="acme", model="openai/gpt-5.5", agent=agent)
    return replace(reserve(f"by {agent}"), attribution=owner)


async def test_a_batch_is_cut_before_a_command_whose_events_have_no_room_in_it(books: Books, log: CountingLog) -> None:
    first, second = await told_of_by(books, "few", 120), await told_of_by(books, "many", 200)
    before = log.commits
    executed = await asyncio.gather(*(books.execute(command, ACME) for command in (first, second)))
    assert [len(each.events) for each in executed] == [481, 801]
    assert log.commits - before == 2


async def test_a_command_with_more_events_than_a_request_takes_is_refused_and_no_other(
    books: Books, log: CountingLog
) -> None:
    too_much = await told_of_by(books, "all", 250)
    outcomes = await books.execute_many([(reserve("r1"), ACME), (too_much, ACME), (reserve("r2"), ACME)])
    assert [type(each) for each in outcomes] == [Executed, TooMuchAtOnce, Executed]
    assert "more than 1,000 events would come of it" in str(outcomes[1])
    assert set((await replayed(log)).open) == {"r1", "r2"}


async def test_group_18_the_log_refuses_what_a_book_has_forgotten(
    log: CountingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books(log, FakeClock(NOW))
    charge = Charge("call_1", Attribution(tool="sql"), 40, NOW, 7)
    await books.execute(reserve("r1"), ACME)
    await books.execute(settle("r1"), ACME)
    await books.execute(charge, ACME)
    await books.close()
    monkeypatch.setattr(snapshots, "load", lambda _: EMPTY)
    amnesiac = Books(log, FakeClock(NOW + timedelta(days=1)))
    await log.save_snapshot(STREAM, await log.head(), snapshots.FOLD, b"{}")
    outcomes = await asyncio.gather(
        amnesiac.execute(reserve("new"), ACME),
        amnesiac.execute(reserve("r1"), ACME),
        amnesiac.execute(charge, ACME),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], Executed)
    assert [type(outcome) for outcome in outcomes[1:]] == [AlreadyRecorded, AlreadyRecorded]
    await amnesiac.close()


async def test_closing_answers_all_that_waits(log: CountingLog) -> None:
    books = Books(log, FakeClock(NOW))
    waiting = [asyncio.create_task(books.execute(reserve(f"r{number}"), ACME)) for number in range(20)]
    await asyncio.sleep(0)
    await books.close()
    assert granted(await asyncio.gather(*waiting)) == 20


async def run_through(books: Books, commands: list[Command]) -> None:
    for command in commands:
        await books.execute(command, ACME)


def history_of(calls: int) -> list[Command]:
    commands: list[Command] = [budget(10_000)]
    for number in range(calls):
        commands += [reserve(f"r{number}"), settle(f"r{number}")] if number % 3 else [reserve(f"r{number}")]
    return commands


async def test_group_05_a_restart_in_the_middle_ends_in_the_same_book_as_a_continuous_run() -> None:
    continuous, restarted = MemoryEventLog(), MemoryEventLog()
    commands = history_of(40)
    whole = Books(continuous, FakeClock(NOW))
    await run_through(whole, commands)
    before = Books(restarted, FakeClock(NOW), snapshot_events=16)
    await run_through(before, commands[:35])
    await before.close()
    after = Books(restarted, FakeClock(NOW), snapshot_events=16)
    await run_through(after, commands[30:])
    assert await after.read("acme") == await whole.read("acme") == await replayed(continuous)
    assert await restarted.load_snapshot(STREAM, snapshots.FOLD) is not None
    await whole.close()
    await after.close()


async def test_a_start_reads_only_what_is_newer_than_the_snapshot(log: CountingLog) -> None:
    books = Books(log, FakeClock(NOW), snapshot_events=16)
    await run_through(books, history_of(40))
    await books.close()
    snapshot = await log.load_snapshot(STREAM, snapshots.FOLD)
    assert snapshot is not None
    assert snapshot.version > await log.head() - 20
    book = snapshots.load(snapshot.data)
    for stored_event in await log.read_stream(STREAM, after=snapshot.version):
        event = CODEC.decode(stored_event)
        assert isinstance(event, Event)
        book = evolve(book, event)
    assert book == await replayed(log)


class SlowToSave(CountingLog):
    """Saves a snapshot once it may; `saving` counts those that were begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_save = asyncio.Event(), asyncio.Event()
        self.saving = 0

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        self.saving += 1
        self.begun.set()
        await self.may_save.wait()
        await super().save_snapshot(stream, version, fold, data)


class UnableToSave(SlowToSave):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        self.saving += 1
        self.begun.set()
        raise self.error


async def test_nobody_waits_for_a_snapshot_and_a_clean_end_leaves_none_due() -> None:
    log = SlowToSave()
    books = Books(log, FakeClock(NOW), snapshot_events=16)
    async with asyncio.timeout(WAIT_S):
        await run_through(books, history_of(40))
        await log.begun.wait()
        await run_through(books, [reserve(f"more {number}") for number in range(40)])
    assert log.saving == 1  # one after the other

    log.may_save.set()
    await books.close()

    snapshot = await log.load_snapshot(STREAM, snapshots.FOLD)
    assert log.saving == 2
    assert snapshot is not None
    assert snapshots.load(snapshot.data) == await replayed(log)


@pytest.mark.parametrize("error", [LogUnavailable("the log is down"), RuntimeError("a fault")], ids=["away", "a fault"])
async def test_a_snapshot_that_cannot_be_saved_is_tried_again_and_stops_nothing(error: Exception) -> None:
    log = UnableToSave(error)
    books = Books(log, FakeClock(NOW), snapshot_events=16)
    async with asyncio.timeout(WAIT_S):
        await run_through(books, history_of(40))
        await log.begun.wait()
        await run_through(books, [reserve("more")])
        await books.close()

    assert log.saving > 1
    assert await log.load_snapshot(STREAM, snapshots.FOLD) is None


async def test_an_unreadable_snapshot_is_ignored(log: CountingLog) -> None:
    books = Books(log, FakeClock(NOW))
    await books.execute(reserve("r1"), ACME)
    await books.close()
    await log.save_snapshot(STREAM, 1, snapshots.FOLD, b'{"form": "of another time"}')
    again = Books(log, FakeClock(NOW))
    assert (await again.read("acme")).reservation("r1") is not None
    await again.close()


async def test_a_book_least_used_is_closed_and_opens_again(log: CountingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "BOOKS_OPEN_MAX", 1)
    books = Books(log, FakeClock(NOW))
    await books.execute(reserve("r1"), ACME)
    await books.execute(reserve("r1"), Context("globex", "usr_9"))
    assert (await books.read("acme")).reservation("r1") is not None
    await books.close()
