"""Of all that is wrong with a body, one thing is told, in the caller's words."""

import pytest
from httpedge.compatible.openai_chat import OpenAiChat
from servicekit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{}", "model = None: is missing; give it"),
        (b"", "body = b'': is not JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"model": "m", "messages": [{"role": "user", "content": 5}]}', "messages.0.content = 5: input should be"),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "foo"}]}]}',
            "messages.0.content.0.type = 'foo': input should be 'text', 'refusal'",
        ),
        (b'{"model": "m", "messages": [], "tool_choice": "what"}', "tool_choice = 'what': input should be 'none'"),
        (b'{"model": "m", "messages": [], "stop": 5}', "stop = 5: input should be"),
        (b'{"model": "m", "messages": [], "stop": {"a": 1}}', "stop = {'a': 1}: input should be"),
        (b'{"model": "m", "messages": [{"role": "tool", "content": "4"}]}', "messages.0.tool_call_id = '': is missing"),
        (b'{"model": "m", "messages": [{"role": "user"}]}', "messages.0.content = None: is missing"),
    ],
)
def test_the_field_is_named_as_it_was_sent_with_its_value(body: bytes, told: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        OpenAiChat().parse(body, "req_1", 0)
    assert refused.value.message.startswith(told)
