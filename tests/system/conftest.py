"""A whole system as its users have it: every service a process, started once for all tests of this folder."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest
from launcher.layout import Layout
from launcher.system import System
from launcher.testing import free_port_base
from synod_client import Endpoints, Synod

from .collector import TraceCollector
from .outbound import Outbound

ROOT = Path(__file__).parents[2]
START_S = 120
LIMITED_MODEL = "simulator/sim-no-usage"
"""Takes one call in LIMITED_EVERY_S, and only tests of rate limits call it."""
LIMITED_EVERY_S = 4
_LIMITS = [
    {
        "per": "tenant_model",
        "models": LIMITED_MODEL,
        "requests_per_min": 60 // LIMITED_EVERY_S,
        "burst_s": LIMITED_EVERY_S,
    }
]
ANTHROPIC_MODEL = "claude-like/sim-1"
"""The simulator again, asked as Anthropic is: in this form a request says what is to be cached of its prompt."""
Result = TypeVar("Result")


class RunningSystem:
    """A system on a thread with an event loop of its own, so that tests of any loop can use it."""

    def __init__(self, layout: Layout) -> None:
        self.system = System(layout, fresh=True)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Result], timeout_s: float = START_S) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        self.call(self.system.down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints.discover({}, self.system.layout.data)


@pytest.fixture(scope="session")
def collector() -> Iterator[TraceCollector]:
    """Takes the traces of the system under test."""
    with TraceCollector() as started:
        yield started


@pytest.fixture(scope="session")
def outbound(tmp_path_factory: pytest.TempPathFactory) -> Outbound:
    """Watches the services of the system under test; whatever these tests do, none may need another machine."""
    home = tmp_path_factory.mktemp("home")
    return Outbound(tmp_path_factory.mktemp("outbound") / "lines.jsonl", home)


@pytest.fixture(scope="session")
def running(
    tmp_path_factory: pytest.TempPathFactory, collector: TraceCollector, outbound: Outbound
) -> Iterator[RunningSystem]:
    tracing = {"SYNOD_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    limits = {"SYNOD_RATE_LIMITS": json.dumps(_LIMITS)}
    roster = tmp_path_factory.mktemp("roster") / "roster.json"
    settings = {**tracing, **limits, "SYNOD_ROSTER_FILE": str(roster), **outbound.environment()}
    layout = Layout(
        tmp_path_factory.mktemp("system"),
        free_port_base(),
        simulator=True,
        durable=False,
        environment={**os.environ, **settings},
    )
    roster.write_text(json.dumps(_roster(layout.simulator_url)))
    started = RunningSystem(layout)
    try:
        started.call(started.system.up())
        yield started
    finally:
        started.close()
    assert outbound.attempts() == []


def _roster(simulator_url: str) -> dict[str, object]:
    provider = ANTHROPIC_MODEL.partition("/")[0]
    asked = {"name": "simulated-claude", "dialect": "anthropic-messages", "base_url": simulator_url}
    return {"deployments": [asked | {"provider": provider}], "models": [{"id": ANTHROPIC_MODEL}]}


@pytest.fixture
async def synod(running: RunningSystem) -> AsyncIterator[Synod]:
    async with Synod.connect(running.endpoints) as connected:
        yield connected


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(running: RunningSystem) -> Command:
    return command_of(running)


def command_of(running: RunningSystem) -> Command:
    """Runs ``synod ...`` against the system, as a person would."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        data = str(running.system.layout.data)
        environment = {"SYNOD_DATA": data, "PATH": "/usr/bin:/bin", "HOME": data, "COLUMNS": "200"}
        program = Path(sys.executable).parent / "synod"
        return subprocess.run(
            [program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    return run
