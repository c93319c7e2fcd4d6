"""Finds the calls that dead workers have left open.

Of at-most-once calls the outcome is recorded as unknown, so that people see them and can reconcile. The others stay
open until their caller asks again, who alone knows whether the result is still wanted.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from eventlog.records import Context

from tool_executor.application import SERVICE, ToolExecutor
from tool_executor.projections import Queries

BATCH: Final = 100
LOOK_AGAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Any number of replicas may run it: what is recorded is decided by the call's stream."""

    executor: ToolExecutor
    queries: Queries

    async def run(self) -> None:
        while True:
            await self.settle_open()
            await asyncio.sleep(LOOK_AGAIN_S)

    async def settle_open(self) -> None:
        after = ""
        while calls := await self.queries.open_calls(after, BATCH):
            for call in calls:
                await self.executor.settle(call.id, Context(call.tenant, SERVICE, call.correlation))
            after = calls[-1].id
