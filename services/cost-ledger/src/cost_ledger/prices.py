"""The price book: genai-prices, compiled once into integer rate cards. No network; new prices come with a release.

Rates are USD per million tokens there and pico-USD per token here, which is the same digits times 1,000,000 and exact
for every curated price; the few with float noise are rounded half to even.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from importlib.metadata import version
from typing import Final

from genai_prices import types as genai
from genai_prices.data import providers as genai_providers
from synod.common.money import PicoUsd
from synod.cost_ledger.events import UnitRate

from cost_ledger.commands import Price
from cost_ledger.rates import UNPRICED, RateCard

PER_TOKEN_SUFFIX: Final = "_mtok"
NEAR_MAX: Final = 3
FOUND_MAX: Final = 10_000
"""Answers of pattern matching kept; names are the callers', so there is no natural end to them."""


@dataclass(frozen=True, slots=True)
class Period:
    """When a card is in force: from a UTC day on, or each day between two UTC times; always if neither is set."""

    since: date | None = None
    daily: tuple[time, time] | None = None

    def holds_at(self, at: datetime) -> bool:
        if self.since is not None:
            return at.astimezone(UTC).date() >= self.since
        if self.daily is None:
            return True
        start, end = self.daily
        now = at.astimezone(UTC).timetz().replace(tzinfo=None)
        return start <= now < end if start <= end else now >= start or now < end


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model with its cards, of which the last that is in force counts; the first when none is."""

    provider: str
    model: str
    cards: tuple[tuple[Period, RateCard], ...]

    def card_at(self, at: datetime) -> RateCard:
        return next((card for period, card in reversed(self.cards) if period.holds_at(at)), self.cards[0][1])


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Immutable but for a cache of what patterns matched. Models are named "provider/model"."""

    version: str
    models: Mapping[str, PricedModel]
    """By canonical name."""
    aliases: Mapping[str, PricedModel]
    """By every name that is known exactly, the canonical ones included."""
    patterns: Mapping[str, tuple[tuple[Callable[[str], bool], PricedModel], ...]]
    """For each provider what tells whether a name means a model."""
    _names: tuple[str, ...] = ()
    _found: dict[str, PricedModel | None] = field(default_factory=dict)

    def price(self, model: str, at: datetime) -> Price:
        """The price in force at `at`; of source "unpriced", with similar names, if the book has none."""
        if (exact := self.aliases.get(model.lower())) is not None:
            return Price(exact.card_at(at), self.version, "book")
        if (similar := self._by_pattern(model.lower())) is not None:
            return Price(similar.card_at(at), self.version, "book_fuzzy")
        return Price(UNPRICED, self.version, "unpriced", self.near(model))

    def names(self) -> Sequence[str]:
        return self._names

    def near(self, model: str) -> tuple[str, ...]:
        """Priced models with names like `model`."""
        return tuple(difflib.get_close_matches(model.lower(), self.models, n=NEAR_MAX))

    def _by_pattern(self, name: str) -> PricedModel | None:
        if name not in self._found:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            self._found[name] = self._match(name)
        return self._found[name]

    def _match(self, name: str) -> PricedModel | None:
        provider, _, bare = name.partition("/")
        return next((model for matches, model in self.patterns.get(provider, ()) if matches(bare)), None)


@cache
def load_price_book() -> PriceBook:
    """The book that the installed genai-prices carries. The first call takes some tenths of a second."""
    entries = [
        (provider, info, _compiled(provider.id, info)) for provider in genai_providers for info in provider.models
    ]
    priced = [(provider, info, model) for provider, info, model in entries if model is not None]
    aliases: dict[str, PricedModel] = {}
    patterns: dict[str, list[tuple[Callable[[str], bool], PricedModel]]] = {}
    for provider, info, model in priced:
        for alias in (info.id, *_exact_names(info.match)):
            # As in genai-prices, the first model that matches a name has it.
            aliases.setdefault(f"{provider.id}/{alias}".lower(), model)
        patterns.setdefault(provider.id, []).append((info.match.is_match, model))
    models = {f"{model.provider}/{model.model}": model for _, _, model in priced}
    return PriceBook(
        version=f"genai-prices {version('genai-prices')}",
        models=models,
        aliases=aliases,
        patterns={provider: tuple(found) for provider, found in patterns.items()},
        _names=tuple(sorted(models)),
    )


def _compiled(provider: str, info: genai.ModelInfo) -> PricedModel | None:
    """None for a model without a price per token, such as one billed by the hour or page."""
    conditional = info.prices if isinstance(info.prices, list) else [genai.ConditionalPrice(prices=info.prices)]
    cards = tuple((_period(each.constraint), _card(each.prices)) for each in conditional)
    return PricedModel(provider, info.id, cards) if any(card for _, card in cards) else None


def _period(constraint: genai.StartDateConstraint | genai.TimeOfDateConstraint | None) -> Period:
    match constraint:
        case genai.StartDateConstraint():
            return Period(since=constraint.start_date)
        case genai.TimeOfDateConstraint():
            return Period(daily=(_utc(constraint.start_time), _utc(constraint.end_time)))
        case _:
            return Period()


def _utc(of_day: time) -> time:
    if of_day.tzinfo is None:
        return of_day
    return datetime.combine(date(1970, 1, 1), of_day).astimezone(UTC).time()


def _card(prices: genai.ModelPrice) -> RateCard:
    per_token = ((key, value) for key, value in vars(prices).items() if key.endswith(PER_TOKEN_SUFFIX))
    return tuple(
        rate
        for key, value in per_token
        if value is not None
        for rate in _rates(key.removesuffix(PER_TOKEN_SUFFIX), value)
    )


def _rates(unit: str, price: Decimal | genai.TieredPrices) -> Iterable[UnitRate]:
    if isinstance(price, Decimal):
        yield UnitRate(unit=unit, pico_usd=_pico(price))
        return
    yield UnitRate(unit=unit, pico_usd=_pico(price.base))
    for tier in price.tiers:
        yield UnitRate(unit=unit, pico_usd=_pico(tier.price), above_input_tokens=tier.start)


def _pico(usd_per_million: Decimal) -> PicoUsd:
    return PicoUsd(int((usd_per_million * 1_000_000).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)))


def _exact_names(match: genai.MatchLogic) -> Iterable[str]:
    match match:
        case genai.ClauseEquals():
            yield match.equals
        case genai.ClauseOr():
            for clause in match.or_:
                yield from _exact_names(clause)
