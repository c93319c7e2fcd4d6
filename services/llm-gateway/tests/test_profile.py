from dataclasses import replace
from typing import Any

import pytest
from llm_gateway.domain import File, Image, Message, ModelRequest, Opaque, OutputFormat, Reasoning, Text, ToolResult
from llm_gateway.errors import UnsupportedParameter
from llm_gateway.providers.catalog import ANTHROPIC, ANTHROPIC_CLOUD_FAMILIES, ANTHROPIC_FAMILIES
from llm_gateway.providers.profile import Adapted, CapabilityProfile, adapt, profile_of

NOTHING = CapabilityProfile(parameters=frozenset(), output_formats=frozenset({"text"}), images=False, files=False)
ASKED = ModelRequest("m", (Message("user", (Text("hi"),)),))
RICH = replace(
    ASKED,
    temperature=0.0,
    top_p=1.0,
    top_k=1,
    seed=0,
    reasoning_effort="low",
    reasoning_mode="between_tools",
    reasoning_display="omitted",
    service_tier="flex",
    parallel_tool_calls=False,
    stop=("x",),
    output_format=OutputFormat("json_object"),
)


def test_a_plain_request_passes_unchanged() -> None:
    assert adapt(ASKED, NOTHING, "d").request == ASKED
    assert adapt(ASKED, NOTHING, "d").warnings == ()


def test_what_a_model_does_not_take_is_dropped_with_one_warning_each() -> None:
    adapted = adapt(RICH, replace(NOTHING, unsupported="drop"), "d")

    assert adapted.request == ASKED
    assert len(adapted.warnings) == 11
    assert "reasoning_mode between_tools is not supported by m and was left out" in adapted.warnings
    assert "temperature is not supported by m and was left out" in adapted.warnings
    assert "output_format json_object is not supported by m and was left out" in adapted.warnings


def test_what_a_model_takes_stays() -> None:
    profile = CapabilityProfile(frozenset({"temperature", "stop"}))
    adapted = adapt(RICH, profile, "d").request

    assert (adapted.temperature, adapted.stop, adapted.output_format.kind) == (0.0, ("x",), "json_object")
    assert adapted.seed is None


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"stop": ("x",)}, "stop"),
        ({"output_format": OutputFormat("json_object")}, "output_format json_object"),
        ({"output_format": OutputFormat("json_schema"), "stop": ("x",)}, "stop, output_format json_schema"),
    ],
)
def test_what_the_answer_would_be_another_one_without_is_refused_and_not_dropped(
    more: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedParameter, match=f"m does not support {named}; leave it out or ask another model"):
        adapt(replace(ASKED, temperature=0.0, **more), NOTHING, "d")


def test_a_model_that_is_told_nothing_thinks_as_it_likes() -> None:
    adaptive = replace(ASKED, reasoning_mode="adaptive")

    assert adapt(adaptive, NOTHING, "d") == Adapted(adaptive, ())


def test_a_rejecting_profile_names_all_that_is_missing() -> None:
    with pytest.raises(UnsupportedParameter, match="m does not support temperature, top_p, top_k, seed"):
        adapt(RICH, replace(NOTHING, unsupported="reject"), "d")


@pytest.mark.parametrize("part", [Image("image/png", b"x"), File("application/pdf", "a.pdf", b"x")])
def test_content_is_never_dropped(part: Image | File) -> None:
    with pytest.raises(UnsupportedParameter, match="m does not support"):
        adapt(replace(ASKED, messages=(Message("user", (part,)),)), NOTHING, "d")


def test_opaque_parts_go_back_to_their_own_dialect_only() -> None:
    own, foreign = Reasoning("a", "d", b"{}"), Opaque("e", b"{}")
    mixed = replace(ASKED, messages=(Message("assistant", (own, foreign)), Message("assistant", (foreign,))))
    adapted = adapt(mixed, NOTHING, "d")

    assert adapted.request.messages == (Message("assistant", (own,)),)
    assert adapted.warnings == ("parts of another provider cannot go to d",)


def test_a_default_limit_stands_in_for_a_missing_one_only() -> None:
    profile = replace(NOTHING, output_tokens_default=4096)

    assert adapt(ASKED, profile, "d").request.max_output_tokens == 4096
    assert adapt(replace(ASKED, max_output_tokens=7), profile, "d").request.max_output_tokens == 7


def test_tool_results_are_content_and_stay() -> None:
    asked = replace(ASKED, messages=(Message("tool", (ToolResult("1", "x"),)),))

    assert adapt(asked, NOTHING, "d").request == asked


LATER = replace(
    ASKED,
    messages=(
        Message("system", (Text("be terse"),)),
        Message("user", (Text("a"),)),
        Message("assistant", (Text("b"),)),
        Message("developer", (Text("MID "), Text("WAY", "5m"))),
        Message("system", (Text(""),)),
        Message("user", (Text("c"),)),
    ),
)


def test_later_instructions_are_a_users_where_the_model_takes_them_at_the_head_only() -> None:
    adapted = adapt(LATER, replace(NOTHING, system_turns=False), "d")

    first, asked, answer, *_, last = LATER.messages
    told = Message("user", (Text("<system>\nMID WAY\n</system>", "5m"),))
    assert adapted.request.messages == (first, asked, answer, told, last)
    assert adapted.warnings == (
        "m takes system messages before all others only; a later one was sent as a user's, in <system>",
    )


def test_instructions_stay_what_they_are_where_they_stand_at_the_head_or_may_stand_anywhere() -> None:
    assert adapt(LATER, NOTHING, "d").request.messages is LATER.messages
    head = replace(LATER, messages=LATER.messages[:3])
    assert adapt(head, replace(NOTHING, system_turns=False), "d").request.messages is head.messages


@pytest.mark.parametrize(
    ("model", "takes", "takes_in_clouds"),
    [
        ("claude-opus-4-7", False, False),
        ("claude-opus-4-8", True, False),
        ("claude-opus-5", True, False),
        ("claude-fable-5-1", True, False),
        ("claude-sonnet-4-6", False, False),
        ("claude-of-tomorrow", False, False),
    ],
)
def test_models_of_anthropic_take_later_instructions_if_they_are_known_to(
    model: str, takes: bool, takes_in_clouds: bool
) -> None:
    assert profile_of(ANTHROPIC_FAMILIES, ANTHROPIC, model).system_turns is takes
    assert profile_of(ANTHROPIC_CLOUD_FAMILIES, ANTHROPIC, model).system_turns is takes_in_clouds


def test_families_differ_in_nothing_else_by_where_they_are_served() -> None:
    for model in ("claude-opus-4-8", "claude-opus-5", "claude-opus-4-1"):
        here = profile_of(ANTHROPIC_FAMILIES, ANTHROPIC, model)
        assert replace(here, system_turns=False) == profile_of(ANTHROPIC_CLOUD_FAMILIES, ANTHROPIC, model)
