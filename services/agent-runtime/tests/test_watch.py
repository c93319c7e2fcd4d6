"""Watchers of a run are told when there is news of it, and to look when nobody could know."""

import asyncio

from agent_runtime.work.watch import NEWS, Feed
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import Context
from eventlog.testing import a_stream, an_append

WAIT_S = 30
OF_RUN_1 = Context("local", "usr_1", correlation="run_1")


async def test_news_of_a_run_are_told_to_its_own_watchers_only() -> None:
    log = MemoryEventLog()
    feed = Feed(log)
    with feed.watching("run_1") as told, feed.watching("run_2") as untold:
        following = asyncio.create_task(feed.follow())
        for inbox in (told, untold):  # both are told to look when the following begins
            assert await asyncio.wait_for(inbox.get(), WAIT_S) is NEWS
        await log.append(an_append(a_stream(), context=OF_RUN_1))
        assert await asyncio.wait_for(told.get(), WAIT_S) is NEWS
        assert untold.empty()
    await end(following)


async def test_news_from_while_nobody_followed_are_told_when_the_following_begins() -> None:
    """As after a crash of the task that follows the log: it begins anew at the head."""
    log = MemoryEventLog()
    feed = Feed(log)
    with feed.watching("run_1") as told:
        await log.append(an_append(a_stream(), context=OF_RUN_1))
        following = asyncio.create_task(feed.follow())
        assert await asyncio.wait_for(told.get(), WAIT_S) is NEWS
    await end(following)
