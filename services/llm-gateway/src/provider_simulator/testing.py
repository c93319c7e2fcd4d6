"""The simulator inside a test, on a free port of the loopback interface."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from provider_simulator.faults import FaultPlan
from provider_simulator.quota import Quotas
from provider_simulator.server import Simulator
from provider_simulator.usage import UsageBook

FIXED_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunningSimulator:
    """Addresses of a running simulator, and its controls: plan faults, read what was served."""

    origin: str
    faults: FaultPlan
    usage: UsageBook
    quotas: Quotas

    @property
    def openai_base_url(self) -> str:
        return f"{self.origin}/v1"

    @property
    def anthropic_base_url(self) -> str:
        return self.origin


@asynccontextmanager
async def running_simulator(
    *, port: int = 0, now: Callable[[], datetime] = lambda: FIXED_NOW
) -> AsyncIterator[RunningSimulator]:
    """Serve until the block ends. With the default clock every answer is the same byte for byte in every run."""
    simulator = Simulator(now)
    runner = web.AppRunner(simulator.application(), access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound_port = runner.addresses[0][:2]
        yield RunningSimulator(f"http://{host}:{bound_port}", simulator.faults, simulator.usage, simulator.quotas)
    finally:
        await runner.cleanup()
