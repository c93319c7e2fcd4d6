import pytest
from llm_gateway.domain import Completed, Message, ModelResponse, Started, Text, TextDelta, ToolCall, ToolCallDelta
from llm_gateway.errors import ProviderRateLimited
from llm_gateway.providers.testing import FakeProvider, asked, collect

CALL = ToolCall("1", "lookup", "{}")
RESPONSE = ModelResponse(Message("assistant", (Text("hi"), CALL)), "tool_calls", "tool_calls", None, "r1", "m")


async def test_the_fake_plays_its_outcomes_in_order_and_remembers_requests() -> None:
    fake = FakeProvider([ProviderRateLimited("slow down"), RESPONSE])

    with pytest.raises(ProviderRateLimited):
        await fake.generate(asked(), 0.0)
    assert await fake.generate(asked(), 0.0) == RESPONSE
    assert fake.requests == [asked(), asked()]


async def test_the_fake_streams_a_response_in_parts() -> None:
    parts = await collect(FakeProvider([RESPONSE]), asked())

    assert parts == [
        Started("r1", "m"),
        TextDelta("hi"),
        ToolCallDelta(0, "1", "lookup", "{}"),
        Completed(RESPONSE),
    ]
