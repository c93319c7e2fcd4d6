"""What is wrong with a body, of all that a validation found: one field, its value, and what to do. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from servicekit.errors import InvalidArgument

Place = tuple[int | str, ...]

_WORDS: Final[Mapping[str, str]] = {
    "missing": "is missing; give it",
    "extra_forbidden": "is no field here; leave it out",
}


def mistake(found: Sequence[Mapping[str, Any]], data: object) -> InvalidArgument:
    """The first of the errors that pydantic found in `data`, named by the path a caller knows.

    Of a field that may be this or that, pydantic tells what is wrong with it as each: the one that got furthest is meant.
    """
    first: Place = found[0]["loc"]
    field_of_first = [error for error in found if error["loc"][:1] == first[:1]]
    meant = max(field_of_first, key=lambda error: len(error["loc"]))
    if meant["type"] == "json_invalid":
        return InvalidArgument("body", data, f"is not JSON: {meant['ctx']['error']}")
    value = None if meant["type"] == "missing" else meant.get("input")
    where = ".".join(map(str, _path(meant["loc"], data))) or "body"
    return InvalidArgument(where, value, _WORDS.get(meant["type"]) or _sentence(meant["msg"]))


def _path(place: Place, data: object) -> Place:
    """The place without the names of alternatives, which are no part of the data."""
    path: list[int | str] = []
    for index, step in enumerate(place):
        if isinstance(data, Mapping) and (step in data or index == len(place) - 1):
            data = data.get(step)
        elif isinstance(data, Sequence) and not isinstance(data, str | bytes) and isinstance(step, int):
            data = data[step]
        else:
            continue
        path.append(step)
    return tuple(path)


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:]
