"""What may happen in a tenant's book: `decide` answers a command with events. Pure.

The book is in book.py, the commands in commands.py, and how an event changes the book in folding.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from synod.common.event import Event
from synod.common.money import PICO_PER_NANO, nano_from_pico
from synod.common.values import Attribution
from synod.cost_ledger.events import (
    BudgetSet,
    BudgetThresholdReached,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    Posting,
    PriceSet,
    ReservationDenied,
    ReservationExpired,
    ReservationReleased,
)

from cost_ledger.book import Book, Budget, Reservation, account
from cost_ledger.commands import (
    OVERRIDE,
    Charge,
    Command,
    Expire,
    Look,
    Price,
    Release,
    Reserve,
    SetBudget,
    SetPrice,
    Settle,
)
from cost_ledger.errors import (
    BudgetFixed,
    ModelUnpriced,
    ReservationConflict,
    ReservationNotFound,
    ReservationSettled,
    SettlementNotPriced,
)
from cost_ledger.folding import card_of, fold
from cost_ledger.rates import UNPRICED, bound_pico, cost_pico

THRESHOLDS_PERCENT: Final = (50, 80, 95, 100)


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
    return () if book.prices.get(f"{event.provider}/{event.model}") == card_of(event) else (event,)


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
        Posting(account=account(kind, hold), amount_nano_usd=signed)
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
