"""A foreign log that several views of one process follow: each event comes over the wire and is decoded once for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from nats.aio.client import Client

from eventlog.newest import Newest
from eventlog.records import Page, StoredEvent
from eventlog.sources import Reader, StreamSource, Types, of_types

KEPT_EVENTS: Final = 2_048
KEPT_BYTES: Final = 8 * 1024 * 1024
"""Of the newest events, for readers that are not as far yet. Who is further behind reads for itself until it is near."""


class SharedStreamSource(StreamSource):
    """As StreamSource, for readers of one event loop: whichever is the first to need more fetches it for all."""

    def __init__(
        self, client: Client, service: str, *, kept_events: int = KEPT_EVENTS, kept_bytes: int = KEPT_BYTES
    ) -> None:
        super().__init__(client, service)
        self._front = _Front(super().reader(None), Newest(kept_events, kept_bytes))

    def reader(self, types: Types) -> Reader:
        return _SharedReader(self._front, super().reader(types), types)


class _Front:
    """How far the readers have come together, and what the foremost has read lately."""

    def __init__(self, reader: Reader, newest: Newest) -> None:
        self._reader = reader
        self._newest = newest
        self._turn = asyncio.Lock()
        self._position = 0
        self._readers = 0

    def join(self) -> None:
        self._readers += 1

    async def leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            await self._reader.close()

    def is_beyond(self, after: int) -> bool:
        """Whether a reader at this position is behind all that is kept, and has to catch up alone."""
        return after < self._position and self._newest.after(after) is None

    async def events(self, after: int, limit: int) -> Sequence[StoredEvent]:
        """At most `limit` events after a position; none if there are none yet, or if it fell behind just now."""
        if (kept := self._newest.after(after)) is not None:
            return kept[:limit]
        async with self._turn:
            if after >= self._position:
                return await self._read(after, limit)
        # Somebody else has read them while this reader waited for its turn.
        return (self._newest.after(after) or ())[:limit]

    async def wait(self, after: int, timeout_s: float) -> None:
        async with self._turn:
            if after >= self._position:
                await self._reader.wait(after, timeout_s)

    async def _read(self, after: int, limit: int) -> Sequence[StoredEvent]:
        page = await self._reader.read(after, limit)
        self._newest.extend(page.events)
        self._position = page.position
        return page.events


class _SharedReader:
    def __init__(self, front: _Front, alone: Reader, types: Types) -> None:
        self._front = front
        self._alone = alone
        self._types = types
        self._is_alone = self._is_closed = False
        front.join()

    async def read(self, after: int, limit: int) -> Page:
        if self._front.is_beyond(after):
            self._is_alone = True
            return await self._alone.read(after, limit)
        await self._rejoin()
        events = await self._front.events(after, limit)
        return Page(of_types(events, self._types), events[-1].position if events else after)

    async def wait(self, after: int, timeout_s: float) -> None:
        if not self._front.is_beyond(after):
            await self._front.wait(after, timeout_s)

    async def close(self) -> None:
        await self._rejoin()
        if not self._is_closed:
            self._is_closed = True
            await self._front.leave()

    async def _rejoin(self) -> None:
        if self._is_alone:
            self._is_alone = False
            await self._alone.close()
