"""The unmodified SDKs of OpenAI and Anthropic, pointed at Synod: one scripted session each, at either edge."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from launcher.layout import EDGE, MODELS
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod_client import Synod

from .conftest import ANTHROPIC_MODEL, LIMITED_EVERY_S, LIMITED_MODEL, RunningSystem

pytestmark = pytest.mark.system
MODEL = "simulator/sim-1"
SCRIPT = '1. call lookup with {"city": "Zürich"} and call lookup with {"city": "Łódź"}\nanswer: {{1.degrees}} degrees'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPENAI_TOOLS = [{"type": "function", "function": {"name": "lookup", "description": "Warmth.", "parameters": SCHEMA}}]
ANTHROPIC_TOOLS = [{"name": "lookup", "description": "Warmth.", "input_schema": SCHEMA}]
BROKE = "broke-project"
SETTLED_S = 10
ATTEMPTS_MAX = 3
"""Of llm-gateway at one model, by default."""


class Weather(BaseModel):
    city: str
    degrees: int


@dataclass(frozen=True)
class Edge:
    """Where a service serves /v1."""

    service: str
    url: str
    api_key: str


def edge_of(running: RunningSystem, service: str) -> Edge:
    ends = running.endpoints
    return Edge(service, {EDGE: ends.edge, MODELS: ends.models}[service], ends.api_key)


@pytest.fixture(params=[EDGE, MODELS])
def edge(request: pytest.FixtureRequest, running: RunningSystem) -> Edge:
    return edge_of(running, request.param)


@pytest.fixture
async def openai_sdk(edge: Edge) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=edge.api_key, base_url=f"{edge.url}/v1") as client:
        yield client


@pytest.fixture
async def anthropic_sdk(edge: Edge) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key=edge.api_key, base_url=edge.url) as client:
        yield client


@pytest.fixture
async def broke(synod: Synod) -> dict[str, str]:
    """Headers that name a project which may not spend anything."""
    await synod.set_budget("broke", 1, scope=ledger_pb.Attribution(project_id=BROKE))
    return {"synod-project": BROKE}


async def served(running: RunningSystem) -> int:
    """How many requests the simulator has seen."""
    return (await usage(running))["requests"]


async def usage(running: RunningSystem, model: str = "") -> dict[str, int]:
    """What the simulator has counted, in all or of one model."""
    origin = running.system.layout.simulator_url
    async with aiohttp.ClientSession() as http, http.get(f"{origin}/simulator/usage") as answer:
        told = await answer.json()
    return dict(told["models"].get(model, dict.fromkeys(told["total"], 0)) if model else told["total"])


async def answered(running: RunningSystem, edge: Edge, status: int) -> int:
    """How many requests the edge has answered so."""
    found = await metrics(running, edge.service)
    return int(found.get(("edge_requests_total", (("method", "POST"), ("status", str(status)))), 0))


Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def metrics(running: RunningSystem, service: str) -> Metrics:
    """All samples of a service, by name and labels."""
    layout = running.system.layout
    port = next(layout.http_port(each) for each in layout.services if each.name == service)
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def said(script: str, text: str = "How warm is it?") -> list[dict[str, str]]:
    return [{"role": "system", "content": script}, {"role": "user", "content": text}]


async def test_a_session_of_the_openai_sdk(openai_sdk: AsyncOpenAI) -> None:
    chat = openai_sdk.chat.completions
    plain = await chat.create(model=MODEL, messages=said("answer: {{input}}!"))
    assert plain.choices[0].message.content == "How warm is it?!"
    assert (plain.choices[0].finish_reason, plain.model) == ("stop", MODEL)
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens

    short = await chat.create(model=MODEL, messages=said("answer: one two three four"), max_completion_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("one two ", "length")

    options = {"include_usage": True}
    stream = await chat.create(model=MODEL, messages=said("answer: one two three"), stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices].count("stop") == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0

    parsed = await chat.parse(
        model=MODEL, messages=said('answer: {"city": "Zürich", "degrees": 12}'), response_format=Weather
    )
    assert parsed.choices[0].message.parsed == Weather(city="Zürich", degrees=12)

    names = {model.id async for model in openai_sdk.models.list()}
    assert MODEL in names
    assert (await openai_sdk.models.retrieve(MODEL)).owned_by == "simulator"


async def test_tools_through_the_openai_sdk(openai_sdk: AsyncOpenAI) -> None:
    chat, messages = openai_sdk.chat.completions, said(SCRIPT)
    whole = await chat.create(model=MODEL, messages=messages, tools=OPENAI_TOOLS)
    async with chat.stream(model=MODEL, messages=messages, tools=OPENAI_TOOLS) as stream:
        async for _ in stream:
            pass
        streamed = await stream.get_final_completion()

    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        assert [call.function.arguments for call in calls] == ['{"city":"Zürich"}', '{"city":"Łódź"}']
        results = [{"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 12}'} for call in calls]
        history = [*messages, answer.choices[0].message.to_dict(), *results]
        following = await chat.create(model=MODEL, messages=history, tools=OPENAI_TOOLS)
        assert following.choices[0].message.content == "12 degrees"


async def test_refusals_through_the_openai_sdk(
    running: RunningSystem, edge: Edge, openai_sdk: AsyncOpenAI, broke: dict[str, str]
) -> None:
    chat, messages = openai_sdk.chat.completions, said("answer: never")
    with pytest.raises(openai.NotFoundError) as unknown:
        await chat.create(model="simulator/sim1", messages=messages)
    assert unknown.value.code == "model_not_found"
    assert "did you mean simulator/sim-1" in str(unknown.value)

    with pytest.raises(openai.BadRequestError) as wrong:
        await chat.create(model=MODEL, messages=messages, n=2)
    assert wrong.value.param == "n"

    with pytest.raises(openai.AuthenticationError):
        await openai_sdk.with_options(api_key="syn_wrong_key").chat.completions.create(model=MODEL, messages=messages)

    before, at_edge = await served(running), await answered(running, edge, 402)
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.APIStatusError) as refused:
            await chat.create(model=MODEL, messages=messages, extra_headers=broke, **options)
        assert (refused.value.status_code, refused.value.code) == (402, "budget_exhausted")
        assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert await served(running) == before
    assert await answered(running, edge, 402) == at_edge + 2


async def test_an_answer_from_the_cache_through_the_openai_sdk(
    running: RunningSystem, edge: Edge, openai_sdk: AsyncOpenAI, synod: Synod
) -> None:
    messages = said(f"answer: kept for others at {edge.service}")
    chat, asked = openai_sdk.chat.completions, {"model": MODEL, "messages": messages}
    first = await chat.with_raw_response.create(**asked, extra_headers={"x-synod-cache": "on"})
    before = await served(running)
    second = await chat.with_raw_response.create(**asked, extra_body={"synod_cache": {"mode": "on"}})

    assert [first.headers["x-synod-cache"], second.headers["x-synod-cache"]] == ["miss", "hit"]
    assert first.parse().choices == second.parse().choices
    assert await served(running) == before


async def test_responses_through_the_openai_sdk(
    running: RunningSystem, openai_sdk: AsyncOpenAI, broke: dict[str, str]
) -> None:
    responses, tools = openai_sdk.responses, [{"type": "function", **OPENAI_TOOLS[0]["function"]}]
    plain = await responses.create(model=MODEL, instructions="answer: {{input}}!", input="How warm is it?")
    assert (plain.output_text, plain.status, plain.model) == ("How warm is it?!", "completed", MODEL)
    assert plain.usage.total_tokens == plain.usage.input_tokens + plain.usage.output_tokens > 0

    short = await responses.create(model=MODEL, instructions="answer: one two three", input="x", max_output_tokens=2)
    assert (short.output_text, short.incomplete_details.reason) == ("one two ", "max_output_tokens")

    asked = {"model": MODEL, "instructions": SCRIPT, "tools": tools}
    whole = await responses.create(input="How warm is it?", **asked)
    async with responses.stream(input="How warm is it?", **asked) as stream:
        types = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    for answer in (whole, streamed):
        assert [call.arguments for call in answer.output] == ['{"city":"Zürich"}', '{"city":"Łódź"}']
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 12}'}
            for call in answer.output
        ]
        history = [{"role": "user", "content": "How warm is it?"}, *answer.output, *results]
        assert (await responses.create(input=history, **asked)).output_text == "12 degrees"

    parsed = await responses.parse(
        model=MODEL, instructions='answer: {"city": "Zürich", "degrees": 12}', input="x", text_format=Weather
    )
    assert parsed.output_parsed == Weather(city="Zürich", degrees=12)
    assert (await responses.input_tokens.count(model=MODEL, input="How warm is it?")).input_tokens > 0

    with pytest.raises(openai.BadRequestError, match="send the whole input"):
        await responses.create(model=MODEL, input="x", previous_response_id=plain.id)
    before = await served(running)
    with pytest.raises(openai.APIStatusError) as refused:
        await responses.create(model=MODEL, input="x", extra_headers=broke)
    assert (refused.value.status_code, await served(running)) == (402, before)


async def test_embeddings_through_the_openai_sdk(
    running: RunningSystem, openai_sdk: AsyncOpenAI, broke: dict[str, str]
) -> None:
    model, texts = "simulator/sim-embed", ["the same words", "other", "the same words"]
    packed = await openai_sdk.embeddings.create(model=model, input=texts)
    plain = await openai_sdk.embeddings.create(model=model, input=texts, encoding_format="float", dimensions=16)

    assert packed.data[0].embedding == packed.data[2].embedding != packed.data[1].embedding
    assert [len(one.embedding) for one in (*packed.data, *plain.data)] == [256] * 3 + [16] * 3
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0

    before = await served(running)
    with pytest.raises(openai.APIStatusError) as refused:
        await openai_sdk.embeddings.create(model=model, input="x", extra_headers=broke)
    assert (refused.value.status_code, await served(running)) == (402, before)


async def test_a_session_of_the_anthropic_sdk(anthropic_sdk: AsyncAnthropic) -> None:
    asked = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "How warm is it?"}]}
    plain = await anthropic_sdk.messages.create(system="answer: {{input}}!", **asked)
    assert plain.content[0].text == "How warm is it?!"
    assert (plain.stop_reason, plain.model) == ("end_turn", MODEL)

    short = await anthropic_sdk.messages.create(system="answer: one two three", **(asked | {"max_tokens": 2}))
    assert (short.content[0].text, short.stop_reason) == ("one two ", "max_tokens")

    async with anthropic_sdk.messages.stream(system="answer: one two three", **asked) as stream:
        events = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert (events[0], events[-1], events.count("message_stop")) == ("message_start", "message_stop", 1)
    assert streamed.content[0].text == "one two three"
    assert streamed.stop_reason == "end_turn"
    assert min(streamed.usage.input_tokens, streamed.usage.output_tokens) > 0

    parsed = await anthropic_sdk.messages.parse(
        system='answer: {"city": "Zürich", "degrees": 12}', output_format=Weather, **asked
    )
    assert parsed.parsed_output == Weather(city="Zürich", degrees=12)

    counted = await anthropic_sdk.messages.count_tokens(model=MODEL, messages=asked["messages"], system="answer: x")
    assert counted.input_tokens > 0
    models = [model.id async for model in anthropic_sdk.models.list()]
    assert MODEL in models


async def test_tools_through_the_anthropic_sdk(anthropic_sdk: AsyncAnthropic) -> None:
    messages = [{"role": "user", "content": "How warm is it?"}]
    asked = {"model": MODEL, "max_tokens": 100, "system": SCRIPT, "tools": ANTHROPIC_TOOLS}
    whole = await anthropic_sdk.messages.create(messages=messages, **asked)
    async with anthropic_sdk.messages.stream(messages=messages, **asked) as stream:
        streamed = await stream.get_final_message()

    for answer in (whole, streamed):
        assert answer.stop_reason == "tool_use"
        assert [block.input for block in answer.content] == [{"city": "Zürich"}, {"city": "Łódź"}]
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": '{"degrees": 12}'} for block in answer.content
        ]
        history = [
            *messages,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": results},
        ]
        following = await anthropic_sdk.messages.create(messages=history, **asked)
        assert following.content[0].text == "12 degrees"


async def test_what_the_anthropic_sdk_has_cached_is_read_again_and_charged_as_read(
    edge: Edge, anthropic_sdk: AsyncAnthropic, synod: Synod
) -> None:
    provider, _, name = ANTHROPIC_MODEL.partition("/")
    pico = {"input": 3_000_000, "output": 15_000_000, "read": 300_000, "write": 3_750_000}
    await synod.set_price(
        provider,
        name,
        pico["input"],
        pico["output"],
        cache_read_pico_usd=pico["read"],
        cache_write_pico_usd=pico["write"],
    )
    text = f"answer: yes\n{edge.service}: " + "A prompt that is worth keeping. " * 20
    asked = {
        "model": ANTHROPIC_MODEL,
        "max_tokens": 9,
        "system": [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": "Is it?"}],
        "extra_headers": {"synod-tags": f"case={edge.service}"},
    }
    written, read = [(await anthropic_sdk.messages.create(**asked)).usage for _ in range(2)]
    kept = written.cache_creation_input_tokens
    assert (kept > 100, written.cache_read_input_tokens) == (True, 0)
    assert (read.cache_read_input_tokens, read.cache_creation_input_tokens) == (kept, 0)

    rest = read.input_tokens * pico["input"] + read.output_tokens * pico["output"]
    costs = [(kept * rate + rest) // 1000 for rate in (pico["write"], pico["read"])]
    assert await charged(synod, {"case": edge.service}, calls=2) == costs


async def charged(synod: Synod, tags: dict[str, str], calls: int) -> list[int]:
    """What so many calls cost, in nano-USD and in their order, once the ledger has the outcome of each."""
    request = ledger_pb.ExportSpendRequest(filter=ledger_pb.Attribution(tags=tags))
    async with asyncio.timeout(SETTLED_S):
        while True:
            found = [charge.cost_nano_usd async for charge in synod.export_spend(request)]
            if len(found) >= calls and all(found):
                return found


async def test_refusals_through_the_anthropic_sdk(
    running: RunningSystem, edge: Edge, anthropic_sdk: AsyncAnthropic, broke: dict[str, str]
) -> None:
    asked = {"max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}], "system": "answer: never"}
    with pytest.raises(anthropic.NotFoundError, match="did you mean simulator/sim-1"):
        await anthropic_sdk.messages.create(model="simulator/sim1", **asked)
    with pytest.raises(anthropic.AuthenticationError):
        await anthropic_sdk.with_options(api_key="syn_wrong_key").messages.create(model=MODEL, **asked)

    before, at_edge = await served(running), await answered(running, edge, 402)
    with pytest.raises(anthropic.PaymentRequiredError) as refused:
        await anthropic_sdk.messages.create(model=MODEL, extra_headers=broke, **asked)
    assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert await served(running) == before
    assert await answered(running, edge, 402) == at_edge + 1


# --- rate limits: the SDKs wait as long as they are told, and ask again ---


@dataclass
class Heard:
    """The answers that an SDK got, each with its status, when it is to be repeated and when it came, in seconds."""

    statuses: list[int] = field(default_factory=list)
    after_s: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    async def note(self, response: object) -> None:
        self.statuses.append(response.status_code)  # type: ignore[attr-defined]
        self.after_s.append(float(response.headers.get("retry-after-ms", "0")) / 1000)  # type: ignore[attr-defined]
        self.at.append(asyncio.get_running_loop().time())

    def hooks(self) -> dict[str, list[Callable[[object], Awaitable[None]]]]:
        return {"response": [self.note]}


Ask = Callable[[str, Heard], Awaitable[str]]


def by_openai(edge: Edge, **headers: str) -> Ask:
    async def ask(model: str, heard: Heard) -> str:
        transport = openai.DefaultAsyncHttpxClient(event_hooks=heard.hooks())
        async with AsyncOpenAI(api_key=edge.api_key, base_url=f"{edge.url}/v1", http_client=transport) as client:
            made = client.chat.completions.create(
                model=model, messages=said("answer: at last"), extra_headers=headers, max_completion_tokens=9
            )
            return str((await made).choices[0].message.content)

    return ask


def by_anthropic(edge: Edge, **headers: str) -> Ask:
    async def ask(model: str, heard: Heard) -> str:
        transport = anthropic.DefaultAsyncHttpxClient(event_hooks=heard.hooks())
        async with AsyncAnthropic(api_key=edge.api_key, base_url=edge.url, http_client=transport) as client:
            user = [{"role": "user", "content": "How warm is it?"}]
            made = client.messages.create(
                model=model, max_tokens=9, messages=user, system="answer: at last", extra_headers=headers
            )
            return str((await made).content[0].text)

    return ask


@pytest.mark.parametrize("sdk", [by_openai, by_anthropic])
async def test_a_providers_rate_limit_is_repeated_by_the_sdk_when_it_says_so(
    running: RunningSystem, edge: Edge, sdk: Callable[[Edge], Ask]
) -> None:
    """Three attempts of the gateway are refused by the provider, and with them the call; the SDK's second one is not."""
    origin, heard = running.system.layout.simulator_url, Heard()
    model, fault = "sim-1", {"status": 429, "headers": {"retry-after-ms": "300"}}
    before, at_edge = await usage(running, model), await answered(running, edge, 429)
    async with aiohttp.ClientSession() as http:
        planned = {"fault": fault, "requests": ATTEMPTS_MAX, "model": model}
        async with http.post(f"{origin}/simulator/faults", json=planned) as response:
            assert response.status == 201

    assert await sdk(edge)(MODEL, heard) == "at last"
    assert heard.statuses == [429, 200]
    assert heard.at[1] - heard.at[0] >= heard.after_s[0] == 0.3
    after = await usage(running, model)
    assert (after["failed"] - before["failed"], after["answered"] - before["answered"]) == (ATTEMPTS_MAX, 1)
    assert await answered(running, edge, 429) == at_edge + 1


async def test_a_rate_limit_of_synod_is_repeated_by_both_sdks_when_it_says_so(running: RunningSystem) -> None:
    """Who would not wait for room within the limit is told how long that would be; the provider is not asked until then."""
    doors = [edge_of(running, service) for service in (EDGE, MODELS)]
    patience = {"x-stainless-read-timeout": str(LIMITED_EVERY_S / 2)}
    model = LIMITED_MODEL.partition("/")[2]
    before, refused = await usage(running, model), [await answered(running, each, 429) for each in doors]
    assert await by_openai(doors[0])(LIMITED_MODEL, Heard()) == "at last"

    for ask in (by_anthropic(doors[0], **patience), by_openai(doors[1], **patience)):
        heard = Heard()
        assert await ask(LIMITED_MODEL, heard) == "at last"
        assert heard.statuses == [429, 200]
        assert heard.at[1] - heard.at[0] >= heard.after_s[0] > LIMITED_EVERY_S / 2
    after = await usage(running, model)
    assert (after["requests"] - before["requests"], after["answered"] - before["answered"]) == (3, 3)
    assert [await answered(running, each, 429) for each in doors] == [count + 1 for count in refused]
