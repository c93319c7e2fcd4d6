"""Brings the history of an existing application into its log, in order, and proves that it arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from typing import Final
from uuid import UUID

from eventsourcing.persistence import ApplicationRecorder, Notification
from eventsourcing.persistence import StoredEvent as LibraryEvent

from eventlog.eventsourcing.errors import ImportMismatch
from eventlog.eventsourcing.recorders import EventLogApplicationRecorder

PAGE_EVENTS: Final = 500


@dataclass(frozen=True, slots=True)
class Imported:
    """What the log holds after an import: exactly what the source holds."""

    events: int
    aggregates: int
    copied: int
    """How many of the events this import copied; the others were there from one before."""
    ids_kept: bool
    """Whether every notification id is what it was. If not, because the source's ids had holes, views that remember
    how far they are must be built anew."""


def import_events(
    source: ApplicationRecorder,
    target: EventLogApplicationRecorder,
    occurred_at: Callable[[LibraryEvent], datetime] | None = None,
) -> Imported:
    """Copy every event of the source that the target lacks, in order, then compare the two from end to end.

    Nobody may write to either meanwhile. An import that was broken off is completed by the next. `occurred_at` tells an
    event's time (aware); without it the time of the import is recorded. Raises ImportMismatch, before anything is
    written, if the target holds something else, and after, if the two differ.
    """
    present = sum(1 for _ in takewhile(lambda pair: pair.same_or_raise(target), _compare(source, target)))
    rest = islice(_notifications(source), present, None)
    copied = 0
    while page := list(islice(rest, PAGE_EVENTS)):
        _copy(page, target, occurred_at)
        copied += len(page)
    return _verified(source, target, copied)


def _copy(
    page: Sequence[Notification],
    target: EventLogApplicationRecorder,
    occurred_at: Callable[[LibraryEvent], datetime] | None,
) -> None:
    now = target.application.clock.now()
    target.import_events(page, [occurred_at(event) if occurred_at else now for event in page])


@dataclass(frozen=True, slots=True)
class _Pair:
    """The events at one place in both histories, as far as there are any."""

    place: int
    here: Notification | None
    there: Notification | None

    def same_or_raise(self, target: EventLogApplicationRecorder) -> bool:
        """Whether both are there and the same; ImportMismatch if they differ or only the target has one."""
        if self.there is None:
            return False
        if self.here is None:
            raise ImportMismatch(self.place, "the log holds more than its source")
        if _content(self.here, target) != _content(self.there, target):
            raise ImportMismatch(self.place, f"{_name(self.there)} stands where {_name(self.here)} is expected")
        return True


def _verified(source: ApplicationRecorder, target: EventLogApplicationRecorder, copied: int) -> Imported:
    events, kept = 0, True
    aggregates: set[UUID | str] = set()
    for pair in _compare(source, target):
        if not pair.same_or_raise(target) or pair.here is None or pair.there is None:
            raise ImportMismatch(pair.place, "the log lacks an event of its source")
        events += 1
        kept = kept and pair.here.id == pair.there.id
        aggregates.add(pair.there.originator_id)
    return Imported(events, len(aggregates), copied, kept)


def _compare(source: ApplicationRecorder, target: ApplicationRecorder) -> Iterator[_Pair]:
    here, there = _notifications(source), _notifications(target)
    place = 0
    while True:
        place += 1
        pair = _Pair(place, next(here, None), next(there, None))
        if pair.here is None and pair.there is None:
            return
        yield pair


def _notifications(recorder: ApplicationRecorder) -> Iterator[Notification]:
    last: int = 0
    while page := recorder.select_notifications(start=last, limit=PAGE_EVENTS, inclusive_of_start=False):
        yield from page
        last = page[-1].id


def _content(event: LibraryEvent, target: EventLogApplicationRecorder) -> tuple[str, int, str, bytes]:
    """What must be equal; a topic that was renamed since is the same type."""
    type_name = target.application.translation.types.type_of(event.topic)
    return (str(event.originator_id), event.originator_version, type_name, event.state)


def _name(event: LibraryEvent) -> str:
    return f"{event.topic} of {event.originator_id} version {event.originator_version}"
