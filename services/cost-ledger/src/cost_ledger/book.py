"""The book of a tenant: budgets, own prices, reservations, and the balance of every account. Immutable values.

The balances are nothing but the sum of all postings, so admission and audit count by the same figures. Amounts of money
are nano-USD.

Accounts, each per budget, window and share: `spent` is posted, `pending` is held, `suspense` is held without a known
outcome, `budget` is the other side of all three. What was spent also stands in `expense` (by model or tool) against
`payable`. A budget counts in one unit: money, or a quota's; so does every account of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeVar

from rpds import HashTrieMap, HashTrieSet
from synod.common.values import Attribution
from synod.cost_ledger.events import Hold, InvoicedLine, PriceSource, Quantity, Unit, Window

from cost_ledger.commands import OVERRIDE, Price
from cost_ledger.errors import BudgetNotFound
from cost_ledger.naming import compared_scopes_of
from cost_ledger.rates import PPM, RateCard, scaled
from cost_ledger.recent import Recent
from cost_ledger.windows import counted, window_start

CLOSED_MAX: Final = 4_000
"""Settled and released reservations that a book remembers, of 2 KB each. The view has the older ones; the log refuses
their ids. At 350 calls a second that lets the view be eleven seconds behind."""
CHARGES_MAX: Final = 4_000
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

SET_LATER: Final = " set later"
"""What the version of a price ends with that a cost got from what the tenant set after it."""
_AT_FACTOR: Final = re.compile(r" at (\d+) ppm$")
_OWNERS: Final = tuple(name for name in SCOPE_FIELDS if name != "model")

UNSURE: Final[frozenset[PriceSource]] = frozenset({"unpriced", "book_fuzzy"})
"""Where a cost's price is from that is none, or a guess."""

WHOLE_TENANT: Final = ("", "")
T = TypeVar("T")
State = Literal["held", "settled", "released", "suspense"]


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a cost comes to: money, and the units that quotas limit."""

    nano: int
    quantities: tuple[Quantity, ...] = ()

    def of(self, unit: Unit) -> int:
        if unit == "nano_usd":
            return self.nano
        return sum([each.quantity for each in self.quantities if each.unit == unit])


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit, in `unit`, on every cost whose attribution matches all set fields of `scope`.

    With `per` each value of that attribution has the whole limit for itself.
    """

    budget_id: str
    scope: Attribution
    limit: int
    hard: bool
    window: Window
    time_zone: str = "UTC"
    rolling_s: int = 0
    per: str = ""
    unit: Unit = "nano_usd"
    suspended_for: str = ""
    """Why it refuses whatever is asked; empty while it is not suspended."""

    def matches(self, attribution: Attribution) -> bool:
        if self.per and not getattr(attribution, self.per):
            return False
        return all(
            wanted.lower() in compared_scopes_of(attribution.model)
            if name == "model"
            else getattr(attribution, name) == wanted
            for name in SCOPE_FIELDS
            if (wanted := getattr(self.scope, name))
        )

    def hold_at(self, at: datetime, attribution: Attribution) -> Hold:
        """The window and share that a cost of `attribution` at that time counts against."""
        return self.share_at(at, self.share_of(getattr(attribution, self.per)) if self.per else "")

    def share_of(self, value: str) -> str:
        """Whose limit a cost with this value counts against: models are compared without their case."""
        return value.lower() if self.per == "model" else value

    def share_at(self, at: datetime, share: str) -> Hold:
        return _hold(self.budget_id, window_start(self.window, at, self.time_zone, self.rolling_s), share)

    def accounts(self, kind: str, hold: Hold) -> tuple[str, ...]:
        """The accounts of a kind that count together with the hold's: one, or for a rolling window those of its slices."""
        if self.window != "rolling":
            return (account(kind, hold),)
        return _rolling_accounts(kind, self.rolling_s, self.budget_id, hold.window_start, hold.share)


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
    # What is held, or was used once it is settled, of what quotas limit.
    quantities: tuple[Quantity, ...] = ()
    price_context: str = ""
    # Who reserved it ahead of the call that uses it; empty when that call did.
    holder: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in ("held", "suspense")

    @property
    def holding(self) -> Amounts:
        """What it takes from the budgets now, before anything is posted."""
        return Amounts(self.reserved, self.quantities) if self.is_open else Amounts(0)

    @property
    def held_in(self) -> str:
        """The kind of account that it is held in."""
        return "suspense" if self.state == "suspense" else "pending"


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """A tenant's price of `model`, which is spelled as it was set."""

    model: str
    rates: RateCard
    since: datetime | None = None
    """None where it was not recorded: it is then taken to be as old as any cost."""


@dataclass(frozen=True, slots=True)
class OwnFactor:
    """What a tenant pays of the price book's rates, in millionths."""

    ppm: int
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """The newest forecast of a window: which one it was, and whether the budget runs out in it."""

    revision: int = 0
    runs_out: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """An invoice of a provider. It is in force until another replaces it."""

    content_sha256: str
    provider: str
    lines: tuple[InvoicedLine, ...]
    replaced_by: str = ""


class Balance(NamedTuple):
    """What a budget's window, or a share of it, has come to, in the budget's unit."""

    budget: Budget
    hold: Hold
    posted: int
    pending: int
    """Held for reservations, those in suspense included."""

    @property
    def available(self) -> int:
        """What a new reservation may take; negative after an overrun or a lowered limit."""
        return self.budget.limit - self.posted - self.pending


_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class Book(NamedTuple):
    """All that admission needs to know of a tenant. The collections are persistent: a change shares the rest.

    A named tuple because every command of a batch makes a new one.
    """

    budgets: HashTrieMap[str, Budget] = HashTrieMap()
    by_scope: HashTrieMap[tuple[str, str], tuple[str, ...]] = HashTrieMap()
    prices: HashTrieMap[str, OwnPrice] = HashTrieMap()
    """By "provider/model" in lower case."""
    factors: HashTrieMap[str, OwnFactor] = HashTrieMap()
    """By "provider/model" or "provider/*" in lower case."""
    open: HashTrieMap[str, Reservation] = HashTrieMap()
    closed: Recent[Reservation] = Recent(CLOSED_MAX)
    charges: Recent[int] = Recent(CHARGES_MAX)
    balances: HashTrieMap[str, int] = HashTrieMap()
    reached: HashTrieSet[tuple[str, str, str, int, str]] = HashTrieSet()
    """Alerts told: budget, window, share, per cent, and whether of what is posted or committed."""
    forecasts: HashTrieMap[tuple[str, str], Told] = HashTrieMap()
    """What was told last of a budget's window."""
    invoices: HashTrieMap[str, Imported] = HashTrieMap()
    guessed: HashTrieSet[tuple[str, str]] = HashTrieSet()
    """Alerts told of prices that are guesses: model and price version."""

    def reservation(self, reservation_id: str) -> Reservation | None:
        return self.open.get(reservation_id) or self.closed.get(reservation_id)

    def budget(self, budget_id: str) -> Budget:
        """Raises BudgetNotFound."""
        if (budget := self.budgets.get(budget_id)) is None:
            raise BudgetNotFound(budget_id)
        return budget

    def price_of(self, model: str, book_price: Price) -> Price:
        """What the tenant pays for "provider/model": its own price, else its share of the price book's.

        Both are found as budgets are: in whatever case, and that of a model is that of its dated snapshots too. But a
        snapshot that the price book lists at other rates has no own price other than one of its very name.
        """
        if (own := self._own_price(model, book_price)) is not None:
            return Price(own.rates, OVERRIDE, OVERRIDE)
        return self.discounted(model, book_price)

    def price_then(
        self, model: str, book_price: Price, at: datetime, source: PriceSource, version: str
    ) -> Price | None:
        """The price that now holds for a cost of that time; None if the cost stays as it is.

        Until now its price was that of `source` and `version`.
        What the tenant has set later is not for it, unless its price was none, or a guess, or was itself set later: so what
        was set wrong can be set right. One that was the price book's is the book's again, with the factor that its version
        names.
        """
        if source in UNSURE or version.endswith(SET_LATER):
            return self._priced_late(model, book_price, at)
        own = self._own_price(model, book_price)
        if own is not None and not _is_newer(own, at):
            return Price(own.rates, OVERRIDE, OVERRIDE)
        factor = self._own_factor(model)
        if own is None and not (factor is not None and _is_newer(factor, at)):
            return self.discounted(model, book_price)
        return _at_factor(book_price, _factor_in(version)) if source == "book" else None

    def _priced_late(self, model: str, book_price: Price, at: datetime) -> Price:
        price = self.price_of(model, book_price)
        own = self._own_price(model, book_price) or self._own_factor(model)
        if own is None or not _is_newer(own, at) or price.source in UNSURE:
            return price
        return replace(price, version=f"{price.version}{SET_LATER}")

    def pinned(self, known: Reservation, book_price: Price) -> Price:
        """Another price of the book for what was reserved, at the factor that was pinned then.

        What had no price has no factor pinned either: for it the one that there is now counts.
        """
        if known.price_source == "unpriced":
            return self.discounted(known.model, book_price)
        return _at_factor(book_price, _factor_in(known.price_version))

    def discounted(self, model: str, book_price: Price) -> Price:
        """The price book's price with the tenant's discount or markup, which its version then names."""
        factor = self._own_factor(model)
        return book_price if factor is None else _at_factor(book_price, factor.ppm)

    def _own_price(self, model: str, book_price: Price) -> OwnPrice | None:
        scopes = compared_scopes_of(model)
        return _most_specific(self.prices, scopes[:1] if book_price.is_apart else scopes[:-1])

    def _own_factor(self, model: str) -> OwnFactor | None:
        return _most_specific(self.factors, compared_scopes_of(model))

    def posted(self, hold: Hold) -> int:
        return self.balance(self.budget(hold.budget_id), hold).posted

    def pending(self, hold: Hold) -> int:
        return self.balance(self.budget(hold.budget_id), hold).pending

    def suspense(self, hold: Hold) -> int:
        return self._sum(self.budget(hold.budget_id), "suspense", hold, _NOTHING)

    def available(self, hold: Hold) -> int:
        return self.balance(self.budget(hold.budget_id), hold).available

    def balance(self, budget: Budget, hold: Hold, moved: Mapping[str, int] = _NOTHING) -> Balance:
        """The balance of a hold's window, with what is `moved` between accounts on top of what is in the book."""
        posted, pending, suspense = (self._sum(budget, kind, hold, moved) for kind in ("spent", "pending", "suspense"))
        return Balance(budget, hold, posted, pending + suspense)

    def _sum(self, budget: Budget, kind: str, hold: Hold, moved: Mapping[str, int]) -> int:
        total, balances = 0, self.balances
        for name in budget.accounts(kind, hold):
            total += balances.get(name, 0) + moved.get(name, 0)
        return total

    def matching(self, attribution: Attribution) -> tuple[Budget, ...]:
        """The budgets that a cost counts against, by id."""
        keys = [WHOLE_TENANT, *((name, value) for name in _OWNERS if (value := getattr(attribution, name)))]
        keys += [("model", scope) for scope in compared_scopes_of(attribution.model)]
        ids = sorted(budget_id for key in keys for budget_id in self.by_scope.get(key, ()))
        return tuple(budget for budget_id in ids if (budget := self.budgets[budget_id]).matches(attribution))


EMPTY: Final = Book()


def _most_specific(found: HashTrieMap[str, T], scopes: tuple[str, ...]) -> T | None:
    return next((found[scope] for scope in scopes if scope in found), None)


def _is_newer(own: OwnPrice | OwnFactor, at: datetime) -> bool:
    return own.since is not None and own.since > at


def _at_factor(book_price: Price, ppm: int) -> Price:
    if ppm == PPM or book_price.source == "unpriced":
        return book_price
    return Price(scaled(book_price.rates, ppm), f"{book_price.version} at {ppm} ppm", book_price.source)


def _factor_in(version: str) -> int:
    """That which the version of a price names, as `_at_factor` writes it."""
    named = _AT_FACTOR.search(version)
    return int(named[1]) if named else PPM


@lru_cache(maxsize=4_096)
def _hold(budget_id: str, window: str, share: str) -> Hold:
    # Every admission makes one for each budget, and it is the same for as long as the window lasts.
    return Hold(budget_id=budget_id, window_start=window, share=share)


def account(kind: str, hold: Hold) -> str:
    return account_name(kind, hold.budget_id, hold.window_start, hold.share)


def account_name(kind: str, budget_id: str, window: str, share: str) -> str:
    # No budget's id has a bar, so a share cannot be taken for a part of something else.
    return f"{kind}:{budget_id}:{window}|{share}" if share else f"{kind}:{budget_id}:{window}"


@lru_cache(maxsize=4_096)
def _rolling_accounts(kind: str, rolling_s: int, budget_id: str, window: str, share: str) -> tuple[str, ...]:
    # Every admission asks for them, and they are the same for as long as a slice lasts.
    return tuple(account_name(kind, budget_id, name, share) for name in counted("rolling", window, rolling_s))
