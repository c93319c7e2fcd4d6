import json
from dataclasses import replace
from typing import Any

import pytest
from llm_gateway.domain import (
    File,
    Image,
    Message,
    ModelRequest,
    Opaque,
    OutputFormat,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUnits,
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.errors import ProviderOverloaded, RequestRejected
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect, usage_of
from llm_gateway.providers.sse import SseEvent

NAME = "anthropic-messages"
ASKED = ModelRequest(
    "claude", (Message("system", (Text("be terse"),)), Message("user", (Text("hi"),))), max_output_tokens=9
)
SEARCH = ToolSpec("search", "Searches.", {"type": "object"}, strict=True)


def sent(request: ModelRequest, *, stream: bool = False) -> dict[str, object]:
    body: dict[str, object] = json.loads(AnthropicMessagesDialect().encode(request, stream=stream))
    return body


def body(content: list[dict[str, object]], reason: str = "end_turn", **more: object) -> bytes:
    message = {"id": "1", "type": "message", "model": "claude", "content": content, "stop_reason": reason, **more}
    return json.dumps(message).encode()


def event(kind: str, **fields: object) -> SseEvent:
    return SseEvent(kind.encode(), json.dumps({"type": kind, **fields}).encode())


def test_a_plain_request_lifts_the_instructions_out_of_the_messages() -> None:
    assert sent(ASKED) == {
        "model": "claude",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "be terse"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }


def spoken(*said: tuple[Role, str]) -> list[tuple[str, list[str]]]:
    """Who says what on the wire."""
    wire = sent(ModelRequest("claude", tuple(Message(role, (Text(text),)) for role, text in said)))
    return [(turn["role"], [block["text"] for block in turn["content"]]) for turn in wire["messages"]]  # type: ignore[attr-defined]


def test_later_instructions_stay_between_what_was_asked_and_its_answer() -> None:
    assert spoken(
        ("system", "be terse"), ("user", "a"), ("developer", "b"), ("system", "c"), ("assistant", "d"), ("user", "e")
    ) == [("user", ["a"]), ("system", ["b", "c"]), ("assistant", ["d"]), ("user", ["e"])]


def test_later_instructions_before_a_question_follow_it_as_the_api_wants() -> None:
    assert spoken(("user", "a"), ("assistant", "b"), ("system", "MID"), ("user", "c"), ("user", "d")) == [
        ("user", ["a"]),
        ("assistant", ["b"]),
        ("user", ["c", "d"]),
        ("system", ["MID"]),
    ]


@pytest.mark.parametrize("more", [(), (("assistant", "c"),)])
def test_later_instructions_without_a_question_are_a_users_in_their_place(more: tuple[tuple[Role, str], ...]) -> None:
    assert spoken(("user", "a"), ("assistant", "b"), ("system", "MID"), *more)[2] == (
        "user",
        ["<system>\nMID\n</system>"],
    )


def test_only_the_first_instructions_are_lifted_out() -> None:
    later = (*ASKED.messages, Message("system", (Text("MID", "1h"),)))
    wire = sent(replace(ASKED, messages=later))
    ttl = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert wire["system"] == [{"type": "text", "text": "be terse"}]
    assert wire["messages"][-1] == {"role": "system", "content": [{"type": "text", "text": "MID", **ttl}]}  # type: ignore[index]
    counted = json.loads(AnthropicMessagesDialect().encode_count(replace(ASKED, messages=later)))
    assert (counted["system"], counted["messages"]) == (wire["system"], wire["messages"])


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_request_of_instructions_alone_is_refused_with_what_to_add(role: Role) -> None:
    request = replace(ASKED, messages=(Message(role, (Text("be terse"),)),))
    for encode in (sent, AnthropicMessagesDialect().encode_count):
        with pytest.raises(RequestRejected, match=r"system messages only .* add a message with the role user"):
            encode(request)


@pytest.mark.parametrize(("strict", "closed"), [(False, {}), (True, {"additionalProperties": False})])
def test_a_tool_without_parameters_takes_an_object_without_fields(strict: bool, closed: dict[str, bool]) -> None:
    wire = sent(replace(ASKED, tools=(ToolSpec("now", "Tells the time.", {}, strict),)))
    assert wire["tools"][0]["input_schema"] == {"type": "object", "properties": {}, **closed}  # type: ignore[index]


def test_breakpoints_of_the_prompts_cache_stand_where_they_were_set() -> None:
    five_minutes, hour = {"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    spoken = (
        Message("system", (Text("be terse\n", "1h"), Text("and kind"))),
        Message(
            "user", (Image("image/png", b"i", cache_ttl="5m"), File("text/plain", "f", b"t", "5m"), Text("look", "1h"))
        ),
        Message("assistant", (ToolCall("c1", "search", "{}", "5m"),)),
        Message("tool", (ToolResult("c1", "found", cache_ttl="5m"),)),
    )
    wire = sent(replace(ASKED, messages=spoken, tools=(replace(SEARCH, cache_ttl="1h"),), cache_ttl="5m"))

    assert wire["system"] == [{"type": "text", "text": "be terse\n", **hour}, {"type": "text", "text": "and kind"}]
    assert [tool["cache_control"] for tool in wire["tools"]] == [hour["cache_control"]]  # type: ignore[attr-defined]
    blocks = [block for message in wire["messages"] for block in message["content"]]  # type: ignore[attr-defined]
    assert [(block["type"], {"cache_control": block["cache_control"]}) for block in blocks] == [
        ("image", five_minutes),
        ("document", five_minutes),
        ("text", hour),
        ("tool_use", five_minutes),
        ("tool_result", five_minutes),
    ]
    assert wire["cache_control"] == {"type": "ephemeral"}


def test_every_request_names_the_api_version() -> None:
    assert AnthropicMessagesDialect().headers("k") == {"x-api-key": "k", "anthropic-version": "2026-10-21"}


def test_every_parameter_has_its_place_on_the_wire() -> None:
    request = replace(
        ASKED,
        tools=(SEARCH,),
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
        output_format=OutputFormat("json_schema", schema={"type": "object"}),
        stop=("x",),
        reasoning_effort="low",
        service_tier="auto",
        provider_options={"thinking": {"type": "adaptive"}},
    )
    wire = sent(request, stream=True)

    tool = {"name": "search", "description": "Searches.", "input_schema": {"type": "object"}, "strict": True}
    assert wire["tools"] == [tool]
    assert wire["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert wire["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}
    assert (wire["stop_sequences"], wire["service_tier"], wire["stream"]) == (["x"], "auto", True)
    assert wire["thinking"] == {"type": "adaptive"}


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (ToolChoice("auto"), None),
        (ToolChoice("none"), {"type": "none"}),
        (ToolChoice("tool", "search"), {"type": "tool", "name": "search"}),
    ],
)
def test_tool_choices_have_their_own_words(choice: ToolChoice, wire: dict[str, str] | None) -> None:
    assert sent(replace(ASKED, tools=(SEARCH,), tool_choice=choice)).get("tool_choice") == wire


@pytest.mark.parametrize(
    ("most", "wire"),
    [(None, None), (0, {"type": "disabled"}), (1024, {"type": "enabled", "budget_tokens": 1024})],
)
def test_a_number_of_tokens_to_think_with_is_passed_on(most: int | None, wire: dict[str, object] | None) -> None:
    request = replace(ASKED, max_output_tokens=2048, reasoning_tokens_max=most)
    assert sent(request).get("thinking") == wire


@pytest.mark.parametrize(
    ("more", "wire"),
    [
        ({"reasoning_mode": "adaptive"}, {"type": "adaptive"}),
        ({"reasoning_mode": "between_tools"}, {"type": "between_tools"}),
        (
            {"reasoning_mode": "adaptive", "reasoning_display": "summarized"},
            {"type": "adaptive", "display": "summarized"},
        ),
        (
            {"reasoning_tokens_max": 1024, "reasoning_display": "omitted"},
            {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        ),
    ],
)
def test_how_to_think_and_what_to_show_of_it_is_passed_on(more: dict[str, Any], wire: dict[str, object]) -> None:
    assert sent(replace(ASKED, max_output_tokens=2048, **more)).get("thinking") == wire


@pytest.mark.parametrize("most", [1023, 2048])
def test_a_number_that_the_api_would_refuse_is_refused_before_it_is_sent(most: int) -> None:
    with pytest.raises(RequestRejected, match="1024 to less than max_output_tokens"):
        sent(replace(ASKED, max_output_tokens=2048, reasoning_tokens_max=most))


def test_results_of_parallel_calls_are_one_turn_and_come_first() -> None:
    history = (
        Message("user", (Text("go"),)),
        Message("assistant", (Text("wait"), ToolCall("1", "search", '{"q": "ü"}'), ToolCall("2", "search", ""))),
        Message("user", (Text("and hurry"),)),
        Message("tool", (ToolResult("1", "found"),)),
        Message("tool", (ToolResult("2", "broken", is_error=True),)),
    )

    assert sent(replace(ASKED, messages=history))["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "go"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "wait"},
                {"type": "tool_use", "id": "1", "name": "search", "input": {"q": "ü"}},
                {"type": "tool_use", "id": "2", "name": "search", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "found"},
                {"type": "tool_result", "tool_use_id": "2", "content": "broken", "is_error": True},
                {"type": "text", "text": "and hurry"},
            ],
        },
    ]


def test_empty_texts_are_left_out_and_with_them_an_assistant_who_said_nothing() -> None:
    history = (
        Message("user", (Text("go"), Text(""))),
        Message("assistant", (Text(""), Refusal(""))),
        Message("user", (Text("on"),)),
        Message("assistant", (Text(""), ToolCall("1", "search", ""))),
        Message("tool", (ToolResult("1", ""),)),
        Message("user", (Text(""),)),
    )

    first, call, result = sent(replace(ASKED, messages=history))["messages"]  # type: ignore[misc]
    assert first["content"] == [{"type": "text", "text": "go"}, {"type": "text", "text": "on"}]
    assert [block["type"] for block in call["content"]] == ["tool_use"]
    assert [block["type"] for block in result["content"]] == ["tool_result"]


def test_a_turn_of_the_user_that_is_empty_is_refused_before_it_is_sent() -> None:
    history = (*ASKED.messages, Message("assistant", (Text("yes?"),)), Message("user", (Text(""),)))
    with pytest.raises(RequestRejected, match="give it text or leave it out"):
        sent(replace(ASKED, messages=history))


def test_reasoning_and_opaque_parts_go_back_byte_for_byte() -> None:
    odd = b'{"type":"thinking",  "signature":"\\u00e9=="}'
    history = Message("assistant", (Reasoning("", NAME, odd), Opaque(NAME, b'{"type": "x", "n": 1.0}')))
    wire = AnthropicMessagesDialect().encode(replace(ASKED, messages=(history,)), stream=False)

    assert odd in wire
    assert b'{"type": "x", "n": 1.0}' in wire


def test_a_file_of_text_is_sent_as_text() -> None:
    def source(data: bytes) -> object:
        said = Message("user", (File("text/markdown", "notes.md", data),))
        return sent(replace(ASKED, messages=(said,)))["messages"][0]["content"][0]["source"]  # type: ignore[index]

    assert source("# Zürich".encode()) == {"type": "text", "media_type": "text/plain", "data": "# Zürich"}
    with pytest.raises(RequestRejected, match=r"the file 'notes.md' is no UTF-8 text"):
        source(b"\xff")


def test_images_and_files_are_sent_as_blocks() -> None:
    parts = (Image("image/png", b"\x01"), Image("", url="https://e.org/a"), File("application/pdf", "a", b"b"))
    wire = sent(replace(ASKED, messages=(Message("user", parts),)))

    assert wire["messages"][0]["content"] == [  # type: ignore[index]
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQ=="}},
        {"type": "image", "source": {"type": "url", "url": "https://e.org/a"}},
        {
            "type": "document",
            "title": "a",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "Yg=="},
        },
    ]


def test_a_history_with_broken_arguments_is_rejected_before_it_is_sent() -> None:
    broken = Message("assistant", (ToolCall("1", "search", '{"q": '),))

    with pytest.raises(RequestRejected, match="the arguments of search are no JSON"):
        sent(replace(ASKED, messages=(broken,)))


def test_group_14_the_total_input_includes_what_the_cache_read_and_wrote() -> None:
    usage = usage_of(
        {
            "input_tokens": 20,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 40,
            "output_tokens_details": {"thinking_tokens": 25},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        }
    )

    lines = (
        UsageLine("input", 20),
        UsageLine("input", 1000, cache="read"),
        UsageLine("input", 200, cache="write", ttl="5m"),
        UsageLine("input", 100, cache="write", ttl="1h"),
        UsageLine("output", 15),
        UsageLine("output", 25, reasoning=True),
    )
    assert usage == Usage(1320, 40, lines, (ToolUnits("web_search", 2),))


def test_group_08_usage_of_a_stream_is_cumulative_and_the_last_counts() -> None:
    assembler = AnthropicMessagesDialect().assembler()
    start = {
        "id": "1",
        "model": "claude",
        "usage": {"input_tokens": 20, "cache_read_input_tokens": 5, "output_tokens": 1},
    }
    assembler.feed(event("message_start", message=start))
    assembler.feed(event("message_delta", delta={}, usage={"output_tokens": 10}))
    parts = assembler.feed(event("message_delta", delta={}, usage={"input_tokens": None, "output_tokens": 30}))

    lines = (UsageLine("input", 20), UsageLine("input", 5, cache="read"), UsageLine("output", 30))
    assert parts == [UsageUpdated(Usage.of(lines))]


def test_group_14_usage_that_cannot_be_is_left_out_with_a_warning() -> None:
    response = AnthropicMessagesDialect().decode(
        body([{"type": "text", "text": "hi"}], usage={"input_tokens": -1, "output_tokens": 1})
    )

    assert response.usage is None
    assert response.warnings[0].startswith("the provider's usage was not believed: a count of -1")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "context_window"),
        ("new_reason", "error"),
    ],
)
def test_finish_reasons_are_ours_with_the_raw_one_beside(raw: str, reason: str) -> None:
    response = AnthropicMessagesDialect().decode(body([], raw))

    assert (response.finish_reason, response.raw_finish_reason) == (reason, raw)


def test_the_explanation_of_a_refusal_is_a_part() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "not this"}
    response = AnthropicMessagesDialect().decode(body([{"type": "text", "text": ""}], "refusal", stop_details=details))

    assert response.message.parts == (Refusal("not this"),)


def test_unknown_blocks_and_events_pass_through() -> None:
    block: dict[str, object] = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    assembler = AnthropicMessagesDialect().assembler()

    assert AnthropicMessagesDialect().decode(body([block])).message.parts == (
        Opaque(NAME, json.dumps(block, separators=(",", ":")).encode()),
    )
    assert assembler.feed(event("ping")) == ()


def test_an_error_event_has_the_class_of_its_type() -> None:
    error = {"type": "overloaded_error", "message": "busy", "details": {"error_code": "capacity"}}

    with pytest.raises(ProviderOverloaded, match="busy") as caught:
        AnthropicMessagesDialect().assembler().feed(event("error", error=error))
    assert caught.value.code == "capacity"


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (b'{"type":"error","error":{"type":"invalid_request_error","message":"bad"}}', "invalid_request_error", "bad"),
        (b"bad gateway", None, "bad gateway"),
        (b"[]", None, "[]"),
    ],
)
def test_error_bodies_are_read(answer: bytes, code: str | None, message: str) -> None:
    error = AnthropicMessagesDialect().failure(400, answer, "req_1", 2.0)

    assert (error.code, error.message, error.request_id, error.retry_after_s) == (code, message, "req_1", 2.0)


def test_an_answer_without_the_simulators_fingerprint_is_not_simulated() -> None:
    assert not AnthropicMessagesDialect().decode(body([])).simulated
