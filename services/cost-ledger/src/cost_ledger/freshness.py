"""How an answer from a view gets to contain what was written before it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventlog.log import EventLog
from eventlog.projections import Projector

from cost_ledger.errors import ViewIncomplete

WAIT_S: Final = 2.0
"""After this a view that lags is read as it is: an old answer is better than none."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """`views` fold the ledger's own log; `sources` record what other services have published.

    `own` and `all` are for answers, `complete` is for what is posted by the views and stays.
    """

    log: EventLog
    views: Sequence[Projector]
    sources: Sequence[Projector]

    async def own(self) -> None:
        """Wait until the views contain all that is in the log now."""
        head = await self.log.head()
        await asyncio.gather(*(view.wait_for(head, WAIT_S) for view in self.views))

    async def all(self) -> None:
        """Wait until they also contain the use that other services have published by now."""
        await asyncio.gather(*(self._recorded(source) for source in self.sources))
        await self.own()

    async def complete(self, tenant: str) -> None:
        """As `all`. ViewIncomplete if one of them lags after all, or could not fold an event of the tenant."""
        await asyncio.gather(*(_caught_up(source) for source in self.sources))
        head = await self.log.head()
        await asyncio.gather(*(_reached(view, head) for view in self.views))
        for view in (*self.sources, *self.views):
            await _refuse_parked(view, tenant)

    async def _recorded(self, source: Projector) -> None:
        await source.wait_for(await source.source.head(), WAIT_S)


async def _caught_up(source: Projector) -> None:
    await _reached(source, await source.source.head())


async def _reached(view: Projector, head: int) -> None:
    if (reached := await view.wait_for(head, WAIT_S)) < head:
        raise ViewIncomplete(view.view.name, f"is {head - reached} events behind", "repeat when it has caught up")


async def _refuse_parked(view: Projector, tenant: str) -> None:
    """An event that was parked counts as read, and is not in the view."""
    if not await view.parked_count():
        return
    if parked := sum(each.event.tenant == tenant for each in await view.parked()):
        remedy = "see `synod views parked cost-ledger`, mend the cause, redrive them, then repeat"
        raise ViewIncomplete(view.view.name, f"has {parked} parked events", remedy)
