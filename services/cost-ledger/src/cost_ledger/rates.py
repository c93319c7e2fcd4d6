"""What usage costs: a rate card and the arithmetic over it. Integers only; rounding is left to whoever makes a charge.

A card is a tuple of unit rates in pico-USD, for one token each or for `per` of a unit. Units are named "input", "output",
"cache_read", "cache_write", "cache_write_1h", "output_reasoning", "input_audio", "cache_audio_read", "web_searches",
"input_audio_seconds" and so on; a unit that a card does not name costs what the more general unit after it in
`units_of` costs. Context tiers are a cliff: above the threshold all tokens cost the tier's rate. "requests" is a fee for
the call itself.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import gcd
from typing import Final

from synod.common.money import PICO_PER_NANO, NanoUsd, PicoUsd
from synod.common.values import UsageLine
from synod.cost_ledger.events import UnitRate

RateCard = tuple[UnitRate, ...]

UNPRICED: Final[RateCard] = ()
"""The card of what has no price: everything costs 0."""

PPM: Final = 1_000_000

REQUESTS: Final = "requests"
"""The unit of a fee for a call."""

_MORE_GENERAL: Final = {"annotated_document_pages": "document_pages"}


def flat_card(input_: int, output: int, cache_read: int, cache_write: int) -> RateCard:
    """A card of four rates without tiers."""
    rates = {"input": input_, "output": output, "cache_read": cache_read, "cache_write": cache_write}
    return tuple(UnitRate(unit=unit, pico_usd=rate) for unit, rate in rates.items())


def scaled(card: RateCard, factor_ppm: int) -> RateCard:
    """The card with so many millionths of each rate. Exact: what is no whole number is a rate for more units."""
    return tuple(_scaled(rate, factor_ppm) for rate in card)


def _scaled(rate: UnitRate, factor_ppm: int) -> UnitRate:
    amount, per = rate.pico_usd * factor_ppm, rate.per * PPM
    shared = gcd(amount, per)
    return rate.model_copy(update={"pico_usd": amount // shared, "per": per // shared})


def cost_pico(card: RateCard, usage: Iterable[UsageLine]) -> PicoUsd:
    """The cost of a call's disjoint usage lines, its fee included; 0 without lines.

    Exact, but where a rate is for many units: there each line is rounded to pico-USD, half to even.
    """
    lines = tuple(usage)
    if not lines:
        return PicoUsd(0)
    input_tokens = sum(line.quantity for line in lines if line.direction == "input" and line.unit == "tokens")
    used = sum(_times(rate_for(card, units_of(line), input_tokens), line.quantity) for line in lines)
    return PicoUsd(used + _times(rate_for(card, (REQUESTS,), input_tokens), 1))


def bound_nano(
    card: RateCard, input_tokens_max: int, output_tokens_max: int, modalities: frozenset[str] = frozenset()
) -> NanoUsd:
    """What a charge for a request can come to at most: its `bound_pico`, rounded up.

    Each line of a charge may be rounded up by half a pico-USD, so this holds for usage of fewer than 1,000 lines.
    """
    return NanoUsd(-(-bound_pico(card, input_tokens_max, output_tokens_max, modalities) // PICO_PER_NANO))


def bound_pico(
    card: RateCard, input_tokens_max: int, output_tokens_max: int, modalities: frozenset[str] = frozenset()
) -> PicoUsd:
    """What a request can cost at most, every tier counted that its input may reach, and its fee; rounded up.

    Text only, unless `modalities` names more. A line can be billed as cached, written to a cache or as reasoning: the
    dearest counts. Tools that the provider runs, such as searches, are not bounded by tokens.
    """
    reachable = [rate for rate in card if rate.above_input_tokens < max(input_tokens_max, 1)]
    inputs = [rate for rate in reachable if _is_input(rate.unit, modalities)]
    outputs = [rate for rate in reachable if _is_output(rate.unit, modalities)]
    fee = _at_most(rate_for(card, (REQUESTS,), input_tokens_max), 1)
    return PicoUsd(_dearest(inputs, input_tokens_max) + _dearest(outputs, output_tokens_max) + fee)


def rate_for(card: RateCard, units: Iterable[str], input_tokens: int) -> UnitRate | None:
    """The rate of the first of `units` that the card names, at the tier that `input_tokens` reach."""
    for unit in units:
        reached = [rate for rate in card if rate.unit == unit and _reaches(rate, input_tokens)]
        if reached:
            return reached[0] if len(reached) == 1 else max(reached, key=lambda rate: rate.above_input_tokens)
    return None


def rate_of(card: RateCard, units: Iterable[str], input_tokens: int) -> int:
    """Pico-USD per token of the first of `units` that the card names, rounded half to even; else 0."""
    return _times(rate_for(card, units, input_tokens), 1)


def units_of(line: UsageLine) -> tuple[str, ...]:
    """The units a line may be priced by, the most exact first."""
    if line.unit != "tokens":
        return _other_units(line)
    if line.direction == "output":
        exact = "output_reasoning" if line.reasoning else "output"
        return (exact, "output") if line.modality == "text" else (f"output_{line.modality}", "output")
    text = _text_units(line)
    if line.modality == "text":
        return text
    cached = (f"cache_{line.modality}_{line.cache}",) if line.cache != "none" else ()
    return (*cached, f"input_{line.modality}", *text)


def _text_units(line: UsageLine) -> tuple[str, ...]:
    match line.cache:
        case "none":
            return ("input",)
        case "read":
            return ("cache_read", "input")
        case "write":
            kept = (f"cache_write_{line.ttl}",) if line.ttl else ()
            return (*kept, "cache_write", "input")


def _other_units(line: UsageLine) -> tuple[str, ...]:
    names = [line.unit] + ([_MORE_GENERAL[line.unit]] if line.unit in _MORE_GENERAL else [])
    return tuple(unit for name in names for unit in (f"{line.direction}_{name}", name))


@lru_cache(maxsize=1_024)
def _is_input(unit: str, modalities: frozenset[str]) -> bool:
    text = unit in ("input", "cache_read") or unit.startswith("cache_write")
    return text or any(unit == f"input_{name}" or unit.startswith(f"cache_{name}_") for name in modalities)


@lru_cache(maxsize=1_024)
def _is_output(unit: str, modalities: frozenset[str]) -> bool:
    return unit in {"output", "output_reasoning", *(f"output_{name}" for name in modalities)}


def _dearest(rates: Iterable[UnitRate], quantity: int) -> int:
    return max([_at_most(rate, quantity) for rate in rates], default=0)


def _at_most(rate: UnitRate | None, quantity: int) -> int:
    return 0 if rate is None else -(-rate.pico_usd * quantity // rate.per)


def _times(rate: UnitRate | None, quantity: int) -> int:
    return 0 if rate is None else _divided(rate.pico_usd * quantity, rate.per)


def _divided(amount: int, by: int) -> int:
    """Rounded half to even."""
    if by == 1:
        return amount
    quotient, remainder = divmod(amount, by)
    return quotient + (2 * remainder > by or (2 * remainder == by and quotient % 2 == 1))


def _reaches(rate: UnitRate, input_tokens: int) -> bool:
    return rate.above_input_tokens == 0 or input_tokens > rate.above_input_tokens
