"""HTTP to providers over aiohttp: bounded in time and size, every fault a ProviderError."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from llm_gateway.errors import (
    DeadlineExceeded,
    MalformedResponse,
    ProviderError,
    ProviderTimedOut,
    ProviderUnreachable,
    StreamInterrupted,
)


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Seconds and bytes. `idle_s` bounds the pause between two chunks; the first one may take until the deadline."""

    connect_s: float = 5.0
    idle_s: float = 60.0
    drain_s: float = 0.25
    body_bytes_max: int = 64 * 1024 * 1024


class Body(Protocol):
    async def readany(self) -> bytes:
        """The next bytes as they arrive; none at the end. Raises aiohttp.ClientError, OSError."""
        ...


class Response(Protocol):
    """What an HTTP client answers once the headers are there, as aiohttp does. Whoever asked closes it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> Body: ...

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

    def __init__(self, response: Response, deadline: float, limits: TransportLimits) -> None:
        self._response = response
        self._deadline = deadline
        self._begun = False
        self._limits = limits
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def body(self) -> bytes:
        """The whole body. Raises MalformedResponse above the limit, StreamInterrupted when it is cut."""
        chunks: list[bytes] = []
        size = 0
        while chunk := await self.read():
            size += len(chunk)
            if size > self._limits.body_bytes_max:
                raise MalformedResponse(f"the answer is larger than {self._limits.body_bytes_max} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def read(self) -> bytes:
        """The next bytes of the body as they arrive; none at its end."""
        idle_until = asyncio.get_running_loop().time() + self._limits.idle_s if self._begun else self._deadline
        chunk = await self._read(min(self._deadline, idle_until))
        self._begun = True
        return chunk

    async def drain(self) -> None:
        """Read what is left, briefly, so that the connection can serve the next request; else it is closed."""
        try:
            async with asyncio.timeout(self._limits.drain_s):
                while await self._response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError):
            self._response.close()

    async def _read(self, until: float) -> bytes:
        try:
            async with asyncio.timeout_at(until):
                return await self._response.content.readany()
        except TimeoutError:
            raise _timed_out(until, self._deadline, self._limits) from None
        except (aiohttp.ClientError, OSError) as error:
            raise StreamInterrupted(f"the answer was cut: {error or type(error).__name__}") from None


class Transport:
    """Posts to providers over one shared session. The session's owner closes it; see `open_session`."""

    def __init__(self, session: aiohttp.ClientSession, limits: TransportLimits | None = None) -> None:
        self._session = session
        self._limits = limits or TransportLimits()
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s)

    @asynccontextmanager
    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> AsyncIterator[HttpReply]:
        """Send and wait for the headers. `deadline` is on the loop's clock; leaving early cuts the connection."""
        response = await self._send("POST", url, headers, body, deadline)
        async with response:
            yield HttpReply(response, deadline, self._limits)

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str], deadline: float) -> AsyncIterator[HttpReply]:
        """As `post`, without a body."""
        response = await self._send("GET", url, headers, None, deadline)
        async with response:
            yield HttpReply(response, deadline, self._limits)

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, deadline: float
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._session.request(
                    method, url, data=body, headers=headers, allow_redirects=False, timeout=self._timeout
                )
        except aiohttp.ServerTimeoutError:
            raise never_sent(ProviderTimedOut(f"no connection to {url} within {self._limits.connect_s} s")) from None
        except aiohttp.ClientConnectorError as error:
            raise never_sent(ProviderUnreachable(f"{url}: {error}")) from None
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the provider answered") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnreachable(f"{url}: {error or type(error).__name__}") from None


@asynccontextmanager
async def open_session(connections_max: int = 1000) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for all providers of a process; cookies are neither kept nor sent."""
    connector = aiohttp.TCPConnector(limit=connections_max, limit_per_host=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


def never_sent(error: ProviderError) -> ProviderError:
    """Without a connection nothing was asked, so nothing can be billed."""
    error.dispatched = False
    return error


def _timed_out(until: float, deadline: float, limits: TransportLimits) -> DeadlineExceeded | ProviderTimedOut:
    if until >= deadline:
        return DeadlineExceeded("the deadline passed before the answer was complete")
    return ProviderTimedOut(f"the provider sent nothing for {limits.idle_s} s")
