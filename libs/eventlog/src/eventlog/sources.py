"""Where a view's events come from: the own log, or the stream of a foreign one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import nats.errors
import nats.js.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from synod.common.ids import uuid7
from synod.common.subjects import event_stream

from eventlog.arrivals import Arrivals
from eventlog.envelope import from_headers
from eventlog.errors import SourceTruncated
from eventlog.log import EventLog
from eventlog.past import read_past
from eventlog.records import EVERYTHING, Filter, Page, StoredEvent

_PIECE_EVENTS = 100

Types = frozenset[str] | None


class Reader(Protocol):
    """One pass over a source; not shared. Raises LogUnavailable, TimeoutError or nats.errors.Error while the source is
    away; the next read goes on where the last one succeeded.
    """

    async def read(self, after: int, limit: int) -> Page:
        """The events after a position among the next `limit` of the source; an empty page at `after` if none is new."""
        ...

    async def wait(self, after: int, timeout_s: float) -> None:
        """Until there is probably something new, or the time is over."""
        ...

    async def close(self) -> None: ...


class Source(Protocol):
    """A sequence of events by position. `name` is the service whose log it is."""

    @property
    def name(self) -> str: ...

    async def head(self) -> int:
        """The position of the newest event."""
        ...

    def reader(self, types: Types) -> Reader:
        """A new pass that yields only events of `types`; None means all."""
        ...


class LogSource:
    """The own log, read from where it is stored."""

    def __init__(self, log: EventLog, name: str = "") -> None:
        self._log = log
        self.name = name

    async def head(self) -> int:
        return await self._log.head()

    def reader(self, types: Types) -> Reader:
        return _LogReader(self._log, EVERYTHING if types is None else Filter(types=types))


class _LogReader:
    """Where there is more, the next page is read while the caller works on the last one."""

    def __init__(self, log: EventLog, where: Filter) -> None:
        self._log = log
        self._where = where
        self._ahead: tuple[int, int, asyncio.Task[Page]] | None = None

    async def read(self, after: int, limit: int) -> Page:
        page = await self._read_ahead(after, limit)
        if page.more:
            self._ahead = page.position, limit, asyncio.create_task(self._read(page.position, limit))
        return page

    async def wait(self, after: int, timeout_s: float) -> None:
        await self._log.wait_for(after + 1, timeout_s)

    async def close(self) -> None:
        if self._ahead is not None:
            _, _, reading = self._ahead
            self._ahead = None
            reading.cancel()
            await asyncio.wait([reading])

    async def _read_ahead(self, after: int, limit: int) -> Page:
        """The page read ahead, if it is the one asked for."""
        if self._ahead is None or self._ahead[:2] != (after, limit):
            await self.close()
            return await self._read(after, limit)
        _, _, reading = self._ahead
        self._ahead = None
        return await reading

    async def _read(self, after: int, limit: int) -> Page:
        return await self._log.next_page(after, limit=limit, where=self._where)


async def read_page(log: EventLog, after: int, limit: int, where: Filter, bytes_max: int) -> Page:
    """As EventLog.next_page, but as fresh as the database: what any process appended before is there. The page ends with
    the event whose data brings it to `bytes_max`.
    """
    # The head is read first: whatever the filter skips up to it has been seen and can be passed over.
    head = await log.head()
    events: list[StoredEvent] = []
    last = after
    while len(events) < limit:
        # The bytes are known only when they are here: asked for in pieces.
        asked = min(limit - len(events), _PIECE_EVENTS)
        piece = await log.read(last, limit=asked, where=where)
        for event in piece:
            events.append(event)
            last = event.position
            bytes_max -= len(event.data)
            if bytes_max <= 0:
                return Page(events, last, last < head)
        if len(piece) < asked:
            return Page(events, max(head, last))
    return Page(events, last, last < head)


class StreamSource:
    """A foreign service's log, followed through its JetStream stream. Owns no connection."""

    def __init__(self, client: Client, service: str) -> None:
        self._client = client
        self.name = service
        self.stream = event_stream(service)

    async def head(self) -> int:
        return (await self.bounds())[1]

    async def bounds(self) -> tuple[int, int]:
        """The first and the last sequence of the stream; (1, 0) while there is no stream yet."""
        try:
            state = (await self._client.jetstream().stream_info(self.stream)).state
        except nats.js.errors.NotFoundError:
            return 1, 0
        return state.first_seq, state.last_seq

    def reader(self, types: Types) -> Reader:
        return _StreamReader(self._client, self, types)


class _StreamReader:
    """Pulls through an ephemeral consumer without acknowledgements; the position is the caller's.

    Sequences must follow each other. Where they do not (a reconnect lost messages, the stream was made anew) the
    consumer is given up and the next read starts another one at the right place. The types are chosen here, not by the
    server: only so does every sequence show up and is a loss noticed.
    """

    BYTES_MAX = 32 * 1024 * 1024
    ANSWER_TIMEOUT_S = 5.0
    LOOK_S = 0.2
    """How often who waits for an answer looks whether the connection that was asked over is still there."""
    INACTIVE_S = 60.0
    NO_STREAM_PAUSE_S = 0.25

    def __init__(self, client: Client, source: StreamSource, types: Types) -> None:
        self._client = client
        self._source = source
        self._types = types
        self._consumer = ""
        self._inbox = ""
        self._requests = 0
        self._arrivals = Arrivals()
        self._subscription: Subscription | None = None
        self._position = 0
        self._ahead: list[Msg] = []

    async def read(self, after: int, limit: int) -> Page:
        try:
            is_there = await self._stand_at(after)
        except SourceTruncated as truncated:
            return await self._read_past(after, min(limit, truncated.last - after), truncated)
        if not is_there:
            return Page((), after)
        messages, self._ahead = self._ahead, []
        if not messages:
            messages = await self._pull({"batch": limit, "no_wait": True}, limit, self.ANSWER_TIMEOUT_S)
        events = self._in_sequence(messages)
        if messages and len(events) < len(messages):
            await self._check_whole(messages[-1])
        return Page(of_types(events, self._types), self._position)

    async def wait(self, after: int, timeout_s: float) -> None:
        try:
            is_there = await self._stand_at(after, create=True)
        except SourceTruncated:
            return  # the stream has lost what was to be read while that was tried; it is there to be asked for
        if not is_there:
            await asyncio.sleep(min(timeout_s, self.NO_STREAM_PAUSE_S))
        elif not self._ahead:
            expires_ns = int(timeout_s * 1e9)
            self._ahead = await self._pull({"batch": 1, "expires": expires_ns}, 1, timeout_s + self.ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._ahead = []
        if subscription is not None and not self._client.is_closed:
            await subscription.unsubscribe()
            await self._delete_consumer()

    async def _read_past(self, after: int, limit: int, truncated: SourceTruncated) -> Page:
        """What the stream no longer holds, from whose log it is. And what follows, as far as the stream goes: it loses its
        oldest while this is read, and a reader that stood right there would fall behind it again.
        """
        try:
            events = await read_past(self._client, self._source.name, after, limit, self.ANSWER_TIMEOUT_S)
        except nats.errors.NoRespondersError as error:
            raise truncated from error
        if not events:
            raise truncated  # and the log neither: the stream is another's
        return Page(of_types(events, self._types), events[-1].position, more=True)

    async def _stand_at(self, after: int, create: bool = False) -> bool:
        """Whether a consumer stands at `after`; one is started if there is something to read, or on demand."""
        if self._subscription is not None and self._position == after:
            return True
        await self.close()
        first, last = await self._source.bounds()
        if last <= after and not (create and last):
            return False
        if first > after + 1:
            raise SourceTruncated(self._source.stream, after, first, last)
        await self._start(after)
        return True

    async def _start(self, after: int) -> None:
        self._consumer = f"view-{uuid7().hex}"
        config = ConsumerConfig(
            name=self._consumer,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=self.INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        await self._client.jetstream().add_consumer(self._source.stream, config)
        self._inbox, self._arrivals = self._client.new_inbox(), Arrivals()
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._arrivals.put)
        self._position = after

    async def _pull(self, request: dict[str, object], limit: int, timeout_s: float) -> list[Msg]:
        """Messages until the request is full or the server says that there are no more."""
        assert self._subscription is not None
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._source.stream}.{self._consumer}"
        body = orjson.dumps({**request, "max_bytes": self.BYTES_MAX})
        self._requests += 1
        reply = f"{self._inbox}.{self._requests}"
        reconnects = self._client.stats["reconnects"]
        await self._client.publish(subject, body, reply=reply)
        messages: list[Msg] = []
        try:
            while len(messages) < limit:
                if not self._arrivals.messages:
                    await self._some_arrive(timeout_s, reconnects)
                message = self._arrivals.messages.popleft()
                status = (message.headers or {}).get("Status") if not message.data else None
                if status is not None:
                    if message.subject != reply:
                        continue  # of an earlier request: that its batch is complete, or its time over
                    if status not in ("404", "408") and not messages:
                        await self.close()  # the consumer is gone
                    break
                messages.append(message)
        except TimeoutError:
            await self.close()
            raise
        return messages

    async def _some_arrive(self, timeout_s: float, reconnects: int) -> None:
        """Until there is a message. TimeoutError after `timeout_s`, or once there is another connection than the one that
        was asked over: a server forgets who had asked.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not await self._arrivals.wait(min(self.LOOK_S, max(0.0, deadline - loop.time()))):
            if self._client.is_closed:
                raise nats.errors.ConnectionClosedError
            if loop.time() >= deadline or self._client.stats["reconnects"] != reconnects:
                raise nats.errors.TimeoutError

    def _in_sequence(self, messages: list[Msg]) -> list[StoredEvent]:
        """The events that follow the position without a gap, which they move; what is known already is left out."""
        events = []
        for message in messages:
            if _sequence(message) == self._position + 1:
                events.append(from_headers(self._position + 1, message.headers or {}, message.data))
                self._position += 1
        return events

    async def _check_whole(self, last: Msg) -> None:
        if _sequence(last) > self._position:
            await self.close()

    async def _delete_consumer(self) -> None:
        try:
            await self._client.jetstream().delete_consumer(self._source.stream, self._consumer)
        except (nats.errors.Error, TimeoutError):
            return  # it expires by itself


def of_types(events: Sequence[StoredEvent], types: Types) -> Sequence[StoredEvent]:
    return events if types is None else [event for event in events if event.type in types]


def _sequence(message: Msg) -> int:
    """The place in the stream that a message was delivered from, as its reply subject says: all that is needed of the
    metadata, whose parsing costs more than that of the event. NotJSMessageError for messages of another kind.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>...`; newer servers say domain and account before the stream.
    """
    tokens = message.reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or not (len(tokens) == 9 or len(tokens) >= 11):
        raise nats.errors.NotJSMessageError
    return int(tokens[5 if len(tokens) == 9 else 7])
