"""One foreign log, several views of a process: each event is fetched once, and nobody misses one."""

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import StoredEvent
from eventlog.relay import Relay, RelayConfig
from eventlog.shared_source import SharedStreamSource
from eventlog.sources import Reader
from eventlog.testing import a_stream, an_append, an_event, positions
from nats.aio.client import Client
from synod.common.ids import uuid7
from synod.common.subjects import event_stream

LIMIT = 4


class Orders:
    """A service's log, published as it grows."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.service = f"svc-{uuid7().hex}"
        self.log = MemoryEventLog()
        self.relay = Relay(self.log, client, self.service, RelayConfig(idle_check_s=0.05))

    async def happen(self, *types: str) -> None:
        appended = await self.log.append(an_append(a_stream(), *[an_event(name) for name in types]))
        await self.relay.wait_for(appended.position, timeout_s=30)

    def source(self, kept_events: int = 100) -> SharedStreamSource:
        return SharedStreamSource(self.client, self.service, kept_events=kept_events)

    async def consumers(self) -> int:
        return len(await self.client.jetstream().consumers_info(event_stream(self.service)))

    async def until_waited_for(self) -> None:
        async with asyncio.timeout(30):
            while not any(
                each.num_waiting for each in await self.client.jetstream().consumers_info(event_stream(self.service))
            ):
                pass


@pytest.fixture
async def orders(nats_url: str) -> AsyncIterator[Orders]:
    client = await nats.connect(nats_url)
    orders = Orders(client)
    relaying = asyncio.create_task(orders.relay.run())
    yield orders
    await end(relaying)
    await client.close()


async def read_to(reader: Reader, goal: int, after: int = 0) -> list[StoredEvent]:
    events: list[StoredEvent] = []
    async with asyncio.timeout(30):
        while after < goal:
            page = await reader.read(after, LIMIT)
            events += page.events
            after = page.position
    return events


async def test_two_readers_get_the_same_events_over_one_consumer(orders: Orders) -> None:
    source = orders.source()
    first, second = source.reader(None), source.reader(None)
    await orders.happen(*["Placed"] * 10)
    ahead = await read_to(first, 10)
    behind = await read_to(second, 10)
    assert positions(ahead) == positions(behind) == list(range(1, 11))
    assert all(one is other for one, other in zip(ahead, behind, strict=True))
    assert await orders.consumers() == 1
    await first.close()
    await second.close()
    assert await orders.consumers() == 0


async def test_each_reader_gets_its_own_types_and_passes_over_the_others(orders: Orders) -> None:
    source = orders.source()
    placed, paid = source.reader(frozenset({"Placed"})), source.reader(frozenset({"Paid"}))
    await orders.happen("Placed", "Paid", "Placed", "Sent", "Paid", "Sent")
    assert positions(await read_to(placed, 6)) == [1, 3]
    assert positions(await read_to(paid, 6)) == [2, 5]
    await placed.close()
    await paid.close()


async def test_who_is_behind_all_that_is_kept_catches_up_alone_and_then_shares_again(orders: Orders) -> None:
    source = orders.source(kept_events=3)
    ahead, behind = source.reader(None), source.reader(None)
    await orders.happen(*["Placed"] * 10)
    await read_to(ahead, 10)
    assert positions((await behind.read(0, LIMIT)).events) == [1, 2, 3, 4]
    assert await orders.consumers() == 2
    assert positions(await read_to(behind, 10, after=4)) == [5, 6, 7, 8, 9, 10]
    assert await orders.consumers() == 1
    await ahead.close()
    await behind.close()


async def test_a_reader_that_starts_far_ahead_leaves_nobody_behind(orders: Orders) -> None:
    source = orders.source()
    ahead, behind = source.reader(None), source.reader(None)
    await orders.happen(*["Placed"] * 10)
    assert positions((await ahead.read(8, LIMIT)).events) == [9, 10]
    assert positions(await read_to(behind, 10)) == list(range(1, 11))
    await ahead.close()
    await behind.close()


async def test_all_who_wait_learn_of_what_one_of_them_was_told(orders: Orders) -> None:
    source = orders.source()
    readers = [source.reader(None) for _ in range(3)]
    await orders.happen("Placed")
    for reader in readers:
        await read_to(reader, 1)
    waiting = [asyncio.create_task(reader.wait(1, timeout_s=30)) for reader in readers]
    await orders.until_waited_for()
    await orders.happen("Paid")
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert [positions(await read_to(reader, 2, after=1)) for reader in readers] == [[2]] * 3
    for reader in readers:
        await reader.close()


async def test_a_reader_that_stops_while_it_waits_takes_nothing_from_the_others(orders: Orders) -> None:
    source = orders.source()
    stopped, other = source.reader(None), source.reader(None)
    await orders.happen("Placed")
    await read_to(stopped, 1)
    waiting = asyncio.create_task(stopped.wait(1, timeout_s=300))
    await orders.until_waited_for()
    await end(waiting)
    await stopped.close()
    await stopped.close()
    await orders.happen("Paid", "Sent")
    assert positions(await read_to(other, 3)) == [1, 2, 3]
    assert await orders.consumers() == 1
    await other.close()
