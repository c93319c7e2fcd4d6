"""Double entry: what a decision adds to accounts. The postings of an entry sum to zero in every unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from synod.common.values import Attribution
from synod.cost_ledger.events import Hold, Posting, QuotaPosting

from cost_ledger.book import Amounts, Book, account


@dataclass(frozen=True, slots=True)
class Entry:
    """Postings of money and of quotas, that belong together."""

    postings: tuple[Posting, ...] = ()
    quotas: tuple[QuotaPosting, ...] = ()

    def __add__(self, other: Entry) -> Entry:
        return Entry(self.postings + other.postings, self.quotas + other.quotas)


def moved(book: Book, holds: Iterable[Hold], source: str, target: str, amounts: Amounts) -> Entry:
    """Take the amounts from one kind of account of each hold to another, each in the unit of its budget."""
    return Entry(
        postings=tuple(posting for hold in holds for posting in _money(book, hold, source, target, amounts)),
        quotas=tuple(posting for hold in holds for posting in _quota(book, hold, source, target, amounts)),
    )


def owed(attribution: Attribution, model: str, amount: int) -> Entry:
    """What is owed to whoever was used, as an expense."""
    if amount == 0:
        return Entry()
    what = model or f"tool/{attribution.tool or 'other'}"
    return Entry(
        (
            Posting(account=f"expense:{what}", amount_nano_usd=amount),
            Posting(account=f"payable:{what.partition('/')[0]}", amount_nano_usd=-amount),
        )
    )


def _money(book: Book, hold: Hold, source: str, target: str, amounts: Amounts) -> Iterator[Posting]:
    if book.budget(hold.budget_id).unit == "nano_usd" and amounts.nano:
        yield Posting(account=account(target, hold), amount_nano_usd=amounts.nano)
        yield Posting(account=account(source, hold), amount_nano_usd=-amounts.nano)


def _quota(book: Book, hold: Hold, source: str, target: str, amounts: Amounts) -> Iterator[QuotaPosting]:
    unit = book.budget(hold.budget_id).unit
    if unit != "nano_usd" and (quantity := amounts.of(unit)):
        yield QuotaPosting(account=account(target, hold), unit=unit, quantity=quantity)
        yield QuotaPosting(account=account(source, hold), unit=unit, quantity=-quantity)
