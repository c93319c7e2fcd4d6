"""Two attempts at one answer: a second one is begun elsewhere when the first takes too long, and the faster one wins.

first asked ──after_s──▶ rival asked        at most two, within the retry budget, and only where a second answer is
    │                        │              free or its owner pays for both
    └──────── leads ─────────┘              the first to show content, or to answer; the other is cancelled
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from llm_gateway.domain import Abort, ModelResponse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hedge:
    """What the owner of a model wants: a rival once an attempt has shown nothing for `after_s`, such as its 95th
    percentile. `pays_twice`: also where the provider bills an answer that is cancelled.
    """

    after_s: float
    pays_twice: bool = False

    def suits(self, abort: Abort) -> bool:
        return self.pays_twice or abort == "free"


class RaceDecided(Exception):
    """A rival is not needed any more."""


@dataclass(slots=True)
class Race:
    """Attempts by number, each carried out by a task of its own."""

    leader: int | None = None
    failures: dict[int, BaseException] = field(default_factory=dict)
    _tasks: "dict[int, asyncio.Task[ModelResponse]]" = field(default_factory=dict)
    _decided: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, number: int, asking: Coroutine[None, None, ModelResponse]) -> None:
        task = self._tasks[number] = asyncio.create_task(asking, name=f"attempt {number}")
        task.add_done_callback(lambda task: self._done(number, task))

    def leads(self, number: int) -> bool:
        """Whether it is the one whose content is shown: the first that asks. The other one is cancelled."""
        if self.leader is None:
            self.leader = number
            self._decided.set()
            for other, task in self._tasks.items():
                if other != number:
                    task.cancel()
        return self.leader == number

    def decided(self) -> bool:
        """Whether an attempt leads."""
        self._look()
        return self.leader is not None

    async def quiet_for(self, seconds: float) -> bool:
        """Whether all attempts run and have shown nothing after so many seconds."""
        deciding = asyncio.create_task(self._decided.wait())
        try:
            done, _ = await asyncio.wait(
                {deciding, *self._tasks.values()}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            deciding.cancel()
        return not done

    async def unless_decided(self, preparing: Coroutine[None, None, T]) -> T:
        """What `preparing` comes to. Raises RaceDecided, and cancels it, when an attempt leads meanwhile."""
        task, deciding = asyncio.create_task(preparing), asyncio.create_task(self._decided.wait())
        try:
            await asyncio.wait({task, deciding}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise RaceDecided
            return await task
        finally:
            deciding.cancel()
            task.cancel()

    async def won(self) -> tuple[int, ModelResponse]:
        """The attempt that answered, and its answer. Raises what the last of all that failed ended in."""
        self._look()
        while running := [task for task in self._tasks.values() if not task.done()]:
            if self.leader is not None and self._tasks[self.leader].done():
                break
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            self._look()
        if self.leader is None:
            raise next(reversed(self.failures.values()))
        return self.leader, self._tasks[self.leader].result()

    async def close(self) -> None:
        """Cancels what runs, and waits for its end."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.wait(self._tasks.values())

    def _look(self) -> None:
        """Callbacks of tasks that have just ended may not have run yet."""
        for number, task in self._tasks.items():
            if task.done():
                self._done(number, task)

    def _done(self, number: int, task: "asyncio.Task[ModelResponse]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.leads(number)
        else:
            self.failures[number] = error
