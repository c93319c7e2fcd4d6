"""Fencing by epoch: an append that a former owner sends too late is refused, however long it was on its way.

A lease that ends by time cannot stop its owner from writing afterwards: he may have been frozen, or his request may sit in
a queue. So whoever takes over takes the next epoch first, and every append carries the epoch of its sender; the log
compares them under the lock in which it commits (M. Kleppmann, How to do distributed locking, 2016: fencing tokens).

    fence = await take_fence(log, "run-7", context, clock.now())
    await log.append(Append(stream, version, events, context, fence))    # FenceLost once somebody else took it

An epoch is taken by an event in the fence's own stream, so the epochs of all processes come from one order, survive
whatever the log survives, and the log tells who took over when.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from synod.common.ids import uuid7

from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, Fence, NewEvent

FENCE_TAKEN = "FenceTaken"


async def take_fence(
    log: EventLog, name: str, context: Context, at: datetime, *, event_id: UUID | None = None
) -> Fence:
    """Take the next epoch of `name`: all appends that carry an earlier one are refused from now on.

    `name` is a token (see require_token). Raises as EventLog.append; after LogUnavailable repeat with the same `event_id`
    and get the same epoch, which is lost already if somebody else took the next one meanwhile.
    """
    taken = NewEvent(FENCE_TAKEN, 1, b"{}", event_id or uuid7(), at)
    appended = await log.append(Append(Fence(name, 0).stream, ANY, (taken,), context))
    (epoch,) = appended.versions
    return Fence(name, epoch)
