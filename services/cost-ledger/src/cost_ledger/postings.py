"""Double entry: what a decision adds to accounts. The postings of an entry sum to zero in every unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from synod.common.values import Attribution
from synod.cost_ledger.events import Hold, Posting, QuotaPosting

from cost_ledger.book import Amounts, Book, account
from cost_ledger.naming import billed_as


@dataclass(frozen=True, slots=True)
class Entry:
    """Postings of money and of quotas, that belong together."""

    postings: tuple[Posting, ...] = ()
    quotas: tuple[QuotaPosting, ...] = ()

    def __add__(self, other: Entry) -> Entry:
        return Entry(self.postings + other.postings, self.quotas + other.quotas)


def moved(book: Book, holds: Iterable[Hold], source: str, target: str, amounts: Amounts) -> Entry:
    """Take the amounts from one kind of account of each hold to another, each in the unit of its budget."""
    money: list[Posting] = []
    quotas: list[QuotaPosting] = []
    for hold in holds:
        unit = book.budget(hold.budget_id).unit
        if not (amount := amounts.of(unit)):
            continue
        sides = ((account(target, hold), amount), (account(source, hold), -amount))
        if unit == "nano_usd":
            money += [Posting(account=name, amount_nano_usd=change) for name, change in sides]
        else:
            quotas += [QuotaPosting(account=name, unit=unit, quantity=change) for name, change in sides]
    return Entry(tuple(money), tuple(quotas))


def owed(attribution: Attribution, model: str, amount: int) -> Entry:
    """What is owed to whoever was used, as an expense."""
    if amount == 0:
        return Entry()
    what = billed_as(model, attribution)
    return Entry(
        (
            Posting(account=f"expense:{what}", amount_nano_usd=amount),
            Posting(account=payable_to(what.partition("/")[0]), amount_nano_usd=-amount),
        )
    )


def unexplained(provider: str, amount: int) -> Entry:
    """What is owed to a provider that nothing in the ledger explains."""
    return Entry(
        (
            Posting(account=f"adjustment:{provider.lower()}", amount_nano_usd=amount),
            Posting(account=payable_to(provider), amount_nano_usd=-amount),
        )
    )


def payable_to(provider: str) -> str:
    """The account of what is owed to a provider: one, in however many spellings it is called and billed."""
    return f"payable:{provider.lower()}"
