"""The library's subscription on a log: replays, then follows, without a gap or a duplicate."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from threading import Event
from typing import Final

from eventsourcing.persistence import ApplicationRecorder, Notification, OperationalError, Subscription

from eventlog.errors import LogClosed
from eventlog.eventsourcing.errors import as_library_error, without_traceback
from eventlog.eventsourcing.thread import LogThread

PAGE_NOTIFICATIONS: Final = 500
WAIT_S: Final = 1.0
"""How long one wait for new events lasts; the log itself hears of them at once, and polls where a notice is lost."""
RETRY_PAUSE_S: Final = 0.5

_log = logging.getLogger(__name__)


class LogSubscription(Subscription[ApplicationRecorder]):
    """Reads pages behind the head of the log: positions up to the head are all visible, so nothing can appear later.

    An unreachable database delays it and does not end it; `stop` does, from any thread. Belongs to one reading thread.
    """

    def __init__(self, recorder: ApplicationRecorder, thread: LogThread, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._thread = thread
        self._position = gt or 0
        self._page: Iterator[Notification] = iter(())
        self._stopped = Event()
        self._waiting: Future[int] | None = None

    def stop(self) -> None:
        super().stop()
        self._stopped.set()
        waiting = self._waiting
        if waiting is not None:
            waiting.cancel()

    def __next__(self) -> Notification:
        """The next notification; StopIteration once stopped; InterfaceError if the application was closed."""
        while not self._stopped.is_set():
            for notification in self._page:
                return notification
            try:
                self._read_page()
            except OperationalError as error:
                _log.warning("the subscription waits for the log to come back: %s", error)
                self._stopped.wait(RETRY_PAUSE_S)
            except CancelledError:
                break
        raise StopIteration

    def _read_page(self) -> None:
        """Wait for events after the position and read a page of them, which may be empty where topics are chosen."""
        head = self._wait_for_events()
        if head <= self._position:
            return
        page = self._recorder.select_notifications(
            start=self._position, limit=PAGE_NOTIFICATIONS, topics=self._topics, inclusive_of_start=False
        )
        full = len(page) == PAGE_NOTIFICATIONS
        # A page that is not full reaches at least to the head known before it was read, chosen topics or not.
        self._position = page[-1].id if full else max([head, *(each.id for each in page[-1:])])
        self._page = iter(page)

    def _wait_for_events(self) -> int:
        position = self._position + 1
        try:
            self._waiting = self._thread.submit(lambda log: log.wait_for(position, WAIT_S))
            if self._stopped.is_set():
                self._waiting.cancel()
            return self._waiting.result()
        except LogClosed as error:
            raise as_library_error(error) from without_traceback(error)
        finally:
            self._waiting = None
