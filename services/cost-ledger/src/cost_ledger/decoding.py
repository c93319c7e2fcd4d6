"""Events out of stored bytes, each decoded once though several views fold it."""

from __future__ import annotations

from typing import Final

from eventlog.codec import Codec, UnknownEvent
from eventlog.errors import UnknownEventType
from eventlog.records import NewEvent, StoredEvent
from synod.common.event import Event

REMEMBERED_MAX: Final = 1_024


class Decoder:
    """Remembers for a moment what bytes mean: those it decoded, and those that this process has just made of an event.

    By their content, so that what is remembered is right whatever became of the append.
    """

    def __init__(self, codec: Codec[Event], remembered_max: int = REMEMBERED_MAX) -> None:
        self._codec = codec
        self._remembered_max = remembered_max
        self._events: dict[tuple[str, int, bytes], Event] = {}

    def __call__(self, stored: StoredEvent) -> Event:
        """Raises UnknownEventType; pydantic.ValidationError for data that does not fit."""
        name = (stored.type, stored.type_version, stored.data)
        if (event := self._events.get(name)) is None:
            event = known_event(self._codec.decode(stored))
            self._remember(name, event)
        return event

    def learn(self, new: NewEvent, event: Event) -> None:
        """Expect to be asked for an event that was encoded as `new`."""
        self._remember((new.type, new.type_version, new.data), event)

    def _remember(self, name: tuple[str, int, bytes], event: Event) -> None:
        if len(self._events) >= self._remembered_max:
            del self._events[next(iter(self._events))]
        self._events[name] = event


def known_event(event: Event | UnknownEvent) -> Event:
    """The event, or UnknownEventType: half a fold would be a wrong balance."""
    if isinstance(event, UnknownEvent):
        raise UnknownEventType(event.type, event.version, "the ledger cannot fold it; deploy the release that wrote it")
    return event
