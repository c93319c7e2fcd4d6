"""Of the fields of the two APIs each is carried, refused by its name or a hint; what is none of theirs is refused too."""

import json
from collections.abc import Callable, Mapping

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import input_token_count_params, response_create_params
from servicekit.errors import InvalidArgument
from ws_gateway.compatible import anthropic_messages, openai_embeddings, openai_responses
from ws_gateway.compatible.anthropic_messages import AnthropicMessages
from ws_gateway.compatible.openai_chat import OpenAiChat
from ws_gateway.compatible.openai_responses import OpenAiResponses

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
    assert message.startswith(f"{field} = {value!r}: ")
    assert told in message


def test_probabilities_asked_for_by_include_are_refused_and_so_is_a_mistyped_wish_for_the_cache() -> None:
    assert refusal("responses", include=["message.output_text.logprobs"]).startswith("include.0 = 'message.output_text")
    assert refusal("chat", synod_cache={"mode": "on", "tll_s": 5}).startswith(f"synod_cache.tll_s = 5: {UNKNOWN}")
