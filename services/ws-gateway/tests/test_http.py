"""Connections of HTTP: what does not end is cut off, and what is merely long or quick is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from ws_gateway.http import HEAD_BYTES_MAX, BoundedHttp

WAIT_S = 30
BODY = b"x" * (4 * HEAD_BYTES_MAX)


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


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that measures."""
    config = uvicorn.Config(measuring, http=BoundedHttp, lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedHttp(config, state, {}), "127.0.0.1", 0)
    async with asyncio.timeout(WAIT_S), server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: edge\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


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
    assert refusal.startswith(b"HTTP/1.1 400 Bad Request")
    assert f"larger than {HEAD_BYTES_MAX} bytes".encode() in refusal


async def test_a_body_may_be_longer_than_a_head_and_the_next_request_is_counted_anew() -> None:
    async with connected() as (reader, writer):
        for _ in range(3):
            writer.write(post(BODY))
            assert await answered(reader) == str(len(BODY)).encode()


async def test_many_requests_at_once_are_not_taken_for_a_long_head() -> None:
    requests = HEAD_BYTES_MAX // len(post(b"")) + 1
    async with connected() as (reader, writer):
        writer.write(post(b"") * requests)
        assert [await answered(reader) for _ in range(requests)] == [b"0"] * requests
