"""What can be asked: the calls and who runs them, the grants, and every version a tool ever had."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Final, LiteralString, TypeVar

from eventlog.codec import Codec
from eventlog.records import StoredEvent
from eventlog.table_view import Key, TableView, begins, on
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
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CallRow:
    id: str
    tenant: str
    call_id: str
    correlation: str
    tool: str
    tool_version: str
    agent: str
    effect: str
    requested_at: datetime
    state: str = "running"
    attempt: int = 0
    worker: str = ""
    isolation: str = ""
    duration_ms: int = 0
    ended_at: datetime | None = None


class ToolCallsView(TableView[CallRow]):
    """One row a call; arguments and results stay in the stream."""

    name, version, row = "tool_calls", 2, CallRow
    indexes = (
        "(tenant, requested_at desc)",
        "(correlation) where correlation <> ''",
        "(id) where state = 'running'",
    )

    @begins
    def requested(self, event: ToolCallRequested, stored: StoredEvent) -> CallRow:
        return CallRow(
            id=stored.stream.id,
            tenant=stored.tenant,
            call_id=event.call_id,
            correlation=stored.correlation,
            tool=event.tool,
            tool_version=event.tool_version,
            agent=event.agent,
            effect=event.effect,
            requested_at=stored.occurred_at,
        )

    @on
    def started(self, row: CallRow, event: ToolCallStarted, stored: StoredEvent) -> CallRow:
        return replace(row, state="running", attempt=event.attempt, worker=event.worker, isolation=event.isolation)

    @on
    def completed(self, row: CallRow, event: ToolCallCompleted, stored: StoredEvent) -> CallRow:
        return _ended(row, "succeeded", stored, event.duration_ms)

    @on
    def failed(self, row: CallRow, event: ToolCallFailed, stored: StoredEvent) -> CallRow:
        return _ended(row, event.outcome, stored, event.duration_ms)

    @on
    def lost(self, row: CallRow, event: ToolCallOutcomeUnknown, stored: StoredEvent) -> CallRow:
        return _ended(row, "outcome_unknown", stored)

    @on
    def reconciled(self, row: CallRow, event: ToolCallReconciled, stored: StoredEvent) -> CallRow:
        return _ended(row, "succeeded" if event.happened else "failed", stored)


def _ended(row: CallRow, state: str, stored: StoredEvent, duration_ms: int = 0) -> CallRow:
    return replace(row, state=state, duration_ms=duration_ms, ended_at=stored.occurred_at)


class GrantsView(TableView[GrantRow]):
    """One row a grant, also of those revoked."""

    name, version, row = "grants", 2, GrantRow
    indexes = ("(tenant, agent, tool)",)

    def key_of(self, event: ToolGranted | GrantRevoked, stored: StoredEvent) -> Key:
        return (event.grant_id,)

    @begins
    def granted(self, event: ToolGranted, stored: StoredEvent) -> GrantRow:
        return GrantRow(event.grant_id, stored.tenant, event.agent, event.tool, stored.occurred_at, event.granted_by)

    @on
    def revoked(self, row: GrantRow, event: GrantRevoked, stored: StoredEvent) -> GrantRow:
        return replace(row, revoked_at=stored.occurred_at)


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
