import json
from dataclasses import replace

import pytest
from llm_gateway.domain import (
    Completed,
    File,
    Image,
    Message,
    ModelRequest,
    OutputFormat,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Refusal,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    ToolSpec,
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import PaymentRequired, ProviderFailed, RequestRejected
from llm_gateway.providers.openai_chat import OpenAiChatDialect, usage_of
from llm_gateway.providers.openai_chat_request import ChatWire
from llm_gateway.providers.sse import SseEvent

ASKED = ModelRequest("gpt", (Message("developer", (Text("be terse"),)), Message("user", (Text("hi"),))))
SEARCH = ToolSpec("search", "Searches.", {"type": "object"}, strict=True)


def sent(request: ModelRequest, *, stream: bool = False, wire: ChatWire | None = None) -> dict[str, object]:
    body: dict[str, object] = json.loads(OpenAiChatDialect(wire).encode(request, stream=stream))
    return body


def body(message: dict[str, object], finish: str | None = "stop", **more: object) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"id": "1", "model": "gpt", "choices": [choice], **more}).encode()


def chunk(delta: dict[str, object], finish: str | None = None, **more: object) -> SseEvent:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return SseEvent(b"", json.dumps({"id": "1", "model": "gpt", "choices": [choice], **more}).encode())


def test_a_plain_request_holds_nothing_but_model_and_messages() -> None:
    assert sent(ASKED) == {
        "model": "gpt",
        "messages": [{"role": "developer", "content": "be terse"}, {"role": "user", "content": "hi"}],
    }


def test_a_stream_always_asks_for_its_usage() -> None:
    assert sent(ASKED, stream=True)["stream_options"] == {"include_usage": True}


def test_every_parameter_has_its_place_on_the_wire() -> None:
    request = replace(
        ASKED,
        tools=(SEARCH,),
        tool_choice=ToolChoice("tool", "search"),
        parallel_tool_calls=False,
        output_format=OutputFormat("json_schema", "reply", {"type": "object"}),
        max_output_tokens=9,
        stop=("x",),
        temperature=0.0,
        top_p=0.5,
        seed=1,
        reasoning_effort="low",
        service_tier="flex",
        provider_options={"prompt_cache_key": "k"},
    )
    wire = sent(request)

    function = {"name": "search", "description": "Searches.", "parameters": {"type": "object"}, "strict": True}
    assert wire["tools"] == [{"type": "function", "function": function}]
    assert wire["tool_choice"] == {"type": "function", "function": {"name": "search"}}
    assert wire["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True},
    }
    plain = ("parallel_tool_calls", "max_completion_tokens", "stop", "temperature", "top_p", "seed")
    assert [wire[name] for name in plain] == [False, 9, ["x"], 0.0, 0.5, 1]
    assert (wire["reasoning_effort"], wire["service_tier"], wire["prompt_cache_key"]) == ("low", "flex", "k")


def test_local_servers_get_the_older_names() -> None:
    wire = sent(replace(ASKED, max_output_tokens=9), wire=ChatWire("max_tokens", developer_role=False))

    assert wire["max_tokens"] == 9
    assert wire["messages"][0] == {"role": "system", "content": "be terse"}  # type: ignore[index]


def test_a_history_with_tools_goes_back_in_the_order_of_the_wire() -> None:
    history = (
        Message("assistant", (Reasoning("hm", "openai-chat", b"hm"), Text("wait"), ToolCall("1", "search", ""))),
        Message("tool", (ToolResult("1", "found"), ToolResult("2", "broken", is_error=True))),
        Message("assistant", (Refusal("no"),)),
    )
    wire = sent(replace(ASKED, messages=history))

    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    assert wire["messages"] == [
        {"role": "assistant", "content": "wait", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
        {"role": "tool", "tool_call_id": "2", "content": '{"error":{"message":"broken"}}'},
        {"role": "assistant", "content": None, "refusal": "no"},
    ]


def test_empty_texts_are_left_out_and_with_them_an_assistant_who_said_nothing() -> None:
    history = (
        Message("user", (Text(""), Image("", url="https://e.org/a"))),
        Message("assistant", (Text(""), Reasoning("hm", "openai-chat", b"hm"))),
        Message("assistant", (Text(""), ToolCall("1", "search", ""))),
        Message("user", (ToolResult("1", ""), Text(""))),
        Message("user", (Text(""),)),
    )
    shown, called, result, said = sent(replace(ASKED, messages=history))["messages"]  # type: ignore[misc]

    assert [part["type"] for part in shown["content"]] == ["image_url"]
    assert (called["content"], len(called["tool_calls"])) == (None, 1)
    assert result == {"role": "tool", "tool_call_id": "1", "content": ""}
    assert said == {"role": "user", "content": ""}  # which the API takes, and answers


def test_images_and_files_are_sent_as_content_parts() -> None:
    parts = (Text("see"), Image("image/png", b"\x01"), Image("", url="https://e.org/a"), File("text/plain", "a", b"b"))
    wire = sent(replace(ASKED, messages=(Message("user", parts),)))

    assert wire["messages"][0]["content"] == [  # type: ignore[index]
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQ=="}},
        {"type": "image_url", "image_url": {"url": "https://e.org/a"}},
        {"type": "file", "file": {"filename": "a", "file_data": "data:text/plain;base64,Yg=="}},
    ]


def test_group_14_usage_is_split_into_lines_that_share_nothing() -> None:
    usage = usage_of(
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "prompt_tokens_details": {
                "cached_tokens": 60,
                "cache_write_tokens": 10,
                "audio_tokens": 5,
                "image_tokens": 5,
            },
            "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": None},
        }
    )

    assert usage == Usage(
        100,
        50,
        (
            UsageLine("input", 20),
            UsageLine("input", 60, cache="read"),
            UsageLine("input", 10, cache="write"),
            UsageLine("input", 5, modality="audio"),
            UsageLine("input", 5, modality="image"),
            UsageLine("output", 20),
            UsageLine("output", 30, reasoning=True),
        ),
    )


@pytest.mark.parametrize(
    ("details", "lines"),
    [
        (
            {"cached_tokens": 1920, "image_tokens": 1500},
            (UsageLine("input", 1920, cache="read"), UsageLine("input", 80, modality="image")),
        ),
        (
            {"cached_tokens": 1900, "audio_tokens": 500, "image_tokens": 300},
            (
                UsageLine("input", 1500, cache="read"),
                UsageLine("input", 400, modality="audio", cache="read"),
                UsageLine("input", 100, modality="audio"),
            ),
        ),
        (
            {"cache_write_tokens": 2000, "audio_tokens": 500},
            (UsageLine("input", 2000, cache="write"),),
        ),
    ],
)
def test_group_14_cached_tokens_may_be_of_any_kind(details: dict[str, int], lines: tuple[UsageLine, ...]) -> None:
    usage = usage_of({"prompt_tokens": 2000, "completion_tokens": 0, "prompt_tokens_details": details})  # type: ignore[typeddict-item]
    assert usage == Usage(2000, 0, lines)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 10**12, "completion_tokens": 1},
    ],
)
def test_group_14_usage_that_cannot_be_is_left_out_with_a_warning(usage: dict[str, object]) -> None:
    response = OpenAiChatDialect().decode(body({"content": "hi"}, usage=usage))

    assert response.message.text == "hi"
    assert response.usage is None
    assert response.warnings[0].startswith("the provider's usage was not believed: a count of")


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": "hi"}, "stop", "stop"),
        ({"content": "hi"}, "length", "length"),
        ({"content": ""}, "content_filter", "content_filter"),
        ({"refusal": "no"}, "stop", "refusal"),
        ({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls", "tool_calls"),
        ({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}, "stop", "tool_calls"),
        ({"content": "hi"}, "abort", "error"),
        ({"content": "hi"}, None, "error"),
    ],
)
def test_finish_reasons_are_ours_with_the_raw_one_beside(
    message: dict[str, object], finish: str | None, reason: str
) -> None:
    response = OpenAiChatDialect().decode(body(message, finish))

    assert (response.finish_reason, response.raw_finish_reason) == (reason, finish or "")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_of_local_servers_is_its_own_part(field: str) -> None:
    response = OpenAiChatDialect().decode(body({"content": "hi", field: "hm"}))

    assert response.message.parts == (Reasoning("hm", "openai-chat", b"hm"), Text("hi"))


def test_reasoning_ends_where_something_else_begins_and_stands_where_it_came() -> None:
    deltas = [{"reasoning": "h"}, {"reasoning": "m"}, {"content": "a"}, {"reasoning": "so"}]
    calls = {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    assembler = OpenAiChatDialect().assembler()
    parts = [part for delta in (*deltas, calls) for part in assembler.feed(chunk(delta))]
    assembler.feed(chunk({}, finish="tool_calls"))
    (end,) = assembler.feed(SseEvent(b"", b"[DONE]"))

    first, second = (Reasoning(text, "openai-chat", text.encode()) for text in ("hm", "so"))
    assert [part for part in parts if not isinstance(part, Started | UsageUpdated)] == [
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        ReasoningDone(first),
        TextDelta("a"),
        ReasoningDelta("so"),
        ReasoningDone(second),
        ToolCallDelta(0, "1", "f", "{}"),
    ]
    assert isinstance(end, Completed)
    assert end.response.message.parts == (first, Text("a"), second, ToolCall("1", "f", "{}"))


def test_reasoning_ends_with_its_stream() -> None:
    assembler = OpenAiChatDialect().assembler()
    assembler.feed(chunk({"reasoning": "hm"}, finish="length"))
    told, end = assembler.feed(SseEvent(b"", b"[DONE]"))
    assert isinstance(end, Completed)
    assert [told] == [ReasoningDone(part) for part in end.response.message.parts if isinstance(part, Reasoning)]


def test_calls_that_all_have_index_zero_stay_apart_by_their_ids() -> None:
    assembler = OpenAiChatDialect().assembler()
    parts = [
        part
        for name in ("a", "b")
        for part in assembler.feed(
            chunk({"tool_calls": [{"index": 0, "id": name, "function": {"name": name, "arguments": "{}"}}]})
        )
        if isinstance(part, ToolCallDelta)
    ]

    assert parts == [ToolCallDelta(0, "a", "a", "{}"), ToolCallDelta(1, "b", "b", "{}")]


def test_the_last_of_several_usages_counts() -> None:
    assembler = OpenAiChatDialect().assembler()
    assembler.feed(chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}))
    parts = assembler.feed(chunk({"content": "b"}, usage={"prompt_tokens": 5, "completion_tokens": 2}))

    usage = Usage.of((UsageLine("input", 5), UsageLine("output", 2)))
    assert parts[-1] == UsageUpdated(usage)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b'{"error": {"message": "no money", "code": "insufficient_quota"}}', PaymentRequired, "no money"),
        (b'{"error": "model is loading"}', ProviderFailed, "model is loading"),
    ],
)
def test_an_error_in_the_place_of_an_answer_is_raised(answer: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OpenAiChatDialect().decode(answer)
    with pytest.raises(error, match=message):
        OpenAiChatDialect().assembler().feed(SseEvent(b"", answer))


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (
            b'{"error": {"message": "bad", "type": "invalid_request_error", "code": null}}',
            "invalid_request_error",
            "bad",
        ),
        (b'{"error": {"message": "bad", "code": 400}}', "400", "bad"),
        (b'{"object": "error", "message": "bad"}', None, "bad"),
        (b'{"error": "bad"}', None, "bad"),
        (b"bad", None, "bad"),
        (b'["bad"]', None, '["bad"]'),
    ],
)
def test_error_bodies_of_all_servers_are_read(answer: bytes, code: str | None, message: str) -> None:
    error = OpenAiChatDialect().failure(400, answer, "req_1", None)

    assert isinstance(error, RequestRejected)
    assert (error.code, error.message, error.request_id) == (code, message, "req_1")


def test_no_key_sends_no_authorization() -> None:
    assert OpenAiChatDialect().headers("") == {}
    assert OpenAiChatDialect().headers("k") == {"authorization": "Bearer k"}


def test_an_answer_without_the_simulators_fingerprint_is_not_simulated() -> None:
    assert not OpenAiChatDialect().decode(body({"content": "hi"})).simulated


def test_a_tool_without_parameters_takes_an_object_without_fields() -> None:
    wire = sent(replace(ASKED, tools=(ToolSpec("now", "Tells the time.", {}),)))
    assert wire["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}  # type: ignore[index]
