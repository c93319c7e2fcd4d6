"""The price book: genai-prices, compiled once into integer rate cards. No network; new prices come with a release.

Rates are there USD for a million tokens, a thousand requests, an hour of audio and so on, and here pico-USD: for one
unit where that is a whole number, as it is for every curated price of tokens, else for as many units as there. So
nothing is lost but digits below a pico-USD for a million tokens.

A price depends on when (from a day on, or by the time of day) and on the terms of the call (batch, service tier, speed).
Terms that a model has no price for make it unpriced: its standard price could be too low.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from importlib.metadata import version
from typing import Final

from genai_prices import types as genai
from genai_prices.data import providers as genai_providers
from genai_prices.data_units import unit_data
from synod.cost_ledger.events import PriceSource, UnitRate

from cost_ledger.commands import Price
from cost_ledger.naming import compared_scopes_of
from cost_ledger.rates import UNPRICED, RateCard
from cost_ledger.terms import STANDARD, Terms, terms_of, text_of

PICO_PER_USD: Final = 10**12
PER_TOKEN_SUFFIX: Final = "_mtok"
"""Prices of tokens are named so; the unit is what stands before it."""
SOURCE: Final = "genai-prices"
VERSION_DIGITS: Final = 12
NEAR_MAX: Final = 3
FOUND_MAX: Final = 10_000
"""Answers of pattern matching kept; names are the callers', so there is no natural end to them."""


def _named_units() -> Iterable[tuple[str, tuple[str, int]]]:
    for usage_key, unit in unit_data.items():
        key = str(unit.get("price_key", usage_key))
        name = key.removesuffix(PER_TOKEN_SUFFIX) if key.endswith(PER_TOKEN_SUFFIX) else usage_key
        yield key, (name, int(unit["per"]))


_UNITS: Final = dict(_named_units())
"""For the name of a price: its unit, and of how many the price is."""


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
class Variant:
    """Rates that replace those of the same units when a call has these terms, others it may have besides."""

    terms: frozenset[tuple[str, str]]
    period: Period
    card: RateCard


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model with its cards, of which the last that is in force counts; the first when none is."""

    provider: str
    model: str
    cards: tuple[tuple[Period, RateCard], ...]
    variants: tuple[Variant, ...] = ()

    def card_at(self, at: datetime, terms: Terms = STANDARD) -> RateCard:
        card = next((card for period, card in reversed(self.cards) if period.holds_at(at)), self.cards[0][1])
        return self._varied(card, at, terms) if terms else card

    def knows(self, terms: Terms) -> bool:
        known = self.known_terms()
        return all(term in known for term in terms)

    def known_terms(self) -> frozenset[tuple[str, str]]:
        return frozenset(term for variant in self.variants for term in variant.terms)

    def days(self) -> Iterable[date]:
        """Those that prices begin on."""
        periods = [*(period for period, _ in self.cards), *(variant.period for variant in self.variants)]
        return (period.since for period in periods if period.since is not None)

    def _varied(self, card: RateCard, at: datetime, terms: Terms) -> RateCard:
        replaced: dict[str, RateCard] = {}
        for variant in self.variants:
            if variant.terms <= frozenset(terms) and variant.period.holds_at(at):
                for unit in {rate.unit for rate in variant.card}:
                    # As in genai-prices, the first variant that has a unit counts.
                    replaced.setdefault(unit, tuple(rate for rate in variant.card if rate.unit == unit))
        kept = (rate for rate in card if rate.unit not in replaced)
        return (*kept, *(rate for unit in sorted(replaced) for rate in replaced[unit]))


_Patterns = Mapping[str, Sequence[tuple[Callable[[str], bool], PricedModel]]]


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Immutable but for caches of what patterns matched and of names alike. Models are named "provider/model"."""

    source: str
    source_version: str
    sha256: str
    """Of the content."""
    models: Mapping[str, PricedModel]
    """By canonical name."""
    aliases: Mapping[str, PricedModel]
    """By every name that is known exactly, the canonical ones included."""
    patterns: _Patterns
    """For each provider what tells whether a name means a model."""
    apart: frozenset[str] = frozenset()
    """The aliases that are dated snapshots with other rates than their model's, or whose model the book does not have."""
    _names: tuple[str, ...] = ()
    _found: dict[str, PricedModel | None] = field(default_factory=dict)
    _near: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What reservations pin: where the book is from, and what proves its content."""
        return f"{self.source} {self.source_version} {self.sha256[:VERSION_DIGITS]}"

    def price(self, model: str, at: datetime, terms: Terms = STANDARD) -> Price:
        """The price in force at `at`; of source "unpriced", with what there is instead, if the book has none."""
        name = model.lower()
        if (exact := self.aliases.get(name)) is not None:
            return self._price_of(exact, "book", at, terms, is_apart=name in self.apart)
        if (similar := self._by_pattern(name)) is not None:
            return self._price_of(similar, "book_fuzzy", at, terms)
        return Price(UNPRICED, self.version, "unpriced", self.near(model))

    def names(self) -> Sequence[str]:
        return self._names

    def near(self, model: str) -> tuple[str, ...]:
        """Priced models with names like `model`."""
        name = model.lower()
        if name not in self._near:
            # Compares with every name, for milliseconds: a model with the tenant's own price is asked for at each call.
            if len(self._near) >= FOUND_MAX:
                self._near.clear()
            self._near[name] = tuple(difflib.get_close_matches(name, self.models, n=NEAR_MAX))
        return self._near[name]

    def _price_of(
        self, model: PricedModel, source: PriceSource, at: datetime, terms: Terms, *, is_apart: bool = False
    ) -> Price:
        if model.knows(terms):
            like = (f"{model.provider}/{model.model}",) if source == "book_fuzzy" else ()
            return Price(model.card_at(at, terms), self.version, source, like, is_apart)
        priced = tuple(sorted(text_of((term,)) for term in model.known_terms() if terms_of(dict([term]))))
        near = priced or (f"{model.provider}/{model.model}",)
        return Price(UNPRICED, self.version, "unpriced", near, is_apart)

    def _by_pattern(self, name: str) -> PricedModel | None:
        if name not in self._found:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            self._found[name] = _match(self.patterns, name)
        return self._found[name]


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
        source=SOURCE,
        source_version=version(SOURCE),
        sha256=digest(models),
        models=models,
        aliases=aliases,
        patterns={provider: tuple(found) for provider, found in patterns.items()},
        apart=frozenset(_apart(aliases, patterns)),
        _names=tuple(sorted(models)),
    )


def _match(patterns: _Patterns, name: str) -> PricedModel | None:
    provider, _, bare = name.partition("/")
    return next((model for matches, model in patterns.get(provider, ()) if matches(bare)), None)


def _apart(aliases: Mapping[str, PricedModel], patterns: _Patterns) -> Iterable[str]:
    for name, model in aliases.items():
        _, *families, _ = compared_scopes_of(name)
        for family in families:
            listed = aliases.get(family) or _match(patterns, family)
            # Compared for all times and terms, so that an own price does not hold on some days only.
            if listed is None or (listed.cards, listed.variants) != (model.cards, model.variants):
                yield name


def digest(models: Mapping[str, PricedModel]) -> str:
    """The SHA-256 of the content, so that a version that is pinned in an event can be proved later."""
    content = hashlib.sha256()
    for name, model in sorted(models.items()):
        content.update(f"{name} {model.cards!r} {_variants_text(model)}\n".encode())
    return content.hexdigest()


def _variants_text(model: PricedModel) -> str:
    # A set has no order of its own.
    return repr([(sorted(each.terms), each.period, each.card) for each in model.variants])


def _compiled(provider: str, info: genai.ModelInfo) -> PricedModel | None:
    """None for a model of which genai-prices has no price: absent is not free."""
    conditional = info.prices if isinstance(info.prices, list) else [genai.ConditionalPrice(prices=info.prices)]
    cards = tuple((_period(each.constraint), _card(each.prices)) for each in conditional)
    if not any(card for _, card in cards):
        return None
    variants = tuple(
        Variant(frozenset(each.when.items()), _period(each.constraint), _card(each.prices))
        for each in info.price_variants or ()
    )
    return PricedModel(provider, info.id, cards, variants)


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
    stored = ((key, value) for key, value in vars(prices).items() if value is not None and key in _UNITS)
    return tuple(rate for key, value in stored for rate in _rates(*_UNITS[key], value))


def _rates(unit: str, per: int, price: Decimal | genai.TieredPrices) -> Iterable[UnitRate]:
    if isinstance(price, Decimal):
        yield _rate(unit, per, price)
        return
    yield _rate(unit, per, price.base)
    for tier in price.tiers:
        yield _rate(unit, per, tier.price, tier.start)


def _rate(unit: str, per: int, usd: Decimal, above_input_tokens: int = 0) -> UnitRate:
    pico = int((usd * PICO_PER_USD).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    each, rest = divmod(pico, per)
    amount, of = (each, 1) if rest == 0 else (pico, per)
    return UnitRate(unit=unit, pico_usd=amount, above_input_tokens=above_input_tokens, per=of)


def _exact_names(match: genai.MatchLogic) -> Iterable[str]:
    match match:
        case genai.ClauseEquals():
            yield match.equals
        case genai.ClauseOr():
            for clause in match.or_:
                yield from _exact_names(clause)
