"""The dialect openai-responses: what is sent, and what its own events mean."""

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
    Opaque,
    OutputFormat,
    Reasoning,
    ReasoningDone,
    Refusal,
    Text,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    UsageLine,
    is_content,
)
from llm_gateway.errors import PaymentRequired, ProviderFailed
from llm_gateway.providers.openai_responses import NAME, OpenAiResponsesDialect
from llm_gateway.providers.sse import SseEvent, SseParser

RECORDINGS = Path(__file__).parent / "recordings" / NAME
DIALECT = OpenAiResponsesDialect()
USER = Message("user", (Text("Hi"),))


def read(name: str) -> ModelResponse:
    assembler = DIALECT.assembler()
    events = SseParser().feed((RECORDINGS / f"{name}.sse").read_bytes())
    parts = [part for event in events for part in assembler.feed(event)]
    assert isinstance(parts[-1], Completed)
    return parts[-1].response


def body(request: ModelRequest) -> dict[str, object]:
    return orjson.loads(DIALECT.encode(request, stream=False))


def test_what_the_provider_ran_itself_is_told_of_when_it_is_done() -> None:
    item = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    event = {"type": "response.output_item.done", "output_index": 0, "item": item}
    told = DIALECT.assembler().feed(SseEvent(b"", orjson.dumps(event)))
    assert told == [ReasoningDone(Opaque(NAME, orjson.dumps(item)))]


def test_reasoning_goes_back_byte_for_byte_before_its_calls() -> None:
    response = read("reasoning-and-parallel-calls")
    thought = response.message.parts[0]
    assert isinstance(thought, Reasoning)
    assert thought.text == "Two cities. Ask both."
    results = Message("tool", (ToolResult("call_1", "12"), ToolResult("call_2", "13")))
    sent = DIALECT.encode(ModelRequest("m", (USER, response.message, results)), stream=True)

    assert thought.payload in sent
    assert b'"encrypted_content":"gAAAA/b+c=="' in sent
    kinds = [item.get("type", item.get("role")) for item in orjson.loads(sent)["input"]]
    outputs = ["function_call_output"] * 2
    assert kinds == ["user", "reasoning", "function_call", "function_call", *outputs]
    assert orjson.loads(sent)["store"] is False


@pytest.mark.parametrize(
    ("name", "finish"),
    [
        ("incomplete-max-output-tokens", "length"),
        ("incomplete-content-filter", "content_filter"),
        ("reasoning-and-parallel-calls", "tool_calls"),
        ("sim-text", "stop"),
        ("sim-refusal", "refusal"),
    ],
)
def test_each_reason_to_stop_has_its_meaning(name: str, finish: str) -> None:
    assert read(name).finish_reason == finish


def test_group_14_cached_and_written_tokens_are_counted_once() -> None:
    usage = read("reasoning-and-parallel-calls").usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (100, 50)
    assert usage.lines == (
        UsageLine("input", 50),
        UsageLine("input", 30, cache="read"),
        UsageLine("input", 15, cache="write", ttl="30m"),
        UsageLine("input", 5, cache="write", ttl="12h"),
        UsageLine("output", 10),
        UsageLine("output", 40, reasoning=True),
    )


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -1, "output_tokens": 1},
        {"input_tokens": 10**12, "output_tokens": 1},
        {"input_tokens": 5, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 6}},
        {"input_tokens": 5, "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 2}},
    ],
)
def test_group_14_usage_that_cannot_be_is_left_out_with_a_warning(usage: dict[str, object]) -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    whole = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "m",
        "output": [said],
        "usage": usage,
    }
    response = DIALECT.decode(orjson.dumps(whole))

    assert response.message.text == "hi"
    assert response.usage is None
    assert response.warnings[0].startswith("the provider's usage was not believed: a count of")


def test_group_08_an_error_after_created_comes_before_any_content() -> None:
    assembler = DIALECT.assembler()
    created = (RECORDINGS / "sim-text.sse").read_bytes().split(b"\n\n")[0].partition(b"data: ")[2]
    parts = assembler.feed(SseEvent(b"", created))
    assert not any(is_content(part) for part in parts)

    error = {"type": "error", "code": "insufficient_quota", "message": "no money", "sequence_number": 2}
    with pytest.raises(PaymentRequired, match="no money"):
        assembler.feed(SseEvent(b"", orjson.dumps(error)))


def test_group_08_a_failed_response_is_an_error_and_no_answer() -> None:
    failed = {
        "id": "r",
        "model": "m",
        "status": "failed",
        "output": [],
        "error": {"code": "server_error", "message": "x"},
    }
    event = SseEvent(b"", orjson.dumps({"type": "response.failed", "response": failed}))
    with pytest.raises(ProviderFailed, match="x"):
        DIALECT.assembler().feed(event)


def test_media_tools_and_format_stand_where_the_documentation_says() -> None:
    parts = (Text("look"), Image("image/png", b"png"), Audio("audio/wav", b"wav"), File("text/plain", "a.txt", b"txt"))
    request = ModelRequest(
        "m",
        (Message("system", (Text("Be brief"),)), Message("user", parts)),
        tools=(ToolSpec("f", "does", {"type": "object"}, strict=True),),
        tool_choice=ToolChoice("tool", "f"),
        output_format=OutputFormat("json_schema", "w", {"type": "object"}),
        reasoning_effort="low",
    )
    sent = body(request)

    system, user = sent["input"]  # type: ignore[misc]
    assert (system["role"], [part["type"] for part in user["content"]]) == (
        "system",
        ["input_text", "input_image", "input_audio", "input_file"],
    )
    assert user["content"][1]["image_url"] == "data:image/png;base64,cG5n"
    assert sent["tools"][0]["strict"] is True  # type: ignore[index]
    assert sent["tool_choice"] == {"type": "function", "name": "f"}
    assert sent["text"] == {
        "format": {"type": "json_schema", "name": "w", "schema": {"type": "object"}, "strict": True}
    }
    assert sent["reasoning"] == {"effort": "low", "summary": "auto"}
    assert body(replace(request, reasoning_display="omitted"))["reasoning"] == {"effort": "low"}
    assert body(replace(request, reasoning_effort=None, reasoning_display="summarized"))["reasoning"] == {
        "summary": "auto"
    }
    assert "reasoning" not in body(replace(request, reasoning_effort=None, reasoning_mode="adaptive"))


def test_pieces_of_what_an_assistant_said_stay_apart() -> None:
    said = Message("assistant", (Text("I will look."), Text("Done."), Refusal("No.")))
    _, sent = body(ModelRequest("m", (USER, said)))["input"]  # type: ignore[misc]
    assert sent["content"] == [
        {"type": "output_text", "text": "I will look."},
        {"type": "output_text", "text": "Done."},
        {"type": "refusal", "refusal": "No."},
    ]


def test_empty_texts_are_left_out_and_with_them_an_assistant_who_said_nothing() -> None:
    history = (
        Message("user", (Text(""), Text("Hi"))),
        Message("assistant", (Text(""),)),
        Message("assistant", (Text(""), ToolCall("c", "f", "{}"))),
        Message("tool", (ToolResult("c", ""),)),
        Message("user", (Text(""),)),
    )
    user, call, result, last = body(ModelRequest("m", history))["input"]  # type: ignore[misc]

    assert user["content"] == [{"type": "input_text", "text": "Hi"}]
    assert (call["type"], result["type"], result["output"]) == ("function_call", "function_call_output", "")
    assert last["content"] == [{"type": "input_text", "text": ""}]  # which the API takes, and answers


def test_a_failed_tool_says_so_in_its_result() -> None:
    sent = body(replace(ModelRequest("m", ()), messages=(Message("tool", (ToolResult("c", "no", is_error=True),)),)))
    assert sent["input"][0]["output"] == '{"error":{"message":"no"}}'  # type: ignore[index]


def test_a_tool_without_parameters_takes_an_object_without_fields() -> None:
    (tool,) = body(ModelRequest("m", (USER,), tools=(ToolSpec("now", "Tells the time.", {}),)))["tools"]  # type: ignore[misc]
    assert tool["parameters"] == {"type": "object", "properties": {}}
