"""A gateway that stops says goodbye to everybody, and its log says how each connection ended."""

import asyncio

import aiohttp
import edge_fakes as fakes
import pytest
from edge_world import WAIT_S, running
from eventlog.postgres import PostgresEventLog
from launcher.testing import RunningNats
from servicekit.clock import SystemClock
from servicekit.tasks import CANCEL_AGAIN_S
from synod.ws_gateway.events import SessionClosed
from websockets.asyncio.client import connect
from ws_gateway.ws import Connection

HEADERS = {"X-API-Key": fakes.API_KEY}


@pytest.mark.parametrize("pause_s", [0, 2 * CANCEL_AGAIN_S])
async def test_stop_ends_every_connection_and_keeps_how_it_ended(
    postgres_dsn: str, fresh_nats: RunningNats, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """Also those that take longer to close than the server and the supervisor of its task have patience."""

    async def close_later(connection: Connection, code: int, reason: str) -> None:
        await asyncio.sleep(pause_s)
        await close_now(connection, code, reason)

    close_now = Connection._close
    monkeypatch.setattr(Connection, "_close", close_later)
    async with aiohttp.ClientSession(headers=HEADERS) as http:
        async with running(postgres_dsn, fresh_nats.url) as system:
            system.fake.hold_run = asyncio.Event()
            system.fake.updates = [fakes.update(3, "RunStarted")]
            socket = await connect(system.url.replace("http", "ws") + "/ws", additional_headers=HEADERS)
            await socket.recv()
            begun = asyncio.Event()
            stream = asyncio.create_task(read_all(http, f"{system.url}/api/v1/runs/{fakes.RUN_ID}/updates", begun))
            await asyncio.wait_for(begun.wait(), WAIT_S)
        await asyncio.wait_for(stream, WAIT_S)
    await asyncio.wait_for(socket.wait_closed(), WAIT_S)
    assert socket.close_code == 1001
    assert await closings(postgres_dsn) == [1001, 1001]


async def read_all(http: aiohttp.ClientSession, url: str, begun: asyncio.Event) -> None:
    """Reads a stream of updates until it ends, and tells when the first update has come."""
    async with http.get(url) as answer:
        async for line in answer.content:
            if line.startswith(b"event: update"):
                begun.set()


async def closings(dsn: str) -> list[int]:
    log = await PostgresEventLog.open(dsn, clock=SystemClock())
    try:
        events = await log.read()
    finally:
        await log.close()
    return [SessionClosed.model_validate_json(event.data).code for event in events if event.type == "SessionClosed"]


async def test_a_gateway_that_is_about_to_stop_says_so_and_still_answers(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    """So that a balancer sends new requests elsewhere, and no request comes by a connection as it is closed."""
    async with aiohttp.ClientSession(headers=HEADERS) as http, running(postgres_dsn, fresh_nats.url) as system:
        async with http.get(f"{system.url}/ready") as answer:
            before = answer.status, answer.headers.get("Connection")
        system.served.host.health.enter("stopping")
        async with http.get(f"{system.url}/ready") as answer:
            after = answer.status, answer.headers.get("Connection")
        async with http.get(f"{system.url}/api/v1/agents") as answer:
            served = answer.status
    assert (before, after, served) == ((200, None), (503, "close"), 200)
