"""What the dialects share: bodies to models, base64 and data URLs, server-sent events. Pure."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from servicekit.errors import InvalidArgument
from typing_extensions import TypeAliasType

Json = TypeAliasType("Json", "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None")
JsonObject: TypeAlias = Mapping[str, Json]
M = TypeVar("M", bound="WireModel")

DONE: Final = b"data: [DONE]\n\n"


class WireModel(BaseModel):
    """A part of a request. What is not read here has no meaning for the answer, such as `user` or `metadata`."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read(model: type[M], body: bytes) -> M:
    """Raises InvalidArgument naming the first wrong field by its path."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidArgument(where, first.get("input"), first["msg"].lower()) from None


def decoded(field: str, text: str) -> bytes:
    """Bytes from base64. Raises InvalidArgument."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(field, text, f"is not base64: {error}") from None


def data_url(field: str, url: str) -> tuple[str, bytes]:
    """Media type and bytes of `data:<media type>;base64,<data>`. Raises InvalidArgument."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidArgument(field, url, "must be data:<media type>;base64,<data>")
    return head[len("data:") : -len(";base64")], decoded(field, data)


def text_of(value: object) -> str:
    """JSON text."""
    return orjson.dumps(value).decode()


def object_of(text: str) -> Json:
    """The JSON value of a text; the text itself when it is none."""
    try:
        value: Json = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text
    return value


def data_frame(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def named_frame(payload: Mapping[str, object]) -> bytes:
    """An event whose name repeats the type of what it carries."""
    return b"event: " + str(payload["type"]).encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"
