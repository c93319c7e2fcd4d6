"""The calls in the log. A call belongs to one process at a time, so what that one has seen is mostly the newest: it is
decided on without reading again, and only a conflict brings what others have appended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final
from uuid import UUID
from zlib import crc32

from eventlog.codec import Codec
from eventlog.errors import AppendRefused, UnknownEventType
from eventlog.log import EventLog
from eventlog.records import Append, Appended, Context, StoredEvent, StreamId
from eventlog.side_table import SideRow
from servicekit.clock import Clock
from synod.common.event import Event
from synod.common.ids import uuid_of

from llm_gateway import calls
from llm_gateway.calls import Call
from llm_gateway.errors import StoreUnavailable

AGGREGATE: Final = "model-call"
_PAGE_EVENTS: Final = 100
_CALLS_AT_ONCE: Final = 4_096


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as it was after so many events; `looked` once they were read, and not only appended."""

    call: Call = field(default_factory=Call)
    version: int = 0
    looked: bool = False


@dataclass(frozen=True, slots=True)
class Journal:
    log: EventLog
    codec: Codec[Event]
    clock: Clock

    async def load(self, id: str, seen: Seen = Seen()) -> Seen:
        """The newest state. Raises LogUnavailable, UnknownEventType."""
        stream = _stream(id)
        while True:
            page = await self.log.read_stream(stream, after=seen.version, limit=_PAGE_EVENTS)
            for stored in page:
                seen = Seen(calls.evolve(seen.call, self._known(stored)), stored.version)
            if len(page) < _PAGE_EVENTS:
                return replace(seen, looked=True)

    async def append(
        self,
        id: str,
        seen: Seen,
        decide: Callable[[Call], Sequence[Event]],
        context: Context,
        author: UUID,
        rows: tuple[SideRow, ...] = (),
    ) -> Seen:
        """Appends what `decide` returns of the call as it was `seen`, with `rows` beside it.

        An author says each thing once: said again because an answer was lost, the log knows it. Raises VersionConflict if
        others have appended since, StoreUnavailable if the rows cannot be stored, and what log and `decide` raise.
        """
        events, call = tuple(decide(seen.call)), seen.call
        if not events:
            return seen
        at = self.clock.now()
        new = tuple([self.codec.encode(event, id=_event_id(author, event), at=at) for event in events])
        appended = await self._stored(Append(_stream(id), seen.version, new, context, rows=rows))
        for event in events:
            call = calls.evolve(call, event)
        return Seen(call, appended.versions[0], seen.looked)

    async def _stored(self, append: Append) -> Appended:
        try:
            return await self.log.append(append)
        except AppendRefused as error:
            if not append.rows:
                raise
            # The table of the rows is at fault, if one is: it is gone, or closed to us. Nothing is wrong with the events.
            raise StoreUnavailable(f"answers cannot be recorded: {error}") from error

    def _known(self, stored: StoredEvent) -> Event:
        event = self.codec.decode(stored)
        if not isinstance(event, Event):
            raise UnknownEventType(event.type, event.version, "a model call with it cannot be folded")
        return event


@lru_cache(maxsize=_CALLS_AT_ONCE)
def _stream(id: str) -> StreamId:
    """Named by each append of a call."""
    return StreamId(AGGREGATE, id)


def _event_id(author: UUID, event: Event) -> UUID:
    """The author's own id with other low bits: of one author two facts have the same only if they are the same."""
    # By its fields: to ask a model for an attribute that it has not takes longer than all else here.
    return uuid_of(author.int ^ _low_bits(type(event), event.__dict__.get("attempt", "")))


@lru_cache(maxsize=1_024)
def _low_bits(kind: type[Event], attempt: int | str) -> int:
    return crc32(f"{kind.type_name()}:{attempt}".encode())
