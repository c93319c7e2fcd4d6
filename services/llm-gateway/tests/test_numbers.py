"""Tool arguments and results with integers beyond 64 bits, as amounts of some currencies are: the same in and out."""

from collections.abc import Callable

import pytest
from llm_gateway.counting import request_bound
from llm_gateway.domain import (
    Completed,
    Message,
    ModelRequest,
    ModelResponse,
    Text,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from llm_gateway.providers import (
    anthropic_messages_request,
    gemini_generate_request,
    openai_chat_request,
    openai_responses_request,
)
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.openai_chat_request import ChatWire
from llm_gateway.providers.sse import SseEvent
from llm_gateway.translate import to_model_request
from servicekit import numbers
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

WEI = "123456789012345678901234567"
ARGUMENTS = f'{{"wei":{WEI},"to":"größe"}}'
CLAUDE = (
    f'{{"id":"m1","model":"c","stop_reason":"tool_use","content":[{{"type":"tool_use","id":"t1","name":"pay","input":{ARGUMENTS}}},'
    f'{{"type":"web_result","amount":{WEI}}}]}}'
)
STREAMED = (
    '{"type":"message_start","message":{"id":"m1","model":"c"}}',
    f'{{"type":"content_block_start","index":0,"content_block":{{"type":"tool_use","id":"t1","name":"pay","input":{ARGUMENTS}}}}}',
    '{"type":"content_block_stop","index":0}',
)
GEMINI = (
    '{"responseId":"r1","modelVersion":"g","candidates":[{"content":{"parts":[{"functionCall":'
    f'{{"id":"t1","name":"pay","args":{ARGUMENTS}}}}}]}},"finishReason":"STOP"}}]}}'
)
REQUEST = ModelRequest(
    "m",
    (
        Message("user", (Text("pay"),)),
        Message("assistant", (ToolCall("t1", "pay", ARGUMENTS),)),
        Message("tool", (ToolResult("t1", f'{{"left":{WEI}}}'),)),
        Message("assistant", (ToolCall("t2", "pay", ""),)),
        Message("tool", (ToolResult("t2", WEI),)),
    ),
    max_output_tokens=9,
)


def arguments(response: ModelResponse) -> str:
    return response.message.tool_calls[0].arguments


def test_an_answer_says_the_number_that_the_model_wrote() -> None:
    assert arguments(AnthropicMessagesDialect().decode(CLAUDE.encode())) == ARGUMENTS
    assert arguments(GeminiGenerateDialect().decode(GEMINI.encode())) == ARGUMENTS
    assembler = AnthropicMessagesDialect().assembler()
    for event in STREAMED:
        said = assembler.feed(SseEvent(b"", event.encode()))
    assert said == [ToolCallDelta(0, "", "", ARGUMENTS)]
    *_, last = GeminiGenerateDialect().assembler().feed(SseEvent(b"", GEMINI.encode()))
    assert isinstance(last, Completed)
    assert arguments(last.response) == ARGUMENTS


@pytest.mark.parametrize(
    "body",
    [anthropic_messages_request.encode(REQUEST, stream=False), gemini_generate_request.encode(REQUEST)],
    ids=["anthropic", "gemini"],
)
def test_what_goes_back_says_it_too(body: bytes) -> None:
    assert body.count(WEI.encode()) == 3
    assert numbers.dumps(numbers.loads(body)) == body


SCHEMA = {"type": "object", "properties": {"wei": {"type": "integer", "maximum": int(WEI)}}}


@pytest.mark.parametrize(
    "encode",
    [
        lambda request: anthropic_messages_request.encode(request, stream=False),
        gemini_generate_request.encode,
        lambda request: openai_chat_request.encode(request, ChatWire(), stream=False),
        lambda request: openai_responses_request.encode(request, stream=False),
    ],
    ids=["anthropic", "gemini", "chat", "responses"],
)
def test_a_schema_says_the_number_that_the_caller_wrote(encode: Callable[[ModelRequest], bytes]) -> None:
    schema = numbers.dumps(SCHEMA).decode()
    asked = pb.GenerateRequest(
        request_id="r",
        model="m",
        messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="pay")])],
        tools=[pb.Tool(name="pay", parameters_json=schema)],
        output_format=pb.OutputFormat(kind="json_schema", json_schema=schema),
    )
    request = to_model_request(asked)
    assert encode(request).count(f'"maximum":{WEI}'.encode()) == 2
    assert request_bound(request) > 0
