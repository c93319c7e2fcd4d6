"""Watchers of a stream are woken when it has grown, and told to look when nobody could know."""

import asyncio

from consensus.application import Changes
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.testing import a_stream, an_append

WAIT_S = 30


async def test_a_watcher_is_woken_by_its_own_stream_only() -> None:
    log, own, other = MemoryEventLog(), a_stream(), a_stream()
    changes = Changes(log)
    with changes.watching(own) as grown, changes.watching(other) as untouched:
        following = asyncio.create_task(changes.follow())
        await asyncio.wait_for(grown.wait(), WAIT_S)  # it is told to look when the following begins
        grown.clear()
        untouched.clear()
        await log.append(an_append(own))
        await asyncio.wait_for(grown.wait(), WAIT_S)
        assert not untouched.is_set()
    await end(following)


async def test_a_watcher_learns_of_what_happened_while_nobody_followed() -> None:
    """As after a crash of the task that follows the log: it begins anew at the head."""
    log, stream = MemoryEventLog(), a_stream()
    changes = Changes(log)
    with changes.watching(stream) as grown:
        await log.append(an_append(stream))
        following = asyncio.create_task(changes.follow())
        await asyncio.wait_for(grown.wait(), WAIT_S)
        assert grown.is_set()
    await end(following)
