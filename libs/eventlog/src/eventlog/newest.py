"""The newest events in memory, for those who follow the log.

Everything that is appended is soon read again, by every view, dispatcher and watcher of the process; from here they share
what the writer has just committed instead of asking the database for it one by one. What is held are events that follow
each other up to the newest this process committed. What another process appended in between breaks the row: it starts
anew behind that, and a reader who stands before it goes to the database. So nothing is ever passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from eventlog.records import EVERYTHING, Filter, Page, StoredEvent

_DATA: Final = attrgetter("data")


class Newest:
    """Holds at most `events_max` events with `bytes_max` bytes of data; the oldest go first."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[StoredEvent] = []
        self._bytes = 0

    def extend(self, committed: Sequence[StoredEvent]) -> None:
        """Take over what was committed at once, in order."""
        if self._events and committed and committed[0].position != self._events[-1].position + 1:
            self._events, self._bytes = [], 0
        self._events.extend(committed)
        self._bytes += _bytes_of(committed)
        self._trim()

    def after(self, position: int) -> Sequence[StoredEvent] | None:
        """The events after a position up to the newest; None if there is none, or if the first of them is not held."""
        if not self._events or not self._events[0].position <= position + 1 <= self._events[-1].position:
            return None
        return self._events[position + 1 - self._events[0].position :]

    @property
    def head(self) -> int:
        """The position of the newest event held; 0 if none is."""
        return self._events[-1].position if self._events else 0

    def _trim(self) -> None:
        surplus = max(0, len(self._events) - self._events_max)
        self._bytes -= _bytes_of(self._events[:surplus])
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._events[surplus].data)
            surplus += 1
        if surplus:
            del self._events[:surplus]


def page_of(events: Sequence[StoredEvent], after: int, head: int, where: Filter, limit: int, bytes_max: int) -> Page:
    """A page out of all the events after a position up to `head`."""
    if where is EVERYTHING and len(events) <= limit and _bytes_of(events) < bytes_max:
        return Page(events, max(after, head))  # as almost always: nothing is left out, so none is looked at
    taken: list[StoredEvent] = []
    for event in filter(where.matches, events):
        taken.append(event)
        bytes_max -= len(event.data)
        if len(taken) == limit or bytes_max <= 0:
            return Page(taken, event.position, event.position < head)
    return Page(taken, max(after, head))


def _bytes_of(events: Iterable[StoredEvent]) -> int:
    """The bytes of data, counted without a step of Python for each event: it is done for all of them, again and again."""
    return sum(map(len, map(_DATA, events)))
