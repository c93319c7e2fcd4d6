"""A ModelRequest as an Anthropic messages request. Pure."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import orjson
from servicekit import numbers

from llm_gateway.domain import (
    Audio,
    File,
    Image,
    Json,
    JsonObject,
    Message,
    ModelRequest,
    Opaque,
    Part,
    PromptCacheTtl,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Vector,
)
from llm_gateway.errors import EMPTY_TURN, InvalidToolArguments, RequestRejected
from llm_gateway.providers.instructions import INSTRUCTING, ONLY_INSTRUCTIONS, as_user, leading

THINKING_TOKENS_MIN: Final = 1024
# An orjson.Fragment is bytes that go into the document as they are; it is what keeps opaque parts byte for byte.
Fields = Mapping[str, Json | orjson.Fragment]
Block = Fields | orjson.Fragment
Turn = Mapping[str, str | Sequence[Block]]
_ASKING: Final = frozenset({"user", "tool"})


def encode(request: ModelRequest, *, stream: bool) -> bytes:
    """The body to post. Raises RequestRejected for history that the wire format cannot express."""
    body = {
        "model": request.model,
        "max_tokens": request.max_output_tokens,
        "messages": _messages(request.messages),
        **_optional(request),
        **({"stream": True} if stream else {}),
        **request.provider_options,
    }
    return numbers.dumps(body)


def encode_count(request: ModelRequest) -> bytes:
    """The body of a question for the tokens of the input."""
    system = _system(request)
    body = {
        "model": request.model,
        "messages": _messages(request.messages),
        **({"system": system} if system else {}),
        **({"tools": [_tool(tool) for tool in request.tools]} if request.tools else {}),
    }
    return numbers.dumps(body)


def _optional(request: ModelRequest) -> JsonObject:
    fields: dict[str, Json] = {
        "system": _system(request) or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_sequences": list(request.stop) or None,
        "service_tier": request.service_tier,
        "output_config": _output_config(request) or None,
        "thinking": _thinking(request),
        "cache_control": _cache_control(request.cache_ttl) if request.cache_ttl else None,
        **(_tools(request) if request.tools else {}),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tools(request: ModelRequest) -> JsonObject:
    return {"tools": [_tool(tool) for tool in request.tools], "tool_choice": _tool_choice(request)}


def _tool(tool: ToolSpec) -> JsonObject:
    spec: JsonObject = {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
    return _up_to({**spec, "strict": True} if tool.strict else spec, tool.cache_ttl)


def _tool_choice(request: ModelRequest) -> Json:
    choice, alone = request.tool_choice, request.parallel_tool_calls is False
    if choice.mode == "auto" and not alone:
        return None
    kind = {"auto": "auto", "none": "none", "required": "any", "tool": "tool"}[choice.mode]
    return {
        "type": kind,
        **({"name": choice.name} if kind == "tool" else {}),
        **({"disable_parallel_tool_use": True} if alone and kind != "none" else {}),
    }


def _output_config(request: ModelRequest) -> JsonObject:
    wanted = request.output_format
    form: JsonObject = (
        {"format": {"type": "json_schema", "schema": wanted.schema}} if wanted.kind == "json_schema" else {}
    )
    return {**form, "effort": request.reasoning_effort} if request.reasoning_effort else form


def _thinking(request: ModelRequest) -> Json:
    """Raises RequestRejected for a number that the API does not take."""
    display: JsonObject = {"display": request.reasoning_display} if request.reasoning_display else {}
    most = request.reasoning_tokens_max
    if most is None:
        return {"type": request.reasoning_mode, **display} if request.reasoning_mode else None
    if most == 0:
        return {"type": "disabled"}
    if not THINKING_TOKENS_MIN <= most < (request.max_output_tokens or 0):
        limits = f"{THINKING_TOKENS_MIN} to less than max_output_tokens"
        raise RequestRejected(f"reasoning_tokens_max {most} is outside what this model takes, {limits}")
    return {"type": "enabled", "budget_tokens": most, **display}


def _system(request: ModelRequest) -> list[Fields]:
    """What is said before the conversation. Later instructions are turns of it."""
    return _instructions(request.messages[: leading(request.messages)])


def _instructions(messages: Iterable[Message]) -> list[Fields]:
    """A block for each piece of text, because the prompt may be cached up to any of them."""
    parts = (part for message in messages for part in message.parts)
    return [_text(part.text, part.cache_ttl) for part in parts if isinstance(part, Text) and part.text]


def _messages(messages: Sequence[Message]) -> list[Turn]:
    turns = list(_turns(messages[leading(messages) :]))
    if not turns:
        raise RequestRejected(ONLY_INSTRUCTIONS)
    return turns


def _turns(messages: Sequence[Message]) -> Iterator[Turn]:
    """Turns alternate, but for instructions.

    Raises RequestRejected for a turn of the user's that is empty; without it the model would answer something else.
    """
    heard = [message for message in messages if message.role in _ASKING or message.said]
    for is_model, run in groupby(heard, key=lambda message: message.role == "assistant"):
        if is_model:
            yield {"role": "assistant", "content": [_block(part) for message in run for part in message.said]}
        else:
            yield from _asked(list(run))


def _asked(run: Sequence[Message]) -> Iterator[Turn]:
    """What users and tools say in a row is one turn, with the tool results first, as the API wants. Instructions among it
    follow as one turn: the API takes none but between what was asked and the answer (its page on mid-conversation system
    messages). Where nothing was asked they are what is asked.
    """
    told = [message for message in run if message.role in INSTRUCTING]
    spoken = [message for message in run if message.role not in INSTRUCTING]
    if not spoken:
        spoken, told = [as_user(message) for message in told], []
    parts = [part for message in spoken for part in message.said]
    if not parts:
        raise RequestRejected(EMPTY_TURN)
    parts.sort(key=lambda part: not isinstance(part, ToolResult))
    yield {"role": "user", "content": [_block(part) for part in parts]}
    if system := _instructions(told):
        yield {"role": "system", "content": system}


def _block(part: Part) -> Block:
    match part:
        case Text():
            return _text(part.text, part.cache_ttl)
        case Refusal():
            return _text(part.text, None)
        case ToolCall():
            call: Fields = {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part)}
            return _up_to(call, part.cache_ttl)
        case ToolResult():
            error: Mapping[str, bool] = {"is_error": True} if part.is_error else {}
            result: JsonObject = {"type": "tool_result", "tool_use_id": part.call_id, "content": part.text, **error}
            return _up_to(result, part.cache_ttl)
        case Vector():
            raise TypeError("a vector cannot be part of a request")
        case Reasoning() | Opaque():
            return orjson.Fragment(part.payload)
        case Audio():
            raise RequestRejected("this provider takes no audio")
        case Image():
            return _up_to({"type": "image", "source": _image_source(part)}, part.cache_ttl)
        case File():
            return _up_to({"type": "document", "title": part.name, "source": _document_source(part)}, part.cache_ttl)


def _text(text: str, ttl: PromptCacheTtl | None) -> Fields:
    return _up_to({"type": "text", "text": text}, ttl)


def _up_to(block: Fields, ttl: PromptCacheTtl | None) -> Fields:
    """The block, as the end of what is to be cached if it is one."""
    return {**block, "cache_control": _cache_control(ttl)} if ttl else block


def _cache_control(ttl: PromptCacheTtl) -> JsonObject:
    """Five minutes need not be said, and clouds behind the API do not all take the word."""
    return {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}


def _input(call: ToolCall) -> orjson.Fragment:
    """As the model wrote it: numbers of any length stay what they are."""
    try:
        call.parsed()
        return orjson.Fragment(call.arguments or "{}")
    except InvalidToolArguments as error:
        raise RequestRejected(f"the history cannot be sent: {error}") from None


def _image_source(image: Image) -> JsonObject:
    return {"type": "url", "url": image.url} if image.url else _base64_source(image.media_type, image.data)


def _document_source(file: File) -> JsonObject:
    """Text goes as text: in base64 the API takes PDF alone."""
    if not file.media_type.startswith("text/"):
        return _base64_source(file.media_type, file.data)
    try:
        return {"type": "text", "media_type": "text/plain", "data": file.data.decode()}
    except UnicodeDecodeError as error:
        raise RequestRejected(f"the file {file.name!r} is no UTF-8 text: {error}") from None


def _base64_source(media_type: str, data: bytes) -> JsonObject:
    return {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
