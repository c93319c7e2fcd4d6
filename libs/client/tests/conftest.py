"""A fake system for each test, a client of it that does not wait long, and NATS with the users of a real system."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc
import pytest
from launcher import nats
from launcher.keys import ADMINISTRATOR, NATS_CLIENTS, ensure_keys
from launcher.layout import Layout
from launcher.nats import ANY_PORT, NatsUser
from launcher.processes import Warden
from launcher.programs import nats_of
from launcher.streams import make_streams
from launcher.testing import RunningNats
from synod_client import Endpoints, Limits, Synod
from synod_client.testing import FakeSystem, Fault

QUICK = Limits(timeout_s=30, attempts=3, backoff_first_s=0.001, backoff_max_s=0.002, stream_attempts=3)
DEADLINE_S = 30.0
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Bus:
    """NATS as `synod up` runs it: with its users and what each may do."""

    running: RunningNats
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        return nats.url(self.running.server.port, NatsUser(user, self.passwords[user]))

    def endpoints(self, fakes: FakeSystem) -> Endpoints:
        """The services are the fakes, NATS is this."""
        logins = {user: self.url(user) for user in NATS_CLIENTS}
        return replace(fakes.endpoints, nats=self.running.url, nats_logins=logins)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory, launcher_warden: Warden) -> Iterator[Bus]:
    layout = Layout(tmp_path_factory.mktemp("bus"))
    layout.keys.mkdir()
    credentials = ensure_keys(layout.keys, (service.name for service in layout.services))
    running = RunningNats(replace(nats_of(layout, credentials), port=ANY_PORT), launcher_warden)
    running.start()
    bus = Bus(running, dict(credentials.nats))
    make_streams(bus.url(ADMINISTRATOR), layout.services)
    yield bus
    running.stop()


@pytest.fixture
def fakes() -> Iterator[FakeSystem]:
    with FakeSystem() as system:
        system.answer("cost-ledger", "GetBudget", Fault(grpc.StatusCode.NOT_FOUND, "no budget"))
        yield system


@pytest.fixture
async def synod(fakes: FakeSystem) -> AsyncIterator[Synod]:
    async with Synod.connect(fakes.endpoints, QUICK) as connected:
        yield connected


Until = Callable[[Callable[[], Awaitable[Found]], Callable[[Found], bool]], Awaitable[Found]]


@pytest.fixture
def until() -> Until[object]:
    """Asks until an answer is what was waited for; fails with the last one at the deadline."""

    async def wait(ask: Callable[[], Awaitable[object]], found: Callable[[object], bool]) -> object:
        end = asyncio.get_running_loop().time() + DEADLINE_S
        while not found(answer := await ask()):
            if asyncio.get_running_loop().time() > end:
                pytest.fail(f"still waiting after {DEADLINE_S} s; the last answer was {answer!r}")
            await asyncio.sleep(0.01)
        return answer

    return wait
