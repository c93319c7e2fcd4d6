"""A fake system for each test, and a client of it that does not wait long."""

from collections.abc import AsyncIterator, Iterator

import pytest
from synod_client import Limits, Synod
from synod_client.testing import FakeSystem

QUICK = Limits(timeout_s=5, attempts=3, backoff_first_s=0.001, backoff_max_s=0.002, stream_attempts=3)


@pytest.fixture
def fakes() -> Iterator[FakeSystem]:
    with FakeSystem() as system:
        yield system


@pytest.fixture
async def synod(fakes: FakeSystem) -> AsyncIterator[Synod]:
    async with Synod.connect(fakes.endpoints, QUICK) as connected:
        yield connected
