"""Responses, and the events of their streams. Pure.

An item of the output is a message, a call of a function, or reasoning. In a stream they are numbered as they begin; the
last event holds them all in the order in which they belong together.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible import openai_reasoning
from httpedge.compatible.dialect import Asked
from httpedge.compatible.usage import Counts
from httpedge.compatible.wire import named_frame, object_of

Json = Mapping[str, object]
Kind = Literal["message", "function_call", "reasoning"]

_INCOMPLETE: Final[Mapping[str, str]] = {
    "length": "max_output_tokens",
    "context_window": "max_output_tokens",
    "content_filter": "content_filter",
    "pause": "max_messages",
}
_ERROR_CODES: Final[Mapping[str, str]] = {"RATE_LIMITED": "rate_limit_exceeded"}


def response(answer: pb.GenerateResponse, asked: Asked) -> Json:
    reason = _INCOMPLETE.get(answer.finish_reason)
    return {
        **_envelope(asked, answer.model, "incomplete" if reason else "completed"),
        "incomplete_details": {"reason": reason} if reason else None,
        "output": list(_items(answer.message, asked.request.request_id)),
        "usage": _usage(answer.usage),
        **({"system_fingerprint": "synod-simulator"} if answer.simulated else {}),
    }


@dataclass(slots=True)
class _Open:
    """An item of a stream that is not done: its number, what it will be when done, and the part being written."""

    index: int
    kind: Kind
    id: str
    text: list[str] = field(default_factory=list)
    parts: list[Json] = field(default_factory=list)
    part: Literal["", "output_text", "refusal", "summary_text"] = ""
    call_id: str = ""
    name: str = ""
    reasoning: pb.Reasoning | None = None
    is_over: bool = False


class ResponseWriter:
    """Implements Writer.

    Calls stay open until the end, because their pieces may come mixed; so does the reasoning of a gateway of before, which
    tells only then what it was encrypted to. Items are done in their order, so what follows these waits for them.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._id = asked.request.request_id
        self._sequence = 0
        self._model = asked.request.model
        self._undone: deque[_Open] = deque()
        self._message: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._unencrypted: deque[_Open] = deque()
        self._thinking = False
        self._count = 0
        self._messages = 0
        self._aloud = 0
        self._silent = 0
        self._reasoned = 0

    def write(self, event: pb.StreamEvent) -> bytes:
        match event.WhichOneof("event"):
            case "started":
                return self._start(event.started.model)
            case "text_delta":
                return self._say("output_text", event.text_delta)
            case "refusal_delta":
                return self._say("refusal", event.refusal_delta)
            case "reasoning_delta":
                return self._think(event.reasoning_delta)
            case "reasoning_done":
                return self._reason(event.reasoning_done)
            case "tool_call_delta":
                return self._call(event.tool_call_delta)
            case "completed":
                return self._end(event.completed, whole=event.sequence == 1)
            case "error":
                return self._fail(event.error)
            case _:
                return b""

    # --- the response ---

    def _start(self, model: str) -> bytes:
        self._model = model
        begun = {**_envelope(self._asked, model, "in_progress"), "output": []}
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _end(self, answer: pb.GenerateResponse, *, whole: bool) -> bytes:
        """`whole` when nothing came before, because the answer was on record already."""
        shown = self._replay(answer) if whole else self._untold(answer)
        ended = response(answer, self._asked)
        return shown + self._close_all() + self._event(f"response.{ended['status']}", response=ended)

    def _fail(self, error: pb.StreamError) -> bytes:
        failed = {
            **_envelope(self._asked, self._model, "failed"),
            "error": {"code": _ERROR_CODES.get(error.reason, "server_error"), "message": error.message},
            "output": [],
        }
        return self._event("response.failed", response=failed)

    def _replay(self, answer: pb.GenerateResponse) -> bytes:
        """An answer that is known whole, as its stream would have been."""
        shown = [self._start(answer.model)]
        for part in answer.message.parts:
            match part.WhichOneof("part"):
                case "text":
                    shown.append(self._next_part() + self._say("output_text", part.text))
                case "refusal":
                    shown.append(self._next_part() + self._say("refusal", part.refusal))
                case "reasoning":
                    shown.append(self._reason(part.reasoning))
                case "tool_call":
                    call = part.tool_call
                    piece = pb.ToolCallDelta(
                        index=len(self._calls), id=call.id, name=call.name, arguments_delta=call.arguments_json
                    )
                    shown.append(self._call(piece))
        return b"".join(shown)

    def _untold(self, answer: pb.GenerateResponse) -> bytes:
        """What no event told of, as from a gateway of before: what reasoning was encrypted to, and what was not shown."""
        thought = [part.reasoning for part in answer.message.parts if part.HasField("reasoning")]
        return b"".join([self._reason(reasoning) for reasoning in thought[self._reasoned :]])

    # --- messages ---

    def _say(self, part: Literal["output_text", "refusal"], text: str) -> bytes:
        self._thinking = False
        opened = b""
        if self._message is None:
            self._message = self._opened("message", f"msg_{self._id}_{self._messages}")
            self._messages += 1
            opened = self._item("added", self._message, _message(self._message, "in_progress"))
        message = self._message
        if message.part != part:
            opened += self._close_part(message)
            message.part = part
            opened += self._at("response.content_part.added", message, part=_part(part, ""))
        message.text.append(text)
        return opened + self._at(f"response.{part}.delta", message, delta=text, **_logprobs(part))

    def _next_part(self) -> bytes:
        """Two texts beside each other stay two."""
        return self._close_part(self._message) if self._message else b""

    def _close_part(self, message: _Open) -> bytes:
        if not message.part:
            return b""
        text, part = "".join(message.text), message.part
        done = {"refusal" if part == "refusal" else "text": text, **_logprobs(part)}
        written = self._at(f"response.{part}.done", message, **done)
        written += self._at("response.content_part.done", message, part=_part(part, text))
        message.parts.append(_part(part, text))
        message.text.clear()
        message.part = ""
        return written

    def _close_message(self) -> bytes:
        message, self._message = self._message, None
        return b"" if message is None else self._over(message)

    def _message_done(self, message: _Open) -> bytes:
        return self._close_part(message) + self._item("done", message, _message(message, "completed"))

    # --- calls ---

    def _call(self, delta: pb.ToolCallDelta) -> bytes:
        self._thinking = False
        opened, call = self._close_message(), self._calls.get(delta.index)
        if call is None:
            call = self._calls[delta.index] = self._opened("function_call", f"fc_{delta.id}")
            call.call_id, call.name = delta.id, delta.name
            opened += self._item("added", call, _function_call(call, "in_progress"))
        if not delta.arguments_delta:
            return opened
        call.text.append(delta.arguments_delta)
        where = {"item_id": call.id, "output_index": call.index}
        return opened + self._event("response.function_call_arguments.delta", **where, delta=delta.arguments_delta)

    def _call_done(self, call: _Open) -> bytes:
        where: dict[str, object] = {"item_id": call.id, "output_index": call.index, "name": call.name}
        done = self._event("response.function_call_arguments.done", **where, arguments="".join(call.text))
        return done + self._item("done", call, _function_call(call, "completed"))

    # --- reasoning ---

    def _think(self, text: str) -> bytes:
        opened = self._close_message()
        if not self._thinking:
            self._thinking = True
            thought = self._opened("reasoning", _thought_id(self._id, self._aloud))
            self._aloud += 1
            self._unencrypted.append(thought)
            opened += self._item("added", thought, _thought(thought))
            opened += self._summary("part.added", thought, part={"type": "summary_text", "text": ""})
        thought = self._unencrypted[-1]
        thought.text.append(text)
        return opened + self._summary("text.delta", thought, delta=text)

    def _reason(self, reasoning: pb.Reasoning) -> bytes:
        """The end of what was thought aloud; what was not shown before is shown now."""
        written = self._close_message()
        self._thinking = False
        if not reasoning.text:
            thought = self._opened("reasoning", _thought_id(self._id, f"s{self._silent}"))
            self._silent += 1
            written += self._item("added", thought, _thought(thought))
        else:
            if not self._unencrypted:
                written += self._think(reasoning.text)
                self._thinking = False
            thought = self._unencrypted.popleft()
        self._reasoned += 1
        thought.reasoning = reasoning
        return written + self._over(thought)

    def _thought_done(self, thought: _Open) -> bytes:
        done, text = b"", "".join(thought.text)
        if text:
            done = self._summary("text.done", thought, text=text)
            done += self._summary("part.done", thought, part={"type": "summary_text", "text": text})
        if thought.reasoning is None:
            # Thought in more pieces than the answer holds: shown, and nothing that has to come back.
            return done + self._item("done", thought, _thought(thought))
        return done + self._item("done", thought, openai_reasoning.to_item(thought.reasoning, thought.id))

    # --- items ---

    def _opened(self, kind: Kind, id: str) -> _Open:
        self._count += 1
        opened = _Open(self._count - 1, kind, id)
        self._undone.append(opened)
        return opened

    def _over(self, *items: _Open) -> bytes:
        """Nothing more comes of them. They are done when all before them are."""
        for item in items:
            item.is_over = True
        done = []
        while self._undone and self._undone[0].is_over:
            done.append(self._done(self._undone.popleft()))
        return b"".join(done)

    def _close_all(self) -> bytes:
        return self._over(*self._undone)

    def _done(self, item: _Open) -> bytes:
        match item.kind:
            case "message":
                return self._message_done(item)
            case "function_call":
                return self._call_done(item)
            case "reasoning":
                return self._thought_done(item)

    # --- events ---

    def _item(self, step: str, item: _Open, shown: Json) -> bytes:
        return self._event(f"response.output_item.{step}", output_index=item.index, item=shown)

    def _at(self, type: str, item: _Open, **more: object) -> bytes:
        where = {"item_id": item.id, "output_index": item.index, "content_index": len(item.parts)}
        return self._event(type, **where, **more)

    def _summary(self, step: str, item: _Open, **more: object) -> bytes:
        where = {"item_id": item.id, "output_index": item.index, "summary_index": 0}
        return self._event(f"response.reasoning_summary_{step}", **where, **more)

    def _event(self, type: str, **more: object) -> bytes:
        self._sequence += 1
        return named_frame({"type": type, "sequence_number": self._sequence - 1, **more})


def _envelope(asked: Asked, model: str, status: str) -> dict[str, object]:
    """What SDKs expect of every response; what was asked for comes back with it."""
    request = asked.request
    return {
        "id": f"resp_{request.request_id}",
        "object": "response",
        "created_at": asked.created,
        "model": model,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": not request.HasField("parallel_tool_calls") or request.parallel_tool_calls,
        "temperature": request.temperature if request.HasField("temperature") else None,
        "top_p": request.top_p if request.HasField("top_p") else None,
        "max_output_tokens": request.max_output_tokens or None,
        "previous_response_id": None,
        "store": False,
        "tool_choice": _chosen(request.tool_choice),
        "tools": [_tool(tool) for tool in request.tools],
        "usage": None,
    }


def _chosen(choice: str) -> object:
    return choice or "auto" if choice in ("", "auto", "none", "required") else {"type": "function", "name": choice}


def _tool(tool: pb.Tool) -> Json:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": object_of(tool.parameters_json),
        "strict": tool.strict,
    }


def _items(message: pb.Message, request_id: str) -> Iterator[Json]:
    """Text and refusals that follow each other are one message."""
    content: list[Json] = []
    messages, thoughts = 0, _thoughts(message, request_id)
    for part in message.parts:
        if (said := _said(part)) is not None:
            content.append(said)
            continue
        if content:
            yield _whole_message(request_id, messages, content)
            content, messages = [], messages + 1
        if part.HasField("tool_call"):
            yield _whole_call(part.tool_call)
        elif part.HasField("reasoning"):
            id, reasoning = next(thoughts)
            yield openai_reasoning.to_item(reasoning, id)
    if content:
        yield _whole_message(request_id, messages, content)


def _said(part: pb.Part) -> Json | None:
    match part.WhichOneof("part"):
        case "text":
            return _part("output_text", part.text)
        case "refusal":
            return _part("refusal", part.refusal)
        case _:
            return None


def _thoughts(message: pb.Message, request_id: str) -> Iterator[tuple[str, pb.Reasoning]]:
    """Each with its id: a stream numbers what is thought aloud, and does not know yet what is not."""
    aloud, silent = itertools.count(), itertools.count()
    for part in message.parts:
        if part.HasField("reasoning"):
            text = part.reasoning.text
            yield _thought_id(request_id, next(aloud) if text else f"s{next(silent)}"), part.reasoning


def _thought_id(request_id: str, number: int | str) -> str:
    return f"rs_{request_id}_{number}"


def _thought(item: _Open) -> Json:
    text = "".join(item.text)
    return {"id": item.id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}] if text else []}


def _part(kind: str, text: str) -> Json:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _logprobs(kind: str) -> dict[str, object]:
    return {} if kind == "refusal" else {"logprobs": []}


def _message(item: _Open, status: str) -> Json:
    return {"id": item.id, "type": "message", "role": "assistant", "status": status, "content": list(item.parts)}


def _whole_message(request_id: str, number: int, content: Sequence[Json]) -> Json:
    id = f"msg_{request_id}_{number}"
    return {"id": id, "type": "message", "role": "assistant", "status": "completed", "content": list(content)}


def _function_call(item: _Open, status: str) -> Json:
    call = {"call_id": item.call_id, "name": item.name, "arguments": "".join(item.text)}
    return {"id": item.id, "type": "function_call", "status": status, **call}


def _whole_call(call: pb.ToolCall) -> Json:
    shown = {"call_id": call.id, "name": call.name, "arguments": call.arguments_json}
    return {"id": f"fc_{call.id}", "type": "function_call", "status": "completed", **shown}


def _usage(usage: pb.Usage) -> Json:
    counts = Counts.of(usage)
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
