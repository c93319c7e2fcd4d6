"""How much a body may hold is looked at before each part of it costs anything."""

import json

import pytest
from httpedge.compatible.anthropic_messages import AnthropicMessages
from httpedge.compatible.openai_chat import OpenAiChat
from httpedge.compatible.openai_responses import OpenAiResponses
from httpedge.compatible.sizes import MESSAGES_MAX, PARTS_MAX, TOOLS_MAX, VALUES_MAX, check_size
from servicekit.errors import InvalidArgument

TEXT = {"type": "text", "text": "x"}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [TEXT] * 100}
CALL = {"id": "c", "function": {"name": "f"}}


def bytes_of(**fields: object) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


def said(*content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (bytes_of(messages=[said(*[TEXT] * 450_000)]), f"messages = 450000: holds too many parts of content; give at most {PARTS_MAX}"),
        (bytes_of(messages=[said(TEXT, TEXT)] * (PARTS_MAX // 2 + 1)), f"messages = {PARTS_MAX + 2}: holds too many parts"),
        (bytes_of(messages=[said(*[RESULT] * 101)]), "messages = 10001: holds too many parts"),
        (bytes_of(messages=[{"role": "assistant", "tool_calls": [CALL] * 10_001}]), "messages = 10001: holds too many parts"),
        (bytes_of(input=[said(*[TEXT] * 10_001)]), "input = 10001: holds too many parts"),
        (bytes_of(messages=[], system=[{"content": [TEXT] * 10_001}]), "system = 10001: holds too many parts"),
        (bytes_of(messages=[said()] * (MESSAGES_MAX + 1)), f"messages = {MESSAGES_MAX + 1}: holds too many; give at most {MESSAGES_MAX}"),
        (bytes_of(input=["x"] * (MESSAGES_MAX + 1)), "input = 10001: holds too many"),
        (bytes_of(stop=[0] * (MESSAGES_MAX + 1)), "stop = 10001: holds too many"),
        (bytes_of(tools=[{"name": "f"}] * 150_000), f"tools = 150000: holds too many; give at most {TOOLS_MAX}"),
        (bytes_of(metadata={"a": [0] * VALUES_MAX}), 'body = {"model": "m", "metadata": {"a": [0, 0'),
    ],
)  # fmt: skip
def test_a_body_that_holds_too_much_is_refused_before_it_is_validated(body: bytes, told: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_size(body)
    assert refused.value.message.startswith(told)


@pytest.mark.parametrize("dialect", [OpenAiChat(), OpenAiResponses(), AnthropicMessages()])
def test_every_dialect_looks_first(dialect: OpenAiChat | OpenAiResponses | AnthropicMessages) -> None:
    with pytest.raises(InvalidArgument, match="holds too many parts"):
        dialect.parse(bytes_of(messages=[said(*[0] * 10_001)]), "req_1", 0)


def test_as_much_as_is_allowed_is_taken() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
    body = bytes_of(messages=[said(TEXT)] * PARTS_MAX, tools=[tool] * TOOLS_MAX)
    asked = OpenAiChat().parse(body, "req_1", 0)
    assert (len(asked.request.messages), len(asked.request.tools)) == (PARTS_MAX, TOOLS_MAX)


@pytest.mark.parametrize("body", [b"{" * 20_000, b"," * 20_000, b"[" * 20_000 + b"]" * 20_000])
def test_what_is_no_json_is_left_to_who_reads_it(body: bytes) -> None:
    check_size(body)
    with pytest.raises(InvalidArgument) as refused:
        OpenAiChat().parse(body, "req_1", 0)
    assert refused.value.field == "body"
