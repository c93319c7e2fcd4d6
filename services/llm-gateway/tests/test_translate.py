"""Requests as the gateway understands them."""

from llm_gateway import translate
from llm_gateway.domain import Answer, File, Image, Message, Text, ToolCall, ToolResult, Usage
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
