from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.counting import delivered_bound, input_bound, output_bound
from llm_gateway.domain import Message, Text, TextDelta, ToolCall, ToolCallDelta, ToolSpec


@given(st.lists(st.text(), max_size=5))
def test_a_bound_counts_at_least_every_byte(texts: list[str]) -> None:
    messages = tuple(Message("user", (Text(text),)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert input_bound(messages) > size
    assert output_bound(Message("assistant", tuple(Text(text) for text in texts))) >= size
    assert delivered_bound(TextDelta(text) for text in texts) == size


def test_tools_count_with_their_schemas() -> None:
    bare = input_bound((Message("user", (Text("hi"),)),))
    tool = ToolSpec("lookup", "Looks something up.", {"type": "object", "description": "x" * 500})
    assert input_bound((Message("user", (Text("hi"),)),), (tool,)) > bare + 500


def test_tool_calls_count_with_their_arguments() -> None:
    call = Message("assistant", (ToolCall("1", "lookup", '{"city": "Łódź"}'),))
    assert output_bound(call) >= len('1lookup{"city": "Łódź"}'.encode())
    assert delivered_bound([ToolCallDelta(0, "", "", "12"), ToolCallDelta(0, "", "", "345")]) == 5
