"""JSON as its standard has it (RFC 8259), where Python's goes beyond: no NaN, no infinity, no halves of characters. Pure."""

import json

from pydantic import JsonValue


def loads(text: str | bytes) -> JsonValue:
    """Raises ValueError, and RecursionError for what is nested too deeply."""
    value: JsonValue = json.loads(text, parse_constant=_no_constant)
    return value


def canonical(value: JsonValue) -> str:
    """The value with sorted keys and without spaces. Raises ValueError or TypeError for what JSON cannot say."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text.encode()  # halves of characters are refused here
    return text


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")
