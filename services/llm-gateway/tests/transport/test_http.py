"""What becomes of an answer that a provider's server words strangely, from the bytes to the error the gateway acts on."""

import gzip
from collections.abc import AsyncIterator

import pytest
from llm_gateway.errors import MalformedResponse, ProviderRateLimited
from llm_gateway.providers import catalog, clouds
from llm_gateway.providers.http import HttpProvider
from llm_gateway.providers.testing import asked, collect
from llm_gateway.providers.transport import Transport, TransportLimits, open_session
from provider_simulator.testing import FIXED_NOW

from .wire import Peer, always, once, serving, soon

LIMITS = TransportLimits(refusal_s=0.05, refusal_bytes_max=100_000)
HEAD = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n"
SLOWLY = b'{"error":{"message":"slow down","type":"rate_limit_error"}}'


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session, LIMITS)


def openai(transport: Transport, origin: str) -> HttpProvider:
    return catalog.openai(transport, lambda: FIXED_NOW, "key", f"{origin}/v1")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nhi", "packed as 'br'"),
        (b"Content-Encoding: ZSTD\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "packed as 'zstd'"),
        (b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", "not packed as it says"),
        (b"Content-Length: 59\r\n\r\n" + SLOWLY[:9], '{"error":'),
        (b"Content-Length: 59\r\n\r\n" + SLOWLY, "slow down"),
        (b"Content-Length: 3\r\n\r\n\xff\xfe\xfd", "\ufffd"),
        (b"\r\n", "status 429"),
    ],
    ids=["brotli", "zstd", "no gzip", "cut", "whole", "no text", "nothing"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_counts_with_its_time_to_wait_whatever_becomes_of_its_text(
    transport: Transport, rest: bytes, says: str, stream: bool
) -> None:
    async with serving(once(HEAD + rest)) as server:
        provider = openai(transport, server.origin)
        with pytest.raises(ProviderRateLimited, match=says) as refused:
            await (collect(provider, asked("answer: ok")) if stream else provider.generate(asked("answer: ok"), soon()))
    assert (refused.value.status, refused.value.retry_after_s) == (429, 7.0)


@pytest.mark.parametrize("more", [b"", b"x" * 50_000], ids=["that stops", "without end"])
async def test_a_refusal_is_not_waited_for_beyond_its_first_words(transport: Transport, more: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD + b"\r\nenough")
        while more:
            await peer.say(more)
        await peer.gone()

    async with serving(serve) as server:
        with pytest.raises(ProviderRateLimited, match="enough") as refused:
            await openai(transport, server.origin).generate(asked("answer: ok"), soon())
        await server.left.wait() if more else None
    assert refused.value.retry_after_s == 7.0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_packed_in_a_way_nobody_asked_for_is_named(transport: Transport, stream: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi"
    async with serving(always(head)) as server:
        provider = openai(transport, server.origin)
        with pytest.raises(MalformedResponse, match="packed as 'br', which was not asked for"):
            await (collect(provider, asked("answer: ok")) if stream else provider.generate(asked("answer: ok"), soon()))


@pytest.mark.parametrize("coding", [b"br", b"gzip"])
async def test_behind_an_sdk_too(coding: bytes) -> None:
    packed = gzip.compress(SLOWLY) if coding == b"gzip" else SLOWLY
    rest = b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(packed))
    says = {b"br": "packed as 'br'", b"gzip": "slow down"}[coding]
    async with (
        serving(once(HEAD + rest + packed)) as server,
        clouds.azure_openai(
            lambda: FIXED_NOW, endpoint=server.origin, api_key="key", api_version="2026-10-01"
        ) as provider,
    ):
        with pytest.raises(ProviderRateLimited, match=says) as refused:
            await provider.generate(asked("answer: ok"), soon())
    assert (refused.value.status, refused.value.retry_after_s) == (429, 7.0)


@pytest.mark.parametrize(
    "more",
    [
        b'data: {"id":"1","model":"m","choices":[{"delta":{"content":"word "}}]}\n\n',
        b'data: {"id":"1","model":"m","choices":[{"delta":{"tool_calls":[{"function":{"arguments":"[1,"}}]}}]}\n\n',
        b": still thinking\n\n",
    ],
    ids=["text", "arguments", "comments"],
)
async def test_a_stream_without_end_is_cut_off_by_its_size(more: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            await peer.say(more * 100)

    async with open_session() as session, serving(serve) as server:
        transport = Transport(session, TransportLimits(body_bytes_max=1_000_000))
        with pytest.raises(MalformedResponse, match="larger than 1000000 bytes") as cut:
            await collect(openai(transport, server.origin), asked("answer: ok"))
        await server.left.wait()
    assert cut.value.content_delivered == (more[:1] != b":")
