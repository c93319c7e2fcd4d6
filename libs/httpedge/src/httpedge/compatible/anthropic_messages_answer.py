"""Messages, and the events of their streams. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Call:
    """A call in a stream: the number of its block, and what came of its arguments."""

    block: int
    arguments: list[str] = field(default_factory=list)
    is_open: bool = True

    def is_whole(self) -> bool:
        """Whether they are an object, after which nothing can come; of none nobody knows."""
        arguments = "".join(self.arguments)
        return arguments != "" and isinstance(object_of(arguments), Mapping)


class MessageWriter:
    """Implements Writer.

    One block is open at a time, with two exceptions, for which the SDKs go by the index: calls whose pieces come mixed,
    and the reasoning of a gateway of before, which tells signatures only at the end.
    """

    def __init__(self, asked: Asked) -> None:
        self._request_id = asked.request.request_id
        self._next = 0
        self._text: int | None = None
        self._is_thinking = False
        self._unsigned: list[int] = []
        self._calls: dict[int, _Call] = {}
        self._reasoned = 0

    def write(self, event: pb.StreamEvent) -> bytes:
        match event.WhichOneof("event"):
            case "started":
                return self._start(event.started.model)
            case "text_delta":
                return self._say(event.text_delta)
            case "reasoning_delta":
                return self._think(event.reasoning_delta)
            case "reasoning_done":
                return self._reason(event.reasoning_done)
            case "tool_call_delta":
                return self._call(event.tool_call_delta)
            case "completed":
                return self._end(event.completed, whole=event.sequence == 1)
            case "error":
                return named_frame(anthropic_broken(event.error))
            case _:
                return b""  # a refusal's text stands in stop_details, at the end

    # --- the message ---

    def _start(self, model: str) -> bytes:
        empty: Block = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = {**_envelope(self._request_id, model), **empty, "usage": usage}
        return named_frame({"type": "message_start", "message": started})

    def _end(self, answer: pb.GenerateResponse, *, whole: bool) -> bytes:
        """`whole` when nothing came before, because the answer was on record already."""
        content = self._replay(answer) if whole else self._untold(answer)
        ending = {"type": "message_delta", "delta": _ending(answer), "usage": _usage(answer.usage)}
        return content + self._close_all() + named_frame(ending) + named_frame({"type": "message_stop"})

    def _replay(self, answer: pb.GenerateResponse) -> bytes:
        """An answer that is known whole, as its stream would have been."""
        shown = [self._start(answer.model)]
        for part in answer.message.parts:
            match part.WhichOneof("part"):
                case "text":  # two beside each other stay two
                    shown.append(self._close() + self._say(part.text))
                case "reasoning":
                    shown.append(self._reason(part.reasoning))
                case "tool_call":
                    call = part.tool_call
                    number, arguments = len(self._calls), call.arguments_json
                    piece = pb.ToolCallDelta(index=number, id=call.id, name=call.name, arguments_delta=arguments)
                    shown.append(self._call(piece))
        return b"".join(shown)

    def _untold(self, answer: pb.GenerateResponse) -> bytes:
        """What no event told of, as from a gateway of before: signatures, and at the end what was thought silently."""
        thought = [part.reasoning for part in answer.message.parts if part.HasField("reasoning")]
        return b"".join([self._reason(reasoning) for reasoning in thought[self._reasoned :]])

    # --- blocks ---

    def _say(self, text: str) -> bytes:
        opened = b""
        if self._text is None:
            opened = self._close() + self._opened({"type": "text", "text": ""})
            self._text = self._next - 1
        return opened + _delta(self._text, {"type": "text_delta", "text": text})

    def _think(self, text: str) -> bytes:
        opened = b""
        if not self._is_thinking:
            opened = self._close() + self._opened({"type": "thinking", "thinking": "", "signature": ""})
            self._unsigned.append(self._next - 1)
            self._is_thinking = True
        return opened + _delta(self._unsigned[-1], {"type": "thinking_delta", "thinking": text})

    def _reason(self, reasoning: pb.Reasoning) -> bytes:
        """Sign the block that shows it, or show it whole."""
        block, closed = to_block(reasoning), self._close()
        self._reasoned += 1
        if reasoning.text and self._unsigned:
            return closed + _signed(self._unsigned.pop(0), block)
        if block["type"] != "thinking":
            return closed + self._opened(block) + _stop(self._next - 1)
        opened = closed + self._opened({**block, "thinking": "", "signature": ""})
        if reasoning.text:
            opened += _delta(self._next - 1, {"type": "thinking_delta", "thinking": reasoning.text})
        return opened + _signed(self._next - 1, block)

    def _call(self, delta: pb.ToolCallDelta) -> bytes:
        opened, call = b"", self._calls.get(delta.index)
        if call is None:
            opened = self._close() + self._opened({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
            call = self._calls[delta.index] = _Call(self._next - 1)
        if not call.is_open:
            return opened
        call.arguments.append(delta.arguments_delta)
        return opened + _delta(call.block, {"type": "input_json_delta", "partial_json": delta.arguments_delta})

    def _opened(self, block: Block) -> bytes:
        self._next += 1
        return named_frame({"type": "content_block_start", "index": self._next - 1, "content_block": block})

    def _close(self) -> bytes:
        """Before another block opens. A call of which more may come stays open, and so does what is not signed."""
        self._is_thinking = False
        text, self._text = self._text, None
        stopped = b"" if text is None else _stop(text)
        for call in self._calls.values():
            if call.is_open and call.is_whole():
                call.is_open = False
                stopped += _stop(call.block)
        return stopped

    def _close_all(self) -> bytes:
        left = [*self._unsigned, *(call.block for call in self._calls.values() if call.is_open)]
        if self._text is not None:
            left.append(self._text)
        return b"".join([_stop(index) for index in sorted(left)])


def _delta(index: int, delta: Block) -> bytes:
    return named_frame({"type": "content_block_delta", "index": index, "delta": delta})


def _stop(index: int) -> bytes:
    return named_frame({"type": "content_block_stop", "index": index})


def _signed(index: int, block: Block) -> bytes:
    return _delta(index, {"type": "signature_delta", "signature": block.get("signature", "")}) + _stop(index)


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
