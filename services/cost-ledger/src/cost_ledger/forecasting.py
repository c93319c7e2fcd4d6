"""Looks now and then whether budgets will run out, and has the book say so when that changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from cost_ledger.reports import Reports

LOOK_AGAIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Forecasting:
    """Any number of replicas may run it: the book tells a change once."""

    reports: Reports

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_AGAIN_S)

    async def look(self) -> None:
        for tenant in await self.reports.charges.tenants_with_budgets():
            await self.reports.tell_forecasts(tenant)
