"""The library `eventsourcing`: its stock recorder on PostgreSQL, the same with database functions, and its API on our log."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from eventsourcing.persistence import (
    ApplicationRecorder,
    DatabaseError,
    DataError,
    InfrastructureFactory,
    IntegrityError,
    Notification,
    PersistenceError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.utils import Environment
from psycopg.conninfo import conninfo_to_dict

from .history import Acked, Answer, Entry, Refused, Request, Unknown, Write
from .target import Clock, TargetKind
from .workload import Mix

APPLICATION = "Chaos"
PAGE_EVENTS = 5000
MIX = Mix(any_version=0)
"""The library's recorders want a version for every event."""


DEFINITE = (DatabaseError, DataError, ProgrammingError)
"""Errors, IntegrityError beside them, that say what is wrong with the request; the others say that something is away."""


class LibraryTarget:
    """An application recorder. Blocking, so each call has a thread, as in any application of the library."""

    def __init__(self, factory: InfrastructureFactory[Any]) -> None:
        self._factory = factory
        self._recorder: ApplicationRecorder = factory.application_recorder()

    async def append(self, request: Request, again: bool = False) -> Answer:
        return await asyncio.to_thread(self._append, request, again)

    async def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        subscription = self._recorder.subscribe(gt=after or None)
        async for entries in from_thread(_entry(notification) for notification in subscription):
            yield entries

    async def read(self) -> Sequence[Entry]:
        return await asyncio.to_thread(self._read)

    async def verify(self) -> bool | None:
        return None

    async def close(self) -> None:
        await asyncio.to_thread(self._factory.close)

    def _append(self, request: Request, again: bool) -> Answer:
        try:
            ids = self._recorder.insert_events([event for write in request.writes for event in _events(write)]) or [0]
        except IntegrityError as error:
            return self._conflict(request, again, error)
        except PersistenceError as error:
            return Refused(type(error).__name__) if type(error) in DEFINITE else Unknown(type(error).__name__)
        return Acked(max(ids), _versions(request))

    def _conflict(self, request: Request, again: bool, error: IntegrityError) -> Answer:
        """A careful caller who asks again reads whether it was he himself who came first."""
        try:
            if again and (position := self._stored_at(request)):
                return Acked(position, _versions(request))
            versions = {write.stream: self._version(write.stream) for write in request.writes}
        except PersistenceError:
            return Unknown("outcome unreadable") if again else Refused(type(error).__name__)
        return Refused(type(error).__name__, versions)

    def _stored_at(self, request: Request) -> int:
        wanted = set(request.ids())
        return max((entry.position for entry in self._read() if entry.id in wanted), default=0)

    def _version(self, stream: str) -> int:
        events = self._recorder.select_events(_originator(stream), desc=True, limit=1)
        return events[0].originator_version if events else 0

    def _read(self) -> Sequence[Entry]:
        entries: list[Entry] = []
        while page := self._recorder.select_notifications(
            start=entries[-1].position if entries else None, limit=PAGE_EVENTS, inclusive_of_start=False
        ):
            entries.extend(_entry(notification) for notification in page)
        return entries


async def from_thread(entries: Iterator[Entry]) -> AsyncIterator[Sequence[Entry]]:
    """What a blocking iterator gives, whose error is raised here."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Entry | Exception] = asyncio.Queue()

    def drain() -> None:
        try:
            for entry in entries:
                loop.call_soon_threadsafe(queue.put_nowait, entry)
        except Exception as error:  # noqa: BLE001  # the edge of the thread: raised where it is waited for
            loop.call_soon_threadsafe(queue.put_nowait, error)

    Thread(target=drain, daemon=True).start()
    while True:
        waiting = [await queue.get()]
        while not queue.empty():
            waiting.append(queue.get_nowait())
        yield [each for each in waiting if isinstance(each, Entry)]
        for each in waiting:
            if isinstance(each, Exception):
                raise each


def library_settings(dsn: str) -> Mapping[str, str]:
    """The library's own settings for a database."""
    parts = conninfo_to_dict(dsn)
    return {
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts["port"]),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password", "")),
        "POSTGRES_POOL_SIZE": "10",
    }


def _originator(stream: str) -> UUID:
    return uuid5(NAMESPACE_OID, stream)


def _events(write: Write) -> list[StoredEvent]:
    first = (write.expected or 0) + 1
    states = [json.dumps({"id": event_id, "stream": write.stream}).encode() for event_id in write.ids]
    return [StoredEvent(_originator(write.stream), first + n, write.type, state) for n, state in enumerate(states)]


def _entry(notification: Notification) -> Entry:
    state = json.loads(notification.state)
    version = notification.originator_version
    return Entry(notification.id, state["id"], state["stream"], version, notification.topic)


def _versions(request: Request) -> tuple[int, ...]:
    return tuple((write.expected or 0) + len(write.ids) for write in request.writes)


async def _open(settings: Mapping[str, str], dsn: str, _clock: Clock, _files: Path) -> LibraryTarget:
    environment = Environment(APPLICATION, {**library_settings(dsn), **settings})
    return await asyncio.to_thread(lambda: LibraryTarget(InfrastructureFactory.construct(environment)))


def _opener(**settings: str) -> Callable[[str, Clock, Path], Awaitable[LibraryTarget]]:
    return partial(_open, settings)


FORBID_STOCK = "alter table chaos_events add check (topic <> 'Forbidden')"
STOCK = TargetKind("stock", _opener(PERSISTENCE_MODULE="eventsourcing.postgres"), MIX, forbid=FORBID_STOCK)
STOCK_FUNCTIONS = TargetKind(
    "stock-functions",
    _opener(PERSISTENCE_MODULE="eventsourcing.postgres", POSTGRES_ENABLE_DB_FUNCTIONS="y"),
    MIX,
    commits=False,
    forbid=FORBID_STOCK,
)
EVENTLOG_LIBRARY = TargetKind(
    "eventlog-library",
    _opener(PERSISTENCE_MODULE="eventlog.eventsourcing"),
    MIX,
    forbid="alter table eventlog_chaos.events add check (type <> 'Forbidden')",
)
