"""One background thread with an event loop that owns a log, for callers of many threads.

The log commits in groups whatever waits; that the callers wait in threads of their own makes no difference to it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from eventlog.errors import LogClosed, LogUnavailable
from eventlog.log import EventLog

ANSWER_TIMEOUT_S = 60.0
"""How long a caller waits: longer than the log itself tries (Limits.queue_timeout_s and .reconnect_timeout_s)."""
CLOSE_TIMEOUT_S = 45.0
"""How long closing waits for what is still to be committed."""

T = TypeVar("T")


class OwnedLog(EventLog, Protocol):
    """A log whose owner closes it."""

    async def close(self) -> None:
        """Commit all that waits, then release every resource."""
        ...


Work = Callable[[EventLog], Coroutine[Any, Any, T]]
"""What a caller wants done with the log."""


class LogThread:
    """Opens a log in a thread of its own and serves any number of threads, until closed, collected or the process ends.

    Calls in flight are bounded by the threads that wait for them, and by the log's own queue.
    """

    def __init__(self, open_log: Callable[[], Awaitable[OwnedLog]]) -> None:
        """Returns when the log is open; raises what opening raises."""
        self._worker = _Worker(open_log)
        self._worker.start()
        # The thread knows the worker, not this handle: who forgets to close loses the handle, and that closes.
        self._closer = weakref.finalize(self, self._worker.close)

    def call(self, work: Work[T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """The result of the work; raises what it raises, LogClosed, or LogUnavailable when there is no answer in time."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            if not future.cancel():
                return future.result()
            raise LogUnavailable(f"the log gave no answer within {timeout_s} s") from error

    def submit(self, work: Work[T]) -> Future[T]:
        """Hand the work over. Cancelling the future gives up waiting, not the work. Raises LogClosed."""
        return self._worker.submit(work)

    def close(self) -> None:
        """Commit all that waits, close the log, end the thread. Further calls have no effect."""
        self._closer()


class _Worker:
    """The thread's side: what it owns and what it is handed."""

    _loop: asyncio.AbstractEventLoop
    _stopping: asyncio.Event
    _log: OwnedLog

    def __init__(self, open_log: Callable[[], Awaitable[OwnedLog]]) -> None:
        self._open_log = open_log
        self._opened: Future[None] = Future()
        self._handed: deque[tuple[Work[Any], Future[Any]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._wake_sent = False
        # A daemon, so that an application nobody closed does not keep its process alive.
        self._thread = threading.Thread(target=self._run, name="eventlog", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._opened.result()

    def submit(self, work: Work[T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise LogClosed
            self._handed.append((work, future))
            if not self._wake_sent:  # one wake-up for all that is handed over until the loop looks
                self._wake_sent = True
                self._loop.call_soon_threadsafe(self._take_over)
        return future

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if sys.is_finalizing():
            return  # daemon threads stand still already; joining one would be for ever
        self._loop.call_soon_threadsafe(self._stopping.set)
        # An application may be collected, and so closed, by any thread, even by this one.
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            self._log = await self._open_log()
        except Exception as error:  # noqa: BLE001  # the edge of the thread: every error belongs to who opens
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        await self._stopping.wait()
        await self._log.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    def _take_over(self) -> None:
        with self._lock:
            self._wake_sent = False
        while self._handed:
            task = self._loop.create_task(self._answer(*self._handed.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Work[T], future: Future[T]) -> None:
        try:
            result = await work(self._log)
        except asyncio.CancelledError:
            _fail(future, LogClosed())
        except Exception as error:  # noqa: BLE001  # the edge of the thread: every error belongs to the caller
            _fail(future, error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)


def _fail(future: Future[T], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
