"""Which requests may be answered from the cache, which answers may be kept, and under which key."""

from dataclasses import replace

import pytest
from llm_gateway import caching
from llm_gateway.caching import Cacheable, CachePolicy
from llm_gateway.counting import plain_usage
from llm_gateway.domain import (
    Answer,
    Message,
    ModelRequest,
    Opaque,
    Part,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from llm_gateway.translate import content_sha256
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

HI = Message("user", (Text("Hi"),))
REQUEST = ModelRequest("m", (HI,))
ON = CachePolicy("on")
ANSWER = Answer(
    "req", Message("assistant", (Text("Hello"),)), "stop", plain_usage(7, 3), "provider_final", "p/m", "r", "call:1"
)


@pytest.mark.parametrize(
    ("policy", "temperature", "seed", "served"),
    [
        (CachePolicy(), 0.0, 7, True),
        (CachePolicy(), 0.0, None, False),
        (CachePolicy(), None, 7, False),
        (CachePolicy(), 0.5, 7, False),
        (CachePolicy("on"), 0.5, None, True),
        (CachePolicy("off"), 0.0, 7, False),
    ],
)
def test_only_who_opts_in_or_asks_for_the_same_each_time_is_served(
    policy: CachePolicy, temperature: float | None, seed: int | None, served: bool
) -> None:
    assert caching.may_serve(policy, replace(REQUEST, temperature=temperature, seed=seed)) is served


@pytest.mark.parametrize(
    ("part", "allowing"),
    [
        (ToolResult("call_1", "12"), CachePolicy("on", tool_calls=True)),
        (ToolCall("call_1", "f", "{}"), CachePolicy("on", tool_calls=True)),
        (Reasoning("hm", "openai-chat"), CachePolicy("on", reasoning=True)),
        (Opaque("anthropic-messages", b"x"), CachePolicy("on", reasoning=True)),
    ],
)
def test_tools_and_reasoning_are_left_out_unless_named(part: Part, allowing: CachePolicy) -> None:
    request = replace(REQUEST, messages=(HI, Message("assistant", (part,))))
    answer = replace(ANSWER, message=Message("assistant", (part,)))

    assert not caching.may_serve(ON, request)
    assert not caching.may_keep(ON, answer)
    assert caching.may_serve(allowing, request)
    assert caching.may_keep(allowing, answer)


def test_only_answers_that_ended_by_themselves_as_the_provider_counted_are_kept() -> None:
    assert caching.may_keep(ON, ANSWER)
    assert not caching.may_keep(ON, replace(ANSWER, usage_source="gateway_counted"))
    for reason in ("length", "refusal", "content_filter", "pause", "tool_calls"):
        assert not caching.may_keep(ON, replace(ANSWER, finish_reason=reason))
    assert caching.may_keep(CachePolicy("on", tool_calls=True), replace(ANSWER, finish_reason="tool_calls"))


def test_group_21_each_tenant_model_policy_and_content_has_a_key_of_its_own() -> None:
    keys = {
        caching.cache_key(tenant, model, Cacheable(policy, content))
        for tenant in ("a", "b")
        for model in ("p/m", "p/n")
        for policy in (
            ON,
            CachePolicy("on", ttl_s=5),
            CachePolicy("on", tool_calls=True),
            CachePolicy("on", similar=True),
        )
        for content in ("x", "y")
    }
    assert len(keys) == 2 * 2 * 4 * 2


def test_group_21_each_tenant_model_and_rest_of_a_request_has_a_scope_of_its_own() -> None:
    asked = [Cacheable(CachePolicy("on", similar=True), "content", "Hi", rest) for rest in ("x", "y")]
    scopes = {
        caching.scope_key(tenant, model, one) for tenant in ("a", "b") for model in ("p/m", "p/n") for one in asked
    }
    assert len(scopes) == 2 * 2 * 2
    other = replace(asked[0], content_sha256="other", said="Hello")
    assert caching.scope_key("a", "p/m", other) in scopes


def test_how_the_caller_came_to_ask_is_no_part_of_the_key() -> None:
    said, implied = Cacheable(ON, "x"), Cacheable(CachePolicy(), "x")
    assert caching.cache_key("a", "p/m", said) == caching.cache_key("a", "p/m", implied)


def test_content_is_what_the_answer_depends_on_and_nothing_else() -> None:
    one = pb.GenerateRequest(request_id="1", model="small", messages=[pb.Message(parts=[pb.Part(text="Hi")])])
    two = pb.GenerateRequest()
    two.CopyFrom(one)
    two.request_id, two.model, two.priority = "2", "large", pb.PRIORITY_LOW
    two.fallback_models.append("other/m")
    two.attribution.CopyFrom(ledger_pb.Attribution(agent="scout"))
    two.cache.mode = pb.CACHE_MODE_ON
    assert content_sha256(one) == content_sha256(two)

    for change in (
        pb.GenerateRequest(temperature=0.0),
        pb.GenerateRequest(messages=[pb.Message(parts=[pb.Part(refusal="Hi")])]),
        pb.GenerateRequest(stop=["x"]),
        pb.GenerateRequest(max_output_tokens=5),
        pb.GenerateRequest(output_format=pb.OutputFormat(kind="json_object")),
    ):
        other = pb.GenerateRequest()
        other.CopyFrom(one)
        other.MergeFrom(change)
        assert content_sha256(other) != content_sha256(one)


def test_a_message_is_shown_as_its_stream_would_have_been() -> None:
    parts = (
        Reasoning("hm", "d"),
        Reasoning("", "d", b"x"),
        Text("a"),
        Opaque("d", b"y"),
        ToolCall("1", "f", "{}"),
        ToolCall("2", "g", ""),
    )
    assert list(caching.deltas_of(Message("assistant", parts))) == [
        ReasoningDelta("hm"),
        ReasoningDone(Reasoning("hm", "d")),
        ReasoningDone(Reasoning("", "d", b"x")),
        TextDelta("a"),
        ReasoningDone(Opaque("d", b"y")),
        ToolCallDelta(0, "1", "f", "{}"),
        ToolCallDelta(1, "2", "g", ""),
    ]
