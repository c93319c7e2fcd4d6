"""Moves holds to suspense when their time is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from cost_ledger.application import EXPIRIES_MAX, CostLedger

LOOK_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Expiry:
    """Any number of replicas may run it: the book decides by the clock's time, and a second expiry is no event."""

    ledger: CostLedger

    async def run(self) -> None:
        while True:
            if await self.ledger.expire_due() < EXPIRIES_MAX:
                await asyncio.sleep(LOOK_AGAIN_S)
