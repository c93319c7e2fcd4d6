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
    if meant["type"] == "model_attributes_type" and isinstance(sent := meant.get("input"), bytes):
        return InvalidArgument("body", sent, "is JSON only with the header Content-Type: application/json; send it")
    value = None if meant["type"] == "missing" else meant.get("input")
    place = _path(meant["loc"], data, missing=meant["type"] == "missing")
    where = ".".join(map(str, place)) or "body"
    return InvalidArgument(where, value, _WORDS.get(meant["type"]) or _sentence(meant["msg"]))


def _path(place: Place, data: object, *, missing: bool) -> Place:
    """The place without the names of alternatives, which are no part of the data, as only a `missing` field is not either."""
    path: list[int | str] = []
    for index, step in enumerate(place):
        if isinstance(data, Mapping) and (step in data or (missing and index == len(place) - 1)):
            data = data.get(step)
        elif isinstance(data, Sequence) and not isinstance(data, str | bytes) and isinstance(step, int):
            data = data[step]
        else:
            continue
        path.append(step)
    return tuple(path)


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:]
