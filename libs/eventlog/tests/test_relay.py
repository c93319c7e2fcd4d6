"""The relay: sequence equals position, exactly once, whoever else publishes and whatever is lost."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nats
import nats.errors
import nats.js.errors
import pytest
from eventlog.ending import end
from eventlog.errors import RelayDiverged
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Context, NewEvent, StreamId
from eventlog.relay import Relay, RelayConfig, from_message
from eventlog.testing import a_stream, an_append, an_event
from launcher.testing import RunningNats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from synod.common.ids import uuid7
from synod.common.streams import EVENTS_KEPT, events_of
from synod.common.subjects import event_stream

QUICK = RelayConfig(ack_timeout_s=0.5, idle_check_s=0.1, retry_pause_max_s=0.1)


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog()


async def fill(log: MemoryEventLog, events: int) -> None:
    await asyncio.gather(
        *[log.append(an_append(a_stream(), *[an_event() for _ in range(10)])) for _ in range(events // 10)]
    )


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[Relay]:
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        await end(task)
    assert task.cancelled()


async def received(client: Client, service: str, count: int) -> list[Msg]:
    """Every message of the stream, once it holds `count`."""
    js = client.jetstream()
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
    subscription = await js.pull_subscribe("", stream=event_stream(service), config=config)
    messages: list[Msg] = []
    async with asyncio.timeout(30):
        while len(messages) < count:
            messages += await subscription.fetch(min(500, count - len(messages)), timeout=10)
    await subscription.unsubscribe()
    assert (await js.stream_info(event_stream(service))).state.last_seq == count
    return messages


async def assert_published(client: Client, service: str, log: MemoryEventLog) -> None:
    """The stream holds the log, event by event."""
    events = await log.read(limit=100_000)
    messages = await received(client, service, len(events))
    assert [from_message(message) for message in messages] == events


async def test_a_paced_relay_publishes_the_first_event_at_once_and_lets_what_follows_gather(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    async with running(Relay(log, client, service, RelayConfig(pace_s=3_600))) as relay:
        await log.append(an_append(a_stream()))
        assert await relay.wait_for(1, timeout_s=30) == 1
        await log.append(an_append(a_stream()))
        assert await relay.wait_for(2, timeout_s=0.2) == 1
    async with running(Relay(log, client, service, RelayConfig(pace_s=0.01))) as relay:
        for position in range(3, 13):
            await log.append(an_append(a_stream()))
            assert await relay.wait_for(position, timeout_s=30) >= position
    await assert_published(client, service, log)


@pytest.mark.parametrize("batch_events_min", [2, 1_000_000])
async def test_pages_are_exact_in_batches_and_one_by_one(
    client: Client, service: str, log: MemoryEventLog, batch_events_min: int
) -> None:
    await fill(log, 2_510)
    config = RelayConfig(batch_events_min=batch_events_min, page_events=250, window_messages=500)
    async with running(Relay(log, client, service, config)) as relay:
        assert await relay.wait_for(2_510, timeout_s=30) == 2_510
    await assert_published(client, service, log)
    (message,) = await received_from(client, service, 2_510)
    assert ("Nats-Batch-Commit" in (message.headers or {})) == (batch_events_min == 2)


async def test_of_events_that_are_published_together_only_the_last_is_answered(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    await fill(log, 20)
    subscription = await client.subscribe(f"synod.*.evt.{service}.>")
    async with running(Relay(log, client, service, replace(QUICK, batch_events_min=1_000_000))) as relay:
        assert await relay.wait_for(20, timeout_s=10) == 20
        messages = [await subscription.next_msg(timeout=10) for _ in range(20)]
    assert [bool(message.reply) for message in messages] == [False] * 19 + [True]
    await assert_published(client, service, log)


async def received_from(client: Client, service: str, first: int) -> list[Msg]:
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=first, ack_policy=AckPolicy.NONE
    )
    subscription = await client.jetstream().pull_subscribe("", stream=event_stream(service), config=config)
    messages = await subscription.fetch(1, timeout=10)
    await subscription.unsubscribe()
    return list(messages)


async def test_a_single_event_is_no_batch_whatever_is_asked_for(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    await log.append(an_append(a_stream()))
    async with running(Relay(log, client, service, replace(QUICK, batch_events_min=1))) as relay:
        assert await relay.wait_for(1, timeout_s=10) == 1
        assert relay.resyncs == 1
    (message,) = await received(client, service, 1)
    assert "Nats-Batch-Id" not in (message.headers or {})


async def test_a_stream_that_takes_no_batches_is_filled_one_by_one(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    plain = StreamConfig.from_response({**events_of(service).config(), "allow_atomic": False})
    await client.jetstream().add_stream(plain)
    await fill(log, 1_000)
    async with running(Relay(log, client, service)) as relay:
        assert await relay.wait_for(1_000, timeout_s=30) == 1_000
    await assert_published(client, service, log)


async def test_each_event_is_published_at_its_position_as_a_cloud_event(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    cause = uuid7()
    event = NewEvent("Placed", 2, b'{"n":1}', uuid7(), datetime(2026, 1, 1, tzinfo=UTC))
    await log.append(
        Append(StreamId("order", "o1"), 0, (event,), Context("acme", "zoë", "run-1", cause, "00-ab-cd-01"))
    )
    async with running(Relay(log, client, service)) as relay:
        assert await relay.wait_for(1, timeout_s=30) == 1
    (message,) = await received(client, service, 1)
    assert message.subject == f"synod.acme.evt.{service}.order.o1.Placed"
    assert message.data == b'{"n":1}'
    headers = message.headers or {}
    assert headers["ce-id"] == str(event.id)
    assert headers["ce-source"] == f"/synod/{service}"
    assert headers["ce-type"] == f"synod.{service}.Placed"
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-time"] == "2026-01-01T00:00:00+00:00"
    assert headers["ce-subject"] == "order/o1"
    assert headers["traceparent"] == "00-ab-cd-01"
    assert headers["synod-tenant"] == "acme"
    assert headers["synod-causation"] == str(cause)
    assert from_message(message) == (await log.read())[0]


async def test_what_is_appended_later_follows(client: Client, service: str, log: MemoryEventLog) -> None:
    async with running(Relay(log, client, service)) as relay:
        for _ in range(3):
            await fill(log, 50)
            await relay.wait_for(await log.head(), timeout_s=30)
    await assert_published(client, service, log)


async def test_a_relay_goes_on_where_another_ended(client: Client, service: str, log: MemoryEventLog) -> None:
    for _ in range(2):
        await fill(log, 100)
        async with running(Relay(log, client, service)) as relay:
            await relay.wait_for(await log.head(), timeout_s=30)
    await assert_published(client, service, log)


async def test_rivals_that_crash_at_any_moment_publish_everything_exactly_once(
    nats_url: str, client: Client, service: str, log: MemoryEventLog
) -> None:
    await fill(log, 5_000)
    config = RelayConfig(window_messages=200, page_events=100, ack_timeout_s=2)

    async def rival(share: int) -> int:
        """Relays a part, dies without a word, and comes back as another one, until all is published."""
        resyncs = 0
        while True:
            own = await nats.connect(nats_url)
            relay = Relay(log, own, service, config)
            task = asyncio.create_task(relay.run())
            start = await relay.wait_for(1, timeout_s=30)
            reached = await relay.wait_for(start + share, timeout_s=2)
            await end(task)
            await own.close()
            resyncs += relay.resyncs
            if (
                reached >= 5_000
                or (await client.jetstream().stream_info(event_stream(service))).state.last_seq >= 5_000
            ):
                return resyncs

    resyncs = await asyncio.gather(rival(400), rival(700), rival(1_100))
    assert sum(resyncs) > 3
    await assert_published(client, service, log)


async def test_a_deleted_stream_is_made_anew_and_filled(client: Client, service: str, log: MemoryEventLog) -> None:
    await fill(log, 100)
    async with running(Relay(log, client, service, QUICK)) as relay:
        await relay.wait_for(100, timeout_s=30)
        await client.jetstream().delete_stream(event_stream(service))
        await fill(log, 50)
        async with asyncio.timeout(30):
            while await stream_end(client, service) < 150:
                await relay.wait_for(151, timeout_s=0.05)
    await assert_published(client, service, log)


async def test_a_relay_that_makes_no_stream_waits_for_one_and_fills_it_from_the_first_event(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    js = client.jetstream()
    await fill(log, 100)
    async with running(Relay(log, client, service, replace(QUICK, makes_stream=False))) as relay:
        await said(relay, f"NATS has no stream {event_stream(service)}")
        with pytest.raises(nats.js.errors.NotFoundError):
            await js.stream_info(event_stream(service))
        await js.add_stream(StreamConfig.from_response(dict(events_of(service).config())))
        await relay.wait_for(100, timeout_s=30)
        assert relay.problem == ""
        await js.delete_stream(event_stream(service))
        await fill(log, 50)
        await said(relay, "has no stream")
        await js.add_stream(StreamConfig.from_response(dict(events_of(service).config())))
        await said(relay, "")
        assert await relay.wait_for(150, timeout_s=30) == 150
    await assert_published(client, service, log)


def forgetful(service: str, max_msgs: int = EVENTS_KEPT) -> StreamConfig:
    """A stream that counts from 60 on: as NATS made it once after a stream was deleted, and may after a crash."""
    return StreamConfig.from_response(dict(events_of(service, max_msgs=max_msgs).config()) | {"first_seq": 60})


@pytest.mark.parametrize("max_msgs", [EVENTS_KEPT, 50])
async def test_a_stream_that_lost_more_than_its_limit_tells_is_made_anew_and_filled(
    client: Client, service: str, log: MemoryEventLog, max_msgs: int
) -> None:
    await fill(log, 100)
    await client.jetstream().add_stream(forgetful(service, max_msgs))
    async with running(Relay(log, client, service, QUICK)) as relay:
        async with asyncio.timeout(30):
            while await relay.wait_for(100, timeout_s=1) < 100:
                continue
    await assert_published(client, service, log)


async def test_a_stream_keeps_so_many_of_the_newest_and_that_is_no_loss(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    js, name = client.jetstream(), event_stream(service)
    await fill(log, 120)
    async with running(Relay(log, client, service, replace(QUICK, max_msgs=50))) as relay:
        assert await relay.wait_for(120, timeout_s=30) == 120
        made = (await js.stream_info(name)).created
        looks = relay.resyncs
        async with asyncio.timeout(30):
            while relay.resyncs < looks + 3:
                assert relay.problem == ""
                await relay.wait_for(121, timeout_s=0.05)
        await fill(log, 10)
        assert await relay.wait_for(130, timeout_s=30) == 130
    info = await js.stream_info(name)
    assert (info.state.first_seq, info.state.last_seq, info.state.messages) == (81, 130, 50)
    assert info.created == made


async def test_a_relay_that_makes_no_stream_goes_on_where_the_front_is_missing_and_says_so_once(
    client: Client, service: str, log: MemoryEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(log, 100)
    await client.jetstream().add_stream(forgetful(service))
    async with running(Relay(log, client, service, replace(QUICK, makes_stream=False))) as relay:
        assert await relay.wait_for(100, timeout_s=30) == 100
        looks = relay.resyncs
        async with asyncio.timeout(30):
            while relay.resyncs < looks + 3:
                await relay.wait_for(101, timeout_s=0.05)
        assert relay.problem == ""
    told = [record.getMessage() for record in caplog.records if "begins after" in record.getMessage()]
    assert told == [f"relay of {service}: stream {event_stream(service)} begins after event 59 only"]
    state = (await client.jetstream().stream_info(event_stream(service))).state
    assert (state.first_seq, state.last_seq, state.messages) == (60, 100, 41)


async def test_a_relay_that_makes_no_stream_says_what_a_stream_lost_in_the_middle(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    js, name = client.jetstream(), event_stream(service)
    await fill(log, 100)
    open_to_all = dict(events_of(service).config()) | {"deny_delete": False, "deny_purge": False}
    await js.add_stream(StreamConfig.from_response(open_to_all))
    async with running(Relay(log, client, service, replace(QUICK, makes_stream=False))) as relay:
        assert await relay.wait_for(100, timeout_s=30) == 100
        await js.delete_msg(name, 50)
        await said(relay, f"NATS lost 1 of the events in stream {name}")
        await js.delete_stream(name)
        await js.add_stream(StreamConfig.from_response(dict(events_of(service).config())))
        await said(relay, "")
        assert await relay.wait_for(100, timeout_s=30) == 100
    await assert_published(client, service, log)


@pytest.mark.parametrize("batch_events_min", [2, 1_000_000], ids=["in batches", "one by one"])
async def test_what_comes_before_an_event_too_large_for_the_server_is_published_and_the_event_named(
    client: Client, service: str, log: MemoryEventLog, monkeypatch: pytest.MonkeyPatch, batch_events_min: int
) -> None:
    await fill(log, 100)
    await log.append(an_append(a_stream(), an_event(data=b"x" * 20_000)))
    await fill(log, 100)
    allowed = client._max_payload
    monkeypatch.setattr(client, "_max_payload", 10_000)
    async with running(Relay(log, client, service, replace(QUICK, batch_events_min=batch_events_min))) as relay:
        assert await relay.wait_for(100, timeout_s=10) == 100
        await said(relay, "event 101 cannot be published")
        resyncs = relay.resyncs
        async with asyncio.timeout(30):
            while relay.resyncs < resyncs + 2:  # tried again, it does not seem well in between
                assert "event 101 cannot be published" in relay.problem
                await asyncio.sleep(0)
        assert await stream_end(client, service) == 100
        monkeypatch.setattr(client, "_max_payload", allowed)
        assert await relay.wait_for(201, timeout_s=10) == 201
        await said(relay, "")
    await assert_published(client, service, log)


async def said(relay: Relay, problem: str) -> None:
    """Returns once the relay says that this is wrong, or with an empty text that nothing is."""
    async with asyncio.timeout(30):
        # What is wrong has no event to wait for; it is read by a gauge.
        while (problem not in relay.problem) if problem else relay.problem:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def stream_end(client: Client, service: str) -> int:
    try:
        return (await client.jetstream(timeout=1).stream_info(event_stream(service))).state.last_seq
    except (nats.js.errors.NotFoundError, nats.errors.TimeoutError):
        return 0  # not there, or a request was lost with its connection


async def test_a_server_that_dies_in_the_middle_loses_and_doubles_nothing(
    fresh_nats: RunningNats, service: str, log: MemoryEventLog
) -> None:
    client = await nats.connect(fresh_nats.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    async with running(Relay(log, client, service, QUICK)) as relay:
        await fill(log, 500)
        await relay.wait_for(200, timeout_s=30)
        fresh_nats.kill()
        await fill(log, 500)
        fresh_nats.start()
        async with asyncio.timeout(60):
            while await relay.wait_for(1_000, timeout_s=1) < 1_000:
                continue
    await assert_published(client, service, log)
    await client.close()


async def test_appends_go_on_while_nats_is_away_and_are_published_when_it_is_back(
    fresh_nats: RunningNats, service: str, log: MemoryEventLog
) -> None:
    client = await nats.connect(fresh_nats.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    async with running(Relay(log, client, service, replace(QUICK, window_messages=100, page_events=50))) as relay:
        await fill(log, 100)
        await relay.wait_for(100, timeout_s=30)
        fresh_nats.stop()
        async with asyncio.timeout(30):
            await fill(log, 3_000)
        assert (await log.head(), relay.position) == (3_100, 100)
        fresh_nats.start()
        async with asyncio.timeout(60):
            while await relay.wait_for(3_100, timeout_s=1) < 3_100:
                continue
    await assert_published(client, service, log)
    await client.close()


async def test_a_stream_that_lost_its_tail_gets_it_again(
    fresh_nats: RunningNats, tmp_path: Path, service: str, log: MemoryEventLog
) -> None:
    client = await nats.connect(fresh_nats.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    kept, lost = tmp_path / "kept", fresh_nats.server.directory / "jetstream"
    async with running(Relay(log, client, service, QUICK)) as relay:
        await fill(log, 500)
        await relay.wait_for(500, timeout_s=30)
        fresh_nats.stop()
        shutil.copytree(lost, kept)
        fresh_nats.start()
        await fill(log, 700)
        async with asyncio.timeout(60):
            while await relay.wait_for(1_200, timeout_s=1) < 1_200:
                continue
        fresh_nats.kill()
        shutil.rmtree(lost)
        shutil.copytree(kept, lost)
        fresh_nats.start()
        async with asyncio.timeout(60):
            while await stream_end(client, service) < 1_200:
                await relay.wait_for(1_201, timeout_s=0.05)
    await assert_published(client, service, log)
    await client.close()


async def test_a_stream_that_holds_more_than_the_log_stops_the_relay(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    relay = Relay(log, client, service)
    await relay.ensure_stream()
    await client.jetstream().publish(f"synod.local.evt.{service}.x.y.Z", b"{}")
    with pytest.raises(RelayDiverged, match="the log ends before it"):
        await relay.run()


async def test_a_foreign_message_in_the_stream_stops_the_relay(
    client: Client, service: str, log: MemoryEventLog
) -> None:
    await fill(log, 10)
    relay = Relay(log, client, service)
    await relay.ensure_stream()
    await client.jetstream().publish(f"synod.local.evt.{service}.x.y.Z", b"{}")
    with pytest.raises(RelayDiverged, match="not the event of the log"):
        await relay.run()
