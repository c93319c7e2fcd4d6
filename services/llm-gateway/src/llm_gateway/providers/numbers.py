"""JSON whose integers may be larger than 64 bits, as amounts of some currencies and ids in tool arguments are. Pure.

orjson reads such a number as the nearest float, so that a tool would be given another one, and writes none at all.
"""

import json
import re
from typing import Any, Final

import orjson

_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")
"""Below, every integer fits. Also found within text, which costs some time and nothing else."""


def loads(data: bytes | str) -> Any:
    """As orjson's, with every integer exact. Raises ValueError."""
    text = data.encode() if isinstance(data, str) else data
    parsed = orjson.loads(text)  # strict: no NaN, no text that is no UTF-8
    return json.loads(text) if _LONG_NUMBER.search(text) else parsed


def dumps(value: object) -> bytes:
    """As orjson's, also of what it refuses to write."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
