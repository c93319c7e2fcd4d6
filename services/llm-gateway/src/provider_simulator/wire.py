"""What the three request parsers share: bodies to pydantic models, content to text. Pure."""

import json
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from provider_simulator.conversation import BadRequest, JsonObject

M = TypeVar("M", bound="WireModel")


class WireModel(BaseModel):
    """A part of a request; fields that the simulator has no use for are let through unread."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ContentPart(WireModel):
    """A text part, or another kind whose payload a simulator cannot see."""

    type: str
    text: str = ""
    refusal: str = ""


Content = str | list[ContentPart] | None


def read(model: type[M], body: bytes) -> M:
    """Validate a request body. Raises BadRequest with the path of the first wrong field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{where}: {first['msg']}") from None


def text_of(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text or part.refusal or f"[{part.type}]" for part in content or [])


def compact(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def joined(texts: Sequence[str]) -> str:
    return "\n".join(text for text in texts if text)
