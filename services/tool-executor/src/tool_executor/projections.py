"""What can be asked: the calls and who runs them, the grants, and every version a tool ever had."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final, LiteralString, TypeVar

from eventlog.codec import Codec
from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.tool_executor.events import (
    EVENTS,
    GrantRevoked,
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallOutcomeUnknown,
    ToolCallReconciled,
    ToolCallRequested,
    ToolCallStarted,
    ToolGranted,
    ToolRegistered,
)

CODEC: Final[Codec[Event]] = Codec(EVENTS)
GRANTS_MAX: Final = 10_000

Row = TypeVar("Row")
Values = tuple[object, ...]
Change = tuple[LiteralString, Values]


@dataclass(frozen=True, slots=True)
class OpenCall:
    id: str
    tenant: str
    correlation: str
    worker: str


@dataclass(frozen=True, slots=True)
class GrantRow:
    id: str
    tenant: str
    agent: str
    tool: str
    granted_at: datetime
    granted_by: str
    revoked_at: datetime | None


class ToolCallsView:
    """One row a call; arguments and results stay in the stream."""

    name: ClassVar[str] = "tool_calls"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        event.type_name()
        for event in (
            ToolCallRequested,
            ToolCallStarted,
            ToolCallCompleted,
            ToolCallFailed,
            ToolCallOutcomeUnknown,
            ToolCallReconciled,
        )
    )
    tables: ClassVar[str] = """
        create table tool_calls (
            id text primary key, tenant text not null, call_id text not null, correlation text not null,
            tool text not null, tool_version text not null, agent text not null, effect text not null,
            state text not null, attempt int not null, worker text not null, isolation text not null,
            duration_ms bigint not null, requested_at timestamptz not null, ended_at timestamptz
        );
        create index on tool_calls (tenant, requested_at desc);
        create index on tool_calls (correlation) where correlation <> '';
        create index on tool_calls (id) where state = 'running';
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            sql, values = _call_change(event, CODEC.decode(event))
            await connection.execute(sql, values)


class GrantsView:
    """One row a grant, also of those revoked."""

    name: ClassVar[str] = "grants"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({"ToolGranted", "GrantRevoked"})
    tables: ClassVar[str] = """
        create table grants (
            id text primary key, tenant text not null, agent text not null, tool text not null,
            granted_at timestamptz not null, granted_by text not null, revoked_at timestamptz
        );
        create index on grants (tenant, agent, tool);
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            sql, values = _grant_change(event, CODEC.decode(event))
            await connection.execute(sql, values)


class ToolsView:
    """One row a version of a tool, with the manifest registered last."""

    name: ClassVar[str] = "tools"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({"ToolRegistered"})
    tables: ClassVar[str] = """
        create table tools (
            name text not null, tool_version text not null, manifest jsonb not null, registered_at timestamptz not null,
            primary key (name, tool_version)
        );
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            tool = CODEC.decode(event)
            assert isinstance(tool, ToolRegistered)
            await connection.execute(
                "insert into tools values (%s, %s, %s, %s) on conflict (name, tool_version)"
                " do update set manifest = excluded.manifest, registered_at = excluded.registered_at",
                (tool.name, tool.tool_version, event.data.decode(), event.occurred_at),
            )


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def open_calls(self, after: str, limit: int) -> list[OpenCall]:
        """Calls that were started and have not ended, of all tenants, in order of id."""
        return await self._rows(
            OpenCall,
            "select id, tenant, correlation, worker from view_tool_calls.tool_calls"
            " where state = 'running' and id > %s order by id limit %s",
            (after, limit),
        )

    async def grants(self, tenant: str, agent: str) -> list[GrantRow]:
        """The grants that stand: of one agent, or with an empty name of all."""
        return await self._rows(
            GrantRow,
            "select * from view_grants.grants where tenant = %s and (%s = '' or agent = %s) and revoked_at is null"
            " order by agent, tool limit %s",
            (tenant, agent, agent, GRANTS_MAX),
        )

    async def grant(self, id: str) -> GrantRow | None:
        found = await self._rows(GrantRow, "select * from view_grants.grants where id = %s", (id,))
        return found[0] if found else None

    async def manifest(self, name: str, version: str) -> ToolRegistered | None:
        """What was registered last of a version, also of one that runs here no more."""
        sql = "select manifest::text from view_tools.tools where name = %s and tool_version = %s"
        async with self.pool.connection() as connection:
            row = await (await connection.execute(sql, (name, version))).fetchone()
        return ToolRegistered.model_validate_json(row[0]) if row else None

    async def _rows(self, kind: type[Row], sql: LiteralString, values: Values) -> list[Row]:
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            await cursor.execute(sql, values)
            return await cursor.fetchall()


def _call_change(stored: StoredEvent, event: object) -> Change:
    id, at = stored.stream.id, stored.occurred_at
    match event:
        case ToolCallRequested():
            return _INSERT_CALL, _requested(stored, event)
        case ToolCallStarted(attempt=attempt, worker=worker, isolation=isolation):
            return _START_CALL, (attempt, worker, isolation, id)
        case ToolCallCompleted(duration_ms=duration_ms):
            return _END_CALL, ("succeeded", duration_ms, at, id)
        case ToolCallFailed(outcome=outcome, duration_ms=duration_ms):
            return _END_CALL, (outcome, duration_ms, at, id)
        case ToolCallReconciled(happened=happened):
            return _END_CALL, ("succeeded" if happened else "failed", 0, at, id)
        case _:
            return _END_CALL, ("outcome_unknown", 0, at, id)


_INSERT_CALL: Final[LiteralString] = (
    "insert into tool_calls values (%s, %s, %s, %s, %s, %s, %s, %s, 'running', 0, '', '', 0, %s, null)"
)
_START_CALL: Final[LiteralString] = (
    "update tool_calls set state = 'running', attempt = %s, worker = %s, isolation = %s where id = %s"
)
_END_CALL: Final[LiteralString] = "update tool_calls set state = %s, duration_ms = %s, ended_at = %s where id = %s"


def _requested(stored: StoredEvent, event: ToolCallRequested) -> Values:
    return (
        stored.stream.id,
        stored.tenant,
        event.call_id,
        stored.correlation,
        event.tool,
        event.tool_version,
        event.agent,
        event.effect,
        stored.occurred_at,
    )


def _grant_change(stored: StoredEvent, event: object) -> Change:
    match event:
        case ToolGranted(grant_id=id, agent=agent, tool=tool, granted_by=by):
            return _INSERT_GRANT, (id, stored.tenant, agent, tool, stored.occurred_at, by)
        case GrantRevoked(grant_id=id):
            return "update grants set revoked_at = %s where id = %s", (stored.occurred_at, id)
        case _:
            raise TypeError(f"{stored.type} is no event of a grant")


_INSERT_GRANT: Final[LiteralString] = (
    "insert into grants values (%s, %s, %s, %s, %s, %s, null) on conflict (id)"
    " do update set granted_at = excluded.granted_at, granted_by = excluded.granted_by, revoked_at = null"
)
