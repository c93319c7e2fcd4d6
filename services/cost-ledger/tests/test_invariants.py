"""Whatever the order of commands, deliveries, crashes and processes: what must always hold of the money.

Failure group 6: random interleavings; postings sum to zero, nothing held is negative, no budget is exceeded by admission,
nothing in suspense is refunded, each reservation is settled once, what is made ahead of its call leaves as much as it must
and no trace where it is refused.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import get_args

from cost_ledger import snapshots
from cost_ledger.book import EMPTY, account
from cost_ledger.books import CODEC, Books, decoded
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
    Settle,
    SuspendBudget,
    Unreserved,
)
from cost_ledger.domain import SPARE_TIMES
from cost_ledger.errors import LedgerError
from cost_ledger.folding import entries, evolve
from cost_ledger.rates import UNPRICED, flat_card
from eventlog.memory import MemoryEventLog
from eventlog.records import Context, StreamId
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetResumed,
    BudgetSuspended,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    Quantity,
    ReservationDenied,
    ReservationReleased,
    Unit,
)

START = datetime(2026, 11, 30, 22, tzinfo=UTC)
ACME = Context("acme", "usr_1")
PRICE = Price(flat_card(1_500, 4_000, 150, 1_875), "book 1", "book")
NO_PRICE = Price(UNPRICED, "book 1", "unpriced")
NAMES = [f"r{number}" for number in range(12)]
HOLDERS = ["gw1", "gw2"]
STOCK = [f"{holder}:{number}" for holder in HOLDERS for number in range(4)]
ANY = [*NAMES, *STOCK]
PICKS = st.integers(0, 3 * len(ANY) - 1)
"""Two of three are of reservations that are open, if any is."""
AGENTS = ["writer", "analyst"]
SUSPENDED = ["writer", "advice", "tokens"]
BUDGETS: list[tuple[str, dict[str, object]]] = [
    ("all", {"window": "lifetime"}),
    ("daily", {"window": "day", "time_zone": "America/New_York"}),
    ("writer", {"scope": Attribution(agent="writer"), "window": "month"}),
    ("advice", {"scope": Attribution(agent="analyst"), "window": "day", "hard": False}),
    ("model", {"scope": Attribution(model="openai/gpt-5.5"), "window": "rolling", "rolling_s": 7_200}),
    ("user", {"scope": Attribution(user_id="usr_1"), "window": "hour"}),
    ("sql", {"scope": Attribution(tool="sql"), "window": "year"}),
    ("talk", {"window": "lifetime", "per": "conversation_id"}),
    ("tokens", {"window": "rolling", "rolling_s": 3_600, "unit": "tokens"}),
    ("time", {"window": "week", "unit": "tool_ms", "per": "agent"}),
]


def is_hard(budget_id: str) -> bool:
    return bool(dict(BUDGETS)[budget_id].get("hard", True))


def counts(rules: Mapping[str, object], attribution: Attribution) -> bool:
    """Whether a cost of that attribution counts against a budget of those rules."""
    wanted = rules.get("scope", Attribution()).model_dump(exclude_defaults=True)  # type: ignore[attr-defined]
    share = rules.get("per")
    return all(getattr(attribution, name) == value for name, value in wanted.items()) and (
        share is None or bool(getattr(attribution, str(share)))
    )


class Tally:
    """What stands against each budget, summed up from the postings alone: nothing here asks the code that admits."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.suspended: set[str] = set()
        self.committed: Counter[tuple[str, str, str]] = Counter()
        """Posted, held and in suspense together, by budget, window and share."""

    def add(self, event: Event) -> Counter[tuple[str, str, str]]:
        """Count an event; how it moved what stands against each budget, window and share that it touches."""
        if isinstance(event, BudgetSuspended):
            self.suspended.add(event.budget_id)
        elif isinstance(event, BudgetResumed):
            self.suspended.remove(event.budget_id)
        moved: Counter[tuple[str, str, str]] = Counter()
        for posting in getattr(event, "postings", ()):
            self._count(moved, posting.account, posting.amount_nano_usd)
        for posting in getattr(event, "quota_postings", ()):
            self._count(moved, posting.account, posting.quantity)
        for key, amount in moved.items():
            self.committed[key] += amount
        return moved

    def _count(self, moved: Counter[tuple[str, str, str]], name: str, amount: int) -> None:
        kind, _, rest = name.partition(":")
        if kind in {"spent", "pending", "suspense"}:
            budget_id, _, window_and_share = rest.partition(":")
            window, _, share = window_and_share.partition("|")
            moved[budget_id, window, share] += amount

    def left(self, hold: Hold) -> int:
        """What the limit leaves in the hold's window, or in the time that a rolling window looks back on from there."""
        against = sum(
            amount
            for (budget_id, window, share), amount in self.committed.items()
            if (budget_id, share) == (hold.budget_id, hold.share) and is_counted(hold, window)
        )
        return self.limits[hold.budget_id] - against


def is_counted(hold: Hold, window: str) -> bool:
    rolling_s = dict(BUDGETS)[hold.budget_id].get("rolling_s")
    if not isinstance(rolling_s, int):
        return window == hold.window_start
    since = datetime.fromisoformat(hold.window_start) - timedelta(seconds=rolling_s)
    return datetime.fromisoformat(window) >= since


class Ledger(RuleBasedStateMachine):
    """Two processes on one log, and a book folded from it event by event."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.log = MemoryEventLog()
        self.clock = FakeClock(START)
        self.processes: list[Books] = []
        self.seen = 0
        self.settled: list[str] = []
        self.revisions: Counter[str] = Counter()
        self.invoices = count(1)
        self.tally = Tally()
        self.book = EMPTY

    @initialize(
        limits=st.one_of(
            st.lists(st.integers(most // 4, most), min_size=len(BUDGETS), max_size=len(BUDGETS))
            for most in (400, 9_000)
        )
    )
    def open(self, limits: list[int]) -> None:
        self.loop.run_until_complete(self._open())
        for (budget_id, _), limit in zip(BUDGETS, limits, strict=True):
            self.set_budget(0, budget_id, limit)

    def set_budget(self, process: int, budget_id: str, limit: int) -> None:
        rules: dict[str, object] = {"scope": Attribution(), "hard": True} | dict(BUDGETS)[budget_id]
        self.tally.limits[budget_id] = limit
        self.run(process, SetBudget(budget_id=budget_id, limit=limit, at=self.clock.now(), **rules))  # type: ignore[arg-type]

    async def _open(self) -> None:
        self.processes = [Books(self.log, self.clock, snapshot_events=7) for _ in range(2)]

    def run(self, process: int, *commands: Command) -> None:
        async def together() -> None:
            outcomes = await asyncio.gather(
                *(self.processes[process].execute(command, ACME) for command in commands), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, LedgerError):
                    raise outcome

        self.loop.run_until_complete(together())

    def reservation(self, name: str, agent: str, tokens: int) -> Reserve:
        return Reserve(
            reservation_id=name,
            request_sha256=f"{agent} {tokens}",
            attribution=Attribution(
                tenant_id="acme", agent=agent, model="openai/gpt-5.5", user_id="usr_1", conversation_id=f"c_{agent}"
            ),
            model="openai/gpt-5.5",
            input_tokens_max=tokens,
            output_tokens_max=tokens,
            fixed=None,
            book_price=PRICE,
            at=self.clock.now(),
            expires_at=self.clock.now() + timedelta(minutes=10),
            quantities=(Quantity(unit="tool_ms", quantity=tokens),),
        )

    def name_of(self, pick: int) -> str:
        """One of the names of PICKS."""
        names = sorted(self.book.open) if pick >= len(ANY) else ANY
        return names[pick % len(names)] if names else ANY[pick % len(ANY)]

    @rule(
        process=st.integers(0, 1),
        wanted=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(AGENTS), st.integers(0, 40)), max_size=6),
    )
    def reserve(self, process: int, wanted: list[tuple[str, str, int]]) -> None:
        self.run(process, *(self.reservation(*each) for each in wanted))

    @rule(
        process=st.integers(0, 1),
        name=st.sampled_from(NAMES),
        agent=st.sampled_from(AGENTS),
        pick=PICKS,
        more=st.integers(0, 1),
    )
    def somebody_wants_all_the_money_that_is_left_or_one_more_beside_an_unknown_outcome(
        self, process: int, name: str, agent: str, pick: int, more: int
    ) -> None:
        self.run(1 - process, Doubt(self.name_of(pick)))
        self.every_event_keeps_the_books_balanced()
        command = self.reservation(name, agent, 0)
        money = [each for each in self.book.matching(command.attribution) if each.hard and each.unit == "nano_usd"]
        left = min(self.tally.left(each.hold_at(command.at, command.attribution)) for each in money)
        self.run(process, replace(command, request_sha256=f"{agent} {left + more}", fixed=max(left + more, 0)))

    @rule(
        process=st.integers(0, 1),
        names=st.lists(st.sampled_from(STOCK), min_size=1, max_size=6, unique=True),
        agent=st.sampled_from(AGENTS),
        tokens=st.integers(0, 4),
    )
    def reserve_ahead(self, process: int, names: list[str], agent: str, tokens: int) -> None:
        for name in names:
            command = replace(self.reservation(name, agent, tokens), holder=name.partition(":")[0])
            self.loop.run_until_complete(self._leaves_no_trace_if_refused(process, command))

    async def _leaves_no_trace_if_refused(self, process: int, command: Command) -> None:
        head = await self.log.head()
        try:
            await self.processes[process].execute(command, ACME)
        except LedgerError:
            assert await self.log.head() == head

    @rule(process=st.integers(0, 1), holder=st.sampled_from(HOLDERS), kept=st.sets(st.sampled_from(STOCK)))
    def what_no_call_used_is_returned(self, process: int, holder: str, kept: set[str]) -> None:
        ids = [name for name in ANY if name not in kept]
        own = {name for name, known in self.book.open.items() if known.holder == holder and name in ids}
        self.run(process, *[ReturnStock(holder, tuple(ids))] * 2)
        self.check_freed(process, own)

    @rule(process=st.integers(0, 1), holder=st.sampled_from(HOLDERS))
    def a_holder_ends(self, process: int, holder: str) -> None:
        book = self.book.open
        held = {name for name, known in book.items() if known.holder == holder and known.state == "held"}
        self.run(process, *[CloseStock(holder)] * 2)
        self.check_freed(process, held)

    def check_freed(self, process: int, wanted: set[str]) -> None:
        """Those and no others are open no more."""
        still_open = self.loop.run_until_complete(self.processes[process].read("acme")).open
        assert set(self.book.open) - set(still_open) == wanted

    @rule(process=st.integers(0, 1), budget=st.sampled_from(BUDGETS), limit=st.integers(0, 9_000))
    def a_limit_is_raised_or_lowered_below_what_is_spent(
        self, process: int, budget: tuple[str, dict[str, object]], limit: int
    ) -> None:
        self.set_budget(process, budget[0], limit)

    @rule(process=st.integers(0, 1), budget_id=st.sampled_from(SUSPENDED))
    def a_budget_is_suspended_or_all_are_resumed(self, process: int, budget_id: str) -> None:
        stopped = [name for name in SUSPENDED if self.book.budget(name).suspended_for]
        if stopped:
            self.run(process, *(ResumeBudget(name) for name in stopped))
        else:
            self.run(process, SuspendBudget(budget_id, "a leaked key"))

    @rule(process=st.integers(0, 1), pick=PICKS, minutes=st.integers(1, 30))
    def renew(self, process: int, pick: int, minutes: int) -> None:
        now = self.clock.now()
        self.run(process, Renew(self.name_of(pick), now, now + timedelta(minutes=minutes)))

    @rule(process=st.integers(0, 1), pick=PICKS, tokens=st.integers(0, 60), times=st.integers(1, 2))
    def settle(self, process: int, pick: int, tokens: int, times: int) -> None:
        usage = (UsageLine(direction="input", quantity=tokens), UsageLine(direction="output", quantity=tokens))
        self.run(process, *[Settle(self.name_of(pick), usage, None, "provider_final", self.clock.now())] * times)

    @rule(process=st.integers(0, 1), pick=PICKS, tokens=st.integers(1, 60))
    def settle_on_terms_that_have_no_price(self, process: int, pick: int, tokens: int) -> None:
        usage = (UsageLine(direction="output", quantity=tokens),)
        name, now = self.name_of(pick), self.clock.now()
        self.run(process, Settle(name, usage, None, "provider_final", now, billed=NO_PRICE, price_context="tier=new"))

    @rule(process=st.integers(0, 1), pick=PICKS, tokens=st.integers(0, 60))
    def settle_by_event_even_before_its_reservation(self, process: int, pick: int, tokens: int) -> None:
        owner = Attribution(tenant_id="acme", agent="writer", model="openai/gpt-5.5")
        use = Unreserved(owner, "openai/gpt-5.5", PRICE, self.clock.now())
        usage = (UsageLine(direction="output", quantity=tokens),)
        self.run(process, Settle(self.name_of(pick), usage, None, "provider_final", self.clock.now(), 1, use))

    @rule(process=st.integers(0, 1), pick=PICKS)
    def release(self, process: int, pick: int) -> None:
        self.run(process, Release(self.name_of(pick), "never dispatched"))

    @rule(process=st.integers(0, 1), number=st.integers(0, 3), amount=st.integers(0, 50))
    def charge(self, process: int, number: int, amount: int) -> None:
        owner = Attribution(tenant_id="acme", agent="analyst", tool="sql")
        time = (Quantity(unit="tool_ms", quantity=amount),)
        self.run(process, Charge(f"call_{number}", owner, amount, START, number, time))

    @rule(process=st.integers(0, 1), pick=PICKS, amount=st.integers(0, 50))
    def a_tool_ends_that_was_reserved(self, process: int, pick: int, amount: int) -> None:
        time = (Quantity(unit="tool_ms", quantity=amount),)
        owner = Attribution(tenant_id="acme", tool="sql")
        self.run(process, Charge(self.name_of(pick), owner, amount, self.clock.now(), 1, time))

    @rule(process=st.integers(0, 1), minutes=st.sampled_from([1, 11, 150]))
    def time_passes_and_holds_expire(self, process: int, minutes: int) -> None:
        self.clock.advance(minutes * 60)
        self.run(process, *(Expire(name, self.clock.now()) for name in ANY))

    @rule(process=st.integers(0, 1), pick=PICKS)
    def an_outcome_stays_unknown(self, process: int, pick: int) -> None:
        self.run(process, Doubt(self.name_of(pick)))

    @rule(process=st.integers(0, 1), pick=PICKS, pico=st.integers(0, 200_000))
    def a_settled_cost_is_priced_anew_by_two_at_once(self, process: int, pick: int, pico: int) -> None:
        settled = [(name, known) for name, known in self.book.closed.items() if known.state == "settled"]
        if not settled:
            return
        name, known = settled[pick % len(settled)]
        revision, before = self.revisions[name] + 1, known.settled
        command = Rerate(
            name, revision, known.attribution, known.model, before, pico, PRICE, known.holds, known.reserved_at, "new"
        )
        for each in (process, 1 - process):
            self.run(each, command)

    @rule(
        process=st.integers(0, 1),
        billed=st.dictionaries(st.sampled_from(ANY), st.integers(0, 100), max_size=4),
        difference=st.integers(-50, 50),
    )
    def an_invoice_clears_suspense(self, process: int, billed: dict[str, int], difference: int) -> None:
        cleared = tuple(Cleared(name, amount) for name, amount in billed.items() if name in self.book.open)
        ledger = sum(each.amount for each in cleared)
        line = InvoiceLine("", START, self.clock.now() + timedelta(days=1), ledger + difference, ledger)
        # All are for the same time, so each can only correct the one that is in force.
        replaces = next((name for name, known in self.book.invoices.items() if not known.replaced_by), "")
        command = ImportInvoice(f"inv_{next(self.invoices)}", "openai", "sha", (line,), replaces)
        self.run(process, ClearSuspense(command, cleared), command)
        self.run(1 - process, ClearSuspense(command, cleared), command)

    @rule(process=st.integers(0, 1))
    def a_process_restarts(self, process: int) -> None:
        self.loop.run_until_complete(self._restart(process))

    async def _restart(self, process: int) -> None:
        await self.processes[process].close()
        self.processes[process] = Books(self.log, self.clock, snapshot_events=7)

    @invariant()
    def every_event_keeps_the_books_balanced(self) -> None:
        for event in self.new_events():
            assert sum(posting.amount_nano_usd for posting in getattr(event, "postings", ())) == 0
            for unit in get_args(Unit):
                quotas = [each for each in getattr(event, "quota_postings", ()) if each.unit == unit]
                assert sum(each.quantity for each in quotas) == 0
            self.check_admission(event)
            self.check_suspense(event)
            self.check_nothing_is_free(event)
            self.book = evolve(self.book, event)
        assert sum(self.book.balances.values()) == 0

    def new_events(self) -> list[Event]:
        found = self.loop.run_until_complete(self.log.read_stream(StreamId("book", "acme"), after=self.seen))
        self.seen += len(found)
        in_full = [CODEC.decode(stored) for stored in found]
        assert [decoded(stored) for stored in found] == in_full  # what is remembered of the events is what they say
        self.settled += [event.reservation_id for event in in_full if isinstance(event, CostSettled)]
        self.revisions.update(event.reservation_id for event in in_full if isinstance(event, ChargeRerated))
        return [event for event in in_full if isinstance(event, Event)]

    def check_admission(self, event: Event) -> None:
        """A hard budget goes below zero only by what was spent, never by what was admitted; a suspended one admits nothing."""
        moved = self.tally.add(event)
        if isinstance(event, CostReserved):
            expected = {budget_id for budget_id, rules in BUDGETS if counts(rules, event.attribution)}
            assert {hold.budget_id for hold in event.holds} == expected
            assert not expected & self.tally.suspended
            for hold in event.holds:
                taken = moved[hold.budget_id, hold.window_start, hold.share]
                spare = SPARE_TIMES * taken if event.holder else 0
                assert not is_hard(hold.budget_id) or self.tally.left(hold) >= spare
        elif isinstance(event, ReservationDenied):
            assert event.reservation_id not in STOCK
            self.check_denial(event)
        elif not isinstance(event, CostSettled | CostCharged | ChargeRerated):
            assert all(amount <= 0 for amount in moved.values())

    def check_denial(self, event: ReservationDenied) -> None:
        """Nothing is refused for which there is room, and the refusal says how much room there is."""
        left = self.tally.left(Hold(budget_id=event.budget_id, window_start=event.window_start, share=event.share))
        assert event.available_nano_usd + event.available_quantity == left
        if event.suspended_for:
            assert event.budget_id in self.tally.suspended
        else:
            assert is_hard(event.budget_id)
            assert event.required_nano_usd + event.required_quantity > left

    def check_suspense(self, event: Event) -> None:
        """What is in suspense is freed by a settlement or a release of its reservation, by nothing else."""
        freed = [name for name, amount in entries(event) if name.startswith("suspense:") and amount < 0]
        if freed:
            assert isinstance(event, CostSettled | ReservationReleased)
            assert self.book.open[event.reservation_id].state == "suspense"

    def check_nothing_is_free(self, event: Event) -> None:
        """Tokens of a model that has a price cost something, on whatever terms they are billed."""
        if isinstance(event, CostSettled) and any(line.quantity for line in event.usage):
            assert event.amount_nano_usd > 0

    @invariant()
    def nothing_held_is_negative_and_each_hold_has_its_reservation(self) -> None:
        book = self.book
        held: dict[str, int] = {}
        for reservation in book.open.values():
            kind = "suspense" if reservation.state == "suspense" else "pending"
            for hold in reservation.holds:
                name = account(kind, hold)
                held[name] = held.get(name, 0) + reservation.holding.of(book.budget(hold.budget_id).unit)
        found = {name: balance for name, balance in book.balances.items() if name.startswith(("pending:", "suspense:"))}
        assert all(balance > 0 for balance in found.values())
        assert found == {name: amount for name, amount in held.items() if amount}

    @invariant()
    def a_reservation_is_settled_once(self) -> None:
        assert len(self.settled) == len(set(self.settled))

    @invariant()
    def every_process_has_the_same_book_as_a_replay(self) -> None:
        books = [self.loop.run_until_complete(process.read("acme")) for process in self.processes]
        assert all(book == self.book for book in books)
        assert snapshots.load(snapshots.dump(self.book)) == self.book

    def teardown(self) -> None:
        for process in self.processes:
            self.loop.run_until_complete(process.close())
        self.loop.close()


def test_group_06_random_interleavings_keep_the_books_balanced_and_no_budget_exceeded() -> None:
    run_state_machine_as_test(Ledger, settings=settings(max_examples=75, stateful_step_count=30, deadline=None))
