"""Messages, and the events of their streams. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.anthropic_reasoning import to_block
from httpedge.compatible.dialect import Asked
from httpedge.compatible.failures import anthropic_broken
from httpedge.compatible.usage import Counts
from httpedge.compatible.wire import named_frame, object_of

_STOP_REASONS: Final[Mapping[str, str]] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
    "content_filter": "refusal",
    "pause": "pause_turn",
    "context_window": "model_context_window_exceeded",
}
_OWN_REASONS: Final = frozenset({"end_turn", "stop_sequence", *_STOP_REASONS.values()})
"""An answer of Anthropic's ends in its own word, which tells more: a stop sequence from an end."""
Block = Mapping[str, object]


def message(answer: pb.GenerateResponse) -> Mapping[str, object]:
    return {
        **_envelope(answer.request_id, answer.model),
        "content": list(_blocks(answer.message)),
        **_ending(answer),
        "usage": _usage(answer.usage),
        **({"system_fingerprint": "synod-simulator"} if answer.simulated else {}),
    }


class MessageWriter:
    """Implements Writer.

    A block of reasoning stays open until the end, because its signature is known only then; the SDKs go by the index.
    """

    def __init__(self, asked: Asked) -> None:
        self._request_id = asked.request.request_id
        self._next = 0
        self._open: tuple[str, int] | None = None
        self._thinking: list[int] = []

    def write(self, event: pb.StreamEvent) -> bytes:
        match event.WhichOneof("event"):
            case "started":
                return self._start(event.started.model)
            case "text_delta":
                delta = {"type": "text_delta", "text": event.text_delta}
                return self._piece("text", 0, {"type": "text", "text": ""}, delta)
            case "reasoning_delta":
                delta = {"type": "thinking_delta", "thinking": event.reasoning_delta}
                return self._piece("thinking", 0, {"type": "thinking", "thinking": "", "signature": ""}, delta)
            case "tool_call_delta":
                return self._tool_piece(event.tool_call_delta)
            case "completed":
                return self._end(event.completed, whole=event.sequence == 1)
            case "error":
                return named_frame(anthropic_broken(event.error))
            case _:
                return b""  # a refusal's text stands in stop_details, at the end

    def _start(self, model: str) -> bytes:
        empty: Block = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = {**_envelope(self._request_id, model), **empty, "usage": usage}
        return named_frame({"type": "message_start", "message": started})

    def _tool_piece(self, delta: pb.ToolCallDelta) -> bytes:
        block: Block = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
        piece = {"type": "input_json_delta", "partial_json": delta.arguments_delta}
        return self._piece("tool_use", delta.index, block, piece)

    def _piece(self, kind: str, number: int, block: Block, delta: Block) -> bytes:
        """A piece of the block that is open, after opening it where it is another one."""
        opened = b""
        if self._open != (kind, number):
            opened = self._close() + self._opened(block)
            self._open = (kind, number)
            if kind == "thinking":
                self._thinking.append(self._next - 1)
        return opened + _delta(self._next - 1, delta)

    def _opened(self, block: Block) -> bytes:
        self._next += 1
        return named_frame({"type": "content_block_start", "index": self._next - 1, "content_block": block})

    def _close(self) -> bytes:
        kind, self._open = self._open, None
        return b"" if kind is None or kind[0] == "thinking" else _stop(self._next - 1)

    def _end(self, answer: pb.GenerateResponse, *, whole: bool) -> bytes:
        """`whole` when nothing came before, because the answer was on record already."""
        content = self._all(answer) if whole else self._close() + self._signed(answer)
        ending = {"type": "message_delta", "delta": _ending(answer), "usage": _usage(answer.usage)}
        return content + named_frame(ending) + named_frame({"type": "message_stop"})

    def _all(self, answer: pb.GenerateResponse) -> bytes:
        blocks = (self._opened(block) + _stop(self._next - 1) for block in _blocks(answer.message))
        return self._start(answer.model) + b"".join(blocks)

    def _signed(self, answer: pb.GenerateResponse) -> bytes:
        """The signatures of what was thought aloud; then what a stream shows nothing of, each block whole."""
        thought = [part.reasoning for part in answer.message.parts if part.HasField("reasoning")]
        aloud = [reasoning for reasoning in thought if reasoning.text]
        silent = [reasoning for reasoning in thought if not reasoning.text]
        signed = (_signature(index, one) + _stop(index) for index, one in zip(self._thinking, aloud, strict=False))
        others = (self._opened(to_block(reasoning)) + _stop(self._next - 1) for reasoning in silent)
        return b"".join((*signed, *others))


def _delta(index: int, delta: Block) -> bytes:
    return named_frame({"type": "content_block_delta", "index": index, "delta": delta})


def _stop(index: int) -> bytes:
    return named_frame({"type": "content_block_stop", "index": index})


def _signature(index: int, reasoning: pb.Reasoning) -> bytes:
    return _delta(index, {"type": "signature_delta", "signature": to_block(reasoning).get("signature", "")})


def _envelope(request_id: str, model: str) -> dict[str, object]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}


def _blocks(message: pb.Message) -> Iterator[Block]:
    for part in message.parts:
        match part.WhichOneof("part"):
            case "text":
                yield {"type": "text", "text": part.text}
            case "tool_call":
                call = part.tool_call
                yield {"type": "tool_use", "id": call.id, "name": call.name, "input": object_of(call.arguments_json)}
            case "reasoning":
                yield to_block(part.reasoning)


def _ending(answer: pb.GenerateResponse) -> Mapping[str, object]:
    said_why = answer.provider_finish_reason
    reason = said_why if said_why in _OWN_REASONS else _STOP_REASONS.get(answer.finish_reason, "end_turn")
    said = "".join(part.refusal for part in answer.message.parts) or None
    details = {"type": "refusal", "category": None, "explanation": said} if reason == "refusal" else None
    return {"stop_reason": reason, "stop_sequence": None, "stop_details": details}


def _usage(usage: pb.Usage) -> Mapping[str, object]:
    """On this wire `input_tokens` leaves the cache out."""
    counts = Counts.of(usage)
    return {
        "input_tokens": usage.input_tokens - counts.cache_read - counts.cache_write,
        "cache_creation_input_tokens": counts.cache_write,
        "cache_read_input_tokens": counts.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": counts.cache_write - counts.cache_write_1h,
            "ephemeral_1h_input_tokens": counts.cache_write_1h,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": counts.reasoning},
    }
