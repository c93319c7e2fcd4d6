"""How HTTP is read from the wire, by llhttp in C, with limits that it does not have of its own; and the short way on which
a request is answered without ASGI between, for the paths where each layer is paid for by every call.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES_MAX: Final = 64 * 1024
"""The request line and the headers of a request."""
DRAIN_BYTES_MAX: Final = 16 * 1024 * 1024
"""How much is read of a body that is too large, before it is said, and of a head, after it was said."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection may wait for its client, in seconds; then it is closed. Whoever sends a byte now and then, or
    never reads what it asked for, would otherwise keep it, and all that answers it, for ever.
    """

    head_s: float = 30.0
    """For a head to arrive whole: of the first request since the connection was made, else since it began."""
    body_s: float = 300.0
    """For a body to arrive whole, since it began."""
    unread_s: float = 60.0
    """For some of an answer to be read, when no more of it can be sent."""
    parting_s: float = 2.0
    """For a client to read that its head is too large; what it sends meanwhile is read too, lest its answer be lost."""


class BodyTooLarge(BaseException):
    """A body is larger than its path allows. No Exception: a framework would answer for it, and wrongly."""


class HeadTooLarge(Exception):
    """Ends the reading of a request, in a call-back of the parser, whose error its caller answers."""


class ClientGone(asyncio.CancelledError):
    """The connection ended before the request did: there is nobody to answer, so its task ends as if it were cancelled."""


@dataclass(frozen=True, slots=True)
class Straight:
    """What answers the requests whose path begins with `prefix`."""

    prefix: str
    answer: "Callable[[Exchange], Awaitable[None]]"


class BoundedHttp(HttpToolsProtocol):
    """One connection. All of a head is kept in memory until it ends: one that does not end is refused, and cut off."""

    straight: ClassVar[Straight | None] = None
    patience: ClassVar[Patience] = Patience()

    _heads: int = 0
    _in_head: bool = True
    _head_bytes: int = 0
    _arrived_bytes: int = 0
    _refused: bool = False
    _answered: object = None
    _passed_over_at: int | None = None
    _arriving: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_the_rest(self.patience.head_s)

    def data_received(self, data: bytes) -> None:
        self._arrived_bytes = self._head_bytes + len(data)
        if self._refused:
            self._pass_over(len(data))
            return
        within, heads = self._in_head, self._heads
        super().data_received(data)
        if self._refused:
            return
        if self._passed_over_at is not None:
            self._go_on_without_upgrade(data[self._passed_over_at :])
            return
        if not (within and self._in_head and heads == self._heads):
            self._head_bytes = 0
            if not self._in_head:
                self._expect_the_rest(self.patience.body_s)
            return
        self._expect_the_rest(self.patience.head_s)
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        if self._arrived_bytes > HEAD_BYTES_MAX and self._is_head_too_large():
            self._refuse_head()
            raise HeadTooLarge
        if self._is_passed_over():
            return
        straight = self._straight_to()
        if straight is None:
            super().on_headers_complete()
        else:
            self._begin(straight)
        self._heads, self._in_head = self._heads + 1, False
        self._has_arrived()

    def on_message_complete(self) -> None:
        if self._is_passed_over():
            return
        super().on_message_complete()
        self._in_head = True
        self._has_arrived()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.patience.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_arrived()
        self._is_read()
        super().connection_lost(exc)
        if isinstance(self._answered, Exchange):
            self._answered.leave()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:  # which is answered already
            super().send_400_response(msg)

    def _is_head_too_large(self) -> bool:
        line = len(self.parser.get_method()) + len(self.url) + len(b"  HTTP/1.1\r\n\r\n")
        return line + sum([len(name) + len(value) + len(b": \r\n") for name, value in self.headers]) > HEAD_BYTES_MAX

    def _refuse_head(self) -> None:
        """Answer, and close when the client has read it: were it closed while there is more to read, the client would see
        its connection reset instead.
        """
        self._refused, self._head_bytes = True, 0
        self._has_arrived()
        problem = f"The head of the request is larger than {HEAD_BYTES_MAX} bytes."
        headers = lines({"content-type": "text/plain; charset=utf-8", "connection": "close"})
        length = b"content-length: %d\r\n" % len(problem)
        self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[431], headers, length, problem.encode()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arriving = self.loop.call_later(self.patience.parting_s, self.transport.close)

    def _pass_over(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > DRAIN_BYTES_MAX:
            self.transport.close()

    def _expect_the_rest(self, within_s: float) -> None:
        if self._arriving is None and not self.transport.is_closing():
            self._arriving = self.loop.call_later(within_s, self._is_late)

    def _has_arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _is_late(self) -> None:
        self._arriving = None
        if self._in_head and self.cycle is not None and not self.cycle.response_complete:
            self._expect_the_rest(self.patience.head_s)  # of the next request: this one's answer comes first
        elif self._in_head and self._head_bytes:
            self.send_400_response(f"The head of the request did not arrive within {self.patience.head_s} s.")
        else:
            self.transport.close()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Of several requests that came one after the other, uvicorn knows only the last; this is the one being answered."""
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _is_passed_over(self) -> bool:
        """Whether the request would speak another protocol from here on that is not spoken here."""
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser stopped, which takes all behind such a head for the other protocol, also a body."""
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        self._passed_over_at = stopped.args[0]

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """A wish to upgrade is passed over (RFC 9110, section 7.8): the request is read as if it had not been said. Java's
        client says it with all that it posts over plain HTTP.
        """
        self._passed_over_at = None
        method: bytes = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("This is no proxy.")
            return
        version: bytes = self.parser.get_http_version().encode()
        headers = b"".join([b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._head_bytes = 0
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, headers, rest))

    def _straight_to(self) -> "Exchange | None":
        """The exchange of a request that is answered straight; None for one that ASGI answers."""
        if self.straight is None or (self.parser.should_upgrade() and self._should_upgrade()):
            return None
        path = httptools.parse_url(self.url).path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        return Exchange(self, path) if path.startswith(self.straight.prefix) else None

    def _begin(self, exchange: "Exchange") -> None:
        """Answers of one connection are given in the order of their requests."""
        assert self.straight
        cycle: Any = exchange  # it bears the names of theirs
        answer: Any = self.straight.answer
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, answer)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, answer))


class Exchange:
    """One request as its connection reads it, and the way back.

    Stands where uvicorn's protocol keeps a RequestResponseCycle, whose names it therefore bears. A head is written together
    with what follows it. After an answer has ended, or when the client has left, what is written goes nowhere.
    """

    __slots__ = (
        "_awaits_continue",
        "_chunked",
        "_head",
        "_on_gone",
        "_protocol",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "method",
        "more_body",
        "path",
        "response_complete",
        "response_started",
    )

    def __init__(self, protocol: BoundedHttp, path: str) -> None:
        parser = protocol.parser
        self.method: str = parser.get_method().decode("ascii")
        self.path = path
        # The first of several of one name; names are lower-case.
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(protocol.headers)}
        self._chunked = parser.get_http_version() != "1.0"
        self.keep_alive: bool = parser.should_keep_alive() and self._chunked
        self.body = bytearray()
        self.more_body = True
        self.message_event = asyncio.Event()
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._protocol = protocol
        self._awaits_continue = protocol.expect_100_continue
        self._head = b""
        self._on_gone: Callable[[], object] | None = None

    async def run_asgi(self, answer: "Callable[[Exchange], Awaitable[None]]") -> None:
        """See uvicorn's protocol, which runs this as the task of a request."""
        try:
            await answer(self)
        finally:
            if not (self.response_complete or self.disconnected):
                self._protocol.transport.close()

    async def read(self, bytes_max: int) -> bytes:
        """The body. Raises BodyTooLarge as soon as that is known, and ClientGone."""
        if int(self.headers.get("content-length", "0")) > bytes_max:
            raise BodyTooLarge
        while self.more_body and len(self.body) <= bytes_max:
            await self._more()
        if len(self.body) > bytes_max:
            raise BodyTooLarge
        return bytes(self.body)

    async def drain(self) -> None:
        """Read on for a while: a client that is cut off while it sends does not see its answer. Raises ClientGone."""
        drained = 0
        while self.more_body and drained < DRAIN_BYTES_MAX:
            await self._more()
            drained += len(self.body)
            self.body.clear()

    async def whole(self, status: int, headers: bytes, body: bytes) -> None:
        """The answer. `headers` are lines, of `lines()`, without those of the body's length."""
        self._begin(status, b"%bcontent-length: %d\r\n" % (headers, len(body)))
        await self._write(b"" if self.method == "HEAD" else body)
        self._complete()

    async def begin(self, status: int, headers: bytes) -> None:
        """The head of an answer whose length is not known; it is sent with the first piece.

        To a client of HTTP/1.0, which knows no chunks, it ends with the connection (RFC 9112, section 6.1).
        """
        self._begin(status, b"%btransfer-encoding: chunked\r\n" % headers if self._chunked else headers)

    async def piece(self, data: bytes) -> None:
        await self._write(b"%x\r\n%b\r\n" % (len(data), data) if data and self._chunked else data)

    async def end(self) -> None:
        """The end of an answer that was begun."""
        await self._write(b"0\r\n\r\n" if self._chunked else b"")
        self._complete()

    def when_gone(self, do: Callable[[], object]) -> None:
        """What to do when the client leaves before its answer has ended, or if it has left already."""
        self._on_gone = do
        if self.disconnected:
            do()

    def leave(self) -> None:
        """The client has left."""
        if self.response_complete:
            return
        self.disconnected = True
        self.message_event.set()
        if self._on_gone:
            self._on_gone()

    async def _more(self) -> None:
        if self.disconnected:
            raise ClientGone
        if self._awaits_continue:
            self._awaits_continue = False
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._protocol.flow.resume_reading()
        await self.message_event.wait()
        self.message_event.clear()

    def _begin(self, status: int, headers: bytes) -> None:
        self.response_started = True
        if self._awaits_continue and self.more_body:
            self.keep_alive = False  # the client may leave out the body, and its next request would be taken for it
        parting = b"" if self.keep_alive else b"connection: close\r\n"
        common = b"".join([b"%b: %b\r\n" % header for header in self._protocol.server_state.default_headers])
        self._head = b"%b%b%b%b\r\n" % (STATUS_LINE[status], common, headers, parting)

    async def _write(self, data: bytes) -> None:
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if not self.disconnected:
            self._protocol.transport.write(self._head + data)
        self._head = b""

    def _complete(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()


def lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they are written. Raises ValueError for a value that is more than a line, or no Latin-1."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not text.count("\r") == text.count("\n") == len(headers):
        raise ValueError(f"a header with a line break in it: {text!r}")
    return text.encode("latin-1")


def straightened(answering: Straight) -> type[BoundedHttp]:
    """Connections on which `answering` has what is its own, and ASGI the rest."""

    class StraightHttp(BoundedHttp):
        straight = answering

    return StraightHttp
