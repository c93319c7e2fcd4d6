"""What tokens cost: a rate card and the arithmetic over it. Integers only; rounding is left to whoever makes a charge.

A card is a tuple of unit rates in pico-USD per token. Units are named "input", "output", "cache_read", "cache_write",
"output_reasoning", "input_audio", "cache_audio_read" and so on; a unit that a card does not name costs what the more
general unit after it in `units_of` costs. Context tiers are a cliff: above the threshold all tokens
cost the tier's rate.
"""

from collections.abc import Iterable
from typing import Final

from synod.common.money import PicoUsd
from synod.common.values import UsageLine
from synod.cost_ledger.events import UnitRate

RateCard = tuple[UnitRate, ...]

UNPRICED: Final[RateCard] = ()
"""The card of what has no price: everything costs 0."""

# What a text request can be billed as. The bound must hold whichever of them the provider chooses.
_BOUND_INPUT: Final = frozenset({"input", "cache_write"})
_BOUND_OUTPUT: Final = frozenset({"output", "output_reasoning"})


def flat_card(input_: int, output: int, cache_read: int, cache_write: int) -> RateCard:
    """A card of four rates without tiers."""
    rates = {"input": input_, "output": output, "cache_read": cache_read, "cache_write": cache_write}
    return tuple(UnitRate(unit=unit, pico_usd=rate) for unit, rate in rates.items())


def cost_pico(card: RateCard, usage: Iterable[UsageLine]) -> PicoUsd:
    """The exact cost of disjoint usage lines."""
    lines = tuple(usage)
    input_tokens = sum(line.quantity for line in lines if line.direction == "input")
    return PicoUsd(sum(line.quantity * rate_of(card, units_of(line), input_tokens) for line in lines))


def bound_pico(card: RateCard, input_tokens_max: int, output_tokens_max: int) -> PicoUsd:
    """What a text request can cost at most, every tier counted that its input may reach."""
    reachable = [rate for rate in card if rate.above_input_tokens < max(input_tokens_max, 1)]
    dearest_input = max((rate.pico_usd for rate in reachable if rate.unit in _BOUND_INPUT), default=0)
    dearest_output = max((rate.pico_usd for rate in reachable if rate.unit in _BOUND_OUTPUT), default=0)
    return PicoUsd(input_tokens_max * dearest_input + output_tokens_max * dearest_output)


def rate_of(card: RateCard, units: Iterable[str], input_tokens: int) -> int:
    """Pico-USD per token of the first of `units` that the card names, at the tier that `input_tokens` reach; else 0."""
    for unit in units:
        reached = [rate for rate in card if rate.unit == unit and _reaches(rate, input_tokens)]
        if reached:
            return max(reached, key=lambda rate: rate.above_input_tokens).pico_usd
    return 0


def units_of(line: UsageLine) -> tuple[str, ...]:
    """The units a line may be priced by, the most exact first."""
    if line.direction == "output":
        exact = "output_reasoning" if line.reasoning else "output"
        return (exact, "output") if line.modality == "text" else (f"output_{line.modality}", "output")
    text = {"none": "input", "read": "cache_read", "write": "cache_write"}[line.cache]
    if line.modality == "text":
        return (text, "input")
    cached = (f"cache_{line.modality}_{line.cache}",) if line.cache != "none" else ()
    return (*cached, f"input_{line.modality}", text, "input")


def _reaches(rate: UnitRate, input_tokens: int) -> bool:
    return rate.above_input_tokens == 0 or input_tokens > rate.above_input_tokens
