"""Who is free: least busy first, then who has waited longest."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent_registry.application import CODEC
from agent_registry.directory import Directory
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, StreamId
from hypothesis import given, settings
from hypothesis import strategies as st
from synod.agent_registry.events import (
    AgentCreated,
    AgentHealthChanged,
    AgentInitialized,
    AgentResumed,
    AgentRunEnded,
    AgentRunStarted,
    AgentSuspended,
    AgentTerminated,
    AgentWentIdle,
    ExternalAgentRegistered,
)
from synod.common.event import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE_S = 30.0


@dataclass(slots=True)
class Registry:
    """A directory and the log that it follows."""

    log: MemoryEventLog = field(default_factory=MemoryEventLog)
    directory: Directory = field(default_factory=lambda: Directory(CODEC))
    folded: int = 0

    async def tell(self, agent_id: str, *events: Event, tenant: str = "local") -> None:
        encoded = tuple(CODEC.encode(event, at=NOW) for event in events)
        await self.log.append(Append(StreamId("agent", agent_id), ANY, encoded, Context(tenant, "test")))
        for stored in await self.log.read(self.folded):
            self.directory.apply(stored)
            self.folded = stored.position

    async def create(self, agent_id: str, *capabilities: str, tenant: str = "local") -> None:
        created = AgentCreated(
            agent_id=agent_id,
            tenant_id=tenant,
            name=f"name-{agent_id}",
            definition_name="x",
            definition_version=1,
            definition_digest="d",
            capabilities=capabilities,
        )
        await self.tell(
            agent_id, created, AgentInitialized(agent_id=agent_id), AgentWentIdle(agent_id=agent_id), tenant=tenant
        )

    async def start(self, agent_id: str, run_id: str) -> None:
        await self.tell(agent_id, AgentRunStarted(agent_id=agent_id, run_id=run_id))

    async def end(self, agent_id: str, run_id: str) -> None:
        await self.tell(agent_id, AgentRunEnded(agent_id=agent_id, run_id=run_id, outcome="completed"))

    def found(self, *capabilities: str, limit: int = 10, tenant: str = "local") -> list[str]:
        return [entry.agent.id for entry in self.directory.discover(tenant, capabilities, limit)]


async def test_the_least_busy_comes_first_and_the_longest_idle_among_equals() -> None:
    registry = Registry()
    for agent_id in ("a", "b", "c"):
        await registry.create(agent_id, "sql")
    await registry.start("a", "run_1")
    assert registry.found("sql") == ["b", "c", "a"]
    await registry.end("a", "run_1")
    assert registry.found("sql") == ["b", "c", "a"]
    await registry.start("b", "run_2")
    await registry.end("b", "run_2")
    assert registry.found("sql", limit=2) == ["c", "a"]


async def test_all_capabilities_are_needed_and_none_finds_everyone() -> None:
    registry = Registry()
    await registry.create("a", "sql", "chart")
    await registry.create("b", "sql")
    assert registry.found("sql", "chart") == ["a"]
    assert registry.found("chart", "music") == []
    assert registry.found() == ["a", "b"]


async def test_tenants_do_not_see_each_other() -> None:
    registry = Registry()
    await registry.create("a", "sql", tenant="one")
    assert registry.found("sql", tenant="two") == []
    assert registry.directory.get("two", "a") is None
    assert registry.directory.get("two", "name-a") is None
    assert registry.directory.get("one", "name-a") is not None


async def test_who_cannot_take_work_is_not_offered() -> None:
    registry = Registry()
    await registry.create("a", "sql")
    await registry.tell("a", AgentSuspended(agent_id="a", reason="check"))
    assert registry.found("sql") == []
    await registry.tell("a", AgentResumed(agent_id="a", reason="fine"))
    assert registry.found("sql") == ["a"]
    await registry.tell("a", AgentTerminated(agent_id="a", reason="done"))
    assert registry.found("sql") == []
    assert registry.directory.get("local", "name-a") is None


async def test_how_busy_an_agent_outside_is_comes_with_its_heartbeat() -> None:
    registry = Registry()
    for agent_id in ("a", "b"):
        await registry.tell(agent_id, registered(agent_id, 1))
    registry.directory.beat("a", NOW, busy=2)
    assert registry.found("ocr") == ["b", "a"]
    registry.directory.beat("b", NOW, busy=5)
    assert registry.found("ocr") == ["a", "b"]
    await registry.tell("b", registered("b", 2))
    assert registry.found("ocr") == ["b", "a"]


async def test_a_suspect_agent_is_not_offered_until_it_is_alive() -> None:
    registry = Registry()
    await registry.tell("a", registered("a", 1), health("suspect"))
    assert registry.found("ocr") == []
    await registry.tell("a", health("alive"))
    assert registry.found("ocr") == ["a"]


def registered(agent_id: str, incarnation: int) -> ExternalAgentRegistered:
    return ExternalAgentRegistered(
        agent_id=agent_id, tenant_id="local", name=f"name-{agent_id}", capabilities=("ocr",), incarnation=incarnation
    )


def health(state: str) -> AgentHealthChanged:
    return AgentHealthChanged.model_validate(
        {"agent_id": "a", "incarnation": 1, "health": state, "last_heartbeat_at": NOW, "evidence": "silence"}
    )


async def test_following_a_log_reaches_what_is_appended_later() -> None:
    registry = Registry()
    await registry.create("a", "sql")
    follower = Directory(CODEC)
    following = asyncio.create_task(follower.follow(registry.log))
    async with asyncio.timeout(DEADLINE_S):
        await follower.reached(await registry.log.head())
        assert follower.get("local", "a") is not None
        await registry.create("b", "sql")
        await follower.reached(await registry.log.head())
    assert [entry.agent.id for entry in follower.discover("local", ["sql"], 10)] == ["a", "b"]
    await end(following)


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "end", "suspend", "resume"]), st.integers(0, 4), st.integers(0, 2))
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
async def test_whatever_happens_the_order_is_by_busy(steps: list[tuple[str, int, int]]) -> None:
    registry = Registry()
    running: dict[str, set[str]] = {}
    suspended: set[str] = set()
    for number in range(5):
        await registry.create(f"a{number}", "sql")
        running[f"a{number}"] = set()
    for what, number, run in steps:
        agent_id, run_id = f"a{number}", f"run_{run}"
        if what == "start":
            running[agent_id].add(run_id)
            await registry.start(agent_id, run_id)
        elif what == "end":
            running[agent_id].discard(run_id)
            await registry.end(agent_id, run_id)
        elif what == "suspend":
            suspended.add(agent_id)
            await registry.tell(agent_id, AgentSuspended(agent_id=agent_id, reason="x"))
        else:
            suspended.discard(agent_id)
            await registry.tell(agent_id, AgentResumed(agent_id=agent_id, reason="x"))
    found = registry.found("sql")
    assert set(found) == set(running) - suspended
    assert [len(running[agent_id]) for agent_id in found] == sorted(len(running[agent_id]) for agent_id in found)
