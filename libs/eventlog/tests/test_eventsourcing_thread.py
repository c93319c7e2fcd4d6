"""Many threads share a log that lives in one; it is closed once, whoever forgets to."""

import asyncio
import gc
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from eventlog.errors import LogClosed, LogUnavailable
from eventlog.eventsourcing.thread import LogThread
from eventlog.log import EventLog
from eventlog.memory import MemoryEventLog
from eventlog.testing import a_stream, an_append


class ObservedLog(MemoryEventLog):
    """Says when it was closed, and by which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()
        self.closed_by = ""

    async def close(self) -> None:
        await super().close()
        self.closed_by = threading.current_thread().name
        self.closed.set()


@pytest.fixture
def log() -> ObservedLog:
    return ObservedLog()


def opened(log: ObservedLog) -> LogThread:
    async def open_log() -> ObservedLog:
        return log

    return LogThread(open_log)


def test_calls_of_many_threads_are_answered(log: ObservedLog) -> None:
    thread = opened(log)

    def append(_: int) -> int:
        request = an_append(a_stream())
        return thread.call(lambda log: log.append(request)).position

    with ThreadPoolExecutor(8) as callers:
        positions = list(callers.map(append, range(100)))

    assert sorted(positions) == list(range(1, 101))
    thread.close()


def test_an_error_reaches_the_caller_it_belongs_to(log: ObservedLog) -> None:
    thread = opened(log)
    with pytest.raises(ValueError, match="1 to 1000 events"):
        thread.call(lambda log: log.append())
    assert thread.call(lambda log: log.head()) == 0
    thread.close()


def test_an_error_of_opening_reaches_the_opener() -> None:
    async def open_log() -> ObservedLog:
        raise LogUnavailable("no server there")

    with pytest.raises(LogUnavailable, match="no server there"):
        LogThread(open_log)


def test_closing_twice_closes_once_and_refuses_later_calls(log: ObservedLog) -> None:
    thread = opened(log)
    thread.close()
    thread.close()
    assert log.closed.is_set()
    assert log.closed_by == "eventlog"
    with pytest.raises(LogClosed):
        thread.call(lambda log: log.head())


def test_closing_ends_whoever_still_waits(log: ObservedLog) -> None:
    thread = opened(log)
    waiting = thread.submit(lambda log: log.wait_for(1, 60))
    thread.close()
    with pytest.raises(LogClosed):
        waiting.result(timeout=10)


def test_a_forgotten_thread_closes_its_log(log: ObservedLog) -> None:
    thread = opened(log)
    del thread
    gc.collect()
    assert log.closed.wait(10)


def test_a_log_may_be_closed_by_its_own_thread(log: ObservedLog) -> None:
    thread = opened(log)

    async def close_from_within(_: EventLog) -> None:
        thread.close()

    thread.call(close_from_within)

    with pytest.raises(LogClosed):
        thread.call(lambda log: log.head())
    assert log.closed.wait(10)


def test_a_call_without_answer_ends_at_its_deadline(log: ObservedLog) -> None:
    thread = opened(log)
    with pytest.raises(LogUnavailable, match=r"no answer within 0\.05 s"):
        thread.call(lambda log: log.wait_for(1, 60), timeout_s=0.05)
    thread.close()


def test_a_timeout_of_the_work_itself_is_passed_on(log: ObservedLog) -> None:
    thread = opened(log)

    async def late(_: EventLog) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        thread.call(late)
    thread.close()


def test_who_gives_up_waiting_is_released(log: ObservedLog) -> None:
    thread = opened(log)
    waiting = thread.submit(lambda log: log.wait_for(1, 60))
    assert waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result()
    thread.close()
    assert log.closed.is_set()
