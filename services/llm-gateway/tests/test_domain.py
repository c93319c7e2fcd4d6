import pytest
from llm_gateway.domain import (
    USAGE_TOKENS_MAX,
    Completed,
    Message,
    ModelResponse,
    RefusalDelta,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageLine,
    UsageUpdated,
    is_content,
)
from llm_gateway.errors import InvalidToolArguments, InvalidUsage


def test_usage_adds_up_its_lines_and_leaves_empty_ones_out() -> None:
    usage = Usage.of((UsageLine("input", 5), UsageLine("input", 3, cache="read"), UsageLine("output", 0)))

    assert (usage.input_tokens, usage.output_tokens) == (8, 0)
    assert usage.lines == (UsageLine("input", 5), UsageLine("input", 3, cache="read"))


@pytest.mark.parametrize(
    ("total", "quantity", "problem"),
    [
        (9, 8, "the input lines add up to 8 tokens, the total says 9"),
        (-1, -1, "a count of -1 tokens is outside"),
        (USAGE_TOKENS_MAX + 1, USAGE_TOKENS_MAX + 1, "is outside"),
    ],
)
def test_usage_that_cannot_be_is_invalid(total: int, quantity: int, problem: str) -> None:
    with pytest.raises(InvalidUsage, match=problem):
        Usage(total, 0, (UsageLine("input", quantity),))


def test_tool_arguments_parse_to_an_object() -> None:
    assert ToolCall("1", "f", '{"a": [1]}').parsed() == {"a": [1]}
    assert ToolCall("1", "f", "").parsed() == {}


@pytest.mark.parametrize(("arguments", "problem"), [('{"a": ', "no JSON"), ("[1]", "no JSON object")])
def test_broken_tool_arguments_are_named(arguments: str, problem: str) -> None:
    with pytest.raises(InvalidToolArguments, match=f"the arguments of f are {problem}"):
        ToolCall("1", "f", arguments).parsed()


def test_a_message_gives_its_text_and_its_calls() -> None:
    call = ToolCall("1", "f", "{}")
    message = Message("assistant", (Text("a"), call, Text("b")))

    assert (message.text, message.tool_calls) == ("ab", (call,))


def test_only_what_shows_the_answer_is_content() -> None:
    usage = Usage.of(())
    response = ModelResponse(Message("assistant", ()), "stop", "stop", usage, "1", "m")

    assert all(is_content(part) for part in (TextDelta("a"), RefusalDelta("a"), ToolCallDelta(0, "1", "f", "")))
    assert not any(is_content(part) for part in (Started("1", "m"), UsageUpdated(usage), Completed(response)))
