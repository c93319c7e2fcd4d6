"""Wakes those who wait for the log to grow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

ANSWERING_TURNS: Final = 5
"""So many turns of the loop an answer takes at most from the log to the socket, from one task to the next that waits for
it: a task that is shielded from its caller's leaving takes two."""


class HeadSignal:
    """The newest head this process knows of. Belongs to one event loop."""

    def __init__(self, head: int = 0) -> None:
        self.head = head
        self._waiting: dict[asyncio.Future[bool], int] = {}

    def advance(self, head: int) -> None:
        """Wake every waiter for a position up to `head`; a head that is known already changes nothing."""
        if head > self.head:
            self.move(head)

    def announce(self, head: int, aside: Callable[[], None] | None = None) -> None:
        """As `advance`, but whom the caller has just answered goes on first, and so do those whom that one answers in turn.

        Those who follow a log have work for the loop's thread; who appended to it waits for nothing but the thread. What
        else can wait for him is done `aside`, before they are woken.
        """
        self.head = max(head, self.head)
        if self._waiting or aside:  # who comes later sees the head at once
            self._wake_after(ANSWERING_TURNS, aside)

    def move(self, head: int) -> None:
        """As `advance`, but the head may also fall back."""
        self.head = head
        self._wake()

    def _wake_after(self, turns: int, aside: Callable[[], None] | None) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._wake_after, turns - 1, aside)
            return
        try:
            if aside:
                aside()
        finally:
            self._wake()

    def _wake(self) -> None:
        for waiter, position in self._waiting.items():
            if position <= self.head:
                settle(waiter)

    async def wait_for(self, position: int, timeout_s: float) -> int:
        """The head, once it reaches `position` or the time is over."""
        if self.head < position and timeout_s > 0:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = position
            try:
                await settled(waiter, timeout_s)
            finally:
                del self._waiting[waiter]
        return self.head


async def settled(waiter: asyncio.Future[bool], timeout_s: float) -> bool:
    """True once somebody settles `waiter`; False when the time is over, which settles it too.

    What asyncio.wait is for, without the callbacks that it needs for anything but a bare future: those who follow a log
    wait after every commit.
    """
    timer = asyncio.get_running_loop().call_later(timeout_s, settle, waiter, False)
    try:
        return await waiter
    finally:
        timer.cancel()


def settle(waiter: asyncio.Future[bool], in_time: bool = True) -> None:
    """Wake who waits, unless that one is awake or gone."""
    if not waiter.done():
        waiter.set_result(in_time)
