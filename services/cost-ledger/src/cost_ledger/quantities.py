"""What a call counts as for quotas: itself, its tokens, and the time of tools."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from synod.common.values import UsageLine
from synod.cost_ledger.events import Quantity, Unit

_CALL: Final[dict[Unit, int]] = {"calls": 1}


def bounded(given: Iterable[Quantity], input_tokens_max: int, output_tokens_max: int) -> tuple[Quantity, ...]:
    """The most that a call may use: one call, its tokens, and what is given."""
    tokens = _token_units(input_tokens_max, output_tokens_max)
    return _listed(_CALL | tokens | _by_unit(given))


def used(given: Iterable[Quantity], usage: Iterable[UsageLine], reserved: Iterable[Quantity]) -> tuple[Quantity, ...]:
    """What was used: as given, or counted in the usage, or else as reserved. Absent is not zero."""
    lines = [line for line in usage if line.unit == "tokens"]
    counted = _token_units(_tokens(lines, "input"), _tokens(lines, "output")) if lines else {}
    return _listed(_CALL | _by_unit(reserved) | counted | _by_unit(given))


def _token_units(input_tokens: int, output_tokens: int) -> dict[Unit, int]:
    return {"tokens": input_tokens + output_tokens, "input_tokens": input_tokens, "output_tokens": output_tokens}


def _tokens(lines: Iterable[UsageLine], direction: str) -> int:
    return sum([line.quantity for line in lines if line.direction == direction])


def _by_unit(quantities: Iterable[Quantity]) -> dict[Unit, int]:
    return {each.unit: each.quantity for each in quantities}


def _listed(by_unit: Mapping[Unit, int]) -> tuple[Quantity, ...]:
    return tuple([_quantity(unit, quantity) for unit, quantity in sorted(by_unit.items()) if quantity])


@lru_cache(maxsize=4_096)
def _quantity(unit: Unit, quantity: int) -> Quantity:
    # One call, and the bounds that agents ask for, come again and again.
    return Quantity(unit=unit, quantity=quantity)
