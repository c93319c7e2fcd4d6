"""The dialect gemini-generate: POST /v1beta/models/<model>:generateContent and :streamGenerateContent. Pure.

Reference: https://ai.google.dev/api/generate-content (GenerateContentResponse, FinishReason, UsageMetadata) and
https://ai.google.dev/gemini-api/docs/thought-signatures. A stream has no event that only ends it: the chunk with the
finish reason is the last one. Cached tokens are a share of the prompt; thoughts are not a share of the candidates.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, TypedDict

import orjson
from servicekit import numbers

from llm_gateway.domain import (
    Completed,
    FinishReason,
    Message,
    Modality,
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
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import InvalidUsage, ProviderError
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT, Assembler
from llm_gateway.providers.failures import duration_s, failure, inside_answer
from llm_gateway.providers.gemini_generate_request import SIGNATURE, encode
from llm_gateway.providers.sse import SseEvent

NAME: Final = "gemini-generate"
_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "SPII": "content_filter",
    "LANGUAGE": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
_MEDIA: Final[Mapping[Modality, tuple[str, ...]]] = {
    "image": ("IMAGE", "DOCUMENT"),
    "video": ("VIDEO",),
    "audio": ("AUDIO",),
}
_THOUGHT: Final = frozenset({"text", "thought"})
"""What a part that is a piece of a thought holds."""
_RETRY_INFO: Final = "type.googleapis.com/google.rpc.RetryInfo"


# The wire, as far as it is read. TypedDicts cost nothing at run time; a wrong shape surfaces as KeyError or TypeError.


class _Call(TypedDict, total=False):
    id: str
    name: str
    args: Mapping[str, object]


class _Part(TypedDict, total=False):
    text: str
    thought: bool
    thoughtSignature: str
    functionCall: _Call


class _Content(TypedDict, total=False):
    parts: list[_Part]


class _Candidate(TypedDict, total=False):
    content: _Content
    finishReason: str
    finishMessage: str


class _Modality(TypedDict, total=False):
    modality: str
    tokenCount: int


class _Usage(TypedDict, total=False):
    promptTokenCount: int
    cachedContentTokenCount: int
    candidatesTokenCount: int
    thoughtsTokenCount: int
    toolUsePromptTokenCount: int
    promptTokensDetails: list[_Modality]
    cacheTokensDetails: list[_Modality]


class _Feedback(TypedDict, total=False):
    blockReason: str
    blockReasonMessage: str


class _Error(TypedDict, total=False):
    code: int
    message: str
    status: str
    details: list[Mapping[str, str]]


class _Body(TypedDict, total=False):
    responseId: str
    modelVersion: str
    system_fingerprint: str
    candidates: list[_Candidate]
    promptFeedback: _Feedback
    usageMetadata: _Usage
    error: _Error


class GeminiGenerateDialect:
    name = NAME

    def path(self, model: str, *, stream: bool) -> str:
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"/v1beta/models/{model}:{method}"

    def models_path(self) -> str:
        return "/v1beta/models"

    def count_path(self, model: str) -> str | None:
        return f"/v1beta/models/{model}:countTokens"

    def encode_count(self, request: ModelRequest) -> bytes:
        """The whole request, because instructions and tools count too."""
        whole = numbers.loads(encode(request))
        return numbers.dumps({"generateContentRequest": {"model": f"models/{request.model}", **whole}})

    def decode_count(self, body: bytes) -> int:
        return int(orjson.loads(body)["totalTokens"])

    def headers(self, api_key: str) -> Mapping[str, str]:
        return {"x-goog-api-key": api_key}

    def encode(self, request: ModelRequest, *, stream: bool) -> bytes:
        return encode(request)

    def decode(self, body: bytes) -> ModelResponse:
        parsed: _Body = numbers.loads(body)
        _raise_error_inside(parsed)
        answer = _Answer(parsed)
        list(chain(answer.add(parsed), answer.end_thought()))
        return answer.response()

    def assembler(self) -> Assembler:
        return _GeminiAssembler()

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        error = _error_of(body)
        after_s = retry_after_s if retry_after_s is not None else _retry_delay_s(error)
        return failure(
            status, error.get("message") or "", code=error.get("status"), request_id=request_id, retry_after_s=after_s
        )


class _GeminiAssembler:
    def __init__(self) -> None:
        self._answer: _Answer | None = None

    def feed(self, event: SseEvent) -> Sequence[StreamPart]:
        chunk: _Body = numbers.loads(event.data)
        _raise_error_inside(chunk)
        return list(self._parts(chunk))

    def _parts(self, chunk: _Body) -> Iterator[StreamPart]:
        if self._answer is None:
            self._answer = _Answer(chunk)
            yield Started(self._answer.id, self._answer.model)
        yield from self._answer.add(chunk)
        if usage := self._answer.usage:
            yield UsageUpdated(usage)
        if self._answer.finish_reason:
            yield Completed(self._answer.response())


class _Answer:
    """An answer while it grows; `response()` closes it."""

    def __init__(self, body: _Body) -> None:
        self.id = body["responseId"]
        self.model = body["modelVersion"]
        self.finish_reason = ""
        self.usage: Usage | None = None
        self._simulated = body.get("system_fingerprint") == SIMULATOR_FINGERPRINT
        self._parts: list[Part] = []
        self._thought: list[_Part] = []
        self._calls = 0
        self._warnings: tuple[str, ...] = ("the provider reported no usage",)

    def add(self, body: _Body) -> Iterator[StreamPart]:
        """Take in a whole body, or a chunk of one; gives what it added."""
        self._read_usage(body.get("usageMetadata"))
        for candidate in body.get("candidates", ())[:1]:
            for part in candidate.get("content", {}).get("parts", ()):
                yield from self._add(part)
            yield from self._finish(candidate.get("finishReason", ""), candidate.get("finishMessage", ""))
        feedback = body.get("promptFeedback", {})
        if blocked := feedback.get("blockReason"):
            yield from self._finish(blocked, feedback.get("blockReasonMessage", ""))

    def response(self) -> ModelResponse:
        return ModelResponse(
            message=Message("assistant", tuple(self._parts)),
            finish_reason=self._meaning(),
            raw_finish_reason=self.finish_reason,
            usage=self.usage,
            provider_response_id=self.id,
            model=self.model,
            warnings=self._warnings,
            simulated=self._simulated,
        )

    def _add(self, part: _Part) -> Iterator[StreamPart]:
        if part.get("thought"):
            yield from self._think(part)
            return
        yield from self.end_thought()
        if signature := part.get("thoughtSignature"):
            yield self._done(Reasoning("", NAME, orjson.dumps({SIGNATURE: signature})))
        if call := part.get("functionCall"):
            yield self._call(call)
        elif text := part.get("text"):
            self._grow(text)
            yield TextDelta(text)
        elif "text" not in part:
            yield self._done(Opaque(NAME, numbers.dumps(part)))

    def _think(self, part: _Part) -> Iterator[StreamPart]:
        """A thought comes in pieces, as a text does. What is signed is one for itself: its bytes are not to be changed."""
        text, is_piece = part.get("text", ""), part.keys() <= _THOUGHT
        if not is_piece:
            yield from self.end_thought()
        yield from (ReasoningDelta(text),) if text else ()
        if is_piece:
            self._thought.append(part)
        else:
            yield self._done(Reasoning(text, NAME, numbers.dumps(part)))

    def end_thought(self) -> Iterator[ReasoningDone]:
        """No field says so on this wire: what comes next does."""
        pieces, self._thought = self._thought, []
        if pieces:
            text = "".join([piece.get("text", "") for piece in pieces])
            yield self._done(Reasoning(text, NAME, numbers.dumps({**pieces[0], "text": text})))

    def _done(self, part: Reasoning | Opaque) -> ReasoningDone:
        self._parts.append(part)
        return ReasoningDone(part)

    def _call(self, call: _Call) -> ToolCallDelta:
        """Only newer models name their calls; a call without a name is known by the answer that it stands in."""
        index, self._calls = self._calls, self._calls + 1
        found = ToolCall(
            call.get("id") or f"{self.id}-{index}", call["name"], numbers.dumps(call.get("args", {})).decode()
        )
        self._parts.append(found)
        return ToolCallDelta(index, found.id, found.name, found.arguments)

    def _grow(self, text: str) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(last, Text):
            self._parts[-1] = Text(last.text + text)
        else:
            self._parts.append(Text(text))

    def _finish(self, reason: str, message: str) -> Iterator[StreamPart]:
        self.finish_reason = reason or self.finish_reason
        if self.finish_reason:
            yield from self.end_thought()
        if message and self._meaning() == "refusal":
            self._parts.append(Refusal(message))
            yield RefusalDelta(message)

    def _meaning(self) -> FinishReason:
        """The wire says STOP also for calls of tools."""
        reason = _FINISH_REASONS.get(self.finish_reason, "error")
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _read_usage(self, usage: _Usage | None) -> None:
        """Counts are cumulative: the last ones count."""
        if not usage:
            return
        try:
            self.usage, self._warnings = usage_of(usage), ()
        except InvalidUsage as error:
            self.usage, self._warnings = None, (f"the provider's usage was not believed: {error}",)


def usage_of(usage: _Usage) -> Usage:
    """Raises InvalidUsage."""
    prompt = usage.get("promptTokenCount", 0) + usage.get("toolUsePromptTokenCount", 0)
    cached = usage.get("cachedContentTokenCount", 0)
    media = _media(usage.get("promptTokensDetails", ()))
    beyond_text = cached - prompt + sum(media.values())
    told = _media(usage.get("cacheTokensDetails", ()))
    # Two counts of one thing may differ: what was cached of the media is what there is of them, and no less than is not text.
    held: Mapping[Modality, int] = {name: min(told[name], media[name]) for name in _MEDIA}
    if sum(held.values()) < beyond_text or sum(held.values()) > cached:
        held = _held(beyond_text, media)
    fresh = {name: media[name] - held[name] for name in _MEDIA}
    return Usage.of(
        (
            UsageLine("input", prompt - cached - sum(fresh.values())),
            UsageLine("input", cached - sum(held.values()), cache="read"),
            *(UsageLine("input", fresh[name], modality=name) for name in _MEDIA),
            *(UsageLine("input", held[name], modality=name, cache="read") for name in _MEDIA),
            UsageLine("output", usage.get("candidatesTokenCount", 0)),
            UsageLine("output", usage.get("thoughtsTokenCount", 0), reasoning=True),
        )
    )


def _media(details: Iterable[_Modality]) -> Mapping[Modality, int]:
    """Tokens by what they are of, but for text; a page of a document is billed as an image."""
    # Of a count that is 0, and a modality that is none, the wire says nothing.
    counts = [(one.get("modality", ""), one.get("tokenCount", 0)) for one in details]
    return {name: sum(count for word, count in counts if word in words) for name, words in _MEDIA.items()}


def _held(beyond_text: int, media: Mapping[Modality, int]) -> Mapping[Modality, int]:
    """What of the media was cached where nobody says it, or not what can be: of what is not text, the cheapest first."""
    held: dict[Modality, int] = {}
    for name in _MEDIA:
        held[name] = max(0, min(media[name], beyond_text - sum(held.values())))
    return held


def _raise_error_inside(body: _Body) -> None:
    error = body.get("error")
    if error:
        told = failure(
            error.get("code") or 500,
            error.get("message") or "",
            code=error.get("status"),
            retry_after_s=_retry_delay_s(error),
        )
        raise inside_answer(told)


def _error_of(body: bytes) -> _Error:
    """The error of a body; a body that is no such JSON is its own message."""
    try:
        parsed: _Body = orjson.loads(body)
        return parsed["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": body[:1000].decode(errors="replace")}


def _retry_delay_s(error: _Error) -> float | None:
    """google.rpc.RetryInfo writes its duration as "3.5s"."""
    for detail in error.get("details") or ():
        if detail.get("@type") == _RETRY_INFO:
            return duration_s(detail.get("retryDelay", "")) or None
    return None
