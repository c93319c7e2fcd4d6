"""The dialect anthropic-messages: POST /v1/messages. Pure.

Contract: the SDK anthropic 2.12 and its API version; tests read the same recorded bytes through the SDK and through
this file. On this wire `input_tokens` leaves the cache out, and the usage of `message_delta` is cumulative: the
last one counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import orjson
from servicekit import numbers

from llm_gateway.domain import (
    Completed,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
    Opaque,
    Part,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Refusal,
    RefusalDelta,
    Started,
    StreamPart,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolUnits,
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import InvalidUsage, ProviderError
from llm_gateway.providers.anthropic_messages_request import encode, encode_count
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT, Assembler
from llm_gateway.providers.failures import failure, failure_inside_answer
from llm_gateway.providers.sse import SseEvent

NAME = "anthropic-messages"
API_VERSION = "2026-10-21"

_FINISH_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}


# The wire, as far as it is read. TypedDicts cost nothing at run time; a wrong shape surfaces as KeyError or TypeError.


class _CacheCreation(TypedDict, total=False):
    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class _OutputDetails(TypedDict, total=False):
    thinking_tokens: int | None


class _Usage(TypedDict, total=False):
    input_tokens: int | None
    output_tokens: int | None
    cache_creation_input_tokens: int | None
    cache_read_input_tokens: int | None
    cache_creation: _CacheCreation | None
    output_tokens_details: _OutputDetails | None
    server_tool_use: Mapping[str, int | None] | None
    service_tier: str | None


class _Block(TypedDict, total=False):
    type: str
    text: str
    thinking: str
    signature: str
    id: str
    name: str
    input: Mapping[str, object]


class _StopDetails(TypedDict, total=False):
    explanation: str | None


class _Ending(TypedDict, total=False):
    stop_reason: str | None
    stop_details: _StopDetails | None


class _Message(_Ending, total=False):
    id: str
    model: str
    system_fingerprint: str
    content: list[_Block]
    usage: _Usage | None


class _Delta(_Ending, total=False):
    type: str
    text: str
    partial_json: str
    thinking: str
    signature: str


class _Error(TypedDict, total=False):
    type: str
    message: str
    details: Mapping[str, str] | None


class _Event(TypedDict, total=False):
    """Any event of a stream, or an error in the place of a message."""

    type: str
    message: _Message
    index: int
    content_block: _Block
    delta: _Delta
    usage: _Usage | None
    error: _Error


class AnthropicMessagesDialect:
    name = NAME

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/messages"

    def models_path(self) -> str:
        return "/v1/models"

    def count_path(self, model: str) -> str | None:
        return "/v1/messages/count_tokens"

    def encode_count(self, request: ModelRequest) -> bytes:
        return encode_count(request)

    def decode_count(self, body: bytes) -> int:
        return int(orjson.loads(body)["input_tokens"])

    def headers(self, api_key: str) -> Mapping[str, str]:
        return {"x-api-key": api_key, "anthropic-version": API_VERSION}

    def encode(self, request: ModelRequest, *, stream: bool) -> bytes:
        return encode(request, stream=stream)

    def decode(self, body: bytes) -> ModelResponse:
        parsed = numbers.loads(body)
        _raise_error_inside(parsed)
        message: _Message = parsed
        answer = _Answer(message)
        answer.parts.extend(_part(block) for block in message["content"])
        answer.end(message)
        answer.read_usage(message.get("usage"))
        return answer.response()

    def assembler(self) -> Assembler:
        return _MessageAssembler()

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        message, code = _error_of(body)
        return failure(status, message, code=code, request_id=request_id, retry_after_s=retry_after_s)


class _Answer:
    """An answer while it grows; `response()` closes it."""

    def __init__(self, message: _Message) -> None:
        self._id = message["id"]
        self._model = message["model"]
        self._simulated = message.get("system_fingerprint") == SIMULATOR_FINGERPRINT
        self._stop_reason = ""
        self._refusal = ""
        self._usage: _Usage = {}
        self.parts: list[Part] = []

    def end(self, ending: _Ending) -> None:
        self._stop_reason = ending.get("stop_reason") or self._stop_reason
        details = ending.get("stop_details") or {}
        self._refusal = details.get("explanation") or self._refusal

    def read_usage(self, usage: _Usage | None) -> None:
        """Counts are cumulative, so present ones replace earlier ones and absent ones keep them."""
        for name, value in (usage or {}).items():
            if value is not None:
                self._usage[name] = value  # type: ignore[literal-required]

    def usage(self) -> Usage | None:
        try:
            return usage_of(self._usage) if self._usage else None
        except InvalidUsage:
            return None

    def refusal(self) -> tuple[Refusal, ...]:
        """Why the model refused, once it has ended: the wire says so nowhere else."""
        return (Refusal(self._refusal),) if self._refusal and self._stop_reason == "refusal" else ()

    def response(self) -> ModelResponse:
        return ModelResponse(
            message=Message("assistant", (*(part for part in self.parts if part != Text("")), *self.refusal())),
            finish_reason=_FINISH_REASONS.get(self._stop_reason, "error"),
            raw_finish_reason=self._stop_reason,
            usage=self.usage(),
            provider_response_id=self._id,
            model=self._model,
            warnings=tuple(self._usage_warnings()),
            simulated=self._simulated,
            service_tier=self._usage.get("service_tier") or "",
        )

    def _usage_warnings(self) -> Iterator[str]:
        if not self._usage:
            yield "the provider reported no usage"
            return
        try:
            usage_of(self._usage)
        except InvalidUsage as error:
            yield f"the provider's usage was not believed: {error}"


class _GrowingBlock:
    """A content block while its deltas come; `call_index` counts the tool calls of the answer, from 0."""

    def __init__(self, block: _Block, call_index: int) -> None:
        self._block = block
        self._pieces: list[str] = []
        self._signature: list[str] = []
        self._call_index = call_index

    def begin(self) -> StreamPart | None:
        """What its start says. Arguments among it are not said yet: deltas take their place, if any come."""
        match self._block["type"]:
            case "text" if text := self._block.get("text"):
                return TextDelta(self._keep(text))
            case "thinking" if thinking := self._block.get("thinking"):
                return ReasoningDelta(self._keep(thinking))
            case "tool_use":
                return ToolCallDelta(self._call_index, self._block["id"], self._block["name"], "")
        return None

    def grow(self, delta: _Delta) -> StreamPart | None:
        match delta["type"]:
            case "text_delta":
                return TextDelta(self._keep(delta["text"]))
            case "thinking_delta":
                return ReasoningDelta(self._keep(delta["thinking"]))
            case "input_json_delta":
                piece = self._keep(delta["partial_json"])
                return ToolCallDelta(self._call_index, "", "", piece) if self._block["type"] == "tool_use" else None
            case "signature_delta":
                self._signature.append(delta["signature"])
        return None

    def end(self) -> StreamPart | None:
        """The arguments that came with the start, where no delta took their place: mostly those of a call without any."""
        if self._block["type"] == "tool_use" and not any(self._pieces):
            arguments = self._keep(numbers.dumps(self._block.get("input") or {}).decode())
            return ToolCallDelta(self._call_index, "", "", arguments)
        return None

    def part(self) -> Part:
        """The block as a whole; after its `end`."""
        whole = "".join(self._pieces)
        match self._block["type"]:
            case "text":
                return Text(whole)
            case "thinking":
                signature = "".join(self._signature) or self._block.get("signature", "")
                return _reasoning({**self._block, "thinking": whole, "signature": signature})
            case "tool_use":
                return ToolCall(self._block["id"], self._block["name"], whole)
            case _:
                return _part({**self._block, "input": numbers.loads(whole)} if whole else self._block)

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece


class _MessageAssembler:
    def __init__(self) -> None:
        self._answer: _Answer | None = None
        self._open: dict[int, _GrowingBlock] = {}
        self._calls = 0

    def feed(self, event: SseEvent) -> Sequence[StreamPart]:
        parsed: _Event = orjson.loads(event.data)
        _raise_error_inside(parsed)
        if parsed["type"] == "message_start":
            return list(self._start(parsed["message"]))
        if self._answer is None:
            return ()
        return list(self._parts(parsed, event.data, self._answer))

    def _start(self, message: _Message) -> Iterator[StreamPart]:
        self._answer = _Answer(message)
        self._answer.read_usage(message.get("usage"))
        yield Started(message["id"], message["model"])
        yield from _usage_updates(self._answer)

    def _parts(self, event: _Event, data: bytes, answer: _Answer) -> Iterator[StreamPart]:
        match event["type"]:
            case "content_block_start":
                block = event["content_block"]
                # Read again with every number exact, in the rare case that there may be any.
                yield from self._open_block(
                    event["index"], numbers.loads(data)["content_block"] if block.get("input") else block
                )
            case "content_block_delta":
                part = self._open[event["index"]].grow(event["delta"])
                yield from (part,) if part else ()
            case "content_block_stop":
                closed = self._open.pop(event["index"])
                part = closed.end()
                yield from (part,) if part else ()
                answer.parts.append(whole := closed.part())
                if isinstance(whole, Reasoning | Opaque):
                    yield ReasoningDone(whole)
            case "message_delta":
                answer.end(event["delta"])
                answer.read_usage(event.get("usage"))
                yield from _usage_updates(answer)
            case "message_stop":
                yield from (RefusalDelta(said.text) for said in answer.refusal())
                yield Completed(answer.response())

    def _open_block(self, index: int, block: _Block) -> Iterator[StreamPart]:
        opened = self._open[index] = _GrowingBlock(block, self._calls)
        part = opened.begin()
        yield from (part,) if part else ()
        if block["type"] == "tool_use":
            self._calls += 1


def usage_of(usage: _Usage) -> Usage:
    """The inclusive input is the sum of uncached, written and read tokens. Raises InvalidUsage."""
    created = usage.get("cache_creation_input_tokens") or 0
    hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    output = usage.get("output_tokens") or 0
    thinking = (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    tools = (usage.get("server_tool_use") or {}).items()
    return Usage.of(
        (
            UsageLine("input", usage.get("input_tokens") or 0),
            UsageLine("input", usage.get("cache_read_input_tokens") or 0, cache="read"),
            UsageLine("input", created - hour, cache="write", ttl="5m"),
            UsageLine("input", hour, cache="write", ttl="1h"),
            UsageLine("output", output - thinking),
            UsageLine("output", thinking, reasoning=True),
        ),
        tuple(ToolUnits(name.removesuffix("_requests"), count) for name, count in tools if count),
    )


def _usage_updates(answer: _Answer) -> Iterator[UsageUpdated]:
    if usage := answer.usage():
        yield UsageUpdated(usage)


def _part(block: _Block) -> Part:
    match block["type"]:
        case "text":
            return Text(block["text"])
        case "tool_use":
            return ToolCall(block["id"], block["name"], numbers.dumps(block["input"]).decode())
        case "thinking" | "redacted_thinking":
            return _reasoning(block)
        case _:
            return Opaque(NAME, numbers.dumps(block))


def _reasoning(block: _Block) -> Reasoning:
    """The block as a whole goes back; its signature covers the text, so nothing in it may change."""
    return Reasoning(block.get("thinking", ""), NAME, numbers.dumps(block))


def _raise_error_inside(event: _Event) -> None:
    if event.get("type") == "error":
        error = event["error"]
        raise failure_inside_answer(error.get("type", ""), _code(error), error.get("message", ""))


def _code(error: _Error) -> str | None:
    """The stable code to branch on, where there is one."""
    return (error.get("details") or {}).get("error_code")


def _error_of(body: bytes) -> tuple[str, str | None]:
    """Message and code of an error body; a body that is no such JSON is its own message."""
    try:
        parsed: _Event = orjson.loads(body)
        error = parsed["error"]
        return error.get("message", ""), _code(error) or error.get("type")
    except (ValueError, KeyError, AttributeError, TypeError):
        return body[:1000].decode(errors="replace"), None
