"""Chat completions and the chunks of their streams. Pure."""

from collections.abc import Mapping
from typing import Final

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.dialect import Asked
from httpedge.compatible.failures import openai_broken
from httpedge.compatible.google_signature import signed_calls
from httpedge.compatible.usage import Counts
from httpedge.compatible.wire import DONE, data_frame

# The dialect has no word for the others: they ended the text, for a reason that the message itself shows.
_FINISH_REASONS: Final[Mapping[str, str]] = {
    "length": "length",
    "context_window": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}

NOTHING: Final[Mapping[str, object]] = {}


def completion(answer: pb.GenerateResponse, created: int) -> Mapping[str, object]:
    choice = {
        "index": 0,
        "message": _message(answer.message),
        "logprobs": None,
        "finish_reason": _finish_reason(answer),
        **_native(answer),
    }
    return {
        "id": completion_id(answer.request_id),
        "object": "chat.completion",
        "created": created,
        "model": answer.model,
        "choices": [choice],
        "usage": _usage(answer.usage),
        **_fingerprint(answer),
    }


class ChatWriter:
    """Implements Writer."""

    def __init__(self, asked: Asked) -> None:
        self._include_usage = asked.include_usage
        self._named = False
        self._head: dict[str, object] = {
            "id": completion_id(asked.request.request_id),
            "object": "chat.completion.chunk",
            "created": asked.created,
            "model": asked.request.model,
        }

    def write(self, event: pb.StreamEvent) -> bytes:
        match event.WhichOneof("event"):
            case "started":
                self._head["model"] = event.started.model
                return b""
            case "text_delta":
                return self._piece({"content": event.text_delta}, "")
            case "refusal_delta":
                return self._piece({"refusal": event.refusal_delta})
            case "reasoning_delta":
                return self._piece({"reasoning_content": event.reasoning_delta})
            case "tool_call_delta":
                return self._piece({"tool_calls": [_call_delta(event.tool_call_delta)]})
            case "completed":
                return self._end(event.completed)
            case "error":
                return data_frame(openai_broken(event.error))
            case _:
                return b""

    def _piece(self, delta: Mapping[str, object], content: str | None = None) -> bytes:
        """After the role, with which the first piece comes: its content is text if the answer begins with some, else null."""
        if self._named:
            return self._chunk(delta)
        self._named = True
        return self._chunk({"role": "assistant", "content": content}) + self._chunk(delta)

    def _end(self, answer: pb.GenerateResponse) -> bytes:
        """With all of the answer where nothing came before, because it was on record already or is empty."""
        self._head = {**self._head, "model": answer.model, **_fingerprint(answer)}
        content = self._signatures(answer.message) if self._named else self._chunk(_whole_delta(answer.message))
        usage = b""
        if self._include_usage:
            usage = data_frame({**self._head, "choices": [], "usage": _usage(answer.usage)})
        return content + self._chunk({}, _finish_reason(answer), _native(answer)) + usage + DONE

    def _signatures(self, message: pb.Message) -> bytes:
        """Of calls that were streamed, since no piece of a call has its signature. A piece always has arguments to SDKs."""
        pieces = [
            {"index": index, "function": {"arguments": ""}, **extra}
            for index, (_, extra) in enumerate(signed_calls(message))
            if extra
        ]
        return self._chunk({"tool_calls": pieces}) if pieces else b""

    def _chunk(
        self, delta: Mapping[str, object], finish_reason: str | None = None, more: Mapping[str, object] = NOTHING
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **more}
        usage = {"usage": None} if self._include_usage else {}
        return data_frame({**self._head, "choices": [choice], **usage})


def completion_id(request_id: str) -> str:
    return f"chatcmpl-{request_id}"


def _message(message: pb.Message) -> dict[str, object]:
    content = refusal = reasoning = ""
    calls = [_call(call, extra) for call, extra in signed_calls(message)]
    for part in message.parts:
        match part.WhichOneof("part"):
            case "text":
                content += part.text
            case "refusal":
                refusal += part.refusal
            case "reasoning":
                reasoning += part.reasoning.text
    return {
        "role": "assistant",
        "content": content or None,
        "refusal": refusal or None,
        **({"reasoning_content": reasoning} if reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _whole_delta(message: pb.Message) -> dict[str, object]:
    delta = _message(message)
    calls = delta.get("tool_calls")
    numbered = [{"index": index, **call} for index, call in enumerate(calls)] if isinstance(calls, list) else None
    return {**delta, **({"tool_calls": numbered} if numbered else {})}


def _call(call: pb.ToolCall, extra: Mapping[str, object]) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function, **extra}


def _call_delta(delta: pb.ToolCallDelta) -> Mapping[str, object]:
    """The first piece of a call names it."""
    if not delta.name:
        return {"index": delta.index, "function": {"arguments": delta.arguments_delta}}
    function = {"name": delta.name, "arguments": delta.arguments_delta}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def _finish_reason(answer: pb.GenerateResponse) -> str:
    return _FINISH_REASONS.get(answer.finish_reason, "stop")


def _native(answer: pb.GenerateResponse) -> Mapping[str, object]:
    """The provider's own word beside the dialect's, by the name that other routers give it."""
    return {"native_finish_reason": answer.provider_finish_reason} if answer.provider_finish_reason else NOTHING


def _usage(usage: pb.Usage) -> Mapping[str, object]:
    counts = Counts.of(usage)
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": counts.cache_read,
            "cache_write_tokens": counts.cache_write,
            "audio_tokens": counts.audio_input,
        },
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning, "audio_tokens": counts.audio_output},
    }


def _fingerprint(answer: pb.GenerateResponse) -> Mapping[str, object]:
    """Answers of a simulator say so."""
    return {"system_fingerprint": "synod-simulator"} if answer.simulated else {}
