"""Publishes a log to JetStream, each event exactly once and in order.

The stream's sequence equals the log's position. Every message carries Nats-Expected-Last-Sequence: position - 1, so
the server itself refuses a duplicate, a gap or a stale relay. There is no checkpoint to lose: where the stream ends is
where the relay goes on. Any number of rivals may run at once, and a stream that was lost or cut short is filled again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from random import random
from typing import Final

import nats.errors
import nats.js.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig, StreamInfo
from synod.common.streams import DAY_S, EVENTS_KEPT, events_of
from synod.common.subjects import event_stream, event_subject

from eventlog.envelope import from_headers, header_block
from eventlog.errors import LogUnavailable, RelayDiverged
from eventlog.log import EventLog
from eventlog.records import Page, StoredEvent
from eventlog.signal import HeadSignal, settle, settled

_BATCH_EVENTS_MIN: Final = 2
"""The first message of a batch opens it, another one commits it."""
_PIECE_EVENTS: Final = 50
"""So many messages are handed to the connection at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """How the stream is kept and how it is filled."""

    replicas: int = 1
    """3 in production: then the stream survives the loss of a server."""
    max_age_s: float = 30 * DAY_S
    """How long messages stay. The log keeps everything; the stream serves those who follow."""
    max_msgs: int = EVENTS_KEPT
    """How many stay at most; -1 for any number. Those who follow get older ones from the log (past.py)."""
    window_messages: int = 4_000
    """Messages published and not yet acknowledged."""
    page_events: int = 1_000
    """Read at once; at most 1,000, the largest batch that the server takes."""
    batch_events_min: int = 50
    """A page of so many events is published as one atomic batch: one acknowledgement, and one flush of the server's disk
    where it flushes always. Fewer go one by one, for less delay, and so does a single one. Only if the stream allows
    batches."""
    pace_s: float = 0.0
    """Under steady load events are published this often at most: those of several commits go as one piece, which the server
    takes and answers once. The first event after a rest is published at once."""
    makes_stream: bool = True
    """Make the stream if it is missing. Not where an administrator makes streams, and a service's user may not: the relay
    then waits for the stream, and fills it from the first event on."""
    ack_timeout_s: float = 5.0
    """Without any acknowledgement, or any other answer of the server, for so long, the relay looks anew where the stream
    ends."""
    idle_check_s: float = 5.0
    """How often an idle relay looks whether the stream is still whole."""
    retry_pause_max_s: float = 2.0


class Fenced(Exception):
    """The stream refused a message: another relay came first, or the stream was cut short."""


class StreamMissing(Exception):
    """There is no stream to publish to, and the relay is not to make one."""

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"NATS has no stream {stream}; an administrator makes it, the relay then fills it from the log"
        )


class StreamDamaged(Exception):
    """The stream lost events from its middle: it has to be filled anew."""

    def __init__(self, stream: str, events: int) -> None:
        super().__init__(
            f"NATS lost {events} of the events in stream {stream}; an administrator deletes the stream and makes it anew, the"
            " relay then fills it from the log"
        )


class EventUnpublishable(Exception):
    """An event cannot be a message of this server. Nothing is published beyond it: what follows would leave a gap."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"event {position} cannot be published, and nothing after it: {reason}")
        self.position = position


class Relay:
    """Publishes `log` as the events of `service`. Owns the stream's configuration, not the connection."""

    def __init__(self, log: EventLog, client: Client, service: str, config: RelayConfig | None = None) -> None:
        self._log = log
        self._client = client
        self._config = config or RelayConfig()
        self._js = client.jetstream(timeout=self._config.ack_timeout_s)
        self._service = service
        self._stream = event_stream(service)
        self._window = _Window(0)
        self._allows_batches = False
        self._unpublishable = 0
        self._missed = 0
        self._published = HeadSignal()
        self.resyncs = 0
        self.problem = ""
        """Why nothing is published at present; empty while all is well."""

    @property
    def position(self) -> int:
        """The last position known to be in the stream."""
        return self._published.head

    async def wait_for(self, position: int, timeout_s: float) -> int:
        """The last position known to be published, once it reaches `position` or the time is over."""
        return await self._published.wait_for(position, timeout_s)

    async def run(self) -> None:
        """Publish for ever. RelayDiverged if the stream holds what the log does not; ConnectionClosedError if the
        connection was closed for good.
        """
        inbox = self._client.new_inbox()
        acks = await self._client.subscribe(f"{inbox}.*", cb=self._on_ack, pending_msgs_limit=-1)
        pause_s = 0.01
        try:
            while True:
                try:
                    await self._resync()
                    await self._publish_until_idle(inbox)
                    pause_s = 0.01
                except nats.errors.ConnectionClosedError:
                    raise
                except (StreamMissing, StreamDamaged) as error:
                    self._report(str(error))
                    await asyncio.sleep(self._config.retry_pause_max_s)
                except EventUnpublishable as error:
                    self._unpublishable = error.position
                    self._report(str(error))
                    await asyncio.sleep(self._config.retry_pause_max_s)
                except (Fenced, nats.errors.Error, TimeoutError, OSError, LogUnavailable) as error:
                    _log.info("relay of %s looks anew where its stream ends: %r", self._service, error)
                    await asyncio.sleep(pause_s * (0.5 + random()))
                    pause_s = 0.01 if isinstance(error, Fenced) else min(2 * pause_s, self._config.retry_pause_max_s)
        finally:
            if not self._client.is_closed:
                await acks.unsubscribe()

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("relay of %s: %s", self._service, problem or "publishes again")
        self.problem = problem

    async def ensure_stream(self) -> int:
        """The sequence of the stream's last message. Creates a missing stream, or raises StreamMissing."""
        return (await self._ensured()).state.last_seq

    async def _ensured(self) -> StreamInfo:
        try:
            info = await self._js.stream_info(self._stream)
        except nats.js.errors.NotFoundError as error:
            if not self._config.makes_stream:
                raise StreamMissing(self._stream) from error
            info = await self._js.add_stream(self._stream_config())
        self._allows_batches = bool(info.config.allow_atomic)
        return info

    def _stream_config(self) -> StreamConfig:
        config = self._config
        stream = events_of(
            self._service, replicas=config.replicas, max_age_s=config.max_age_s, max_msgs=config.max_msgs
        )
        made: StreamConfig = StreamConfig.from_response(dict(stream.config()))
        return made

    async def _resync(self) -> None:
        info = await self._ensured()
        last = info.state.last_seq
        await self._check_same_history(last)
        await self._check_whole(info)
        self.resyncs += 1
        if last + 1 != self._unpublishable:  # that is tried again, for the server may take more by now
            self._report("")
        self._window = _Window(last)
        self._published.move(last)

    async def _check_same_history(self, last: int) -> None:
        """The stream's last message must be the log's event of that position: by the hash chain, all before it are."""
        if last == 0:
            return
        events = await self._log.read(last - 1, limit=1)
        if not events:
            raise RelayDiverged(self._stream, last, "the log ends before it")
        try:
            message = await self._js.get_msg(self._stream, last)
        except nats.js.errors.NotFoundError:
            return  # aged out: the stream is empty and goes on counting
        if (message.headers or {}).get("synod-hash") != events[0].hash.hex():
            raise RelayDiverged(self._stream, last, "the message is not the event of the log")

    async def _check_whole(self, info: StreamInfo) -> None:
        """Nothing but age and number may take messages out of the stream. A server that crashed may come back without some,
        and yet remember how far it had counted: then only a stream made anew equals the log again.

        Where an administrator makes streams he decides, of what is missing at the front: it may be that the stream was
        allowed fewer before, and who follows it gets that from the log.
        """
        lost = await self._lost(info)
        if lost is None:
            return
        if self._config.makes_stream:
            _log.warning("relay of %s: NATS lost event %d, the stream is made anew", self._service, lost)
            await self._js.delete_stream(self._stream)
            raise Fenced(f"the stream lost event {lost}")
        if info.state.num_deleted:
            raise StreamDamaged(self._stream, info.state.num_deleted)
        if lost != self._missed:
            self._missed = lost
            _log.warning("relay of %s: stream %s begins after event %d only", self._service, self._stream, lost)

    async def _lost(self, info: StreamInfo) -> int | None:
        """A position that is missing in the stream though it is too young for that, and there is room for it."""
        state, room = info.state, info.config.max_msgs or -1
        if state.num_deleted:
            return state.first_seq
        # By the log and not by how many there are: a server that crashed may have lost the newest.
        if state.first_seq <= 1 or (room > 0 and state.first_seq <= await self._log.head() - room + 1):
            return None
        (before,) = await self._log.read(state.first_seq - 2, limit=1)
        age_s = (datetime.now(UTC) - before.recorded_at).total_seconds()
        return before.position if age_s < (info.config.max_age or inf) / 2 else None

    async def _publish_until_idle(self, inbox: str) -> None:
        window = self._window
        ahead: asyncio.Task[Page] | None = None
        try:
            while True:
                page = await (ahead or self._read(window.sent))
                # The next page is read while this one is published.
                ahead = asyncio.create_task(self._read(page.position)) if page.more else None
                await self._publish_page(page.events, f"{inbox}.{window.name}")
                self._report("")
                if page.events:
                    await self._rest(page)
                else:
                    await window.wait_for_room(1, self._config.ack_timeout_s)
                    if await self._log.wait_for(window.sent + 1, self._config.idle_check_s) <= window.sent:
                        return
        finally:
            if ahead is not None:
                ahead.cancel()

    async def _rest(self, page: Page) -> None:
        """Let events gather, unless there are more already."""
        if self._config.pace_s > 0 and not page.more:
            await asyncio.sleep(self._config.pace_s)

    async def _read(self, after: int) -> Page:
        return await self._log.next_page(after, limit=self._config.page_events)

    async def _publish_page(self, events: Sequence[StoredEvent], reply: str) -> None:
        window, config = self._window, self._config
        if self._allows_batches and len(events) >= max(_BATCH_EVENTS_MIN, config.batch_events_min):
            # All or none: where one event cannot be part of it, those before it go in pieces.
            with suppress(EventUnpublishable):
                batch = self._batch(events, reply)
                await window.wait_for_room(config.window_messages, config.ack_timeout_s)
                window.sent = events[-1].position
                await send(self._client, batch)
                return
        for at in range(0, len(events), _PIECE_EVENTS):
            await window.wait_for_room(config.window_messages, config.ack_timeout_s)
            await self._publish_piece(events[at : at + _PIECE_EVENTS], reply)

    async def _publish_piece(self, events: Sequence[StoredEvent], reply: str) -> None:
        """Each on its own condition. What comes before an event that cannot be a message is published all the same.

        Only the last is answered: it is taken where all before it were, and refused where one of them was.
        """
        messages: list[bytes] = []
        last = events[-1].position
        try:
            messages.extend(
                self._message(event, _expected_last(event), f"{reply}_{last}" if event.position == last else "")
                for event in events
            )
        finally:
            self._window.sent += len(messages)
            await send(self._client, messages)

    def _batch(self, events: Sequence[StoredEvent], reply: str) -> list[bytes]:
        """All or none of a page, by ADR-50: the first message says what must come before, the last one commits."""
        first, last = events[0], events[-1]
        name = f"{self._window.name}-{first.position}"
        begun = [self._message(event, _of_batch(name, number)) for number, event in enumerate(events[1:-1], start=2)]
        opening = _expected_last(first) + _of_batch(name, 1)
        closing = _of_batch(name, len(events)) + "Nats-Batch-Commit: 1\r\n"
        return [
            self._message(first, opening),
            *begun,
            self._message(last, closing, f"{reply}_{last.position}"),
        ]

    def _message(self, event: StoredEvent, conditions: str, reply: str = "") -> bytes:
        stream = event.stream
        subject = event_subject(event.tenant, self._service, stream.aggregate, stream.id, event.type)
        if " " in subject or not subject.isprintable():
            raise EventUnpublishable(event.position, f"{subject!r} is no subject")
        return as_message(event, self._service, subject, conditions, reply, self._client.max_payload)

    async def _on_ack(self, message: Msg) -> None:
        name, _, position = message.subject.rpartition(".")[2].partition("_")
        if name != self._window.name:
            return  # of a window given up
        self._window.answer(int(position), message.data)
        self._published.advance(self._window.acked)


def as_message(event: StoredEvent, service: str, subject: str, lines: str, reply: str, payload_max: int) -> bytes:
    """An event of `service` in the form of the protocol, with `lines` before its own headers. EventUnpublishable if that is
    more than a server takes, which would end the connection.
    """
    block = header_block(event, service, lines)
    size = len(block) + len(event.data)
    if size > payload_max:
        raise EventUnpublishable(event.position, f"{size} bytes, the server takes {payload_max}")
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), len(block), size, block, event.data)


async def send(client: Client, messages: Sequence[bytes]) -> None:
    """Send messages that are already in the form of the protocol, in order and in one piece.

    The client has no public way to send headers as bytes; its own takes more than half of a relay's time, for it looks at
    each header of each message anew, and hands what is to be sent to another task. Hence its private part, whose absence
    would be loud. Raises what publish would, or ConnectionResetError.
    """
    if client.is_closed:
        raise nats.errors.ConnectionClosedError
    transport = client._transport
    if transport is None or not client.is_connected:
        raise nats.errors.ConnectionReconnectingError
    # Before, not after: what comes next is put together while this is on its way.
    await transport.drain()  # type: ignore[no-untyped-call]
    transport.write(b"".join(messages))


def _expected_last(event: StoredEvent) -> str:
    return f"Nats-Expected-Last-Sequence: {event.position - 1}\r\n"


def _of_batch(name: str, number: int) -> str:
    return f"Nats-Batch-Id: {name}\r\nNats-Batch-Sequence: {number}\r\n"


class _Window:
    """What was sent and what of it is acknowledged, from one look at the stream to the next."""

    def __init__(self, last: int) -> None:
        self.name = secrets.token_hex(4)
        self.sent = last
        self.acked = last
        self._refusal: str | None = None
        self._waiter: asyncio.Future[bool] | None = None

    def answer(self, position: int, data: bytes) -> None:
        """Take the server's answer to one message; an empty one says that nobody listens."""
        answer = orjson.loads(data) if data else {"error": "no stream takes the subject"}
        if answer.get("error"):
            self._refusal = self._refusal or str(answer["error"])
        else:
            self.acked = max(self.acked, position)
        if self._waiter is not None:
            settle(self._waiter)

    async def wait_for_room(self, size: int, timeout_s: float) -> None:
        """Until fewer than `size` messages are unanswered. Fenced on a refusal, TimeoutError on silence."""
        while self._refusal is None and self.sent - self.acked >= size:
            self._waiter = asyncio.get_running_loop().create_future()
            if not await settled(self._waiter, timeout_s):
                raise TimeoutError
        if self._refusal is not None:
            raise Fenced(self._refusal)


def from_message(message: Msg) -> StoredEvent:
    """The event in a message that a JetStream consumer delivered, hashes included.

    Raises nats.errors.NotJSMessageError, KeyError or ValueError for messages of another kind.
    """
    return from_headers(message.metadata.sequence.stream, message.headers or {}, message.data)
