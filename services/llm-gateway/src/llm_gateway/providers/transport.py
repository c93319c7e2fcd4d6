"""HTTP to providers: bounded in time and size, every fault a ProviderError."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol

from llm_gateway.errors import (
    DeadlineExceeded,
    MalformedResponse,
    ProviderError,
    ProviderTimedOut,
    ProviderUnreachable,
    StreamInterrupted,
)
from llm_gateway.providers.coding import unpacked
from llm_gateway.providers.connection import Connection
from llm_gateway.providers.pool import ConnectionPool, ConnectTimedOut, PoolLimits
from llm_gateway.providers.proxies import Proxies
from llm_gateway.providers.request_head import RequestHead, request_head

_HEADS_MAX: Final = 1024
"""Addresses whose heads are remembered: a few for each deployment, one for each model where it is in the address."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Seconds and bytes. `idle_s` bounds the pause between two chunks; the first one may take until the deadline. So much
    of why a request was refused is waited for; the refusal itself is there with the head.
    """

    connect_s: float = 5.0
    idle_s: float = 60.0
    drain_s: float = 0.25
    refusal_s: float = 5.0
    body_bytes_max: int = 64 * 1024 * 1024
    refusal_bytes_max: int = 1024 * 1024


class Body(Protocol):
    """What follows the head of an answer. Whoever asked closes it; `close` before its end cuts the connection."""

    async def read(self, until: float) -> bytes:
        """The next bytes as they arrive, none at the end. Raises TimeoutError at `until` on the loop's clock, OSError."""
        ...

    def close(self) -> None: ...


class Poster(Protocol):
    """The way to a provider; see Transport for what it promises."""

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> AbstractAsyncContextManager["HttpReply"]: ...

    def get(
        self, url: str, headers: Mapping[str, str], deadline: float
    ) -> AbstractAsyncContextManager["HttpReply"]: ...


class HttpReply:
    """A response whose status and headers have arrived. Valid only inside `Transport.post`."""

    def __init__(
        self, status: int, headers: Mapping[str, str], body: Body, deadline: float, limits: TransportLimits
    ) -> None:
        self._body = body
        self._deadline = deadline
        self._begun = False
        self._read_bytes = 0
        self._limits = limits
        self.status = status
        self.headers = headers

    async def body(self) -> bytes:
        """The whole body. Raises MalformedResponse above the limit, StreamInterrupted when it is cut."""
        chunks: list[bytes] = []
        while chunk := await self.read():
            chunks.append(chunk)
        return b"".join(chunks)

    async def refusal(self) -> bytes:
        """What was said with another status than 200, as far as it comes in time and can be read; else why not.

        Status and headers are what counts of it: when to come back is no less true if the rest never comes.
        """
        until = min(self._deadline, asyncio.get_running_loop().time() + self._limits.refusal_s)
        said = bytearray()
        try:
            while len(said) <= self._limits.refusal_bytes_max and (chunk := await self._body.read(until)):
                said += chunk
        except (OSError, MalformedResponse) as error:  # TimeoutError is one
            return bytes(said) or f"what it said could not be read ({error or type(error).__name__})".encode()
        return bytes(said)

    async def read(self) -> bytes:
        """The next bytes of the body as they arrive; none at its end. Raises as `body`, for all that was read together."""
        until = self._deadline
        if self._begun:
            until = min(until, asyncio.get_running_loop().time() + self._limits.idle_s)
        self._begun = True
        try:
            chunk = await self._body.read(until)
        except TimeoutError:
            raise _timed_out(until, self._deadline, self._limits) from None
        except OSError as error:
            raise StreamInterrupted(f"the answer was cut: {error or type(error).__name__}") from None
        self._read_bytes += len(chunk)
        if self._read_bytes > self._limits.body_bytes_max:
            raise MalformedResponse(f"the answer is larger than {self._limits.body_bytes_max} bytes")
        return chunk

    async def drain(self) -> None:
        """Read what is left, briefly, so that the connection can serve the next request; else it is closed."""
        until = asyncio.get_running_loop().time() + self._limits.drain_s
        try:
            while await self._body.read(until):
                pass
        except OSError:  # TimeoutError is one
            self._body.close()


class Transport:
    """Posts to providers over one shared pool. The pool's owner closes it; see `open_session`."""

    def __init__(self, pool: ConnectionPool, limits: TransportLimits | None = None) -> None:
        self._pool = pool
        self._limits = limits or TransportLimits()
        self._heads: dict[tuple[str, str], RequestHead] = {}

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> "Exchange":
        """Send and wait for the headers. `deadline` is on the loop's clock; leaving early cuts the connection."""
        return Exchange(self, "POST", url, headers, body, deadline)

    def get(self, url: str, headers: Mapping[str, str], deadline: float) -> "Exchange":
        """As `post`, without a body."""
        return Exchange(self, "GET", url, headers, b"", deadline)

    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> tuple[Connection, HttpReply]:
        """A redirect is an answer like others: a request goes where its key is for, or nowhere."""
        head = self._head(method, url, headers)
        message = head.posting(body) if method == "POST" else head.head
        connection = self._pool.reuse(head.origin)
        if connection is not None:
            try:
                return await self._answered(connection, message, deadline)
            except ConnectionError as error:
                # Whether a server that closes has read the request is not known: a second post could be a second bill.
                if method == "POST" or not connection.silent:
                    raise ProviderUnreachable(f"{url}: {error}") from None
        connection = await self._connected(head, url, deadline)
        try:
            return await self._answered(connection, message, deadline)
        except ConnectionError as error:
            raise ProviderUnreachable(f"{url}: {error}") from None

    async def _answered(self, connection: Connection, message: bytes, deadline: float) -> tuple[Connection, HttpReply]:
        try:
            await connection.ask(message, deadline)
        except TimeoutError:
            self._pool.give_back(connection)
            raise DeadlineExceeded("the deadline passed before the provider answered") from None
        except BaseException:
            self._pool.give_back(connection)
            raise
        body: Body = unpacked(connection, connection.coding) if connection.coding else connection
        return connection, HttpReply(connection.status, connection.headers, body, deadline, self._limits)

    async def _connected(self, head: RequestHead, url: str, deadline: float) -> Connection:
        try:
            return await self._pool.open(head.origin, self._limits.connect_s, deadline)
        except ConnectTimedOut:
            raise never_sent(ProviderTimedOut(f"no connection to {url} within {self._limits.connect_s} s")) from None
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the provider answered") from None
        except OSError as error:
            raise never_sent(ProviderUnreachable(f"{url}: {error or type(error).__name__}")) from None

    def _head(self, method: str, url: str, headers: Mapping[str, str]) -> RequestHead:
        head = self._heads.get((method, url))
        if head is not None and head.headers == headers:
            return head
        try:
            head = request_head(method, url, headers, self._pool.proxies)
        except ValueError as error:
            raise never_sent(ProviderUnreachable(f"{url}: {error}")) from None
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        self._heads[method, url] = head
        return head


class Exchange:
    """One request and its answer; to be entered once. The connection goes back to the pool when it is left."""

    __slots__ = ("_connection", "_request", "_transport")

    def __init__(
        self, transport: Transport, method: str, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> None:
        self._transport = transport
        self._request = (method, url, headers, body, deadline)
        self._connection: Connection

    async def __aenter__(self) -> HttpReply:
        self._connection, reply = await self._transport._asked(*self._request)
        return reply

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport._pool.give_back(self._connection)


@asynccontextmanager
async def open_session(
    connections_max: int = 1000, tls: ssl.SSLContext | None = None, proxies: Proxies | None = None
) -> AsyncIterator[ConnectionPool]:
    """Connections for all providers of a process; cookies are neither kept nor sent."""
    pool = ConnectionPool(PoolLimits(connections_max=connections_max), tls, proxies)
    try:
        yield pool
    finally:
        await pool.close()


def never_sent(error: ProviderError) -> ProviderError:
    """Without a connection nothing was asked, so nothing can be billed."""
    error.dispatched = False
    return error


def _timed_out(until: float, deadline: float, limits: TransportLimits) -> DeadlineExceeded | ProviderTimedOut:
    if until >= deadline:
        return DeadlineExceeded("the deadline passed before the answer was complete")
    return ProviderTimedOut(f"the provider sent nothing for {limits.idle_s} s")
