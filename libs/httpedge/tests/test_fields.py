"""Of the fields of the two APIs each is carried, refused by its name or a hint; what is none of theirs is refused too."""

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params
from httpedge.compatible import anthropic_messages, openai_embeddings, openai_responses
from httpedge.compatible.anthropic_messages import AnthropicMessages
from httpedge.compatible.dialect import Asked
from httpedge.compatible.openai_chat import OpenAiChat
from httpedge.compatible.openai_responses import OpenAiResponses
from httpedge.compatible.wire import WireModel
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import input_token_count_params, response_create_params
from pydantic import TypeAdapter
from servicekit.errors import InvalidArgument
from synod.llm_gateway.opaque import ANTHROPIC_BLOCKS

Body = Mapping[str, object]
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
RESPONSE = {"model": "m", "input": "Hi"}
BODIES: Mapping[str, Body] = {
    "chat": CHAT,
    "responses": RESPONSE,
    "input tokens": RESPONSE,
    "embeddings": RESPONSE,
    "messages": CHAT | {"max_tokens": 9},
    "count tokens": CHAT,
}
PARSERS: Mapping[str, Callable[[bytes], object]] = {
    "chat": lambda body: OpenAiChat().parse(body, "req_1", 0),
    "responses": lambda body: OpenAiResponses().parse(body, "req_1", 0),
    "input tokens": openai_responses.parse_countable,
    "embeddings": lambda body: openai_embeddings.parse(body, "req_1"),
    "messages": lambda body: AnthropicMessages().parse(body, "req_1", 0),
    "count tokens": anthropic_messages.parse_countable,
}
SENT_BY_SDKS: Mapping[str, tuple[type, ...]] = {
    "chat": (completion_create_params.CompletionCreateParamsStreaming,),
    "responses": (response_create_params.ResponseCreateParamsStreaming,),
    "input tokens": (input_token_count_params.InputTokenCountParams,),
    "embeddings": (embedding_create_params.EmbeddingCreateParams,),
    "messages": (
        message_create_params.MessageCreateParamsStreaming,
        beta_create_params.MessageCreateParamsStreaming,
    ),
    "count tokens": (
        message_count_tokens_params.MessageCountTokensParams,
        beta_count_tokens_params.MessageCountTokensParams,
    ),
}
IN_HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""Parameters that the anthropic SDK sends as headers."""
UNKNOWN = "is no field here"


def parsed(path: str, **more: object) -> object:
    return PARSERS[path](json.dumps(BODIES[path] | more).encode())


def refusal(path: str, **more: object) -> str:
    with pytest.raises(InvalidArgument) as refused:
        parsed(path, **more)
    return refused.value.message


@pytest.mark.parametrize("path", BODIES)
def test_a_field_that_the_api_does_not_have_is_refused_by_its_name(path: str) -> None:
    assert refusal(path, temprature=0.5).startswith(f"temprature = 0.5: {UNKNOWN}")


@pytest.mark.parametrize(
    ("path", "field"),
    [(path, field) for path in BODIES for kind in SENT_BY_SDKS[path] for field in kind.__annotations__],
)
def test_no_field_that_an_sdk_can_send_is_unknown(path: str, field: str) -> None:
    if field in IN_HEADERS:
        assert UNKNOWN in refusal(path, **{field: "x"})
    elif field not in BODIES[path]:
        told = ""
        try:
            parsed(path, **{field: None})
        except InvalidArgument as error:
            told = error.message
        assert UNKNOWN not in told


@pytest.mark.parametrize(
    ("path", "hints"),
    [
        (
            "chat",
            {"store": False, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "n": 1, "logprobs": False},
        ),
        ("chat", {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}),
        ("chat", {"safety_identifier": "s", "prompt_cache_key": "k", "frequency_penalty": 0, "logit_bias": {}}),
        ("responses", {"store": False, "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"]}),
        ("responses", {"truncation": "disabled", "background": False, "prompt_cache_retention": "24h"}),
        ("embeddings", {"user": "u", "encoding_format": "float"}),
        ("messages", {"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "standard"}),
        ("count tokens", {"thinking": {"type": "adaptive"}, "tool_choice": {"type": "auto"}, "speed": "fast"}),
    ],
)
def test_what_changes_nothing_is_taken(path: str, hints: Body) -> None:
    assert parsed(path, **hints) is not None


@pytest.mark.parametrize(
    ("path", "field", "value", "told"),
    [
        ("chat", "store", True, "nothing is stored here"),
        ("chat", "logprobs", True, "is not supported here"),
        ("chat", "logit_bias", {"50256": -100}, "is not supported here"),
        ("chat", "n", 2, "one answer is given to each request"),
        ("responses", "store", True, "nothing is stored here"),
        ("responses", "image", {"detail": "low"}, "is not supported here"),
        ("responses", "background_options", {"window": "2h"}, "is not supported here"),
        ("input tokens", "personality", "friendly", "is not supported here"),
        ("messages", "diagnostics", {"previous_message_id": "msg_1"}, "is not supported here"),
        ("messages", "fallback_credit_token", "t", "is not supported here"),
        ("count tokens", "mcp_servers", [{"url": "https://example.org"}], "is not supported here"),
    ],
)
def test_what_would_be_missed_is_refused_by_name_and_value(path: str, field: str, value: object, told: str) -> None:
    message = refusal(path, **{field: value})
    assert message.startswith(f"{field} = {json.dumps(value)}: ")
    assert told in message


CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
NOTE = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
SAID = {"type": "text", "text": "x"}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "AA=="}
SEEN = {"type": "image", "source": IMAGE}
RESULT = {"type": "tool_result", "tool_use_id": "1"}
LOOK = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
PICTURE = {"type": "input_image", "image_url": "https://example.org/a.png"}
CALLS = [{"id": "1", "function": {"name": "f"}}]


def by(role: str, *blocks: object) -> Body:
    return {"messages": [{"role": role, "content": blocks}]}


@pytest.mark.parametrize(
    ("path", "more", "told"),
    [
        ("chat", {"stream_options": {"include_usge": True}}, "stream_options.include_usge = true: is no field here"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema = null: is missing"),
        (
            "chat",
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            'messages.0.function_call = {"name": "f", "arguments": "{}"}: is not supported here',
        ),
        (
            "chat",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema = null: is missing",
        ),
        ("chat", {"messages": []}, "messages = []: is empty"),
        ("chat", {"model": "m" * 5000}, f'model = "{"m" * 78}…: string should have at most 256 characters'),
        ("chat", {"f" * 100_000: 1}, f"{'f' * 99}… = 1: is no field here"),
        ("chat", {"tools": [{"type": "function", "function": {"name": ""}}]}, 'tools.0.function.name = "": string should'),
        ("responses", {"text": {"frmat": 1}}, "text.frmat = 1: is no field here"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema = null: is missing"),
        ("responses", {"reasoning": {"mode": "pro"}}, 'reasoning.mode = "pro": only standard'),
        ("responses", {"reasoning": {"context": "all_turns"}}, 'reasoning.context = "all_turns": only auto'),
        ("responses", {"input": []}, "input = []: is empty"),
        ("responses", {"input": [{"type": "function_call_output", "output": "4"}]}, 'input.0.call_id = "": is missing'),
        ("embeddings", {"input": []}, "input = []: is empty"),
        ("embeddings", {"input": ["a", ""]}, 'input.1 = "": is empty'),
        ("embeddings", {"input": {"a": 1}}, 'input = {"a": 1}: input should be'),
        ("messages", {"output_config": {"effrt": "low"}}, 'output_config.effrt = "low": is no field here'),
        ("messages", {"output_config": {"task_budget": {"total": 9}}}, 'output_config.task_budget = {"total": 9}: is not'),
        ("messages", {"tool_choice": {"type": "tool"}}, 'tool_choice.name = "": is missing'),
        ("messages", {"thinking": {"type": "dreaming"}}, 'thinking.type = "dreaming": input should be'),
        ("messages", {"thinking": {"type": "adaptive", "display": "full"}}, 'thinking.display = "full": input should be'),
        ("messages", {"thinking": {"type": "adaptive", "budget": 9}}, "thinking.budget = 9: is no field here"),
        ("messages", {"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens = 9: belongs to the type"),
        ("messages", {"thinking": {"type": "disabled", "display": "omitted"}}, 'thinking.display = "omitted": is not there with'),
        ("messages", {"thinking": {"type": "between_tools", "display": "omitted"}}, 'thinking.display = "omitted": is not'),
        ("messages", {"tools": [TOOL | {"desciption": "x"}]}, 'tools.0.desciption = "x": is no field here'),
        ("messages", {"tools": [TOOL | {"defer_loading": True}]}, "tools.0.defer_loading = true: is not supported here"),
        ("messages", by("user", {"type": "txt", "text": "x"}), 'messages.0.content.0.type = "txt": must be one of text, '),
        ("messages", by("user", {"type": "search_result"}), 'messages.0.content.0.type = "search_result": must be one of text, image, document, tool_result'),
        ("messages", by("user", CALL), 'messages.0.content.0.type = "tool_use": must be one of text, '),
        ("messages", by("assistant", SAID, SEEN), 'messages.0.content.1.type = "image": must be one of text, tool_use, thinking, '),
        ("messages", by("assistant", NOTE), 'messages.0.content.0.type = "document": must be one of text, tool_use, '),
        ("messages", by("assistant", {"type": "tool_result", "tool_use_id": "1"}), 'messages.0.content.0.type = "tool_result": must'),
        ("messages", by("assistant", {"type": "connector_text"}), 'messages.0.content.0.type = "connector_text": must be one of text'),
        ("messages", by("system", SEEN) | {"system": "Be brief."}, 'messages.0.content.0.type = "image": must be one of text'),
        ("messages", by("assistant", {"type": "thinking", "thinking": "", "signature": "synod:x:!"}), 'messages.0.content.0.signature = "synod:x:!": must come back'),
        ("count tokens", by("assistant", SEEN) | {"system": "Be brief."}, 'messages.0.content.0.type = "image": must be'),
        ("chat", by("assistant", SAID, LOOK), 'messages.0.content.1.type = "image_url": is said in the role user only'),
        ("chat", by("system", LOOK), 'messages.0.content.0.type = "image_url": is said in the role user only'),
        ("chat", by("developer", {"type": "file"}), 'messages.0.content.0.type = "file": is said in the role user only'),
        ("chat", by("assistant", {"type": "input_audio"}), 'messages.0.content.0.type = "input_audio": is said in the role user'),
        ("chat", {"messages": [{"role": "user", "content": "x", "tool_calls": CALLS}]}, 'messages.0.tool_calls = [{"id": "1", "function": {"name": "f"}}]: is said in the role assistant only'),
        ("chat", {"messages": [{"role": "tool", "tool_call_id": "1", "tool_calls": CALLS}]}, 'messages.0.tool_calls = [{"id": "1", '),
        ("responses", {"instructions": "Be brief.", "input": [{"role": "assistant", "content": [PICTURE]}]}, 'input.0.content.0.type = "input_image": is said in the role user only'),
        ("input tokens", {"input": [{"role": "system", "content": [PICTURE]}]}, 'input.0.content.0.type = "input_image": is said in'),
        ("responses", {"input": [{"type": "reasoning", "encrypted_content": "synod:x:!"}]}, 'input.0.encrypted_content = "synod:x:!": must come back'),
        ("messages", by("user", {"type": "image"}), "messages.0.content.0.source = null: is missing"),
        ("messages", by("user", {"type": "tool_result", "content": "4"}), 'messages.0.content.0.tool_use_id = "": is missing'),
        ("messages", by("user", NOTE | {"citations": {"enabled": True}}), 'messages.0.content.0.citations = {"enabled": true}'),
        ("messages", by("user", NOTE | {"context": "a letter"}), 'messages.0.content.0.context = "a letter": is not supported'),
        ("messages", by("user"), "messages.0.content = []: is empty"),
        ("messages", by("user", SEEN | {"source": IMAGE | {"data": ""}}), 'messages.0.content.0.source.data = "": is missing'),
        ("messages", by("user", SEEN | {"source": {"type": "base64", "data": "AA=="}}), "messages.0.content.0.source.media_type = null: is missing"),
        ("messages", by("user", SEEN | {"source": {"type": "url"}}), "messages.0.content.0.source.url = null: is missing"),
        ("messages", by("user", RESULT | {"content": [SAID, 1]}), "messages.0.content.0.content.1 = 1: must be a block"),
        ("messages", by("user", RESULT | {"content": [SAID | {"text": 5}]}), "messages.0.content.0.content.0.text = 5: input should"),
        ("chat", by("user"), "messages.0.content = []: is empty"),
        ("chat", by("user", {"type": "image_url", "image_url": {"url": ""}}), 'messages.0.content.0.image_url.url = "": is missing'),
        ("chat", by("user", {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}), 'messages.0.content.0.image_url.url = "data:image/png;base64,": must be data:'),
        ("chat", by("user", {"type": "image_url", "image_url": {"url": "data:;base64,AA=="}}), 'messages.0.content.0.image_url.url = "data:;base64,AA==": must be data:'),
        ("chat", by("user", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), 'messages.0.content.0.input_audio.data = "": is missing'),
        ("chat", {"tool_choice": {"type": "function", "function": {"name": ""}}}, 'tool_choice.function.name = "": string should'),
        ("responses", {"tool_choice": {"type": "function", "name": ""}}, 'tool_choice.name = "": string should'),
        ("responses", {"input": [{"role": "user", "content": []}]}, "input.0.content = []: is empty"),
        ("responses", {"input": [{"role": "user"}]}, "input.0.content = null: is empty"),
        ("responses", {"input": [{"role": "assistant", "content": "x", "phase": "commentary"}]}, 'input.0.phase = "commentary": is not supported'),
    ],
)  # fmt: skip
def test_an_option_that_would_be_left_out_silently_is_refused_by_its_place(path: str, more: Body, told: str) -> None:
    assert refusal(path, **more).startswith(told)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("messages", by("assistant", CALL, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []})),
        ("messages", by("user", NOTE | {"citations": {"enabled": False}})),
        ("messages", {"tools": [TOOL | {"allowed_callers": ["direct"], "eager_input_streaming": True}]}),
        ("responses", {"reasoning": {"effort": "low", "summary": "auto", "context": "auto", "mode": "standard"}}),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}),
        ("chat", {"messages": [{"role": "assistant", "content": "x", "function_call": None, "audio": None}]}),
    ],
)
def test_what_comes_back_as_it_was_given_and_usual_options_are_taken(path: str, more: Body) -> None:
    assert parsed(path, **more) is not None


FOUND = {
    "type": "web_search_result",
    "url": "https://e.org",
    "title": "t",
    "encrypted_content": "E==",
    "page_age": None,
}
CITED = {"type": "text", "text": "4", "citations": [{"type": "char_location", "cited_text": "4", "start": 2**64}]}
WHOLE: Mapping[str, Body] = {
    "thinking": {"thinking": "hm", "signature": "EqQB/+=="},
    "redacted_thinking": {"data": "R=="},
    "server_tool_use": {
        "id": "s1",
        "name": "web_search",
        "input": {"n": 2**64, "x": 1.5},
        "caller": {"type": "direct"},
    },
    "web_search_tool_result": {"tool_use_id": "s1", "content": [FOUND], "cache_control": {"type": "ephemeral"}},
    "code_execution_tool_result": {"content": {"type": "code_execution_result", "content": [{"file_id": "f"}]}},
    "bash_code_execution_tool_result": {"content": {"stdout": "4", "return_code": 0}},
    "text_editor_code_execution_tool_result": {"content": {"lines": ["a"], "old_start": None}},
    "tool_search_tool_result": {"content": {"tool_references": [{"type": "tool_reference", "tool_name": "f"}]}},
    "web_fetch_tool_result": {"content": {"url": "https://e.org", "content": NOTE | {"citations": {"enabled": True}}}},
    "mcp_tool_use": {"id": "m1", "name": "f", "server_name": "s", "input": {}},
    "mcp_tool_result": {"tool_use_id": "m1", "is_error": False, "content": [CITED]},
    "compaction": {"content": "in short", "encrypted_content": None},
}


@pytest.mark.parametrize("kind", ANTHROPIC_BLOCKS)
def test_a_block_of_a_provider_goes_back_to_it_whole(kind: str) -> None:
    block = {"type": kind, **WHOLE[kind]}
    asked = parsed("messages", **by("assistant", block))
    assert isinstance(asked, Asked)
    (part,) = asked.request.messages[0].parts
    assert json.loads(part.reasoning.signature) == block


BIG = 123456789012345678901234567890
BOUND = {"type": "integer", "maximum": BIG}


@pytest.mark.parametrize(
    ("path", "more", "sent"),
    [
        ("chat", {"tools": [{"type": "function", "function": {"name": "f", "parameters": BOUND}}]}, "tools"),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"schema": BOUND}}}, "output_format"),
        ("responses", {"tools": [{"type": "function", "name": "f", "parameters": BOUND}]}, "tools"),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": BOUND}}}, "output_format"),
        ("responses", {"input": [{"type": "reasoning", "encrypted_content": "E==", "n": BIG}]}, "messages"),
        ("messages", {"tools": [{"name": "f", "input_schema": BOUND}]}, "tools"),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": BOUND}}}, "output_format"),
        ("messages", by("assistant", CALL | {"input": {"n": BIG}}), "messages"),
    ],
)
def test_an_integer_of_any_length_is_carried_on_as_it_is(path: str, more: Body, sent: str) -> None:
    asked = parsed(path, **more)
    assert isinstance(asked, Asked)
    assert str(BIG) in str(getattr(asked.request, sent))


@pytest.mark.parametrize(
    ("path", "more", "places"),
    [
        (
            "messages",
            {
                "system": "Be brief.",
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": [SAID, CALL]},
                    {"role": "user", "content": [SEEN, RESULT]},
                    {"role": "assistant", "content": []},
                ],
            },
            [
                ["system"],
                ["messages.0.content"],
                ["messages.1.content.0", "messages.1.content.1"],
                ["messages.2.content.1"],
                ["messages.2.content.0"],
                [],
            ],
        ),
        (
            "chat",
            {
                "messages": [
                    {"role": "user", "content": [SAID, LOOK]},
                    {"role": "assistant", "content": "x", "refusal": "no", "tool_calls": CALLS},
                    {"role": "tool", "tool_call_id": "1", "content": [SAID]},
                ]
            },
            [
                ["messages.0.content.0", "messages.0.content.1"],
                ["messages.1.content", "messages.1.refusal", "messages.1.tool_calls.0"],
                ["messages.2.content"],
            ],
        ),
        (
            "responses",
            {
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": [PICTURE]},
                    {"type": "reasoning", "encrypted_content": "E=="},
                    {"role": "assistant", "content": "x"},
                    {"type": "function_call", "call_id": "1", "name": "f"},
                    {"type": "function_call_output", "call_id": "1", "output": "4"},
                ],
            },
            [["instructions"], ["input.0.content.0"], ["input.1", "input.2.content", "input.3"], ["input.4"]],
        ),
        ("responses", {}, [["input"]]),
    ],
)
def test_each_part_is_known_by_the_place_where_it_stood(path: str, more: Body, places: object) -> None:
    asked = parsed(path, **more)
    assert isinstance(asked, Asked)
    assert asked.places == places


@pytest.mark.parametrize(
    ("path", "field", "value", "told"),
    [
        ("chat", "max_tokens", "5", "input should be a valid integer"),
        ("chat", "max_tokens", True, "input should be a valid integer"),
        ("chat", "max_tokens", 0, "input should be greater than or equal to 1"),
        ("chat", "max_tokens", 2**31 - 1, "input should be less than or equal to 1000000"),
        ("chat", "temperature", True, "input should be a valid number"),
        ("chat", "stream", "yes", "input should be a valid boolean"),
        ("chat", "reasoning_effort", "insane", "input should be 'none', 'minimal'"),
        ("responses", "max_output_tokens", "5", "input should be a valid integer"),
        ("responses", "reasoning", {"effort": "insane"}, "input should be 'none', 'minimal'"),
        ("messages", "max_tokens", True, "input should be a valid integer"),
        ("messages", "stream", 1, "input should be a valid boolean"),
        ("messages", "output_config", {"effort": "insane"}, "input should be 'none', 'minimal'"),
        ("embeddings", "dimensions", "5", "input should be a valid integer"),
    ],
)
def test_a_value_of_another_type_or_word_is_not_guessed_at(path: str, field: str, value: object, told: str) -> None:
    message = refusal(path, **{field: value})
    assert message.startswith(field)
    assert told in message


@pytest.mark.parametrize("path", ["chat", "messages"])
def test_a_whole_number_is_taken_where_others_are(path: str) -> None:
    asked = parsed(path, temperature=1, top_p=1)
    assert isinstance(asked, Asked)
    assert (asked.request.temperature, asked.request.top_p) == (1, 1)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("chat", "max_tokens", 100.0),
        ("chat", "max_completion_tokens", 1e2),
        ("chat", "seed", 1.0),
        ("chat", "seed", -0.0),
        ("chat", "n", 1.0),
        ("chat", "synod_cache", {"ttl_s": 60.0}),
        ("responses", "max_output_tokens", 100.0),
        ("messages", "max_tokens", 100.0),
        ("messages", "top_k", 5.0),
        ("messages", "thinking", {"type": "enabled", "budget_tokens": 8.0}),
        ("embeddings", "dimensions", 64.0),
    ],
)
def test_an_integer_may_be_written_with_a_point(path: str, field: str, value: object) -> None:
    whole = json.loads(json.dumps(value), parse_float=lambda text: int(float(text)))
    assert parsed(path, **{field: value}) == parsed(path, **{field: whole})


@pytest.mark.parametrize(
    ("path", "field"),
    [("chat", "max_tokens"), ("chat", "seed"), ("chat", "n"), ("messages", "top_k"), ("embeddings", "dimensions")],
)
@pytest.mark.parametrize("value", ["5", "5.0", True, 1.5])
def test_what_is_no_integer_is_not_made_one(path: str, field: str, value: object) -> None:
    assert refusal(path, **{field: value}) == f"{field} = {json.dumps(value)}: input should be a valid integer"


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_an_integer_with_a_point_has_the_same_bounds(value: float) -> None:
    assert refusal("chat", seed=value).startswith("seed = ")
    with pytest.raises(InvalidArgument, match="max_tokens"):
        PARSERS["chat"](json.dumps(CHAT).encode().replace(b"{", b'{"max_tokens": 1e999, ', 1))


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat", {"reasoning_effort": ""}),
        ("responses", {"reasoning": {"effort": ""}}),
        ("messages", {"output_config": {"effort": ""}}),
    ],
)
def test_an_empty_effort_says_nothing(path: str, more: Body) -> None:
    assert parsed(path, **more) == parsed(path)


def kinds(base: type[WireModel] = WireModel) -> Iterator[type[WireModel]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, name)
        for kind in kinds()
        if kind.__module__.startswith("httpedge.")
        for name, field in kind.model_fields.items()
        if not field.is_required()
    ],
    ids=str,
)
def test_every_field_that_may_be_left_out_may_be_null(kind: type[WireModel], field: str) -> None:
    assert TypeAdapter[object](kind.model_fields[field].annotation).validate_python(None) is None


def nulls(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


FUNCTION = {"type": "function", "function": {"name": "f"}}
FORM = {"type": "json_schema", "name": "n", "schema": {}}
UNSAID = {
    "chat": (
        "tools tool_choice parallel_tool_calls response_format max_completion_tokens max_tokens stop temperature top_p seed "
        "reasoning_effort service_tier stream stream_options n modalities audio functions function_call logprobs logit_bias "
        "verbosity frequency_penalty presence_penalty top_logprobs store metadata user synod_cache"
    ),
    "responses": (
        "instructions tools tool_choice parallel_tool_calls text reasoning max_output_tokens temperature top_p truncation "
        "service_tier stream previous_response_id conversation background max_tool_calls store include metadata synod_cache"
    ),
    "embeddings": "dimensions encoding_format user synod_cache",
    "messages": (
        "system tools tool_choice output_config thinking cache_control speed service_tier stop_sequences temperature top_p "
        "top_k stream inference_geo container metadata mcp_servers synod_cache"
    ),
    "count tokens": "system tools tool_choice output_config thinking cache_control speed mcp_servers",
}


@pytest.mark.parametrize("path", UNSAID)
def test_a_null_says_as_little_as_nothing_does(path: str) -> None:
    assert parsed(path, **nulls(*UNSAID[path].split())) == parsed(path)


@pytest.mark.parametrize(
    ("path", "said", "unsaid"),
    [
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]},
         {"messages": [{"role": "assistant", "content": "x"} | nulls("tool_calls", "function_call", "refusal", "audio", "annotations", "name")]}),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
         {"messages": [{"role": "assistant", "content": None, "tool_calls": [
             {"id": "1", "type": None, "function": {"name": "f", "arguments": None}}]}]}),
        ("chat", {"messages": [{"role": "user", "content": [LOOK, {"type": "text", "text": "x"}]}]},
         {"messages": [{"role": "user", "content": [
             LOOK | nulls("text", "refusal", "file", "cache_control"),
             {"type": "text", "text": "x"} | nulls("refusal", "input_audio")]}]}),
        ("chat", {"tools": [FUNCTION]},
         {"tools": [{"type": "function", "function": {"name": "f"} | nulls("description", "parameters", "strict")}]}),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": {}} | nulls("name", "strict")}}),
        ("chat", {"synod_cache": {}}, {"synod_cache": nulls("mode", "ttl_s", "tool_calls", "reasoning", "similar")}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
         {"input": [{"type": None, "role": "user", "content": [
             {"type": "input_text", "text": "x"} | nulls("refusal", "image_url", "filename")]}
             | nulls("call_id", "name", "arguments", "output")]}),
        ("responses", {"input": [{"type": "function_call", "call_id": "1", "name": "f"}]},
         {"input": [{"type": "function_call", "call_id": "1", "name": "f"} | nulls("arguments", "id", "status")]}),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "1"}]},
         {"input": [{"type": "function_call_output", "call_id": "1", "output": None}]}),
        ("responses", {"tools": [{"type": "function", "name": "f"}]},
         {"tools": [{"type": "function", "name": "f"} | nulls("description", "parameters", "strict")]}),
        ("responses", {"text": {"format": FORM}}, {"text": {"format": FORM | nulls("strict"), "verbosity": None}}),
        ("responses", {"text": {"format": {}}}, {"text": {"format": nulls("type", "name", "schema", "strict")}}),
        ("messages", {"system": [{"type": "text", "text": "x"}, {"type": "text"}]},
         {"system": [{"type": "text", "text": "x", "cache_control": None}, {"type": "text", "text": None}]}),
        ("messages", by("assistant", {"type": "tool_use", "id": "1", "name": "f"}),
         by("assistant", {"type": "tool_use", "id": "1", "name": "f"} | nulls("input", "text", "content", "caller"))),
        ("messages", by("user", {"type": "tool_result", "tool_use_id": "1"}, NOTE, {"type": "image", "source": IMAGE}),
         by("user", {"type": "tool_result", "tool_use_id": "1"} | nulls("content", "is_error", "cache_control"),
            NOTE | nulls("title", "context", "citations"), {"type": "image", "source": IMAGE | nulls("url")})),
        ("messages", {"tools": [TOOL], "tool_choice": {"type": "auto"}},
         {"tools": [TOOL | nulls("type", "description", "strict", "cache_control", "allowed_callers")],
          "tool_choice": {"type": "auto"} | nulls("name", "disable_parallel_tool_use")}),
        ("messages", {"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral", "ttl": None}}),
    ],
)  # fmt: skip
def test_a_null_within_says_as_little_as_nothing_does(path: str, said: Body, unsaid: Body) -> None:
    assert parsed(path, **unsaid) == parsed(path, **said)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat", {"model": None}),
        ("chat", {"messages": [{"role": "user", "content": None}]}),
        ("messages", {"max_tokens": None}),
        ("messages", {"tools": [{"name": "f", "input_schema": None}]}),
        ("responses", {"input": None}),
    ],
)
def test_what_has_to_be_said_is_not_null(path: str, more: Body) -> None:
    assert " = null: " in refusal(path, **more)


def test_the_two_names_of_one_limit_have_to_agree() -> None:
    told = refusal("chat", max_tokens=5, max_completion_tokens=6)
    assert told == "max_tokens = 5: max_completion_tokens says 6; give one of the two"
    for given in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}):
        asked = parsed("chat", **given)
        assert isinstance(asked, Asked)
        assert asked.request.max_output_tokens == 5


def test_probabilities_asked_for_by_include_are_refused_and_so_is_a_mistyped_wish_for_the_cache() -> None:
    assert refusal("responses", include=["message.output_text.logprobs"]).startswith('include.0 = "message.output_text')
    assert refusal("chat", synod_cache={"mode": "on", "tll_s": 5}).startswith(f"synod_cache.tll_s = 5: {UNKNOWN}")
