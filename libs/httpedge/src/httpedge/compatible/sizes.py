"""How much a request may hold, besides its bytes: each part of it costs time in which nobody else is answered. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic_core import from_json

from httpedge.mistakes import wrong

PARTS_MAX: Final = 10_000
"""Parts of content in a request, calls and results of tools among them."""
MESSAGES_MAX: Final = 10_000
"""Of messages or items, and so of any list that is a field of a request."""
TOOLS_MAX: Final = 256
"""This and the one before are llm-gateway's, which looks at requests of any size."""
VALUES_MAX: Final = 100_000
"""Values in a body, at every depth; so many are the messages, parts and tools above with what they usually hold."""
_HOLD_PARTS: Final = ("messages", "input", "system")
_PARTS: Final = ("content", "output", "tool_calls", "summary")


def check_size(body: bytes) -> None:
    """Raises InvalidArgument for a body that holds too much. What is no JSON is said by who reads it.

    There are no more values than commas and brackets, and counting those costs nothing: few bodies are looked at.
    """
    if len(body) < PARTS_MAX or body.count(b",") + body.count(b"[") + body.count(b"{") < PARTS_MAX:
        return
    try:
        data = from_json(body)
    except ValueError:
        return
    if isinstance(data, dict):
        _check_lists(data)
        _check_parts(data)
    _check_values(data)


def _check_lists(data: Mapping[str, object]) -> None:
    for field, found in data.items():
        most = TOOLS_MAX if field == "tools" else MESSAGES_MAX
        if isinstance(found, list) and len(found) > most:
            raise wrong(field, len(found), f"holds too many; give at most {most}")


def _check_parts(data: Mapping[str, object]) -> None:
    for field in _HOLD_PARTS:
        count = 0
        for more in _parts(data.get(field)):
            count += more
            if count > PARTS_MAX:
                raise wrong(field, count, f"holds too many parts of content; give at most {PARTS_MAX} in all")


def _parts(messages: object) -> Iterator[int]:
    """How many parts each list of content holds, in messages and in results of tools within them."""
    for message in messages if isinstance(messages, list) else ():
        for name in _PARTS:
            if isinstance(message, dict) and isinstance(content := message.get(name), list):
                yield len(content)
                yield from _parts(content)


def _check_values(data: object) -> None:
    left, count = [data], 0
    while left:
        held = left.pop()
        if not isinstance(held, dict | list):
            continue
        count += len(held)
        if count > VALUES_MAX:
            raise wrong("body", data, f"holds too much; send at most {VALUES_MAX} values")
        left.extend(held.values() if isinstance(held, dict) else held)
