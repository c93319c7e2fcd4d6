"""Anthropic messages: POST /v1/messages and /v1/messages/count_tokens. Pure.

Reference: https://docs.claude.com/en/api/messages, as the SDK anthropic 2.12 types it. From API version 2026-10-21
on the sampling parameters are refused with status 400, as the provider does.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from provider_simulator.conversation import (
    Answer,
    Ask,
    BadRequest,
    CallTools,
    Conversation,
    Finish,
    JsonObject,
    PastCall,
    Prefix,
    Refusal,
    Reply,
    TokenUsage,
)
from provider_simulator.dialect import KNOWN_STATUS_TYPES
from provider_simulator.frames import SSE, argument_pieces, named_frame, text_pieces
from provider_simulator.reply import FINGERPRINT, arguments_text, count_input
from provider_simulator.wire import Content, ContentPart, WireModel, compact, joined, read, text_of

NO_SAMPLING_SINCE = "2026-10-21"

_STATUS_TYPES: Mapping[int, str] = {
    **KNOWN_STATUS_TYPES,
    402: "billing_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _CacheControl(WireModel):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class _Told(ContentPart):
    cache_control: _CacheControl | None = None


class _Block(WireModel):
    """Any content block; only text, tool_use and tool_result are read."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: JsonObject = Field(default_factory=dict)
    tool_use_id: str = ""
    content: Content = None
    is_error: bool = False
    cache_control: _CacheControl | None = None


class _Message(WireModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]

    def blocks(self) -> list[_Block]:
        return [_Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    def text(self) -> str:
        return joined([block.text for block in self.blocks() if block.type == "text"])


class _Tool(WireModel):
    name: str
    description: str | None = None
    input_schema: JsonObject | None = None
    cache_control: _CacheControl | None = None


class _ToolChoice(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    disable_parallel_tool_use: bool = False


class _Format(WireModel):
    type: Literal["json_schema"]


class _OutputConfig(WireModel):
    format: _Format | None = None


class _Countable(WireModel):
    """What count_tokens takes: a request without a limit."""

    model: str
    messages: list[_Message]
    system: str | list[_Told] | None = None
    tools: list[_Tool] | None = None

    def instructions(self) -> str:
        return text_of(self.system if self.system is None or isinstance(self.system, str) else list(self.system))


class _Request(_Countable):
    max_tokens: int = Field(ge=1)
    tool_choice: _ToolChoice | None = None
    output_config: _OutputConfig | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    cache_control: _CacheControl | None = None


_STOP_REASONS: Mapping[Finish, str] = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
}


class AnthropicMessages:
    name = "anthropic-messages"
    id_prefix = "msg_"
    stream_type = SSE

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        version = required_version(headers)
        request = read(_Request, body)
        _check_sampling(request, version)
        choice = request.tool_choice
        offered = () if choice and choice.type == "none" else tuple(tool.name for tool in request.tools or [])
        return Ask(
            model=request.model,
            conversation=_conversation(request, offered, parallel=not (choice and choice.disable_parallel_tool_use)),
            billable=countable_texts(request),
            stream=request.stream,
            json_wanted=bool(request.output_config and request.output_config.format),
            output_tokens_max=request.max_tokens,
            stop=tuple(request.stop_sequences or ()),
            prefixes=tuple(_prefixes(request)),
        )

    def parse_countable(self, body: bytes, headers: Mapping[str, str]) -> tuple[str, ...]:
        """The texts that count_tokens counts. Raises BadRequest."""
        required_version(headers)
        return countable_texts(read(_Countable, body))

    def unary(self, reply: Reply) -> JsonObject:
        usage = {"usage": usage_json(reply.usage)} if reply.usage else {}
        return {**_envelope(reply), "content": list(_content(reply)), **_ending(reply), **usage}

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        events: list[JsonObject] = [
            {"type": "message_start", "message": _opening(reply)},
            {"type": "ping"},
            *_block_events(reply),
            {"type": "message_delta", "delta": _ending(reply), **_cumulative(reply.usage)},
            {"type": "message_stop"},
        ]
        return [named_frame(str(event["type"]), event) for event in events]

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        details: JsonObject = {"details": {"error_code": code}} if code else {}
        return {
            "type": "error",
            "error": {"type": _STATUS_TYPES.get(status, "api_error"), "message": message, **details},
            "request_id": None,
        }

    def error_frame(self, message: str, code: str | None) -> bytes:
        return named_frame("error", self.error(529, message, code))


def required_version(headers: Mapping[str, str]) -> str:
    version = headers.get("anthropic-version")
    if not version:
        raise BadRequest("anthropic-version: header is required")
    return version


def usage_json(usage: TokenUsage) -> JsonObject:
    written: JsonObject = {
        "ephemeral_5m_input_tokens": usage.written_5m,
        "ephemeral_1h_input_tokens": usage.written_1h,
    }
    return {
        "input_tokens": usage.input - usage.cached_input - usage.written_5m - usage.written_1h,
        "cache_creation_input_tokens": usage.written_5m + usage.written_1h,
        "cache_read_input_tokens": usage.cached_input,
        "cache_creation": written,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "service_tier": "standard",
    }


def _opening(reply: Reply) -> JsonObject:
    """The message of message_start: the input is counted already, the output is a placeholder of one token."""
    usage: JsonObject = {"usage": {**usage_json(reply.usage), "output_tokens": 1}} if reply.usage else {}
    empty: JsonObject = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    return {**_envelope(reply), **empty, **usage}


def _cumulative(usage: TokenUsage | None) -> JsonObject:
    """The usage of message_delta: totals so far, never increments."""
    if usage is None:
        return {}
    whole = usage_json(usage)
    return {"usage": {key: value for key, value in whole.items() if key not in {"cache_creation", "service_tier"}}}


def countable_texts(request: _Countable) -> tuple[str, ...]:
    system = request.instructions()
    tools = map(_described, request.tools or [])
    return (*([system] if system else []), *map(_billable, request.messages), *tools)


def _prefixes(request: _Request) -> Iterator[Prefix]:
    """Counted as the whole is, and never more than that: pieces of one message are rounded up each."""
    most, seen = count_input(countable_texts(request)), list[str]()
    pieces = list(_pieces(request))
    for number, (text, control) in enumerate(pieces, start=1):
        seen.append(text)
        ends = control or (request.cache_control if number == len(pieces) else None)
        if ends:
            digest = hashlib.sha256("\0".join(seen).encode()).hexdigest()
            yield Prefix(digest, min(most, count_input(seen)), ends.ttl)


def _pieces(request: _Request) -> Iterator[tuple[str, _CacheControl | None]]:
    """In the order in which the provider caches them."""
    for tool in request.tools or []:
        yield _described(tool), tool.cache_control
    if isinstance(request.system, str):
        yield request.system, None
    else:
        yield from ((told.text, told.cache_control) for told in request.system or [])
    for message in request.messages:
        yield from ((f"{message.role}: {_block_text(block)}", block.cache_control) for block in message.blocks())


def _described(tool: _Tool) -> str:
    return compact(tool.model_dump(exclude={"cache_control"}))


def _check_sampling(request: _Request, version: str) -> None:
    for name in ("temperature", "top_p", "top_k"):
        if version >= NO_SAMPLING_SINCE and getattr(request, name) is not None:
            raise BadRequest(f"{name}: not supported in API version {version}")


def _conversation(request: _Request, offered: Sequence[str], *, parallel: bool) -> Conversation:
    messages = request.messages
    spoken = [at for at, m in enumerate(messages) if m.role == "user" and _is_spoken(m)]
    last_user = max(spoken, default=-1)
    told = [message.text() for message in messages if message.role == "system"]
    return Conversation(
        instructions=joined([request.instructions(), *told]),
        input=messages[last_user].text() if spoken else "",
        calls=tuple(_past_calls(messages, last_user)),
        tools=frozenset(offered),
        parallel_calls=parallel,
        messages=len(messages),
    )


def _is_spoken(message: _Message) -> bool:
    """A user message that holds only tool results continues the turn; any other content begins a new one."""
    return any(block.type != "tool_result" for block in message.blocks())


def _past_calls(messages: Sequence[_Message], last_user: int) -> Iterator[PastCall]:
    blocks = [(at, block) for at, message in enumerate(messages) for block in message.blocks()]
    results = {block.tool_use_id: block for _, block in blocks if block.type == "tool_result"}
    for at, block in blocks:
        if block.type != "tool_use":
            continue
        if block.id not in results:
            raise BadRequest(f"messages.{at}: tool_use ids were found without tool_result blocks: {block.id}")
        if at > last_user:
            result = results[block.id]
            yield PastCall(block.id, block.name, text_of(result.content), failed=result.is_error)


def _billable(message: _Message) -> str:
    return joined([_block_text(block) for block in message.blocks()])


def _block_text(block: _Block) -> str:
    if block.type == "tool_use":
        return block.name + compact(block.input)
    return block.text or block.thinking or text_of(block.content)


def _envelope(reply: Reply) -> JsonObject:
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "system_fingerprint": FINGERPRINT,
    }


def _ending(reply: Reply) -> JsonObject:
    refused = isinstance(reply.turn, Refusal)
    explanation = reply.turn.text if isinstance(reply.turn, Refusal) else None
    return {
        "stop_reason": _STOP_REASONS[reply.finish],
        "stop_sequence": reply.matched_stop,
        "stop_details": {"type": "refusal", "category": None, "explanation": explanation} if refused else None,
    }


def _content(reply: Reply) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            for call in calls:
                yield {"type": "tool_use", "id": _tool_use_id(call.id), "name": call.name, "input": call.arguments}
        case Answer(text):
            yield {"type": "text", "text": text}
        case Refusal():
            return  # the reason stands in stop_details


def _block_events(reply: Reply) -> Iterator[JsonObject]:
    for index, block in enumerate(_content(reply)):
        yield {"type": "content_block_start", "index": index, "content_block": _emptied(block)}
        for delta in _block_deltas(reply, index):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}


def _emptied(block: JsonObject) -> JsonObject:
    return {**block, "input": {}} if block["type"] == "tool_use" else {**block, "text": ""}


def _block_deltas(reply: Reply, index: int) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            text = arguments_text(calls[index].arguments)
            yield from ({"type": "input_json_delta", "partial_json": piece} for piece in ("", *argument_pieces(text)))
        case Answer(text):
            yield from ({"type": "text_delta", "text": piece} for piece in text_pieces(text))
        case Refusal():
            return


def _tool_use_id(call_id: str) -> str:
    return call_id.replace("call_", "toolu_", 1)
