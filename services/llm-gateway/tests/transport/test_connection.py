"""A connection against a transport that only records what is asked of it."""

import asyncio

import pytest
from llm_gateway.providers.connection import UNREAD_BYTES_MAX, Connection

from .wire import soon


class RecordedTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent_bytes = 0
        self.calls: list[str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


async def asked(wire: RecordedTransport, head: bytes) -> Connection:
    """A connection whose question was answered by `head`."""
    connection = Connection(lambda _: None)
    connection.connection_made(wire)
    asyncio.get_running_loop().call_soon(connection.data_received, head)
    await connection.ask(b"GET", soon())
    return connection


async def test_a_server_that_sends_more_than_is_read_is_held_back_until_it_is_read() -> None:
    wire = RecordedTransport()
    connection = await asked(wire, b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")

    for _ in range(3):
        connection.data_received(b"x" * UNREAD_BYTES_MAX)
    assert wire.calls == ["pause"]
    assert len(await connection.read(soon())) == 3 * UNREAD_BYTES_MAX
    assert wire.calls == ["pause", "resume"]


async def test_what_has_arrived_before_a_cut_is_read_before_the_cut_is_told() -> None:
    connection = await asked(RecordedTransport(), b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi")
    connection.connection_lost(ConnectionResetError("reset by peer"))

    assert await connection.read(soon()) == b"hi"
    with pytest.raises(ConnectionError, match="in the middle of an answer: reset by peer"):
        await connection.read(soon())


async def test_time_is_up_for_a_server_too_that_always_has_said_more() -> None:
    connection = await asked(RecordedTransport(), b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi")
    with pytest.raises(TimeoutError):
        await connection.read(asyncio.get_running_loop().time())

    connection.data_received(b"ho")  # an answer that is there whole is given all the same
    assert await connection.read(0.0) == b"hiho"


async def test_a_trailer_adds_nothing_to_the_headers() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nRetry-After: 9\r\n\r\n"
    connection = await asked(RecordedTransport(), chunked)

    assert list(connection.headers) == ["transfer-encoding"]
    assert [await connection.read(soon()), await connection.read(soon())] == [b"hi", b""]


async def test_content_that_ends_with_the_connection_does_not_end_by_a_reset() -> None:
    whole, cut = [await asked(RecordedTransport(), b"HTTP/1.1 200 OK\r\n\r\nhi") for _ in range(2)]
    whole.connection_lost(None)
    cut.connection_lost(ConnectionResetError())

    assert [await whole.read(soon()), await whole.read(soon())] == [b"hi", b""]
    assert await cut.read(soon()) == b"hi"
    with pytest.raises(ConnectionError):
        await cut.read(soon())


async def test_a_connection_whose_request_is_not_sent_yet_takes_no_other() -> None:
    wire = RecordedTransport()
    connection = await asked(wire, b"HTTP/1.1 413 Much\r\nContent-Length: 0\r\n\r\n")
    assert connection.reusable

    wire.unsent_bytes = 1
    assert not connection.reusable


async def test_an_answer_that_is_left_in_its_middle_is_cut_off_and_another_is_not() -> None:
    left, read = RecordedTransport(), RecordedTransport()
    (await asked(left, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi")).close()
    (await asked(read, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")).close()

    assert (left.calls, read.calls) == (["abort"], ["close"])


async def test_a_connection_that_is_closed_already_is_not_asked() -> None:
    wire = RecordedTransport()
    connection = Connection(lambda _: None)
    connection.connection_made(wire)
    connection.connection_lost(None)

    with pytest.raises(ConnectionError, match="closed before an answer"):
        await connection.ask(b"GET", soon())
    assert wire.written == b""
