"""The dialect openai-chat: POST /chat/completions, as OpenAI, Ollama, vLLM and many others speak it. Pure.

Contract: the SDK openai 3.54; tests read the same recorded bytes through the SDK and through this file. What it
adds is strictness: a stream without `[DONE]` is not finished, and usage is checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import orjson

from llm_gateway.domain import (
    Completed,
    FinishReason,
    Message,
    ModelRequest,
    ModelResponse,
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
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import InvalidUsage, MalformedResponse, ProviderError, RequestRejected
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT, Assembler
from llm_gateway.providers.failures import failure, failure_inside_answer
from llm_gateway.providers.openai_chat_request import ChatWire, encode
from llm_gateway.providers.sse import SseEvent

NAME = "openai-chat"

_DONE = b"[DONE]"
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


# The wire, as far as it is read. TypedDicts cost nothing at run time; a wrong shape surfaces as KeyError or TypeError.


class _PromptDetails(TypedDict, total=False):
    cached_tokens: int | None
    cache_write_tokens: int | None
    audio_tokens: int | None
    image_tokens: int | None


class _CompletionDetails(TypedDict, total=False):
    reasoning_tokens: int | None
    audio_tokens: int | None


class _Usage(TypedDict, total=False):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None
    completion_tokens_details: _CompletionDetails | None


class _Function(TypedDict, total=False):
    name: str | None
    arguments: str | None


class _ToolCall(TypedDict, total=False):
    index: int
    id: str | None
    function: _Function


class _Message(TypedDict, total=False):
    """A whole message, or the delta of one. The two last fields are what local servers call reasoning."""

    content: str | None
    refusal: str | None
    tool_calls: list[_ToolCall] | None
    reasoning_content: str | None
    reasoning: str | None


class _Choice(TypedDict, total=False):
    message: _Message
    delta: _Message
    finish_reason: str | None


class _Body(TypedDict, total=False):
    """A completion, a chunk of one, or an error in the place of either."""

    id: str
    model: str
    system_fingerprint: str | None
    choices: list[_Choice]
    usage: _Usage | None
    service_tier: str | None
    error: "_Error | str | None"
    message: str


class _Error(TypedDict, total=False):
    message: str
    type: str | None
    code: str | int | None


class OpenAiChatDialect:
    name = NAME

    def __init__(self, wire: ChatWire | None = None) -> None:
        self._wire = wire or ChatWire()

    def path(self, model: str, *, stream: bool) -> str:
        return "/chat/completions"

    def models_path(self) -> str:
        return "/models"

    def count_path(self, model: str) -> str | None:
        return None

    def encode_count(self, request: ModelRequest) -> bytes:
        raise RequestRejected("this wire format counts no tokens")

    def decode_count(self, body: bytes) -> int:
        raise RequestRejected("this wire format counts no tokens")

    def headers(self, api_key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def encode(self, request: ModelRequest, *, stream: bool) -> bytes:
        return encode(request, self._wire, stream=stream)

    def decode(self, body: bytes) -> ModelResponse:
        parsed: _Body = orjson.loads(body)
        _raise_error_inside(parsed)
        choice = parsed["choices"][0]
        answer = _Answer(parsed)
        answer.add(choice["message"], [])
        answer.finish_reason = choice.get("finish_reason") or ""
        answer.read_usage(parsed.get("usage"))
        return answer.response()

    def assembler(self) -> Assembler:
        return _ChatAssembler()

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        message, code = error_of(body)
        return failure(status, message, code=code, request_id=request_id, retry_after_s=retry_after_s)


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str]


_Kind: TypeAlias = type[Text] | type[Refusal] | type[Reasoning]


@dataclass(slots=True)
class _Run:
    """What was said in a row, in one way."""

    kind: _Kind
    pieces: list[str]
    is_over: bool = False

    def part(self) -> Text | Refusal | Reasoning:
        whole = "".join(self.pieces)
        if self.kind is Reasoning:
            return _reasoning(whole)
        return Text(whole) if self.kind is Text else Refusal(whole)


class _Answer:
    """An answer while it grows; `response()` closes it."""

    def __init__(self, body: _Body) -> None:
        self.id = body["id"]
        self.model = body["model"]
        self.simulated = body.get("system_fingerprint") == SIMULATOR_FINGERPRINT
        self.runs: list[_Run] = []
        self.calls: list[_Call] = []
        self.finish_reason = ""
        self.service_tier = body.get("service_tier") or ""
        self.usage: Usage | None = None
        self._warnings: tuple[str, ...] = ("the provider reported no usage",)

    def add(self, message: _Message, added: list[StreamPart]) -> None:
        """Take in a whole message, or the delta of one; what that adds is appended to `added`."""
        if reasoning := message.get("reasoning_content") or message.get("reasoning"):
            self._grow(Reasoning, reasoning, added)
            added.append(ReasoningDelta(reasoning))
        if text := message.get("content"):
            self._grow(Text, text, added)
            added.append(TextDelta(text))
        if refusal := message.get("refusal"):
            self._grow(Refusal, refusal, added)
            added.append(RefusalDelta(refusal))
        if calls := message.get("tool_calls"):
            self.end_reasoning(added)
            added.extend([_add_call(self.calls, call) for call in calls])

    def end_reasoning(self, added: list[StreamPart]) -> None:
        """No event says so on this wire: what comes next does."""
        run = self.runs[-1] if self.runs else None
        if run is not None and run.kind is Reasoning and not run.is_over:
            run.is_over = True
            added.append(ReasoningDone(_reasoning("".join(run.pieces))))

    def read_usage(self, usage: _Usage | None) -> None:
        """The last usage counts: some servers send a running count with every chunk."""
        if not usage:
            return
        try:
            self.usage, self._warnings = usage_of(usage), ()
        except InvalidUsage as error:
            self.usage, self._warnings = None, (f"the provider's usage was not believed: {error}",)

    def response(self) -> ModelResponse:
        return ModelResponse(
            message=Message("assistant", tuple(self._parts())),
            finish_reason=self._finish_reason(),
            raw_finish_reason=self.finish_reason,
            usage=self.usage,
            provider_response_id=self.id,
            model=self.model,
            warnings=self._warnings,
            simulated=self.simulated,
            service_tier=self.service_tier,
        )

    def _parts(self) -> Iterator[Part]:
        yield from (run.part() for run in self.runs)
        for call in self.calls:
            yield ToolCall(call.id, call.name, "".join(call.arguments))

    def _finish_reason(self) -> FinishReason:
        """Servers say `stop` for a refusal, and for a call that was forced by tool_choice."""
        reason = _FINISH_REASONS.get(self.finish_reason, "error")
        if reason == "stop" and self.calls:
            return "tool_calls"
        refused = any(run.kind is Refusal for run in self.runs)
        return "refusal" if reason == "stop" and refused else reason

    def _grow(self, kind: _Kind, piece: str, added: list[StreamPart]) -> None:
        run = self.runs[-1] if self.runs else None
        if run is None or run.kind is not kind or run.is_over:
            self.end_reasoning(added)
            self.runs.append(run := _Run(kind, []))
        run.pieces.append(piece)


class _ChatAssembler:
    def __init__(self) -> None:
        self._answer: _Answer | None = None

    def feed(self, event: SseEvent) -> Sequence[StreamPart]:
        if event.data == _DONE:
            return self._end()
        chunk: _Body = orjson.loads(event.data)
        if "error" in chunk:
            _raise_error_inside(chunk)
        parts: list[StreamPart] = []
        answer = self._answer or self._begun(chunk, parts)
        if tier := chunk.get("service_tier"):
            answer.service_tier = tier
        for choice in chunk.get("choices") or ():
            answer.add(choice.get("delta") or {}, parts)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if usage := chunk.get("usage"):
            answer.read_usage(usage)
            if answer.usage:
                parts.append(UsageUpdated(answer.usage))
        return parts

    def _end(self) -> Sequence[StreamPart]:
        answer, parts = self._finished(), list[StreamPart]()
        answer.end_reasoning(parts)
        return [*parts, Completed(answer.response())]

    def _begun(self, chunk: _Body, parts: list[StreamPart]) -> _Answer:
        self._answer = _Answer(chunk)
        parts.append(Started(self._answer.id, self._answer.model))
        return self._answer

    def _finished(self) -> _Answer:
        if self._answer is None or not self._answer.finish_reason:
            raise MalformedResponse("the stream says it is done, but no finish reason came")
        return self._answer


def usage_of(usage: _Usage) -> Usage:
    """Totals are inclusive on this wire: cached and audio tokens are shares of the prompt. Raises InvalidUsage.

    Which tokens were cached is not said: text first, since the others then cost their full price; what is left of them
    are images, which are priced as text is, and then sound, at its own price.
    """
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    into, out = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    read, write = into.get("cached_tokens") or 0, into.get("cache_write_tokens") or 0
    audio, image = into.get("audio_tokens") or 0, into.get("image_tokens") or 0
    reasoning, spoken = out.get("reasoning_tokens") or 0, out.get("audio_tokens") or 0
    if not (read or write or audio or image or reasoning or spoken):
        return Usage.of((UsageLine("input", prompt), UsageLine("output", completion)))
    beyond_text = max(0, read + write + audio + image - prompt)
    image -= (seen := min(image, beyond_text))
    audio -= (heard := min(audio, beyond_text - seen))
    heard = min(heard, read)
    return Usage.of(
        (
            UsageLine("input", prompt - read - write - audio - image),
            UsageLine("input", read - heard, cache="read"),
            UsageLine("input", heard, modality="audio", cache="read"),
            UsageLine("input", write, cache="write"),
            UsageLine("input", audio, modality="audio"),
            UsageLine("input", image, modality="image"),
            UsageLine("output", completion - reasoning - spoken),
            UsageLine("output", reasoning, reasoning=True),
            UsageLine("output", spoken, modality="audio"),
        )
    )


def _reasoning(text: str) -> Reasoning:
    return Reasoning(text, NAME, text.encode())


def _add_call(calls: list[_Call], delta: _ToolCall) -> ToolCallDelta:
    """Some servers number every call 0 and send each whole, so a new id begins a new call whatever its index says."""
    index, call_id, function = delta.get("index", len(calls)), delta.get("id") or "", delta.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    if index >= len(calls) or (call_id and call_id != calls[index].id):
        index = len(calls)
        calls.append(_Call(call_id, name, [arguments]))
        return ToolCallDelta(index, call_id, name, arguments)
    calls[index].arguments.append(arguments)
    return ToolCallDelta(index, "", "", arguments)


def _raise_error_inside(body: _Body) -> None:
    error = body.get("error")
    if isinstance(error, str):
        raise failure_inside_answer("", None, error)
    if error:
        code = error.get("code")
        raise failure_inside_answer(error.get("type") or "", str(code) if code else None, error.get("message") or "")


def error_of(body: bytes) -> tuple[str, str | None]:
    """Message and code of an error body; a body that is no such JSON is its own message."""
    try:
        parsed: _Body = orjson.loads(body)
        error = parsed.get("error") or parsed.get("message") or {}
        if isinstance(error, str):
            return error, None
        code = error.get("code") or error.get("type")
        return error.get("message") or "", str(code) if code else None
    except (ValueError, AttributeError):
        return body[:1000].decode(errors="replace"), None
