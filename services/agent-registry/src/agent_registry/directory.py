"""Living agents in memory: who can take work, least busy first, in microseconds.

A fold of the registry's own log that every process holds for itself, plus what is no event: heartbeats and how busy
agents outside say they are. Nothing is lost with it: it is folded anew at the start, and heartbeats come again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from eventlog.codec import Codec, UnknownEvent
from eventlog.log import EventLog
from eventlog.records import StoredEvent
from synod.common.event import Event

from agent_registry.domain import Agent, evolve_agent
from agent_registry.ports import AgentRecord

AGGREGATE: Final = "agent"
PAGE_EVENTS: Final = 1000
WAIT_S: Final = 30.0
ANYTHING: Final = ""
"""The capability under which every agent is found."""

Bucket = dict[int, dict[str, None]]
"""Ids by how busy they are; within one degree, who came to it first is first."""


@dataclass(slots=True)
class Entry:
    agent: Agent
    created_at: datetime
    registered_at: datetime
    beat_at: datetime | None = None
    beat_busy: int = 0

    @property
    def busy(self) -> int:
        return self.beat_busy if self.agent.external else len(self.agent.running)

    def record(self) -> AgentRecord:
        agent = self.agent
        return AgentRecord(
            id=agent.id,
            tenant=agent.tenant_id,
            name=agent.name,
            created_at=self.created_at,
            definition_name=agent.definition_name,
            definition_version=agent.definition_version,
            definition_digest=agent.definition_digest,
            capabilities=agent.capabilities,
            state=agent.state,
            health=agent.health,
            busy=self.busy,
            incarnation=agent.incarnation,
            external=agent.external,
            runs_completed=agent.runs_completed,
            runs_failed=agent.runs_failed,
            last_heartbeat_at=self.beat_at,
        )


class Directory:
    """One process's view of living agents. Not thread-safe: it lives in one event loop."""

    def __init__(self, codec: Codec[Event]) -> None:
        self._codec = codec
        self._entries: dict[str, Entry] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._buckets: defaultdict[tuple[str, str], Bucket] = defaultdict(dict)
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._position = 0
        self._moved = asyncio.Condition()

    def get(self, tenant: str, id_or_name: str) -> Entry | None:
        """The living agent with this id or name in the tenant."""
        entry = self._entries.get(self._names.get((tenant, id_or_name), id_or_name))
        return entry if entry is not None and entry.agent.tenant_id == tenant else None

    def names(self, tenant: str) -> list[str]:
        return [name for owner, name in self._names if owner == tenant]

    def outside(self) -> list[Entry]:
        """Agents that live in processes outside."""
        return [entry for entry in self._entries.values() if entry.agent.external]

    def discover(self, tenant: str, capabilities: Iterable[str], limit: int) -> list[Entry]:
        """Those that can take work and offer all capabilities: least busy first, then who has waited longest.

        Costs one step per agent that is offered, plus one per agent skipped for lack of a second capability.
        """
        wanted = frozenset(capabilities)
        rarest = min(wanted or {ANYTHING}, key=lambda capability: self._counts[tenant, capability])
        found: list[Entry] = []
        for entry in self._by_busy(tenant, rarest):
            if wanted <= frozenset(entry.agent.capabilities):
                found.append(entry)
                if len(found) == limit:
                    break
        return found

    def beat(self, agent_id: str, at: datetime, busy: int) -> None:
        """Note a heartbeat; who is as busy as before keeps the place in the queue."""
        entry = self._entries[agent_id]
        entry.beat_at = at
        if entry.beat_busy != busy:
            self._unlist(entry)
            entry.beat_busy = busy
            self._list(entry)

    def apply(self, stored: StoredEvent) -> None:
        """Fold one event of the log."""
        event = self._codec.decode(stored)
        if isinstance(event, UnknownEvent):
            return
        entry = self._entries.get(stored.stream.id) or Entry(Agent(), stored.occurred_at, stored.occurred_at)
        after = evolve_agent(entry.agent, event)
        if not after.exists:
            return
        self._replace(entry, after, stored.occurred_at)

    async def follow(self, log: EventLog) -> None:
        """Fold the log as it grows, for ever. Called again after a failure it goes on where it was."""
        while True:
            page = await log.read(self._position, limit=PAGE_EVENTS)
            for stored in page:
                if stored.stream.aggregate == AGGREGATE:
                    self.apply(stored)
                self._position = stored.position
            await self._announce()
            if len(page) < PAGE_EVENTS:
                await log.wait_for(self._position + 1, WAIT_S)

    async def reached(self, position: int) -> None:
        """Returns when the log is folded up to `position`."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._position >= position)

    async def _announce(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def _replace(self, entry: Entry, after: Agent, at: datetime) -> None:
        before = entry.agent
        self._unlist(entry)
        entry.agent = after
        if after.incarnation != before.incarnation:
            entry.registered_at, entry.beat_at, entry.beat_busy = at, None, 0
        key = (after.tenant_id, after.name)
        if after.terminated:
            self._entries.pop(after.id, None)
            if self._names.get(key) == after.id:
                del self._names[key]
        else:
            self._entries[after.id] = entry
            self._names[key] = after.id
            self._list(entry)

    def _by_busy(self, tenant: str, capability: str) -> Iterator[Entry]:
        bucket = self._buckets.get((tenant, capability), {})
        for busy in sorted(bucket):
            for agent_id in bucket[busy]:
                yield self._entries[agent_id]

    def _list(self, entry: Entry) -> None:
        if not entry.agent.takes_work:
            return
        for key in _keys(entry.agent):
            self._buckets[key].setdefault(entry.busy, {})[entry.agent.id] = None
            self._counts[key] += 1

    def _unlist(self, entry: Entry) -> None:
        for key in _keys(entry.agent):
            place = self._buckets[key].get(entry.busy)
            if place is not None and entry.agent.id in place:
                del place[entry.agent.id]
                self._counts[key] -= 1
                if not place:
                    del self._buckets[key][entry.busy]


def _keys(agent: Agent) -> Iterator[tuple[str, str]]:
    yield agent.tenant_id, ANYTHING
    for capability in agent.capabilities:
        yield agent.tenant_id, capability
