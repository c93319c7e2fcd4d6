"""The feed of a service: what is away is waited for, and nobody goes on behind a hole."""

import asyncio
from collections import deque
from typing import cast

import pytest
from eventlog.errors import LogUnavailable, SourceTruncated
from eventlog.memory import MemoryEventLog
from eventlog.records import Page
from eventlog.sources import Reader, StreamSource, Types
from eventlog.testing import a_stream, an_append, an_event
from nats.aio.client import Client
from servicekit.telemetry import Logger
from ws_gateway.hub.channels import Follower, Plan
from ws_gateway.subscriptions import Feed, HistoryLimit

WAIT_S = 30.0
SERVICE = "consensus"


class ScriptedReader:
    """Tells what it is given, one after another, and then nothing more."""

    def __init__(self, script: deque[Page | BaseException]) -> None:
        self._script = script

    async def read(self, after: int, limit: int) -> Page:
        await asyncio.sleep(0)
        told = self._script.popleft() if self._script else Page((), after)
        if isinstance(told, BaseException):
            raise told
        return told

    async def wait(self, after: int, timeout_s: float) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None: ...


class ScriptedFeed(Feed):
    """Its stream stands at `head`."""

    def __init__(self, *script: Page | BaseException) -> None:
        source = StreamSource(cast("Client", None), SERVICE)
        told = deque(script)

        def reader(types: Types) -> Reader:
            return ScriptedReader(told)

        source.reader = reader  # type: ignore[method-assign]
        super().__init__(source, cast("Client", None), Logger("test"))
        self.head = 0

    async def kept(self) -> tuple[int, int, str]:
        return 1, self.head, "epoch"

    def follow(self) -> tuple[list[bytes], asyncio.Event]:
        """What a follower gets, and whether he was told that he lost something."""
        got, lost = list[bytes](), asyncio.Event()
        follower = Follower("local", got.append, lost.set, 100)
        self.fanout.join(follower)
        follower.release(0)
        return got, lost


async def page(first: int, last: int) -> Page:
    log = MemoryEventLog()
    await log.append(an_append(a_stream(), *[an_event() for _ in range(last)]))
    return Page([event._replace(tenant="local") for event in (await log.read())[first - 1 :]], last)


@pytest.fixture(params=[LogUnavailable("its database is down"), TimeoutError(), ConnectionResetError()], ids=repr)
def away(request: pytest.FixtureRequest) -> BaseException:
    return cast("BaseException", request.param)


async def test_a_feed_goes_on_once_what_was_away_is_back(away: BaseException) -> None:
    feed = ScriptedFeed(await page(1, 1), away, away, await page(2, 3))
    await feed.start()
    got, lost = feed.follow()
    async with asyncio.timeout(WAIT_S):
        while len(got) < 3:  # noqa: ASYNC110 - what a follower got is asked, as whoever reads it would
            await asyncio.sleep(0.01)
    assert feed.fanout.position == 3
    assert not lost.is_set()
    await feed.stop()


async def test_who_follows_what_is_truncated_is_told() -> None:
    feed = ScriptedFeed(await page(1, 1), SourceTruncated("EVT_CONSENSUS", 1, 9, 12))
    await feed.start()
    _, lost = feed.follow()
    feed.head = 12
    await asyncio.wait_for(lost.wait(), WAIT_S)
    await feed.stop()
    assert feed.fanout.position == 12


async def test_who_follows_a_feed_that_ended_by_a_fault_is_told_once_it_is_begun_anew() -> None:
    feed = ScriptedFeed(RuntimeError("a fault"))
    await feed.start()
    _, lost = feed.follow()
    assert feed._task is not None
    await asyncio.wait([feed._task], timeout=WAIT_S)
    assert isinstance(feed._task.exception(), RuntimeError)
    feed.head = 7
    await feed.start()
    assert lost.is_set()
    assert feed.fanout.position == 7
    assert not feed.fanout.followed
    await feed.stop()


async def test_history_that_cannot_be_read_now_is_none(away: BaseException) -> None:
    feed = ScriptedFeed(away)
    planned = Plan(recovered=True, after=0, until=3)
    assert await feed.history("local", planned, HistoryLimit(10, 1_000)) is None
