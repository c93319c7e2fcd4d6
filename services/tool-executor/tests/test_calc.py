from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_executor.errors import ToolError
from tool_executor.tools.calc import CalcArguments, run
from tool_executor.tools.workspace import Workspace

NO_FILES = Workspace(Path("/nonexistent"), file_bytes_max=0, total_bytes_max=0)


def calc(expression: str, *, exact: bool = False, **variables: int | float) -> bool | int | float | str:
    return run(CalcArguments(expression=expression, variables=variables, exact=exact), NO_FILES).value


def kind_of_failure(expression: str, *, exact: bool = False) -> str:
    with pytest.raises(ToolError) as caught:
        calc(expression, exact=exact)
    return caught.value.kind


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("-2 ** 2", -4),
        ("7 // 2 + 7 % 2", 4),
        ("sqrt(16) + log10(1000)", 7.0),
        ("max(1, [2, 3], 2)", 3),
        ("mean([1, 2, 3, 4])", 2.5),
        ("median([3, 1, 2])", 2),
        ("round(2.675, 2)", 2.67),
        ("round(2.5)", 2),
        ("factorial(20)", 2432902008176640000),
        ("1 < 2 < 3 and not 4 > 5", True),
        ("1 == 2 or 3 != 3", False),
        ("10 if 1 > 2 else 20", 20),
        ("sum([0.1] * 0 + [0.1]) if 0 else 1", 1),
        ("1_000_000 / 4", 250000.0),
        ("hypot(3, 4) + degrees(pi)", 185.0),
    ],
)
def test_computes(expression: str, value: object) -> None:
    assert calc(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", "0.3"),
        ("1 / 3 * 3", "0.99999999999999999999999999999999999999999999999999"),
        ("1000000 * 0.0000025", "2.5"),
        ("round(2.675, 2)", "2.68"),
        ("mean([0.1, 0.2])", "0.15"),
        ("sqrt(2) ** 2 > 1.99", True),
        ("12345678901234567890.12 * 100", "1234567890123456789012"),
    ],
)
def test_computes_exactly(expression: str, value: object) -> None:
    assert calc(expression, exact=True) == value


def test_uses_variables() -> None:
    assert calc("price * tokens / 1e6", price=2.5, tokens=400_000) == 1.0


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("1 / 0", "DIVISION_BY_ZERO"),
        ("1 % 0", "DIVISION_BY_ZERO"),
        ("9 ** 9 ** 9 ** 9", "NUMBER_TOO_LARGE"),
        ("factorial(100000)", "INVALID_EXPRESSION"),
        ("unknown + 1", "UNKNOWN_NAME"),
        ("open('x')", "INVALID_EXPRESSION"),
        ("().__class__", "INVALID_EXPRESSION"),
        ("[x for x in [1]]", "INVALID_EXPRESSION"),
        ("lambda: 1", "INVALID_EXPRESSION"),
        ("(a := 1)", "INVALID_EXPRESSION"),
        ("'text'", "INVALID_EXPRESSION"),
        ("f'{1}'", "INVALID_EXPRESSION"),
        ("1 +", "INVALID_EXPRESSION"),
        ("1 << 1000", "INVALID_EXPRESSION"),
        ("2 ^ 3", "INVALID_EXPRESSION"),
        ("[1, 2]", "INVALID_EXPRESSION"),
        ("sqrt(-1)", "INVALID_EXPRESSION"),
        ("(-8) ** 0.5", "INVALID_EXPRESSION"),
        ("abs(1, 2)", "INVALID_EXPRESSION"),
        ("sum([])", "INVALID_EXPRESSION"),
        ("(" * 250 + "1" + ")" * 250, "INVALID_EXPRESSION"),
        ("-" * 1500 + "1", "INVALID_EXPRESSION"),
        ("+".join(["1"] * 600), "INVALID_EXPRESSION"),
    ],
)
def test_refuses(expression: str, kind: str, exact: bool) -> None:
    assert kind_of_failure(expression, exact=exact) == kind


def test_refuses_a_result_that_is_no_finite_number() -> None:
    assert kind_of_failure("1e308 * 10") == "NUMBER_TOO_LARGE"
    assert kind_of_failure("10 ** 10 ** 10", exact=True) == "NUMBER_TOO_LARGE"


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from("+-*"))
def test_agrees_with_python_on_integers(left: int, right: int, sign: str) -> None:
    assert calc(f"({left}) {sign} ({right})") == {"+": left + right, "-": left - right, "*": left * right}[sign]


@given(st.text(max_size=60))
def test_answers_or_refuses_any_text(expression: str) -> None:
    if not expression:
        return
    try:
        answer = calc(expression)
    except ToolError as refused:
        assert refused.kind.isupper()
    else:
        assert isinstance(answer, bool | int | float | str)
