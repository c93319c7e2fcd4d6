"""Reading on in the log from a position."""

from eventlog.log import EventLog
from eventlog.records import Filter, StoredEvent


async def read_new(log: EventLog, after: int, types: frozenset[str]) -> tuple[int, list[StoredEvent]]:
    """The events of these types above ``after``, and the position up to which the log was read."""
    head = await log.head()
    events: list[StoredEvent] = []
    while page := await log.read(after, where=Filter(types=types)):
        events += page
        after = page[-1].position
    return max(head, after), events
