"""Keeps the reservations of calls under way alive: a call may take longer than what is held for it lives.

A hold lives for `ttl_s`, so what a killed process held is told as unknown that soon. What a living one holds is renewed
when half of that is over, again and again. One task looks after all calls: one that ends sooner, as nearly all do, costs
an entry in a table.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

from eventlog.records import Context

from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.ports import Ledger

TTL_S: Final = 300.0
LOOKS_PER_TTL: Final = 20
"""So often a hold could be renewed before it ends, should the ledger be away meanwhile: half of these are after it is due."""
AT_ONCE_MAX: Final = 50
"""Renewals under way at once."""


@dataclass(frozen=True, slots=True)
class _Held:
    context: Context
    due: float


@dataclass(slots=True)
class Renewals:
    """`now` is a clock in seconds; `refused` is told which hold the ledger does not renew, and why.

    A hold that is refused, because it was settled or released, is not asked for again. A ledger that cannot be asked is
    asked again at the next look.
    """

    ledger: Ledger
    ttl_s: float = TTL_S
    now: Callable[[], float] = lambda: asyncio.get_running_loop().time()
    refused: Callable[[str, LedgerRefused], None] = lambda reservation_id, error: None
    # In the order in which they are due, since all live equally long.
    _held: dict[str, _Held] = field(default_factory=dict)

    def enter(self, reservation_id: str, context: Context) -> None:
        """Its hold was made just now, and is needed until `leave`."""
        self._held[reservation_id] = _Held(context, self.now() + self.ttl_s / 2)

    def leave(self, reservation_id: str) -> None:
        self._held.pop(reservation_id, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.ttl_s / LOOKS_PER_TTL)
            await self.renew_due()

    async def renew_due(self) -> None:
        """Renews each hold of which half the time is over."""
        now, tried = self.now(), set[str]()
        while due := [id for id in self._due(now) if id not in tried]:
            tried.update(due)
            await asyncio.gather(*(self._renew(id) for id in due))

    def _due(self, now: float) -> list[str]:
        due = takewhile(lambda each: each[1].due <= now, self._held.items())
        return [id for id, _ in islice(due, AT_ONCE_MAX)]

    async def _renew(self, id: str) -> None:
        asked_at, held = self.now(), self._held[id]
        try:
            await self.ledger.renew(id, self.ttl_s, held.context)
        except LedgerUnavailable:
            return
        except LedgerRefused as error:
            self.leave(id)
            self.refused(id, error)
            return
        if self._held.pop(id, None) is held:
            self._held[id] = _Held(held.context, asked_at + self.ttl_s / 2)
