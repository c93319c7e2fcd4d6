"""Requests as the gateway understands them."""

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
from llm_gateway.ports import Reservation
from synod.common.values import Attribution, Tag
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

FILE = pb.File(media_type="text/plain", name="f", data=b"t")


def test_breakpoints_of_a_providers_cache_stay_with_what_they_stand_behind() -> None:
    parts = [
        pb.Part(text="hi", prompt_cache_ttl="1h"),
        pb.Part(text="there"),
        pb.Part(image=pb.Image(media_type="image/png", url="u"), prompt_cache_ttl="5m"),
        pb.Part(file=FILE, prompt_cache_ttl="5m"),
        pb.Part(tool_call=pb.ToolCall(id="c", name="f", arguments_json="{}"), prompt_cache_ttl="5m"),
        pb.Part(tool_result=pb.ToolResult(tool_call_id="c", content="r"), prompt_cache_ttl="5m"),
    ]
    tools = [pb.Tool(name="f", prompt_cache_ttl="1h"), pb.Tool(name="g")]
    said = [pb.Message(role=pb.ROLE_USER, parts=parts)]
    asked = translate.to_model_request(pb.GenerateRequest(messages=said, tools=tools, prompt_cache_ttl="5m"))

    assert asked.messages == (
        Message(
            "user",
            (
                Text("hi", "1h"),
                Text("there"),
                Image("image/png", url="u", cache_ttl="5m"),
                File("text/plain", "f", b"t", "5m"),
                ToolCall("c", "f", "{}", "5m"),
                ToolResult("c", "r", cache_ttl="5m"),
            ),
        ),
    )
    assert [tool.cache_ttl for tool in asked.tools] == ["1h", None]
    assert asked.cache_ttl == asked.aimed_at("other", 9).cache_ttl == "5m"


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
