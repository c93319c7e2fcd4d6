"""NATS in: the event streams of the services, each read once by this process, however many follow it.

A feed reads EVT_<SERVICE> from its head on through eventlog's reader, which notices every gap and reads again; the hub
gives each follower the events of its tenant. Offsets are positions: what JetStream numbers and the log numbered first.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import nats.errors
import nats.js.errors
from eventlog.ending import end
from eventlog.errors import LogUnavailable, SourceTruncated
from eventlog.records import StoredEvent
from eventlog.sources import Reader, StreamSource
from nats.aio.client import Client
from servicekit.retry import Backoff
from servicekit.telemetry import Logger

from ws_gateway.errors import HistoryLost
from ws_gateway.hub import protocol
from ws_gateway.hub.channels import Encoded, Fanout, Follower, Kept, Plan, plan
from ws_gateway.hub.protocol import Publication
from ws_gateway.translate import from_stored

BATCH_EVENTS: Final = 500
IDLE_S: Final = 5.0
CANCEL_AGAIN_S: Final = 0.1
_AWAY: Final = (nats.errors.Error, TimeoutError, OSError, LogUnavailable)
_RETRY: Final = Backoff(initial_s=0.1, max_s=2)


@dataclass(frozen=True, slots=True)
class Caught:
    """How a subscription begins: what was missed, and where it goes on."""

    recovered: bool
    offset: int
    epoch: str
    publications: tuple[Publication, ...]


@dataclass(frozen=True, slots=True)
class HistoryLimit:
    """What fits into one answer. Who missed more reloads by REST."""

    events_max: int
    bytes_max: int

    def allows(self, events: int, size: int) -> bool:
        return events <= self.events_max and size <= self.bytes_max


@dataclass(slots=True)
class Feed:
    """The events of one service, for all who follow them in this process."""

    source: StreamSource
    client: Client
    log_: Logger
    fanout: Fanout = field(default_factory=Fanout)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever starts or stops the feed, or joins or leaves it."""
    _task: asyncio.Task[None] | None = None

    @property
    def channel(self) -> str:
        return f"events:{self.source.name}"

    async def start(self) -> None:
        """Stand at the head of the stream, and read on from there, if nobody does so yet."""
        if self._task is None or self._task.done():
            self._drop_followers()  # who follows a feed that has ended by a fault would go on behind a hole
            self.fanout.position, self.fanout.epoch = (await self.kept())[1:]
            self._task = asyncio.create_task(self._run(), name=f"feed {self.source.name}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end(task, again_s=CANCEL_AGAIN_S)

    async def kept(self) -> tuple[int, int, str]:
        """First and last position of the stream, and its epoch."""
        try:
            info = await self.client.jetstream().stream_info(self.source.stream)
        except nats.js.errors.NotFoundError:
            return 1, 0, f"{self.source.stream}@none"
        created = info.created.strftime("%Y%m%dT%H%M%S.%fZ") if info.created else "unknown"
        return info.state.first_seq, info.state.last_seq, f"{self.source.stream}@{created}"

    async def history(self, tenant: str, planned: Plan, limit: HistoryLimit) -> tuple[Publication, ...] | None:
        """What a tenant missed; None when it is more than the limit or can no longer be had."""
        reader, position = self.source.reader(None), planned.after
        missed: list[Publication] = []
        size = 0
        try:
            while position < planned.until and limit.allows(len(missed), size):
                page = await reader.read(position, min(BATCH_EVENTS, planned.until - position))
                if page.position == position:
                    return None
                own = [event for event in page.events if event.tenant == tenant]
                missed += map(self.publication, own)
                size += sum(len(event.data) for event in own)
                position = page.position
        except (SourceTruncated, *_AWAY):
            return None
        finally:
            await _close_quietly(reader)
        return tuple(missed) if limit.allows(len(missed), size) else None

    def publication(self, event: StoredEvent) -> Publication:
        return Publication(
            id=f"{self.channel}:{event.position}",
            channel=self.channel,
            offset=event.position,
            epoch=self.fanout.epoch,
            event=from_stored(event),
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            reader = self.source.reader(None)
            try:
                async for events, position in self._pages(reader):
                    self.fanout.publish(self._encoded(events), position)
                    failures = 0
            except SourceTruncated as error:
                await self._lose(str(error))
            except _AWAY as error:
                self.log_.warning("feed_interrupted", feed=self.source.name, problem=repr(error))
                await asyncio.sleep(_RETRY.delay_s(failures))
                failures += 1
            finally:
                await _close_quietly(reader)

    async def _pages(self, reader: Reader) -> AsyncIterator[tuple[Sequence[StoredEvent], int]]:
        while True:
            page = await reader.read(self.fanout.position, BATCH_EVENTS)
            yield page.events, page.position
            if not page.events:
                await reader.wait(self.fanout.position, IDLE_S)

    def _encoded(self, events: Sequence[StoredEvent]) -> list[Encoded]:
        return [
            Encoded(event.position, event.tenant, protocol.write(self.publication(event)))
            for event in events
            if self.fanout.wants(event.tenant)
        ]

    async def _lose(self, problem: str) -> None:
        self.log_.warning("feed_truncated", feed=self.source.name, problem=problem)
        self._drop_followers()
        self.fanout.position, self.fanout.epoch = (await self.kept())[1:]

    def _drop_followers(self) -> None:
        for follower in self.fanout.lose():
            follower.lost()


@dataclass(slots=True)
class Feeds:
    """The feeds of this process. A feed runs while somebody follows it."""

    client: Client
    log_: Logger
    positions_max: int
    history_limit: HistoryLimit
    _feeds: dict[str, Feed] = field(default_factory=dict)

    async def catch_up(self, service: str, follower: Follower, offset: int | None, epoch: str) -> Caught:
        """Join `follower`, and read what it missed. It holds what comes meanwhile until it is released.

        Raises HistoryLost when the stream changes at the same moment.
        """
        feed = self._feeds.setdefault(service, Feed(StreamSource(self.client, service), self.client, self.log_))
        async with feed.turn:
            await feed.start()
            first, _, present = await feed.kept()
            if present != feed.fanout.epoch:
                await feed.stop()
                raise HistoryLost(service)
            # Nothing is awaited between the plan and the join: what the plan does not cover, the follower holds.
            planned = plan(offset, epoch, Kept(present, first, feed.fanout.position), self.positions_max)
            feed.fanout.join(follower)
        missed = await feed.history(follower.tenant, planned, self.history_limit)
        if missed is None:
            return Caught(False, planned.until, present, ())
        return Caught(planned.recovered, planned.until, present, missed)

    async def leave(self, service: str, follower: Follower) -> None:
        """Forget `follower`; the last one to leave ends the feed."""
        feed = self._feeds.get(service)
        if feed is None:
            return
        async with feed.turn:
            feed.fanout.leave(follower)
            if not feed.fanout.followed:
                await feed.stop()

    async def close(self) -> None:
        for feed in self._feeds.values():
            await feed.stop()


async def _close_quietly(reader: Reader) -> None:
    try:
        await reader.close()
    except _AWAY:
        return  # its consumer expires by itself
