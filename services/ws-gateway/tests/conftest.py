"""Fixtures of the gateway's tests; what they are made of is in edge_world.py and edge_fakes.py."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from launcher.processes import Warden
from launcher.testing import RunningPostgres, running_nats

# In importlib mode the directory of the tests is not on the path, and the two modules are theirs alone.
sys.path.insert(0, str(Path(__file__).parent))

from edge_world import System, running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def started(
    postgres_server: RunningPostgres, launcher_directory: Path, launcher_warden: Warden
) -> AsyncIterator[System]:
    """One gateway for all tests of a module: a start costs more than any of them."""
    directory = launcher_directory / f"nats-{uuid4().hex}"
    with postgres_server.fresh_database() as dsn, running_nats(directory, launcher_warden) as nats:
        async with running(dsn, nats.url) as system:
            yield system


@pytest.fixture
def system(started: System) -> System:
    """The gateway, with services that answer as nobody has told them otherwise."""
    started.fake.reset()
    return started
