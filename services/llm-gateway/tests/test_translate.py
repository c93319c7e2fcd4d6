"""Requests as the gateway understands them."""

from typing import Any

import pytest
from llm_gateway import translate
from llm_gateway.domain import (
    Answer,
    File,
    Image,
    Message,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    ToolUnits,
    Usage,
    UsageLine,
    Vector,
)
from llm_gateway.errors import CallFailed
from llm_gateway.ports import Reservation
from servicekit.errors import (
    BudgetExhausted,
    BudgetSuspended,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from synod.common.values import Attribution, Failure, Tag
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

FILE = pb.File(media_type="text/plain", name="f", data=b"t")


def test_breakpoints_of_a_providers_cache_stay_with_what_they_stand_behind() -> None:
    call = pb.Part(tool_call=pb.ToolCall(id="c", name="f", arguments_json="{}"), prompt_cache_ttl="5m")
    parts = [
        pb.Part(text="hi", prompt_cache_ttl="1h"),
        pb.Part(text="there"),
        pb.Part(image=pb.Image(media_type="image/png", url="u"), prompt_cache_ttl="5m"),
        pb.Part(file=FILE, prompt_cache_ttl="5m"),
        pb.Part(tool_result=pb.ToolResult(tool_call_id="c", content="r"), prompt_cache_ttl="5m"),
    ]
    tools = [pb.Tool(name="f", prompt_cache_ttl="1h"), pb.Tool(name="g")]
    said = [pb.Message(role=pb.ROLE_ASSISTANT, parts=[call]), pb.Message(role=pb.ROLE_USER, parts=parts)]
    asked = translate.to_model_request(pb.GenerateRequest(messages=said, tools=tools, prompt_cache_ttl="5m"))

    assert asked.messages == (
        Message("assistant", (ToolCall("c", "f", "{}", "5m"),)),
        Message(
            "user",
            (
                Text("hi", "1h"),
                Text("there"),
                Image("image/png", url="u", cache_ttl="5m"),
                File("text/plain", "f", b"t", "5m"),
                ToolResult("c", "r", cache_ttl="5m"),
            ),
        ),
    )
    assert [tool.cache_ttl for tool in asked.tools] == ["1h", None]
    assert asked.cache_ttl == asked.aimed_at("other", 9).cache_ttl == "5m"


def test_how_to_think_and_what_to_show_of_it_goes_to_each_model_and_is_part_of_what_is_asked() -> None:
    user = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])
    plain = pb.GenerateRequest(request_id="1", model="m", messages=[user])
    adaptive, shown = pb.GenerateRequest(reasoning_mode="adaptive"), pb.GenerateRequest(reasoning_display="omitted")
    for more in (adaptive, shown):
        more.MergeFrom(plain)
    shown.reasoning_mode = "adaptive"

    asked = translate.to_model_request(shown).aimed_at("other", 9)
    assert (asked.reasoning_mode, asked.reasoning_display) == ("adaptive", "omitted")
    assert len({translate.content_sha256(request) for request in (plain, adaptive, shown)}) == 3


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"reasoning_mode": "enabled"}, "reasoning_mode"),
        ({"reasoning_mode": "adaptive", "reasoning_tokens_max": 0}, "reasoning_mode"),
        ({"reasoning_mode": "adaptive", "reasoning_display": "full"}, "reasoning_display"),
        ({"reasoning_mode": "between_tools", "reasoning_display": "omitted"}, "reasoning_display"),
        ({"reasoning_tokens_max": 0, "reasoning_display": "omitted"}, "reasoning_display"),
        ({"reasoning_display": "omitted"}, "reasoning_display"),
    ],
)
def test_ways_to_think_that_contradict_each_other_are_refused_by_name(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translate.to_model_request(pb.GenerateRequest(model="m", **more))
    assert caught.value.field == field


def test_an_answer_on_record_keeps_the_providers_own_word_for_its_end() -> None:
    said = Message("assistant", (Text("hi"),))
    answer = Answer(
        "req", said, "stop", Usage.of(()), "provider_final", "p/m", "r", "mc:1", raw_finish_reason="end_turn"
    )
    records = translate.AnswerRecords()

    assert records.load(records.dump(answer)) == answer
    assert translate.from_answer(answer).provider_finish_reason == "end_turn"


def test_an_answer_on_record_has_all_that_was_said_and_counted() -> None:
    said = (
        Reasoning("hm", "anthropic-messages", b"sig"),
        Text("hi"),
        Refusal("no"),
        ToolCall("c", "f", "{}"),
        ToolResult("c", "r", is_error=True),
        Vector(b"0000"),
    )
    lines = (
        UsageLine("input", 5),
        UsageLine("input", 3, cache="write", ttl="1h"),
        UsageLine("output", 2, modality="audio", reasoning=True),
    )
    usage = Usage.of(lines, (ToolUnits("web_searches", 4),))
    answer = Answer("req", Message("assistant", said), "stop", usage, "provider_final", "p/m", "r", "mc:1", ("odd",))
    records = translate.AnswerRecords()

    assert records.load(records.dump(answer)) == answer


def test_the_ledger_is_told_whose_a_reservation_is_and_on_what_terms() -> None:
    attribution = Attribution(tenant_id="acme", user_id="usr_1", model="p/m", tags=(Tag(name="team", value="red"),))
    asked = Reservation("mc:1", attribution, "p/m", 10, 5, 60.0, {"service_tier": "flex"}, ("image",))
    told = translate.from_reservation(asked)

    assert (told.attribution.tenant_id, told.attribution.user_id, told.attribution.model) == ("acme", "usr_1", "p/m")
    assert dict(told.attribution.tags) == {"team": "red"}
    assert (dict(told.price_context), list(told.modalities)) == ({"service_tier": "flex"}, ["image"])
    assert (told.input_tokens_max, told.output_tokens_max, told.ttl.seconds) == (10, 5, 60)


def test_a_reservation_on_standard_terms_has_none() -> None:
    told = translate.from_reservation(Reservation("mc:1", Attribution(tenant_id="acme"), "p/m", 10, 5, 60.0))

    assert (dict(told.attribution.tags), dict(told.price_context)) == ({}, {})


CALL = pb.Part(tool_call=pb.ToolCall(id="c", name="f", arguments_json="{}"))
RESULT = pb.Part(tool_result=pb.ToolResult(tool_call_id="c", content="r"))
IMAGE = pb.Part(image=pb.Image(media_type="image/png", data=b"x"))


@pytest.mark.parametrize(
    ("role", "part", "roles"),
    [
        (pb.ROLE_USER, CALL, "assistant"),
        (pb.ROLE_SYSTEM, CALL, "assistant"),
        (pb.ROLE_USER, pb.Part(reasoning=pb.Reasoning(text="hm")), "assistant"),
        (pb.ROLE_ASSISTANT, RESULT, "tool or user"),
        (pb.ROLE_ASSISTANT, IMAGE, "user"),
        (pb.ROLE_SYSTEM, IMAGE, "user"),
        (pb.ROLE_TOOL, IMAGE, "user"),
        (pb.ROLE_DEVELOPER, pb.Part(file=FILE), "user"),
        (pb.ROLE_TOOL, pb.Part(text="r"), "system or developer or user or assistant"),
    ],
)
def test_what_a_role_cannot_say_is_refused_and_not_left_out(
    role: "pb.Role.ValueType", part: pb.Part, roles: str
) -> None:
    said = [pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="hi")]), pb.Message(role=role, parts=[part])]
    with pytest.raises(InvalidArgument, match=r"messages\[1\]\.parts\[0\]\.") as caught:
        translate.to_messages(said)
    assert f"is said in the role {roles} only" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (pb.Part(image=pb.Image(media_type="application/pdf", data=b"x")), "media_type"),
        (pb.Part(image=pb.Image(media_type="video/mp4", url="https://a")), "media_type"),
        (pb.Part(image=pb.Image(data=b"x")), "media_type"),
        (pb.Part(audio=pb.Audio(media_type="video/mp4", data=b"x")), "media_type"),
        (pb.Part(file=pb.File(media_type="video/mp4", data=b"x")), "media_type"),
        (pb.Part(file=pb.File(media_type="image/png", data=b"x")), "media_type"),
        (pb.Part(image=pb.Image(media_type="image/png")), "data"),
    ],
)
def test_a_medium_of_another_kind_than_its_part_is_refused(part: pb.Part, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translate.to_messages([pb.Message(role=pb.ROLE_USER, parts=[part])])
    assert str(caught.value).startswith(f"messages[0].parts[0].{field}")


def test_there_is_a_most_of_parts_in_all_messages_together() -> None:
    many = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="x")] * (translate.PARTS_MAX // 2))
    one = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="x")])
    request = pb.GenerateRequest(request_id="r", model="m", messages=[many, many])

    assert len(translate.to_asked(request, "acme").request.messages) == 2
    request.messages.append(one)
    with pytest.raises(InvalidArgument, match=r"messages.parts = 10001: give at most 10000 parts"):
        translate.to_asked(request, "acme")


def test_an_image_by_its_address_needs_no_type() -> None:
    (message,) = translate.to_messages(
        [pb.Message(role=pb.ROLE_USER, parts=[pb.Part(image=pb.Image(url="https://a/b.png"))])]
    )
    assert message.parts == (Image("", url="https://a/b.png"),)


def test_the_type_of_a_medium_has_no_case() -> None:
    parts = [pb.Part(image=pb.Image(media_type="IMAGE/PNG", data=b"x"))]
    assert translate.to_messages([pb.Message(role=pb.ROLE_USER, parts=parts)])[0].parts == (Image("image/png", b"x"),)


@pytest.mark.parametrize(
    ("reason", "kind", "repeats"),
    [
        ("BUDGET_EXHAUSTED", BudgetExhausted, False),
        ("BUDGET_SUSPENDED", BudgetSuspended, False),
        ("RATE_LIMITED", ResourceExhausted, True),
        ("PROVIDER_UNAVAILABLE", Unavailable, True),
        ("PROVIDER_REFUSED", FailedPrecondition, False),
        ("PROVIDER_ACCOUNT_REFUSED", FailedPrecondition, False),
    ],
)
def test_a_call_that_failed_is_refused_again_as_it_was(reason: str, kind: type[ServiceError], repeats: bool) -> None:
    told = translate.ERRORS.translate(CallFailed(Failure(reason=reason, message="no more")))

    assert type(told) is kind
    assert (told.reason, told.message, told.retryable) == (reason, "no more", repeats)
