"""Events over NATS: in order, decoded, without gap or duplicate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import nats
import pytest
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, NewEvent, StreamId
from eventlog.relay import Relay
from nats.js.api import StreamConfig
from synod.agent_runtime.events import RunCancelled
from synod.common.ids import uuid7
from synod_client import Endpoints, InvalidInput, Limits, Recorded, Refused, Synod
from synod_client.testing import FakeSystem

WAIT_S = 30
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CODEC: Codec[Any] = Codec([RunCancelled])


def event(number: int) -> RunCancelled:
    run = f"run_{number}"
    return RunCancelled(run_id=run, root_run_id=run, definition_name="helper", epoch=1, reason="by hand")


def cancelled(number: int) -> NewEvent:
    return CODEC.encode(event(number), at=NOW)


async def append(log: MemoryEventLog, *events: NewEvent) -> None:
    context = Context(tenant="local", actor="Zoë", correlation="run_1")
    for new in events:
        await log.append(Append(StreamId("run", "run_1"), ANY, (new,), context))


class Runtime:
    """The log of agent-runtime and the stream that its relay fills."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.log = MemoryEventLog()

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        client = await nats.connect(self.server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
        relay = asyncio.create_task(Relay(self.log, client, "agent-runtime").run())
        try:
            yield
        finally:
            await end(relay)
            await client.close()


@pytest.fixture
async def runtime(fresh_nats: Any) -> AsyncIterator[Runtime]:
    found = Runtime(fresh_nats)
    async with found.relaying():
        yield found


@pytest.fixture
async def synod(fakes: FakeSystem, fresh_nats: Any) -> AsyncIterator[Synod]:
    async with Synod.connect(Endpoints(fakes.addresses, fresh_nats.url, "", "key"), Limits()) as connected:
        yield connected


async def first(count: int, synod: Synod, **options: Any) -> list[Recorded]:
    """The next events that a follower sees."""
    events = synod.follow("agent-runtime", **options)
    async with asyncio.timeout(WAIT_S):
        seen = [await anext(events) for _ in range(count)]
    await events.aclose()
    return seen


async def test_events_come_decoded_with_their_place_in_the_log(runtime: Runtime, synod: Synod) -> None:
    await append(runtime.log, cancelled(1), cancelled(2))
    _, second = await first(2, synod)
    assert second.event == event(2)
    assert (second.position, second.stream, second.version, second.type) == (2, "run/run_1", 2, "RunCancelled")
    assert (second.tenant, second.actor, second.correlation, second.occurred_at) == ("local", "Zoë", "run_1", NOW)
    assert RunCancelled.model_validate_json(second.data) == second.event


async def test_a_follower_goes_on_after_its_cursor_and_sees_what_is_appended_later(
    runtime: Runtime, synod: Synod
) -> None:
    await append(runtime.log, *map(cancelled, range(1, 4)))
    events = synod.follow("agent-runtime", after=2)
    async with asyncio.timeout(WAIT_S):
        assert (await anext(events)).position == 3
        later = asyncio.ensure_future(anext(events))
        await append(runtime.log, cancelled(4))
        assert (await later).position == 4
    await events.aclose()


async def test_a_follower_waits_for_a_service_that_has_not_written_yet(fresh_nats: Any, synod: Synod) -> None:
    waiting = asyncio.create_task(first(1, synod))
    runtime = Runtime(fresh_nats)
    await append(runtime.log, cancelled(1))
    async with runtime.relaying():
        assert [seen.position for seen in await waiting] == [1]


async def test_only_the_types_asked_for_are_given_and_the_positions_stay(runtime: Runtime, synod: Synod) -> None:
    unknown = NewEvent(type="RunDreamt", type_version=1, data=b'{"of": "sheep"}', id=uuid7(), occurred_at=NOW)
    await append(runtime.log, cancelled(1), unknown, cancelled(3))
    assert [seen.position for seen in await first(2, synod, types={"RunCancelled"})] == [1, 3]
    (dreamt,) = await first(1, synod, types={"RunDreamt"})
    assert (dreamt.position, dreamt.event, dreamt.data) == (2, None, b'{"of": "sheep"}')


async def test_nothing_is_lost_or_seen_twice_when_nats_is_killed_and_starts_again(
    runtime: Runtime, synod: Synod
) -> None:
    await append(runtime.log, *map(cancelled, range(1, 301)))
    events = synod.follow("agent-runtime")
    seen: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while len(seen) < 150:
            seen.append((await anext(events)).position)
        runtime.server.kill()
        await append(runtime.log, *map(cancelled, range(301, 401)))
        runtime.server.start()
        while len(seen) < 400:
            seen.append((await anext(events)).position)
    await events.aclose()
    assert seen == list(range(1, 401))


async def test_what_the_server_sent_into_a_broken_connection_is_asked_for_again(runtime: Runtime, synod: Synod) -> None:
    """The consumer believes that it delivered; silence afterwards must not be taken for the end of the log."""
    await append(runtime.log, cancelled(1))
    events = synod.follow("agent-runtime")
    async with asyncio.timeout(WAIT_S):
        assert (await anext(events)).position == 1
        rival = await nats.connect(runtime.server.url)
        (consumer,) = await rival.jetstream().consumers_info("EVT_AGENT_RUNTIME")
        await append(runtime.log, cancelled(2))
        thief = await rival.jetstream().pull_subscribe_bind(name=consumer.name, stream="EVT_AGENT_RUNTIME")
        assert (await thief.fetch(1, timeout=5))[0].metadata.sequence.stream == 2
        await rival.close()
        assert (await anext(events)).position == 2
    await events.aclose()


async def test_a_cursor_that_the_stream_no_longer_reaches_is_refused(fresh_nats: Any, synod: Synod) -> None:
    client = await nats.connect(fresh_nats.url)
    config = StreamConfig(name="EVT_AGENT_RUNTIME", subjects=["synod.*.evt.agent-runtime.>"], first_seq=100)
    await client.jetstream().add_stream(config)
    await client.close()
    with pytest.raises(
        Refused, match=r"EVT_AGENT_RUNTIME begins at 100, what follows position 5 .* Synod\.read"
    ) as gone:
        await first(1, synod, after=5)
    assert gone.value.reason == "POSITION_AGED_OUT"


async def test_an_unknown_service_is_refused(synod: Synod) -> None:
    with pytest.raises(InvalidInput, match="there is no service 'runtime'"):
        await anext(synod.follow("runtime"))


async def test_the_observers_login_is_all_that_a_follower_needs(fakes: FakeSystem, bus: Any) -> None:
    service = await nats.connect(bus.url("agent-runtime"))
    log = MemoryEventLog()
    relay = asyncio.create_task(Relay(log, service, "agent-runtime").run())
    await append(log, cancelled(1))
    async with Synod.connect(bus.endpoints(fakes)) as synod:
        assert [seen.position for seen in await first(1, synod)] == [1]
    await end(relay)
    await service.close()
