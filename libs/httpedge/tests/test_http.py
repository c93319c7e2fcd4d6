"""Connections of HTTP: what does not end is cut off, and what is merely long or quick is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from httpedge.http import HEAD_BYTES_MAX, BodyTooLarge, BoundedHttp, Exchange, Patience, Straight, lines, straightened
from starlette.types import Receive, Scope, Send

WAIT_S = 30
BODY = b"x" * (4 * HEAD_BYTES_MAX)
BYTES_MAX = 8 * HEAD_BYTES_MAX


async def measuring(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers how long the body is."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    answer = str(size).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def measuring_straight(exchange: Exchange) -> None:
    """The same without ASGI, and how it was asked for what is not measured."""
    try:
        size = len(await exchange.read(BYTES_MAX))
    except BodyTooLarge:
        await exchange.drain()
        await exchange.whole(413, b"", b"too large")
        return
    said = f"{exchange.method} {exchange.path} {exchange.headers.get('x-said', '')}".encode()
    await exchange.whole(200, lines({"x-by": "straight"}), str(size).encode() if size else said)


@asynccontextmanager
async def connected(
    kind: type[BoundedHttp] = BoundedHttp,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that measures."""
    config = uvicorn.Config(measuring, http=kind, lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)
    async with asyncio.timeout(WAIT_S), server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()


STRAIGHT = straightened(Straight("/v1/", measuring_straight))
KINDS = [(BoundedHttp, b"/"), (STRAIGHT, b"/"), (STRAIGHT, b"/v1/size")]


def post(body: bytes, path: bytes = b"/") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: edge\r\ncontent-length: %d\r\n\r\n%b" % (path, len(body), body)


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


@pytest.mark.parametrize("begun", [b"GET /", b"GET / HTTP/1.1\r\nx-long: "])
@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_does_not_end_is_refused_and_cut_off(begun: bytes, before: int) -> None:
    async with connected() as (reader, writer):
        for _ in range(before):
            writer.write(post(b"first"))
            await answered(reader)
        writer.write(begun.ljust(HEAD_BYTES_MAX + 1, b"a"))
        refusal = await reader.read()
    assert refusal.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert f"larger than {HEAD_BYTES_MAX} bytes".encode() in refusal


def with_head(size: int, path: bytes = b"/") -> bytes:
    """A request whose head has so many bytes."""
    begin, end = b"GET %b HTTP/1.1\r\nhost: edge\r\nx-long: " % path, b"\r\n\r\n"
    return begin + b"a" * (size - len(begin) - len(end)) + end


@pytest.mark.parametrize(("kind", "path"), KINDS)
@pytest.mark.parametrize("size", [HEAD_BYTES_MAX + 1, 3 * HEAD_BYTES_MAX, 16 * HEAD_BYTES_MAX])
@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_is_too_large_is_refused_however_it_comes(
    kind: type[BoundedHttp], path: bytes, size: int, before: int
) -> None:
    async with connected(kind) as (reader, writer):
        for _ in range(before):
            writer.write(post(b"first"))
            await answered(reader)
        writer.write(with_head(size, path))
        await writer.drain()
        refusal = await reader.read()
    assert refusal.startswith(b"HTTP/1.1 431 ")
    assert refusal.endswith(f"larger than {HEAD_BYTES_MAX} bytes.".encode())


@pytest.mark.parametrize(("kind", "path"), KINDS)
async def test_the_largest_head_is_taken_and_what_follows_it_is_no_part_of_it(
    kind: type[BoundedHttp], path: bytes
) -> None:
    async with connected(kind) as (reader, writer):
        writer.write(with_head(HEAD_BYTES_MAX, path) + post(BODY, path))
        first = await reader.readuntil(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")


async def test_who_sends_on_after_a_refusal_is_cut_off() -> None:
    async with connected(hasty(BoundedHttp)) as (reader, writer):
        writer.write(with_head(HEAD_BYTES_MAX + 1))
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(BODY)
                await writer.drain()


def hasty(kind: type[BoundedHttp]) -> type[BoundedHttp]:
    """The same, with hardly any patience."""

    class Hasty(kind):
        patience = Patience(head_s=0.05, body_s=0.05, unread_s=0.05, parting_s=0.05)

    return Hasty


@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_does_not_arrive_in_time_is_refused(before: int) -> None:
    async with connected(hasty(BoundedHttp)) as (reader, writer):
        for _ in range(before):
            writer.write(post(b"first"))
            await answered(reader)
        writer.write(b"GET / HTTP/1.1\r\nx-slow: ")
        assert b"did not arrive within 0.05 s" in await reader.read()


async def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word() -> None:
    async with connected(hasty(BoundedHttp)) as (reader, _):
        assert await reader.read() == b""


@pytest.mark.parametrize(("kind", "path"), KINDS)
async def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(kind: type[BoundedHttp], path: bytes) -> None:
    async with connected(hasty(kind)) as (reader, writer):
        writer.write(post(b"first", path))
        assert await answered(reader) == b"5"
        writer.write(post(BODY, path)[:-1])
        assert await reader.read() == b""


async def test_an_answer_may_take_longer_than_a_request() -> None:
    async def slow(exchange: Exchange) -> None:
        asked.set()
        await ready.wait()
        await exchange.whole(200, b"", b"at last")

    asked, ready = asyncio.Event(), asyncio.Event()
    async with connected(hasty(straightened(Straight("/v1/", slow)))) as (reader, writer):
        writer.write(post(b"", b"/v1/a"))
        await asked.wait()
        writer.write(b"\r\n")  # as old clients end what they post: it is taken for the begin of the next
        asyncio.get_running_loop().call_later(0.15, ready.set)
        assert await answered(reader) == b"at last"


async def test_a_client_that_does_not_read_its_answer_is_left() -> None:
    gone = asyncio.Event()

    async def talking(exchange: Exchange) -> None:
        exchange.when_gone(gone.set)
        await exchange.begin(200, b"")
        while not exchange.disconnected:
            await exchange.piece(BODY)

    async with connected(hasty(straightened(Straight("/v1/", talking)))) as (_, writer):
        writer.write(post(b"x", b"/v1/a"))
        await gone.wait()


@pytest.mark.parametrize(("kind", "path"), KINDS)
async def test_a_body_may_be_longer_than_a_head_and_the_next_request_is_counted_anew(
    kind: type[BoundedHttp], path: bytes
) -> None:
    async with connected(kind) as (reader, writer):
        for _ in range(3):
            writer.write(post(BODY, path))
            assert await answered(reader) == str(len(BODY)).encode()


@pytest.mark.parametrize(("kind", "path"), KINDS)
async def test_many_requests_at_once_are_not_taken_for_a_long_head(kind: type[BoundedHttp], path: bytes) -> None:
    requests = HEAD_BYTES_MAX // len(post(b"x", path)) + 1
    async with connected(kind) as (reader, writer):
        writer.write(post(b"x", path) * requests)
        assert [await answered(reader) for _ in range(requests)] == [b"1"] * requests


async def test_requests_that_come_together_are_answered_in_their_order_whichever_way_they_go() -> None:
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(b"".join(post(b"x" * size, path) for size, path in ((1, b"/v1/a"), (2, b"/"), (3, b"/v1/b"))))
        assert [await answered(reader) for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("path", [b"/v1/a", b"/%76%31/a", b"http://edge/v1/a?b=/c"])
async def test_a_path_is_told_as_it_is_meant(path: bytes) -> None:
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(b"GET %b HTTP/1.1\r\nhost: edge\r\nX-Said: \xe4\r\nx-said: no\r\n\r\n" % path)
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(b"GET /v1/a ") + 2) == "GET /v1/a ä".encode()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nx-by: straight\r\n" in head


async def test_a_question_for_the_head_alone_gets_no_body() -> None:
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(b"HEAD /v1/a HTTP/1.1\r\nhost: edge\r\n\r\n" + post(b"x", b"/v1/b"))
        assert b"content-length: 11\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await answered(reader) == b"1"


async def test_a_client_that_waits_for_the_word_is_told_to_send() -> None:
    head, body = post(b"12", b"/v1/a").split(b"\r\n\r\n")
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert await answered(reader) == b"2"


async def test_a_client_that_is_refused_without_the_word_need_not_send_its_body() -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.whole(401, b"", b"no")

    head, _ = post(b"12", b"/v1/a").split(b"\r\n\r\n")
    async with connected(straightened(Straight("/v1/", refusing))) as (reader, writer):
        writer.write(head + b"\r\nexpect: 100-continue\r\n\r\n")
        answer = await reader.read()
    assert answer.endswith(b"\r\nconnection: close\r\n\r\nno")


@pytest.mark.parametrize(("kind", "path"), KINDS)
@pytest.mark.parametrize("cut_after", [1, 40, 120, 10_000])
async def test_a_wish_for_another_protocol_is_passed_over(kind: type[BoundedHttp], path: bytes, cut_after: int) -> None:
    wish = b"\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n\r\n"
    request = post(BODY, path).replace(b"\r\n\r\n", wish)
    async with connected(kind) as (reader, writer):
        for _ in range(2):
            writer.write(request[:cut_after])
            await writer.drain()
            await asyncio.sleep(0)  # what follows comes on its own
            writer.write(request[cut_after:])
            assert await answered(reader) == str(len(BODY)).encode()


async def test_a_tunnel_is_refused() -> None:
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(b"CONNECT edge:443 HTTP/1.1\r\nhost: edge\r\n\r\n")
        assert b"400 Bad Request" in await reader.read()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_is_too_large_is_read_no_further_than_its_limit_and_then_refused(chunked: bool) -> None:
    body = bytes(BYTES_MAX + 1)
    request = post(body, b"/v1/a")
    if chunked:
        request = b"POST /v1/a HTTP/1.1\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            len(body),
            body,
        )
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(request + post(b"x", b"/v1/b"))
        assert [await answered(reader), await answered(reader)] == [b"too large", b"1"]


async def test_a_body_without_a_length_is_kept_no_further_than_its_limit() -> None:
    refused = asyncio.Event()

    async def reading(exchange: Exchange) -> None:
        with pytest.raises(BodyTooLarge):
            await exchange.read(BYTES_MAX)
        refused.set()

    async with connected(straightened(Straight("/v1/", reading))) as (_, writer):
        writer.write(b"POST /v1/a HTTP/1.1\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (BYTES_MAX + 1, bytes(BYTES_MAX + 1)))  # and no end to it
        await refused.wait()


@pytest.mark.parametrize("request_line", [b"GET /v1/a HTTP/1.0\r\n", b"GET /v1/a HTTP/1.1\r\nconnection: close\r\n"])
async def test_a_client_that_wants_it_is_left_after_its_answer(request_line: bytes) -> None:
    async with connected(STRAIGHT) as (reader, writer):
        writer.write(request_line + b"host: edge\r\n\r\n")
        answer = await reader.read()
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nGET /v1/a ")


async def counting(exchange: Exchange) -> None:
    await exchange.begin(200, b"")
    for piece in (b"one", b"", b"two"):
        await exchange.piece(piece)
    await exchange.end()


async def test_an_answer_in_pieces_begins_with_its_first() -> None:
    async with connected(straightened(Straight("/v1/", counting))) as (reader, writer):
        writer.write(b"GET /v1/a HTTP/1.1\r\nhost: edge\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert b"\r\ntransfer-encoding: chunked\r\n" in head


async def test_an_answer_in_pieces_to_a_client_that_knows_no_chunks_ends_with_the_connection() -> None:
    async with connected(straightened(Straight("/v1/", counting))) as (reader, writer):
        writer.write(b"GET /v1/a HTTP/1.0\r\nhost: edge\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert (b"chunked" in head, body) == (False, b"onetwo")


@pytest.mark.parametrize("behind", [b"", post(b"x", b"/v1/b")])
async def test_it_is_told_when_a_client_leaves_though_it_asked_for_more(behind: bytes) -> None:
    begun, gone, gone_already = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talking(exchange: Exchange) -> None:
        exchange.when_gone(gone.set)
        await exchange.begin(200, b"")
        begun.set()
        while not gone.is_set():
            # Who has sent one request behind another is heard of only when it is written to.
            await exchange.piece(b"still here?")
            await asyncio.sleep(0)
        exchange.when_gone(gone_already.set)

    async with connected(straightened(Straight("/v1/", talking))) as (_, writer):
        writer.write(post(b"x", b"/v1/a") + behind)
        await begun.wait()
        writer.transport.abort()
        await gone.wait()
        await gone_already.wait()


async def test_a_client_that_leaves_before_its_request_has_ended_is_not_answered() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def reading(exchange: Exchange) -> None:
        try:
            await exchange.read(BYTES_MAX)
        except asyncio.CancelledError as error:
            ended.set_result(type(error).__name__)
            raise

    async with connected(straightened(Straight("/v1/", reading))) as (_, writer):
        writer.write(post(BODY, b"/v1/a")[:-1])
        await writer.drain()
        writer.close()
        assert await ended == "ClientGone"


async def test_a_connection_whose_request_nobody_answers_is_closed() -> None:
    async def silent(exchange: Exchange) -> None:
        assert await exchange.read(BYTES_MAX) == b"x"

    async with connected(straightened(Straight("/v1/", silent))) as (reader, writer):
        writer.write(post(b"x", b"/v1/a"))
        assert await reader.read() == b""


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\rb", "\u2026"])
def test_a_header_is_one_line_of_latin_1(value: str) -> None:
    assert lines({"a": "b", "c": "ä"}) == b"a: b\r\nc: \xe4\r\n"
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        lines({"x-request-id": value})
