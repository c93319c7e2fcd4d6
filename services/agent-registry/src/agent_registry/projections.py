"""What can be asked: principals and keys, definitions, agents; and the tools that another service announces.

Each view folds events into tables of its own schema; its queries are beside it. A page begins after a key, so that what
is added meanwhile moves nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final

from eventlog.codec import Codec, UnknownEvent
from eventlog.records import StoredEvent
from eventlog.sealing import NO_KEYS
from eventlog.vault import Vault
from psycopg import AsyncConnection
from psycopg.rows import class_row, kwargs_row
from psycopg_pool import AsyncConnectionPool
from synod.agent_registry.events import (
    EVENTS,
    AgentActivated,
    AgentCreated,
    AgentDefined,
    AgentFailed,
    AgentHealthChanged,
    AgentInitialized,
    AgentResumed,
    AgentRunEnded,
    AgentRunStarted,
    AgentSuspended,
    AgentTerminated,
    AgentWentIdle,
    ApiKeyCreated,
    ApiKeyRevoked,
    ExternalAgentRegistered,
    PrincipalCreated,
    UserCreated,
)
from synod.common.definitions import AgentDefinition, TeamDefinition
from synod.common.event import Event
from synod.common.subjects import SHARED_TENANT
from synod.tool_executor.events import ToolRegistered

from agent_registry import definitions
from agent_registry.definitions import Registered
from agent_registry.domain import AgentState
from agent_registry.ports import AgentRecord, DefinitionRecord, KeyRecord, Page, PrincipalRecord

Reached = Callable[[int], Awaitable[None]]
"""Waits until a view has folded the log up to a position."""

_CODEC: Final[Codec[Event]] = Codec(EVENTS)
_TOOLS: Final[Codec[Event]] = Codec((ToolRegistered,))


class _Folded:
    """A view that is kept in this process, and the pool to query it."""

    def __init__(self, pool: AsyncConnectionPool, reached: Reached) -> None:
        self._pool = pool
        self._reached = reached

    async def reached(self, position: int) -> None:
        await self._reached(position)


def _types(*events: type[Event]) -> frozenset[str]:
    return frozenset(event.type_name() for event in events)


class PrincipalsView:
    """Holds the names of persons as long as the `vault` has their keys; without one, none."""

    name: ClassVar[str] = "principals"
    version: ClassVar[int] = 2
    personal: ClassVar[bool] = True
    types: ClassVar[frozenset[str] | None] = _types(PrincipalCreated, UserCreated, ApiKeyCreated, ApiKeyRevoked)
    tables: ClassVar[str] = """
        CREATE TABLE principals (
            id text PRIMARY KEY, tenant text NOT NULL, name text NOT NULL, kind text NOT NULL, roles text[] NOT NULL,
            created_at timestamptz NOT NULL);
        CREATE INDEX principals_tenant ON principals (tenant, id);
        CREATE TABLE api_keys (
            id text PRIMARY KEY, principal_id text NOT NULL, label text NOT NULL, created_at timestamptz NOT NULL,
            expires_at timestamptz, revoked_at timestamptz);
        CREATE INDEX api_keys_principal ON api_keys (principal_id, id);
    """

    def __init__(self, vault: Vault | None) -> None:
        self._vault = vault

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        keys = await self._vault.keys(events) if self._vault else NO_KEYS
        for stored in events:
            match _CODEC.decode(stored, keys):
                case PrincipalCreated(kind=kind) as event:
                    await self._add(connection, event, kind, stored)
                case UserCreated() as event:
                    await self._add(connection, event, "user", stored)
                case ApiKeyCreated() as event:
                    # A key file with another secret brings the same id again; it opens as of now.
                    await connection.execute(
                        "INSERT INTO api_keys VALUES (%s, %s, %s, %s, %s, NULL) ON CONFLICT (id) DO UPDATE SET "
                        "label = excluded.label, created_at = excluded.created_at, expires_at = excluded.expires_at, "
                        "revoked_at = NULL WHERE api_keys.principal_id = excluded.principal_id",
                        (event.key_id, event.principal_id, event.label, stored.occurred_at, event.expires_at),
                    )
                case ApiKeyRevoked() as event:
                    await connection.execute(
                        "UPDATE api_keys SET revoked_at = %s WHERE id = %s AND principal_id = %s",
                        (stored.occurred_at, event.key_id, event.principal_id),
                    )

    async def _add(
        self, connection: AsyncConnection, event: PrincipalCreated | UserCreated, kind: str, stored: StoredEvent
    ) -> None:
        await connection.execute(
            "INSERT INTO principals VALUES (%s, %s, %s, %s, %s, %s)",
            (event.principal_id, event.tenant_id, str(event.name), kind, list(event.roles), stored.occurred_at),
        )


class PrincipalQueries(_Folded):
    """ports.Principals on PostgreSQL."""

    async def principal(self, principal_id: str) -> PrincipalRecord | None:
        found = await self._principals("WHERE id = %s", (principal_id,))
        return found[0] if found else None

    async def principals(self, tenant: str, page: Page) -> Sequence[PrincipalRecord]:
        (after,) = page.after or ("",)
        return await self._principals("WHERE tenant = %s AND id > %s ORDER BY id LIMIT %s", (tenant, after, page.size))

    async def key(self, key_id: str) -> KeyRecord | None:
        found = await self._keys("WHERE k.id = %s", (key_id,))
        return found[0] if found else None

    async def keys(self, tenant: str, principal_id: str, page: Page) -> Sequence[KeyRecord]:
        (after,) = page.after or ("",)
        return await self._keys(
            "JOIN view_principals.principals p ON p.id = k.principal_id "
            "WHERE p.tenant = %s AND (%s = '' OR p.id = %s) AND k.id > %s ORDER BY k.id LIMIT %s",
            (tenant, principal_id, principal_id, after, page.size),
        )

    async def _principals(self, where: str, values: tuple[object, ...]) -> list[PrincipalRecord]:
        columns = "SELECT id, tenant, name, kind, roles, created_at FROM view_principals.principals"
        row_factory = kwargs_row(_principal)
        async with self._pool.connection() as connection, connection.cursor(row_factory=row_factory) as cursor:
            await cursor.execute(f"{columns} {where}", values)
            return await cursor.fetchall()

    async def _keys(self, where: str, values: tuple[object, ...]) -> list[KeyRecord]:
        columns = "SELECT k.id, k.principal_id, k.label, k.created_at, k.expires_at, k.revoked_at"
        async with self._pool.connection() as connection, connection.cursor(row_factory=class_row(KeyRecord)) as cursor:
            await cursor.execute(f"{columns} FROM view_principals.api_keys k {where}", values)
            return await cursor.fetchall()


class DefinitionsView:
    name: ClassVar[str] = "definitions"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = _types(AgentDefined)
    tables: ClassVar[str] = """
        CREATE TABLE definitions (
            tenant text NOT NULL, name text NOT NULL, version int NOT NULL, kind text NOT NULL, digest text NOT NULL,
            spec_json text NOT NULL, members text[] NOT NULL, newest boolean NOT NULL, created_at timestamptz NOT NULL,
            PRIMARY KEY (tenant, name, version));
        CREATE INDEX definitions_digest ON definitions (tenant, digest);
        CREATE UNIQUE INDEX definitions_newest ON definitions (tenant, name) WHERE newest;
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for stored in events:
            event = _CODEC.decode(stored)
            if isinstance(event, AgentDefined):
                await connection.execute(
                    "UPDATE definitions SET newest = false WHERE tenant = %s AND name = %s AND newest",
                    (stored.tenant, event.name),
                )
                await connection.execute(
                    "INSERT INTO definitions VALUES (%s, %s, %s, %s, %s, %s, %s, true, %s)",
                    (
                        stored.tenant,
                        event.name,
                        event.definition_version,
                        event.kind,
                        event.digest,
                        event.spec_json,
                        _members(event),
                        stored.occurred_at,
                    ),
                )


class DefinitionQueries(_Folded):
    """ports.Definitions on PostgreSQL."""

    async def version(self, tenant: str, name: str, version: int | None) -> DefinitionRecord | None:
        which, values = ("newest", ()) if version is None else ("version = %s", (version,))
        found = await self._records(f"WHERE tenant = %s AND name = %s AND {which}", (tenant, name, *values))
        return found[0] if found else None

    async def by_digest(self, tenant: str, digest: str) -> DefinitionRecord | None:
        found = await self._records("WHERE tenant = %s AND digest = %s ORDER BY version DESC LIMIT 1", (tenant, digest))
        return found[0] if found else None

    async def definitions(self, tenant: str, page: Page, all_versions: bool) -> Sequence[DefinitionRecord]:
        name, version = page.after or ("", "0")
        return await self._records(
            "WHERE tenant = %s AND (name, version) > (%s, %s) AND (newest OR %s) ORDER BY name, version LIMIT %s",
            (tenant, name, int(version), all_versions, page.size),
        )

    async def registered(self, tenant: str, names: Sequence[str] | None) -> dict[str, Registered]:
        wanted = None if names is None else list(names)
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT name, kind, members FROM view_definitions.definitions "
                "WHERE tenant = %s AND newest AND (%s::text[] IS NULL OR name = ANY(%s::text[]))",
                (tenant, wanted, wanted),
            )
            return {name: Registered(kind, tuple(members)) for name, kind, members in await cursor.fetchall()}

    async def _records(self, where: str, values: tuple[object, ...]) -> list[DefinitionRecord]:
        columns = "SELECT name, kind, version, digest, spec_json, created_at FROM view_definitions.definitions"
        row_factory = class_row(DefinitionRecord)
        async with self._pool.connection() as connection, connection.cursor(row_factory=row_factory) as cursor:
            await cursor.execute(f"{columns} {where}", values)
            return await cursor.fetchall()


class AgentsView:
    name: ClassVar[str] = "agents"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = _types(
        AgentCreated,
        ExternalAgentRegistered,
        AgentInitialized,
        AgentActivated,
        AgentWentIdle,
        AgentRunStarted,
        AgentRunEnded,
        AgentSuspended,
        AgentResumed,
        AgentTerminated,
        AgentFailed,
        AgentHealthChanged,
    )
    tables: ClassVar[str] = """
        CREATE TABLE agents (
            id text PRIMARY KEY, tenant text NOT NULL, name text NOT NULL, created_at timestamptz NOT NULL,
            definition_name text NOT NULL DEFAULT '', definition_version int NOT NULL DEFAULT 0,
            definition_digest text NOT NULL DEFAULT '', capabilities text[] NOT NULL,
            state text NOT NULL, health text NOT NULL DEFAULT 'alive', busy int NOT NULL DEFAULT 0,
            incarnation bigint NOT NULL DEFAULT 0, external boolean NOT NULL,
            runs_completed bigint NOT NULL DEFAULT 0, runs_failed bigint NOT NULL DEFAULT 0);
        CREATE INDEX agents_page ON agents (tenant, id);
        CREATE INDEX agents_name ON agents (tenant, name, created_at);
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        async with connection.pipeline():
            for stored in events:
                event = _CODEC.decode(stored)
                if not isinstance(event, UnknownEvent):
                    await _fold_agent(connection, stored, event)


_STATES: Final[dict[type[Event], AgentState]] = {
    AgentInitialized: AgentState.INITIALIZED,
    AgentActivated: AgentState.ACTIVE,
    AgentWentIdle: AgentState.IDLE,
    AgentSuspended: AgentState.SUSPENDED,
    AgentTerminated: AgentState.TERMINATED,
    AgentFailed: AgentState.FAILED,
}


async def _fold_agent(connection: AsyncConnection, stored: StoredEvent, event: Event) -> None:
    agent_id = stored.stream.id
    match event:
        case AgentCreated():
            await connection.execute(
                "INSERT INTO agents (id, tenant, name, created_at, definition_name, definition_version, "
                "definition_digest, capabilities, state, external) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'CREATED', false)",
                (
                    agent_id,
                    stored.tenant,
                    event.name,
                    stored.occurred_at,
                    event.definition_name,
                    event.definition_version,
                    event.definition_digest,
                    list(event.capabilities),
                ),
            )
        case ExternalAgentRegistered():
            await connection.execute(
                "INSERT INTO agents (id, tenant, name, created_at, capabilities, state, incarnation, external) "
                "VALUES (%s, %s, %s, %s, %s, 'IDLE', %s, true) ON CONFLICT (id) DO UPDATE SET "
                "capabilities = excluded.capabilities, incarnation = excluded.incarnation, health = 'alive', "
                "state = CASE WHEN agents.state = 'SUSPENDED' THEN 'SUSPENDED' ELSE 'IDLE' END",
                (
                    agent_id,
                    stored.tenant,
                    event.name,
                    stored.occurred_at,
                    list(event.capabilities),
                    event.incarnation,
                ),
            )
        case AgentRunStarted():
            await connection.execute("UPDATE agents SET busy = busy + 1 WHERE id = %s", (agent_id,))
        case AgentRunEnded():
            await connection.execute(
                "UPDATE agents SET busy = busy - 1, runs_completed = runs_completed + %s, "
                "runs_failed = runs_failed + %s WHERE id = %s",
                (int(event.outcome == "completed"), int(event.outcome == "failed"), agent_id),
            )
        case AgentResumed():
            await connection.execute(
                "UPDATE agents SET state = CASE WHEN busy > 0 THEN 'ACTIVE' ELSE 'IDLE' END WHERE id = %s",
                (agent_id,),
            )
        case AgentHealthChanged():
            await connection.execute("UPDATE agents SET health = %s WHERE id = %s", (event.health, agent_id))
        case _:
            await connection.execute(
                "UPDATE agents SET state = %s WHERE id = %s", (_STATES[type(event)].value, agent_id)
            )


class AgentQueries(_Folded):
    """ports.Agents on PostgreSQL."""

    async def agent(self, tenant: str, id_or_name: str) -> AgentRecord | None:
        found = await self._records(
            "WHERE tenant = %s AND (id = %s OR name = %s) ORDER BY (id = %s) DESC, created_at DESC LIMIT 1",
            (tenant, id_or_name, id_or_name, id_or_name),
        )
        return found[0] if found else None

    async def agents(self, tenant: str, page: Page, state: AgentState | None) -> Sequence[AgentRecord]:
        (after,) = page.after or ("",)
        which = "state <> 'TERMINATED'" if state is None else "state = %s"
        values = () if state is None else (state.value,)
        return await self._records(
            f"WHERE tenant = %s AND id > %s AND {which} ORDER BY id LIMIT %s", (tenant, after, *values, page.size)
        )

    async def _records(self, where: str, values: tuple[object, ...]) -> list[AgentRecord]:
        columns = (
            "SELECT id, tenant, name, created_at, definition_name, definition_version, definition_digest, capabilities, "
            "state, health, busy, incarnation, external, runs_completed, runs_failed FROM view_agents.agents"
        )
        row_factory = kwargs_row(_agent)
        async with self._pool.connection() as connection, connection.cursor(row_factory=row_factory) as cursor:
            await cursor.execute(f"{columns} {where}", values)
            return await cursor.fetchall()


class ToolsView:
    """The catalogue as tool-executor's own log tells it."""

    name: ClassVar[str] = "tools"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = _types(ToolRegistered)
    tables: ClassVar[str] = """
        CREATE TABLE tools (
            tenant text NOT NULL, name text NOT NULL, tool_version text NOT NULL, digest text NOT NULL,
            PRIMARY KEY (tenant, name, tool_version));
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for stored in events:
            event = _TOOLS.decode(stored)
            if isinstance(event, ToolRegistered):
                await connection.execute(
                    "INSERT INTO tools VALUES (%s, %s, %s, %s) "
                    "ON CONFLICT (tenant, name, tool_version) DO UPDATE SET digest = excluded.digest",
                    (stored.tenant, event.name, event.tool_version, event.digest),
                )


class ToolQueries:
    """ports.Catalogue on PostgreSQL. Tools of the system tenant are there for every tenant."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def tools(self, tenant: str) -> frozenset[str]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT DISTINCT name FROM view_tools.tools WHERE tenant IN (%s, %s)", (tenant, SHARED_TENANT)
            )
            return frozenset(name for (name,) in await cursor.fetchall())


def _members(event: AgentDefined) -> list[str]:
    model = AgentDefinition if event.kind == "Agent" else TeamDefinition
    return list(definitions.members(model.model_validate_json(event.spec_json)))


def _principal(*, roles: list[str], **columns: Any) -> PrincipalRecord:
    return PrincipalRecord(roles=tuple(roles), **columns)


def _agent(*, capabilities: list[str], state: str, **columns: Any) -> AgentRecord:
    return AgentRecord(capabilities=tuple(capabilities), state=AgentState(state), **columns)
