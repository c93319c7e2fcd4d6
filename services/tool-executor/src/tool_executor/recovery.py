"""Finds the calls that dead workers have left open, and those that they held something for and never began.

Of at-most-once calls the outcome is recorded as unknown, so that people see them and can reconcile. The others stay
open until their caller asks again, who alone knows whether the result is still wanted. Until a call has begun its caller
may repeat it as well; what is held for it is given back when nobody has for long.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from eventlog.clock import Clock
from eventlog.records import Context
from servicekit.telemetry import Logger

from tool_executor.application import SERVICE, ToolExecutor
from tool_executor.errors import LedgerUnavailable
from tool_executor.holds import NotedHold, PostgresHolds
from tool_executor.projections import Queries
from tool_executor.spending import Ledger
from tool_executor.workers import Workers

BATCH: Final = 100
LOOK_AGAIN_S: Final = 10.0
UNREPEATED: Final = timedelta(minutes=10)
"""After this nobody is expected to repeat a call that was not begun."""
NEVER_BEGAN: Final = "its worker died before the call began, and nobody repeated it"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Any number of replicas may run it: what is recorded is decided by the call's stream, what is given back by whoever
    has the note of it.
    """

    executor: ToolExecutor
    queries: Queries
    holds: PostgresHolds
    workers: Workers
    ledger: Ledger
    clock: Clock
    log_: Logger

    async def run(self) -> None:
        while True:
            await self.settle_open()
            try:
                await self.release_unbegun()
            except LedgerUnavailable as error:
                self.log_.warning("holds_not_released", error=error)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def settle_open(self) -> None:
        after = ""
        while calls := await self.queries.open_calls(after, BATCH):
            for call in calls:
                await self.executor.settle(call.id, Context(call.tenant, SERVICE, call.correlation))
            after = calls[-1].id

    async def release_unbegun(self) -> None:
        """Give back what dead workers held for calls that never began. Raises LedgerUnavailable."""
        before = self.clock.now() - UNREPEATED
        await self.holds.forget_begun(before)
        after = ""
        while left := await self.holds.left(before, after, BATCH):
            for hold in left:
                if not await self.workers.alive(hold.worker):
                    await self._release(hold)
            after = left[-1].id

    async def _release(self, hold: NotedHold) -> None:
        async with self.holds.taken(hold) as ours:
            # The view may not have it yet; the log has, and nobody adds to it while the note is taken.
            if ours and not await self.executor.has_begun(hold.id):
                await self.ledger.release(hold.call_id, NEVER_BEGAN, hold.context)
