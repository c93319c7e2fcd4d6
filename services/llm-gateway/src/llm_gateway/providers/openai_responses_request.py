"""A ModelRequest as an OpenAI responses request. Pure."""

import base64
from collections.abc import Iterator

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

# An orjson.Fragment is bytes that go into the document as they are; it is what keeps opaque parts byte for byte.
Item = JsonObject | orjson.Fragment


def encode(request: ModelRequest, *, stream: bool) -> bytes:
    """The body to post. Nothing is stored at the provider, so reasoning is asked for in the form that can come back."""
    body = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message)],
        "store": False,
        "include": ["reasoning.encrypted_content"],
        **_optional(request),
        **({"stream": True, "stream_options": {"include_obfuscation": False}} if stream else {}),
        **request.provider_options,
    }
    return numbers.dumps(body)


def encode_count(request: ModelRequest) -> bytes:
    """The body of a question for the tokens of the input."""
    body = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message)],
        **({"tools": [_tool(tool) for tool in request.tools]} if request.tools else {}),
    }
    return numbers.dumps(body)


def _optional(request: ModelRequest) -> JsonObject:
    fields: dict[str, Json] = {
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "reasoning": _reasoning(request) or None,
        "service_tier": request.service_tier,
        "text": _text(request.output_format),
        **(_tools(request) if request.tools else {}),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _reasoning(request: ModelRequest) -> JsonObject:
    effort, display = request.reasoning_effort, request.reasoning_display
    shown = display == "summarized" or (bool(effort) and display != "omitted")
    return {**({"effort": effort} if effort else {}), **({"summary": "auto"} if shown else {})}


def _tools(request: ModelRequest) -> JsonObject:
    return {
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
    }


def _tool(tool: ToolSpec) -> JsonObject:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.schema,
        "strict": tool.strict,
    }


def _tool_choice(choice: ToolChoice) -> Json:
    if choice.mode == "tool":
        return {"type": "function", "name": choice.name}
    return None if choice.mode == "auto" else choice.mode


def _text(wanted: OutputFormat) -> Json:
    if wanted.kind == "json_schema":
        form: JsonObject = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
        return {"format": {"type": "json_schema", **form}}
    return None if wanted.kind == "text" else {"format": {"type": wanted.kind}}


def _items(message: Message) -> Iterator[Item]:
    """Calls, their results and reasoning are items of their own here; what stands between them is one message each.

    An assistant who said nothing has none; a user has, since the API takes it.
    """
    content: list[Part] = []
    for part in message.said or (() if message.role == "assistant" else message.parts):
        item = _item(part)
        if item is None:
            content.append(part)
            continue
        yield from _message(message, content)
        content.clear()
        yield item
    yield from _message(message, content)


def _item(part: Part) -> Item | None:
    match part:
        case ToolCall():
            call: JsonObject = {"call_id": part.id, "name": part.name, "arguments": part.arguments or "{}"}
            return {"type": "function_call", **call}
        case ToolResult():
            return {"type": "function_call_output", "call_id": part.call_id, "output": _result_text(part)}
        case Vector():
            raise TypeError("a vector cannot be part of a request")
        case Reasoning() | Opaque():
            return orjson.Fragment(part.payload)
        case _:
            return None


def _result_text(result: ToolResult) -> str:
    """The dialect has no error flag, so a failed result says so in its content."""
    return orjson.dumps({"error": {"message": result.text}}).decode() if result.is_error else result.text


def _message(message: Message, parts: list[Part]) -> Iterator[JsonObject]:
    if not parts:
        return
    if message.role == "assistant":
        yield {"role": "assistant", "content": [_answered(part) for part in parts]}
    else:
        yield {"role": message.role, "content": [_content(part) for part in parts]}


def _answered(part: Part) -> JsonObject:
    """Each piece on its own, as the model gave it: joined, the last word of one and the first of the next would be one."""
    if isinstance(part, Refusal):
        return {"type": "refusal", "refusal": part.text}
    return {"type": "output_text", "text": _said(part)}


def _said(part: Part) -> str:
    return part.text if isinstance(part, Text | Refusal) else ""


def _content(part: Part) -> JsonObject:
    match part:
        case Image():
            return {"type": "input_image", "detail": "auto", "image_url": part.url or _data_url(part)}
        case Audio():
            sound = {"data": _base64(part.data), "format": part.media_type.rpartition("/")[2]}
            return {"type": "input_audio", "input_audio": sound}
        case File():
            return {"type": "input_file", "filename": part.name, "file_data": _data_url(part)}
        case _:
            return {"type": "input_text", "text": _said(part)}


def _data_url(part: Image | File) -> str:
    return f"data:{part.media_type};base64,{_base64(part.data)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
