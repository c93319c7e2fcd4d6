"""Every adapter passes the one contract, against the simulator over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import ClassVar

import orjson
import pytest
from llm_gateway import retrying
from llm_gateway.domain import Audio, Message, ModelRequest, Part, Text, ToolCall, UsageLine, Vector
from llm_gateway.errors import (
    AuthenticationRejected,
    MalformedResponse,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderUnreachable,
    RequestRejected,
    UnsupportedParameter,
)
from llm_gateway.providers import catalog
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.http import Endpoint, HttpProvider
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.providers.profile import CapabilityProfile
from llm_gateway.providers.provider import Provider
from llm_gateway.providers.testing import ProviderContract, asked, collect, in_time
from llm_gateway.providers.transport import Transport, TransportLimits, open_session
from llm_gateway.retrying import billed
from provider_simulator.faults import Fault
from provider_simulator.testing import FIXED_NOW, RunningSimulator

CLOSED_PORT_ORIGIN = "http://127.0.0.1:9"


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session)


@pytest.fixture
async def impatient_transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session, TransportLimits(idle_s=0.05))


class _HttpContract(ProviderContract):
    """`make` builds the adapter under test for an origin."""

    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        raise AssertionError("a subclass makes the provider")

    @pytest.fixture
    def provider(self, transport: Transport, simulator: RunningSimulator) -> Provider:
        return self.make(transport, simulator.origin)

    @pytest.fixture
    def impatient_provider(self, impatient_transport: Transport, simulator: RunningSimulator) -> Provider:
        return self.make(impatient_transport, simulator.origin)

    @pytest.fixture
    def unreachable_provider(self, transport: Transport) -> Provider:
        return self.make(transport, CLOSED_PORT_ORIGIN)


class TestOpenAi(_HttpContract):
    counts = False

    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        return catalog.openai(transport, lambda: FIXED_NOW, "key", f"{origin}/v1")


class TestAnthropic(_HttpContract):
    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        return catalog.anthropic(transport, lambda: FIXED_NOW, "key", origin)

    async def test_what_stands_before_a_breakpoint_is_written_to_the_cache_and_read_by_the_next(
        self, provider: Provider
    ) -> None:
        plain = asked("answer: done")
        told, said = plain.messages
        kept = replace(told, parts=(Text("answer: done", "1h"),))
        request = replace(plain, messages=(kept, said), tools=())
        first, second = [await provider.generate(request, in_time()) for _ in range(2)]

        assert first.usage is not None
        assert second.usage is not None
        question = UsageLine("input", 7)
        assert set(first.usage.lines) - {UsageLine("output", 1)} == {
            question,
            UsageLine("input", 6, cache="write", ttl="1h"),
        }
        assert set(second.usage.lines) - {UsageLine("output", 1)} == {question, UsageLine("input", 6, cache="read")}


class TestOpenAiResponses(_HttpContract):
    stops = False

    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        return catalog.openai_responses(transport, lambda: FIXED_NOW, "key", f"{origin}/v1")


class TestGoogle(_HttpContract):
    not_taken: ClassVar = {"service_tier": "flex"}

    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        return catalog.google(transport, lambda: FIXED_NOW, "key", origin)


class TestOllama(_HttpContract):
    counts = False

    @staticmethod
    def make(transport: Transport, origin: str) -> Provider:
        return catalog.ollama(transport, lambda: FIXED_NOW, f"{origin}/v1")


async def test_a_rejecting_profile_sends_nothing(transport: Transport, simulator: RunningSimulator) -> None:
    strict = CapabilityProfile(parameters=frozenset(), output_formats=frozenset({"text"}), unsupported="reject")
    endpoint = Endpoint("strict", simulator.openai_base_url, "key", catalog.OPENAI, profiles={"sim-1": strict})
    provider = HttpProvider(endpoint, OpenAiChatDialect(), transport, lambda: FIXED_NOW)

    with pytest.raises(UnsupportedParameter, match="sim-1 does not support temperature"):
        await provider.generate(_warm(), in_time())
    assert simulator.usage.total().requests == 0


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (Audio("audio/wav", b"x"), "does not support audio"),
        (ToolCall("1", "f", "nope"), "no JSON"),
        # What the wire format has no place for, though nothing of it should come this far.
        (Vector(b"0000"), "cannot be written as anthropic-messages"),
    ],
)
async def test_what_cannot_be_written_was_never_sent(transport: Transport, part: Part, problem: str) -> None:
    provider = catalog.anthropic(transport, lambda: FIXED_NOW, "key", "http://127.0.0.1:1")
    request = ModelRequest("m", (Message("assistant", (part,)),), max_output_tokens=9)
    asked = (
        lambda: provider.generate(request, in_time()),
        lambda: provider.count_tokens(request, in_time()),
        lambda: anext(provider.stream(request, in_time())),
    )
    for ask in asked:
        with pytest.raises((RequestRejected, UnsupportedParameter), match=problem) as caught:
            await ask()
        assert (caught.value.dispatched, billed(caught.value)) == (False, "no")


async def test_an_endpoint_does_not_show_its_key() -> None:
    assert "secret" not in repr(Endpoint("openai", "http://x", "secret", catalog.OPENAI))


@pytest.mark.parametrize(
    ("content_type", "body", "problem"),
    [
        ("application/json", b"{}", "the answer cannot be read"),
        ("application/json", b"[]", "the answer cannot be read"),
        ("text/html", b"hmm!", "the answer cannot be read"),
        ("text/event-stream", b"data: nope\n\n", "an event of the stream cannot be read"),
        ("text/event-stream", b"data: []\n\n", "an event of the stream cannot be read"),
    ],
)
@pytest.mark.parametrize("dialect", [OpenAiChatDialect(), AnthropicMessagesDialect()], ids=lambda one: one.name)
async def test_an_answer_off_the_wire_format_is_malformed(
    transport: Transport, dialect: Dialect, content_type: str, body: bytes, problem: str
) -> None:
    async with _server_of(_answer(content_type, body)) as origin:
        provider = HttpProvider(Endpoint("odd", origin, "", catalog.OPENAI), dialect, transport, lambda: FIXED_NOW)
        with pytest.raises(MalformedResponse, match=problem):
            await collect(provider, asked())


async def test_a_whole_answer_where_a_stream_was_asked_for_is_malformed(transport: Transport) -> None:
    message = b'{"id":"1","model":"m","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    async with _server_of(_answer("application/json", message)) as origin:
        provider = catalog.ollama(transport, lambda: FIXED_NOW, origin)
        with pytest.raises(MalformedResponse, match="a stream was asked for and a whole answer came"):
            await collect(provider, asked())


async def test_a_body_above_the_limit_is_malformed() -> None:
    async with open_session() as session, _server_of(_answer("application/json", b" " * 2000)) as origin:
        transport = Transport(session, TransportLimits(body_bytes_max=1000))
        provider = HttpProvider(
            Endpoint("big", origin, "", catalog.OPENAI), OpenAiChatDialect(), transport, lambda: FIXED_NOW
        )
        with pytest.raises(MalformedResponse, match="larger than 1000 bytes"):
            await provider.generate(asked(), in_time())


STARTED_ANSWER = {"id": "r", "model": "m", "content": [], "usage": {"input_tokens": 90_000, "output_tokens": 1}}
FAILED_ANSWER = {
    "id": "r",
    "model": "m",
    "status": "failed",
    "error": {"code": "rate_limit_exceeded", "message": "slow down"},
    "usage": {"input_tokens": 90_000, "output_tokens": 5000},
}
THOUGHTS = {"promptTokenCount": 90_000, "thoughtsTokenCount": 3000}


@pytest.mark.parametrize(
    ("dialect", "events", "error"),
    [
        (
            AnthropicMessagesDialect(),
            (
                {"type": "message_start", "message": STARTED_ANSWER},
                {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
            ),
            ProviderOverloaded,
        ),
        (
            AnthropicMessagesDialect(),
            ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},),
            ProviderOverloaded,
        ),
        (
            OpenAiResponsesDialect(),
            (
                {"type": "response.created", "response": {"id": "r", "model": "m"}},
                {"type": "response.failed", "response": FAILED_ANSWER},
            ),
            ProviderRateLimited,
        ),
        (
            OpenAiChatDialect(),
            (
                {"id": "r", "model": "m", "choices": [], "usage": {"prompt_tokens": 90_000}},
                {"error": {"type": "rate_limit_error", "message": "slow down"}},
            ),
            ProviderRateLimited,
        ),
        (
            GeminiGenerateDialect(),
            (
                {"responseId": "r", "modelVersion": "m", "usageMetadata": THOUGHTS},
                {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down"}},
            ),
            ProviderRateLimited,
        ),
    ],
)
async def test_group_08_an_error_inside_a_stream_is_retried_as_its_kind_and_proves_nothing_unbilled(
    transport: Transport, dialect: Dialect, events: tuple[object, ...], error: type[ProviderError]
) -> None:
    body = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    async with _server_of(_answer("text/event-stream", body)) as origin:
        provider = HttpProvider(Endpoint("odd", origin, "", catalog.OPENAI), dialect, transport, lambda: FIXED_NOW)
        with pytest.raises(error) as caught:
            await collect(provider, asked())

    assert not caught.value.content_delivered
    assert retrying.billed(caught.value) == "unknown"


def _warm() -> ModelRequest:
    return replace(asked("answer: ok"), temperature=0.5)


def _answer(content_type: str, body: bytes) -> bytes:
    lines = ("HTTP/1.1 200 OK", "Connection: close", f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


@asynccontextmanager
async def _server_of(answer: bytes) -> AsyncIterator[str]:
    """A server that gives the same bytes to every request and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_key_that_a_server_quotes_does_not_get_into_the_error(
    transport: Transport, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(status=401, message="no such key: sk-secret"))
    provider = catalog.openai(transport, lambda: FIXED_NOW, "sk-secret", simulator.openai_base_url)

    with pytest.raises(AuthenticationRejected) as caught:
        await provider.generate(asked(), in_time())

    assert "no such key: ***" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


async def test_a_refused_connection_is_known_never_to_have_been_asked(transport: Transport) -> None:
    provider = catalog.openai(transport, lambda: FIXED_NOW, "key", CLOSED_PORT_ORIGIN)

    with pytest.raises(ProviderUnreachable) as caught:
        await provider.generate(asked(), in_time())

    assert not caught.value.dispatched


@pytest.mark.parametrize(("model", "warned"), [("gpt-5-mini", True), ("o3-2025-04-16", True), ("gpt-4o", False)])
async def test_models_of_openai_that_reason_are_not_told_how_to_sample(model: str, warned: bool) -> None:
    families = catalog.OPENAI_FAMILIES
    profile = Endpoint("openai", "http://127.0.0.1", "key", catalog.OPENAI, families).profile_of(model)

    assert ("temperature" not in profile.parameters) == warned
