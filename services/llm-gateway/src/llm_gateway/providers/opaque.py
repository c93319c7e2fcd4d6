"""Which bytes may go into a request as they are. Pure.

What a model thought goes back to it byte for byte, because its signature covers every one of them; so the encoders put
these bytes into the document without reading them. A caller brings them, and a budget was held for what stands around
them: bytes that close the list they stand in could name another model or a higher limit, and a medium by its address
would be read at the provider without having been counted. So they are one whole value, of a kind that only models make.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson
from synod.llm_gateway.opaque import ANTHROPIC_BLOCKS

MADE_BY_A_MODEL: Final = "must be what a model answered, as it was given; give what others said as parts of their own"

Allowed = Callable[[Mapping[str, object]], bool]


def _of_type(*types: str) -> Allowed:
    names = frozenset(types)
    return lambda value: value.get("type") in names and not _has_medium(value)


def _has_medium(value: object) -> bool:
    """Whether anything in it has a source that is more than text: an image or a document, perhaps by its address."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            source = one.get("source")
            if isinstance(source, Mapping) and source.get("type") != "text":
                return True
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
    return False


def _of_gemini(value: Mapping[str, object]) -> bool:
    made = value.get("inlineData")
    if isinstance(made, Mapping):
        return value.keys() <= {"inlineData", "thoughtSignature"} and str(made.get("mimeType")).startswith("image/")
    return value.keys() <= {"text", "thought", "thoughtSignature", "executableCode", "codeExecutionResult"}


_ALLOWED: Final[Mapping[str, Allowed]] = {
    "anthropic-messages": _of_type(*ANTHROPIC_BLOCKS),
    "openai-responses": _of_type("reasoning", "web_search_call", "file_search_call", "code_interpreter_call"),
    "gemini-generate": _of_gemini,
}
"""The dialects whose opaque parts are sent back; for all others they are left out of the request."""


def problem(dialect: str, payload: bytes) -> str | None:
    """Why these bytes cannot go to a provider of this dialect; None if they can, or never go there."""
    allowed = _ALLOWED.get(dialect)
    if allowed is None:
        return None
    try:
        orjson.loads(payload)  # strict: UTF-8, one value, nothing behind it
        value: object = json.loads(payload, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        return f"is not one JSON object: {error}"
    if not isinstance(value, Mapping):
        return f"must be one JSON object, not {type(value).__name__}"
    return None if allowed(value) else MADE_BY_A_MODEL


def _without_repetition(pairs: Sequence[tuple[str, object]]) -> Mapping[str, object]:
    """Of a name that is there twice one reader takes the first value and another the last."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value
