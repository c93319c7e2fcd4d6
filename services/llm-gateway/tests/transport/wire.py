"""A server that says exactly what a test wants it to say, byte for byte."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LIMIT_S = 20.0


class Peer:
    """One connection, as its server sees it."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request, whole. Raises IncompleteReadError when the connection ends instead."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        body = await self._reader.readexactly(int(lengths[0].rpartition(b" ")[2])) if lengths else b""
        self._server.requests.append(head + body)
        return head + body

    async def something(self) -> bytes:
        """What comes first."""
        return await self._reader.read(1)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait for the end of what the other side sends."""
        while await self._reader.read(65536):
            pass


@dataclass
class Server:
    origin: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody has closed a connection."""


@asynccontextmanager
async def serving(
    serve: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    """Each connection is closed when `serve` returns."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        try:
            await serve(Peer(server, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            server.left.set()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()

    listener = await asyncio.start_server(accept, host, 0, ssl=tls)
    async with listener:
        where = f"[{host}]" if ":" in host else host
        server.origin = f"{'https' if tls else 'http'}://{where}:{listener.sockets[0].getsockname()[1]}"
        yield server
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def always(answer: bytes) -> Callable[[Peer], Awaitable[None]]:
    """The same answer to every request, on a connection that stays."""

    async def serve(peer: Peer) -> None:
        while await peer.request():
            await peer.say(answer)

    return serve


def once(answer: bytes) -> Callable[[Peer], Awaitable[None]]:
    """One answer, and the connection is closed."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer)

    return serve


def soon() -> float:
    """A deadline that only a test that fails reaches."""
    return asyncio.get_running_loop().time() + LIMIT_S
