"""Two of every service: one of each may die, and the other may be replaced by a newer one, without anybody noticing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import aiohttp
import pytest
from launcher.layout import EDGE, EDGES, MODELS, SERVICES
from synod_client import Synod

from .conftest import NEXT, Containers
from .definitions import WAIT_S, assert_tools_ran_once, finished, prepared, seen

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
LOOK_S = 0.5
"""How often a balancer asks the gateways whether they are ready."""
ANSWER_S = 30
"""What takes longer has failed."""
ASKED = {
    "agent-registry": "/api/v1/agents",
    "cost-ledger": "/api/v1/budgets",
    "consensus": "/api/v1/proposals",
    "tool-executor": "/api/v1/tools",
    "agent-runtime": "/api/v1/runs",
}
"""What the edge asks each service for. It asks llm-gateway for answers, as others do directly, and is itself asked for all of
this."""
QUESTION = {
    "model": "simulator/sim-1",
    "messages": [{"role": "system", "content": "answer: 4"}, {"role": "user", "content": "2 + 2?"}],
}


async def test_one_of_every_service_that_dies_in_the_middle_changes_nothing(replicas: Containers) -> None:
    async with Synod.connect(replicas.endpoints_of_replicas) as synod:
        await prepared(synod)
        undisturbed = await finished(synod, (await synod.start("porters", "the load")).id)
        started = await synod.start("porters", "the load")
        await seen(synod, started.id, "ToolCallIntended")
        await asyncio.to_thread(replicas.crash_one_of_each)
        disturbed = await finished(synod, started.id)
        assert disturbed.result_sha256 == undisturbed.result_sha256
        await assert_tools_ran_once(synod, started.id)
        assert (await synod.replay(started.id)).equal
        assert all([(await synod.verify_log(service)).ok for service in synod.services])


async def test_a_rolling_upgrade_of_every_service_fails_no_call(replicas: Containers) -> None:
    """Also where no other replica serves meanwhile, which is the harder case."""
    names = [service.name for service in SERVICES]
    assert set(names) == {*ASKED, MODELS, EDGE}
    await asyncio.to_thread(replicas.leave_one_of_each)
    await asyncio.to_thread(replicas.build_next, *names)
    async with under_load(replicas) as load:
        await load.answers_more(20)
        for name in names:
            await asyncio.to_thread(replicas.roll, name)
            await load.answers_more(20)
            assert load.failures == []
    assert {name: replicas.revisions(name) for name in names} == {name: [NEXT] for name in names}
    for name in names:
        await asyncio.to_thread(replicas.wait_ready, name)


@dataclass(slots=True)
class Load:
    """Three clients that ask without a pause, through a balancer before the gateways."""

    containers: Containers
    client: aiohttp.ClientSession
    ready: dict[str, list[str]] = field(default_factory=dict)
    """Of each service that has an edge, those to send to."""
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    ends: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    """One entry for each call that ended since somebody waits for them."""

    async def balance(self) -> None:
        while True:
            for service in EDGES:
                edges = await asyncio.to_thread(self.containers.edges, service)
                self.ready[service] = [edge for edge in edges if await self._is_ready(edge)]
            await asyncio.sleep(LOOK_S)

    async def chat(self, service: str) -> None:
        while True:
            await self._ask(service, "POST", "/v1/chat/completions", QUESTION)

    async def read(self) -> None:
        for path in cycle(ASKED.values()):
            await self._ask(EDGE, "GET", path)

    async def answers_more(self, count: int) -> None:
        """Waits for so many answers or a failure."""
        self.ends = asyncio.Queue()
        async with asyncio.timeout(WAIT_S):
            while count and not self.failures:
                await self.ends.get()
                count -= 1

    async def _ask(self, service: str, method: str, path: str, body: object = None) -> None:
        edge = self.ready[service][self.answered % len(self.ready[service])]
        if failure := await self._failure(method, edge + path, body):
            self.failures.append(failure)
        else:
            self.answered += 1
        self.ends.put_nowait(None)

    async def _failure(self, method: str, url: str, body: object = None) -> str:
        try:
            async with self.client.request(method, url, json=body) as answer:
                text = await answer.text()
                return "" if answer.ok else f"{url}: {answer.status} {text}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{url}: {error!r}"

    async def _is_ready(self, edge: str) -> bool:
        return not await self._failure("GET", f"{edge}/ready")


@asynccontextmanager
async def under_load(containers: Containers) -> AsyncIterator[Load]:
    headers = {"Authorization": f"Bearer {containers.endpoints.required_key()}"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as client:
        load = Load(containers, client)
        load.ready = {service: containers.edges(service) for service in EDGES}
        works = (load.balance(), load.read(), *(load.chat(service) for service in EDGES))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in ended if not isinstance(each, asyncio.CancelledError)] == []
