"""The server of an edge: uvicorn's, inside the service's own process and under its host's signals."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import uvicorn
from servicekit.dependencies import PortTaken

from httpedge.certificate import EdgeCertificate
from httpedge.http import Straight, straightened

_NO_UPGRADE: Final[Mapping[str, Any]] = MappingProxyType({"ws": "none"})
"""Whichever packages are installed: what finds a library of WebSockets would pass an upgrade on to `app`."""


async def no_application(scope: object, receive: object, send: object) -> None:
    """For an edge whose every request is answered straight."""
    raise AssertionError("a request came to ASGI that should have been answered straight")


async def _nothing() -> None:
    return


class _Server(uvicorn.Server):
    """Signals are the host's: it stops this server as one of its tasks."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(slots=True)
class EdgeServer:
    """Listens from the moment it is made, so that a port that is taken ends the start with a clear word.

    `straight` has what is its own, `app` the rest. `goodbye` is awaited before the server ends connections that are left,
    and `grace_s` is how long requests under way may then take. `options` are uvicorn's. Raises PortTaken.
    """

    host: str
    asked_port: int
    straight: Straight
    grace_s: float
    certificate: EdgeCertificate | None = None
    app: Callable[..., Awaitable[None]] = no_application
    goodbye: Callable[[], Awaitable[None]] = _nothing
    options: Mapping[str, Any] = field(default_factory=lambda: _NO_UPGRADE)
    listener: socket.socket = field(init=False)
    _running: "tuple[_Server, asyncio.Task[None]] | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        try:
            self.listener = socket.create_server((self.host, self.asked_port), backlog=4096)
        except OSError as error:
            raise PortTaken("SYNOD_EDGE_PORT", self.host, self.asked_port, error.strerror) from error

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.host}:{self.port}"

    async def run(self) -> None:
        """Serve until told to leave, or cancelled; then say goodbye to every client and let requests finish."""
        server = _Server(self._config())
        serving = asyncio.create_task(server.serve([self.listener.dup()]))
        self._running = server, serving
        try:
            await asyncio.shield(serving)
        finally:
            await _to_its_end(self._end(server, serving))

    async def leave(self, grace_s: float) -> None:
        """Take in nobody any more, let requests under way finish for so long, then cancel the rest; `run` returns."""
        self.listener.close()
        if self._running is not None:
            server, serving = self._running
            server.config.timeout_graceful_shutdown = _whole_seconds(grace_s)
            await self._end(server, serving)

    async def close(self) -> None:
        self.listener.close()

    async def _end(self, server: _Server, serving: "asyncio.Task[None]") -> None:
        await self.goodbye()
        server.should_exit = True
        await asyncio.wait([serving])

    def _config(self) -> uvicorn.Config:
        certificate = self.certificate
        return uvicorn.Config(
            self.app,
            http=straightened(self.straight),
            ssl_context_factory=(lambda _config, _make: certificate.context) if certificate else None,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            # Of requests that come one behind the other, each is begun by the task of the one before, which is another call.
            reset_contextvars=True,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_whole_seconds(self.grace_s),
            **self.options,
        )


def _whole_seconds(grace_s: float) -> int:
    return max(1, int(grace_s))


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Await the work of stopping, however often it is told meanwhile to stop."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
