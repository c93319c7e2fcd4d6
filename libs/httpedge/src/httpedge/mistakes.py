"""What is wrong with a request, told in the words of who sent it: one field, its value as JSON, and what to do. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from servicekit.errors import InvalidArgument

Place = tuple[int | str, ...]
Places = Sequence[Sequence[str]]
"""Where the parts of each message stood in the body; the gateway counts other messages and other parts."""

FIELD_CHARS_MAX: Final = 100
"""Of a field's name in a refusal: who sends one that there is not may send any."""
_WORDS: Final[Mapping[str, str]] = {
    "missing": "is missing; give it",
    "extra_forbidden": "is no field here; leave it out",
}
_TOO_DEEP: Final = "recursion limit exceeded"
_SENT_AS: Final[Mapping[str, str]] = {
    "request_id": "idempotency-key",
    "attribution.agent": "synod-agent",
    "attribution.project_id": "synod-project",
    "attribution.conversation_id": "synod-conversation",
    "attribution.tags": "synod-tags",
    "texts": "input",
}
"""The gateway's name of what callers send under another, as a header or in a body."""


_PART: Final = re.compile(r"messages\[(\d+)\]\.parts\[(\d+)\].*")


class _Shown(str):
    """A value that is spelled already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def wrong(field: str, value: object, problem: str, *, reason: str = "") -> InvalidArgument:
    """A refusal of a field that shows its value as JSON, in which it was sent, and not as Python would."""
    return InvalidArgument(cut(field), _Shown(_spelled(value)), problem, reason=reason)


def cut(text: str) -> str:
    return text if len(text) <= FIELD_CHARS_MAX else f"{text[: FIELD_CHARS_MAX - 1]}…"


def as_sent(error: InvalidArgument) -> InvalidArgument:
    """What the gateway refuses, with the name that the caller knows."""
    for known, sent in _SENT_AS.items():
        if error.field == known or error.field.startswith((f"{known}.", f"{known}[")):
            return _renamed(error, sent + error.field.removeprefix(known))
    return error


def in_place(error: InvalidArgument, places: Places) -> InvalidArgument:
    """What the gateway refuses of a part of a message, with the place where the caller had it."""
    if found := _PART.fullmatch(error.field):
        return _renamed(error, places[int(found[1])][int(found[2])])
    return error


def _renamed(error: InvalidArgument, field: str) -> InvalidArgument:
    return InvalidArgument(field, _Shown(error.metadata.get("value", "")), error.problem, reason=error.reason)


def mistake(found: Sequence[Mapping[str, Any]], data: object, *, within: str = "") -> InvalidArgument:
    """The first of the errors that pydantic found in `data`, named by the path a caller knows; `within` is where that stands.

    Of a field that may be this or that, pydantic tells what is wrong with it as each: the one that got furthest is meant.
    """
    first: Place = found[0]["loc"]
    field_of_first = [error for error in found if error["loc"][:1] == first[:1]]
    meant = max(field_of_first, key=lambda error: len(error["loc"]))
    if meant["type"] == "json_invalid":
        return wrong("body", data, _not_json(str(meant["ctx"]["error"])))
    if meant["type"] == "model_attributes_type" and isinstance(sent := meant.get("input"), bytes):
        return wrong("body", sent, "is JSON only with the header Content-Type: application/json; send it")
    value = None if meant["type"] == "missing" else meant.get("input")
    place = _path(meant["loc"], data, missing=meant["type"] == "missing")
    where = ".".join(map(str, (*filter(None, [within]), *place))) or "body"
    return wrong(where, value, _WORDS.get(meant["type"]) or _sentence(meant["msg"]))


def _not_json(problem: str) -> str:
    return "is nested too deeply; send it flatter" if problem.startswith(_TOO_DEEP) else f"is not JSON: {problem}"


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


def _spelled(value: object) -> str:
    """The begin of it, which is all that is shown: what is refused may be as large as a body."""
    if isinstance(value, str | bytes):
        value = value[:_SPELLED_CHARS]
    text = ""
    for piece in _JSON.iterencode(value):
        text += piece
        if len(text) > _SPELLED_CHARS:
            break
    return text


def _readable(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


_SPELLED_CHARS: Final = 200
"""More than a refusal shows of a value."""
_JSON: Final = json.JSONEncoder(ensure_ascii=False, default=_readable)
