"""How an event changes the book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import (
    BudgetSet,
    BudgetThresholdReached,
    CostCharged,
    CostReserved,
    CostSettled,
    Posting,
    PriceSet,
    ReservationExpired,
    ReservationReleased,
)

from cost_ledger.book import SCOPE_FIELDS, WHOLE_TENANT, Book, Budget, Reservation
from cost_ledger.errors import ReservationNotFound
from cost_ledger.rates import UNPRICED, RateCard, flat_card


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
            return replace(book, prices=book.prices.insert(f"{event.provider}/{event.model}", card_of(event)))
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


def card_of(event: PriceSet) -> RateCard:
    return flat_card(event.input_pico_usd, event.output_pico_usd, event.cache_read_pico_usd, event.cache_write_pico_usd)
