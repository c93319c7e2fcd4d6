"""A whole gateway in front of faked services, on real PostgreSQL and NATS, with real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import edge_fakes as fakes
import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, NewEvent, StreamId
from eventlog.relay import Relay
from launcher.processes import free_port
from servicekit.testing import Served, serve_in_process, settings_for
from synod.common.ids import uuid7
from websockets.asyncio.client import ClientConnection, connect
from ws_gateway.clients import PEERS
from ws_gateway.main import compose
from ws_gateway.settings import EdgeLimits, Settings

WAIT_S = 30
Frame = dict[str, object]


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Waits for a condition, at most WAIT_S."""
    async with asyncio.timeout(WAIT_S):
        while True:
            met = condition()
            if await met if asyncio.iscoroutine(met) else met:
                return
            await asyncio.sleep(0.01)


@dataclass
class Client:
    """One WebSocket client: sends dictionaries, keeps every frame it got."""

    socket: ClientConnection
    got: list[Frame] = field(default_factory=list)
    _sent: int = 0

    async def send(self, type: str, **fields: object) -> str:
        self._sent += 1
        id = f"c{self._sent}"
        await self.socket.send(json.dumps({"type": type, "id": id} | fields))
        return id

    async def raw(self, frame: str | bytes) -> None:
        await self.socket.send(frame)

    async def next(self, *types: str) -> Frame:
        """The next frame of one of these types; others are passed over, kept in ``got``."""
        async with asyncio.timeout(WAIT_S):
            while True:
                frame: Frame = json.loads(await self.socket.recv())
                self.got.append(frame)
                if frame["type"] in types:
                    return frame

    async def ask(self, type: str, expected: str, **fields: object) -> Frame:
        """Sends a frame and gives the answer to it."""
        id = await self.send(type, **fields)
        frame = await self.next(expected, "system_error")
        assert frame["ref"] == id
        assert frame["type"] == expected, frame
        return frame

    async def closed(self) -> tuple[int, str]:
        """The code and reason with which the server closes."""
        async with asyncio.timeout(WAIT_S):
            await self.socket.wait_closed()
        return self.socket.close_code or 0, self.socket.close_reason or ""


@dataclass
class System:
    """A gateway, what it stands on, and what is faked around it."""

    served: Served[Settings]
    fake: fakes.FakeServices
    log: MemoryEventLog
    relay: Relay
    http: aiohttp.ClientSession
    url: str
    frames: list[Frame] = field(default_factory=list)

    async def append(self, type: str = "RunStarted", tenant: str = "local", run: str = "run_1", **data: object) -> int:
        """An event in the log of agent-runtime and, when this returns, in its stream. Its position."""
        event = NewEvent(type, 1, json.dumps(data).encode(), uuid7(), datetime.now(UTC))
        context = Context(tenant, "usr_test", correlation=run)
        position = (await self.log.append(Append(StreamId("run", run), ANY, (event,), context))).position
        assert await self.relay.wait_for(position, WAIT_S) >= position
        return position

    @asynccontextmanager
    async def client(self, token: str | None = fakes.API_KEY, **options: object) -> AsyncIterator[Client]:
        """A client that has authenticated by its first message; not at all with token None."""
        async with connect(self.url.replace("http", "ws") + "/ws", **options) as socket:  # type: ignore[arg-type]
            client = Client(socket)
            if token is not None:
                await client.ask("auth", "authenticated", token=token)
            try:
                yield client
            finally:
                self.frames += client.got


LIMITS = EdgeLimits(heartbeat_s=0.2, monitoring_s=0.1, violations_max=5, auth_wait_s=WAIT_S, sse_keepalive_s=0.1)


@asynccontextmanager
async def running(dsn: str, nats_url: str, limits: EdgeLimits = LIMITS, **values: Any) -> AsyncIterator[System]:
    key, log = Ed25519PrivateKey.generate(), MemoryEventLog()
    fake = fakes.FakeServices(key)
    client = await nats.connect(nats_url)
    relay = Relay(log, client, "agent-runtime")
    relaying = asyncio.create_task(relay.run())
    try:
        async with fakes.serve(fake, log) as address:
            peers = dict.fromkeys(PEERS, address)
            port = free_port()
            settings = settings_for(
                Settings, dsn, nats_url, peers=peers, edge_port=port, edge=limits, shutdown_grace_s=WAIT_S, **values
            )
            async with serve_in_process(compose, settings, key=key) as served:
                url = f"http://127.0.0.1:{port}"
                headers = {"Authorization": f"Bearer {fakes.API_KEY}"}
                async with aiohttp.ClientSession(url, headers=headers) as http:
                    yield System(served, fake, log, relay, http, url)
    finally:
        await end(relaying)
        await client.close()
