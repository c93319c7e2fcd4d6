"""What a provider's server may do to a call, byte by byte, on both event loops: what comes out is an answer or a named error."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launcher import certificates
from llm_gateway.errors import (
    DeadlineExceeded,
    MalformedResponse,
    ProviderError,
    ProviderTimedOut,
    ProviderUnreachable,
    StreamInterrupted,
)
from llm_gateway.providers.connection import HEAD_BYTES_MAX
from llm_gateway.providers.transport import Transport, TransportLimits, open_session

from .wire import Peer, always, once, serving, soon

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session)


async def fetched(transport: Transport, origin: str, body: bytes = b"{}") -> tuple[int, bytes]:
    async with transport.post(f"{origin}/v1/chat", {}, body, soon()) as reply:
        return reply.status, await reply.body()


# --- answers ---


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HI, (200, b"hi")),
        (CHUNKED + b"1\r\nh\r\n1;ext=1\r\ni\r\n0\r\nX-Trailer: 1\r\n\r\n", (200, b"hi")),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", (200, b"hi")),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", (200, b"hi")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HI, (200, b"hi")),
        (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\n" + HI, (200, b"hi")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, b"")),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", (302, b"")),
        (HI + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbye", (200, b"hi")),
        (HI + b"\0\0 and what is no HTTP", (200, b"hi")),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
async def test_an_answer_is_read_however_it_is_framed_and_cut(
    transport: Transport, answer: bytes, expected: tuple[int, bytes], piece_bytes: int
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        for start in range(0, len(answer), piece_bytes):
            await peer.say(answer[start : start + piece_bytes])

    async with serving(serve) as server:
        assert await fetched(transport, server.origin) == expected
        assert len(server.requests) == 1


async def test_what_is_sent_is_one_request_as_the_standard_writes_it(transport: Transport) -> None:
    async with serving(always(HI)) as server:
        async with transport.post(f"{server.origin}/v1/chat?a=b", {"X-Key": "k"}, b"{}", soon()):
            pass
        async with transport.get(f"{server.origin}/v1/models", {"X-Key": "k"}, soon()):
            pass

    same = (
        b"host: %b\r\naccept: */*\r\naccept-encoding: identity\r\nuser-agent: synod-llm-gateway\r\nx-key: k\r\n"
        % server.origin.removeprefix("http://").encode()
    )
    assert server.requests == [
        b"POST /v1/chat?a=b HTTP/1.1\r\n" + same + b"content-length: 2\r\n\r\n{}",
        b"GET /v1/models HTTP/1.1\r\n" + same + b"\r\n",
    ]


async def test_headers_that_change_are_sent_changed(transport: Transport) -> None:
    headers = {"x-key": "old"}
    async with serving(always(HI)) as server:
        for key in ("old", "new"):
            headers["x-key"] = key
            async with transport.post(server.origin, headers, b"", soon()) as reply:
                await reply.body()

    assert [b"x-key: old" in request for request in server.requests] == [True, False]
    assert b"x-key: new" in server.requests[1]


async def test_headers_are_found_in_any_case_and_the_first_of_two_counts(transport: Transport) -> None:
    answer = b"HTTP/1.1 200 OK\r\nRETRY-after: 7\r\nretry-After: 8\r\nContent-Length: 0\r\n\r\n"
    async with serving(always(answer)) as server, transport.get(server.origin, {}, soon()) as reply:
        assert reply.headers["Retry-After"] == reply.headers.get("retry-after") == "7"
        assert "RETRY-AFTER" in reply.headers
        assert list(reply.headers) == ["retry-after", "content-length"]
        assert reply.headers.get("x-request-id") is None


async def test_an_answer_that_comes_before_the_request_is_sent_is_read(transport: Transport) -> None:
    refused = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch"

    async def serve(peer: Peer) -> None:
        await peer.something()
        await peer.say(refused)
        await peer.gone()

    async with serving(serve) as server:
        assert await fetched(transport, server.origin, b"x" * 64_000_000) == (413, b"much")


# --- what is no answer ---


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"", ProviderUnreachable, "closed before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", ProviderUnreachable, "closed before an answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ProviderUnreachable, "closed before an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProviderUnreachable, "is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", ProviderUnreachable, "is no HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            ProviderUnreachable,
            "is no HTTP",
        ),
        (b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", ProviderUnreachable, "is no HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi",
            MalformedResponse,
            "packed as 'br'",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", StreamInterrupted, "closed in the middle"),
        (CHUNKED + b"2\r\nhi\r\n", StreamInterrupted, "closed in the middle"),
        (CHUNKED + b"2\r\nhi\r\n0\r\n", StreamInterrupted, "closed in the middle"),
        (CHUNKED + b"2\r\nhi\r\nmany\r\n", StreamInterrupted, "is no HTTP"),
        (CHUNKED + b"2\r\nhi!", StreamInterrupted, "is no HTTP|closed in the middle"),
        (CHUNKED + b"fffffffffffffffff\r\n", StreamInterrupted, "is no HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
            StreamInterrupted,
            "not packed as",
        ),
    ],
)
async def test_what_is_no_answer_is_a_named_error_at_once(
    transport: Transport, answer: bytes, error: type[ProviderError], says: str
) -> None:
    async with serving(once(answer)) as server:
        with pytest.raises(error, match=says) as caught:
            await fetched(transport, server.origin)
        assert caught.value.dispatched


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", ProviderUnreachable),
        (b"HTTP/1.1 200 OK\r\n", ProviderUnreachable),
        (b"", ProviderUnreachable),
        (CHUNKED + b"0\r\nX: ", StreamInterrupted),
        (CHUNKED + b"1;", StreamInterrupted),
    ],
    ids=["a header", "headers", "provisional answers", "a trailer", "the line of a chunk"],
)
async def test_what_never_comes_to_content_is_cut_off(
    transport: Transport, start: bytes, error: type[ProviderError]
) -> None:
    more = {b"": b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n": b"X: y\r\n"}.get(start, b"x") * 1000

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(start)
        while True:
            await peer.say(more)

    async with serving(serve) as server:
        with pytest.raises(error, match=f"more than {HEAD_BYTES_MAX} bytes"):
            await fetched(transport, server.origin)
        await server.left.wait()


async def test_a_packed_answer_is_unpacked_although_it_was_not_asked_for(transport: Transport) -> None:
    packed = gzip.compress(b"word " * 100_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with serving(always(head + packed)) as server:
        assert await fetched(transport, server.origin) == (200, b"word " * 100_000)
        assert await fetched(transport, server.origin) == (200, b"word " * 100_000)
        assert server.connections == 1


async def test_a_few_packed_bytes_do_not_fill_the_memory() -> None:
    packed = gzip.compress(b"\0" * 20_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with open_session() as session, serving(always(head + packed)) as server:
        transport = Transport(session, TransportLimits(body_bytes_max=1_000_000))
        with pytest.raises(MalformedResponse, match="larger than 1000000 bytes"):
            await fetched(transport, server.origin)


# --- time ---


async def test_a_head_that_comes_drop_by_drop_ends_with_the_deadline(transport: Transport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        await peer.gone()

    async with serving(serve) as server:
        deadline = asyncio.get_running_loop().time() + 0.03
        with pytest.raises(DeadlineExceeded, match="before the provider answered"):
            async with transport.post(server.origin, {}, b"", deadline):
                pass


async def test_a_call_whose_time_is_up_is_not_sent(transport: Transport) -> None:
    async with serving(always(HI)) as server:
        await fetched(transport, server.origin)
        with pytest.raises(DeadlineExceeded):
            async with transport.post(server.origin, {}, b"", asyncio.get_running_loop().time()):
                pass
        await fetched(transport, server.origin)
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_the_time_of_a_call_before_does_not_end_the_next(transport: Transport) -> None:
    """One timer serves the connection; it rings for the first call while the second waits."""
    asked = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.request()
        asked.set()
        await released.wait()
        await peer.say(HI)

    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with serving(serve) as server:
        async with transport.post(server.origin, {}, b"", loop.time() + 0.25) as reply:
            await reply.body()
        second = asyncio.create_task(fetched(transport, server.origin))
        await asked.wait()
        loop.call_later(0.3, released.set)
        assert await second == (200, b"hi")
        assert server.connections == 1


async def test_a_pause_in_the_middle_is_bounded_and_the_time_before_it_does_not_count() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"2\r\nhi\r\n")
        await peer.gone()

    async with open_session() as session, serving(serve) as server:
        transport = Transport(session, TransportLimits(idle_s=0.03))
        async with transport.post(server.origin, {}, b"", soon()) as reply:
            assert await reply.read() == b"hi"
            with pytest.raises(ProviderTimedOut, match=r"sent nothing for 0\.03 s"):
                await reply.read()


async def test_a_server_that_does_not_greet_is_no_connection_and_was_never_asked() -> None:
    async def serve(peer: Peer) -> None:
        await peer.gone()

    async with open_session() as session, serving(serve) as server:
        transport = Transport(session, TransportLimits(connect_s=0.05))
        with pytest.raises(ProviderTimedOut, match=r"no connection to https://.* within 0\.05 s") as caught:
            await fetched(transport, server.origin.replace("http:", "https:"))
        assert not caught.value.dispatched
        deadline = asyncio.get_running_loop().time() + 0.02
        with pytest.raises(DeadlineExceeded):
            async with transport.get(server.origin.replace("http:", "https:"), {}, deadline):
                pass


# --- connections ---


async def test_a_connection_serves_call_after_call(transport: Transport) -> None:
    async with serving(always(HI)) as server:
        for _ in range(5):
            assert await fetched(transport, server.origin) == (200, b"hi")
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        HI + b"surplus",
        HI + HI,
    ],
)
async def test_a_connection_that_ends_or_says_too_much_is_not_used_again(transport: Transport, answer: bytes) -> None:
    async with serving(always(answer)) as server:
        for _ in range(2):
            assert await fetched(transport, server.origin) == (200, b"hi")
        assert server.connections == 2


async def test_what_is_said_unasked_between_two_calls_is_never_taken_for_an_answer(transport: Transport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await peer.gone()
        left.set()

    left = asyncio.Event()
    async with serving(serve) as server:
        await fetched(transport, server.origin)
        await left.wait()
        assert await fetched(transport, server.origin) == (200, b"hi")
        assert server.connections == 2


async def test_a_post_that_a_kept_connection_swallows_is_not_sent_again(transport: Transport) -> None:
    """Nobody knows whether it was read, and a model that answers twice is paid twice."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.request()

    async with serving(serve) as server:
        await fetched(transport, server.origin)
        with pytest.raises(ProviderUnreachable, match="closed before an answer") as caught:
            await fetched(transport, server.origin)
        assert (server.connections, len(server.requests)) == (1, 2)
        assert caught.value.dispatched


async def test_a_get_that_a_kept_connection_swallows_is_sent_once_more(transport: Transport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.request()

    async with serving(serve) as server:
        for _ in range(2):
            async with transport.get(server.origin, {}, soon()) as reply:
                assert await reply.body() == b"hi"
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_get_that_was_answered_in_part_is_not_sent_again(transport: Transport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.request()
        await peer.say(b"HTTP/1.1 2")

    async with serving(serve) as server:
        await fetched(transport, server.origin)
        with pytest.raises(ProviderUnreachable):
            async with transport.get(server.origin, {}, soon()):
                pass
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_a_call_that_is_cancelled_hangs_up(transport: Transport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        left.set()

    asked, left = asyncio.Event(), asyncio.Event()
    async with serving(serve) as server:
        call = asyncio.create_task(fetched(transport, server.origin))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout_at(soon()):
            await left.wait()


async def test_a_rest_that_comes_soon_is_read_so_that_the_connection_is_kept() -> None:
    async def serve(peer: Peer) -> None:
        while await peer.request():
            await peer.say(CHUNKED + b"2\r\nhi\r\n")
            await read.wait()
            await peer.say(b"0\r\n\r\n")

    read = asyncio.Event()
    async with open_session() as session, serving(serve) as server:
        transport = Transport(session, TransportLimits(drain_s=10.0))
        for _ in range(2):
            async with transport.post(server.origin, {}, b"", soon()) as reply:
                assert await reply.read() == b"hi"
                read.set()
                await reply.drain()
        assert server.connections == 1


async def test_a_rest_that_does_not_come_is_not_waited_for() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"2\r\nhi\r\n")
        await peer.gone()
        left.set()

    left = asyncio.Event()
    async with open_session() as session, serving(serve) as server:
        transport = Transport(session, TransportLimits(drain_s=0.01))
        async with transport.post(server.origin, {}, b"", soon()) as reply:
            assert await reply.read() == b"hi"
            await reply.drain()
            async with asyncio.timeout_at(soon()):
                await left.wait()


async def test_an_answer_larger_than_any_buffer_arrives_whole(transport: Transport) -> None:
    body = bytes(range(256)) * 80_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serving(always(answer)) as server:
        for _ in range(2):
            assert await fetched(transport, server.origin) == (200, body)
        assert server.connections == 1


# --- where to ---


async def test_a_server_on_version_6_of_ip_is_reached(transport: Transport) -> None:
    async with serving(always(HI), host="::1") as server:
        assert await fetched(transport, server.origin) == (200, b"hi")
        assert f"host: {server.origin.removeprefix('http://')}\r\n".encode() in server.requests[0]


async def test_a_name_with_several_addresses_is_reached_at_the_one_that_answers(transport: Transport) -> None:
    async with serving(always(HI)) as server:
        assert await fetched(transport, server.origin.replace("127.0.0.1", "localhost")) == (200, b"hi")


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("ftp://example.org/", {}),
        ("http:///v1", {}),
        ("no address", {}),
        ("http://127.0.0.1:99999/", {}),
        ("http://" + "x" * 64 + ".example.org/", {}),
        ("http://127.0.0.1:9/", {"x-key": "a\r\nx-other: b"}),
        ("http://name-that-is-not.invalid/", {}),
    ],
)
async def test_what_cannot_be_sent_was_never_sent(transport: Transport, url: str, headers: dict[str, str]) -> None:
    with pytest.raises(ProviderUnreachable) as caught:
        async with transport.post(url, headers, b"", soon()):
            pass
    assert not caught.value.dispatched


# --- TLS ---


class _Believed:
    """A server's certificate, and a client's belief in who signed it."""

    def __init__(self, directory: Path) -> None:
        certificates.ensure(directory, datetime.now(UTC))
        files = certificates.files_of(directory, "cost-ledger")
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(files.certificate, files.key)
        self.server.set_alpn_protocols(["h2", "http/1.1"])
        self.client = ssl.create_default_context(cafile=files.ca)
        self.client.set_alpn_protocols(["http/1.1"])


async def test_a_server_with_a_certificate_is_asked_for_its_name_and_believed(tmp_path: Path) -> None:
    async def serve(peer: Peer) -> None:
        spoken.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while await peer.request():
            await peer.say(HI)

    spoken: list[str] = []
    believed = _Believed(tmp_path)
    async with open_session(tls=believed.client) as session, serving(serve, believed.server) as server:
        for host in ("127.0.0.1", "localhost", "localhost"):
            assert await fetched(Transport(session), server.origin.replace("127.0.0.1", host)) == (200, b"hi")
        assert (server.connections, spoken) == (2, ["http/1.1", "http/1.1"])


async def test_a_server_that_nobody_vouches_for_is_not_asked(tmp_path: Path) -> None:
    believed = _Believed(tmp_path)
    async with open_session() as session, serving(always(HI), believed.server) as server:
        with pytest.raises(ProviderUnreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await fetched(Transport(session), server.origin)
        assert (server.requests, caught.value.dispatched) == ([], False)


async def test_a_server_of_another_name_is_not_asked(tmp_path: Path) -> None:
    believed = _Believed(tmp_path)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session(tls=believed.client))
        server = await stack.enter_async_context(serving(always(HI), believed.server, host="::1"))
        with pytest.raises(ProviderUnreachable, match="IP address mismatch") as caught:
            await fetched(Transport(session), server.origin)
        assert (server.requests, caught.value.dispatched) == ([], False)
