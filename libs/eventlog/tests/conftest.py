"""What stands beside the tests can be imported by them; and what those on NATS share."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from synod.common.ids import uuid7

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
def service() -> str:
    return f"svc-{uuid7().hex}"
