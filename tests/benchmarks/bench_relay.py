"""From PostgreSQL into JetStream, exactly once: alone, and with a rival that wants to do the same."""

import asyncio
import time

import nats
from eventlog.postgres import PostgresEventLog
from eventlog.relay import Relay
from harness import Report, Row, Size, nats_server, postgres
from logs import fill
from synod.common.subjects import event_stream

EVENTS = {"tiny": 1_000, "small": 20_000, "full": 400_000}
SERVICE = "bench"


async def measure(size: Size) -> Report:
    events = EVENTS[size]
    alone = await relay(events, rivals=1)
    rivals = await relay(events, rivals=2)
    rows = (
        Row("1 relay", "events/s", "1/s", alone, 20_000, "Nats-Msg-Id schemes are at least once beyond two minutes"),
        Row("2 rival relays", "events/s", "1/s", rivals),
    )
    return Report("relay", "JetStream file storage, one node, its default sync interval; PostgreSQL is the truth", rows)


async def relay(events: int, rivals: int) -> float:
    """Events a second until the stream holds every event once, sequence equal to position."""
    async with postgres() as dsn, nats_server() as url:
        log = await PostgresEventLog.open(dsn)
        clients = [await nats.connect(url) for _ in range(rivals)]
        try:
            await fill(log, events)
            start = time.perf_counter()
            tasks = [asyncio.create_task(Relay(log, client, SERVICE).run()) for client in clients]
            await until_published(clients[0], events)
            took = time.perf_counter() - start
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for client in clients:
                await client.close()
            await log.close()
    return events / took


async def until_published(client: nats.NATS, events: int) -> None:
    """Returns when the stream has all; more or fewer messages than the last sequence would be an error of the relay."""
    while True:
        try:
            state = (await client.jetstream().stream_info(event_stream(SERVICE))).state
        except nats.js.errors.NotFoundError:
            state = None
        if state is not None and state.last_seq >= events:
            assert state.messages == state.last_seq == events
            return
        await asyncio.sleep(0.01)
