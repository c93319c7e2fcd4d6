"""Fakes of the ports, for the tests of whatever stands on the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cost_ledger.book import Reservation
from cost_ledger.commands import Price
from cost_ledger.ports import Due
from cost_ledger.rates import UNPRICED, RateCard
from cost_ledger.terms import STANDARD, Terms


@dataclass(slots=True)
class FakePrices:
    """Prices from a dictionary of "provider/model", for the standard terms."""

    cards: dict[str, RateCard] = field(default_factory=dict)
    version: str = "fake 1"

    def price(self, model: str, at: datetime, terms: Terms = STANDARD) -> Price:
        if model in self.cards and not terms:
            return Price(self.cards[model], self.version, "book")
        return Price(UNPRICED, self.version, "unpriced", tuple(sorted(self.cards))[:3])

    def names(self) -> Sequence[str]:
        return sorted(self.cards)


@dataclass(slots=True)
class FakeHistory:
    """A view that says what it is told."""

    reservations: dict[tuple[str, str], Reservation] = field(default_factory=dict)

    async def find(self, tenant: str, reservation_id: str) -> Reservation | None:
        return self.reservations.get((tenant, reservation_id))

    async def due(self, at: datetime, limit: int) -> Sequence[Due]:
        held = [
            (reservation.expires_at, tenant, reservation_id)
            for (tenant, reservation_id), reservation in self.reservations.items()
            if reservation.state == "held" and reservation.expires_at <= at
        ]
        return [Due(tenant, reservation_id) for _, tenant, reservation_id in sorted(held)[:limit]]
