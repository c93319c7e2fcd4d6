"""Given events, when command, then events."""

import pytest
from consensus.errors import InvalidVariable, VariableExists
from consensus.variables import INITIAL, Variable, change, declare, evolve
from synod.consensus.events import VariableChange, VariableChangeRefused, VariableDeclared, VariableSet

RATE = VariableDeclared(name="rate", type="float", minimum=0.0, maximum=1.0, value_json="0.5")
MODE = VariableDeclared(name="mode", type="choice", choices=("safe", "fast"), value_json='"safe"')


def declared(variable: VariableDeclared) -> Variable:
    (event,) = declare(INITIAL, variable)
    return evolve(INITIAL, event)


def test_decision_sets_the_value_and_counts_the_version() -> None:
    (event,) = change(declared(RATE), VariableChange(variable="rate", value_json="0.25"), "prp_1")
    assert event == VariableSet(
        name="rate", value_json="0.25", previous_value_json="0.5", variable_version=2, proposal_id="prp_1"
    )


def test_same_decision_twice_sets_once() -> None:
    wanted = VariableChange(variable="mode", value_json='"fast"')
    (event,) = change(declared(MODE), wanted, "prp_1")
    assert change(evolve(declared(MODE), event), wanted, "prp_1") == ()


@pytest.mark.parametrize("value", ["2", "-0.1", '"0.5"', "true", "NaN", "nonsense", "null"])
def test_value_that_does_not_fit_is_refused_on_record(value: str) -> None:
    (event,) = change(declared(RATE), VariableChange(variable="rate", value_json=value), "prp_1")
    assert isinstance(event, VariableChangeRefused)
    assert value[:5] in event.problem


def test_choice_names_what_it_takes() -> None:
    (event,) = change(declared(MODE), VariableChange(variable="mode", value_json='"wild"'), "prp_1")
    assert isinstance(event, VariableChangeRefused)
    assert 'is none of "safe", "fast"' in event.problem


def test_declaring_again_is_no_event_and_otherwise_is_refused() -> None:
    assert declare(declared(RATE), RATE) == ()
    with pytest.raises(VariableExists):
        declare(declared(RATE), RATE.model_copy(update={"maximum": 2.0}))


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        (RATE.model_copy(update={"name": "Rate!"}), "name"),
        (RATE.model_copy(update={"minimum": 2.0}), "float_range"),
        (RATE.model_copy(update={"maximum": float("inf")}), "float_range"),
        (RATE.model_copy(update={"value_json": "7"}), "rate"),
        (MODE.model_copy(update={"choices": ()}), "choices.options"),
        (MODE.model_copy(update={"choices": ("x", "x")}), "choices.options"),
    ],
)
def test_senseless_declaration_names_its_field(variable: VariableDeclared, field: str) -> None:
    with pytest.raises(InvalidVariable) as caught:
        declare(INITIAL, variable)
    assert caught.value.field == field
