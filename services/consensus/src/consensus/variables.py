"""Variables: a typed value that only a decided proposal changes; versions count the changes. Pure."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from synod.common.event import Event
from synod.consensus.events import VariableChange, VariableChangeRefused, VariableDeclared, VariableSet

from consensus.errors import InvalidVariable, VariableExists

NAME = re.compile(r"[a-z0-9_-]{1,64}")
CHOICES_MAX = 100


@dataclass(frozen=True, slots=True)
class Variable:
    """``declared`` is None before the first event. ``version`` is 1 for the first value."""

    declared: VariableDeclared | None = None
    value_json: str = ""
    version: int = 0
    proposal_id: str = ""


INITIAL = Variable()


def evolve(state: Variable, event: Event) -> Variable:
    """The variable after an event of its stream."""
    match event:
        case VariableDeclared():
            return Variable(event, event.value_json, 1)
        case VariableSet():
            return replace(
                state, value_json=event.value_json, version=event.variable_version, proposal_id=event.proposal_id
            )
        case _:
            return state


def declare(state: Variable, declared: VariableDeclared) -> Sequence[Event]:
    """Declares a variable. The same declaration again is no event; another one raises VariableExists."""
    if state.declared is not None:
        if state.declared != declared:
            raise VariableExists(declared.name)
        return ()
    _check(declared)
    return (declared,)


def change(state: Variable, wanted: VariableChange, proposal_id: str) -> Sequence[Event]:
    """What a decided proposal does to the variable: sets it once, or is refused with the problem on record."""
    if state.declared is None or state.proposal_id == proposal_id:
        return ()
    try:
        value_json = canonical(state.declared, wanted.value_json)
    except InvalidVariable as error:
        refused = VariableChangeRefused(
            name=wanted.variable, value_json=wanted.value_json, proposal_id=proposal_id, problem=error.message
        )
        return (refused,)
    changed = VariableSet(
        name=wanted.variable,
        value_json=value_json,
        previous_value_json=state.value_json,
        variable_version=state.version + 1,
        proposal_id=proposal_id,
    )
    return (changed,)


def canonical(declared: VariableDeclared, value_json: str) -> str:
    """The value as the variable keeps it; raises InvalidVariable naming what it takes."""
    try:
        value: object = json.loads(value_json)
    except ValueError:
        raise InvalidVariable(
            "value_json", value_json[:80], "is not JSON; write a number, or a text in quotes"
        ) from None
    if declared.type == "choice":
        return _choice(declared, value, value_json)
    return _number(declared, value, value_json)


def _choice(declared: VariableDeclared, value: object, shown: str) -> str:
    if value not in declared.choices:
        choices = ", ".join(json.dumps(choice) for choice in declared.choices)
        raise InvalidVariable(declared.name, shown[:80], f"is none of {choices}")
    return json.dumps(value)


def _number(declared: VariableDeclared, value: object, shown: str) -> str:
    assert declared.minimum is not None
    assert declared.maximum is not None
    # bool is an int in Python, and NaN compares false: both must not pass as numbers.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, int | float) or not is_number or not declared.minimum <= value <= declared.maximum:
        limits = f"must be a number from {declared.minimum} to {declared.maximum}"
        raise InvalidVariable(declared.name, shown[:80], limits)
    return json.dumps(float(value))


def _check(declared: VariableDeclared) -> None:
    if not NAME.fullmatch(declared.name):
        raise InvalidVariable("name", declared.name[:80], "must be 1 to 64 of a-z, 0-9, '-' and '_'")
    if declared.type == "choice":
        _check_choices(declared.choices)
    else:
        _check_range(declared.minimum, declared.maximum)
    canonical(declared, declared.value_json)


def _check_choices(choices: tuple[str, ...]) -> None:
    if not 1 <= len(choices) <= CHOICES_MAX or len(set(choices)) != len(choices):
        raise InvalidVariable("choices.options", ", ".join(choices)[:80], f"give 1 to {CHOICES_MAX}, each once")


def _check_range(minimum: float | None, maximum: float | None) -> None:
    finite = minimum is not None and maximum is not None and math.isfinite(minimum) and math.isfinite(maximum)
    if not finite or minimum is None or maximum is None or minimum > maximum:
        raise InvalidVariable("float_range", f"{minimum} to {maximum}", "needs a finite min that is not above max")
