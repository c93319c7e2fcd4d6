"""What may happen in a tenant's book: `decide` answers a command with events. Pure.

The book is in book.py, the commands in commands.py, what they add to accounts in postings.py, and how an event changes
the book in folding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from synod.common.event import Event
from synod.common.money import PICO_PER_NANO, nano_from_pico
from synod.cost_ledger.events import (
    BudgetResumed,
    BudgetSet,
    BudgetSuspended,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    PriceFactorSet,
    PriceSet,
    Quantity,
    ReservationDenied,
    ReservationExpired,
    ReservationReleased,
    ReservationRenewed,
)

from cost_ledger import alerts, correcting, errors, invoices, quantities
from cost_ledger.book import Amounts, Balance, Book, Budget, Reservation
from cost_ledger.commands import (
    BY_INVOICE,
    CLEARING_EVENTS_MAX,
    COST_NANO_MAX,
    QUANTITY_MAX,
    STOCK_MAX,
    Charge,
    Cleared,
    ClearSuspense,
    CloseStock,
    Command,
    Doubt,
    Expire,
    ImportInvoice,
    Look,
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
    Unreserved,
)
from cost_ledger.errors import (
    BudgetFixed,
    InvoiceOvertaken,
    ModelUnpriced,
    NothingToSpare,
    RequestInvalid,
    ReservationClosed,
    ReservationConflict,
    ReservationNotFound,
    ReservationSettled,
    SettlementNotPriced,
)
from cost_ledger.folding import card_of, factor_name, fold, moved_by
from cost_ledger.postings import moved, owed
from cost_ledger.rates import UNPRICED, RateCard, bound_nano, cost_pico

_FIXED_FIELDS: Final = {
    "scope": "scope",
    "window": "window",
    "time_zone": "time_zone",
    "rolling_s": "rolling",
    "per": "per",
    "unit": "unit",
}
"""What of a budget does not change, with the name that callers know it by."""

_FIXED: Final = Price(UNPRICED, "", "fixed")
"""Of a cost that is told as an amount, whatever price its tokens have."""

SPARE_TIMES: Final = 20
"""How many times its own amount a hard budget must have left after a reservation made ahead of its call: near its limit a
budget is there for calls that came, and what no call may use has to refuse none."""


def decide(book: Book, command: Command) -> tuple[Event, ...]:
    """The events of a command, none if it is a repetition. A refused reservation is the event ReservationDenied.

    Raises the errors of errors.py when a command is refused without a trace.
    """
    match command:
        case Reserve():
            return _with_guess(book, _reserve(book, command), command.book_price)
        case Renew():
            return _renew(book, command)
        case Settle():
            settled = _with_thresholds(book, _settle(book, command), command.at)
            return _with_guess(book, settled, _guess_of(command))
        case Release():
            return _release(book, command)
        case Expire():
            return _expire(book, command)
        case Doubt():
            return _doubt(book, command)
        case ReturnStock():
            return _return_stock(book, command)
        case CloseStock():
            return _close_stock(book, command)
        case Charge():
            return _with_thresholds(book, _charge(book, command), command.at or command.incurred_at)
        case SetBudget():
            return _set_budget(book, command)
        case SuspendBudget():
            return _suspend(book, command)
        case ResumeBudget():
            return _resume(book, command)
        case SetPrice():
            return _set_price(book, command)
        case SetPriceFactor():
            return _set_price_factor(book, command)
        case Rerate():
            _refuse_absurd("price", Amounts(nano_from_pico(command.after_pico)))
            return _with_guess(book, _with_thresholds(book, correcting.rerate(book, command)), command.price)
        case ClearSuspense():
            return _clear_suspense(book, command)
        case ImportInvoice():
            return invoices.import_invoice(book, command)
        case TellForecast():
            return correcting.tell_forecast(book, command)
        case Look():
            return ()


# --- reserve ---


def _reserve(book: Book, command: Reserve) -> tuple[Event, ...]:
    if known := book.reservation(command.reservation_id):
        return _repeated(known, command)
    price = _price_in_force(book, command.model, command.book_price)
    budgets = book.matching(command.attribution)
    _refuse_unpriced(price, command, budgets)
    amounts = _bound(command, price)
    _refuse_absurd("input_tokens_max", amounts)
    balances = [book.balance(budget, budget.hold_at(command.at, command.attribution)) for budget in budgets]
    # What a lower limit has made of a share is told here: SetBudget cannot look at all of them.
    shares = [balance for balance in balances if balance.budget.per]
    if denied := _denied(command, balances, amounts):
        return (denied, *_told(book, shares))
    reserved = _reserved(book, command, price, balances, amounts)
    return (reserved, *alerts.reached(book, shares), *alerts.committed(book, balances, amounts))


def _repeated(known: Reservation, command: Reserve) -> tuple[Event, ...]:
    # A settlement that came before its reservation left no content to compare with.
    if known.request_sha256 and known.request_sha256 != command.request_sha256:
        raise ReservationConflict(command.reservation_id)
    return ()


def _price_in_force(book: Book, model: str, book_price: Price) -> Price:
    return book.price_of(model, book_price) if model else _FIXED


def _refuse_unpriced(price: Price, command: Reserve, budgets: tuple[Budget, ...]) -> None:
    # A suspended budget refuses it anyway, and a price would not help.
    if price.source != "unpriced" or any(budget.suspended_for for budget in budgets):
        return
    for budget in budgets:
        if budget.hard and budget.unit == "nano_usd":
            raise ModelUnpriced(command.model, budget.budget_id, price.near, command.price_context)


def _refuse_absurd(field: str, amounts: Amounts) -> None:
    """Whoever counts such amounts together would leave 64 bits behind, and no call costs so much."""
    if amounts.nano > COST_NANO_MAX:
        problem = f"costs more than one call may at this price, {COST_NANO_MAX}; look at the number and at the price"
        raise RequestInvalid(field, f"{amounts.nano} nano-USD", problem)
    for each in amounts.quantities:
        if each.quantity > QUANTITY_MAX:
            raise RequestInvalid(
                field, f"{each.quantity} {each.unit}", f"is more than one call may use, {QUANTITY_MAX}"
            )


def _bound(command: Reserve, price: Price) -> Amounts:
    most = quantities.bounded(command.quantities, command.input_tokens_max, command.output_tokens_max)
    if command.fixed is not None:
        return Amounts(command.fixed, most)
    bound = bound_nano(price.rates, command.input_tokens_max, command.output_tokens_max, command.modalities)
    return Amounts(bound, most)


def _denied(command: Reserve, balances: Iterable[Balance], amounts: Amounts) -> ReservationDenied | None:
    """The refusal by one of the budgets, if there is one that does not admit the command. All or none.

    A command with a holder is refused by an error: no call has been, so there is nothing to be told of.
    """
    refusing = _refusing(command, balances, amounts)
    if refusing is None:
        return None
    if command.holder:
        raise _unspared(refusing, amounts)
    return _denial(command, refusing, amounts)


def _refusing(command: Reserve, balances: Iterable[Balance], amounts: Amounts) -> Balance | None:
    """A suspended budget, else the hard one that lacks most, money before quotas, if one does not cover its amount.

    An overdrawn budget refuses any call of a model; what has none, as a tool, only if it needs something of that budget.
    """
    found = tuple(balances)
    if suspended := next((each for each in found if each.budget.suspended_for), None):
        return suspended
    short = [each for each in found if each.budget.hard and _is_short(each, command, amounts)]
    return min(short, key=lambda each: (each.budget.unit != "nano_usd", each.available), default=None)


def _denial(command: Reserve, refusing: Balance, amounts: Amounts) -> ReservationDenied:
    budget, hold, available = refusing.budget, refusing.hold, refusing.available
    required = amounts.of(budget.unit)
    money = budget.unit == "nano_usd"
    return ReservationDenied(
        reservation_id=command.reservation_id,
        attribution=command.attribution,
        model=command.model,
        budget_id=budget.budget_id,
        required_nano_usd=required if money else 0,
        available_nano_usd=available if money else 0,
        unit=budget.unit,
        required_quantity=0 if money else required,
        available_quantity=0 if money else available,
        window_start=hold.window_start,
        share=hold.share,
        suspended_for=budget.suspended_for,
    )


def _is_short(balance: Balance, command: Reserve, amounts: Amounts) -> bool:
    required = amounts.of(balance.budget.unit)
    needed = _needed_ahead(required) if command.holder else required
    return bool(command.model or required) and balance.available < needed


def _needed_ahead(required: int) -> int:
    return required * (1 + SPARE_TIMES)


def _unspared(refusing: Balance, amounts: Amounts) -> errors.BudgetSuspended | NothingToSpare:
    budget, required = refusing.budget, amounts.of(refusing.budget.unit)
    if budget.suspended_for:
        return errors.BudgetSuspended(budget.budget_id, budget.suspended_for)
    needed, share = _needed_ahead(required), refusing.hold.share
    return NothingToSpare(budget.budget_id, refusing.available, required, needed, budget.unit, share)


def _reserved(
    book: Book, command: Reserve, price: Price, balances: Iterable[Balance], amounts: Amounts
) -> CostReserved:
    holds = tuple([balance.hold for balance in balances])
    entry = moved(book, holds, "budget", "pending", amounts)
    return CostReserved(
        reservation_id=command.reservation_id,
        request_sha256=command.request_sha256,
        attribution=command.attribution,
        model=command.model,
        amount_nano_usd=amounts.nano,
        price_version=price.version,
        price_source=price.source,
        rates=price.rates,
        holds=holds,
        reserved_at=command.at,
        expires_at=command.expires_at,
        postings=entry.postings,
        quantities=amounts.quantities,
        quota_postings=entry.quotas,
        price_context=command.price_context,
        holder=command.holder,
    )


def _renew(book: Book, command: Renew) -> tuple[Event, ...]:
    known = _required(book, command.reservation_id)
    if not known.is_open:
        raise ReservationClosed(known.reservation_id, known.state)
    if known.state == "suspense" or known.expires_at >= command.expires_at:
        return ()
    return (ReservationRenewed(reservation_id=known.reservation_id, expires_at=command.expires_at),)


# --- settle, release, expire ---


def _settle(book: Book, command: Settle) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id) or command.forgotten or _never_admitted(book, command)
    if known.state == "settled":
        return ()
    price = _billed(book, known, command) if command.amount is None else _FIXED
    amount_pico = _used_pico(known, price.rates, command)
    amount = nano_from_pico(amount_pico)
    spent = Amounts(amount, quantities.used(command.quantities, command.usage, known.quantities))
    _refuse_absurd("usage", spent)
    entry = (
        moved(book, known.holds, known.held_in, "budget", known.holding)
        + moved(book, known.holds, "budget", "spent", spent)
        + owed(known.attribution, known.model, amount)
    )
    return (
        CostSettled(
            reservation_id=known.reservation_id,
            attribution=known.attribution,
            model=known.model,
            amount_nano_usd=amount,
            amount_pico_usd=amount_pico,
            reserved_nano_usd=known.reserved,
            overrun_nano_usd=max(amount - known.holding.nano, 0),
            price_version=price.version,
            price_source=price.source,
            holds=known.holds,
            incurred_at=known.reserved_at,
            usage=command.usage,
            usage_source=command.usage_source,
            late=known.state != "held",
            source_position=command.source_position,
            postings=entry.postings,
            quantities=spent.quantities,
            quota_postings=entry.quotas,
            price_context=known.price_context if command.price_context is None else command.price_context,
            quota_overruns=_quota_overruns(book, known, spent),
        ),
    )


def _quota_overruns(book: Book, known: Reservation, spent: Amounts) -> tuple[Quantity, ...]:
    units = {unit for hold in known.holds if (unit := book.budget(hold.budget_id).unit) != "nano_usd"}
    held = [(unit, most) for unit in sorted(units) if (most := known.holding.of(unit))]
    return tuple(Quantity(unit=unit, quantity=over) for unit, most in held if (over := spent.of(unit) - most) > 0)


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
        holds=_holds(book, use),
        reserved_at=use.used_at,
        expires_at=use.used_at,
    )


def _holds(book: Book, use: Unreserved) -> tuple[Hold, ...]:
    return tuple(budget.hold_at(use.used_at, use.attribution) for budget in book.matching(use.attribution))


def _billed(book: Book, known: Reservation, command: Settle) -> Price:
    """The pinned price, or that of other terms of the same book, at the pinned factor, if those were billed.

    Terms that have no price are billed at the pinned one, as a guess: at 0 a hard budget would admit any number of them. A
    price of the tenant's own is that of all terms.
    """
    pinned = Price(known.rates, known.price_version, known.price_source)
    if command.billed is None or known.price_source not in ("book", "book_fuzzy", "unpriced"):
        return pinned
    if command.billed.source == "unpriced" and known.price_source != "unpriced":
        return replace(pinned, source="book_fuzzy")
    return book.pinned(known, command.billed)


def _guess_of(command: Settle) -> Price | None:
    """The price that a settlement may be the first to use; a pinned one was told of when it was reserved."""
    if command.unreserved is not None:
        return command.unreserved.book_price
    if command.billed is not None and command.billed.source == "unpriced":
        return replace(command.billed, source="book_fuzzy", near=())
    return command.billed


def _used_pico(known: Reservation, rates: RateCard, command: Settle) -> int:
    if command.amount is not None:
        return command.amount * PICO_PER_NANO
    if known.price_source == "fixed" and command.usage:
        raise SettlementNotPriced(known.reservation_id)
    return cost_pico(rates, command.usage)


def _release(book: Book, command: Release) -> tuple[Event, ...]:
    known = _required(book, command.reservation_id)
    if known.state == "settled":
        raise ReservationSettled(known.reservation_id, known.settled)
    return () if known.state == "released" else (_released(book, known, command.reason),)


def _released(book: Book, known: Reservation, reason: str) -> ReservationReleased:
    entry = moved(book, known.holds, known.held_in, "budget", known.holding)
    return ReservationReleased(
        reservation_id=known.reservation_id, reason=reason, postings=entry.postings, quota_postings=entry.quotas
    )


def _return_stock(book: Book, command: ReturnStock) -> tuple[Event, ...]:
    # A use that was told after all stands: the money is gone.
    named = [book.open.get(reservation_id) for reservation_id in dict.fromkeys(command.reservation_ids)]
    own = [known for known in named if known is not None and _is_stock_of(command.holder, known)]
    return tuple([_released(book, known, "reserved ahead and never used") for known in own])


def _close_stock(book: Book, command: CloseStock) -> tuple[Event, ...]:
    held = [known for known in book.open.values() if known.state == "held" and _is_stock_of(command.holder, known)]
    held.sort(key=lambda known: known.reservation_id)
    reason = "reserved ahead and never used; its holder has ended"
    return tuple([_released(book, known, reason) for known in held[:STOCK_MAX]])


def _is_stock_of(holder: str, known: Reservation) -> bool:
    """Never if `holder` is empty: what a call reserved for itself is in nobody's stock."""
    return bool(holder) and known.holder == holder


def _expire(book: Book, command: Expire) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id)
    if known is None or known.state != "held" or known.expires_at > command.at:
        return ()
    return (_suspended(book, known),)


def _doubt(book: Book, command: Doubt) -> tuple[Event, ...]:
    known = book.reservation(command.reservation_id)
    return (_suspended(book, known),) if known is not None and known.state == "held" else ()


def _suspended(book: Book, known: Reservation) -> ReservationExpired:
    entry = moved(book, known.holds, "pending", "suspense", known.holding)
    return ReservationExpired(
        reservation_id=known.reservation_id,
        amount_nano_usd=known.reserved,
        postings=entry.postings,
        quota_postings=entry.quotas,
    )


def _required(book: Book, reservation_id: str) -> Reservation:
    if (known := book.reservation(reservation_id)) is None:
        raise ReservationNotFound(reservation_id)
    return known


# --- charge ---


def _charge(book: Book, command: Charge) -> tuple[Event, ...]:
    if command.charge_id in book.charges:
        return ()
    if book.reservation(command.charge_id) is not None:
        return _settle(book, _settlement_by(command))
    budgets = book.matching(command.attribution)
    if not command.amount and all(budget.unit == "nano_usd" for budget in budgets):
        return ()
    holds = tuple(budget.hold_at(command.incurred_at, command.attribution) for budget in budgets)
    amounts = Amounts(command.amount, quantities.used(command.quantities, (), ()))
    entry = moved(book, holds, "budget", "spent", amounts) + owed(
        command.attribution, command.attribution.model, command.amount
    )
    return (
        CostCharged(
            charge_id=command.charge_id,
            attribution=command.attribution,
            amount_nano_usd=command.amount,
            holds=holds,
            incurred_at=command.incurred_at,
            source_position=command.source_position,
            postings=entry.postings,
            quantities=amounts.quantities,
            quota_postings=entry.quotas,
        ),
    )


def _settlement_by(charge: Charge) -> Settle:
    return Settle(
        reservation_id=charge.charge_id,
        usage=(),
        amount=charge.amount,
        usage_source="provider_final",
        at=charge.at or charge.incurred_at,
        source_position=charge.source_position,
        quantities=charge.quantities,
    )


# --- invoices ---


def _clear_suspense(book: Book, command: ClearSuspense) -> tuple[Event, ...]:
    """Refused as the invoice itself would be: nothing is cleared for one that cannot be imported."""
    events: list[Event] = []
    if not invoices.is_new(book, command.invoice):
        return ()
    for each in command.cleared:
        cleared = _with_thresholds(book, _cleared(book, command.invoice.invoice_id, each))
        if events and len(events) + len(cleared) > CLEARING_EVENTS_MAX:
            break
        events += cleared
        book = fold(book, cleared)
    return tuple(events)


def _cleared(book: Book, invoice_id: str, cleared: Cleared) -> tuple[Event, ...]:
    known = book.open.get(cleared.reservation_id)
    if known is None or known.state != "suspense":
        # The amounts were made without its outcome.
        raise InvoiceOvertaken(invoice_id, cleared.reservation_id)
    if not cleared.amount:
        return _release(book, Release(known.reservation_id, f"not billed in invoice {invoice_id}"))
    settlement = Settle(known.reservation_id, (), cleared.amount, BY_INVOICE, known.expires_at)
    return _settle(book, settlement)


# --- budgets and prices ---


def _set_budget(book: Book, command: SetBudget) -> tuple[Event, ...]:
    known = book.budgets.get(command.budget_id)
    wanted = Budget(
        budget_id=command.budget_id,
        scope=command.scope,
        limit=command.limit,
        hard=command.hard,
        window=command.window,
        time_zone=command.time_zone,
        rolling_s=command.rolling_s,
        per=command.per,
        unit=command.unit,
        suspended_for=known.suspended_for if known is not None else "",
    )
    if known == wanted:
        return ()
    for name, field in _FIXED_FIELDS.items():
        if known is not None and getattr(known, name) != getattr(wanted, name):
            raise BudgetFixed(command.budget_id, field)
    event = _budget_set(wanted)
    # The shares of a budget are too many to look at: each tells of a lowered limit with its next reservation or cost.
    balances = () if wanted.per else (book.balance(wanted, wanted.share_at(command.at, "")),)
    return (event, *_told(book, balances))


def _budget_set(budget: Budget) -> BudgetSet:
    money = budget.unit == "nano_usd"
    return BudgetSet(
        budget_id=budget.budget_id,
        scope=budget.scope,
        limit_nano_usd=budget.limit if money else 0,
        hard=budget.hard,
        window=budget.window,
        time_zone=budget.time_zone,
        rolling_s=budget.rolling_s,
        per=budget.per,
        unit=budget.unit,
        limit_quantity=0 if money else budget.limit,
    )


def _suspend(book: Book, command: SuspendBudget) -> tuple[Event, ...]:
    if book.budget(command.budget_id).suspended_for == command.reason:
        return ()
    return (BudgetSuspended(budget_id=command.budget_id, reason=command.reason),)


def _resume(book: Book, command: ResumeBudget) -> tuple[Event, ...]:
    if not book.budget(command.budget_id).suspended_for:
        return ()
    return (BudgetResumed(budget_id=command.budget_id),)


def _set_price(book: Book, command: SetPrice) -> tuple[Event, ...]:
    event = PriceSet(
        provider=command.provider,
        model=command.model,
        input_pico_usd=command.input_pico,
        output_pico_usd=command.output_pico,
        cache_read_pico_usd=command.cache_read_pico,
        cache_write_pico_usd=command.cache_write_pico,
        rates=command.more,
        set_at=command.at,
    )
    known = book.prices.get(f"{event.provider}/{event.model}".lower())
    return () if known is not None and known.rates == card_of(event) else (event,)


def _set_price_factor(book: Book, command: SetPriceFactor) -> tuple[Event, ...]:
    event = PriceFactorSet(
        provider=command.provider, model=command.model, factor_ppm=command.factor_ppm, set_at=command.at
    )
    known = book.factors.get(factor_name(command.provider, command.model))
    return () if known is not None and known.ppm == command.factor_ppm else (event,)


def _with_thresholds(book: Book, events: tuple[Event, ...], at: datetime | None = None) -> tuple[Event, ...]:
    """The events, and after them each threshold that a budget reaches by them for the first time in its window.

    A rolling window is looked at as it is `at` that time: what is posted to an older slice counts in it with all newer ones.
    """
    holds = [
        hold for event in events if isinstance(event, CostSettled | CostCharged | ChargeRerated) for hold in event.holds
    ]
    if not holds:
        return events
    moved_by_now = moved_by(events)
    counting = [(book.budget(hold.budget_id), hold) for hold in holds]
    balances = [book.balance(budget, _counting(budget, hold, at), moved_by_now) for budget, hold in counting]
    return (*events, *_told(book, balances))


def _told(book: Book, balances: Sequence[Balance]) -> tuple[Event, ...]:
    # What was never reserved, an overrun, and a lower limit raise what is committed too.
    return (*alerts.reached(book, balances), *alerts.committed(book, balances, Amounts(0)))


def _counting(budget: Budget, hold: Hold, at: datetime | None) -> Hold:
    if at is None or budget.window != "rolling":
        return hold
    # What was reserved by a clock that is ahead of this one may be in a newer slice. Names of slices sort by time.
    return max(hold, budget.share_at(at, hold.share), key=lambda each: each.window_start)


def _with_guess(book: Book, events: tuple[Event, ...], price: Price | None) -> tuple[Event, ...]:
    """The events, and after them that `price` is a guess, if it is one and was used for the first time."""
    if price is None or price.source != "book_fuzzy":
        return events
    return (*events, *alerts.guessed(book, events, price))
