"""What agent-runtime tells of its runs, folded into the agents that ran them."""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, Final

from eventlog.codec import Codec
from eventlog.records import Context, StoredEvent
from psycopg import AsyncConnection
from synod.agent_runtime.events import RunCancelled, RunCompleted, RunFailed, RunStarted
from synod.common.event import Event

from agent_registry.application import SERVICE, Agents
from agent_registry.domain import Outcome

_CODEC: Final[Codec[Event]] = Codec((RunStarted, RunCompleted, RunFailed, RunCancelled))
_OUTCOMES: Final[dict[type[Event], Outcome]] = {
    RunCompleted: "completed",
    RunFailed: "failed",
    RunCancelled: "cancelled",
}


class RuntimeOutcomes:
    """A view without rows: it only keeps the position in the log of agent-runtime. What it learns, agents record.

    Told twice, after a crash or a rebuild, an agent records it once: it knows the position it has seen.
    """

    name: ClassVar[str] = "runtime_outcomes"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = _CODEC.types
    tables: ClassVar[str] = ""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        """Each agent's events in their order; different agents at the same time, so that their appends share a group."""
        told = [
            (agent_id, stored, event) for stored in events if (event := _decode(stored)) and (agent_id := _agent(event))
        ]
        told.sort(key=lambda item: item[0])
        await asyncio.gather(
            *(
                self._tell(agent_id, [(stored, event) for _, stored, event in group])
                for agent_id, group in groupby(told, key=lambda item: item[0])
            )
        )

    async def _tell(self, agent_id: str, events: Sequence[tuple[StoredEvent, Event]]) -> None:
        for stored, event in events:
            context = Context(
                tenant=stored.tenant,
                actor=SERVICE,
                correlation=stored.correlation,
                causation=stored.id,
                traceparent=stored.traceparent,
            )
            run_id = stored.stream.id
            if isinstance(event, RunStarted):
                await self._agents.run_started(agent_id, run_id, stored.position, context)
            else:
                outcome = _OUTCOMES[type(event)]
                await self._agents.run_ended(agent_id, run_id, outcome, stored.occurred_at, stored.position, context)


def _decode(stored: StoredEvent) -> Event | None:
    event = _CODEC.decode(stored)
    return event if isinstance(event, Event) else None


def _agent(event: Event) -> str:
    """The agent that runs; empty for runs that are nobody's in particular, such as a team's."""
    match event:
        case RunStarted() | RunCompleted() | RunFailed() | RunCancelled():
            return event.agent_id
        case _:
            return ""
