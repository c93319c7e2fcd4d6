"""Alerts: a budget reached a share of its limit, told once for each window, share, threshold and kind.

In a rolling window, which never ends, once for each stretch as long as the window. And a price that is a guess, told once
for each model and price version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from synod.common.event import Event
from synod.cost_ledger.events import (
    BudgetCommitmentReached,
    BudgetThresholdReached,
    ChargeRerated,
    CostReserved,
    CostSettled,
    FuzzyPriceUsed,
    Hold,
)

from cost_ledger.book import Amounts, Balance, Book, Budget
from cost_ledger.commands import Price
from cost_ledger.windows import stretch

THRESHOLDS_PERCENT: Final = (50, 80, 95, 100)


def reached(book: Book, balances: Iterable[Balance]) -> tuple[Event, ...]:
    """The thresholds that what is posted has reached and nobody told in `book`."""
    return tuple([event for balance in balances for event in _posted(book, balance)])


def committed(book: Book, balances: Iterable[Balance], amounts: Amounts) -> tuple[Event, ...]:
    """The thresholds that posted and held reach together when `amounts` are held on top of the balances."""
    return tuple([event for balance in balances for event in _committed(book, balance, amounts)])


def guessed(book: Book, events: Iterable[Event], price: Price) -> tuple[Event, ...]:
    """That one of the events is priced by `price` though the price book is not sure of it, if nobody told in `book`."""
    for event in events:
        match event:
            case CostReserved() | CostSettled() | ChargeRerated() if event.price_source == "book_fuzzy":
                if (event.model, event.price_version) not in book.guessed:
                    return (_fuzzy(event.model, event.price_version, price),)
    return ()


def _fuzzy(model: str, version: str, price: Price) -> FuzzyPriceUsed:
    return FuzzyPriceUsed(model=model, price_version=version, priced_as=next(iter(price.near), model))


def _posted(book: Book, balance: Balance) -> Iterator[Event]:
    budget, hold, posted, pending = balance
    for percent in _new(book, budget, hold, posted, "posted"):
        money = budget.unit == "nano_usd"
        amounts = (posted, pending, budget.limit)
        nano, quantity = (amounts, (0, 0, 0)) if money else ((0, 0, 0), amounts)
        yield BudgetThresholdReached(
            budget_id=hold.budget_id,
            window_start=hold.window_start,
            share=hold.share,
            threshold_percent=percent,
            posted_nano_usd=nano[0],
            pending_nano_usd=nano[1],
            limit_nano_usd=nano[2],
            unit=budget.unit,
            posted_quantity=quantity[0],
            pending_quantity=quantity[1],
            limit_quantity=quantity[2],
        )


def _committed(book: Book, balance: Balance, amounts: Amounts) -> Iterator[Event]:
    budget, hold, posted, held = balance
    pending = held + amounts.of(budget.unit)
    for percent in _new(book, budget, hold, posted + pending, "committed"):
        yield BudgetCommitmentReached(
            budget_id=hold.budget_id,
            window_start=hold.window_start,
            share=hold.share,
            threshold_percent=percent,
            unit=budget.unit,
            posted=posted,
            pending=pending,
            limit=budget.limit,
        )


def _new(book: Book, budget: Budget, hold: Hold, amount: int, basis: str) -> Iterator[int]:
    if amount <= 0:
        return
    for percent in THRESHOLDS_PERCENT:
        if amount * 100 >= budget.limit * percent and not _told(book, budget, hold, percent, basis):
            yield percent


def _told(book: Book, budget: Budget, hold: Hold, percent: int, basis: str) -> bool:
    names = stretch(budget.window, hold.window_start, budget.rolling_s)
    return any((budget.budget_id, name, hold.share, percent, basis) in book.reached for name in names)
