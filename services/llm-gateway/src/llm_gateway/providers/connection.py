"""One HTTP/1.1 connection to a provider, read by llhttp: one question at a time, and its answer as it arrives.

Ours, because a general client spends five times as much on each call as all of this: no address is parsed, no task,
timer or reader object is made for a request. The bytes of a request come ready, a wait is one future, and one timer
serves the connection for as long as it lives. Standard: RFC 9112; what is read is what `HttpResponseParser` lets pass.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, cast

import httptools

HEAD_BYTES_MAX: Final = 64 * 1024
"""What may arrive one after another without content: a head, a trailer, provisional answers, the line of a chunk."""
UNREAD_BYTES_MAX: Final = 128 * 1024
"""Above it nothing more is read from the socket until somebody takes what is there."""
_PROVISIONAL_MAX: Final = 199


class Headers(Mapping[str, str]):
    """The headers of an answer; names in any case, of a name that comes twice the first. Kept as they came."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[bytes, bytes]) -> None:
        """`fields` has its names in lower case."""
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        return self._fields[_field(name)].decode("latin-1")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _field(name) in self._fields

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@lru_cache(maxsize=256)
def _field(name: str) -> bytes:
    """Always one of those that code looks for."""
    return name.lower().encode()


class Connection(asyncio.Protocol):
    """Whoever has taken it `ask`s, then `read`s until there is nothing more. `lost` is told once that it is closed.

    Waits raise TimeoutError, and ConnectionError for what is cut or is no HTTP; after either it is of no more use.
    """

    def __init__(self, lost: Callable[["Connection"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        # As other clients: servers that end lines by LF alone, or pad the size of a chunk, are understood.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._until = 0.0
        self.is_open = True
        self._error: ConnectionError | None = None
        self._fields: dict[bytes, bytes] = {}
        self._head_read = False
        self._keep_alive = True
        self._chunks: list[bytes] = []
        self._unread_bytes = self._barren_bytes = 0
        self._paused = False
        self.opened_at = self.idle_since = self._loop.time()
        self.answered = True
        """Nothing is asked, or all of the answer has arrived."""
        self.silent = True
        """No byte has arrived since the question."""
        self.status = 0

    @property
    def headers(self) -> Headers:
        return Headers(self._fields)

    @property
    def coding(self) -> bytes:
        """How the content is packed; none for as it is."""
        return self._fields.get(b"content-encoding", b"")

    @property
    def reusable(self) -> bool:
        """Whether another question may be asked: the last was sent and answered whole, and the server stays."""
        return (
            self.answered
            and self._keep_alive
            and self.is_open
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    # --- for who has taken it ---

    async def ask(self, message: bytes, until: float) -> None:
        """Send a whole request and wait for the head of its answer, as long as `until` on the loop's clock."""
        if not self.is_open:
            raise ConnectionError(self._how_it_ended(None))
        if self._loop.time() >= until:
            raise TimeoutError  # nobody is left who could use the answer that would be paid for
        self._fields = {}
        self._chunks.clear()
        self._unread_bytes = self._barren_bytes = self.status = 0
        self._head_read = self.answered = False
        self.silent = True
        self._transport.write(message)
        while not self._head_read:
            await self._progress(until)

    async def read(self, until: float) -> bytes:
        """What has arrived of the content, or the next that does; none at its end."""
        if not self.answered and self._loop.time() >= until:
            raise TimeoutError  # also of a server that is never waited for, because it always has said more
        while not self._chunks:
            if self.answered:
                return b""
            await self._progress(until)
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def close(self) -> None:
        """At once if an answer is under way, which tells the server to stop; else in order."""
        if self.answered:
            self._transport.close()
        else:
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    # --- waiting ---

    async def _progress(self, until: float) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        self._until = until
        if self._timer is None or until < self._timer_at:
            self._set_timer()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._until
        self._timer = self._loop.call_at(self._until, self._time_is_up)

    def _time_is_up(self) -> None:
        """The timer of an earlier wait rings too; it is set anew then, which is rarer than setting one for each."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until:
            self._set_timer()
        else:
            self._waiter.set_exception(TimeoutError())

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # An ssl transport, and that of another loop, is one in all but its base class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.silent = False
        unread_bytes = self._unread_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"the answer is no HTTP: {error or type(error).__name__}"))
            return
        if self._unread_bytes == unread_bytes and not self.answered:
            self._barren_bytes += len(data)
            if self._barren_bytes > HEAD_BYTES_MAX:
                self._fail(ConnectionError(f"more than {HEAD_BYTES_MAX} bytes came without content"))
                return
        else:
            self._barren_bytes = 0
        if self._unread_bytes > UNREAD_BYTES_MAX and not self._paused and not self.answered:
            self._paused = True
            self._transport.pause_reading()
        if self._head_read and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._head_read and exc is None and self._until_closed():
            self.answered = True
        if not self.answered and self._error is None:
            self._error = ConnectionError(self._how_it_ended(exc))
        self._wake()
        self._lost(self)

    def _until_closed(self) -> bool:
        """Whether the content has no length of its own and ends with the connection (RFC 9112, section 6.3)."""
        coding = self._fields.get(b"transfer-encoding", b"").rpartition(b",")[2].strip().lower()
        return b"content-length" not in self._fields and coding != b"chunked"

    def _how_it_ended(self, exc: Exception | None) -> str:
        when = "in the middle of an answer" if self._head_read else "before an answer"
        return f"the connection was closed {when}" + (f": {exc}" if exc else "")

    def _fail(self, error: ConnectionError) -> None:
        """What came is of no use. An answer that was whole before stays so, but its connection is done with."""
        self._keep_alive = False
        if not self.answered:
            self._error = error
        self._transport.abort()
        self._wake()

    # --- httptools ---

    def on_message_begin(self) -> None:
        if self.answered:
            raise ConnectionError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_read:  # a trailer says nothing that is of use here
            self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status <= _PROVISIONAL_MAX:
            self._fields.clear()
            return
        self._head_read = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._unread_bytes += len(data)

    def on_message_complete(self) -> None:
        self.answered = self._head_read
