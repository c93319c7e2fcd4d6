"""Connections to providers that are kept and used again, as few as are needed and no more than are allowed."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from aiohappyeyeballs import AddrInfoType, start_connection

from llm_gateway.providers.connection import Connection
from llm_gateway.providers.proxies import Proxies, Proxy
from llm_gateway.providers.tunnel import dig

_HAPPY_EYEBALLS_S: Final = 0.25
"""How long an address has the way to itself before the next is tried beside it (RFC 8305, section 5)."""


class Origin(NamedTuple):
    tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """`connections_max` counts those in use, to all origins together. Seconds: how long a connection may lie unused,
    how old it may grow before what its name stands for is looked up again, how long an address is remembered, and how
    long closing may take.
    """

    connections_max: int = 1000
    unused_s: float = 15.0
    age_s: float = 300.0
    address_s: float = 10.0
    close_s: float = 1.0


class ConnectTimedOut(TimeoutError):
    """No connection within its own time, before that of the call was up."""


class ConnectionPool:
    """`reuse` or `open` takes a connection, and whoever has one gives it back. `tls` is for tests and private roots."""

    def __init__(
        self,
        limits: PoolLimits | None = None,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.proxies = proxies or Proxies()
        self._limits = limits or PoolLimits()
        self._given_tls = tls
        self._loop = asyncio.get_running_loop()
        self._all: dict[Connection, Origin] = {}
        self._unused: dict[Origin, list[Connection]] = {}
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._addresses: dict[Origin, asyncio.Task[Sequence[AddrInfoType]]] = {}
        self._closed: asyncio.Future[None] | None = None

    def reuse(self, origin: Origin) -> Connection | None:
        """The connection that was used last, if there is one and the limit allows it."""
        if self._used >= self._limits.connections_max:
            return None
        connection = self._fresh(origin)
        if connection is not None:
            self._used += 1
        return connection

    async def open(self, origin: Origin, connect_s: float, deadline: float) -> Connection:
        """A new connection, or one that became free while the limit allowed none.

        Raises ConnectTimedOut after `connect_s` seconds of connecting, TimeoutError at `deadline`, and OSError.
        """
        await self._place(deadline)
        until = self._loop.time() + connect_s
        try:
            async with asyncio.timeout_at(min(until, deadline)):
                return self._fresh(origin) or await self._connected(origin)
        except BaseException as error:
            self._free_place()
            if isinstance(error, TimeoutError) and until < deadline:
                raise ConnectTimedOut from None
            raise

    def give_back(self, connection: Connection) -> None:
        """One in the middle of an answer is cut off; what was not read of it is not wanted."""
        now = self._loop.time()
        connection.idle_since = now
        if connection.reusable and now - connection.opened_at < self._limits.age_s and connection in self._all:
            self._unused.setdefault(self._all[connection], []).append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._limits.unused_s, self._sweep)
        else:
            connection.close()
        self._free_place()

    async def close(self) -> None:
        """Close all, those in use too; who does not answer to that in time is cut off."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for lookup in self._addresses.values():
            lookup.cancel()
        self._closed = self._loop.create_future()
        for connection in self._all:
            connection.close()
        if self._all:
            late = self._loop.call_later(self._limits.close_s, self._abort_all)
            await self._closed
            late.cancel()

    # --- the limit ---

    async def _place(self, deadline: float) -> None:
        """First come, first served: a place that is freed passes to who waits longest."""
        if self._used < self._limits.connections_max:
            self._used += 1
            return
        freed = self._loop.create_future()
        self._waiting.append(freed)
        try:
            async with asyncio.timeout_at(deadline):
                await freed
        except BaseException:
            if freed.done() and not freed.cancelled():
                self._free_place()
            raise

    def _free_place(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._used -= 1

    # --- connecting ---

    async def _connected(self, origin: Origin) -> Connection:
        proxy = self.proxies.of(origin)
        wire = await self._wire(origin, proxy)
        try:
            if proxy is not None and origin.tls:
                await dig(wire, proxy, origin.host, origin.port)
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._forget),
                sock=wire,
                ssl=self._tls if origin.tls else None,
                server_hostname=origin.host if origin.tls else None,
                ssl_shutdown_timeout=self._limits.close_s if origin.tls else None,
            )
        except BaseException:
            wire.close()
            raise
        if self._closed is not None:
            connection.abort()
            raise ConnectionError("this process is stopping")
        if connection.is_open:
            self._all[connection] = origin
        return connection

    async def _wire(self, origin: Origin, proxy: Proxy | None) -> socket.socket:
        """To the provider, or to the proxy, which looks its name up itself."""
        near = origin if proxy is None else Origin(False, proxy.host, proxy.port)
        try:
            addresses = await self._addresses_of(near)
            return await start_connection(
                addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1, loop=self._loop
            )
        except OSError as error:
            if proxy is None or isinstance(error, TimeoutError):
                raise
            raise ConnectionError(f"the proxy at {proxy.host}:{proxy.port} cannot be reached: {error}") from error

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Roots are read when the first provider wants TLS: that takes some tens of milliseconds."""
        if self._given_tls is not None:
            return self._given_tls
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def _addresses_of(self, origin: Origin) -> Sequence[AddrInfoType]:
        """Looked up once for all who connect at the same time, and for some seconds."""
        lookup = self._addresses.get(origin)
        if lookup is None:
            lookup = self._loop.create_task(self._looked_up(origin))
            self._addresses[origin] = lookup
            lookup.add_done_callback(lambda done: self._keep_addresses(origin, done))
        return await asyncio.shield(lookup)

    async def _looked_up(self, origin: Origin) -> Sequence[AddrInfoType]:
        return await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)

    def _keep_addresses(self, origin: Origin, done: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        failed = done.cancelled() or done.exception() is not None
        self._loop.call_later(0.0 if failed else self._limits.address_s, self._addresses.pop, origin, None)

    # --- those that are kept ---

    def _fresh(self, origin: Origin) -> Connection | None:
        unused = self._unused.get(origin)
        now = self._loop.time() if unused else 0.0
        while unused:
            connection = unused.pop()
            if self._is_fresh(connection, now):
                return connection
            connection.close()
        return None

    def _is_fresh(self, connection: Connection, now: float) -> bool:
        return connection.reusable and now - connection.idle_since < self._limits.unused_s

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        for origin, unused in list(self._unused.items()):
            fresh = [each for each in unused if self._is_fresh(each, now)]
            for stale in set(unused) - set(fresh):
                stale.close()
            self._unused[origin] = fresh
            if not fresh:
                del self._unused[origin]
        if self._unused:
            self._sweeper = self._loop.call_later(self._limits.unused_s, self._sweep)

    def _forget(self, connection: Connection) -> None:
        origin = self._all.pop(connection, None)
        if origin is not None and connection in (unused := self._unused.get(origin, [])):
            unused.remove(connection)
        if self._closed is not None and not self._closed.done() and not self._all:
            self._closed.set_result(None)

    def _abort_all(self) -> None:
        for connection in self._all:
            connection.abort()
