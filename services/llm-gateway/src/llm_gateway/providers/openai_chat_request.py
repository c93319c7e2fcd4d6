"""A ModelRequest as an OpenAI chat completions request. Pure."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

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
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    Vector,
)


@dataclass(frozen=True, slots=True)
class ChatWire:
    """Where servers of this dialect differ on the wire: the name of the limit, and the role of instructions."""

    limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    developer_role: bool = True


def encode(request: ModelRequest, wire: ChatWire, *, stream: bool) -> bytes:
    """The body to post. Usage is always asked for in a stream, because without it nothing can be settled."""
    body = {
        "model": request.model,
        "messages": [wire_message for message in request.messages for wire_message in _messages(message, wire)],
        **_optional(request, wire),
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
        **request.provider_options,
    }
    return numbers.dumps(body)


def _optional(request: ModelRequest, wire: ChatWire) -> dict[str, Json]:
    fields: dict[str, Json] = {
        wire.limit_field: request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "reasoning_effort": request.reasoning_effort,
        "service_tier": request.service_tier,
        "response_format": _response_format(request.output_format),
        **(_tools(request) if request.tools else {}),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tools(request: ModelRequest) -> JsonObject:
    return {
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
    }


def _tool(tool: ToolSpec) -> JsonObject:
    function: JsonObject = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
    return {"type": "function", "function": {**function, "strict": True} if tool.strict else function}


def _tool_choice(choice: ToolChoice) -> Json:
    if choice.mode == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return None if choice.mode == "auto" else choice.mode


def _response_format(wanted: OutputFormat) -> Json:
    if wanted.kind == "json_schema":
        schema: JsonObject = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
        return {"type": "json_schema", "json_schema": schema}
    return None if wanted.kind == "text" else {"type": wanted.kind}


def _messages(message: Message, wire: ChatWire) -> Iterator[JsonObject]:
    """One message, or one per tool result, as the dialect wants them; none of an assistant who said nothing."""
    others: list[Part] = []
    for part in message.said or message.parts:
        if isinstance(part, ToolResult):
            yield {"role": "tool", "tool_call_id": part.call_id, "content": _result_text(part)}
        else:
            others.append(part)
    if message.role == "assistant":
        if any(isinstance(part, Text | Refusal | ToolCall) for part in message.said):
            yield _assistant(others)
    elif others:
        role = "system" if message.role == "developer" and not wire.developer_role else message.role
        yield {"role": role, "content": _content(others)}


def _result_text(result: ToolResult) -> str:
    """The dialect has no error flag, so a failed result says so in its content."""
    return orjson.dumps({"error": {"message": result.text}}).decode() if result.is_error else result.text


def _assistant(parts: Sequence[Part]) -> JsonObject:
    """Reasoning stays behind: the dialect has no place for it in a request."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    refusal = "".join(part.text for part in parts if isinstance(part, Refusal))
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    return {
        "role": "assistant",
        "content": text or None,
        **({"refusal": refusal} if refusal else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


def _content(parts: Sequence[Part]) -> Json:
    texts = [part.text for part in parts if isinstance(part, Text)]
    if len(texts) == len(parts):
        return "\n".join(texts)
    return [_content_part(part) for part in parts]


def _content_part(part: Part) -> JsonObject:
    match part:
        case Text(text) | Refusal(text):
            return {"type": "text", "text": text}
        case Image():
            return {"type": "image_url", "image_url": {"url": part.url or _data_url(part.media_type, part.data)}}
        case Audio():
            sound = {"data": base64.b64encode(part.data).decode(), "format": part.media_type.rpartition("/")[2]}
            return {"type": "input_audio", "input_audio": sound}
        case File():
            return {"type": "file", "file": {"filename": part.name, "file_data": _data_url(part.media_type, part.data)}}
        case ToolCall() | ToolResult() | Reasoning() | Opaque() | Vector():
            raise TypeError(f"a {type(part).__name__} cannot be part of a user or system message")


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
