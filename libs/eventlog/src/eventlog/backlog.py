"""The bounded queue in front of the writer: first come, first served, with back-pressure by weight."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from eventlog.errors import QueueFull

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """Holds items up to `weight_max` in sum; whoever comes later waits for room. Belongs to one event loop."""

    def __init__(self, weight_max: int) -> None:
        self._weight_max = weight_max
        self._weight = 0
        self._items: deque[tuple[Item, int]] = deque()
        self._held_back: deque[tuple[asyncio.Future[None], int]] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def weight(self) -> int:
        """The sum of what waits."""
        return self._weight

    async def put(self, item: Item, weight: int, timeout_s: float) -> None:
        """Queue the item once there is room; QueueFull if there is none within `timeout_s`."""
        if self._held_back or not self._has_room(weight):
            await self._wait_for_room(weight, timeout_s)
        else:
            self._weight += weight
        self._items.append((item, weight))
        self._changed.set()

    async def filled(self) -> bool:
        """Wait for an item: True. False when the backlog is closed and empty, and nobody is let in but not here yet."""
        while not self._items:
            if self._closed and not self._held_back and self._weight == 0:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def take(self, weight_max: int) -> list[Item]:
        """The oldest items up to `weight_max` in sum; at least one, if any waits."""
        taken: list[Item] = []
        weight = 0
        while self._items and (not taken or weight + self._items[0][1] <= weight_max):
            item, item_weight = self._items.popleft()
            weight += item_weight
            taken.append(item)
        self._weight -= weight
        self._admit_held_back()
        return taken

    def close(self) -> None:
        """Let `filled` end once all is taken."""
        self._closed = True
        self._changed.set()

    def _has_room(self, weight: int) -> bool:
        return self._weight == 0 or self._weight + weight <= self._weight_max

    async def _wait_for_room(self, weight: int, timeout_s: float) -> None:
        ticket: tuple[asyncio.Future[None], int] = (asyncio.get_running_loop().create_future(), weight)
        self._held_back.append(ticket)
        try:
            await asyncio.wait([ticket[0]], timeout=timeout_s)
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise
        if not ticket[0].done():
            self._give_up(ticket)
            raise QueueFull(self._weight_max)

    def _give_up(self, ticket: tuple[asyncio.Future[None], int]) -> None:
        if ticket[0].done():
            self._weight -= ticket[1]
        else:
            self._held_back.remove(ticket)
        self._admit_held_back()
        self._changed.set()

    def _admit_held_back(self) -> None:
        while self._held_back and self._has_room(self._held_back[0][1]):
            ticket, weight = self._held_back.popleft()
            self._weight += weight
            ticket.set_result(None)
