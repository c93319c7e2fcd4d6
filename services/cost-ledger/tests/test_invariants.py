"""Whatever the order of commands, deliveries, crashes and processes: what must always hold of the money."""

import asyncio
from datetime import UTC, datetime, timedelta

from cost_ledger import snapshots
from cost_ledger.book import EMPTY
from cost_ledger.books import CODEC, Books
from cost_ledger.commands import Charge, Command, Expire, Price, Release, Reserve, SetBudget, Settle, Unreserved
from cost_ledger.errors import LedgerError
from cost_ledger.folding import evolve
from cost_ledger.rates import flat_card
from eventlog.memory import MemoryEventLog
from eventlog.records import Context, StreamId
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import BudgetSet, CostCharged, CostReserved, CostSettled, Hold

START = datetime(2026, 11, 30, 22, tzinfo=UTC)
ACME = Context("acme", "usr_1")
PRICE = Price(flat_card(1_500, 4_000, 150, 1_875), "book 1", "book")
NAMES = [f"r{number}" for number in range(12)]
AGENTS = ["writer", "analyst"]
BUDGETS = [
    ("all", Attribution(), "lifetime", True),
    ("daily", Attribution(), "day", True),
    ("writer", Attribution(agent="writer"), "month", True),
    ("advice", Attribution(agent="analyst"), "day", False),
]


class Ledger(RuleBasedStateMachine):
    """Two processes on one log, and a book folded from it event by event."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.log = MemoryEventLog()
        self.clock = FakeClock(START)
        self.processes: list[Books] = []
        self.seen = 0
        self.book = EMPTY

    @initialize(limits=st.lists(st.integers(0, 400), min_size=len(BUDGETS), max_size=len(BUDGETS)))
    def open(self, limits: list[int]) -> None:
        self.loop.run_until_complete(self._open())
        for (budget_id, scope, window, hard), limit in zip(BUDGETS, limits, strict=True):
            self.run(0, SetBudget(budget_id, scope, limit, hard, window, self.clock.now()))  # type: ignore[arg-type]

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
            attribution=Attribution(tenant_id="acme", agent=agent, model="openai/gpt-5.5"),
            model="openai/gpt-5.5",
            input_tokens_max=tokens,
            output_tokens_max=tokens,
            fixed=None,
            book_price=PRICE,
            at=self.clock.now(),
            expires_at=self.clock.now() + timedelta(minutes=10),
        )

    @rule(
        process=st.integers(0, 1),
        wanted=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(AGENTS), st.integers(0, 40)), max_size=6),
    )
    def reserve(self, process: int, wanted: list[tuple[str, str, int]]) -> None:
        self.run(process, *(self.reservation(*each) for each in wanted))

    @rule(process=st.integers(0, 1), name=st.sampled_from(NAMES), tokens=st.integers(0, 60), times=st.integers(1, 2))
    def settle(self, process: int, name: str, tokens: int, times: int) -> None:
        usage = (UsageLine(direction="input", quantity=tokens), UsageLine(direction="output", quantity=tokens))
        self.run(process, *[Settle(name, usage, None, "provider_final", self.clock.now())] * times)

    @rule(process=st.integers(0, 1), name=st.sampled_from(NAMES), tokens=st.integers(0, 60))
    def settle_by_event_even_before_its_reservation(self, process: int, name: str, tokens: int) -> None:
        owner = Attribution(tenant_id="acme", agent="writer", model="openai/gpt-5.5")
        use = Unreserved(owner, "openai/gpt-5.5", PRICE, self.clock.now())
        usage = (UsageLine(direction="output", quantity=tokens),)
        self.run(process, Settle(name, usage, None, "provider_final", self.clock.now(), 1, use))

    @rule(process=st.integers(0, 1), name=st.sampled_from(NAMES))
    def release(self, process: int, name: str) -> None:
        self.run(process, Release(name, "never dispatched"))

    @rule(process=st.integers(0, 1), number=st.integers(0, 3), amount=st.integers(0, 50))
    def charge(self, process: int, number: int, amount: int) -> None:
        owner = Attribution(tenant_id="acme", agent="analyst", tool="sql")
        self.run(process, Charge(f"call_{number}", owner, amount, START, number))

    @rule(process=st.integers(0, 1), minutes=st.sampled_from([1, 11, 150]))
    def time_passes_and_holds_expire(self, process: int, minutes: int) -> None:
        self.clock.advance(minutes * 60)
        self.run(process, *(Expire(name, self.clock.now()) for name in NAMES))

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
            self.check_admission(event)
            self.book = evolve(self.book, event)
        assert sum(self.book.balances.values()) == 0

    def new_events(self) -> list[Event]:
        found = self.loop.run_until_complete(self.log.read_stream(StreamId("book", "acme"), after=self.seen))
        self.seen += len(found)
        decoded = [CODEC.decode(stored) for stored in found]
        return [event for event in decoded if isinstance(event, Event)]

    def check_admission(self, event: Event) -> None:
        """A hard budget goes below zero only by what was spent, never by what was admitted."""
        after = evolve(self.book, event)
        if isinstance(event, CostReserved):
            hard = [hold for hold in event.holds if after.budget(hold.budget_id).hard]
            assert all(after.available(hold) >= 0 for hold in hard)
        elif not isinstance(event, CostSettled | CostCharged | BudgetSet):
            holds = [Hold(budget_id=name, window_start=START.strftime("%Y-%m-%d")) for name, *_ in BUDGETS]
            assert all(after.available(hold) >= self.book.available(hold) for hold in holds)

    @invariant()
    def nothing_held_is_negative_and_each_hold_has_its_reservation(self) -> None:
        book = self.book
        held: dict[str, int] = {}
        for reservation in book.open.values():
            kind = "suspense" if reservation.state == "suspense" else "pending"
            for hold in reservation.holds:
                account = f"{kind}:{hold.budget_id}:{hold.window_start}"
                held[account] = held.get(account, 0) + reservation.reserved
        found = {
            account: balance
            for account, balance in book.balances.items()
            if account.startswith(("pending:", "suspense:"))
        }
        assert all(balance > 0 for balance in found.values())
        assert found == {account: amount for account, amount in held.items() if amount}

    @invariant()
    def every_process_has_the_same_book_as_a_replay(self) -> None:
        books = [self.loop.run_until_complete(process.read("acme")) for process in self.processes]
        assert all(book == self.book for book in books)
        assert snapshots.load(snapshots.dump(self.book)) == self.book

    def teardown(self) -> None:
        for process in self.processes:
            self.loop.run_until_complete(process.close())
        self.loop.close()


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
