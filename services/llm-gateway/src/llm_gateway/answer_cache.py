"""The cache of answers: one call of a model for all who ask the same at once, and one for all who ask it later.

Answers lie in a store that all replicas share; a bounded front in each process spares most look-ups. The front forgets
after FRONT_S, so that what was deleted from the store is soon gone everywhere. A store that cannot be reached is a miss.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeAlias

from servicekit.clock import Clock

from llm_gateway.caching import CachePolicy
from llm_gateway.errors import StoreUnavailable
from llm_gateway.limits import Priority, precedes
from llm_gateway.ports import CacheStore, Entry

FRONT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class CacheTerms:
    """Seconds and bytes; see Settings."""

    ttl_s: float = 3600.0
    ttl_max_s: float = 86_400.0
    entry_bytes_max: int = 1024 * 1024
    front_bytes_max: int = 16 * 1024 * 1024


_ALONE: Final = "alone"
_Outcome: TypeAlias = Entry | str | None
"""What became of a turn: an answer to share; each has to ask alone; or nothing, and the next may have the turn."""


class Asking:
    """A turn that somebody has, and who says when he waits in a line for room within the limits."""

    def __init__(self, priority: Priority) -> None:
        self._priority = priority
        self._loop = asyncio.get_running_loop()
        self._in_line = self._loop.create_future()
        self.outcome: asyncio.Future[_Outcome] = self._loop.create_future()

    def enter_line(self) -> None:
        self._in_line.set_result(None)

    def leave_line(self) -> None:
        self._in_line = self._loop.create_future()

    def holds_up(self, priority: Priority) -> bool:
        """Whether a call of this priority would wait for it in a line that it goes before."""
        return precedes(priority, self._priority) and self._in_line.done()

    async def moves(self, priority: Priority) -> None:
        """Returns once there is an outcome, or it may hold up a call of this priority."""
        watched: list[asyncio.Future[Any]] = [self.outcome]
        if precedes(priority, self._priority):
            watched.append(self._in_line)
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)


@dataclass(slots=True)
class Turn:
    """The right to ask a model for what is not in the cache. `found` is there when there is no need to; `asking` is to be
    told of lines, where others wait for this turn.
    """

    found: Entry | None = None
    kept: Entry | None = None
    asking: Asking | None = None


@dataclass(slots=True)
class AnswerCache:
    store: CacheStore
    clock: Clock
    terms: CacheTerms = field(default_factory=CacheTerms)
    _asking: dict[str, Asking] = field(default_factory=dict)
    _front: Front = field(init=False)

    def __post_init__(self) -> None:
        self._front = Front(self.terms.front_bytes_max)

    @asynccontextmanager
    async def turn(self, key: str, priority: Priority = "normal") -> AsyncIterator[Turn]:
        """An answer kept under the key, or the turn to find one; whoever else comes meanwhile waits for it.

        When the one whose turn it is fails, or gets what may not be shared, the others go on without waiting for each
        other. When it is cancelled, one of them has the turn. Once it waits in a line, whoever goes before it there has a
        turn of his own, for which those who come later wait.
        """
        if (known := self._known(key)) is not None:
            yield Turn(found=known)
            return
        while (other := self._asking.get(key)) is not None and not other.holds_up(priority):
            await other.moves(priority)
            if other.outcome.done() and (outcome := other.outcome.result()) is not None:
                yield Turn(found=outcome if isinstance(outcome, Entry) else None)
                return
        # Taken before the first wait, so that nobody else can.
        asking = self._asking[key] = Asking(priority)
        outcome = _ALONE
        try:
            turn = Turn(await self._find(key), asking=asking)
            yield turn
            outcome = turn.kept or turn.found or _ALONE
        except asyncio.CancelledError:
            outcome = None
            raise
        finally:
            if self._asking.get(key) is asking:
                del self._asking[key]
            asking.outcome.set_result(outcome)

    async def keep(self, key: str, tenant: str, policy: CachePolicy, answer: bytes) -> Entry | None:
        """None when the answer is too large to keep."""
        if len(answer) > self.terms.entry_bytes_max:
            return None
        ttl_s = min(policy.ttl_s or self.terms.ttl_s, self.terms.ttl_max_s)
        entry = Entry(answer, self.clock.now() + timedelta(seconds=ttl_s))
        self._front.put(key, entry, self.clock.monotonic())
        with suppress(StoreUnavailable):
            await self.store.put(key, tenant, entry)
        return entry

    async def find(self, key: str) -> Entry | None:
        """An answer kept under the key, without a turn."""
        return self._known(key) or await self._find(key)

    def _known(self, key: str) -> Entry | None:
        entry = self._front.find(key, self.clock.monotonic())
        return entry if entry is not None and entry.expires_at > self.clock.now() else None

    async def _find(self, key: str) -> Entry | None:
        with suppress(StoreUnavailable):
            entry = await self.store.find(key)
            if entry is not None:
                self._front.put(key, entry, self.clock.monotonic())
            return entry
        return None


class Front:
    """The entries used last, at most so many bytes of them, each for FRONT_S. Times are of a monotonic clock."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()

    def find(self, key: str, now: float) -> Entry | None:
        entry, until = self._entries.get(key, (None, 0.0))
        if entry is None or until <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry, now: float) -> None:
        self._drop(key)
        self._entries[key] = (entry, now + FRONT_S)
        self._bytes += len(entry.answer)
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry, _ = self._entries.pop(key, (None, 0.0))
        self._bytes -= len(entry.answer) if entry else 0
