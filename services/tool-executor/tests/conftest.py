"""What the tests of the tool executor share: one runner with real sandboxes per module, and empty workspaces."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tool_executor.sandboxes.probe import Capabilities, probe
from tool_executor.tools.runner import Runner


@pytest.fixture(scope="session")
def capabilities() -> Capabilities:
    return probe()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner(capabilities: Capabilities) -> AsyncIterator[Runner]:
    async with Runner(capabilities) as runner:
        yield runner


@pytest.fixture
def workspace_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run-1"
    directory.mkdir()
    return directory
