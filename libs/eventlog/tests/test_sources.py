"""Reading a source: page by page, the next one while the caller works on the last."""

import asyncio

import pytest
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.records import EVERYTHING, Filter, Page
from eventlog.sources import LogSource
from eventlog.testing import a_stream, an_append, an_event, positions


class WatchedLog(MemoryEventLog):
    """Tells from where pages were asked for; fails where it is told to, or hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.fail_at = self.hang_at = -1
        self.cancelled = False

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        self.asked.append(after)
        if after == self.fail_at:
            self.fail_at = -1
            raise LogUnavailable("the database is away")
        if after == self.hang_at:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return await super().next_page(after, limit=limit, where=where)


@pytest.fixture
async def log() -> WatchedLog:
    log = WatchedLog()
    await log.append(an_append(a_stream(), *[an_event() for _ in range(10)]))
    return log


async def until_asked(log: WatchedLog, after: int) -> None:
    async with asyncio.timeout(10):
        while after not in log.asked:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_next_page_is_read_while_the_caller_works(log: WatchedLog) -> None:
    reader = LogSource(log).reader(None)
    first = await reader.read(0, 4)
    await until_asked(log, 4)
    second = await reader.read(first.position, 4)
    third = await reader.read(second.position, 4)
    assert [positions(page.events) for page in (first, second, third)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert log.asked == [0, 4, 8]
    assert (await reader.read(third.position, 4)).position == 10
    await reader.close()


async def test_a_page_read_ahead_from_elsewhere_is_not_used(log: WatchedLog) -> None:
    reader = LogSource(log).reader(None)
    await reader.read(0, 4)
    await until_asked(log, 4)
    assert positions((await reader.read(2, 4)).events) == [3, 4, 5, 6]
    assert positions((await reader.read(6, 2)).events) == [7, 8]
    await reader.close()


async def test_a_failure_ahead_is_raised_once_and_the_next_read_goes_on(log: WatchedLog) -> None:
    log.fail_at = 4
    reader = LogSource(log).reader(None)
    await reader.read(0, 4)
    with pytest.raises(LogUnavailable):
        await reader.read(4, 4)
    assert positions((await reader.read(4, 4)).events) == [5, 6, 7, 8]
    await reader.close()


async def test_a_closed_reader_leaves_no_reading_behind(log: WatchedLog) -> None:
    log.hang_at = 4
    reader = LogSource(log).reader(None)
    await reader.read(0, 4)
    await until_asked(log, 4)
    await reader.close()
    assert log.cancelled
