"""At most one worker per run within a process; who comes meanwhile nudges who works, and waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Nudge:
    """Says that something happened to the run that is being worked on."""

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def give(self) -> None:
        if not self.came.done():
            self.came.set_result(None)

    def take(self) -> bool:
        """Whether a nudge came since the last time."""
        if not self.came.done():
            return False
        self.came = asyncio.get_running_loop().create_future()
        return True


class Turns:
    """Who waits keeps its work item unacknowledged, so that nothing is lost when this process dies."""

    def __init__(self) -> None:
        self._nudges: dict[str, Nudge] = {}
        self._users: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def nudge_all(self) -> None:
        """Something happened to every run: somebody was erased."""
        for nudge in self._nudges.values():
            nudge.give()

    @asynccontextmanager
    async def of(self, run_id: str) -> AsyncIterator[Nudge]:
        """The turn of this caller at the run, after all who came before."""
        nudge = self._nudges.setdefault(run_id, Nudge())
        lock = self._locks.setdefault(run_id, asyncio.Lock())
        self._users[run_id] = self._users.get(run_id, 0) + 1
        try:
            if lock.locked():
                nudge.give()
            async with lock:
                nudge.take()
                yield nudge
        finally:
            self._leave(run_id)

    def _leave(self, run_id: str) -> None:
        self._users[run_id] -= 1
        if not self._users[run_id]:
            del self._users[run_id], self._nudges[run_id], self._locks[run_id]
