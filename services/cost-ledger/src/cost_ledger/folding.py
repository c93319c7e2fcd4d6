"""How an event changes the book."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import (
    BudgetCommitmentReached,
    BudgetForecastChanged,
    BudgetResumed,
    BudgetSet,
    BudgetSuspended,
    BudgetThresholdReached,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    FuzzyPriceUsed,
    PriceFactorSet,
    PriceSet,
    ProviderInvoiceImported,
    ReservationExpired,
    ReservationReleased,
    ReservationRenewed,
)

from cost_ledger.book import SCOPE_FIELDS, WHOLE_TENANT, Book, Budget, Imported, OwnFactor, OwnPrice, Reservation, Told
from cost_ledger.errors import ReservationNotFound
from cost_ledger.naming import ANY_MODEL
from cost_ledger.rates import UNPRICED, RateCard, flat_card


def fold(book: Book, events: Iterable[Event]) -> Book:
    """The book after the events.

    Balances are summed up aside and written once: the postings of many events touch few accounts, each again and again.
    """
    moved: dict[str, int] = {}
    for event in events:
        book = _changed(book, event)
        _add_entries(moved, event)
    return _posted(book, moved)


def moved_by(events: Iterable[Event]) -> dict[str, int]:
    """What the events add to each account that they touch."""
    moved: dict[str, int] = {}
    for event in events:
        _add_entries(moved, event)
    return moved


def evolve(book: Book, event: Event) -> Book:
    """The book after one event."""
    return fold(book, (event,))


def _changed(book: Book, event: Event) -> Book:
    """The book after an event, but for the balances."""
    match event:
        case CostReserved():
            return book._replace(open=book.open.insert(event.reservation_id, _held(event)))
        case CostSettled():
            return _closed(book, _settled(book, event))
        case ReservationReleased():
            return _closed(book, replace(_known(book, event.reservation_id), state="released"))
        case ReservationExpired():
            doubtful = replace(_known(book, event.reservation_id), state="suspense")
            return book._replace(open=book.open.insert(event.reservation_id, doubtful))
        case ReservationRenewed():
            renewed = replace(_known(book, event.reservation_id), expires_at=event.expires_at)
            return book._replace(open=book.open.insert(event.reservation_id, renewed))
        case ChargeRerated():
            return _rerated(book, event)
        case CostCharged():
            return book._replace(charges=book.charges.add(event.charge_id, event.amount_nano_usd))
        case BudgetSet():
            return _with_budget(book, event)
        case BudgetSuspended():
            return _with_suspension(book, event.budget_id, event.reason)
        case BudgetResumed():
            return _with_suspension(book, event.budget_id, "")
        case PriceSet():
            own = OwnPrice(f"{event.provider}/{event.model}", card_of(event), event.set_at)
            return book._replace(prices=book.prices.insert(own.model.lower(), own))
        case PriceFactorSet():
            return _with_factor(book, event)
        case BudgetThresholdReached():
            return _with_reached(book, event, "posted")
        case BudgetCommitmentReached():
            return _with_reached(book, event, "committed")
        case FuzzyPriceUsed():
            return book._replace(guessed=book.guessed.insert((event.model, event.price_version)))
        case ProviderInvoiceImported():
            return _with_invoice(book, event)
        case BudgetForecastChanged():
            told = Told(event.revision, event.runs_out)
            return book._replace(forecasts=book.forecasts.insert((event.budget_id, event.window_start), told))
        case _:
            return book


def _held(event: CostReserved) -> Reservation:
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
        quantities=event.quantities,
        price_context=event.price_context,
        holder=event.holder,
    )


def _settled(book: Book, event: CostSettled) -> Reservation:
    known = book.reservation(event.reservation_id)
    request_sha256, expires_at, holder = (
        (known.request_sha256, known.expires_at, known.holder) if known else ("", event.incurred_at, "")
    )
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
        quantities=event.quantities,
        price_context=event.price_context,
        holder=holder,
    )


def _rerated(book: Book, event: ChargeRerated) -> Book:
    """The correction of a reservation that the book has forgotten changes balances only."""
    if (known := book.reservation(event.reservation_id)) is None:
        return book
    return _closed(
        book,
        replace(
            known,
            settled=event.after_nano_usd,
            price_version=event.price_version,
            price_source=event.price_source,
        ),
    )


def _known(book: Book, reservation_id: str) -> Reservation:
    if (known := book.reservation(reservation_id)) is None:
        raise ReservationNotFound(reservation_id)
    return known


def _closed(book: Book, reservation: Reservation) -> Book:
    name = reservation.reservation_id
    return book._replace(open=book.open.discard(name), closed=book.closed.add(name, reservation))


def _add_entries(moved: dict[str, int], event: Event) -> None:
    for name, amount in entries(event):
        moved[name] = moved.get(name, 0) + amount


def _posted(book: Book, moved: Mapping[str, int]) -> Book:
    if not moved:
        return book
    balances = book.balances
    for name, amount in moved.items():
        balance = balances.get(name, 0) + amount
        balances = balances.insert(name, balance) if balance else balances.discard(name)
    return book._replace(balances=balances)


def entries(event: Event) -> list[tuple[str, int]]:
    """Accounts with what an event adds to each, in the unit of the account; nothing for an event without postings."""
    found = [(posting.account, posting.amount_nano_usd) for posting in getattr(event, "postings", ())]
    if quotas := getattr(event, "quota_postings", ()):
        found += [(posting.account, posting.quantity) for posting in quotas]
    return found


def _with_reached(book: Book, event: BudgetThresholdReached | BudgetCommitmentReached, basis: str) -> Book:
    key = (event.budget_id, event.window_start, event.share, event.threshold_percent, basis)
    return book._replace(reached=book.reached.insert(key))


def _with_budget(book: Book, event: BudgetSet) -> Book:
    known, budget = book.budgets.get(event.budget_id), budget_of(event)
    if known is not None:
        budget = replace(budget, suspended_for=known.suspended_for)
    key = _scope_key(budget.scope)
    ids = book.by_scope.get(key, ())
    by_scope = book.by_scope if budget.budget_id in ids else book.by_scope.insert(key, (*ids, budget.budget_id))
    return book._replace(budgets=book.budgets.insert(budget.budget_id, budget), by_scope=by_scope)


def _with_suspension(book: Book, budget_id: str, reason: str) -> Book:
    suspended = replace(book.budget(budget_id), suspended_for=reason)
    return book._replace(budgets=book.budgets.insert(budget_id, suspended))


def _with_factor(book: Book, event: PriceFactorSet) -> Book:
    name = factor_name(event.provider, event.model)
    # The factor 1 for a model is kept: it stands before that of its provider.
    return book._replace(factors=book.factors.insert(name, OwnFactor(event.factor_ppm, event.set_at)))


def factor_name(provider: str, model: str) -> str:
    return f"{provider}/{model}".lower() if model else provider.lower() + ANY_MODEL


def _with_invoice(book: Book, event: ProviderInvoiceImported) -> Book:
    invoices = book.invoices.insert(event.invoice_id, Imported(event.content_sha256, event.provider, event.billed))
    if event.replaces:
        replaced = replace(invoices[event.replaces], replaced_by=event.invoice_id)
        invoices = invoices.insert(event.replaces, replaced)
    return book._replace(invoices=invoices)


def budget_of(event: BudgetSet) -> Budget:
    return Budget(
        budget_id=event.budget_id,
        scope=event.scope,
        limit=event.limit_nano_usd if event.unit == "nano_usd" else event.limit_quantity,
        hard=event.hard,
        window=event.window,
        time_zone=event.time_zone,
        rolling_s=event.rolling_s,
        per=event.per,
        unit=event.unit,
    )


def _scope_key(scope: Attribution) -> tuple[str, str]:
    name, value = next(((name, value) for name in SCOPE_FIELDS if (value := getattr(scope, name))), WHOLE_TENANT)
    return (name, value.lower() if name == "model" else value)


def card_of(event: PriceSet) -> RateCard:
    flat = flat_card(event.input_pico_usd, event.output_pico_usd, event.cache_read_pico_usd, event.cache_write_pico_usd)
    return (*flat, *event.rates)
