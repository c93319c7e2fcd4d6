"""The watch over agents outside: looks at intervals for those that have fallen silent."""

import asyncio
from datetime import timedelta
from typing import Protocol


class Sweeping(Protocol):
    async def sweep(self) -> None:
        """One look at everyone; may raise what the log raises, and is then repeated."""
        ...


async def sweep_forever(agents: Sweeping, every: timedelta) -> None:
    while True:
        await agents.sweep()
        await asyncio.sleep(every.total_seconds())
