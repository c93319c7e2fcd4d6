"""OpenAI responses: POST /v1/responses. Pure.

Reference: https://platform.openai.com/docs/api-reference/responses, as the SDK openai 3.54 types it. The simulator
keeps no conversations, so `previous_response_id` and `conversation` are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from provider_simulator.conversation import (
    Answer,
    Ask,
    BadRequest,
    CallTools,
    Conversation,
    JsonObject,
    PastCall,
    Refusal,
    Reply,
    TokenUsage,
)
from provider_simulator.dialect import KNOWN_STATUS_TYPES
from provider_simulator.frames import SSE, argument_pieces, named_frame, text_pieces
from provider_simulator.reply import FINGERPRINT, arguments_text
from provider_simulator.wire import Content, WireModel, compact, joined, read, text_of


class _Item(WireModel):
    """Any input item: a message, a function call, its output, or one the simulator ignores (reasoning)."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: Content = None


class _Tool(WireModel):
    type: str
    name: str = ""
    description: str | None = None
    parameters: JsonObject | None = None


class _Format(WireModel):
    type: Literal["text", "json_object", "json_schema"] = "text"


class _Text(WireModel):
    format: _Format = _Format()


class _Request(WireModel):
    model: str
    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    previous_response_id: str | None = None
    conversation: str | JsonObject | None = None

    def items(self) -> list[_Item]:
        return [_Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input


class OpenAiResponses:
    name = "openai-responses"
    id_prefix = "resp_"
    stream_type = SSE

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        request = read(_Request, body)
        if request.previous_response_id or request.conversation:
            raise BadRequest("previous_response_id: the simulator keeps no conversations; send the whole input")
        items, tools = request.items(), request.tools or []
        offered = () if request.tool_choice == "none" else tuple(tool.name for tool in tools)
        return Ask(
            model=request.model,
            conversation=_conversation(request, items, offered),
            billable=(
                *([request.instructions] if request.instructions else []),
                *map(_billable, items),
                *(compact(tool.model_dump()) for tool in tools),
            ),
            stream=bool(request.stream),
            json_wanted=bool(request.text and request.text.format.type != "text"),
            output_tokens_max=request.max_output_tokens,
        )

    def unary(self, reply: Reply) -> JsonObject:
        return _response(reply, _final_status(reply), list(_output(reply)), reply.usage)

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        events: list[JsonObject] = [
            {"type": "response.created", "response": _response(reply, "in_progress", [], None)},
            {"type": "response.in_progress", "response": _response(reply, "in_progress", [], None)},
            *_item_events(reply),
            {"type": f"response.{_final_status(reply)}", "response": self.unary(reply)},
        ]
        numbered: list[JsonObject] = [{**event, "sequence_number": number} for number, event in enumerate(events)]
        return [named_frame(str(event["type"]), event) for event in numbered]

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        kind = KNOWN_STATUS_TYPES.get(status, "server_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def error_frame(self, message: str, code: str | None) -> bytes:
        event = {"type": "error", "code": code or "server_error", "message": message, "param": None}
        return named_frame("error", {**event, "sequence_number": 0})


def _conversation(request: _Request, items: Sequence[_Item], offered: Sequence[str]) -> Conversation:
    last_user = max((at for at, item in enumerate(items) if item.role == "user"), default=-1)
    told = [text_of(item.content) for item in items if item.role in {"system", "developer"}]
    return Conversation(
        instructions=joined([request.instructions or "", *told]),
        input=text_of(items[last_user].content) if last_user >= 0 else "",
        calls=tuple(_past_calls(items, last_user)),
        tools=frozenset(offered),
        parallel_calls=request.parallel_tool_calls is not False,
        messages=len(items),
    )


def _past_calls(items: Sequence[_Item], last_user: int) -> Iterator[PastCall]:
    outputs = {item.call_id: text_of(item.output) for item in items if item.type == "function_call_output"}
    for at, item in enumerate(items):
        if item.type != "function_call":
            continue
        if item.call_id not in outputs:
            raise BadRequest(f"input.{at}: no function_call_output answers the call {item.call_id!r}")
        if at > last_user:
            yield PastCall(item.call_id, item.name, outputs[item.call_id])


def _billable(item: _Item) -> str:
    return joined([text_of(item.content), item.name + item.arguments, text_of(item.output)])


def _final_status(reply: Reply) -> str:
    return "incomplete" if reply.finish == "length" else "completed"


def _response(reply: Reply, status: str, output: Sequence[JsonObject], usage: TokenUsage | None) -> JsonObject:
    return {
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {"system_fingerprint": FINGERPRINT},
        "system_fingerprint": FINGERPRINT,
        "model": reply.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": _usage_json(usage) if usage else None,
    }


def _usage_json(usage: TokenUsage) -> JsonObject:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _output(reply: Reply) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            for call in calls:
                yield _function_call(call.id, call.name, arguments_text(call.arguments), "completed")
        case Answer(text) | Refusal(text):
            yield _message(reply, [_part(reply, text)], _final_status(reply))


def _function_call(call_id: str, name: str, arguments: str, status: str) -> JsonObject:
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def _message(reply: Reply, parts: Sequence[JsonObject], status: str) -> JsonObject:
    return {"id": f"msg_{reply.id}", "type": "message", "role": "assistant", "status": status, "content": parts}


def _part(reply: Reply, text: str) -> JsonObject:
    if isinstance(reply.turn, Refusal):
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item_events(reply: Reply) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            for index, call in enumerate(calls):
                yield from _call_events(index, call.id, call.name, arguments_text(call.arguments))
        case Answer(text) | Refusal(text):
            yield from _message_events(reply, text)


def _call_events(index: int, call_id: str, name: str, arguments: str) -> Iterator[JsonObject]:
    at: JsonObject = {"item_id": f"fc_{call_id}", "output_index": index}
    kind = "response.function_call_arguments"
    yield _item_event("added", index, _function_call(call_id, name, "", "in_progress"))
    yield from ({"type": f"{kind}.delta", **at, "delta": piece} for piece in argument_pieces(arguments))
    yield {"type": f"{kind}.done", **at, "arguments": arguments, "name": name}
    yield _item_event("done", index, _function_call(call_id, name, arguments, "completed"))


def _message_events(reply: Reply, text: str) -> Iterator[JsonObject]:
    refused = isinstance(reply.turn, Refusal)
    kind, field = ("response.refusal", "refusal") if refused else ("response.output_text", "text")
    at: JsonObject = {"item_id": f"msg_{reply.id}", "output_index": 0, "content_index": 0}
    extra: JsonObject = {} if refused else {"logprobs": []}
    yield _item_event("added", 0, _message(reply, [], "in_progress"))
    yield {"type": "response.content_part.added", **at, "part": _part(reply, "")}
    yield from ({"type": f"{kind}.delta", **at, "delta": piece, **extra} for piece in text_pieces(text))
    yield {"type": f"{kind}.done", **at, field: text, **extra}
    yield {"type": "response.content_part.done", **at, "part": _part(reply, text)}
    yield _item_event("done", 0, _message(reply, [_part(reply, text)], _final_status(reply)))


def _item_event(step: str, index: int, item: JsonObject) -> JsonObject:
    return {"type": f"response.output_item.{step}", "output_index": index, "item": item}
