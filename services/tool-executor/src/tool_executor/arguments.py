"""What a call is given: one JSON object, in one canonical form, checked against the tool's schema."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from jsonschema import Draft202012Validator
from pydantic import JsonValue

from tool_executor import plain_json
from tool_executor.errors import ArgumentsInvalid, FieldInvalid, Problem

BYTES_MAX = 256 * 1024
DEPTH_MAX = 32
PROBLEMS_MAX = 12
PROBLEM_CHARACTERS_MAX = 200
FIELD = "arguments_json"


@dataclass(frozen=True, slots=True)
class Arguments:
    """The object, its canonical text (sorted keys, no spaces) and the hexadecimal SHA-256 of that text."""

    value: dict[str, JsonValue]
    text: str
    sha256: str


def parse(text: str) -> Arguments:
    """Raises FieldInvalid unless ``text`` is a JSON object within the limits; empty text is the empty object."""
    _expect_size(text)
    try:
        value = plain_json.loads(text or "{}")
        canonical = plain_json.canonical(value)
    except (ValueError, RecursionError) as error:
        raise _invalid(text, f"is no JSON that can be stored ({str(error)[:120]}); give a JSON object") from error
    if not isinstance(value, dict):
        raise _invalid(text, 'must be a JSON object, such as {"name": "value"}')
    if _depth(value) > DEPTH_MAX:
        raise _invalid(text, f"is nested more than {DEPTH_MAX} deep; flatten it")
    _expect_size(canonical)
    return Arguments(value, canonical, hashlib.sha256(canonical.encode()).hexdigest())


def check(tool: str, schema: dict[str, JsonValue], arguments: Arguments) -> None:
    """Raises ArgumentsInvalid with every problem (JSON Schema 2020-12), in order of their paths."""
    found = sorted(_problems(schema, arguments), key=lambda problem: problem.path)
    if len(found) > PROBLEMS_MAX:
        found[PROBLEMS_MAX - 1 :] = [Problem("$", f"and {len(found) - PROBLEMS_MAX + 1} problems more")]
    if found:
        raise ArgumentsInvalid(tool, tuple(found))


def json_value(field: str, text: str) -> str:
    """``text`` if it is a JSON value within the limits. Raises FieldInvalid."""
    if len(text.encode()) > BYTES_MAX:
        raise FieldInvalid(field, text[:40], f"is larger than {BYTES_MAX} bytes; give less")
    try:
        plain_json.canonical(plain_json.loads(text))
    except (ValueError, RecursionError) as error:
        raise FieldInvalid(field, text[:40], f"is not JSON ({str(error)[:120]})") from error
    return text


def _problems(schema: dict[str, JsonValue], arguments: Arguments) -> Iterator[Problem]:
    for error in Draft202012Validator(schema).iter_errors(arguments.value):
        yield Problem(error.json_path, _shortened(error.message))


def _shortened(text: str) -> str:
    """With its beginning and its end: the value stands in front, what is wrong with it behind."""
    if len(text) <= PROBLEM_CHARACTERS_MAX:
        return text
    half = PROBLEM_CHARACTERS_MAX // 2
    return f"{text[:half]} ... {text[-half:]}"


def _expect_size(text: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > BYTES_MAX:
        raise _invalid(text, f"has {size} bytes, the limit is {BYTES_MAX}; put large content into a file")


def _invalid(text: str, problem: str) -> FieldInvalid:
    return FieldInvalid(FIELD, text[:60], problem)


def _depth(value: JsonValue) -> int:
    """Counted without recursion, because the value may have been made to break one."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for each in level for child in _children(each)]
    return depth


def _children(value: JsonValue) -> list[JsonValue]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []
