"""An agent outside with the real registry, keys and NATS of `synod up`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from eventlog.ending import end
from launcher.layout import AUTHORITY, SERVICES, Layout
from launcher.system import System
from launcher.testing import free_port_base
from synod.agent_registry.v1.agent_registry_pb2 import AGENT_HEALTH_ALIVE
from synod_client import Agent, Endpoints, InvalidInput, Replaced, Synod, Task
from synod_client.agent import Handler

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]
DEADLINE_S = 60


def free_layout(data: Path) -> Layout:
    """The registry alone, on ports that are free now."""
    services = tuple(service for service in SERVICES if service.name == AUTHORITY)
    return Layout(data, free_port_base(), services, durable=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoints(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoints]:
    async with System(free_layout(tmp_path_factory.mktemp("system") / "data")) as system:
        yield Endpoints.discover({}, system.layout.data)


def answering(text: str) -> Handler:
    async def handle(task: Task) -> str:
        return f"{text} {task.text}"

    return handle


async def serve(synod: Synod, text: str, begun: asyncio.Event) -> None:
    async with Agent.register(synod, name="translator", capabilities=["translate"]) as agent:
        begun.set()
        await agent.serve(answering(text))


async def test_an_agent_is_registered_found_asked_and_replaced(endpoints: Endpoints) -> None:
    async with asyncio.timeout(DEADLINE_S), Synod.connect(endpoints) as synod:
        begun = asyncio.Event()
        old = asyncio.create_task(serve(synod, "old", begun))
        await begun.wait()

        assert await synod.ask("translator", "hello") == "old hello"
        (found,) = await synod.discover("translate")
        assert (found.name, found.external, found.incarnation, found.health) == (
            "translator",
            True,
            1,
            AGENT_HEALTH_ALIVE,
        )

        begun.clear()
        new = asyncio.create_task(serve(synod, "new", begun))
        await begun.wait()
        with pytest.raises(Replaced, match="incarnation 1 takes no more tasks"):
            await old
        assert await synod.ask("translator", "hello") == "new hello"

        with pytest.raises(InvalidInput, match="name"):
            await synod.register("Not A Name", [])
        await end(new)


async def test_the_registrys_events_are_followed_with_what_up_wrote(endpoints: Endpoints) -> None:
    async with asyncio.timeout(DEADLINE_S), Synod.connect(endpoints) as synod:
        head = (await synod.read("agent-registry", limit=1)).head_position
        registered = await synod.register("observer", ["watch"])
        events = synod.follow("agent-registry", after=head, types={"ExternalAgentRegistered"})
        recorded = await anext(events)
        await events.aclose()
        stored = (await synod.read("agent-registry", after=recorded.position - 1, limit=1)).events[0]
    assert recorded.stream == f"agent/{registered.id}"
    assert (recorded.id, recorded.data, recorded.type) == (stored.id, stored.data, stored.type)
    assert recorded.event is not None
