"""`{{...}}` in a script: paths into tool results and the user's input, with small filters. Pure.

A path is `input`, `input.<key>...` when the input is JSON, `<step>` or `<step>.<key or index>...` for a step's
result, and `<step>#<n>` for the n-th of several parallel calls. Filters follow after `|`:

    round:<digits>          number rounded half to even; round:0 gives an integer
    json                    the value as JSON text
    yesno:<yes>,<no>        one of two words by truth; a failed result, "false", "no", "0" and "" are not true
    default:<text>          used when the path leads nowhere or to null; it never hides a failed result
    count                   length of a list, object or text
    join:<separator>        a list as text
    column:<key>            the values of one key over a list of objects, as a list
    table[:<column>,...]    a list of objects as a Markdown table

A template that cannot be resolved raises `TemplateError`; nothing is ever guessed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from provider_simulator.conversation import Json, JsonObject

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_STEP = re.compile(r"(\d+)(?:#(\d+))?")
_FALSE_WORDS = frozenset({"", "0", "false", "no"})


class TemplateError(Exception):
    """`template` does not resolve, for the given `reason`."""

    def __init__(self, template: str, reason: str) -> None:
        super().__init__(f"the template {{{{{template}}}}} cannot be resolved: {reason}")
        self.template = template
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Failed:
    """The value of a tool result that is an error: it renders as its message wherever it is used."""

    message: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What templates can see: the input text, and per step the values of its calls."""

    input: str
    steps: Mapping[int, tuple[Json | Failed, ...]]


class _Unresolved(Exception):
    """Carries the reason out of a path or filter to where the template's text is known."""


def render_text(template: str, scope: Scope) -> str:
    """Replace every template in a text by its value as text."""
    return _TEMPLATE.sub(lambda match: _as_text(_evaluate(match[1], scope)), template)


def render_value(value: Json, scope: Scope) -> Json:
    """Render the strings inside a JSON value; a string that is one whole template keeps the type of what it names."""
    if isinstance(value, str):
        whole = _TEMPLATE.fullmatch(value)
        return _plain(_evaluate(whole[1], scope)) if whole and value.count("{{") == 1 else render_text(value, scope)
    if isinstance(value, Mapping):
        return {key: render_value(item, scope) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [render_value(item, scope) for item in value]
    return value


def render_object(value: JsonObject, scope: Scope) -> JsonObject:
    return {key: render_value(item, scope) for key, item in value.items()}


def parse_result(text: str) -> Json:
    """A tool result as JSON when it is JSON, else as the text it is."""
    try:
        parsed: Json = json.loads(text)
    except ValueError:
        return text
    return parsed


def _evaluate(expression: str, scope: Scope) -> Json | Failed:
    path, *filters = (part.strip() for part in expression.split("|"))
    try:
        value = _resolve_or_default(path, filters, scope)
        for name_and_argument in filters:
            value = _apply(name_and_argument, value)
    except _Unresolved as unresolved:
        raise TemplateError(expression, str(unresolved)) from None
    return value


def _resolve_or_default(path: str, filters: Sequence[str], scope: Scope) -> Json | Failed:
    try:
        return _resolve(path, scope)
    except _Unresolved:
        if any(name.partition(":")[0] == "default" for name in filters):
            return None
        raise


def _resolve(path: str, scope: Scope) -> Json | Failed:
    root, *keys = path.split(".")
    value = parse_result(scope.input) if root == "input" and keys else _root(root, scope)
    for key in keys:
        if isinstance(value, Failed):
            return value
        value = _descend(value, key)
    return value


def _root(root: str, scope: Scope) -> Json | Failed:
    if root == "input":
        return scope.input
    step = _STEP.fullmatch(root)
    if not step:
        raise _Unresolved(f"{root!r} is neither 'input' nor a step number")
    number, call = int(step[1]), int(step[2] or 1)
    results = scope.steps.get(number, ())
    if not 1 <= call <= len(results):
        raise _Unresolved(f"step {number} has {len(results)} results so far")
    return results[call - 1]


def _descend(value: Json, key: str) -> Json:
    if isinstance(value, Mapping):
        if key not in value:
            raise _Unresolved(f"there is no key {key!r}; present: {', '.join(value) or 'none'}")
        return value[key]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not key.isdecimal() or int(key) >= len(value):
            raise _Unresolved(f"{key!r} is no index into a list of {len(value)}")
        return value[int(key)]
    raise _Unresolved(f"{key!r} is sought in a {type(value).__name__}")


def _apply(name_and_argument: str, value: Json | Failed) -> Json | Failed:
    name, _, argument = name_and_argument.partition(":")
    if name == "yesno":
        return _yesno(value, argument)
    if name not in _FILTERS:
        raise _Unresolved(f"there is no filter {name!r}; present: {', '.join((*_FILTERS, 'yesno'))}")
    return value if isinstance(value, Failed) else _FILTERS[name](value, argument)


def _yesno(value: Json | Failed, argument: str) -> str:
    yes, comma, no = argument.partition(",")
    if not comma:
        raise _Unresolved("yesno needs two words, as in yesno:approve,reject")
    return yes.strip() if _is_true(value) else no.strip()


def _is_true(value: Json | Failed) -> bool:
    if isinstance(value, Failed):
        return False
    return value.strip().lower() not in _FALSE_WORDS if isinstance(value, str) else bool(value)


def _round(value: Json, argument: str) -> Json:
    digits = argument.strip() or "0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unresolved(f"round needs a number, not {_as_text(value)[:80]!r}")
    if not digits.isdecimal():
        raise _Unresolved(f"round needs a number of digits, not {argument!r}")
    return round(value, int(digits)) if int(digits) else round(value)


def _json(value: Json, _argument: str) -> Json:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _default(value: Json, argument: str) -> Json:
    return argument if value is None else value


def _count(value: Json, _argument: str) -> Json:
    if isinstance(value, str | Mapping | Sequence):
        return len(value)
    raise _Unresolved(f"count needs a list, an object or a text, not {_as_text(value)!r}")


def _join(value: Json, argument: str) -> Json:
    return (argument or ", ").join(_as_text(item) for item in _items(value, "join"))


def _column(value: Json, argument: str) -> Json:
    return [_descend(row, argument.strip()) for row in _items(value, "column")]


def _table(value: Json, argument: str) -> Json:
    rows = [row for row in _items(value, "table") if isinstance(row, Mapping)]
    named = [name.strip() for name in argument.split(",") if argument]
    columns = named or list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Json) -> str:
    return "" if value is None else _as_text(value).replace("|", "\\|").replace("\n", " ")


def _items(value: Json, name: str) -> Sequence[Json]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise _Unresolved(f"{name} needs a list, not a {type(value).__name__}")


def _plain(value: Json | Failed) -> Json:
    return value.message if isinstance(value, Failed) else value


def _as_text(value: Json | Failed) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


_FILTERS: Mapping[str, Callable[[Json, str], Json]] = {
    "round": _round,
    "json": _json,
    "default": _default,
    "count": _count,
    "join": _join,
    "column": _column,
    "table": _table,
}
