"""A ModelRequest as a Gemini generateContent request. Pure."""

import base64
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final
from urllib.parse import urlsplit

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
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Vector,
    is_empty,
)
from llm_gateway.errors import EMPTY_TURN, InvalidToolArguments, RequestRejected
from llm_gateway.providers.instructions import ONLY_INSTRUCTIONS, leading

SIGNATURE: Final = "thoughtSignature"
_UNKNOWN_SIGNATURE: Final[JsonObject] = {SIGNATURE: "skip_thought_signature_validator"}
"""For a call that no Gemini model signed: Google's page on thought signatures has it for histories of other models."""
_WITHOUT_SIGNATURES: Final = ("gemini-1", "gemini-2")
_MODES: Final[Mapping[str, str]] = {"auto": "AUTO", "none": "NONE", "required": "ANY", "tool": "ANY"}
Fields = Mapping[str, Json | orjson.Fragment]
Block = Mapping[str, Json | Fields] | orjson.Fragment


def encode(request: ModelRequest) -> bytes:
    """The body to post; model and streaming stand in the path. Raises RequestRejected for what cannot be said."""
    names = {call.id: call.name for message in request.messages for call in message.tool_calls}
    signed = _wants_signatures(request.model)
    contents = [
        {"role": role, "parts": list(_blocks(parts, names, signed=signed))} for role, parts in _turns(request.messages)
    ]
    if not contents:
        raise RequestRejected(ONLY_INSTRUCTIONS)
    body = {
        "contents": contents,
        "generationConfig": _config(request),
        **_instructions(request.messages),
        **(_tools(request) if request.tools else {}),
        **request.provider_options,
    }
    return numbers.dumps(body)


def _config(request: ModelRequest) -> JsonObject:
    wanted = request.output_format
    fields: dict[str, Json] = {
        "maxOutputTokens": request.max_output_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "seed": request.seed,
        "stopSequences": list(request.stop) or None,
        "responseMimeType": None if wanted.kind == "text" else "application/json",
        "responseJsonSchema": wanted.schema if wanted.kind == "json_schema" else None,
        "thinkingConfig": _thinking(request),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _thinking(request: ModelRequest) -> Json:
    """By number or by level: the API takes one of them, and a number is the more exact. -1 is as much as the model likes."""
    shown = request.reasoning_display != "omitted"
    if request.reasoning_tokens_max is not None:
        most = request.reasoning_tokens_max
        return {"includeThoughts": shown and most > 0, "thinkingBudget": most}
    if effort := request.reasoning_effort:
        return {"includeThoughts": shown, "thinkingLevel": effort}
    return {"includeThoughts": shown, "thinkingBudget": -1} if request.reasoning_mode == "adaptive" else None


def _instructions(messages: Sequence[Message]) -> JsonObject:
    texts = [message.text for message in messages[: leading(messages)] if message.text]
    return {"systemInstruction": {"parts": [{"text": text} for text in texts]}} if texts else {}


def _tools(request: ModelRequest) -> JsonObject:
    choice = request.tool_choice
    named = {"allowedFunctionNames": [choice.name]} if choice.mode == "tool" else {}
    return {
        "tools": [{"functionDeclarations": [_tool(tool) for tool in request.tools]}],
        "toolConfig": {"functionCallingConfig": {"mode": _MODES[choice.mode], **named}},
    }


def _tool(tool: ToolSpec) -> JsonObject:
    schema: JsonObject = {"parametersJsonSchema": tool.parameters} if tool.parameters else {}
    return {"name": tool.name, "description": tool.description, **schema}


def _turns(messages: Sequence[Message]) -> Iterator[tuple[str, list[Part]]]:
    """Turns alternate: what users and tools say in a row is one turn. Instructions in it are a user's by now: the API knows
    no others but those before the conversation.

    Raises RequestRejected for a turn of the user's that is empty; without it the model would answer something else.
    """
    heard = [message for message in messages[leading(messages) :] if message.role != "assistant" or message.said]
    for is_model, run in groupby(heard, key=lambda message: message.role == "assistant"):
        turn = list(run)
        if not any(message.said for message in turn):
            raise RequestRejected(EMPTY_TURN)
        yield "model" if is_model else "user", [part for message in turn for part in message.parts]


def _wants_signatures(model: str) -> bool:
    """From Gemini 3 on a request is refused if the first call of a turn has no signature."""
    return model.startswith("gemini-") and not model.startswith(_WITHOUT_SIGNATURES)


def _blocks(parts: Sequence[Part], names: Mapping[str, str], *, signed: bool) -> Iterator[Block]:
    """A signature stands alone before the part that it belongs to, and goes back inside of it; that may be an empty text.

    With `signed` the first call of the turn has one in any case.
    """
    signature: JsonObject = {}
    for part in parts:
        if alone := _signature(part):
            signature = alone
            continue
        if signed and isinstance(part, ToolCall):
            signature, signed = signature or _UNKNOWN_SIGNATURE, False
        if is_empty(part) and not signature:
            continue
        block = _block(part, names)
        yield {**block, **signature} if isinstance(block, Mapping) else block
        signature = {}
    if signature:
        yield {"text": "", **signature}


def _signature(part: Part) -> JsonObject:
    """Of a part that is nothing else; empty for every other. What the model ran or thought without a text is a part too."""
    if not isinstance(part, Reasoning) or part.text:
        return {}
    payload: JsonObject = orjson.loads(part.payload)
    return payload if payload.keys() == {SIGNATURE} else {}


def _block(part: Part, names: Mapping[str, str]) -> Block:
    match part:
        case Text(text) | Refusal(text):
            return {"text": text}
        case ToolCall():
            return {"functionCall": {"id": part.id, "name": part.name, "args": _arguments(part)}}
        case ToolResult():
            return {"functionResponse": _response(part, names)}
        case Vector():
            raise TypeError("a vector cannot be part of a request")
        case Reasoning() | Opaque():
            return orjson.Fragment(part.payload)
        case Image() if part.url:
            return {"fileData": {"fileUri": part.url, "mimeType": _image_type(part)}}
        case Image() | Audio() | File():
            return {"inlineData": {"mimeType": part.media_type, "data": base64.b64encode(part.data).decode()}}


def _image_type(image: Image) -> str:
    """Always said: the API takes films by their address too, and would read one that was reserved for as an image."""
    found = image.media_type or mimetypes.guess_type(urlsplit(image.url).path, strict=False)[0] or ""
    if not found.startswith("image/"):
        raise RequestRejected(f"the image at {image.url[:100]!r} needs its media type, which its address does not tell")
    return found


def _arguments(call: ToolCall) -> orjson.Fragment:
    """As the model wrote it: numbers of any length stay what they are."""
    try:
        call.parsed()
        return orjson.Fragment(call.arguments or "{}")
    except InvalidToolArguments as error:
        raise RequestRejected(f"the history cannot be sent: {error}") from None


def _response(result: ToolResult, names: Mapping[str, str]) -> Fields:
    """Results are objects here, and name the function again."""
    if result.call_id not in names:
        raise RequestRejected(f"the history cannot be sent: no call {result.call_id!r} has the result")
    said = (
        orjson.Fragment(orjson.dumps({"error": {"message": result.text}})) if result.is_error else _output(result.text)
    )
    return {"id": result.call_id, "name": names[result.call_id], "response": said}


def _output(text: str) -> orjson.Fragment:
    try:
        value: Json = orjson.loads(text)
    except orjson.JSONDecodeError:
        return orjson.Fragment(orjson.dumps({"output": text}))
    return orjson.Fragment(text if isinstance(value, Mapping) else f'{{"output":{text}}}')
