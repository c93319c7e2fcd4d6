"""Reservations made before the calls that will use them, for callers who call often.

A call waits longer for its reservation than for all else that the gateway does. Who calls again and again, for the same
agent, run and model, finds one made already: of the kind that it needs, with a bound that covers its own. Where none is left
but some are on their way it waits for those, since what it asked for itself would come after them. Such a reservation is
an ordinary one in all budgets that match, decided by the ledger as any; only its id does not come from the call's. The event
that begins an attempt names it, and from then on nothing about it is special.

A spare one is used within `spare_s` or returned, so that no money is held for calls that do not come, and a budget that was
suspended or lowered counts for all but the calls of the last moment. The ledger makes none where little is left.

What a process that died has left unused others release (stock_keeping.py). They wait longer than a process goes on without
knowing that its lock is held: it makes, takes and asks only within the times below.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context as Variables
from dataclasses import dataclass, field, replace
from typing import Final

from eventlog.errors import LogUnavailable, QueueFull
from eventlog.records import Context

from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.ports import Ledger, Reservation, StockEvents, Workers
from llm_gateway.workers import boot_time

TAKE_WITHIN_S: Final = 30.0
"""One is made or taken only so long after the holder's lock was last known to be held."""
ASK_WITHIN_S: Final = 50.0
"""A provider is asked under it only so long after that. Others return it after a minute."""
TTL_S: Final = 86_400.0
"""Until others return what a dead process has left, it is held and not in doubt."""
LATELY_S: Final = 0.25
"""What a call counts for falls to a third in so long."""
FREQUENT: Final = 1.3
"""Calls lately from which on it is worth it: the one before came within 0.3 s."""
AHEAD_S: Final = 0.3
"""For so long calls that come as often as lately find one made. New ones are asked for when half of that is over, and a
ledger under full load answers in 0.1 s."""
KIND_MAX: Final = 128
"""Spare ones of a kind."""
COMING_S: Final = 0.5
"""A call waits so long at most for those on their way, then asks for its own."""
SPARES_MAX: Final = 400
"""Spare ones of a process."""
LOOKS: Final = 4
"""At what is spare, within the time that it may be."""
DOUBTFUL_S: Final = 60.0
"""Those of which the ledger gave no answer are returned after so long: it may make them after all, and that must be over."""
RETURNED_AT_ONCE: Final = 200
"""In one event."""
STEPS: Final = 8
"""Kinds of bounds from one power of two to the next, so that a conversation that grows needs a new one seldom."""


@dataclass(frozen=True, slots=True)
class Spare:
    """A reservation that nobody uses yet. `asked_at` is when it was asked for."""

    id: str
    tenant: str
    holder: str
    asked_at: float


@dataclass(slots=True)
class Shelf:
    """The spare reservations of a kind, the oldest first, and how often they are wanted. Times in seconds. Pure."""

    spares: deque[Spare] = field(default_factory=deque)
    coming: int = 0
    waiting: int = 0
    """Calls that wait for one of those that are coming."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set for an instant when some have come, or will not."""
    rests_until: float = -math.inf
    _wanted_at: float = -math.inf
    _lately: float = 0.0

    def want(self, now: float) -> None:
        """A call wants one."""
        self._lately = 1.0 + self._lately * math.exp((self._wanted_at - now) / LATELY_S)
        self._wanted_at = now

    def missing(self, now: float) -> int:
        """How many to make: none while more than half of what should be there is, or on its way."""
        if self._lately < FREQUENT or now < self.rests_until:
            return 0
        enough = min(math.ceil(self._lately * AHEAD_S / LATELY_S), KIND_MAX)
        there = len(self.spares) + self.coming
        return enough - there if 2 * there <= enough else 0

    def take_older_than(self, at: float) -> list[Spare]:
        """Takes off those that were asked for before."""
        old: list[Spare] = []
        while self.spares and self.spares[0].asked_at < at:
            old.append(self.spares.popleft())
        return old

    def is_idle_since(self, at: float) -> bool:
        """Whether nothing is here, or on its way, or was wanted after."""
        return not self.spares and not self.coming and not self.waiting and self._wanted_at < at


@dataclass(slots=True)
class Stock:
    """`now` is the clock of `workers`; `made` is told how many were made ahead, `used` of each that a call took.

    With `spare_s` 0 none is made. ``run`` returns what is not used in time; after ``close`` none is made or taken.
    """

    ledger: Ledger
    events: StockEvents
    workers: Workers
    spare_s: float
    now: Callable[[], float] = boot_time
    made: Callable[[int], None] = lambda reservations: None
    used: Callable[[], None] = lambda: None
    _shelves: dict[tuple[object, ...], Shelf] = field(default_factory=dict)
    _spares: int = 0
    """On all shelves, or on their way."""
    _opened: set[tuple[str, str]] = field(default_factory=set)
    _unused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """To be returned: ids by tenant and holder."""
    _doubtful: deque[Spare] = field(default_factory=deque)
    """To be returned later, the oldest first."""
    _making: set["asyncio.Task[None]"] = field(default_factory=set)
    _numbers: int = 0

    @property
    def is_certain(self) -> bool:
        """Whether the ledger has answered all that it was asked for of late, so that it can make nothing more after a close."""
        return not self._doubtful

    async def take(self, wanted: Reservation, context: Context) -> Spare | None:
        """A spare one that does for `wanted`, if there is one, or soon will be. Whoever gets it uses it or gives it back."""
        if not self.spare_s:
            return None
        now, bound = self.now(), _rounded(wanted.input_tokens_max)
        kind = (
            context.tenant,
            context.actor,
            *wanted.attribution.__dict__.values(),
            wanted.model,
            bound,
            wanted.output_tokens_max,
            *wanted.terms.items(),
            *wanted.modalities,
        )
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = Shelf()
        shelf.want(now)
        spare = self._usable(shelf, now)
        # Only for what was asked for before, and only if not all of that is waited for. A newcomer may be faster, though.
        soon = spare is None and shelf.waiting < shelf.coming
        if missing := min(shelf.missing(now), SPARES_MAX - self._spares):
            like = replace(wanted, input_tokens_max=bound, ttl_s=TTL_S, holder=self.workers.holder)
            # In the caller's name, and for whichever of his calls comes next: what only this one has is not taken along.
            self._start_making(shelf, missing, like, Context(context.tenant, context.actor))
        if soon:
            spare = await self._coming(shelf)
        if spare is not None:
            self.used()
        return spare

    def may_ask(self, spare: Spare) -> bool:
        """Whether a provider may still be asked under it."""
        return self.now() - self.workers.confirmed_at(spare.holder) < ASK_WITHIN_S

    def give_back(self, spare: Spare) -> None:
        """No provider was asked under it, and none will be."""
        self._unused.setdefault((spare.tenant, spare.holder), []).append(spare.id)

    async def run(self) -> None:
        while self.spare_s:
            await asyncio.sleep(self.spare_s / LOOKS)
            await self.return_unused()

    async def return_unused(self) -> None:
        """Returns what nobody has used in time, and what was given back. What cannot be recorded is, at the next look."""
        now = self.now()
        at = now - self.spare_s
        while self._doubtful and now - self._doubtful[0].asked_at > DOUBTFUL_S:
            self.give_back(self._doubtful.popleft())
        for kind, shelf in list(self._shelves.items()):
            self._take_off(shelf, at)
            if shelf.is_idle_since(at):
                del self._shelves[kind]
        for (tenant, holder), ids in list(self._unused.items()):
            returned = tuple(ids[:RETURNED_AT_ONCE])
            try:
                await self.events.returned(tenant, holder, returned)
            except (LogUnavailable, QueueFull):
                return
            del ids[: len(returned)]
            if not ids:
                self._unused.pop((tenant, holder), None)

    async def close(self) -> None:
        """Makes no more, waits for what is on its way, and returns what is spare; the rest is left to whoever closes the stock.

        By name, since what a call gave back at its end may be in suspense, and no close would release that.
        """
        self.spare_s = 0
        await asyncio.gather(*self._making, return_exceptions=True)
        await self.return_unused()

    def _usable(self, shelf: Shelf, now: float) -> Spare | None:
        """The oldest that is not too old, of a holder that is known to be alive."""
        self._take_off(shelf, now - self.spare_s)
        while shelf.spares:
            spare = shelf.spares.popleft()
            self._spares -= 1
            if self._is_trusted(spare.holder, now):
                return spare
            self.give_back(spare)
        return None

    async def _coming(self, shelf: Shelf) -> Spare | None:
        shelf.waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(COMING_S):
                    while shelf.coming and not shelf.spares:
                        await shelf.arrived.wait()
        finally:
            shelf.waiting -= 1
        return self._usable(shelf, self.now()) if self.spare_s else None

    def _take_off(self, shelf: Shelf, at: float) -> None:
        for spare in shelf.take_older_than(at):
            self._spares -= 1
            self.give_back(spare)

    def _is_trusted(self, holder: str, now: float) -> bool:
        return now - self.workers.confirmed_at(holder) < TAKE_WITHIN_S

    # --- making ---

    def _start_making(self, shelf: Shelf, count: int, like: Reservation, context: Context) -> None:
        if not self._is_trusted(like.holder, self.now()):
            return
        shelf.coming += count
        self._spares += count
        making = self._make(shelf, count, like, context)
        task = asyncio.create_task(making, name=f"reserve ahead {context.tenant}", context=Variables())
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _make(self, shelf: Shelf, count: int, like: Reservation, context: Context) -> None:
        asked_at, kept = self.now(), 0
        spares = [self._spare(like.holder, context.tenant, asked_at) for _ in range(count)]
        try:
            await self._open(context.tenant, like.holder)
            held = await self.ledger.reserve_ahead([replace(like, id=spare.id) for spare in spares], context)
            shelf.spares.extend(spare for spare in spares if spare.id in held)
            kept = len(held)
            self.made(kept)
        except (LogUnavailable, QueueFull, LedgerRefused):
            pass
        except LedgerUnavailable:
            self._doubtful.extend(spares)
        finally:
            shelf.coming -= count
            shelf.arrived.set()
            shelf.arrived.clear()
            self._spares -= count - kept
            if kept < count:
                shelf.rests_until = self.now() + self.spare_s

    def _spare(self, holder: str, tenant: str, asked_at: float) -> Spare:
        self._numbers += 1
        return Spare(f"{holder}:{self._numbers}", tenant, holder, asked_at)

    async def _open(self, tenant: str, holder: str) -> None:
        """On record before anything is reserved, so that others know what to close."""
        if (tenant, holder) not in self._opened:
            await self.events.opened(tenant, holder)
            self._opened.add((tenant, holder))


def _rounded(tokens: int) -> int:
    """At least as many, at most an eighth more."""
    step = max(1, (1 << tokens.bit_length() - 1) // STEPS) if tokens else 1
    return -(-tokens // step) * step
