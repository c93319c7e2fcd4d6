"""What a stream no longer holds, asked of the log's owner over NATS.

A stream keeps the newest messages, the log all events. A view that is folded anew, or that stood still for long, gets what is
no longer in the stream from the log itself: the owner answers with the events in the form in which it once published them.

    synod.sys.<service>.past   {"after": 0, "limit": 500}
                          ->   a message for each event, with its headers and `synod-position`
                          ->   an empty message with `synod-past-end`: how many they were; or with `synod-past-error`

Any replica of the owner answers. Whoever may read the stream may ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from synod.common.streams import PAST_EVENTS_MAX
from synod.common.subjects import past_subject

from eventlog.arrivals import Arrivals
from eventlog.envelope import from_headers
from eventlog.errors import LogUnavailable
from eventlog.records import StoredEvent

POSITION: Final = "synod-position"
END: Final = "synod-past-end"
ERROR: Final = "synod-past-error"


async def read_past(client: Client, service: str, after: int, limit: int, timeout_s: float) -> Sequence[StoredEvent]:
    """The events of a service that follow a position: `limit` at most, and at least one if the log has any.

    TimeoutError if nothing comes for so long, NoRespondersError while nobody of the service listens, LogUnavailable where
    it cannot read its own log.
    """
    inbox, arrivals = client.new_inbox(), Arrivals()
    subscription = await client.subscribe(inbox, cb=arrivals.put)
    try:
        asked = orjson.dumps({"after": after, "limit": min(limit, PAST_EVENTS_MAX)})
        await client.publish(past_subject(service), asked, reply=inbox)
        events: list[StoredEvent] = []
        while True:
            if not await arrivals.wait(timeout_s):
                raise nats.errors.TimeoutError
            message = arrivals.messages.popleft()
            headers = message.headers or {}
            if POSITION in headers:
                events.append(from_headers(int(headers[POSITION]), headers, message.data))
            elif END in headers:
                _check(events, after, int(headers[END]))
                return events
            elif headers.get("Status") == "503":
                raise nats.errors.NoRespondersError
            else:
                raise LogUnavailable(f"{service} cannot tell its past: {headers.get(ERROR, 'no reason given')}")
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()


def _check(events: Sequence[StoredEvent], after: int, told: int) -> None:
    """A message of the answer may be lost, as any of NATS itself."""
    if [event.position for event in events] != list(range(after + 1, after + 1 + told)):
        raise nats.errors.TimeoutError
