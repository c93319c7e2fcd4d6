"""From PostgreSQL into JetStream, exactly once: alone, with a rival that wants to do the same, on a cluster, to the disk."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager

import nats
import nats.errors
from eventlog.postgres import PostgresEventLog
from eventlog.relay import Relay, RelayConfig
from harness import Report, Row, Size, nats_cluster, nats_server, postgres
from logs import fill
from nats.js.api import AckPolicy, ConsumerConfig
from synod.common.subjects import event_stream

EVENTS = {"tiny": 1_000, "small": 20_000, "full": 400_000}
SERVICE = "bench"
STREAM = event_stream(SERVICE)
ELECTION_S = 30.0
PAGE = 1_000
PEER = "Nats-Msg-Id schemes are at least once beyond two minutes"


async def measure(size: Size) -> Report:
    events = EVENTS[size]
    rows = (
        Row("single node", "events/s", "1/s", await relay(nats_server(), events), 20_000, PEER),
        Row("single node, 2 rival relays", "events/s", "1/s", await relay(nats_server(), events, relays=2)),
        Row("three nodes, R3", "events/s", "1/s", await relay(nats_cluster(3), events, replicas=3)),
        Row("sync_interval always", "events/s", "1/s", await relay(nats_server(durable=True), events)),
    )
    durability = (
        "PostgreSQL is the truth, flushed; JetStream on files, its default sync interval unless the case says always, "
        "all servers on this machine; after each case every message's sequence and id were compared with the log"
    )
    return Report("relay", durability, rows)


async def relay(servers: AbstractAsyncContextManager[str], events: int, *, relays: int = 1, replicas: int = 1) -> float:
    """Events a second until the stream holds every event once, sequence equal to position."""
    config = RelayConfig(replicas=replicas, max_msgs=-1)
    async with postgres() as dsn, servers as url:
        log = await PostgresEventLog.open(dsn)
        clients = [await nats.connect(url) for _ in range(relays)]
        try:
            await fill(log, events)
            rivals = [Relay(log, client, SERVICE, config) for client in clients]
            await until_there_is_a_stream(rivals[0])
            start = time.perf_counter()
            tasks = [asyncio.create_task(rival.run()) for rival in rivals]
            await until_published(clients[0], events)
            took = time.perf_counter() - start
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await check_exact(clients[0], log, events)
        finally:
            for client in clients:
                await client.close()
            await log.close()
    return events / took


async def until_there_is_a_stream(relay: Relay) -> None:
    """A cluster first elects who leads."""
    async with asyncio.timeout(ELECTION_S):
        while True:
            try:
                await relay.ensure_stream()
                return
            except nats.errors.Error:
                await asyncio.sleep(0.1)


async def until_published(client: nats.NATS, events: int) -> None:
    """Returns when the stream has all; more or fewer messages than the last sequence would be an error of the relay."""
    while True:
        state = (await client.jetstream().stream_info(STREAM)).state
        if state.last_seq >= events:
            assert state.messages == state.last_seq == events
            return
        await asyncio.sleep(0.01)


async def check_exact(client: nats.NATS, log: PostgresEventLog, events: int) -> None:
    """Every message is the event of the log at the position of its sequence."""
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, num_replicas=1)
    subscription = await client.jetstream().pull_subscribe("", stream=STREAM, config=config)
    position = 0
    while position < events:
        messages = await subscription.fetch(min(PAGE, events - position), timeout=10)
        for message, event in zip(messages, await log.read(position, limit=len(messages)), strict=True):
            assert message.metadata.sequence.stream == event.position
            assert (message.headers or {})["ce-id"] == str(event.id)
        position += len(messages)
    await subscription.unsubscribe()
