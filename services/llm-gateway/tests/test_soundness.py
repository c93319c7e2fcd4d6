"""Answers in which one thing is of another kind than the wire format says: an answer or a named error, never a defect."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from llm_gateway import translate
from llm_gateway.domain import Answer, Completed, Message, ReasoningDone, StreamPart, Usage, UsageUpdated
from llm_gateway.errors import MalformedResponse, ProviderError
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.http import _assembled
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.providers.sse import SseEvent, SseParser

DIALECTS: Mapping[str, type[Dialect]] = {
    "openai-chat": OpenAiChatDialect,
    "openai-responses": OpenAiResponsesDialect,
    "anthropic-messages": AnthropicMessagesDialect,
    "gemini-generate": GeminiGenerateDialect,
}
RECORDINGS = Path(__file__).parent / "recordings"
OTHERS = (None, True, 7, 1.5, 1e308, "x", [1], {"a": 1})
"""What may stand where something else belongs."""
Place = tuple[str | int, ...]


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inside:
        yield from places(below, (*above, key))


def with_other(value: Any, place: Place, other: Any) -> Any:
    if not place:
        return other
    changed = inner = deepcopy(value)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = other
    return changed


def damaged(events: list[SseEvent]) -> Iterator[bytes]:
    """The stream with one thing exchanged: of places that look alike the first alone."""
    seen: set[object] = set()
    for number, event in enumerate(events):
        if not event.data.startswith(b"{"):
            continue
        value = json.loads(event.data)
        for place in places(value):
            kind = (value.get("type"), tuple("#" if isinstance(key, int) else key for key in place))
            if kind in seen:
                continue
            seen.add(kind)
            for other in OTHERS:
                data = json.dumps(with_other(value, place, other)).encode()
                yield b"".join(map(written, (*events[:number], SseEvent(event.name, data), *events[number + 1 :])))


def written(event: SseEvent) -> bytes:
    return (b"event: %b\n" % event.name if event.name else b"") + b"data: %b\n\n" % event.data


def sent_on(part: StreamPart) -> bytes:
    """What becomes of a part: it goes over the wire to the caller, and into the log."""
    if isinstance(part, Completed):
        return on_record(part.response.message, part.response.usage or Usage.of(()))
    if isinstance(part, UsageUpdated):
        return on_record(Message("assistant", ()), part.usage)
    if isinstance(part, ReasoningDone):
        return on_record(Message("assistant", (part.part,)), Usage.of(()))
    return "".join(getattr(part, name) for name in part.__slots__ if name != "index").encode()


def on_record(message: Message, usage: Usage) -> bytes:
    answer = Answer("req_1", message, "stop", usage, "provider_final", "p/m", "", "mc_1:1")
    return translate.AnswerRecords().dump(answer)


@pytest.mark.parametrize(
    "recording", sorted(RECORDINGS.glob("*/*.sse")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_stream_with_one_thing_of_another_kind_is_an_answer_or_a_named_error(recording: Path) -> None:
    make, parts_sent, errors = DIALECTS[recording.parent.name], 0, 0
    for stream in damaged(SseParser().feed(recording.read_bytes())):
        try:
            for part in _assembled(SseParser(), make().assembler(), stream):
                sent_on(part)
                parts_sent += 1
        except ProviderError:
            errors += 1
    assert min(parts_sent, errors) > 0


@pytest.mark.parametrize("text", ["5", "[1]", "true", '{"a":1}'])
def test_text_that_is_no_text_is_named(text: str) -> None:
    chunk = b'data: {"id":"1","model":"m","choices":[{"delta":{"content":%b}}]}\n\n' % text.encode()
    with pytest.raises(MalformedResponse, match="text is no text but"):
        list(_assembled(SseParser(), OpenAiChatDialect().assembler(), chunk))


@pytest.mark.parametrize("count", ["1.5", "true", "1e308"])
def test_a_count_that_is_no_whole_number_is_not_believed(count: str) -> None:
    body = (
        b'{"id":"1","model":"m","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":%b,"completion_tokens":1}}' % count.encode()
    )
    response = OpenAiChatDialect().decode(body)
    assert response.usage is None
    assert "was not believed: a count of tokens is no whole number" in response.warnings[0]
