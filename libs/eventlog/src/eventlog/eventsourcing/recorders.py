"""The library's recorders on a log.

What the library calls a notification id is a position of the log: from 1, without holes, visible in order. Versions are
the log's versions: a hole in an aggregate's versions is refused as a conflict, where the library's own recorders take it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    Notification,
    ProcessRecorder,
    Subscription,
    Tracking,
)
from eventsourcing.persistence import StoredEvent as LibraryEvent
from eventsourcing.postgres import PostgresAggregateRecorder
from synod.common.ids import derived_uuid, uuid7

from eventlog.clock import Clock
from eventlog.errors import EventLogError, LogUnavailable, VersionConflict
from eventlog.eventsourcing.context import acting_context
from eventlog.eventsourcing.errors import as_library_error, without_traceback
from eventlog.eventsourcing.names import to_token
from eventlog.eventsourcing.subscription import LogSubscription
from eventlog.eventsourcing.thread import LogThread
from eventlog.eventsourcing.translate import TYPE_VERSION, Translation
from eventlog.log import EventLog
from eventlog.records import Append, Appended, Context, Filter, NewEvent, StoredEvent, StreamId

PAGE_EVENTS: Final = 1_000
"""Events of one reading of an aggregate's stream."""
UNANSWERED_MAX: Final = 1_000
"""Saves of unknown outcome that a recorder remembers."""
TRACKING_AGGREGATE: Final = "tracking"
TRACKED_TYPE: Final = "Tracked"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Application:
    """What the recorders of one application share."""

    thread: LogThread
    translation: Translation
    context: Context
    """Who acts where nobody else is named (see `acting`)."""
    clock: Clock

    def ask(self, work: Callable[[EventLog], Coroutine[Any, Any, T]]) -> T:
        """The result of the work on the log; errors are the library's."""
        try:
            return self.thread.call(work)
        except (EventLogError, ValueError) as error:
            raise as_library_error(error) from without_traceback(error)


class EventLogAggregateRecorder(AggregateRecorder):
    """Records and selects the events of aggregates."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self._unanswered = _Unanswered(UNANSWERED_MAX)

    def insert_events(self, stored_events: Sequence[LibraryEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store all or none, durably. IntegrityError if another save was faster, or these events are stored already.

        OperationalError leaves the outcome unknown: inserting the same events again by this recorder stores them once.
        """
        self._insert(stored_events)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[LibraryEvent]:
        """The events of one aggregate with versions above `gt` up to `lte`; `desc` reads them all and turns them round."""
        translation = self.application.translation
        after = 0 if gt is None else translation.version(gt)
        last = None if lte is None else translation.version(lte)
        wanted = None if desc else limit
        found = self.application.ask(
            lambda log: _read_versions(log, translation.stream(originator_id), max(after, 0), last, wanted)
        )
        events = [translation.library_event(event) for event in (reversed(found) if desc else found)]
        return events if limit is None else events[:limit]

    def _insert(self, events: Sequence[LibraryEvent]) -> Sequence[int]:
        """The positions of the events."""
        if not events:
            return []
        call = self._unanswered.take(tuple(events)) or _Call(uuid7().hex)
        times = [self.application.clock.now()] * len(events)
        appended = self._append(lambda: self._appends(events, times, call.name), tuple(events), call)
        return _last_positions(appended, len(events))

    def _append(self, appends: Callable[[], tuple[Append, ...]], content: tuple[object, ...], call: _Call) -> Appended:
        """Append; if the outcome is unknown, remember under which name the content was to be stored."""
        try:
            requested = appends()
            return self.application.thread.call(lambda log: log.append(*requested))
        except LogUnavailable as error:
            self._unanswered.remember(content, call)
            raise as_library_error(error) from without_traceback(error)
        except (EventLogError, ValueError) as error:
            raise as_library_error(error) from without_traceback(error)

    def _appends(self, events: Sequence[LibraryEvent], times: Sequence[datetime], call: str) -> tuple[Append, ...]:
        context = acting_context(self.application.context)
        return self.application.translation.appends(events, times, context, call)


class EventLogApplicationRecorder(EventLogAggregateRecorder, ApplicationRecorder):
    """Records events and selects them in the order of the whole application."""

    def insert_events(self, stored_events: Sequence[LibraryEvent], **kwargs: Any) -> Sequence[int] | None:
        """As EventLogAggregateRecorder; returns the events' notification ids."""
        return self._insert(stored_events)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """At most `limit` notifications, ascending; all that are visible, none is ever made visible before them."""
        after = max(start - 1 if inclusive_of_start else start, 0) if start is not None else 0
        wanted = limit if stop is None else min(limit, stop - after)
        if wanted <= 0:
            return []
        where = self._where(topics)
        events = self.application.ask(lambda log: log.read(after, limit=wanted, where=where))
        notification = self.application.translation.notification
        return [notification(event) for event in events if stop is None or event.position <= stop]

    def max_notification_id(self) -> int | None:
        """The position of the last event, None if there is none."""
        return self.application.ask(lambda log: _last_position(log, self._where()))

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """Every notification after `gt`, now and later, each once, in order, through losses of the connection."""
        return LogSubscription(self, self.application.thread, gt, topics)

    def import_events(self, stored_events: Sequence[LibraryEvent], times: Sequence[datetime]) -> None:
        """Store events recorded elsewhere at the times given; storing the same ones again changes nothing."""
        call = _Call("import")
        self._append(lambda: self._appends(stored_events, times, call.name), tuple(stored_events), call)

    def _where(self, topics: Sequence[str] = ()) -> Filter:
        translation = self.application.translation
        types = frozenset(map(translation.types.type_of, topics)) if topics else None
        return Filter(types=types, aggregate=translation.aggregate)


class EventLogProcessRecorder(EventLogApplicationRecorder, ProcessRecorder):
    """Records events together with the position of what they follow from: one atomic append.

    The position followed is an event too, in the stream `tracking/<application>`, so that the log also explains what was
    processed when. It takes a position of its own, so notification ids of a processing application have holes.
    """

    def __init__(self, application: Application) -> None:
        super().__init__(application)
        self._tracked: dict[str, _Tracked] = {}

    def insert_events(self, stored_events: Sequence[LibraryEvent], **kwargs: Any) -> Sequence[int] | None:
        """As EventLogApplicationRecorder; with `tracking`, IntegrityError if that position was processed already."""
        tracking: Tracking | None = kwargs.get("tracking")
        if tracking is None:
            return self._insert(stored_events)
        return self._insert_tracked(stored_events, tracking)

    def insert_tracking(self, tracking: Tracking) -> None:
        """Note the position as processed; IntegrityError if it, or a later one, was already."""
        self._insert_tracked([], tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        """The last position processed of the application, None if none was."""
        return self._newest(application_name).notification_id

    def _insert_tracked(self, events: Sequence[LibraryEvent], tracking: Tracking) -> Sequence[int]:
        unanswered = self._unanswered.take((*events, tracking))
        while True:
            call = unanswered or self._next_call(tracking)
            try:
                return self._append_tracked(events, tracking, call)
            except IntegrityError as error:
                # Another worker moved the position on between reading and appending: decide anew.
                conflict, unanswered = error.__cause__, None
                if not isinstance(conflict, VersionConflict) or conflict.stream.aggregate != TRACKING_AGGREGATE:
                    raise

    def _next_call(self, tracking: Tracking) -> _Call:
        newest = self._newest(tracking.application_name)
        if newest.notification_id is not None and newest.notification_id >= tracking.notification_id:
            raise IntegrityError(f"{tracking} was processed already, up to {newest.notification_id}")
        return _Call(uuid7().hex, newest.version)

    def _append_tracked(self, events: Sequence[LibraryEvent], tracking: Tracking, call: _Call) -> Sequence[int]:
        now = self.application.clock.now()

        def appends() -> tuple[Append, ...]:
            context = acting_context(self.application.context)
            new = _tracked_event(tracking, now, call.name)
            position = Append(_tracking_stream(tracking.application_name), call.tracking_version, (new,), context)
            return (position, *self._appends(events, [now] * len(events), call.name))

        return _last_positions(self._append(appends, (*events, tracking), call), len(events))

    def _newest(self, application_name: str) -> _Tracked:
        known = self._tracked.get(application_name, _Tracked(0, None))
        stream = _tracking_stream(application_name)
        event = self.application.ask(lambda log: _last_in_stream(log, stream, known.version))
        if event is None:
            return known
        newest = _Tracked(event.version, orjson.loads(event.data)["notification_id"])
        self._tracked[application_name] = newest
        return newest


class SnapshotRecorder(PostgresAggregateRecorder):
    """The library's own table of snapshots: a cache beside the log, never part of it.

    Snapshots of one version are as good as each other, so a second one is dropped, where the library would fail a save
    whose events are stored already.
    """

    def insert_events(self, stored_events: Sequence[LibraryEvent], **kwargs: Any) -> Sequence[int] | None:
        for snapshot in stored_events:
            try:
                super().insert_events([snapshot], **kwargs)
            except IntegrityError:
                continue
        return None


@dataclass(frozen=True, slots=True)
class _Tracked:
    """The version of a tracking stream, and the position noted there."""

    version: int
    notification_id: int | None


@dataclass(frozen=True, slots=True)
class _Call:
    """One attempt to store something: its name is part of the events' ids."""

    name: str
    tracking_version: int = 0
    """The version of the tracking stream it was decided on."""


class _Unanswered:
    """The calls whose outcome is unknown, by what they were to store; the oldest is forgotten first.

    A retry takes over the call, so the events' ids are the same, and the log knows it for a retry. The same events under
    another call are a conflict, as the library's contract demands: two workers must not both be told that they were first.
    """

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._calls: OrderedDict[tuple[object, ...], _Call] = OrderedDict()
        self._lock = Lock()

    def take(self, content: tuple[object, ...]) -> _Call | None:
        """The call that was to store this, which the taker carries on; None if there is none."""
        if not self._calls:
            return None
        with self._lock:
            return self._calls.pop(content, None)

    def remember(self, content: tuple[object, ...], call: _Call) -> None:
        with self._lock:
            self._calls[content] = call
            while len(self._calls) > self._calls_max:
                self._calls.popitem(last=False)


def _last_positions(appended: Appended, count: int) -> list[int]:
    return list(range(appended.position - count + 1, appended.position + 1))


def _tracking_stream(application_name: str) -> StreamId:
    return StreamId(TRACKING_AGGREGATE, to_token(application_name))


def _tracked_event(tracking: Tracking, at: datetime, call: str) -> NewEvent:
    data = orjson.dumps({"notification_id": tracking.notification_id})
    event_id = derived_uuid(TRACKING_AGGREGATE, tracking.application_name, str(tracking.notification_id), call)
    return NewEvent(TRACKED_TYPE, TYPE_VERSION, data, event_id, at)


async def _read_versions(
    log: EventLog, stream: StreamId, after: int, last: int | None, wanted: int | None
) -> list[StoredEvent]:
    """The events with versions above `after` up to `last`, at most `wanted`."""
    if last is not None:
        wanted = min(last - after, last if wanted is None else wanted)
    found: list[StoredEvent] = []
    while wanted is None or len(found) < wanted:
        limit = PAGE_EVENTS if wanted is None else min(PAGE_EVENTS, wanted - len(found))
        page = await log.read_stream(stream, after=after + len(found), limit=limit)
        found.extend(page)
        if len(page) < limit:
            break
    return found


async def _last_position(log: EventLog, where: Filter) -> int | None:
    """The position of the last event of a kind: looked for in windows that grow backwards from the head."""
    head, window = await log.head(), 1
    while head > 0:
        first = max(head - window, 0)
        found = await log.read(first, limit=window, where=where)
        if found:
            return found[-1].position
        if first == 0:
            break
        window *= 8
    return None


async def _last_in_stream(log: EventLog, stream: StreamId, after: int) -> StoredEvent | None:
    """The last event of a stream above version `after`: found by leaps that double, then halve."""
    newest = None
    leap = 1
    while probe := await log.read_stream(stream, after=after + leap - 1, limit=1):
        newest, after = probe[0], probe[0].version
        leap *= 2
    while leap > 1:
        leap //= 2
        if probe := await log.read_stream(stream, after=after + leap - 1, limit=1):
            newest, after = probe[0], probe[0].version
    return newest
