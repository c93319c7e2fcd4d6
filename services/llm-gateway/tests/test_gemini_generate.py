"""The dialect gemini-generate against the documented shapes (ai.google.dev/api/generate-content)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from llm_gateway.domain import (
    Audio,
    Completed,
    File,
    Image,
    Message,
    ModelRequest,
    ModelResponse,
    OutputFormat,
    Part,
    Reasoning,
    ReasoningDone,
    Refusal,
    Text,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    UsageLine,
)
from llm_gateway.errors import ProviderRateLimited, RequestRejected
from llm_gateway.providers.failures import WAIT_S_MAX
from llm_gateway.providers.gemini_generate import NAME, GeminiGenerateDialect, usage_of
from llm_gateway.providers.sse import SseEvent, SseParser

RECORDINGS = Path(__file__).parent / "recordings" / NAME
DIALECT = GeminiGenerateDialect()


def read(name: str) -> ModelResponse:
    assembler = DIALECT.assembler()
    events = SseParser().feed((RECORDINGS / f"{name}.sse").read_bytes())
    parts = [part for event in events for part in assembler.feed(event)]
    assert isinstance(parts[-1], Completed)
    return parts[-1].response


def body(request: ModelRequest) -> dict[str, object]:
    return orjson.loads(DIALECT.encode(request, stream=False))


def asked(*parts: Part, **more: object) -> ModelRequest:
    return ModelRequest("gemini-3-pro", (Message("user", parts or (Text("Hi"),)),), **more)  # type: ignore[arg-type]


def test_thoughts_calls_and_signatures_come_back_where_they_stood() -> None:
    response = read("thoughts-and-calls")
    first, second = response.message.tool_calls

    assert (response.finish_reason, response.raw_finish_reason) == ("tool_calls", "STOP")
    assert (first.id, first.parsed(), second.id) == ("gem-1-0", {"city": "Zürich"}, "gem-1-1")
    results = Message("tool", (ToolResult(first.id, '{"degrees":12}'), ToolResult(second.id, "no", is_error=True)))
    sent = body(replace(asked(), messages=(*asked().messages, response.message, results)))
    _, model, user = sent["contents"]  # type: ignore[misc]
    assert model["parts"] == [
        {"text": "Two cities.", "thought": True},
        {
            "functionCall": {"id": "gem-1-0", "name": "lookup", "args": {"city": "Zürich"}},
            "thoughtSignature": "EqQB/+==",
        },
        {"functionCall": {"id": "gem-1-1", "name": "lookup", "args": {"city": "Łódź"}}},
    ]
    assert [part["functionResponse"] for part in user["parts"]] == [
        {"id": "gem-1-0", "name": "lookup", "response": {"degrees": 12}},
        {"id": "gem-1-1", "name": "lookup", "response": {"error": {"message": "no"}}},
    ]


@pytest.mark.parametrize(
    ("model", "signatures"),
    [
        ("gemini-3-pro", ["skip_thought_signature_validator", None]),
        ("gemini-flash-latest", ["skip_thought_signature_validator", None]),
        ("gemini-2.5-pro", [None, None]),
        ("sim-1", [None, None]),
    ],
)
def test_the_first_call_of_a_turn_that_another_model_wrote_has_the_signature_of_such_histories(
    model: str, signatures: list[str | None]
) -> None:
    turn = Message("assistant", (Text("Let me see."), ToolCall("1", "f", "{}"), ToolCall("2", "f", "{}")))
    results = Message("tool", (ToolResult("1", "4"), ToolResult("2", "5")))
    request = replace(asked(), model=model, messages=(*asked().messages, turn, results, turn, results))
    for model_turn in body(request)["contents"][1::2]:  # type: ignore[index]
        assert [part.get("thoughtSignature") for part in model_turn["parts"]] == [None, *signatures]


def test_a_signature_after_the_text_goes_back_after_the_text() -> None:
    response = read("text-with-late-signature")

    assert response.message.text == "Grüezi, it is 12 °C"
    sent = body(replace(asked(), messages=(*asked().messages, response.message)))
    assert sent["contents"][1]["parts"] == [  # type: ignore[index]
        {"text": "Grüezi, it is 12 °C"},
        {"text": "", "thoughtSignature": "Zz9+/w=="},
    ]


def test_pieces_of_a_thought_are_one_and_what_is_signed_stands_alone() -> None:
    pieces = [{"text": text, "thought": True} for text in ("Two ", "cities.")]
    signed = {"text": "So.", "thought": True, "thoughtSignature": "EqQB"}
    parts = [*pieces, signed, *pieces]
    thoughts = [{"text": "Two cities.", "thought": True}, signed, {"text": "Two cities.", "thought": True}]
    whole = DIALECT.decode(orjson.dumps(chunk(parts, "STOP"))).message
    assembler = DIALECT.assembler()
    ends = [None] * (len(parts) - 1) + ["STOP"]
    told = [
        told
        for part, end in zip(parts, ends, strict=True)
        for told in assembler.feed(SseEvent(b"", orjson.dumps(chunk([part], end))))
    ]

    assert [orjson.loads(part.payload) for part in whole.parts if isinstance(part, Reasoning)] == thoughts
    assert [part.part for part in told if isinstance(part, ReasoningDone)] == list(whole.parts)
    assert isinstance(told[-1], Completed)
    assert told[-1].response.message == whole


def chunk(parts: Sequence[Mapping[str, object]], end: str | None = None) -> dict[str, object]:
    candidate = {"content": {"parts": parts}} | ({"finishReason": end} if end else {})
    return {"candidates": [candidate], "responseId": "gem-1", "modelVersion": "gemini-3-pro"}


def test_group_14_cached_tokens_and_thoughts_are_counted_once() -> None:
    late, calls, media = read("text-with-late-signature"), read("thoughts-and-calls"), read("media-usage")

    assert late.usage is not None
    assert late.usage.lines == (
        UsageLine("input", 5),
        UsageLine("input", 4, cache="read"),
        UsageLine("output", 8),
    )
    assert calls.usage is not None
    assert (calls.usage.input_tokens, calls.usage.output_tokens) == (27, 40)
    assert media.usage is not None
    assert [(line.modality, line.quantity) for line in media.usage.lines if line.direction == "input"] == [
        ("text", 10),
        ("image", 258),
        ("audio", 32),
    ]


def _input_lines(**counts: object) -> list[tuple[str, str, int]]:
    usage = usage_of({"promptTokenCount": 12_000, **counts})  # type: ignore[typeddict-item]
    return [(line.modality, line.cache, line.quantity) for line in usage.lines if line.direction == "input"]


def test_group_14_media_keep_their_price_beside_what_was_cached() -> None:
    audio = {"modality": "AUDIO", "tokenCount": 9_000}
    text = {"modality": "TEXT", "tokenCount": 3_000}
    heard = {"promptTokensDetails": [text, audio]}

    assert _input_lines(**heard, cachedContentTokenCount=100) == [
        ("text", "none", 2_900),
        ("text", "read", 100),
        ("audio", "none", 9_000),
    ]
    told = [{"modality": "AUDIO", "tokenCount": 60}, {"modality": "TEXT", "tokenCount": 40}]
    assert _input_lines(**heard, cachedContentTokenCount=100, cacheTokensDetails=told) == [
        ("text", "none", 2_960),
        ("text", "read", 40),
        ("audio", "none", 8_940),
        ("audio", "read", 60),
    ]
    # A count that is 0 and a modality that is none are left out on the wire.
    assert _input_lines(**heard, cachedContentTokenCount=40, cacheTokensDetails=[{"modality": "AUDIO"}, told[1], {}])[
        1:
    ] == [
        ("text", "read", 40),
        ("audio", "none", 9_000),
    ]
    # Two counts of one thing that differ.
    assert _input_lines(cachedContentTokenCount=60, cacheTokensDetails=told) == [
        ("text", "none", 11_940),
        ("text", "read", 60),
    ]
    pages = [{"modality": "DOCUMENT", "tokenCount": 10_000}, {"modality": "TEXT", "tokenCount": 2_000}]
    assert _input_lines(promptTokensDetails=pages, cachedContentTokenCount=6_000, cacheTokensDetails=[told[1]]) == [
        ("text", "read", 2_000),
        ("image", "none", 6_000),
        ("image", "read", 4_000),
    ]
    # More was cached than there is text, and nobody says of what.
    assert _input_lines(**heard, cachedContentTokenCount=4_000) == [
        ("text", "read", 3_000),
        ("audio", "none", 8_000),
        ("audio", "read", 1_000),
    ]


@pytest.mark.parametrize(
    "usage",
    [
        {"promptTokenCount": -1, "candidatesTokenCount": 1},
        {"promptTokenCount": 10**12, "candidatesTokenCount": 1},
        {"promptTokenCount": 5, "candidatesTokenCount": 1, "cachedContentTokenCount": 6},
        {"promptTokenCount": 5, "candidatesTokenCount": 1, "thoughtsTokenCount": -2},
    ],
)
def test_group_14_usage_that_cannot_be_is_left_out_with_a_warning(usage: dict[str, object]) -> None:
    candidate = {"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}
    whole = {"responseId": "r", "modelVersion": "m", "candidates": [candidate], "usageMetadata": usage}
    response = DIALECT.decode(orjson.dumps(whole))

    assert response.message.text == "hi"
    assert response.usage is None
    assert response.warnings[0].startswith("the provider's usage was not believed: a count of")


@pytest.mark.parametrize(
    ("name", "finish"), [("recitation", "content_filter"), ("blocked-prompt", "refusal"), ("sim-refusal", "refusal")]
)
def test_each_reason_to_stop_has_its_meaning(name: str, finish: str) -> None:
    response = read(name)
    assert response.finish_reason == finish
    assert any(isinstance(part, Refusal) for part in response.message.parts) == (finish == "refusal")


def test_media_and_parameters_stand_where_the_documentation_says() -> None:
    schema = {"type": "object"}
    request = asked(
        Text("look"),
        Image("image/png", b"png"),
        Image("", url="https://example.org/a.png"),
        Audio("audio/wav", b"wav"),
        File("application/pdf", "a.pdf", b"pdf"),
        tools=(ToolSpec("lookup", "Warmth.", schema),),
        tool_choice=ToolChoice("tool", "lookup"),
        output_format=OutputFormat("json_schema", schema=schema),
        max_output_tokens=9,
        top_k=3,
        stop=("END",),
    )
    sent = body(request)

    assert sent["contents"][0]["parts"] == [  # type: ignore[index]
        {"text": "look"},
        {"inlineData": {"mimeType": "image/png", "data": "cG5n"}},
        {"fileData": {"fileUri": "https://example.org/a.png", "mimeType": "image/png"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "d2F2"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "cGRm"}},
    ]
    assert sent["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["lookup"]}}
    assert sent["generationConfig"] == {
        "maxOutputTokens": 9,
        "topK": 3,
        "stopSequences": ["END"],
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }
    assert DIALECT.path("gemini-3-pro", stream=True) == "/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse"


def test_an_image_at_an_address_is_never_sent_as_what_it_may_be() -> None:
    def typed(media_type: str, url: str) -> object:
        sent = body(asked(Image(media_type, url=url)))
        return sent["contents"][0]["parts"][0]["fileData"]["mimeType"]  # type: ignore[index]

    assert typed("", "https://example.org/a.webp?size=1#x") == "image/webp"
    assert typed("image/png", "https://example.org/watch?v=1") == "image/png"
    for url in ("https://example.org/watch?v=1.png", "https://example.org/film.mp4", "https://["):
        with pytest.raises((RequestRejected, ValueError)):
            typed("", url)


@pytest.mark.parametrize(
    ("more", "wire"),
    [
        ({}, None),
        ({"reasoning_effort": "low"}, {"includeThoughts": True, "thinkingLevel": "low"}),
        ({"reasoning_tokens_max": 500}, {"includeThoughts": True, "thinkingBudget": 500}),
        ({"reasoning_tokens_max": 0, "reasoning_effort": "low"}, {"includeThoughts": False, "thinkingBudget": 0}),
        ({"reasoning_mode": "adaptive"}, {"includeThoughts": True, "thinkingBudget": -1}),
        (
            {"reasoning_mode": "adaptive", "reasoning_effort": "low", "reasoning_display": "omitted"},
            {"includeThoughts": False, "thinkingLevel": "low"},
        ),
        (
            {"reasoning_tokens_max": 500, "reasoning_display": "omitted"},
            {"includeThoughts": False, "thinkingBudget": 500},
        ),
    ],
)
def test_how_much_to_think_is_said_by_level_or_by_number(more: dict[str, object], wire: object) -> None:
    config = body(asked(Text("Hi"), **more))["generationConfig"]
    assert isinstance(config, dict)
    assert config.get("thinkingConfig") == wire


def test_empty_texts_are_left_out_unless_they_bear_a_signature() -> None:
    signature = Reasoning("", NAME, b'{"thoughtSignature":"c2ln"}')
    history = (
        Message("user", (Text(""), Text("go"))),
        Message("assistant", (Text(""),)),
        Message("user", (Text("on"),)),
        Message("assistant", (signature, Text(""), Text(""), ToolCall("c", "f", "{}"))),
        Message("user", (Text("well?"),)),
    )
    user, model, _ = body(ModelRequest("gemini-3-pro", history))["contents"]  # type: ignore[misc]

    assert user["parts"] == [{"text": "go"}, {"text": "on"}]
    assert model["parts"] == [
        {"text": "", "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "c", "name": "f", "args": {}}, "thoughtSignature": "skip_thought_signature_validator"},
    ]


def test_a_turn_of_the_user_that_is_empty_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RequestRejected, match="give it text or leave it out"):
        body(asked(Text("")))


def test_a_result_without_its_call_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RequestRejected, match="no call 'c1' has the result"):
        body(asked(ToolResult("c1", "12")))
    with pytest.raises(RequestRejected, match="no JSON"):
        body(replace(asked(), messages=(Message("assistant", (ToolCall("c1", "f", "{"),)),)))


@pytest.mark.parametrize(
    ("told", "seconds"), [("3.5s", 3.5), ("1" * 400 + "s", WAIT_S_MAX), ("-1s", None), ("nan", None), ("", None)]
)
def test_the_wait_in_the_body_of_an_error_is_read(told: str, seconds: float | None) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": told}]
    error = {"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED", "details": details}}

    found = DIALECT.failure(429, json.dumps(error).encode(), None, None)
    assert isinstance(found, ProviderRateLimited)
    assert (found.retry_after_s, found.code) == (seconds, "RESOURCE_EXHAUSTED")


def test_reasoning_of_another_dialect_is_no_part_of_this_one() -> None:
    assert all(part.dialect == NAME for part in read("thoughts-and-calls").message.parts if isinstance(part, Reasoning))


def test_a_tool_without_parameters_is_declared_without_any() -> None:
    asked = ModelRequest("m", (Message("user", (Text("When?"),)),), tools=(ToolSpec("now", "Tells the time.", {}),))
    (tool,) = body(asked)["tools"]  # type: ignore[misc]
    assert tool["functionDeclarations"] == [{"name": "now", "description": "Tells the time."}]


def test_a_request_of_instructions_alone_is_refused_with_what_to_add() -> None:
    with pytest.raises(RequestRejected, match=r"system messages only .* add a message with the role user"):
        body(ModelRequest("m", (Message("system", (Text("be terse"),)),)))
