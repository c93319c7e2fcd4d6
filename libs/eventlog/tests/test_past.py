"""What a stream no longer holds comes from the log itself, over NATS, as it was once published."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import nats
import nats.errors
import orjson
import pytest
from eventlog import past_server
from eventlog.ending import end
from eventlog.errors import LogUnavailable, SourceTruncated
from eventlog.limits import Limits
from eventlog.log import EventLog
from eventlog.memory import MemoryEventLog
from eventlog.past import read_past
from eventlog.past_server import PastServer
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import EVERYTHING, Filter, StoredEvent
from eventlog.relay import Relay
from eventlog.shared_source import SharedStreamSource
from eventlog.sources import StreamSource
from eventlog.testing import a_stream, an_append, an_event
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig
from psycopg_pool import AsyncConnectionPool
from synod.common.streams import PAST_EVENTS_MAX
from synod.common.subjects import event_stream, past_subject
from test_projections import QUICK, Totals, totals
from test_relay import QUICK as RELAY
from test_relay import running

WAIT_S = 30.0
FEW = replace(RELAY, max_msgs=50)
"""For a stream that holds so many."""


@asynccontextmanager
async def answering(log: EventLog, client: Client, service: str, servers: int = 1) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(PastServer(log, client, service).run()) for _ in range(servers)]
    try:
        await is_listening(client, service)
        yield
    finally:
        for task in tasks:
            await end(task)


async def is_listening(client: Client, service: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await read_past(client, service, 0, 1, WAIT_S)
                return
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.01)


async def filled(log: EventLog, events: int, data: bytes = b'{"a": "\xc3\xa9"}') -> list[StoredEvent]:
    await log.append(an_append(a_stream(), *[an_event("Happened", data) for _ in range(events)]))
    return await log.read(0, limit=events)


async def asked(client: Client, service: str, body: bytes) -> Msg:
    return await client.request(past_subject(service), body, timeout=WAIT_S)


async def test_events_come_as_they_are_in_the_log(client: Client, service: str) -> None:
    log = MemoryEventLog()
    stored = await filled(log, 12)
    async with answering(log, client, service):
        assert await read_past(client, service, 0, 100, WAIT_S) == stored
        assert await read_past(client, service, 3, 4, WAIT_S) == stored[3:7]
        assert await read_past(client, service, 12, 5, WAIT_S) == []


async def test_an_answer_ends_where_it_is_large_enough_and_the_next_goes_on(
    client: Client, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_server, "PAGE_BYTES", 5_000)
    log, found = MemoryEventLog(), list[StoredEvent]()
    stored = await filled(log, 20, b'"%s"' % (b"x" * 998))
    async with answering(log, client, service):
        while page := await read_past(client, service, len(found), 100, WAIT_S):
            assert len(page) == 5
            found += page
    assert found == stored


async def test_more_than_an_answer_holds_is_asked_for_in_pages(client: Client, service: str) -> None:
    log = MemoryEventLog()
    stored = await filled(log, PAST_EVENTS_MAX + 10)
    async with answering(log, client, service):
        assert await read_past(client, service, 0, 10_000, WAIT_S) == stored[:PAST_EVENTS_MAX]


async def test_one_of_several_replicas_answers(client: Client, service: str) -> None:
    log = MemoryEventLog()
    stored = await filled(log, 5)
    async with answering(log, client, service, servers=3):
        for _ in range(10):
            assert await read_past(client, service, 0, 100, WAIT_S) == stored


async def test_where_nobody_listens_that_is_told_at_once(client: Client, service: str) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await read_past(client, service, 0, 1, WAIT_S)


WRONG = {
    b"": "Expecting|input|unexpected",
    b"[]": "after must be a position, 0 or more, and not None",
    b'{"after": -1, "limit": 1}': "after must be a position, 0 or more, and not -1",
    b'{"after": true, "limit": 1}': "after must be a position, 0 or more, and not True",
    b'{"after": 0}': "limit must be 1 to 500, and not None",
    b'{"after": 0, "limit": 501}': "limit must be 1 to 500, and not 501",
    b'{"after": 0, "limit": 0}': "limit must be 1 to 500, and not 0",
}


@pytest.mark.parametrize("body", WRONG)
async def test_what_is_no_request_is_answered_with_what_is_wrong_and_the_next_is_served(
    client: Client, service: str, body: bytes
) -> None:
    log = MemoryEventLog()
    stored = await filled(log, 1)
    async with answering(log, client, service):
        answer = await asked(client, service, body)
        assert any(
            part.lower() in (answer.headers or {})["synod-past-error"].lower() for part in WRONG[body].split("|")
        )
        await client.publish(past_subject(service), b"nobody waits for an answer")
        assert await read_past(client, service, 0, 1, WAIT_S) == stored


class Unreadable(MemoryEventLog):
    def __init__(self) -> None:
        super().__init__()
        self.failures = 0

    async def read(self, after: int, *, limit: int, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("the database\r\nis down")
        return await super().read(after, limit=limit, where=where)


async def test_a_log_that_cannot_be_read_is_away_for_who_asks_and_answers_later(client: Client, service: str) -> None:
    log = Unreadable()
    stored = await filled(log, 3)
    async with answering(log, client, service):
        log.failures = 1
        with pytest.raises(LogUnavailable, match=f"{service} cannot tell its past: the database is down"):
            await read_past(client, service, 0, 10, WAIT_S)
        assert await read_past(client, service, 0, 10, WAIT_S) == stored


async def test_an_answer_with_a_hole_is_no_answer(client: Client, service: str) -> None:
    log = MemoryEventLog()
    await filled(log, 4)

    class Lossy(PastServer):
        async def _messages(self, request: Msg) -> list[bytes]:
            messages = await super()._messages(request)
            return [messages[0], *messages[2:]] if len(messages) > 2 else messages

    task = asyncio.create_task(Lossy(log, client, service).run())
    try:
        await is_listening(client, service)
        with pytest.raises(nats.errors.TimeoutError):
            await read_past(client, service, 0, 10, WAIT_S)
    finally:
        await end(task)


async def test_what_is_sent_cannot_make_an_answer_that_the_server_refuses(nats_url: str, service: str) -> None:
    """A message that is larger than the server takes would cost the owner its connection, and all that goes over it."""
    log = MemoryEventLog()
    stored = await filled(log, 1)
    owner, client = await nats.connect(nats_url), await nats.connect(nats_url)
    async with answering(log, owner, service):
        answer = await asked(client, service, orjson.dumps({"after": "\x7f\n" * 150_000, "limit": 1}))
        assert len((answer.headers or {})["synod-past-error"]) < 500
        assert await read_past(client, service, 0, 1, WAIT_S) == stored
    assert owner.stats["reconnects"] == 0
    await owner.close()
    await client.close()


async def test_an_event_that_is_no_message_is_named(client: Client, service: str) -> None:
    log = MemoryEventLog(limits=Limits(data_bytes_max=2_000_000))
    await filled(log, 1)
    await filled(log, 1, b'"%s"' % (b"x" * 1_048_570))
    async with answering(log, client, service):
        with pytest.raises(LogUnavailable, match="event 2 cannot be published"):
            await read_past(client, service, 0, 10, WAIT_S)
        assert len(await read_past(client, service, 0, 1, WAIT_S)) == 1
    assert client.stats["reconnects"] == 0


async def test_silence_is_a_timeout(client: Client, service: str) -> None:
    await client.subscribe(past_subject(service))
    with pytest.raises(nats.errors.TimeoutError):
        await read_past(client, service, 0, 10, 0.01)


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        yield log


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:  # type: ignore[type-arg]
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=6, open=False) as pool:
        yield pool


@asynccontextmanager
async def aged_out(log: PostgresEventLog, client: Client, service: str, events: int) -> AsyncIterator[Relay]:
    """A relay whose stream held so many events of its log and holds them no more."""
    js, name = client.jetstream(), event_stream(service)
    config = StreamConfig(name=name, subjects=[f"synod.*.evt.{service}.>"], max_age=0.2, duplicate_window=0.1)
    await js.add_stream(config)
    async with running(Relay(log, client, service, RELAY)) as relay:
        await filled(log, events)
        assert await relay.wait_for(events, WAIT_S) == events
        async with asyncio.timeout(WAIT_S):
            while (await js.stream_info(name)).state.messages:
                continue
        yield relay


async def test_a_view_is_folded_from_the_log_where_the_stream_has_aged_out(
    pool,  # type: ignore[no-untyped-def]
    log: PostgresEventLog,
    client: Client,
    service: str,
) -> None:
    async with aged_out(log, client, service, 600), answering(log, client, service):
        projector = Projector(pool, Totals(), StreamSource(client, service), QUICK)
        following = asyncio.create_task(projector.run())
        try:
            assert await projector.wait_for(600, timeout_s=WAIT_S) == 600
            await filled(log, 7)  # and on from there, by the stream or the log
            assert await projector.wait_for(607, timeout_s=WAIT_S) == 607
            assert await projector.rebuild() == 607
            assert (await projector.verify()).equal
        finally:
            await end(following)
    assert await totals(pool) == {"Happened": 607}


async def test_only_the_types_asked_for_come_and_all_positions_are_passed(
    log: PostgresEventLog, client: Client, service: str
) -> None:
    async with aged_out(log, client, service, 20), answering(log, client, service):
        reader = StreamSource(client, service).reader(frozenset({"Never"}))
        page = await reader.read(0, 15)
        assert (list(page.events), page.position) == ([], 15)
        assert (await reader.read(15, 15)).position == 20
        await reader.close()


async def test_without_an_answer_it_is_said_what_is_missing(
    log: PostgresEventLog, client: Client, service: str
) -> None:
    async with aged_out(log, client, service, 5):
        reader = StreamSource(client, service).reader(None)
        with pytest.raises(SourceTruncated, match="starts at 6, the view stands at 0"):
            await reader.read(0, 10)


async def test_a_request_is_what_the_contract_says(client: Client, service: str) -> None:
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(message: Msg) -> None:
        seen.put_nowait(message.data)

    await client.subscribe(past_subject(service), cb=keep)
    with pytest.raises(nats.errors.TimeoutError):
        await read_past(client, service, 7, 10_000, 0.05)
    assert past_subject(service) == f"synod.sys.{service}.past"
    assert orjson.loads(await seen.get()) == {"after": 7, "limit": 500}


@pytest.mark.parametrize("source_type", [StreamSource, SharedStreamSource])
async def test_a_reader_follows_a_stream_that_loses_its_oldest_while_it_reads(
    client: Client, service: str, source_type: type[StreamSource]
) -> None:
    """Every event comes once and in order, by the stream or from the log, and nobody has to begin again."""
    log = MemoryEventLog()
    await filled(log, 1_000)
    relay, stop = Relay(log, client, service, FEW), asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await filled(log, 10)
            await relay.wait_for(await log.head(), WAIT_S)

    async with running(relay), answering(log, client, service), asyncio.timeout(WAIT_S):
        assert await relay.wait_for(1_000, WAIT_S) == 1_000
        loading = asyncio.create_task(load())
        reader, positions = source_type(client, service).reader(None), list[int]()
        while len(positions) < 3_000:
            page = await reader.read(len(positions), 70)
            positions += [event.position for event in page.events]
            assert page.position == len(positions)
            if not page.events:
                await reader.wait(len(positions), WAIT_S)
        stop.set()
        await loading
        await reader.close()
    assert positions == list(range(1, len(positions) + 1))


async def test_waiting_ends_where_the_stream_has_lost_what_comes_next(client: Client, service: str) -> None:
    log = MemoryEventLog()
    await filled(log, 100)
    async with running(Relay(log, client, service, FEW)) as relay, answering(log, client, service):
        assert await relay.wait_for(100, WAIT_S) == 100
        reader = StreamSource(client, service).reader(None)
        assert (await reader.read(60, 5)).position == 65
        await filled(log, 300)
        assert await relay.wait_for(400, WAIT_S) == 400
        async with asyncio.timeout(WAIT_S):
            while not (page := await reader.read(65, 5)).events:
                await reader.wait(65, WAIT_S)
        assert [event.position for event in page.events] == [66, 67, 68, 69, 70]
        await reader.close()
