"""Who may use which tool: a decision recorded in the log, and an index of all that stand, kept in memory.

Calls are checked against the index, which never waits. What this process grants or revokes is in it before the answer
goes out; what another one does arrives as soon as the log wakes this one.
"""

import asyncio
from typing import Final

from eventlog.aggregates import Aggregates
from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.errors import DuplicateEventId
from eventlog.log import EventLog
from eventlog.records import Context, StoredEvent
from synod.common.event import Event
from synod.common.ids import derived_id, derived_uuid, new_id
from synod.tool_executor.events import GrantRevoked, ToolGranted

from tool_executor import domain
from tool_executor.domain import EVERY, Grant
from tool_executor.errors import GrantUnknown, ToolNotGranted
from tool_executor.following import read_new

FOLLOW_S: Final = 30.0
TYPES: Final = frozenset({"ToolGranted", "GrantRevoked"})

Key = tuple[str, str, str]
"""Tenant, agent, tool."""


class GrantIndex:
    """The grants that stand, of all tenants."""

    def __init__(self, log: EventLog, codec: Codec[Event]) -> None:
        self._log = log
        self._codec = codec
        self._position = 0
        self._keys: dict[str, Key] = {}
        self._ids: dict[Key, str] = {}
        self._reading = asyncio.Lock()

    def find(self, tenant: str, agent: str, tool: str) -> str:
        """The id of the grant that allows it. Raises ToolNotGranted."""
        for key in ((tenant, agent, tool), (tenant, EVERY, tool), (tenant, agent, EVERY), (tenant, EVERY, EVERY)):
            if key in self._ids:
                return self._ids[key]
        raise ToolNotGranted(agent, tool)

    async def catch_up(self) -> None:
        """Fold what the log has by now."""
        async with self._reading:
            self._position, events = await read_new(self._log, self._position, TYPES)
            for event in events:
                self._fold(event)

    async def follow(self) -> None:
        """Runs for as long as the service does."""
        while True:
            await self._log.wait_for(self._position + 1, FOLLOW_S)
            await self.catch_up()

    def _fold(self, stored: StoredEvent) -> None:
        match self._codec.decode(stored):
            case ToolGranted(grant_id=grant_id, agent=agent, tool=tool):
                self._keys[grant_id] = (stored.tenant, agent, tool)
                self._ids[stored.tenant, agent, tool] = grant_id
            case GrantRevoked(grant_id=grant_id) if key := self._keys.pop(grant_id, None):
                self._ids.pop(key, None)


class Grants:
    """Grants and revokes. A grant is one of its agent and tool: granted twice it stands once."""

    def __init__(self, log: EventLog, codec: Codec[Event], clock: Clock, index: GrantIndex) -> None:
        self._grants: Aggregates[Grant, Event] = Aggregates(log, "grant", Grant, domain.evolve_grant, codec, clock)
        self._index = index

    async def grant(self, agent: str, tool: str, request_id: str, context: Context) -> str:
        """Answers the id of the grant. A request that was carried out before does not revive a grant revoked since."""
        id = grant_id(context.tenant, agent, tool)
        granted = ToolGranted(grant_id=id, agent=agent, tool=tool, granted_by=context.actor)
        event_id = derived_uuid(id, request_id or new_id("req"))
        try:
            await self._grants.execute(id, lambda state: domain.grant(state, granted), context, event_ids=[event_id])
        except DuplicateEventId:
            return id
        await self._index.catch_up()
        return id

    async def revoke(self, id: str, context: Context) -> None:
        """Raises GrantUnknown, also for a grant of another tenant."""
        granted = (await self._grants.load(id)).state.granted
        if granted is None or id != grant_id(context.tenant, granted.agent, granted.tool):
            raise GrantUnknown(id)
        await self._grants.execute(id, lambda state: domain.revoke(state, id, context.actor), context)
        await self._index.catch_up()


def grant_id(tenant: str, agent: str, tool: str) -> str:
    return derived_id("grt", tenant, agent, tool)
