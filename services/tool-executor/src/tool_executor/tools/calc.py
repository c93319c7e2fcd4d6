"""calc: evaluate one arithmetic expression, without eval: the syntax tree is walked node by node."""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from functools import reduce

from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

EXPRESSION_LENGTH_MAX = 2000
NODES_MAX = 500
INTEGER_BITS_MAX = 4096
FACTORIAL_MAX = 450
SIGNIFICANT_DIGITS = 50

Number = int | float | Decimal | bool
Value = Number | tuple[Number, ...]


class CalcArguments(Arguments):
    expression: str = Field(
        min_length=1,
        max_length=EXPRESSION_LENGTH_MAX,
        description="Such as '(12.5 + 3) * 4', 'round(sum([a, b]) / 2, 2)', 'x > 10 and x <= 20', '1e6 if x else 0'.",
    )
    variables: dict[str, int | float] = Field(default_factory=dict, description="Values of names in the expression.")
    exact: bool = Field(
        default=False,
        description="Decimal arithmetic with 50 digits (0.1 + 0.2 is 0.3) instead of binary floating point.",
    )


class CalcResult(Result):
    value: bool | int | float | str = Field(description="The result; text if it was computed exactly.")
    text: str = Field(description="The result with all its digits.")


def run(arguments: CalcArguments, _: Workspace) -> CalcResult:
    """ToolError INVALID_EXPRESSION, UNKNOWN_NAME, DIVISION_BY_ZERO, NUMBER_TOO_LARGE."""
    tree = _parsed(arguments.expression)
    with localcontext(Context(prec=SIGNIFICANT_DIGITS, traps=[InvalidOperation, DivisionByZero, Overflow])):
        evaluation = _Evaluation(arguments.expression, _names(arguments), arguments.exact)
        return _result(_guarded(lambda: evaluation.number(tree.body)))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    source: str
    names: Mapping[str, Number]
    exact: bool

    def number(self, node: ast.expr) -> Number:
        value = self.value(node)
        if isinstance(value, tuple):
            raise _invalid("a list stands where a number is needed; use sum, min, max or mean on it")
        return value

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name(id=name):
                return self._name(name)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return tuple(self.number(item) for item in items)
            case ast.UnaryOp(op=sign, operand=operand):
                return _bounded(_find(UNARY, sign)(self.number(operand)))
            case ast.BinOp(left=left, op=sign, right=right):
                return _bounded(_find(BINARY, sign)(self.number(left), self.number(right)))
            case ast.Compare():
                return self._comparison(node)
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self.number(part) for part in parts)
            case ast.BoolOp(values=parts):
                return any(self.number(part) for part in parts)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body) if self.number(test) else self.value(orelse)
            case ast.Call():
                return self._call(node)
            case _:
                raise _invalid(f"{type(node).__name__} is not arithmetic; use numbers, names, operators and functions")

    def _constant(self, node: ast.Constant) -> Number:
        if isinstance(node.value, bool):
            return node.value
        if not isinstance(node.value, int | float):
            raise _invalid(f"{node.value!r} is not a number")
        if not self.exact:
            return _bounded(node.value)
        written = ast.get_source_segment(self.source, node) or str(node.value)
        return Decimal(node.value) if isinstance(node.value, int) else Decimal(written.replace("_", ""))

    def _name(self, name: str) -> Number:
        if name in self.names:
            return self.names[name]
        known = ", ".join(sorted(self.names))
        raise ToolError(
            "UNKNOWN_NAME", f"expression: {name!r} has no value; set it in variables, or use one of: {known}"
        )

    def _comparison(self, node: ast.Compare) -> bool:
        values = [self.number(each) for each in (node.left, *node.comparators)]
        pairs = zip(node.ops, values, values[1:], strict=False)
        return all(_find(COMPARISONS, sign)(left, right) for sign, left, right in pairs)

    def _call(self, node: ast.Call) -> Number:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise _invalid("functions are called by their plain name, with values only")
        values = [self.value(argument) for argument in node.args]
        return _bounded(_applied(node.func.id, values, exact=self.exact))


def _parsed(expression: str) -> ast.Expression:
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise _invalid(f"{reason}; write it like '(a + b) * 2 ** 3' (^ is not power)") from error
    if sum(1 for _ in ast.walk(tree)) > NODES_MAX:
        raise _invalid(f"it has more than {NODES_MAX} parts; split it")
    return tree


def _names(arguments: CalcArguments) -> dict[str, Number]:
    given = CONSTANTS | arguments.variables
    if arguments.exact:
        return {name: Decimal(str(value)) for name, value in given.items()}
    return dict(given)


def _guarded(evaluate: Callable[[], Number]) -> Number:
    try:
        return evaluate()
    except (ZeroDivisionError, DivisionByZero) as error:
        raise ToolError("DIVISION_BY_ZERO", "expression: divides by zero; check the divisor first") from error
    except (OverflowError, Overflow) as error:
        raise _too_large() from error
    except InvalidOperation as error:
        raise _invalid("an operation has no defined result for its values") from error
    except (ValueError, TypeError) as error:
        raise _invalid(str(error)) from error


def _result(value: Number) -> CalcResult:
    if isinstance(value, Decimal):
        text = f"{value.normalize():f}" if abs(value.adjusted()) <= SIGNIFICANT_DIGITS else str(value)
        return CalcResult(value=text, text=text)
    return CalcResult(value=value, text=str(value).lower() if isinstance(value, bool) else repr(value))


def _bounded(value: Number) -> Number:
    if isinstance(value, complex):
        raise _invalid("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS_MAX:
        raise _too_large()
    if isinstance(value, float) and not math.isfinite(value):
        raise _too_large()
    return value


def _dividing(operation: Callable[[Number, Number], Number]) -> Callable[[Number, Number], Number]:
    """Decimal has several names for a division by zero; here it has one."""

    def divide(left: Number, right: Number) -> Number:
        if not right:
            raise ZeroDivisionError
        return operation(left, right)

    return divide


def _power(base: Number, exponent: Number) -> Number:
    """Refuses before computing: 9 ** 9 ** 9 would take all time and memory there is."""
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and abs(base).bit_length() * abs(exponent) > INTEGER_BITS_MAX
    ):
        raise _too_large()
    power: Callable[[Number, Number], Number] = operator.pow
    return power(base, exponent)


def _factorial(value: Number) -> int:
    if value != int(value) or not 0 <= value <= FACTORIAL_MAX:
        raise _invalid(f"factorial takes a whole number from 0 to {FACTORIAL_MAX}")
    return math.factorial(int(value))


def _round(value: Number, digits: Number = 0) -> Number:
    """Half to even, as Python and IEEE 754 do."""
    rounded: Callable[..., Number] = round
    return rounded(value, int(digits)) if digits else rounded(value)


def _applied(name: str, values: Sequence[Value], *, exact: bool) -> Number:
    table = FUNCTIONS | EXACT_FUNCTIONS if exact else FUNCTIONS | FLOAT_FUNCTIONS
    if name in OF_MANY:
        return OF_MANY[name](_flat(values))
    if name not in table:
        known = ", ".join(sorted({*OF_MANY, *table}))
        raise ToolError("UNKNOWN_NAME", f"expression: there is no function {name!r} here; use one of: {known}")
    if any(isinstance(value, tuple) for value in values):
        raise _invalid(f"{name} takes numbers, not a list")
    return table[name](*values)


def _flat(values: Sequence[Value]) -> list[Number]:
    numbers = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    if not numbers:
        raise _invalid("sum, min, max, mean and median need at least one number")
    return numbers


def _sum(numbers: list[Number]) -> Number:
    """Floats are summed without accumulating error; integers and decimals stay what they are."""
    if any(isinstance(number, float) for number in numbers):
        return math.fsum(numbers)
    return reduce(BINARY[ast.Add], numbers)


def _mean(numbers: list[Number]) -> Number:
    return BINARY[ast.Div](_sum(numbers), Decimal(len(numbers)) if isinstance(numbers[0], Decimal) else len(numbers))


def _median(numbers: list[Number]) -> Number:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else _mean(ordered[middle - 1 : middle + 1])


def _find(table: "Mapping[type[ast.AST], Callable[..., Number]]", sign: ast.AST) -> "Callable[..., Number]":
    try:
        return table[type(sign)]
    except KeyError as error:
        raise _invalid(
            f"the operator {type(sign).__name__} is not supported; use + - * / // % ** and comparisons"
        ) from error


def _invalid(problem: str) -> ToolError:
    return ToolError("INVALID_EXPRESSION", f"expression: {problem}")


def _too_large() -> ToolError:
    return ToolError(
        "NUMBER_TOO_LARGE", f"expression: a number grows over {INTEGER_BITS_MAX} bits or 1.8e308; scale it"
    )


CONSTANTS: dict[str, int | float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
UNARY: dict[type[ast.AST], Callable[..., Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
BINARY: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _dividing(operator.truediv),
    ast.FloorDiv: _dividing(operator.floordiv),
    ast.Mod: _dividing(operator.mod),
    ast.Pow: _power,
}
COMPARISONS: dict[type[ast.AST], Callable[..., bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
OF_MANY: dict[str, Callable[[list[Number]], Number]] = {
    "sum": _sum,
    "min": min,
    "max": max,
    "mean": _mean,
    "median": _median,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "round": _round,
    "floor": math.floor,
    "ceil": math.ceil,
    "factorial": _factorial,
    "pow": _power,
}
FLOAT_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "atan2": math.atan2,
    "degrees": math.degrees,
    "radians": math.radians,
    "hypot": math.hypot,
    "gcd": math.gcd,
    "lcm": math.lcm,
}
EXACT_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "sqrt": Decimal.sqrt,
    "exp": Decimal.exp,
    "log": Decimal.ln,
    "log10": Decimal.log10,
}

TOOL = PureTool(
    name="calc",
    version="1.0.0",
    title="Calculator",
    description=(
        "Evaluates one arithmetic expression: + - * / // % **, comparisons, and/or/not, 'a if c else b', lists and the "
        "functions sum, min, max, mean, median, abs, round, floor, ceil, sqrt, exp, log, log2, log10, factorial, pow, "
        "trigonometry. Set exact for money."
    ),
    arguments=CalcArguments,
    result=CalcResult,
    effect=Effect.PURE,
    run=run,
    self_tests=(
        SelfTest(arguments={"expression": "(12.5 + 3) * 4"}, expected={"value": 62.0, "text": "62.0"}),
        SelfTest(arguments={"expression": "0.1 + 0.2", "exact": True}, expected={"value": "0.3", "text": "0.3"}),
        SelfTest(arguments={"expression": "2 ** 64"}, expected={"text": "18446744073709551616"}),
        SelfTest(arguments={"expression": "1 < x <= 3", "variables": {"x": 3}}, expected={"value": True}),
        SelfTest(arguments={"expression": "round(sum([1.1, 2.2, 3.3]), 2)"}, expected={"value": 6.6}),
        SelfTest(arguments={"expression": "1 / 0"}, error="DIVISION_BY_ZERO"),
        SelfTest(arguments={"expression": "9 ** 9 ** 9"}, error="NUMBER_TOO_LARGE"),
        SelfTest(arguments={"expression": "__import__('os').system('id')"}, error="INVALID_EXPRESSION"),
    ),
)
