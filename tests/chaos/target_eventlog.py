"""Our log."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from eventlog.errors import EventLogError, LogUnavailable, QueueFull, VersionConflict
from eventlog.limits import Limits
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, Append, Context, NewEvent, StoredEvent, StreamId

from .history import Acked, Answer, Entry, Refused, Request, Unknown, Write
from .target import Clock, TargetKind

AGGREGATE = "chaos"
CONTEXT = Context(tenant="local", actor="chaos")
LIMITS = Limits(reconnect_timeout_s=3.0, answer_timeout_s=2.0, readers_max=2)
"""Short, so that callers do get to hear that an outcome is unknown."""
PAGE_EVENTS = 500
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONTENT = b"x" * 200
DATA = b'{"text":"%s"}' % CONTENT


@dataclass(slots=True)
class WrongClock:
    """The machine's clock, `offset_s` seconds wrong."""

    offset_s: float = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.offset_s)


class EventLogTarget:
    """PostgresEventLog, spoken to directly."""

    def __init__(self, log: PostgresEventLog) -> None:
        self.log = log

    async def append(self, request: Request, again: bool = False) -> Answer:
        try:
            appended = await self.log.append(*(_append(write) for write in request.writes))
        except VersionConflict as conflict:
            return Refused("VersionConflict", {conflict.stream.id: conflict.actual})
        except (LogUnavailable, QueueFull) as error:
            return Unknown(type(error).__name__)
        except EventLogError as error:
            return Refused(type(error).__name__)
        return Acked(appended.position, appended.versions)

    async def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        position = after
        while True:
            await self.log.wait_for(position + 1, timeout_s=1.0)
            try:
                events = await self.log.read(position, limit=PAGE_EVENTS)
            except LogUnavailable:
                continue
            if events:
                position = events[-1].position
                yield [found(event) for event in events]

    async def read(self) -> Sequence[Entry]:
        entries: list[Entry] = []
        while page := await self.log.read(entries[-1].position if entries else 0, limit=10 * PAGE_EVENTS):
            entries.extend(found(event) for event in page)
        return entries

    async def verify(self) -> bool | None:
        return (await self.log.verify()).ok

    async def close(self) -> None:
        await self.log.close()


def found(event: StoredEvent) -> Entry:
    """A stored event as the checker wants it."""
    return Entry(event.position, event.id.hex, event.stream.id, event.version, event.type, event.hash.hex())


def _append(write: Write) -> Append:
    events = tuple(NewEvent(write.type, 1, DATA, UUID(event_id), NOON) for event_id in write.ids)
    return Append(StreamId(AGGREGATE, write.stream), ANY if write.expected is None else write.expected, events, CONTEXT)


async def open_eventlog(dsn: str, clock: Clock, files: Path) -> EventLogTarget:
    wrong = clock if isinstance(clock, WrongClock) else WrongClock()
    return EventLogTarget(await PostgresEventLog.open(dsn, limits=LIMITS, clock=wrong, archive=files))


EVENTLOG = TargetKind(
    "eventlog",
    open_eventlog,
    whole=True,
    content=CONTENT,
    forbid="alter table eventlog.events add check (type <> 'Forbidden')",
)
