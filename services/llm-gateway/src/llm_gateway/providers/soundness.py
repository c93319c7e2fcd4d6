"""Whether what an answer was read as is text where text belongs. Pure.

JSON that has the shape of the wire format may still hold a number or a list where it says text. Handed on, that would
fail far from here as a defect of ours, with the call neither answered nor repeated.
"""

from collections.abc import Mapping
from typing import Final

from llm_gateway.domain import (
    Completed,
    ModelResponse,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Refusal,
    RefusalDelta,
    Started,
    StreamPart,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
)

_CALL: Final = ("id", "name", "arguments")
_TEXTS: Final[Mapping[type, tuple[str, ...]]] = {
    Started: ("provider_response_id", "model"),
    TextDelta: ("text",),
    RefusalDelta: ("text",),
    ReasoningDelta: ("text",),
    ToolCallDelta: _CALL,
    Text: ("text",),
    Refusal: ("text",),
    Reasoning: ("text",),
    ToolCall: _CALL,
    ModelResponse: ("provider_response_id", "model", "raw_finish_reason", "service_tier"),
}


def require_sound(part: StreamPart) -> None:
    """Raises TypeError that names what is no text."""
    if type(part) is Completed:
        require_sound_answer(part.response)
    elif type(part) is ReasoningDone:
        _require_texts(part.part)
    else:
        _require_texts(part)


def require_sound_answer(response: ModelResponse) -> None:
    """As `require_sound`, of a whole answer."""
    _require_texts(response)
    for part in response.message.parts:
        _require_texts(part)


def _require_texts(said: object) -> None:
    for name in _TEXTS.get(type(said), ()):
        value = getattr(said, name)
        if type(value) is not str:
            raise TypeError(f"{name} is no text but {type(value).__name__}")
