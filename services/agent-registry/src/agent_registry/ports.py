"""What the use cases need from outside: views to ask, and the records that they answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from synod.agent_registry.events import Health, PrincipalKind

from agent_registry.definitions import Registered
from agent_registry.domain import AgentState, DefinitionKind


@dataclass(frozen=True, slots=True)
class PrincipalRecord:
    id: str
    tenant: str
    name: str
    kind: PrincipalKind
    roles: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyRecord:
    id: str
    principal_id: str
    label: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DefinitionRecord:
    """A version of a definition. `created` says whether the present request registered it."""

    name: str
    kind: DefinitionKind
    version: int
    digest: str
    spec_json: str
    created_at: datetime | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent as it is shown. `busy` counts runs in progress, or what an agent outside says it has to do."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    definition_name: str = ""
    definition_version: int = 0
    definition_digest: str = ""
    capabilities: tuple[str, ...] = ()
    state: AgentState = AgentState.CREATED
    health: Health = "alive"
    busy: int = 0
    incarnation: int = 0
    external: bool = False
    runs_completed: int = 0
    runs_failed: int = 0
    last_heartbeat_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """How many to show, after which key; an empty key is the beginning."""

    size: int = 100
    after: tuple[str, ...] = field(default=())


class Principals(Protocol):
    """Principals and keys, folded. A missing one is None; the database's errors pass through."""

    async def reached(self, position: int) -> None:
        """Returns when the view has folded the log up to `position`, so that a writer reads what he wrote."""
        ...

    async def principal(self, principal_id: str) -> PrincipalRecord | None: ...

    async def principals(self, tenant: str, page: Page) -> Sequence[PrincipalRecord]: ...

    async def key(self, key_id: str) -> KeyRecord | None: ...

    async def keys(self, tenant: str, principal_id: str, page: Page) -> Sequence[KeyRecord]: ...


class Definitions(Protocol):
    """Versions of definitions, folded."""

    async def reached(self, position: int) -> None: ...

    async def version(self, tenant: str, name: str, version: int | None) -> DefinitionRecord | None:
        """That version, or the newest for None."""
        ...

    async def by_digest(self, tenant: str, digest: str) -> DefinitionRecord | None: ...

    async def definitions(self, tenant: str, page: Page, all_versions: bool) -> Sequence[DefinitionRecord]: ...

    async def registered(self, tenant: str, names: Sequence[str] | None) -> dict[str, Registered]:
        """The newest versions of these names, or of all for None."""
        ...


class Agents(Protocol):
    """All agents that ever were, folded."""

    async def agent(self, tenant: str, id_or_name: str) -> AgentRecord | None:
        """By id, else the newest of that name."""
        ...

    async def agents(self, tenant: str, page: Page, state: AgentState | None) -> Sequence[AgentRecord]:
        """In this state, or all but the terminated for None."""
        ...

    async def reached(self, position: int) -> None: ...


class Catalogue(Protocol):
    """The tools that tool-executor has announced."""

    async def tools(self, tenant: str) -> frozenset[str]:
        """Empty while none is known."""
        ...
