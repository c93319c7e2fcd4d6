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


def loads(data: bytes | str) -> Any:
    """As orjson's, with every integer exact. Raises ValueError."""
    text = data.encode() if isinstance(data, str) else data
    parsed = orjson.loads(text)  # strict: no NaN, no text that is no UTF-8
    return json.loads(text) if _LONG_NUMBER.search(text) else parsed


def dumps(value: object) -> bytes:
    """As orjson's, fragments included, also of integers that it refuses to write. Raises TypeError."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        return _by_parts(value, error)


def _by_parts(value: object, refused: TypeError) -> bytes:
    """What orjson refused as a whole: only what holds such an integer is written here."""
    match value:
        case int():
            return str(value).encode()
        case Mapping():
            return b"{%b}" % b",".join([orjson.dumps(str(name)) + b":" + dumps(one) for name, one in value.items()])
        case list() | tuple():
            return b"[%b]" % b",".join(map(dumps, value))
        case _:
            raise refused
