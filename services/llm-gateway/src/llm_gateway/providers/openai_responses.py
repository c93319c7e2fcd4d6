"""The dialect openai-responses: POST /responses. Pure.

Contract: the SDK openai 3.54; tests read the same recorded bytes through the SDK and through this file. The terminal
event holds the whole response, and that is what counts; deltas are only shown. `response.created` is no content, so
an error after it may still be answered by another model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypedDict

import orjson

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
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import InvalidUsage, ProviderError
from llm_gateway.providers.dialect import SIMULATOR_FINGERPRINT, Assembler
from llm_gateway.providers.failures import failure, failure_inside_answer
from llm_gateway.providers.openai_chat import error_of
from llm_gateway.providers.openai_responses_request import encode, encode_count
from llm_gateway.providers.sse import SseEvent

NAME: Final = "openai-responses"
_INCOMPLETE: Final[Mapping[str, FinishReason]] = {
    "max_output_tokens": "length",
    "content_filter": "content_filter",
    "max_messages": "pause",
    "steered": "pause",
}
_SAID: Final = ("message", "function_call")
"""Items that deltas tell of whole."""


# The wire, as far as it is read. TypedDicts cost nothing at run time; a wrong shape surfaces as KeyError or TypeError.


class _WriteDetails(TypedDict, total=False):
    ttl_30m_tokens: int | None
    ttl_12h_tokens: int | None


class _InputDetails(TypedDict, total=False):
    cached_tokens: int | None
    cache_write_tokens: int | None
    cache_write_tokens_details: _WriteDetails | None


class _OutputDetails(TypedDict, total=False):
    reasoning_tokens: int | None


class _Usage(TypedDict, total=False):
    input_tokens: int
    output_tokens: int
    input_tokens_details: _InputDetails | None
    output_tokens_details: _OutputDetails | None


class _Said(TypedDict, total=False):
    type: str
    text: str
    refusal: str


class _Item(TypedDict, total=False):
    type: str
    content: list[_Said] | None
    summary: list[_Said] | None
    call_id: str
    name: str
    arguments: str


class _Error(TypedDict, total=False):
    message: str
    type: str | None
    code: str | None


class _Incomplete(TypedDict, total=False):
    reason: str | None


class _Response(TypedDict, total=False):
    id: str
    model: str
    status: str
    system_fingerprint: str
    output: list[_Item]
    incomplete_details: _Incomplete | None
    usage: _Usage | None
    service_tier: str | None
    error: _Error | None


class _Event(TypedDict, total=False):
    type: str
    response: _Response
    output_index: int
    item: _Item
    delta: str
    code: str | None
    message: str


class OpenAiResponsesDialect:
    name = NAME

    def path(self, model: str, *, stream: bool) -> str:
        return "/responses"

    def models_path(self) -> str:
        return "/models"

    def count_path(self, model: str) -> str | None:
        return "/responses/input_tokens"

    def encode_count(self, request: ModelRequest) -> bytes:
        return encode_count(request)

    def decode_count(self, body: bytes) -> int:
        return int(orjson.loads(body)["input_tokens"])

    def headers(self, api_key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def encode(self, request: ModelRequest, *, stream: bool) -> bytes:
        return encode(request, stream=stream)

    def decode(self, body: bytes) -> ModelResponse:
        return _whole(orjson.loads(body))

    def assembler(self) -> Assembler:
        return _ResponseAssembler()

    def failure(self, status: int, body: bytes, request_id: str | None, retry_after_s: float | None) -> ProviderError:
        message, code = error_of(body)
        return failure(status, message, code=code, request_id=request_id, retry_after_s=retry_after_s)


class _ResponseAssembler:
    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def feed(self, event: SseEvent) -> Sequence[StreamPart]:
        parsed: _Event = orjson.loads(event.data)
        return list(self._parts(parsed))

    def _parts(self, event: _Event) -> Iterator[StreamPart]:
        match event["type"]:
            case "response.created":
                yield Started(event["response"]["id"], event["response"]["model"])
            case "response.output_text.delta":
                yield TextDelta(event["delta"])
            case "response.refusal.delta":
                yield RefusalDelta(event["delta"])
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                yield ReasoningDelta(event["delta"])
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                index = self._calls[event["output_index"]] = len(self._calls)
                yield ToolCallDelta(index, event["item"]["call_id"], event["item"]["name"], "")
            case "response.function_call_arguments.delta":
                yield ToolCallDelta(self._calls[event["output_index"]], "", "", event["delta"])
            case "response.output_item.done" if event["item"]["type"] not in _SAID:
                parts = _parts(event["item"])
                yield from (ReasoningDone(part) for part in parts if isinstance(part, Reasoning | Opaque))
            case "response.completed" | "response.incomplete" | "response.failed":
                yield from _end(event["response"])
            case "error":
                raise failure_inside_answer("", event.get("code"), event.get("message") or "")


def _end(response: _Response) -> Iterator[StreamPart]:
    whole = _whole(response)
    if whole.usage:
        yield UsageUpdated(whole.usage)
    yield Completed(whole)


def _whole(response: _Response) -> ModelResponse:
    """Raises what the provider reports in the place of an answer."""
    if error := response.get("error"):
        raise failure_inside_answer(error.get("type") or "", error.get("code"), error.get("message") or "")
    parts = tuple(part for item in response["output"] for part in _parts(item))
    finish_reason, raw = _finish_reason(response, parts)
    usage, warnings = _believed(response.get("usage"))
    return ModelResponse(
        message=Message("assistant", parts),
        finish_reason=finish_reason,
        raw_finish_reason=raw,
        usage=usage,
        provider_response_id=response["id"],
        model=response["model"],
        warnings=warnings,
        simulated=response.get("system_fingerprint") == SIMULATOR_FINGERPRINT,
        service_tier=response.get("service_tier") or "",
    )


def _parts(item: _Item) -> Iterator[Part]:
    match item["type"]:
        case "message":
            yield from (part for said in item.get("content") or () if (part := _said(said)) is not None)
        case "function_call":
            yield ToolCall(item["call_id"], item["name"], item["arguments"] or "{}")
        case "reasoning":
            shown = (*(item.get("summary") or ()), *(item.get("content") or ()))
            yield Reasoning("".join(said["text"] for said in shown), NAME, orjson.dumps(item))
        case _:
            yield Opaque(NAME, orjson.dumps(item))


def _said(said: _Said) -> Part | None:
    if said["type"] == "refusal":
        return Refusal(said["refusal"])
    return Text(said["text"]) if said.get("text") else None


def _finish_reason(response: _Response, parts: Sequence[Part]) -> tuple[FinishReason, str]:
    status = response["status"]
    if status == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason") or ""
        return _INCOMPLETE.get(reason, "error"), reason
    if status != "completed":
        return "cancelled" if status == "cancelled" else "error", status
    if any(isinstance(part, Refusal) for part in parts):
        return "refusal", status
    return "tool_calls" if any(isinstance(part, ToolCall) for part in parts) else "stop", status


def _believed(usage: _Usage | None) -> tuple[Usage | None, tuple[str, ...]]:
    if not usage:
        return None, ("the provider reported no usage",)
    try:
        return usage_of(usage), ()
    except InvalidUsage as error:
        return None, (f"the provider's usage was not believed: {error}",)


def usage_of(usage: _Usage) -> Usage:
    """Totals are inclusive on this wire. Raises InvalidUsage."""
    into, out = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    read, write = into.get("cached_tokens") or 0, into.get("cache_write_tokens") or 0
    kept = into.get("cache_write_tokens_details") or {}
    long, short = kept.get("ttl_12h_tokens") or 0, kept.get("ttl_30m_tokens") or 0
    reasoning = out.get("reasoning_tokens") or 0
    return Usage.of(
        (
            UsageLine("input", usage["input_tokens"] - read - write),
            UsageLine("input", read, cache="read"),
            UsageLine("input", write - long - short, cache="write"),
            UsageLine("input", short, cache="write", ttl="30m"),
            UsageLine("input", long, cache="write", ttl="12h"),
            UsageLine("output", usage["output_tokens"] - reasoning),
            UsageLine("output", reasoning, reasoning=True),
        )
    )
