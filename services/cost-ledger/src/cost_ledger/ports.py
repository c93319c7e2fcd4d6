"""What the ledger needs from outside, as narrow as it can be. Fakes are in testing.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cost_ledger.book import Budget, Reservation
from cost_ledger.commands import Price
from cost_ledger.terms import STANDARD, Terms


class Clock(Protocol):
    """The time; owned by the process, never fails."""

    def now(self) -> datetime:
        """The present as an aware UTC datetime."""
        ...


class Prices(Protocol):
    """A price book; needs no network, never fails."""

    @property
    def version(self) -> str:
        """Which book it is."""
        ...

    def price(self, model: str, at: datetime, terms: Terms = STANDARD) -> Price:
        """The price of "provider/model" in force at `at` for the terms; of source "unpriced" if there is none."""
        ...

    def names(self) -> Sequence[str]:
        """Every "provider/model" that has a price, ascending."""
        ...


@dataclass(frozen=True, slots=True)
class Due:
    """A hold whose time is over."""

    tenant: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How many holds of all tenants wait for their settlement, and how many of them are past their time."""

    held: int
    overdue: int


class History(Protocol):
    """The reservations view: every reservation ever, some moments behind the book. Raises psycopg.Error."""

    async def find(self, tenant: str, reservation_id: str) -> Reservation | None:
        """A reservation, without its rates."""
        ...

    async def due(self, at: datetime, limit: int) -> Sequence[Due]:
        """Holds of all tenants that expired by `at`, the oldest first."""
        ...


class Doubtful(Protocol):
    """The same view, for what is in suspense. Raises psycopg.Error."""

    async def in_suspense(
        self, tenant: str, prefix: str, since: datetime, until: datetime, after: str, limit: int
    ) -> Sequence[Reservation]:
        """Of what is billed by names that begin so (naming.billed_as), reserved in the time (half open), the oldest first.

        Those reserved at `since` only if their ids are above `after`: who read a part goes on where it ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget with the amounts of its current window, in its unit, and whose they are if each share has the limit."""

    budget: Budget
    window_start: str
    posted: int
    pending: int
    """Held for reservations, those in suspense included."""
    suspense: int
    share: str = ""

    @property
    def available(self) -> int:
        return self.budget.limit - self.posted - self.pending
