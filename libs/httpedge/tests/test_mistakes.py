"""Of all that is wrong with a body, one thing is told, in the caller's words."""

import pytest
from httpedge.compatible.openai_chat import OpenAiChat
from httpedge.mistakes import as_sent
from servicekit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{}", "model = null: is missing; give it"),
        (b"", 'body = "": is not JSON: EOF while parsing a value at line 1 column 0'),
        (b'{"model": "m", "messages": [{"role": "user", "content": 5}]}', "messages.0.content = 5: input should be"),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "foo"}]}]}',
            "messages.0.content.0.type = \"foo\": input should be 'text', 'refusal'",
        ),
        (b'{"model": "m", "messages": [], "tool_choice": "what"}', "tool_choice = \"what\": input should be 'none'"),
        (b'{"model": "m", "messages": [], "stop": 5}', "stop = 5: input should be"),
        (b'{"model": "m", "messages": [], "stop": {"a": 1}}', 'stop = {"a": 1}: input should be'),
        (b'{"model": "m", "messages": [{"role": "tool", "content": "4"}]}', 'messages.0.tool_call_id = "": is missing'),
        (b'{"model": "m", "messages": [{"role": "user"}]}', "messages.0.content = null: is missing"),
        (b'{"model": "m", "messages": [], "temprature": 1e999}', "temprature = Infinity: is no field here"),
        (b'{"model": "m", "temperature": 1e999}', "messages = null: is missing"),
        (b'{"model": "m", "messages": ' + b"[" * 500 + b"]" * 500 + b"}", 'body = "{\\"model\\": \\"m\\"'),
    ],
)
def test_the_field_is_named_as_it_was_sent_with_its_value(body: bytes, told: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        OpenAiChat().parse(body, "req_1", 0)
    assert refused.value.message.startswith(told)


def test_what_is_nested_too_deeply_is_said_to_be() -> None:
    with pytest.raises(InvalidArgument) as refused:
        OpenAiChat().parse(b"[" * 500 + b"]" * 500, "req_1", 0)
    assert refused.value.problem == "is nested too deeply; send it flatter"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidArgument("attribution.agent", "a" * 300, "is too long"), f"synod-agent = '{'a' * 78}…: is too long"),
        (InvalidArgument("attribution.tags.team", "", "is empty"), "synod-tags.team = '': is empty"),
        (InvalidArgument("texts", 5, "give 1 to 4 texts"), "input = 5: give 1 to 4 texts"),
        (InvalidArgument("texts[3]", "", "must not be empty"), "input[3] = '': must not be empty"),
        (InvalidArgument("textsize", 5, "is wrong"), "textsize = 5: is wrong"),
    ],
)
def test_what_the_gateway_refuses_is_told_by_the_name_under_which_it_was_sent(
    error: InvalidArgument, told: str
) -> None:
    assert as_sent(error).message == told
