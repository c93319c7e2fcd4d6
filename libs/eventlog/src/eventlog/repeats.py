"""A request repeated after a person was erased: it is the same request, though the key that sealed it is gone.

Who repeats an append seals it by the person's next key, and what comes out differs from what is stored. What a destroyed
key sealed compares with nothing any more; all else of the events does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from uuid import UUID

from eventlog.errors import DuplicateEventId
from eventlog.log import EventLog
from eventlog.records import Append, Appended, NewEvent, StoredEvent
from eventlog.sealing import differ_in_seal_only, may_be_sealed

_PAGE_EVENTS: Final = 1_000


async def append_sealed(log: EventLog, *appends: Append) -> Appended:
    """As EventLog.append; events that are stored as another key of the same person sealed them are repeated, too."""
    try:
        return await log.append(*appends)
    except DuplicateEventId:
        as_stored = tuple([await _as_stored(log, append) for append in appends])
        if as_stored == appends:
            raise
        return await log.append(*as_stored)


async def _as_stored(log: EventLog, append: Append) -> Append:
    """The append with the seals of the events that are stored under its ids."""
    stored = await _stored(log, append)
    tenant = append.context.tenant
    return replace(append, events=tuple(_with_seal_of(stored.get(new.id), new, tenant) for new in append.events))


async def _stored(log: EventLog, append: Append) -> Mapping[UUID, StoredEvent]:
    """What the stream holds under the ids of sealed events. It is read from its beginning: erasures are rare."""
    missing = {event.id for event in append.events if may_be_sealed(event.data)}
    found: dict[UUID, StoredEvent] = {}
    after = 0
    while missing and (page := await log.read_stream(append.stream, after=after, limit=_PAGE_EVENTS)):
        found |= {event.id: event for event in page if event.id in missing}
        missing -= found.keys()
        after = page[-1].version
    return found


def _with_seal_of(stored: StoredEvent | None, new: NewEvent, tenant: str) -> NewEvent:
    if stored is None or (stored.tenant, stored.data_subject) != (tenant, new.data_subject):
        return new
    return replace(new, data=stored.data) if differ_in_seal_only(stored.data, new.data) else new
