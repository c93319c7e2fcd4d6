"""One recorded byte stream through the provider's SDK and through our parser gives equal results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message as AnthropicMessage
from httpedge.compatible.anthropic_messages import AnthropicMessages
from httpedge.compatible.dialect import Dialect as EdgeDialect
from httpedge.compatible.openai_chat import OpenAiChat
from httpedge.compatible.openai_responses import OpenAiResponses
from llm_gateway import caching, translate
from llm_gateway.domain import (
    Answer,
    Completed,
    Message,
    ModelResponse,
    Opaque,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Refusal,
    Started,
    StreamPart,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageUpdated,
)
from llm_gateway.flight import Began, CallEvent
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.providers.sse import SseParser
from openai import AsyncOpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.responses import Response
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

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
        assert "".join(delta.arguments for delta in deltas) == call.arguments


@each_recording
def test_a_stream_tells_of_reasoning_where_it_stands_in_the_answer(recording: Path) -> None:
    parts = read_ours(dialect_of(recording), recording.read_bytes(), 1 << 20)
    message = completed(parts).message

    assert [part.part for part in parts if isinstance(part, ReasoningDone)] == reasoning_of(message)
    assert order(part for part in parts if is_shown(part)) == order(caching.deltas_of(message))


def reasoning_of(message: Message) -> list[Reasoning | Opaque]:
    return [part for part in message.parts if isinstance(part, Reasoning | Opaque)]


def is_shown(part: StreamPart) -> bool:
    return not isinstance(part, Started | UsageUpdated | Completed)


def order(parts: Iterable[StreamPart]) -> list[object]:
    """What comes after what: of pieces in a row the first. Calls go by their first piece, as others' may come between."""
    found: list[object] = []
    for part in parts:
        what = part if isinstance(part, ReasoningDone) else (type(part), getattr(part, "index", 0))
        if what not in (found if isinstance(part, ToolCallDelta) else found[-1:]):
            found.append(what)
    return found


# The same answer at each edge: whole, as the stream it came as, as one from the cache, and as one on record.


@each_recording
async def test_a_message_is_the_same_whole_and_in_a_stream(recording: Path) -> None:
    """As the SDK puts it together; texts beside each other are one in a stream."""
    whole, streams = at_edge(AnthropicMessages(), recording)

    for stream in streams:
        async with (
            AsyncAnthropic(api_key="any", max_retries=0, http_client=replaying(stream)) as client,
            client.messages.stream(model="any", max_tokens=9, messages=[{"role": "user", "content": "any"}]) as read,
        ):
            message = await read.get_final_message()
        assert in_one([block.model_dump(exclude_unset=True) for block in message.content]) == in_one(whole["content"])
        stopped = [data["index"] for data in data_of(stream) if data["type"] == "content_block_stop"]
        assert sorted(stopped) == list(range(len(message.content)))


@each_recording
async def test_the_items_of_a_response_are_the_same_whole_and_in_a_stream(recording: Path) -> None:
    whole, streams = at_edge(OpenAiResponses(), recording)

    for stream in streams:
        done = [data for data in data_of(stream) if data["type"] == "response.output_item.done"]
        assert [data["output_index"] for data in done] == list(range(len(done)))
        assert in_one([data["item"] for data in done]) == in_one(whole["output"])
        assert data_of(stream)[-1]["response"]["output"] == whole["output"]


@each_recording
async def test_a_completion_is_the_same_whole_and_in_a_stream(recording: Path) -> None:
    whole, streams = at_edge(OpenAiChat(), recording)

    for stream in streams:
        state = ChatCompletionStreamState()
        async with AsyncOpenAI(api_key="any", max_retries=0, http_client=replaying(stream)) as client:
            chunks = await client.chat.completions.create(model="any", messages=[], stream=True)
            async for chunk in chunks:
                state.handle_chunk(chunk)
        message = ChatCompletion.model_validate(whole).choices[0].message
        said = state.current_completion_snapshot.choices[0].message
        assert (said.content or None, said.refusal) == (message.content, message.refusal)
        assert thought(said) == thought(message)
        assert calls_of(said) == calls_of(message)


def thought(message: ChatCompletionMessage) -> object:
    return (message.model_extra or {}).get("reasoning_content")


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, str, str]]:
    calls = [call for call in message.tool_calls or [] if call.type == "function"]
    return [(call.id, call.function.name, call.function.arguments) for call in calls]


def at_edge(edge: EdgeDialect, recording: Path) -> tuple[Mapping[str, Any], list[bytes]]:
    """The answer of a recording as a whole, and as the streams that it may come as."""
    parts = read_ours(dialect_of(recording), recording.read_bytes(), 1 << 20)
    message, answer = completed(parts).message, answered(completed(parts))
    began = Began("m", 1, "")
    told: list[list[CallEvent]] = [
        [began, *(part for part in parts if not isinstance(part, Started | UsageUpdated | Completed)), answer],
        [began, *caching.deltas_of(message), answer],
        [answer],
    ]
    words = {"messages": [{"role": "user", "content": "any"}], "max_tokens": 9}
    body = {"model": "m", "stream": True} | ({"input": "any"} if isinstance(edge, OpenAiResponses) else words)
    asked = edge.parse(json.dumps(body).encode(), "r", 1)
    streams = []
    for events in told:
        writer = edge.writer(asked)
        streams.append(b"".join(writer.write(translate.from_event(n, event)) for n, event in enumerate(events, 1)))
    return edge.whole(translate.from_answer(answer), asked), streams


def answered(response: ModelResponse) -> Answer:
    return Answer(
        request_id="r",
        message=response.message,
        finish_reason=response.finish_reason,
        usage=response.usage or Usage.of(()),
        usage_source="provider_final",
        model="m",
        provider_response_id=response.provider_response_id,
        reservation_id="",
    )


@pytest.mark.parametrize(
    ("edge", "event"),
    [(AnthropicMessages(), "content_block_start"), (OpenAiResponses(), "response.content_part.added")],
    ids=["messages", "responses"],
)
def test_an_answer_on_record_has_its_texts_apart_in_a_stream_too(edge: EdgeDialect, event: str) -> None:
    body = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "any"}]}
    if isinstance(edge, OpenAiResponses):
        body = {"model": "m", "stream": True, "input": "any"}
    texts = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="ends here."), pb.Part(text="Begins")])
    answer = pb.GenerateResponse(request_id="r", model="m", message=texts, finish_reason="stop")
    stream = edge.writer(edge.parse(json.dumps(body).encode(), "r", 1)).write(
        pb.StreamEvent(sequence=1, completed=answer)
    )
    assert [data["type"] for data in data_of(stream)].count(event) == 2


def data_of(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in SseParser().feed(stream)]


def in_one(blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Texts beside each other as one; of a message of the responses API too."""
    found: list[Mapping[str, Any]] = []
    for block in blocks:
        one = {**block, "content": in_one(block["content"])} if isinstance(block.get("content"), list) else block
        if found and one.get("type") in ("text", "output_text") and found[-1].get("type") == one["type"]:
            found[-1] = {**found[-1], "text": found[-1]["text"] + one["text"]}
        else:
            found.append(one)
    return found


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
