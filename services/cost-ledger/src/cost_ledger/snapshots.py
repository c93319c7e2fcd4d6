"""A book as bytes and back, so that a start does not fold a tenant's whole history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter
from rpds import HashTrieMap, HashTrieSet

from cost_ledger.book import CHARGES_MAX, CLOSED_MAX, Book, Budget, Imported, OwnFactor, OwnPrice, Reservation, Told
from cost_ledger.recent import Recent

FOLD: Final = "book-9"
"""Names the fold and the form of its bytes. Raise it when evolve or Image changes: older snapshots are left unread."""


@dataclass(frozen=True, slots=True)
class Image:
    """The content of a book in plain collections."""

    budgets: tuple[Budget, ...]
    by_scope: tuple[tuple[tuple[str, str], tuple[str, ...]], ...]
    prices: dict[str, OwnPrice]
    factors: dict[str, OwnFactor]
    open: tuple[Reservation, ...]
    closed: tuple[Reservation, ...]
    charges: tuple[tuple[str, int], ...]
    balances: dict[str, int]
    reached: tuple[tuple[str, str, str, int, str], ...]
    forecasts: tuple[tuple[tuple[str, str], Told], ...]
    invoices: dict[str, Imported]
    guessed: tuple[tuple[str, str], ...]


_IMAGE: Final = TypeAdapter(Image)


def dump(book: Book) -> bytes:
    return _IMAGE.dump_json(
        Image(
            budgets=tuple(book.budgets.values()),
            by_scope=tuple(book.by_scope.items()),
            prices=dict(book.prices),
            factors=dict(book.factors),
            open=tuple(book.open.values()),
            closed=tuple(reservation for _, reservation in book.closed.items()),
            charges=tuple(book.charges.items()),
            balances=dict(book.balances),
            reached=tuple(book.reached),
            forecasts=tuple(book.forecasts.items()),
            invoices=dict(book.invoices),
            guessed=tuple(book.guessed),
        )
    )


def load(data: bytes) -> Book:
    """The book of `dump`. Raises pydantic.ValidationError for bytes of another form."""
    image = _IMAGE.validate_json(data)
    return Book(
        budgets=HashTrieMap({budget.budget_id: budget for budget in image.budgets}),
        by_scope=HashTrieMap(image.by_scope),
        prices=HashTrieMap(image.prices),
        factors=HashTrieMap(image.factors),
        open=HashTrieMap({reservation.reservation_id: reservation for reservation in image.open}),
        closed=Recent.of(CLOSED_MAX, ((reservation.reservation_id, reservation) for reservation in image.closed)),
        charges=Recent.of(CHARGES_MAX, image.charges),
        balances=HashTrieMap(image.balances),
        reached=HashTrieSet(image.reached),
        forecasts=HashTrieMap(image.forecasts),
        invoices=HashTrieMap(image.invoices),
        guessed=HashTrieSet(image.guessed),
    )
