"""JSON whose integers may be larger than 64 bits, as amounts of some currencies and ids in tool arguments are. Pure.

orjson reads such a number as the nearest float, so that a tool would be given another one, and writes none at all.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")
"""Below, every integer fits. Also found within text, which costs some time and nothing else."""
_LEAST: Final = -(2**63)
_MOST: Final = 2**64 - 1
"""What orjson writes."""


def loads(data: bytes | str) -> Any:
    """As orjson's, with every integer exact. Raises ValueError."""
    text = data.encode() if isinstance(data, str) else data
    parsed = orjson.loads(text)  # strict: no NaN, no text that is no UTF-8
    if not _LONG_NUMBER.search(text):
        return parsed
    try:
        return json.loads(text)
    except RecursionError:  # orjson goes deeper
        raise ValueError("is nested too deeply") from None


def dumps(value: object) -> bytes:
    """As orjson's, fragments included, also of integers that it refuses to write. Raises TypeError."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_written(value))


def _written(value: object) -> object:
    """The same with every long integer written already. Once for each value, however deep it stands."""
    match value:
        case int() if not _LEAST <= value <= _MOST:
            return orjson.Fragment(str(value).encode())
        case Mapping():
            return {name: _written(one) for name, one in value.items()}
        case list() | tuple():
            return [_written(one) for one in value]
        case _:
            return value
