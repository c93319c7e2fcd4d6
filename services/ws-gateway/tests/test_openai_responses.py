"""The responses API at the edge: what reaches the gateway, and what the unmodified SDK makes of the answers."""

import base64
import json
from typing import Any

import edge_fakes as fakes
import openai
import pytest
from edge_world import System
from openai import AsyncOpenAI
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)
from openai.types.responses.response_reasoning_item import Content
from pydantic import BaseModel
from servicekit.errors import ResourceExhausted
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "simulator/sim-1"
DATA = base64.b64encode(b"bytes").decode()
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
STARTED = pb.StreamEvent(started=pb.StreamStarted(model=MODEL, attempt=1))
TEXT = pb.Part(text="Hello")
CALLS = [pb.Part(tool_call=pb.ToolCall(id=f"call_{n}", name="f", arguments_json=f'{{"n":{n}}}')) for n in (1, 2)]
ALOUD = pb.Part(reasoning=pb.Reasoning(text="hm", signature=b"\x00\xff", provider="anthropic-messages"))
SILENT = pb.Part(reasoning=pb.Reasoning(signature=b"\x01", provider="openai-responses"))


class Weather(BaseModel):
    city: str
    degrees: int


def answer(*parts: pb.Part, finish: str = "stop") -> pb.GenerateResponse:
    lines = [
        ledger_pb.UsageLine(direction="input", quantity=5),
        ledger_pb.UsageLine(direction="input", cache="read", quantity=2),
        ledger_pb.UsageLine(direction="output", quantity=2),
        ledger_pb.UsageLine(direction="output", reasoning=True, quantity=1),
    ]
    usage = pb.Usage(input_tokens=7, output_tokens=3, lines=lines, source="provider_final")
    message = pb.Message(role=pb.ROLE_ASSISTANT, parts=parts)
    return pb.GenerateResponse(message=message, finish_reason=finish, model=MODEL, usage=usage)


def sdk(system: System) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=fakes.API_KEY, base_url=f"{system.url}/v1")


def asked(system: System, method: str = "Generate") -> pb.GenerateRequest:
    found = system.fake.requests(method)[-1].request
    return found.request if method == "Stream" else found  # type: ignore[attr-defined,return-value]


async def created(system: System, found: pb.GenerateResponse, **more: Any) -> Any:
    system.fake.answer = found
    async with sdk(system) as client:
        return await client.responses.create(**({"model": MODEL, "input": "Hi"} | more))


async def streamed(system: System, *events: pb.StreamEvent, **more: Any) -> tuple[list[Any], Any]:
    """The events of a stream and the response at its end, as the SDK puts them together."""
    system.fake.model_events = list(events)
    async with sdk(system) as client, client.responses.stream(model=MODEL, input="Hi", **more) as stream:
        seen = [event async for event in stream]
        return seen, await stream.get_final_response()


# --- requests ---


async def test_every_kind_of_input_reaches_the_gateway(system: System) -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}", "detail": "auto"},
        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"},
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
        {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"},
    ]
    await created(system, answer(TEXT), instructions="Be brief.", input=[{"role": "user", "content": content}])

    told, said = asked(system).messages
    assert (told.role, told.parts[0].text, said.role) == (pb.ROLE_SYSTEM, "Be brief.", pb.ROLE_USER)
    assert list(said.parts) == [
        pb.Part(text="look"),
        pb.Part(image=pb.Image(media_type="image/png", data=b"bytes")),
        pb.Part(image=pb.Image(url="https://example.org/a.png")),
        pb.Part(audio=pb.Audio(media_type="audio/wav", data=b"bytes")),
        pb.Part(file=pb.File(media_type="application/pdf", name="a.pdf", data=b"bytes")),
    ]


async def test_every_parameter_reaches_the_gateway(system: System) -> None:
    form = {"type": "json_schema", "name": "w", "schema": {"type": "object"}, "strict": True}
    found = await created(
        system,
        answer(TEXT),
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"format": form},
        reasoning={"effort": "low"},
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        service_tier="flex",
        extra_body={"synod_cache": {"ttl_s": 5}},
    )
    request = asked(system)
    assert request.tools[0] == pb.Tool(name="f", description="d", parameters_json='{"type":"object"}', strict=True)
    assert (request.tool_choice, request.HasField("parallel_tool_calls"), request.max_output_tokens) == ("f", True, 9)
    assert request.output_format == pb.OutputFormat(
        kind="json_schema", json_schema='{"type":"object"}', name="w", strict=True
    )
    assert (request.temperature, request.top_p, request.reasoning_effort) == (0.5, 0.9, "low")
    assert (request.service_tier, request.cache.ttl_s, request.cache.mode) == ("flex", 5, pb.CACHE_MODE_ON)
    assert (found.tools[0].name, found.tool_choice.name, found.parallel_tool_calls) == ("f", "f", False)


async def test_what_belongs_together_is_one_message(system: System) -> None:
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "12"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "13"}]},
        {"role": "user", "content": "And?"},
        {"role": "user", "content": "Well?"},
    ]
    await created(system, answer(TEXT), input=history)

    messages = asked(system).messages
    roles = [pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL, pb.ROLE_USER, pb.ROLE_USER]
    assert [message.role for message in messages] == roles
    assert [part.WhichOneof("part") for part in messages[1].parts] == ["text", "tool_call", "tool_call"]
    assert [part.tool_result.content for part in messages[2].parts] == ["12", "13"]


async def test_messages_of_an_assistant_in_a_row_stay_apart_unless_a_call_waits_for_its_result(system: System) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    history = [
        {"role": "assistant", "content": "I will look."},
        {"type": "reasoning", "summary": [], "encrypted_content": "E=="},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
        call,
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call_output", "call_id": "1", "output": "12"},
    ]
    await created(system, answer(TEXT), input=history)

    kinds = [[part.WhichOneof("part") for part in message.parts] for message in asked(system).messages]
    assert kinds == [["text", "reasoning"], ["text", "tool_call", "text"], ["tool_result"]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("truncation", "auto"),
        ("max_tool_calls", 3),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_name(system: System, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await created(system, answer(TEXT), **{field: value})
    assert refused.value.param == field
    assert system.fake.requests("Generate") == []


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0"),
    ],
)
async def test_input_that_only_openai_has_is_refused_by_its_place(
    system: System, more: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await created(system, answer(TEXT), **more)
    assert refused.value.param == param


# --- answers ---


async def test_a_response_has_text_usage_and_identity(system: System) -> None:
    found = await created(system, answer(TEXT))

    assert (found.output_text, found.status, found.model) == ("Hello", "completed", MODEL)
    assert found.id == f"resp_{asked(system).request_id}"
    usage = found.usage
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.total_tokens) == (7, 2, 10)
    assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 1)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter"), ("context_window", "max_output_tokens")],
)
async def test_an_answer_cut_short_is_incomplete_and_says_why(system: System, finish: str, reason: str) -> None:
    found = await created(system, answer(TEXT, finish=finish))
    assert (found.status, found.incomplete_details.reason) == ("incomplete", reason)


async def test_calls_refusals_and_messages_are_items_of_their_own(system: System) -> None:
    found = await created(system, answer(TEXT, *CALLS, pb.Part(refusal="no"), finish="tool_calls"))

    assert [item.type for item in found.output] == ["message", "function_call", "function_call", "message"]
    assert [item.arguments for item in found.output[1:3]] == ['{"n":1}', '{"n":2}']
    assert found.output[3].content[0].refusal == "no"
    assert len({item.id for item in found.output}) == 4


async def test_reasoning_comes_back_to_its_provider_whole(system: System) -> None:
    first = await created(system, answer(ALOUD, SILENT, *CALLS, finish="tool_calls"))
    assert first.output[0].summary[0].text == "hm"
    foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    await created(system, answer(TEXT), input=[*first.output, foreign])

    (message,) = asked(system).messages
    assert [part.WhichOneof("part") for part in message.parts] == [*["reasoning"] * 2, *["tool_call"] * 2, "reasoning"]
    assert [message.parts[0], message.parts[1]] == [ALOUD, SILENT]
    assert json.loads(message.parts[4].reasoning.signature) == foreign
    assert message.parts[4].reasoning.provider == "openai-responses"


async def test_items_of_the_sdk_come_back_as_it_dumps_them(system: System) -> None:
    thought = ResponseReasoningItem(
        id="rs_1", type="reasoning", summary=[], content=[Content(type="reasoning_text", text="hm")]
    ).model_dump()
    said = ResponseOutputMessage(
        id="msg_1",
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(type="output_text", text="Hi", annotations=[])],
    ).model_dump()
    call = ResponseFunctionToolCall(type="function_call", call_id="call_1", name="f", arguments="{}").model_dump()
    await created(system, answer(TEXT), input=[thought, said, call])

    (message,) = asked(system).messages
    assert [part.WhichOneof("part") for part in message.parts] == ["reasoning", "text", "tool_call"]
    assert json.loads(message.parts[0].reasoning.signature) == {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }


async def test_reasoning_is_no_part_of_a_message(system: System) -> None:
    said = {"role": "assistant", "content": [{"type": "reasoning_text", "text": "hm"}]}
    with pytest.raises(openai.BadRequestError, match="of the type reasoning only") as refused:
        await created(system, answer(TEXT), input=[said])
    assert refused.value.param == "input.0.content.0.type"


async def test_a_changed_encrypted_content_is_refused(system: System) -> None:
    changed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "synod:x:!"}
    with pytest.raises(openai.BadRequestError, match="as it was given"):
        await created(system, answer(TEXT), input=[changed])


async def test_structured_output_is_parsed(system: System) -> None:
    system.fake.answer = answer(pb.Part(text='{"city": "Zürich", "degrees": 12}'))
    async with sdk(system) as client:
        found = await client.responses.parse(model=MODEL, input="Hi", text_format=Weather)
    assert found.output_parsed == Weather(city="Zürich", degrees=12)
    assert asked(system).output_format.name == "Weather"


async def test_input_tokens_are_counted(system: System) -> None:
    async with sdk(system) as client:
        counted = await client.responses.input_tokens.count(model=MODEL, input="Hi", tools=[TOOL])
    assert counted.input_tokens == 42
    (found,) = system.fake.requests("CountTokens")
    assert found.request.exact  # type: ignore[attr-defined]


# --- streams ---


async def test_a_stream_of_text_has_the_apis_events_in_order(system: System) -> None:
    deltas = [pb.StreamEvent(text_delta=text) for text in ("Hel", "lo")]
    events, final = await streamed(system, STARTED, *deltas, pb.StreamEvent(completed=answer(TEXT)))

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert (events[5].snapshot, events[6].text, final.output_text) == ("Hello", "Hello", "Hello")
    assert final.usage.output_tokens == 3


async def test_calls_in_mixed_pieces_and_reasoning_are_put_together(system: System) -> None:
    pieces = [(0, "call_1", "f", ""), (1, "call_2", "f", '{"n"'), (0, "", "", '{"n":1}'), (1, "", "", ":2}")]
    calls = [
        pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=index, id=id, name=name, arguments_delta=arguments))
        for index, id, name, arguments in pieces
    ]
    done = answer(SILENT, ALOUD, TEXT, *CALLS, finish="tool_calls")
    events, final = await streamed(
        system,
        STARTED,
        pb.StreamEvent(reasoning_delta="h"),
        pb.StreamEvent(reasoning_delta="m"),
        pb.StreamEvent(text_delta="Hello"),
        *calls,
        pb.StreamEvent(completed=done),
        tools=[TOOL],
    )
    types = [event.type for event in events]
    assert "".join(event.delta for event in events if event.type.endswith("summary_text.delta")) == "hm"
    ended = [event.item.type for event in events if event.type == "response.output_item.done"]
    # The silent one, of which no event told, comes last.
    assert ended == ["reasoning", "message", "function_call", "function_call", "reasoning"]
    assert types.count("response.output_item.added") == len(ended)
    arguments = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert arguments == ['{"n":1}', '{"n":2}']
    kinds = ["reasoning", "reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in final.output] == kinds


async def test_items_are_done_in_the_order_of_the_answer(system: System) -> None:
    """Some clients keep what is done, in the order in which it is."""
    other = pb.Part(reasoning=pb.Reasoning(text="so", signature=b"\x02", provider="anthropic-messages"))
    parts = [SILENT, ALOUD, other, CALLS[0], SILENT, TEXT, CALLS[1], SILENT]
    told: list[pb.StreamEvent] = []
    for part in parts:
        match part.WhichOneof("part"):
            case "text":
                told.append(pb.StreamEvent(text_delta=part.text))
            case "tool_call":
                call, index = part.tool_call, CALLS.index(part)
                piece = pb.ToolCallDelta(index=index, id=call.id, name="f", arguments_delta=call.arguments_json)
                told.append(pb.StreamEvent(tool_call_delta=piece))
            case _:
                if part.reasoning.text:
                    told.append(pb.StreamEvent(reasoning_delta=part.reasoning.text))
                told.append(pb.StreamEvent(reasoning_done=part.reasoning))
    ended = pb.StreamEvent(completed=answer(*parts, finish="tool_calls"))
    for events in ([STARTED, *told, ended], [ended]):
        seen, final = await streamed(system, *events)
        done = [event for event in seen if event.type == "response.output_item.done"]
        assert [event.output_index for event in done] == list(range(len(parts)))
        for event, item in zip(done, final.output, strict=True):
            assert (event.item.type, event.item.id) == (item.type, item.id)
            if event.item.type == "reasoning":
                assert event.item == item
        assert [event.sequence_number for event in seen] == list(range(len(seen)))


async def test_a_recorded_answer_is_streamed_whole_with_all_events(system: System) -> None:
    events, final = await streamed(system, pb.StreamEvent(completed=answer(ALOUD, TEXT, *CALLS, finish="tool_calls")))

    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.output_text == "Hello"


async def test_a_refusal_is_streamed_as_one(system: System) -> None:
    refusal = pb.Part(refusal="I cannot")
    events, final = await streamed(
        system,
        STARTED,
        pb.StreamEvent(refusal_delta="I cannot"),
        pb.StreamEvent(completed=answer(refusal, finish="refusal")),
    )
    assert [event.refusal for event in events if event.type == "response.refusal.done"] == ["I cannot"]
    assert final.output[0].content[0].refusal == "I cannot"


async def test_group_08_a_broken_stream_ends_in_one_failed_response(system: System) -> None:
    broken = pb.StreamError(reason="PROVIDER_UNAVAILABLE", message="cut off", retryable=True)
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hel"), pb.StreamEvent(error=broken)]
    async with sdk(system) as client:
        stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
        events = [event async for event in stream]

    assert events[-1].type == "response.failed"
    assert (events[-1].response.error.code, events[-1].response.error.message) == ("server_error", "cut off")
    assert events[-1].response.id == events[0].response.id


async def test_a_refused_stream_has_a_status_of_its_own(system: System) -> None:
    system.fake.refusals["Stream"] = fakes.over_budget()
    with pytest.raises(openai.APIStatusError) as refused:
        await streamed(system)
    assert (refused.value.status_code, refused.value.code) == (402, "budget_exhausted")

    system.fake.refusals["Stream"] = ResourceExhausted("slow down", 0.001, reason="RATE_LIMITED")
    with pytest.raises(openai.RateLimitError):
        await streamed(system)
