"""How an answer from a view gets to contain what was written before it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventlog.log import EventLog
from eventlog.projections import Projector

WAIT_S: Final = 2.0
"""After this a view that lags is read as it is: an old answer is better than none."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """`views` fold the ledger's own log; `sources` record what other services have published."""

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

    async def _recorded(self, source: Projector) -> None:
        await source.wait_for(await source.source.head(), WAIT_S)
