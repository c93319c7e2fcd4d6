"""Ends the voting on proposals whose deadline has come."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from eventlog.clock import Clock
from eventlog.records import Context

from consensus.application import Consensus
from consensus.projections import ProposalRow, Queries

BATCH: Final = 100
LOOK_AGAIN_S: Final = 1.0
ACTOR: Final = "consensus"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Any number of replicas may run it: closing is decided by the proposal's stream, and a second closing is no event."""

    consensus: Consensus
    queries: Queries
    clock: Clock

    async def run(self) -> None:
        while True:
            pause = await self.close_due()
            self.consensus.deadline_added.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.consensus.deadline_added.wait(), pause.total_seconds())

    async def close_due(self) -> timedelta:
        """Closes what is due; returns how long to wait before looking again."""
        for row in await self.queries.next_deadlines(BATCH):
            if row.deadline > self.clock.now():
                return min(row.deadline - self.clock.now(), timedelta(seconds=LOOK_AGAIN_S))
            await self.consensus.close(row.id, _context(row))
        return timedelta(seconds=LOOK_AGAIN_S)


def _context(row: ProposalRow) -> Context:
    return Context(tenant=row.tenant, actor=ACTOR, correlation=row.run_id)
