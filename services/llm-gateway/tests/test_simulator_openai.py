"""The real openai SDK as the client of the simulator."""

import json

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import (
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)
from openai.types.responses import FunctionToolParam, ResponseInputParam
from provider_simulator.embeddings import DIMENSIONS
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator
from pydantic import BaseModel

SCRIPT = """1. call lookup with {"city": "Zürich"} and call lookup with {"city": "Łódź"}
answer: {{1.degrees}} and {{1#2.degrees}} degrees"""

LOOKUP: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
LOOKUP_RESPONSES: FunctionToolParam = {
    "type": "function",
    "name": "lookup",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}


class Verdict(BaseModel):
    approved: bool
    reason: str


def asked(script: str = SCRIPT) -> list[ChatCompletionMessageParam]:
    return [{"role": "system", "content": script}, {"role": "user", "content": "How warm is it?"}]


async def test_chat_answers_and_says_that_it_is_a_simulator(openai_client: AsyncOpenAI) -> None:
    raw = await openai_client.chat.completions.with_raw_response.create(
        model="sim-1", messages=asked("answer: {{input}}!")
    )
    completion = raw.parse()

    assert completion.choices[0].message.content == "How warm is it?!"
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.model, completion.system_fingerprint) == ("sim-1", "synod-simulator")
    assert raw.headers["x-synod-simulator"] == "true"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5 + 3 + 4 + 3, 4)


async def test_chat_carries_out_a_script_over_parallel_tool_calls(openai_client: AsyncOpenAI) -> None:
    messages = asked()
    first = await openai_client.chat.completions.create(model="sim-1", messages=messages, tools=[LOOKUP])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    arguments = [json.loads(call.function.arguments) for call in message.tool_calls if call.type == "function"]
    assert arguments == [{"city": "Zürich"}, {"city": "Łódź"}]

    messages.append(message.model_dump(exclude_none=True))  # type: ignore[arg-type]
    for call, degrees in zip(message.tool_calls, (12, 9), strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"degrees": degrees})})
    second = await openai_client.chat.completions.create(model="sim-1", messages=messages, tools=[LOOKUP])

    assert second.choices[0].message.content == "12 and 9 degrees"


async def test_a_new_user_message_starts_the_script_again(openai_client: AsyncOpenAI) -> None:
    messages = asked('1. call lookup with {"city": "{{input}}"}\nanswer: {{1}}')
    for city in ("Oslo", "Rome"):
        messages.append({"role": "user", "content": city})
        first = await openai_client.chat.completions.create(model="sim-1", messages=messages, tools=[LOOKUP])
        calls = first.choices[0].message.tool_calls
        assert calls is not None
        messages.append(first.choices[0].message.model_dump(exclude_none=True))  # type: ignore[arg-type]
        messages.append({"role": "tool", "tool_call_id": calls[0].id, "content": f"sun over {city}"})
        second = await openai_client.chat.completions.create(model="sim-1", messages=messages, tools=[LOOKUP])
        messages.append({"role": "assistant", "content": second.choices[0].message.content})

    assert second.choices[0].message.content == "sun over Rome"


async def test_a_streamed_chat_equals_the_whole_one(openai_client: AsyncOpenAI) -> None:
    whole = await openai_client.chat.completions.create(model="sim-1", messages=asked(), tools=[LOOKUP])
    async with openai_client.chat.completions.stream(
        model="sim-1", messages=asked(), tools=[LOOKUP], stream_options={"include_usage": True}
    ) as stream:
        deltas = [
            event.arguments_delta async for event in stream if event.type == "tool_calls.function.arguments.delta"
        ]
        streamed = await stream.get_final_completion()

    calls = whole.choices[0].message.tool_calls
    streamed_calls = streamed.choices[0].message.tool_calls
    assert calls is not None
    assert streamed_calls is not None
    names = [(c.id, c.function.name, c.function.arguments) for c in calls if c.type == "function"]
    assert [(c.id, c.function.name, c.function.arguments) for c in streamed_calls] == names
    assert len(deltas) > len(calls)
    assert streamed.usage == whole.usage


async def test_a_stream_has_a_usage_chunk_only_if_asked(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(model="sim-1", messages=asked("answer: a b"), stream=True)
    plain = [chunk async for chunk in stream]

    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == "a b"


async def test_structured_output_is_parsed_by_the_sdk(openai_client: AsyncOpenAI) -> None:
    script = 'answer: {"approved": {{input.ok|json}}, "reason": {{input.why|json}}}'
    messages: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": script},
        {"role": "user", "content": '{"ok": true, "why": "it \\"adds\\" up"}'},
    ]
    parsed = await openai_client.chat.completions.parse(model="sim-1", messages=messages, response_format=Verdict)

    assert parsed.choices[0].message.parsed == Verdict(approved=True, reason='it "adds" up')


async def test_an_answer_that_is_no_json_is_refused_where_json_is_wanted(openai_client: AsyncOpenAI) -> None:
    completion = await openai_client.chat.completions.create(
        model="sim-1", messages=asked("answer: not json"), response_format={"type": "json_object"}
    )

    assert completion.choices[0].message.content is None
    assert "the request wants JSON" in (completion.choices[0].message.refusal or "")


async def test_output_limits_and_stop_sequences_are_kept(openai_client: AsyncOpenAI) -> None:
    messages = asked("answer: one two three four")
    short = await openai_client.chat.completions.create(model="sim-1", messages=messages, max_completion_tokens=2)
    stopped = await openai_client.chat.completions.create(model="sim-1", messages=messages, stop=" three")

    assert (short.choices[0].finish_reason, short.choices[0].message.content) == ("length", "one two ")
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", "one two")


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("sim-400", openai.BadRequestError),
        ("sim-401", openai.AuthenticationError),
        ("sim-403", openai.PermissionDeniedError),
        ("sim-404", openai.NotFoundError),
        ("sim-429", openai.RateLimitError),
        ("sim-503", openai.InternalServerError),
        ("sim-599", openai.InternalServerError),
        ("sim-html", openai.InternalServerError),
        ("gpt-unknown", openai.NotFoundError),
    ],
)
async def test_errors_arrive_as_the_types_of_the_sdk(
    openai_client: AsyncOpenAI, model: str, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error):
        await openai_client.chat.completions.create(model=model, messages=asked())


async def test_the_sdk_retries_a_planned_fault(simulator: RunningSimulator) -> None:
    for status in (429, 503):
        simulator.faults.plan(Fault(status=status, headers={"retry-after-ms": "1"}))
    async with AsyncOpenAI(api_key="any", base_url=simulator.openai_base_url, max_retries=2) as client:
        completion = await client.chat.completions.create(model="sim-1", messages=asked("answer: at last"))

    assert completion.choices[0].message.content == "at last"
    totals = simulator.usage.total()
    assert (totals.requests, totals.failed, totals.answered) == (3, 2, 1)


async def test_a_cut_stream_is_a_connection_error(openai_client: AsyncOpenAI, simulator: RunningSimulator) -> None:
    stream = await openai_client.chat.completions.create(model="sim-cut", messages=asked(), stream=True)

    with pytest.raises(openai.APIConnectionError):
        async for _ in stream:
            pass
    assert simulator.usage.total().cut == 1


async def test_an_error_event_inside_a_stream_is_raised(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(model="sim-error-event", messages=asked(), stream=True)

    with pytest.raises(openai.APIError, match="simulated error"):
        async for _ in stream:
            pass


async def test_a_tool_call_without_result_is_refused(openai_client: AsyncOpenAI) -> None:
    messages = asked()
    call: ChatCompletionMessageFunctionToolCallParam = {
        "id": "c1",
        "type": "function",
        "function": {"name": "lookup", "arguments": "{}"},
    }
    messages.append({"role": "assistant", "tool_calls": [call]})

    with pytest.raises(openai.BadRequestError, match="no tool message answers the call 'c1'"):
        await openai_client.chat.completions.create(model="sim-1", messages=messages)


async def test_responses_carry_out_a_script_and_stream_it(openai_client: AsyncOpenAI) -> None:
    items: ResponseInputParam = [{"role": "user", "content": "How warm is it?"}]
    first = await openai_client.responses.create(
        model="sim-1", instructions=SCRIPT, input=items, tools=[LOOKUP_RESPONSES]
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Zürich"}, {"city": "Łódź"}]

    for call, degrees in zip(calls, (12, 9), strict=True):
        items.append({"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments})
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": f'{{"degrees": {degrees}}}'})
    async with openai_client.responses.stream(
        model="sim-1", instructions=SCRIPT, input=items, tools=[LOOKUP_RESPONSES]
    ) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()

    assert final.output_text == "12 and 9 degrees"
    assert final.metadata == {"system_fingerprint": "synod-simulator"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert final.usage is not None
    assert final.usage.output_tokens == 4


async def test_responses_stream_tool_calls_and_refusals(openai_client: AsyncOpenAI) -> None:
    async with openai_client.responses.stream(
        model="sim-1", instructions=SCRIPT, input="go", tools=[LOOKUP_RESPONSES]
    ) as stream:
        called = await stream.get_final_response()
    async with openai_client.responses.stream(model="sim-1", instructions=SCRIPT, input="go") as stream:
        refused = await stream.get_final_response()

    assert [item.type for item in called.output] == ["function_call", "function_call"]
    message = refused.output[0]
    assert message.type == "message"
    assert message.content[0].type == "refusal"
    assert "which is not offered" in message.content[0].refusal


async def test_responses_structured_output_is_parsed_by_the_sdk(openai_client: AsyncOpenAI) -> None:
    parsed = await openai_client.responses.parse(
        model="sim-1", instructions='answer: {"approved": false, "reason": "no"}', input="go", text_format=Verdict
    )

    assert parsed.output_parsed == Verdict(approved=False, reason="no")


async def test_a_response_longer_than_allowed_is_incomplete(openai_client: AsyncOpenAI) -> None:
    response = await openai_client.responses.create(
        model="sim-1", instructions="answer: one two three four", input="go", max_output_tokens=2
    )

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_responses_keep_no_conversation(openai_client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no conversations"):
        await openai_client.responses.create(model="sim-1", input="go", previous_response_id="resp_1")


async def test_embeddings_are_deterministic_and_near_for_shared_words(openai_client: AsyncOpenAI) -> None:
    texts = ["red green blue", "green blue yellow", "one two three"]
    answer = await openai_client.embeddings.create(model="sim-embed", input=texts)
    plain = await openai_client.embeddings.create(model="sim-embed", input=texts[0], encoding_format="float")

    colours, more_colours, numbers = (one.embedding for one in answer.data)
    assert len(colours) == DIMENSIONS
    assert plain.data[0].embedding == pytest.approx(colours, abs=1e-6)
    assert _dot(colours, more_colours) > 0.5 > abs(_dot(colours, numbers)) + 0.2
    assert answer.model_extra == {"system_fingerprint": "synod-simulator", "simulated": True}


async def test_models_are_listed(openai_client: AsyncOpenAI) -> None:
    models = [model.id async for model in openai_client.models.list()]

    assert models[:2] == ["sim-1", "sim-embed"]


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
