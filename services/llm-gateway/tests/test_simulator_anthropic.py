"""The real anthropic SDK as the client of the simulator."""

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam, TextBlockParam, ToolParam
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator
from pydantic import BaseModel

SCRIPT = """1. call lookup with {"city": "Zürich"} and call lookup with {"city": "Łódź"}
answer: {{1.degrees}} and {{1#2}} degrees"""

LOOKUP: ToolParam = {"name": "lookup", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
ASKED: MessageParam = {"role": "user", "content": "How warm is it?"}


class Verdict(BaseModel):
    approved: bool
    reason: str


async def test_a_message_answers_and_says_that_it_is_a_simulator(anthropic_client: AsyncAnthropic) -> None:
    message = await anthropic_client.messages.create(
        model="sim-1", max_tokens=100, system="answer: {{input}}!", messages=[ASKED]
    )

    assert message.content[0].type == "text"
    assert message.content[0].text == "How warm is it?!"
    assert message.stop_reason == "end_turn"
    assert message.model_extra == {"system_fingerprint": "synod-simulator"}
    assert (message.usage.input_tokens, message.usage.output_tokens) == (15, 4)


async def test_a_prompt_is_written_to_the_cache_up_to_its_breakpoints_and_read_from_then_on(
    anthropic_client: AsyncAnthropic,
) -> None:
    told: list[TextBlockParam] = [
        {"type": "text", "text": "answer: yes", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "and be brief", "cache_control": {"type": "ephemeral"}},
    ]
    used = [
        (await anthropic_client.messages.create(model="sim-1", max_tokens=9, system=system, messages=[ASKED])).usage
        for system in (told[:1], told, told)
    ]

    assert [each.cache_read_input_tokens for each in used] == [0, 6, 12]
    written = [each.cache_creation for each in used if each.cache_creation]
    assert [(each.ephemeral_1h_input_tokens, each.ephemeral_5m_input_tokens) for each in written] == [
        (6, 0),
        (0, 6),
        (0, 0),
    ]
    assert used[0].input_tokens == 7  # the question, with the 3 tokens of each message


async def test_a_breakpoint_of_the_whole_request_stands_at_its_end(anthropic_client: AsyncAnthropic) -> None:
    first, second = [
        (
            await anthropic_client.messages.create(
                model="sim-1", max_tokens=9, messages=[ASKED], cache_control={"type": "ephemeral"}
            )
        ).usage
        for _ in range(2)
    ]
    assert (first.cache_creation_input_tokens, first.cache_read_input_tokens, first.input_tokens) == (7, 0, 0)
    assert (second.cache_creation_input_tokens, second.cache_read_input_tokens, second.input_tokens) == (0, 7, 0)


async def test_a_script_runs_over_parallel_tool_calls_one_of_which_fails(anthropic_client: AsyncAnthropic) -> None:
    first = await anthropic_client.messages.create(
        model="sim-1", max_tokens=100, system=SCRIPT, messages=[ASKED], tools=[LOOKUP]
    )
    calls = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use"
    assert [call.input for call in calls] == [{"city": "Zürich"}, {"city": "Łódź"}]

    results: MessageParam = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": calls[0].id, "content": '{"degrees": 12}'},
            {"type": "tool_result", "tool_use_id": calls[1].id, "content": "no station", "is_error": True},
        ],
    }
    second = await anthropic_client.messages.create(
        model="sim-1",
        max_tokens=100,
        system=SCRIPT,
        messages=[ASKED, {"role": "assistant", "content": first.content}, results],
        tools=[LOOKUP],
    )

    assert second.content[0].type == "text"
    assert second.content[0].text == "12 and no station degrees"


async def test_a_streamed_message_equals_the_whole_one(anthropic_client: AsyncAnthropic) -> None:
    whole = await anthropic_client.messages.create(
        model="sim-1", max_tokens=100, system=SCRIPT, messages=[ASKED], tools=[LOOKUP]
    )
    async with anthropic_client.messages.stream(
        model="sim-1", max_tokens=100, system=SCRIPT, messages=[ASKED], tools=[LOOKUP]
    ) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()

    assert streamed.content == whole.content
    assert streamed.usage == whole.usage
    assert streamed.stop_reason == "tool_use"
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("input_json") > 2


async def test_text_is_streamed_in_pieces(anthropic_client: AsyncAnthropic) -> None:
    async with anthropic_client.messages.stream(
        model="sim-1", max_tokens=100, system="answer: one two three", messages=[ASKED]
    ) as stream:
        pieces = [piece async for piece in stream.text_stream]

    assert pieces == ["one ", "two ", "three"]


async def test_structured_output_is_parsed_by_the_sdk(anthropic_client: AsyncAnthropic) -> None:
    parsed = await anthropic_client.messages.parse(
        model="sim-1",
        max_tokens=100,
        system='answer: {"approved": true, "reason": "fine"}',
        messages=[ASKED],
        output_format=Verdict,
    )

    assert parsed.parsed_output == Verdict(approved=True, reason="fine")


async def test_a_refusal_has_its_own_stop_reason(anthropic_client: AsyncAnthropic) -> None:
    message = await anthropic_client.messages.create(model="sim-1", max_tokens=100, system=SCRIPT, messages=[ASKED])

    assert message.stop_reason == "refusal"
    assert message.stop_details is not None
    assert "which is not offered" in (message.stop_details.explanation or "")


async def test_limits_and_stop_sequences_are_kept(anthropic_client: AsyncAnthropic) -> None:
    system = "answer: one two three four"
    short = await anthropic_client.messages.create(model="sim-1", max_tokens=2, system=system, messages=[ASKED])
    stopped = await anthropic_client.messages.create(
        model="sim-1", max_tokens=99, system=system, messages=[ASKED], stop_sequences=[" three"]
    )

    assert short.stop_reason == "max_tokens"
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " three")


async def test_tokens_are_counted_as_they_are_billed(anthropic_client: AsyncAnthropic) -> None:
    counted = await anthropic_client.messages.count_tokens(
        model="sim-1", system=SCRIPT, messages=[ASKED], tools=[LOOKUP]
    )
    message = await anthropic_client.messages.create(
        model="sim-1", max_tokens=9, system=SCRIPT, messages=[ASKED], tools=[LOOKUP]
    )

    assert counted.input_tokens == message.usage.input_tokens


async def test_cached_and_thinking_tokens_are_reported_on_demand(anthropic_client: AsyncAnthropic) -> None:
    message = await anthropic_client.messages.create(
        model="sim-1",
        max_tokens=100,
        system="answer: ok",
        messages=[ASKED],
        extra_headers={"x-simulator-fault": "cached_input_tokens=10,reasoning_tokens=7"},
    )

    assert message.usage.cache_read_input_tokens == 10
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 7
    assert message.usage.output_tokens == 8


async def test_sampling_parameters_are_refused_under_the_new_api_version(anthropic_client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature: not supported in API version 2026-10-21"):
        await anthropic_client.messages.create(
            model="sim-1", max_tokens=9, messages=[ASKED], extra_body={"temperature": 0.5}
        )


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("sim-400", anthropic.BadRequestError),
        ("sim-401", anthropic.AuthenticationError),
        ("sim-402", anthropic.PaymentRequiredError),
        ("sim-429", anthropic.RateLimitError),
        ("sim-529", anthropic.OverloadedError),
        ("sim-html", anthropic.InternalServerError),
        ("claude-unknown", anthropic.NotFoundError),
    ],
)
async def test_errors_arrive_as_the_types_of_the_sdk(
    anthropic_client: AsyncAnthropic, model: str, error: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(error):
        await anthropic_client.messages.create(model=model, max_tokens=9, messages=[ASKED])


async def test_the_sdk_retries_a_planned_fault(simulator: RunningSimulator) -> None:
    simulator.faults.plan(Fault(status=529, headers={"retry-after-ms": "1"}), requests=2)
    async with AsyncAnthropic(api_key="any", base_url=simulator.anthropic_base_url, max_retries=2) as client:
        message = await client.messages.create(model="sim-1", max_tokens=9, system="answer: ok", messages=[ASKED])

    assert message.stop_reason == "end_turn"
    assert simulator.usage.total().failed == 2


async def test_an_error_event_inside_a_stream_is_raised(anthropic_client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError, match="simulated error"):
        async with anthropic_client.messages.stream(model="sim-error-event", max_tokens=9, messages=[ASKED]) as stream:
            await stream.get_final_message()


async def test_models_are_listed(anthropic_client: AsyncAnthropic) -> None:
    models = [model.display_name async for model in anthropic_client.models.list()]

    assert models[0] == "sim-1 (simulator)"
