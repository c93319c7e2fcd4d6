"""OpenAI chat completions: POST /v1/chat/completions. Pure.

Reference: https://platform.openai.com/docs/api-reference/chat, as the SDK openai 3.54 types it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from provider_simulator.conversation import (
    Answer,
    Ask,
    BadRequest,
    CallTools,
    Conversation,
    Finish,
    JsonObject,
    PastCall,
    Refusal,
    Reply,
    TokenUsage,
)
from provider_simulator.dialect import KNOWN_STATUS_TYPES
from provider_simulator.frames import DONE, SSE, argument_pieces, data_frame, text_pieces
from provider_simulator.reply import FINGERPRINT, arguments_text
from provider_simulator.wire import Content, WireModel, compact, joined, read, text_of


class _Function(WireModel):
    name: str
    arguments: str = ""


class _ToolCall(WireModel):
    id: str
    function: _Function


class _Message(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _ToolFunction(WireModel):
    name: str
    description: str | None = None
    parameters: JsonObject | None = None


class _Tool(WireModel):
    type: Literal["function"]
    function: _ToolFunction


class _ResponseFormat(WireModel):
    type: Literal["text", "json_object", "json_schema"]


class _StreamOptions(WireModel):
    include_usage: bool = False


class _Request(WireModel):
    model: str
    messages: list[_Message]
    tools: list[_Tool] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_FINISH_REASONS: Mapping[Finish, str] = {
    "stop": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "refusal": "stop",
}


class OpenAiChat:
    name = "openai-chat"
    id_prefix = "chatcmpl-"
    stream_type = SSE

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        request = read(_Request, body)
        if not request.messages:
            raise BadRequest("messages: at least one message is needed")
        tools = request.tools or []
        offered = () if request.tool_choice == "none" else tuple(tool.function.name for tool in tools)
        stop = request.stop or ()
        return Ask(
            model=request.model,
            conversation=_conversation(request, offered),
            billable=(*map(_billable, request.messages), *(compact(tool.model_dump()) for tool in tools)),
            stream=bool(request.stream),
            include_usage=not request.stream or bool(request.stream_options and request.stream_options.include_usage),
            json_wanted=bool(request.response_format and request.response_format.type != "text"),
            output_tokens_max=request.max_completion_tokens or request.max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )

    def unary(self, reply: Reply) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": None, "refusal": None, **_message_fields(reply)}
        choice: JsonObject = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH_REASONS[reply.finish],
        }
        usage = {"usage": usage_json(reply.usage)} if reply.usage else {}
        return {**_envelope(reply, "chat.completion"), "choices": [choice], **usage}

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        include_usage = ask.include_usage and reply.usage is not None
        envelope = {**_envelope(reply, "chat.completion.chunk"), **({"usage": None} if include_usage else {})}
        frames = [data_frame({**envelope, "choices": [_delta(delta)]}) for delta in _deltas(reply)]
        frames.append(data_frame({**envelope, "choices": [_delta({}, _FINISH_REASONS[reply.finish])]}))
        if include_usage and reply.usage:
            frames.append(data_frame({**envelope, "choices": [], "usage": usage_json(reply.usage)}))
        return [*frames, DONE]

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        kind = KNOWN_STATUS_TYPES.get(status, "server_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def error_frame(self, message: str, code: str | None) -> bytes:
        return data_frame(self.error(500, message, code))


def usage_json(usage: TokenUsage) -> JsonObject:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": 0},
    }


def _conversation(request: _Request, offered: Sequence[str]) -> Conversation:
    messages = request.messages
    last_user = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    return Conversation(
        instructions=joined([text_of(m.content) for m in messages if m.role in {"system", "developer"}]),
        input=text_of(messages[last_user].content) if last_user >= 0 else "",
        calls=tuple(_past_calls(messages, last_user)),
        tools=frozenset(offered),
        parallel_calls=request.parallel_tool_calls is not False,
        messages=len(messages),
    )


def _past_calls(messages: Sequence[_Message], last_user: int) -> Iterator[PastCall]:
    results = {message.tool_call_id: text_of(message.content) for message in messages if message.role == "tool"}
    for at, message in enumerate(messages):
        for call in message.tool_calls or []:
            if call.id not in results:
                raise BadRequest(f"messages.{at}.tool_calls: no tool message answers the call {call.id!r}")
            if at > last_user:
                yield PastCall(call.id, call.function.name, results[call.id])


def _billable(message: _Message) -> str:
    calls = [call.function.name + call.function.arguments for call in message.tool_calls or []]
    return joined([text_of(message.content), *calls])


def _envelope(reply: Reply, kind: str) -> JsonObject:
    return {
        "id": reply.id,
        "object": kind,
        "created": reply.created,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def _message_fields(reply: Reply) -> JsonObject:
    match reply.turn:
        case CallTools(calls):
            return {"tool_calls": [_tool_call(c.id, c.name, arguments_text(c.arguments)) for c in calls]}
        case Answer(text):
            return {"content": text}
        case Refusal(text):
            return {"refusal": text}


def _tool_call(call_id: str, name: str, arguments: str) -> JsonObject:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _deltas(reply: Reply) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            yield {"role": "assistant", "content": None}
            for index, call in enumerate(calls):
                yield {"tool_calls": [{"index": index, **_tool_call(call.id, call.name, "")}]}
                for piece in argument_pieces(arguments_text(call.arguments)):
                    yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        case Answer(text):
            yield {"role": "assistant", "content": "", "refusal": None}
            yield from ({"content": piece} for piece in text_pieces(text))
        case Refusal(text):
            yield {"role": "assistant", "refusal": ""}
            yield from ({"refusal": piece} for piece in text_pieces(text))
