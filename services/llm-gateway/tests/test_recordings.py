"""One recorded byte stream through the provider's SDK and through our parser gives equal results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message as AnthropicMessage
from llm_gateway.domain import (
    Completed,
    ModelResponse,
    Opaque,
    Reasoning,
    ReasoningDelta,
    Refusal,
    StreamPart,
    TextDelta,
    ToolCallDelta,
)
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.providers.sse import SseParser
from openai import AsyncOpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

RECORDINGS = Path(__file__).parent / "recordings"
OPENAI = sorted((RECORDINGS / "openai-chat").glob("*.sse"))
ANTHROPIC = sorted((RECORDINGS / "anthropic-messages").glob("*.sse"))
RESPONSES = sorted((RECORDINGS / "openai-responses").glob("*.sse"))
GEMINI = sorted((RECORDINGS / "gemini-generate").glob("*.sse"))
DIALECTS: Mapping[str, type[Dialect]] = {
    "openai-chat": OpenAiChatDialect,
    "openai-responses": OpenAiResponsesDialect,
    "anthropic-messages": AnthropicMessagesDialect,
    "gemini-generate": GeminiGenerateDialect,
}
each_recording = pytest.mark.parametrize(
    "recording",
    [*OPENAI, *RESPONSES, *ANTHROPIC, *GEMINI],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)


def dialect_of(recording: Path) -> Dialect:
    return DIALECTS[recording.parent.name]()


@dataclass(frozen=True)
class Seen:
    """What both readers must agree on. Tool arguments are compared as values, opaque blocks as what they say."""

    id: str
    model: str
    finish: str
    text: str
    refusal: str
    calls: list[tuple[str, str, object]]
    blocks: list[object]
    tokens: dict[str, int]


def read_ours(dialect: Dialect, content: bytes, chunk_bytes: int) -> list[StreamPart]:
    parser, assembler = SseParser(), dialect.assembler()
    chunks = (content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes))
    return [part for chunk in chunks for event in parser.feed(chunk) for part in assembler.feed(event)]


def completed(parts: Sequence[StreamPart]) -> ModelResponse:
    assert isinstance(parts[-1], Completed)
    return parts[-1].response


def ours(response: ModelResponse) -> Seen:
    parts = response.message.parts
    lines = response.usage.lines if response.usage else ()
    return Seen(
        id=response.provider_response_id,
        model=response.model,
        finish=response.raw_finish_reason,
        text=response.message.text,
        refusal="".join(part.text for part in parts if isinstance(part, Refusal)),
        calls=[(call.id, call.name, call.parsed()) for call in response.message.tool_calls],
        blocks=[json.loads(part.payload) for part in parts if isinstance(part, Reasoning | Opaque)],
        tokens={
            "input": response.usage.input_tokens if response.usage else 0,
            "output": response.usage.output_tokens if response.usage else 0,
            "read": sum(line.quantity for line in lines if line.cache == "read"),
            "write": sum(line.quantity for line in lines if line.cache == "write"),
            "reasoning": sum(line.quantity for line in lines if line.reasoning),
        },
    )


def openai_sdks(completion: ChatCompletion) -> Seen:
    message, usage = completion.choices[0].message, completion.usage
    into, out = usage and usage.prompt_tokens_details, usage and usage.completion_tokens_details
    calls = [call for call in message.tool_calls or [] if call.type == "function"]
    return Seen(
        id=completion.id,
        model=completion.model,
        finish=completion.choices[0].finish_reason,
        text=message.content or "",
        refusal=message.refusal or "",
        calls=[(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls],
        blocks=[],
        tokens={
            "input": usage.prompt_tokens if usage else 0,
            "output": usage.completion_tokens if usage else 0,
            "read": (into and into.cached_tokens) or 0,
            "write": (into and into.cache_write_tokens) or 0,
            "reasoning": (out and out.reasoning_tokens) or 0,
        },
    )


def anthropic_sdks(message: AnthropicMessage) -> Seen:
    usage = message.usage
    read, write = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    known = {"text", "tool_use"}
    return Seen(
        id=message.id,
        model=message.model,
        finish=message.stop_reason or "",
        text="".join(block.text for block in message.content if block.type == "text"),
        refusal=(message.stop_details and message.stop_details.explanation) or "",
        calls=[(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"],
        blocks=[block.model_dump(exclude_unset=True) for block in message.content if block.type not in known],
        tokens={
            "input": usage.input_tokens + read + write,
            "output": usage.output_tokens,
            "read": read,
            "write": write,
            "reasoning": (usage.output_tokens_details and usage.output_tokens_details.thinking_tokens) or 0,
        },
    )


def responses_sdks(response: Response) -> Seen:
    usage = response.usage
    into, out = usage and usage.input_tokens_details, usage and usage.output_tokens_details
    said = [content for item in response.output if item.type == "message" for content in item.content]
    calls = [item for item in response.output if item.type == "function_call"]
    details = response.incomplete_details
    return Seen(
        id=response.id,
        model=response.model,
        finish=(details and details.reason) or response.status or "",
        text=response.output_text,
        refusal="".join(content.refusal for content in said if content.type == "refusal"),
        calls=[(call.call_id, call.name, json.loads(call.arguments)) for call in calls],
        blocks=[item.model_dump(exclude_unset=True) for item in response.output if item.type == "reasoning"],
        tokens={
            "input": usage.input_tokens if usage else 0,
            "output": usage.output_tokens if usage else 0,
            "read": (into and into.cached_tokens) or 0,
            "write": (into and into.cache_write_tokens) or 0,
            "reasoning": (out and out.reasoning_tokens) or 0,
        },
    )


def replaying(content: bytes) -> httpx2.AsyncClient:
    headers = {"content-type": "text/event-stream"}
    return httpx2.AsyncClient(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=content, headers=headers))
    )


async def read_by_openai(content: bytes) -> Seen:
    state = ChatCompletionStreamState()
    async with AsyncOpenAI(api_key="any", max_retries=0, http_client=replaying(content)) as client:
        stream = await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "any"}], stream=True
        )
        snapshots = [chunk async for chunk in stream]
    for chunk in snapshots:
        state.handle_chunk(chunk)
    return openai_sdks(state.current_completion_snapshot)


async def read_responses_by_openai(content: bytes) -> Seen:
    async with AsyncOpenAI(api_key="any", max_retries=0, http_client=replaying(content)) as client:
        stream = await client.responses.create(model="any", input="any", stream=True)
        events = [event async for event in stream]
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    return responses_sdks(last.response)  # type: ignore[union-attr]


async def read_by_anthropic(content: bytes) -> Seen:
    async with (
        AsyncAnthropic(api_key="any", max_retries=0, http_client=replaying(content)) as client,
        client.messages.stream(model="any", max_tokens=9, messages=[{"role": "user", "content": "any"}]) as stream,
    ):
        return anthropic_sdks(await stream.get_final_message())


@pytest.mark.parametrize("recording", OPENAI, ids=lambda path: path.stem)
async def test_openai_chat_reads_as_the_openai_sdk_does(recording: Path) -> None:
    content = recording.read_bytes()

    response = completed(read_ours(OpenAiChatDialect(), content, len(content)))
    assert ours(response) == await read_by_openai(content)


@pytest.mark.parametrize("recording", RESPONSES, ids=lambda path: path.stem)
async def test_openai_responses_reads_as_the_openai_sdk_does(recording: Path) -> None:
    content = recording.read_bytes()

    response = completed(read_ours(OpenAiResponsesDialect(), content, len(content)))
    assert ours(response) == await read_responses_by_openai(content)


@pytest.mark.parametrize("recording", ANTHROPIC, ids=lambda path: path.stem)
async def test_anthropic_messages_reads_as_the_anthropic_sdk_does(recording: Path) -> None:
    content = recording.read_bytes()

    response = completed(read_ours(AnthropicMessagesDialect(), content, len(content)))
    assert ours(response) == await read_by_anthropic(content)


@each_recording
def test_the_cut_into_chunks_does_not_matter(recording: Path) -> None:
    dialect = dialect_of(recording)
    content = recording.read_bytes()
    whole = read_ours(dialect, content, len(content))

    for chunk_bytes in (1, 2, 3, 7, 64):
        assert read_ours(dialect, content, chunk_bytes) == whole


@each_recording
def test_the_deltas_make_up_the_response(recording: Path) -> None:
    dialect = dialect_of(recording)
    parts = read_ours(dialect, recording.read_bytes(), 1 << 20)
    response = completed(parts)

    assert "".join(part.text for part in parts if isinstance(part, TextDelta)) == response.message.text
    thought = "".join(part.text for part in response.message.parts if isinstance(part, Reasoning))
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == thought
    for index, call in enumerate(response.message.tool_calls):
        deltas = [part for part in parts if isinstance(part, ToolCallDelta) and part.index == index]
        assert ("".join(delta.arguments for delta in deltas) or "{}") == call.arguments


@each_recording
def test_group_08_a_recording_cut_anywhere_never_completes(recording: Path) -> None:
    dialect = dialect_of(recording)
    content = recording.read_bytes().rstrip(b"\r\n")

    for end in range(0, len(content) + 1, 11):
        assert not any(isinstance(part, Completed) for part in read_ours(dialect, content[:end], 4096))


async def test_the_recordings_are_what_the_simulator_sends() -> None:
    recorded = await _recorder().record()

    assert {path: (RECORDINGS / path).read_bytes() for path in recorded} == recorded


def _recorder() -> ModuleType:
    spec = spec_from_file_location("record", RECORDINGS / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
