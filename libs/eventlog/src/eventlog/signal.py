"""Wakes those who wait for the log to grow."""

from __future__ import annotations

import asyncio


class HeadSignal:
    """The newest head this process knows of. Belongs to one event loop."""

    def __init__(self, head: int = 0) -> None:
        self.head = head
        self._waiting: dict[asyncio.Future[None], int] = {}

    def advance(self, head: int) -> None:
        """Wake every waiter for a position up to `head`; a smaller head than known changes nothing."""
        self.move(max(self.head, head))

    def move(self, head: int) -> None:
        """As `advance`, but the head may also fall back."""
        self.head = head
        for waiter, position in self._waiting.items():
            if position <= self.head and not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, position: int, timeout_s: float) -> int:
        """The head, once it reaches `position` or the time is over."""
        if self.head < position and timeout_s > 0:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = position
            try:
                await asyncio.wait([waiter], timeout=timeout_s)
            finally:
                del self._waiting[waiter]
        return self.head
