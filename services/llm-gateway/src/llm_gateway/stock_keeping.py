"""Closes the stocks of holders that are gone, so that what they have reserved ahead is released.

A process may use its stock only while it knows the lock of its holder (workers.py) to be held: it takes nothing more
within 30 s after the lock was last confirmed, and asks no provider under a reservation of it after 50 s. Who closes the
stock waits for GONE_S from when it first saw the lock free. After that it looks whether an attempt runs under one of its
reservations, in a view that has all that the log had by then. So nothing of the stock can be used any more, and what was
used is told of in the log before the close.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from eventlog.errors import QueueFull, ViewSuperseded
from eventlog.folding import AWAY
from eventlog.projections import Projector
from servicekit.clock import Clock

from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Workers
from llm_gateway.projections import OpenStock, Queries
from llm_gateway.stock_journal import StockJournal

GONE_S: Final = 60.0
FRESH_S: Final = 2.0
"""How long is waited for the view. The stocks that are due are so at the next look, too."""
CLOSE_OWN_S: Final = 5.0
"""What a stop has for it; others close what it does not get to."""
_NOT_NOW: Final = (*AWAY, StoreUnavailable, QueueFull, ViewSuperseded)


@dataclass(slots=True)
class Absences:
    """Since when the locks of holders have been free, as far as was seen. `now` is in seconds and never runs backwards."""

    _since: dict[str, float] = field(default_factory=dict)

    def long_gone(self, free: Collection[str], now: float) -> frozenset[str]:
        """Those that can use nothing any more, given whose locks are found free. `now` was read after they were."""
        self._since = {holder: self._since.get(holder, now) for holder in free}
        return frozenset(holder for holder, since in self._since.items() if now - since >= GONE_S)


def unused(stocks: Iterable[OpenStock], running: Iterable[str]) -> list[OpenStock]:
    """The stocks of holders whose reservations are none of the running ones."""
    in_use = {holder_of(reservation_id) for reservation_id in running}
    return [stock for stock in stocks if stock.holder not in in_use]


def holder_of(reservation_id: str) -> str:
    """Of a reservation made ahead, "<holder>:<n>". Of any other, the name of no holder."""
    return reservation_id.rpartition(":")[0]


@dataclass(slots=True)
class StockKeeper:
    """`view` folds what `queries` reads. `not_now` is told why nothing could be closed: it is tried again at the next look,
    here or by another process.
    """

    queries: Queries
    view: Projector
    workers: Workers
    journal: StockJournal
    clock: Clock
    not_now: Callable[[Exception], None]
    fresh_s: float = FRESH_S
    _absences: Absences = field(default_factory=Absences)

    async def run(self, every_s: float) -> None:
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Closes what is due by now."""
        try:
            due = await self._due()
            if due:
                await self._check_fresh()
                await self._close_unused(due)
        except _NOT_NOW as error:
            self.not_now(error)

    async def close_own(self) -> None:
        """Closes the stocks of this process: to be called at its end, when it reserves nothing more and all its calls have
        ended. An outcome that could not be recorded keeps them open for others to close.
        """
        try:
            async with asyncio.timeout(CLOSE_OWN_S):
                await self.view.catch_up()  # by now nobody else may be there to fold it
                if not await self.view.parked_count():
                    own = self.workers.holder
                    await self._close_unused([stock for stock in await self.queries.stocks() if stock.holder == own])
        except _NOT_NOW as error:
            self.not_now(error)

    async def _due(self) -> list[OpenStock]:
        stocks = await self.queries.stocks()
        free = [holder for holder in {stock.holder for stock in stocks} if not await self.workers.alive(holder)]
        long_gone = self._absences.long_gone(free, self.clock.monotonic())
        return [stock for stock in stocks if stock.holder in long_gone]

    async def _check_fresh(self) -> None:
        """Raises StoreUnavailable unless the view has all that is in the log now; what it could not fold, it has not."""
        head = await self.view.source.head()
        if await self.view.wait_for(head, self.fresh_s) < head:
            raise StoreUnavailable("the view of reservations lags behind the log")
        if parked := await self.view.parked_count():
            raise StoreUnavailable(f"the view of reservations has {parked} parked events: see `synod views parked`")

    async def _close_unused(self, stocks: Sequence[OpenStock]) -> None:
        running = await self.queries.running_reservations() if stocks else []
        for stock in unused(stocks, running):
            await self.journal.closed(stock.tenant, stock.holder)
