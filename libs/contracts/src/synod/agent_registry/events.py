"""Events of agent-registry."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from synod.common.event import Event
from synod.common.personal import DataSubject, Personal

PrincipalKind = Literal["user", "agent", "service"]
Health = Literal["alive", "suspect", "offline"]


class TenantCreated(Event):
    AGGREGATE: ClassVar[str] = "tenant"

    tenant_id: str
    name: str


class PrincipalCreated(Event):
    """A principal that is no person: an agent, a service, the owner. Persons of before UserCreated are here too."""

    AGGREGATE: ClassVar[str] = "principal"

    principal_id: str
    tenant_id: str
    name: str
    kind: PrincipalKind
    roles: tuple[str, ...]
    request_id: str = ""


class UserCreated(Event):
    """A person. `principal_id` cannot be computed from the name, which is erased with the person's key, and with it what
    the caller called the request.
    """

    AGGREGATE: ClassVar[str] = "principal"

    principal_id: Annotated[str, DataSubject()]
    tenant_id: str
    name: Annotated[str, Personal()]
    roles: tuple[str, ...]
    request_id: Annotated[str, Personal()] = ""


class ApiKeyCreated(Event):
    """Only the hash of the secret is kept: SHA-256, hexadecimal."""

    AGGREGATE: ClassVar[str] = "principal"

    principal_id: str
    key_id: str
    label: str
    secret_sha256: str
    expires_at: datetime | None = None


class ApiKeyRevoked(Event):
    AGGREGATE: ClassVar[str] = "principal"

    principal_id: str
    key_id: str
    reason: str


class AgentDefined(Event):
    """A version of a definition of kind Agent or Team; immutable."""

    AGGREGATE: ClassVar[str] = "definition"

    name: str
    kind: Literal["Agent", "Team"]
    definition_version: int
    digest: str
    spec_json: str


class AgentCreated(Event):
    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    name: str
    definition_name: str
    definition_version: int
    definition_digest: str
    capabilities: tuple[str, ...]
    tenant_id: str = ""
    request_id: str = ""


class AgentInitialized(Event):
    """Its definition was checked: model known, tools granted."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str


class ExternalAgentRegistered(Event):
    """A process outside takes the agent's place; each registration is a new incarnation."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    name: str
    capabilities: tuple[str, ...]
    incarnation: int
    tenant_id: str = ""
    request_id: str = ""


class AgentActivated(Event):
    """Its first run in progress began."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    run_id: str


class AgentWentIdle(Event):
    """Its last run in progress ended."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str


class AgentRunStarted(Event):
    """`source_position` is that of RunStarted in the log of agent-runtime: what was seen is not counted again."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    run_id: str
    source_position: int = 0


class AgentRunEnded(Event):
    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    run_id: str
    outcome: Literal["completed", "failed", "cancelled"]
    ended_at: datetime | None = None
    source_position: int = 0


class AgentSuspended(Event):
    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    reason: str


class AgentResumed(Event):
    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    reason: str


class AgentTerminated(Event):
    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    reason: str


class AgentFailed(Event):
    """Its failures passed the restart intensity."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    reason: str


class AgentHealthChanged(Event):
    """Health with its evidence; heartbeats themselves are not events."""

    AGGREGATE: ClassVar[str] = "agent"

    agent_id: str
    incarnation: int
    health: Health
    last_heartbeat_at: datetime | None
    evidence: str


EVENTS: tuple[type[Event], ...] = (
    TenantCreated,
    PrincipalCreated,
    UserCreated,
    ApiKeyCreated,
    ApiKeyRevoked,
    AgentDefined,
    AgentCreated,
    AgentInitialized,
    ExternalAgentRegistered,
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
