"""What the dialects share: bodies to models, base64 and data URLs, server-sent events. Pure."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from servicekit import numbers
from typing_extensions import TypeAliasType

from httpedge.compatible.sizes import check_size
from httpedge.mistakes import mistake, wrong

Json = TypeAliasType("Json", "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None")
JsonObject: TypeAlias = Mapping[str, Json]
M = TypeVar("M", bound="WireModel")


def _whole(value: object) -> object:
    """JSON knows one kind of numbers: 100.0 is what some write for 100."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON knows no largest integer, the messages to the gateway do.
Integer: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Int32: TypeAlias = Annotated[int, Field(ge=-(2**31), lt=2**31), BeforeValidator(_whole)]
Int64: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_whole)]
Seconds: TypeAlias = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)]
OutputTokens: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(_whole)]
"""As llm-gateway has it, where 0 is the default; here that is to say nothing."""
Name: TypeAlias = Annotated[str, Field(min_length=1)]
ModelName: TypeAlias = Annotated[str, Field(max_length=256)]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", ""]
"""The words of both APIs, and of others that speak OpenAI's; the empty one says nothing."""

DONE: Final = b"data: [DONE]\n\n"


class WireModel(BaseModel):
    """A part of a request. What is not read here is a hint, such as the `detail` of an image; what would change the answer
    or its price is read, to be carried or refused. A value is of its field's own type: what "5" or true would mean as a
    number is a guess. In a field that may be left out, null is as good as that: SDKs write it for what they were not told.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class StrictModel(WireModel):
    """A whole request, or options in it. A field that its API does not have is mistyped, and refused as that API does it.

    Each field that the API has is here, then: carried, refused by `refuse` when it asks for anything, or a hint, which is an
    `object` that nobody reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def read(model: type[M], body: bytes) -> M:
    """Raises InvalidArgument naming a wrong field by its path."""
    check_size(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise mistake(error.errors(include_url=False), _data(body)) from None


def _data(body: bytes) -> object:
    """By the parser that validates: others refuse numbers that it takes."""
    try:
        return from_json(body)
    except ValueError:
        return body


NOT_SUPPORTED: Final = "is not supported here; leave it out"
MISSING: Final = "is missing; give it"


def refuse(request: WireModel, names: Sequence[str], problem: str = NOT_SUPPORTED, *, within: str = "") -> None:
    """Raises InvalidArgument for the first of the fields that asks for anything; `within` is where they stand."""
    for name in names:
        value = getattr(request, name)
        if value:
            raise wrong(f"{within}.{name}" if within else name, value, problem)


def refuse_other(field: str, value: str | None, usual: str) -> None:
    """Raises InvalidArgument, unless the field says what models do without being told."""
    if value not in (None, usual):
        raise wrong(field, value, f"only {usual} is supported here; leave it out")


def refuse_unless(said: bool, field: str, value: object, role: str) -> None:
    """Raises InvalidArgument for what is said in another role than this one."""
    if not said:
        raise wrong(field, value, f"is said in the role {role} only")


def decoded(field: str, text: str) -> bytes:
    """Bytes from base64. Raises InvalidArgument."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(field, text, f"is not base64: {error}") from None


def required(field: str, value: str | None) -> str:
    """What may be left out elsewhere, and not here. Raises InvalidArgument."""
    if not value:
        raise wrong(field, value, MISSING)
    return value


def data_url(field: str, url: str) -> tuple[str, bytes]:
    """Media type and bytes of `data:<media type>;base64,<data>`. Raises InvalidArgument."""
    head, _, data = url.partition(",")
    media_type = head[len("data:") : -len(";base64")]
    if not (media_type and data and head.startswith("data:") and head.endswith(";base64")):
        raise wrong(field, url, "must be data:<media type>;base64,<data>")
    return media_type, decoded(field, data)


def text_of(value: object) -> str:
    """JSON text."""
    return numbers.dumps(value).decode()


def object_of(text: str) -> Json:
    """The JSON value of a text; the text itself when it is none."""
    try:
        value: Json = numbers.loads(text or "{}")
    except ValueError:
        return text
    return value


def data_frame(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def named_frame(payload: Mapping[str, object]) -> bytes:
    """An event whose name repeats the type of what it carries."""
    return b"event: " + str(payload["type"]).encode() + b"\ndata: " + numbers.dumps(payload) + b"\n\n"
