"""The book of a tenant: what may be reserved, what is owed, and the balance of every account.

`decide` answers a command with events, `evolve` folds an event. Both are pure. The balances are nothing but the sum of
all postings, so admission and audit count by the same figures. Amounts are nano-USD.

Accounts, each per budget and window: `spent` is posted, `pending` is held, `suspense` is held without a known outcome,
`budget` is the other side of all three. What was spent also stands in `expense` (by model or tool) against `payable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from rpds import HashTrieMap, HashTrieSet
from synod.common.event import Event
from synod.common.money import PICO_PER_NANO, nano_from_pico
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetSet,
    BudgetThresholdReached,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    Posting,
    PriceSet,
    PriceSource,
    ReservationDenied,
    ReservationExpired,
    ReservationReleased,
    Window,
)

from cost_ledger.errors import (
    BudgetFixed,
    BudgetNotFound,
    ModelUnpriced,
    ReservationConflict,
    ReservationNotFound,
    ReservationSettled,
    SettlementNotPriced,
)
from cost_ledger.rates import UNPRICED, RateCard, bound_pico, cost_pico, flat_card
from cost_ledger.recent import Recent

THRESHOLDS_PERCENT: Final = (50, 80, 95, 100)
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

OVERRIDE: Final = "override"
"""Source and version of a price that the tenant set: it is in the log, not in a price book."""

State = Literal["held", "settled", "released", "suspense"]


# --- state ---


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
        return self.balances.get(_account("spent", hold), 0)

    def pending(self, hold: Hold) -> int:
        """Held for reservations, those in suspense included."""
        return self.balances.get(_account("pending", hold), 0) + self.balances.get(_account("suspense", hold), 0)

    def available(self, hold: Hold) -> int:
        """What a new reservation may take; negative after an overrun or a lowered limit."""
        return self.budget(hold.budget_id).limit - self.posted(hold) - self.pending(hold)

    def matching(self, attribution: Attribution) -> tuple[Budget, ...]:
        """The budgets that a cost counts against, by id."""
        keys = [WHOLE_TENANT, *((name, value) for name in SCOPE_FIELDS if (value := getattr(attribution, name)))]
        ids = sorted(budget_id for key in keys for budget_id in self.by_scope.get(key, ()))
        return tuple(budget for budget_id in ids if (budget := self.budgets[budget_id]).matches(attribution))


EMPTY: Final = Book()


# --- commands ---


@dataclass(frozen=True, slots=True)
class Price:
    """What the price book says of a model at a moment; `source` is unpriced when it knows none, with names `near`."""

    rates: RateCard
    version: str
    source: PriceSource
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetBudget:
    budget_id: str
    scope: Attribution
    limit: int
    hard: bool
    window: Window
    at: datetime


@dataclass(frozen=True, slots=True)
class SetPrice:
    """Pico-USD per token."""

    provider: str
    model: str
    input_pico: int
    output_pico: int
    cache_read_pico: int
    cache_write_pico: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """At most so many tokens of `model`, priced by `book_price` unless the tenant has its own; or at most `fixed`.

    Without a model only a fixed amount can be held, and only an amount can settle it.
    """

    reservation_id: str
    request_sha256: str
    attribution: Attribution
    model: str
    input_tokens_max: int
    output_tokens_max: int
    fixed: int | None
    book_price: Price
    at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Unreserved:
    """What is needed to record a use that this book never admitted."""

    attribution: Attribution
    model: str
    book_price: Price
    used_at: datetime


@dataclass(frozen=True, slots=True)
class Settle:
    """What was used: `usage`, or `amount` if it is not None. With `unreserved` it is recorded even without a hold."""

    reservation_id: str
    usage: tuple[UsageLine, ...]
    amount: int | None
    usage_source: str
    at: datetime
    source_position: int = 0
    unreserved: Unreserved | None = None


@dataclass(frozen=True, slots=True)
class Release:
    reservation_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Move a hold whose time is over to suspense."""

    reservation_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Charge:
    """A cost without a reservation. `charge_id` is its idempotency key."""

    charge_id: str
    attribution: Attribution
    amount: int
    incurred_at: datetime
    source_position: int


@dataclass(frozen=True, slots=True)
class Look:
    """Changes nothing; whoever sends it wants the newest state."""


Command = SetBudget | SetPrice | Reserve | Settle | Release | Expire | Charge | Look


# --- decide ---


def decide(book: Book, command: Command) -> tuple[Event, ...]:
    """The events of a command, none if it is a repetition. A refused reservation is the event ReservationDenied.

    Raises the errors of errors.py when a command is refused without a trace.
    """
    match command:
        case Reserve():
            return _reserve(book, command)
        case Settle():
            return _with_thresholds(book, _settle(book, command))
        case Release():
            return _release(book, command)
        case Expire():
            return _expire(book, command)
        case Charge():
            return _with_thresholds(book, _charge(book, command))
        case SetBudget():
            return _with_thresholds(book, _set_budget(book, command), command)
        case SetPrice():
            return _set_price(book, command)
        case Look():
            return ()


def _reserve(book: Book, command: Reserve) -> tuple[Event, ...]:
    if known := book.reservation(command.reservation_id):
        return _repeated(known, command)
    price = _price_in_force(book, command.model, command.book_price)
    budgets = book.matching(command.attribution)
    _refuse_unpriced(price, command.model, budgets)
    amount = _bound(command, price)
    if denied := _denied(book, command, budgets, amount):
        return (denied,)
    holds = tuple(budget.hold_at(command.at) for budget in budgets)
    return (_reserved(command, price, holds, amount),)


def _repeated(known: Reservation, command: Reserve) -> tuple[Event, ...]:
    # A settlement that came before its reservation left no content to compare with.
    if known.request_sha256 and known.request_sha256 != command.request_sha256:
        raise ReservationConflict(command.reservation_id)
    return ()


def _price_in_force(book: Book, model: str, book_price: Price) -> Price:
    if not model:
        return Price(UNPRICED, "", "fixed")
    if (override := book.prices.get(model)) is not None:
        return Price(override, OVERRIDE, OVERRIDE)
    return book_price


def _refuse_unpriced(price: Price, model: str, budgets: Iterable[Budget]) -> None:
    if price.source == "unpriced" and (hard := next((budget for budget in budgets if budget.hard), None)):
        raise ModelUnpriced(model, hard.budget_id, price.near)


def _bound(command: Reserve, price: Price) -> int:
    if command.fixed is not None:
        return command.fixed
    return nano_from_pico(bound_pico(price.rates, command.input_tokens_max, command.output_tokens_max))


def _denied(book: Book, command: Reserve, budgets: Iterable[Budget], amount: int) -> ReservationDenied | None:
    """The refusal by the hard budget with the least available, if one does not cover the amount. All or none."""
    left = {budget.budget_id: book.available(budget.hold_at(command.at)) for budget in budgets if budget.hard}
    tightest = min(left, key=lambda budget_id: left[budget_id], default="")
    if not left or left[tightest] >= amount:
        return None
    return ReservationDenied(
        reservation_id=command.reservation_id,
        attribution=command.attribution,
        model=command.model,
        budget_id=tightest,
        required_nano_usd=amount,
        available_nano_usd=left[tightest],
    )


def _reserved(command: Reserve, price: Price, holds: tuple[Hold, ...], amount: int) -> CostReserved:
    return CostReserved(
        reservation_id=command.reservation_id,
        request_sha256=command.request_sha256,
        attribution=command.attribution,
        model=command.model,
        amount_nano_usd=amount,
        price_version=price.version,
        price_source=price.source,
        rates=price.rates,
        holds=holds,
        reserved_at=command.at,
        expires_at=command.expires_at,
        postings=_moved(holds, "budget", "pending", amount),
    )


def _settle(book: Book, command: Settle) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id) or _never_admitted(book, command)
    if known.state == "settled":
        return ()
    amount_pico = _used_pico(known, command)
    amount = nano_from_pico(amount_pico)
    freed_from = "suspense" if known.state == "suspense" else "pending"
    return (
        CostSettled(
            reservation_id=known.reservation_id,
            attribution=known.attribution,
            model=known.model,
            amount_nano_usd=amount,
            amount_pico_usd=amount_pico,
            reserved_nano_usd=known.reserved,
            overrun_nano_usd=max(amount - known.holding, 0),
            price_version=known.price_version,
            price_source=known.price_source,
            holds=known.holds,
            incurred_at=known.reserved_at,
            usage=command.usage,
            usage_source=command.usage_source,
            late=known.state != "held",
            source_position=command.source_position,
            postings=(
                *_moved(known.holds, freed_from, "budget", known.holding),
                *_moved(known.holds, "budget", "spent", amount),
                *_owed(known.attribution, known.model, amount),
            ),
        ),
    )


def _never_admitted(book: Book, command: Settle) -> Reservation:
    """A reservation of nothing for a use that came unannounced: a meter records what it may not refuse."""
    if (use := command.unreserved) is None:
        raise ReservationNotFound(command.reservation_id)
    price = _price_in_force(book, use.model, use.book_price)
    return Reservation(
        reservation_id=command.reservation_id,
        request_sha256="",
        attribution=use.attribution,
        model=use.model,
        reserved=0,
        price_version=price.version,
        price_source=price.source,
        rates=price.rates,
        holds=tuple(budget.hold_at(use.used_at) for budget in book.matching(use.attribution)),
        reserved_at=use.used_at,
        expires_at=use.used_at,
    )


def _used_pico(known: Reservation, command: Settle) -> int:
    if command.amount is not None:
        return command.amount * PICO_PER_NANO
    if known.price_source == "fixed" and command.usage:
        raise SettlementNotPriced(known.reservation_id)
    return cost_pico(known.rates, command.usage)


def _release(book: Book, command: Release) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id)
    if known is None:
        raise ReservationNotFound(command.reservation_id)
    if known.state == "settled":
        raise ReservationSettled(known.reservation_id, known.settled)
    if known.state == "released":
        return ()
    held_in = "suspense" if known.state == "suspense" else "pending"
    postings = _moved(known.holds, held_in, "budget", known.reserved)
    return (ReservationReleased(reservation_id=known.reservation_id, reason=command.reason, postings=postings),)


def _expire(book: Book, command: Expire) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id)
    if known is None or known.state != "held" or known.expires_at > command.at:
        return ()
    postings = _moved(known.holds, "pending", "suspense", known.reserved)
    return (ReservationExpired(reservation_id=known.reservation_id, amount_nano_usd=known.reserved, postings=postings),)


def _charge(book: Book, command: Charge) -> tuple[Event, ...]:
    if command.charge_id in book.charges:
        return ()
    holds = tuple(budget.hold_at(command.incurred_at) for budget in book.matching(command.attribution))
    return (
        CostCharged(
            charge_id=command.charge_id,
            attribution=command.attribution,
            amount_nano_usd=command.amount,
            holds=holds,
            incurred_at=command.incurred_at,
            source_position=command.source_position,
            postings=(
                *_moved(holds, "budget", "spent", command.amount),
                *_owed(command.attribution, command.attribution.model, command.amount),
            ),
        ),
    )


def _set_budget(book: Book, command: SetBudget) -> tuple[Event, ...]:
    known = book.budgets.get(command.budget_id)
    wanted = Budget(command.budget_id, command.scope, command.limit, command.hard, command.window)
    if known == wanted:
        return ()
    for name in ("scope", "window"):
        if known is not None and getattr(known, name) != getattr(wanted, name):
            raise BudgetFixed(command.budget_id, name)
    return (
        BudgetSet(
            budget_id=wanted.budget_id,
            scope=wanted.scope,
            limit_nano_usd=wanted.limit,
            hard=wanted.hard,
            window=wanted.window,
        ),
    )


def _set_price(book: Book, command: SetPrice) -> tuple[Event, ...]:
    event = PriceSet(
        provider=command.provider,
        model=command.model,
        input_pico_usd=command.input_pico,
        output_pico_usd=command.output_pico,
        cache_read_pico_usd=command.cache_read_pico,
        cache_write_pico_usd=command.cache_write_pico,
    )
    return () if book.prices.get(f"{event.provider}/{event.model}") == _card(event) else (event,)


def _with_thresholds(book: Book, events: tuple[Event, ...], command: SetBudget | None = None) -> tuple[Event, ...]:
    """The events, and after them each threshold that a budget reaches by them for the first time in its window."""
    after = fold(book, events)
    holds = [hold for event in events if isinstance(event, CostSettled | CostCharged) for hold in event.holds]
    if command is not None and events:
        holds.append(after.budget(command.budget_id).hold_at(command.at))
    return (*events, *(reached for hold in holds for reached in _thresholds(after, hold)))


def _thresholds(book: Book, hold: Hold) -> Iterable[BudgetThresholdReached]:
    limit, posted = book.budget(hold.budget_id).limit, book.posted(hold)
    for percent in THRESHOLDS_PERCENT:
        new = (hold.budget_id, hold.window_start, percent) not in book.reached
        if new and posted > 0 and posted * 100 >= limit * percent:
            yield BudgetThresholdReached(
                budget_id=hold.budget_id,
                window_start=hold.window_start,
                threshold_percent=percent,
                posted_nano_usd=posted,
                pending_nano_usd=book.pending(hold),
                limit_nano_usd=limit,
            )


def _moved(holds: Iterable[Hold], source: str, target: str, amount: int) -> tuple[Posting, ...]:
    """Postings that take `amount` from one account of each hold to another."""
    if amount == 0:
        return ()
    return tuple(
        Posting(account=_account(kind, hold), amount_nano_usd=signed)
        for hold in holds
        for kind, signed in ((target, amount), (source, -amount))
    )


def _owed(attribution: Attribution, model: str, amount: int) -> tuple[Posting, ...]:
    if amount == 0:
        return ()
    what = model or f"tool/{attribution.tool or 'other'}"
    return (
        Posting(account=f"expense:{what}", amount_nano_usd=amount),
        Posting(account=f"payable:{what.partition('/')[0]}", amount_nano_usd=-amount),
    )


def _account(kind: str, hold: Hold) -> str:
    return f"{kind}:{hold.budget_id}:{hold.window_start}"


def window_start(window: Window, at: datetime) -> str:
    """The name of the window that `at` (UTC) falls into."""
    match window:
        case "lifetime":
            return "lifetime"
        case "day":
            return at.strftime("%Y-%m-%d")
        case "month":
            return at.strftime("%Y-%m")


# --- evolve ---


def fold(book: Book, events: Iterable[Event]) -> Book:
    for event in events:
        book = evolve(book, event)
    return book


def evolve(book: Book, event: Event) -> Book:
    match event:
        case CostReserved():
            held = _from_event(event)
            return _posted(replace(book, open=book.open.insert(held.reservation_id, held)), event.postings)
        case CostSettled():
            return _posted(_closed(book, _settled(book, event)), event.postings)
        case ReservationReleased():
            released = replace(_known(book, event.reservation_id), state="released")
            return _posted(_closed(book, released), event.postings)
        case ReservationExpired():
            doubtful = replace(_known(book, event.reservation_id), state="suspense")
            return _posted(replace(book, open=book.open.insert(event.reservation_id, doubtful)), event.postings)
        case CostCharged():
            charges = book.charges.add(event.charge_id, event.amount_nano_usd)
            return _posted(replace(book, charges=charges), event.postings)
        case BudgetSet():
            return _with_budget(book, event)
        case PriceSet():
            return replace(book, prices=book.prices.insert(f"{event.provider}/{event.model}", _card(event)))
        case BudgetThresholdReached():
            key = (event.budget_id, event.window_start, event.threshold_percent)
            return replace(book, reached=book.reached.insert(key))
        case _:
            return book


def _from_event(event: CostReserved) -> Reservation:
    return Reservation(
        reservation_id=event.reservation_id,
        request_sha256=event.request_sha256,
        attribution=event.attribution,
        model=event.model,
        reserved=event.amount_nano_usd,
        price_version=event.price_version,
        price_source=event.price_source,
        rates=event.rates,
        holds=event.holds,
        reserved_at=event.reserved_at,
        expires_at=event.expires_at,
    )


def _settled(book: Book, event: CostSettled) -> Reservation:
    known = book.reservation(event.reservation_id)
    request_sha256, expires_at = (known.request_sha256, known.expires_at) if known else ("", event.incurred_at)
    return Reservation(
        reservation_id=event.reservation_id,
        request_sha256=request_sha256,
        attribution=event.attribution,
        model=event.model,
        reserved=event.reserved_nano_usd,
        price_version=event.price_version,
        price_source=event.price_source,
        rates=UNPRICED,
        holds=event.holds,
        reserved_at=event.incurred_at,
        expires_at=expires_at,
        state="settled",
        settled=event.amount_nano_usd,
        overrun=event.overrun_nano_usd,
    )


def _known(book: Book, reservation_id: str) -> Reservation:
    if (known := book.reservation(reservation_id)) is None:
        raise ReservationNotFound(reservation_id)
    return known


def _closed(book: Book, reservation: Reservation) -> Book:
    name = reservation.reservation_id
    return replace(book, open=book.open.discard(name), closed=book.closed.add(name, reservation))


def _posted(book: Book, postings: Iterable[Posting]) -> Book:
    balances = book.balances
    for posting in postings:
        balance = balances.get(posting.account, 0) + posting.amount_nano_usd
        balances = balances.insert(posting.account, balance) if balance else balances.discard(posting.account)
    return replace(book, balances=balances)


def _with_budget(book: Book, event: BudgetSet) -> Book:
    budget = Budget(event.budget_id, event.scope, event.limit_nano_usd, event.hard, event.window)
    key = _scope_key(budget.scope)
    ids = book.by_scope.get(key, ())
    by_scope = book.by_scope if budget.budget_id in ids else book.by_scope.insert(key, (*ids, budget.budget_id))
    return replace(book, budgets=book.budgets.insert(budget.budget_id, budget), by_scope=by_scope)


def _scope_key(scope: Attribution) -> tuple[str, str]:
    return next(((name, value) for name in SCOPE_FIELDS if (value := getattr(scope, name))), WHOLE_TENANT)


def _card(event: PriceSet) -> RateCard:
    return flat_card(event.input_pico_usd, event.output_pico_usd, event.cache_read_pico_usd, event.cache_write_pico_usd)
