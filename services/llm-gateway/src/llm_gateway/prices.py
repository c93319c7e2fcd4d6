"""What a model costs at most, to choose by. What is charged is cost-ledger's business alone.

From genai-prices' data, which lies in its wheel: the rates of today, of a model with tiers the dearest one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Final

from genai_prices.data import providers as price_book
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, StartDateConstraint, TieredPrices

PICO_PER_MILLIONTH: Final = 1_000_000
"""A price in dollars for a million tokens is this many pico-dollars for one."""


@dataclass(frozen=True, slots=True)
class Price:
    """Pico-USD for a token."""

    input_pico: int
    output_pico: int

    def cost_nano(self, input_tokens: int, output_tokens: int) -> int:
        """Rounded up: it is used as a bound."""
        return -(-(input_tokens * self.input_pico + output_tokens * self.output_pico) // 1000)


@cache
def book_price(provider: str, model: str, today: date) -> Price | None:
    """None for what the book does not have, or has no price by the token for."""
    found = next((entry for entry in price_book if entry.id == provider), None)
    info = next((one for one in found.models if one.id == model), None) if found else None
    rates = _rates(info, today) if info else None
    if rates is None or rates.input_mtok is None or rates.output_mtok is None:
        return None
    return Price(_pico(rates.input_mtok), _pico(rates.output_mtok))


def _rates(info: ModelInfo, today: date) -> ModelPrice | None:
    if isinstance(info.prices, ModelPrice):
        return info.prices
    return next(_in_force(info.prices, today), None)


def _in_force(prices: list[ConditionalPrice], today: date) -> Iterator[ModelPrice]:
    """The last one that applies comes first; what holds at some hours only is left out."""
    for conditional in reversed(prices):
        start = conditional.constraint
        if start is None or (isinstance(start, StartDateConstraint) and start.start_date <= today):
            yield conditional.prices


def _pico(rate: Decimal | TieredPrices) -> int:
    dollars = max([rate.base, *(tier.price for tier in rate.tiers)]) if isinstance(rate, TieredPrices) else rate
    return int(dollars * PICO_PER_MILLIONTH)
