"""The DCB recorder of the library `eventsourcing` on PostgreSQL.

It numbers no streams: a version is the count of events with the stream's tag, read before a conditional append. Each
event is also tagged with its id, so that who asks again can make his append conditional on not having been heard.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent, DCBQuery, DCBQueryItem, DCBRecorder, DCBSequencedEvent
from eventsourcing.dcb.postgres_tt import PostgresTTDCBFactory
from eventsourcing.persistence import IntegrityError, PersistenceError
from eventsourcing.utils import Environment

from .history import Acked, Answer, Entry, Refused, Request, Unknown
from .target import Clock, TargetKind
from .target_library import APPLICATION, from_thread, library_settings


class DcbTarget:
    """Conditional where a version is expected or the outcome of an earlier attempt unknown, else unconditional."""

    def __init__(self, factory: PostgresTTDCBFactory) -> None:
        self._factory = factory
        self._recorder: DCBRecorder = factory.dcb_recorder()

    async def append(self, request: Request, again: bool = False) -> Answer:
        return await asyncio.to_thread(self._append, request, again)

    async def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        subscription = self._recorder.subscribe(after=after or None)
        async for entries in from_thread(_entry(event) for event in subscription):
            yield entries

    async def read(self) -> Sequence[Entry]:
        return await asyncio.to_thread(lambda: [_entry(event) for event in self._recorder.read()])

    async def verify(self) -> bool | None:
        return None

    async def close(self) -> None:
        await asyncio.to_thread(self._factory.close)

    def _append(self, request: Request, again: bool) -> Answer:
        try:
            if again and (position := self._stored_at(request)):
                return Acked(position, _versions(request))
            return self._decide(request, again)
        except IntegrityError as error:
            return Unknown("raced with itself") if again else Refused(type(error).__name__)
        except PersistenceError as error:
            return Unknown(type(error).__name__)

    def _decide(self, request: Request, again: bool) -> Answer:
        streams = DCBQuery([DCBQueryItem(tags=[_stream_tag(write.stream)]) for write in request.writes])
        guarded = any(write.expected is not None for write in request.writes)
        condition = None
        if guarded:
            found = self._recorder.read(streams)
            versions = Counter(_entry(event).stream for event in found)
            if any(write.expected not in (None, versions[write.stream]) for write in request.writes):
                # What was read may be the earlier attempt itself, which was still under way a moment ago.
                if again and (position := self._stored_at(request)):
                    return Acked(position, _versions(request))
                return Refused("conflict", {write.stream: versions[write.stream] for write in request.writes})
            condition = DCBAppendCondition(streams, found.head)
        elif again:
            condition = DCBAppendCondition(DCBQuery([DCBQueryItem(tags=[_id_tag(request.key)])]))
        position = self._recorder.append(_events(request), condition)
        return Acked(position, _versions(request))

    def _stored_at(self, request: Request) -> int:
        query = DCBQuery([DCBQueryItem(tags=[_id_tag(event_id)]) for event_id in request.ids()])
        return max((event.position for event in self._recorder.read(query)), default=0)


def _versions(request: Request) -> tuple[int, ...]:
    return tuple((write.expected or 0) + len(write.ids) for write in request.writes)


def _events(request: Request) -> list[DCBEvent]:
    return [
        DCBEvent(
            type=write.type,
            data=json.dumps({"id": event_id, "stream": write.stream}).encode(),
            tags=[_stream_tag(write.stream), _id_tag(event_id)],
        )
        for write in request.writes
        for event_id in write.ids
    ]


def _entry(sequenced: DCBSequencedEvent) -> Entry:
    data = json.loads(sequenced.event.data)
    return Entry(sequenced.position, data["id"], data["stream"], 0, sequenced.event.type)


def _stream_tag(stream: str) -> str:
    return f"stream:{stream}"


def _id_tag(event_id: str) -> str:
    return f"id:{event_id}"


async def _open(dsn: str, _clock: Clock, _files: Path) -> DcbTarget:
    environment = Environment(APPLICATION, dict(library_settings(dsn)))
    return await asyncio.to_thread(lambda: DcbTarget(PostgresTTDCBFactory(environment)))


STOCK_DCB = TargetKind("stock-dcb", _open, versioned=False, commits=False)
