"""The book of a tenant: budgets, own prices, reservations, and the balance of every account. Immutable values.

The balances are nothing but the sum of all postings, so admission and audit count by the same figures. Amounts are
nano-USD.

Accounts, each per budget and window: `spent` is posted, `pending` is held, `suspense` is held without a known outcome,
`budget` is the other side of all three. What was spent also stands in `expense` (by model or tool) against `payable`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from rpds import HashTrieMap, HashTrieSet
from synod.common.values import Attribution
from synod.cost_ledger.events import Hold, PriceSource, Window

from cost_ledger.errors import BudgetNotFound
from cost_ledger.rates import RateCard
from cost_ledger.recent import Recent
from cost_ledger.windows import window_start

CLOSED_MAX: Final = 10_000
"""Settled and released reservations that a book remembers. The view has the older ones; the log refuses their ids."""
CHARGES_MAX: Final = 10_000
"""Charges that a book remembers by id; the log refuses the ids of older ones."""

SCOPE_FIELDS: Final = (
    "run_id",
    "root_run_id",
    "conversation_id",
    "user_id",
    "agent",
    "tool",
    "model",
    "project_id",
)
"""What a budget may be limited to, the most selective first: budgets are found by the first field that they set."""

WHOLE_TENANT: Final = ("", "")

State = Literal["held", "settled", "released", "suspense"]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on every cost whose attribution matches all set fields of `scope`."""

    budget_id: str
    scope: Attribution
    limit: int
    hard: bool
    window: Window

    def matches(self, attribution: Attribution) -> bool:
        return all(
            getattr(attribution, name) == wanted for name in SCOPE_FIELDS if (wanted := getattr(self.scope, name))
        )

    def hold_at(self, at: datetime) -> Hold:
        return Hold(budget_id=self.budget_id, window_start=window_start(self.window, at))


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold from its admission to its outcome, with the rates that were pinned when it was admitted."""

    reservation_id: str
    request_sha256: str
    attribution: Attribution
    model: str
    reserved: int
    price_version: str
    price_source: PriceSource
    rates: RateCard
    holds: tuple[Hold, ...]
    reserved_at: datetime
    expires_at: datetime
    state: State = "held"
    settled: int = 0
    overrun: int = 0

    @property
    def is_open(self) -> bool:
        return self.state in ("held", "suspense")

    @property
    def holding(self) -> int:
        """What it takes from the budgets now, before anything is posted."""
        return self.reserved if self.is_open else 0


@dataclass(frozen=True, slots=True)
class Book:
    """All that admission needs to know of a tenant. The collections are persistent: a change shares the rest."""

    budgets: HashTrieMap[str, Budget] = field(default_factory=HashTrieMap)
    by_scope: HashTrieMap[tuple[str, str], tuple[str, ...]] = field(default_factory=HashTrieMap)
    prices: HashTrieMap[str, RateCard] = field(default_factory=HashTrieMap)
    open: HashTrieMap[str, Reservation] = field(default_factory=HashTrieMap)
    closed: Recent[Reservation] = field(default_factory=lambda: Recent(CLOSED_MAX))
    charges: Recent[int] = field(default_factory=lambda: Recent(CHARGES_MAX))
    balances: HashTrieMap[str, int] = field(default_factory=HashTrieMap)
    reached: HashTrieSet[tuple[str, str, int]] = field(default_factory=HashTrieSet)

    def reservation(self, reservation_id: str) -> Reservation | None:
        return self.open.get(reservation_id) or self.closed.get(reservation_id)

    def budget(self, budget_id: str) -> Budget:
        """Raises BudgetNotFound."""
        if (budget := self.budgets.get(budget_id)) is None:
            raise BudgetNotFound(budget_id)
        return budget

    def posted(self, hold: Hold) -> int:
        return self.balances.get(account("spent", hold), 0)

    def pending(self, hold: Hold) -> int:
        """Held for reservations, those in suspense included."""
        return self.balances.get(account("pending", hold), 0) + self.balances.get(account("suspense", hold), 0)

    def available(self, hold: Hold) -> int:
        """What a new reservation may take; negative after an overrun or a lowered limit."""
        return self.budget(hold.budget_id).limit - self.posted(hold) - self.pending(hold)

    def matching(self, attribution: Attribution) -> tuple[Budget, ...]:
        """The budgets that a cost counts against, by id."""
        keys = [WHOLE_TENANT, *((name, value) for name in SCOPE_FIELDS if (value := getattr(attribution, name)))]
        ids = sorted(budget_id for key in keys for budget_id in self.by_scope.get(key, ()))
        return tuple(budget for budget_id in ids if (budget := self.budgets[budget_id]).matches(attribution))


EMPTY: Final = Book()


def account(kind: str, hold: Hold) -> str:
    return f"{kind}:{hold.budget_id}:{hold.window_start}"
