"""What may happen to principals, definitions and agents. Pure: times, ids and hashes come as values.

Three aggregates, each a frozen state, decisions that return events, and a fold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from synod.agent_registry.events import (
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
    Health,
    PrincipalCreated,
    PrincipalKind,
    TenantCreated,
    UserCreated,
)
from synod.common.event import Event
from synod.common.personal import ERASED

from agent_registry import keys
from agent_registry.errors import (
    KeyExists,
    KeyExpired,
    KeyMissing,
    KeyRevoked,
    KeyUnknown,
    KindTaken,
    NameTaken,
    NotExternal,
    StaleIncarnation,
    TransitionRefused,
)

Events = tuple[Event, ...]
DefinitionKind = Literal["Agent", "Team"]
Outcome = Literal["completed", "failed", "cancelled"]

# ---------------------------------------------------------------------------------------------------------- tenants


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str = ""
    name: str = ""


def create_tenant(tenant: Tenant, tenant_id: str, name: str) -> Events:
    """Nothing when it is there."""
    return () if tenant.id else (TenantCreated(tenant_id=tenant_id, name=name),)


def evolve_tenant(tenant: Tenant, event: Event) -> Tenant:
    return Tenant(event.tenant_id, event.name) if isinstance(event, TenantCreated) else tenant


# ------------------------------------------------------------------------------------------------------- principals


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    label: str
    sha256: str
    expires_at: datetime | None = None
    revoked: str | None = None
    """Why it was revoked; None while it opens."""


@dataclass(frozen=True, slots=True)
class Principal:
    id: str = ""
    tenant_id: str = ""
    name: str = ""
    kind: PrincipalKind = "user"
    roles: tuple[str, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    request_id: str = ""

    def key(self, key_id: str) -> ApiKey | None:
        return next((key for key in self.keys if key.id == key_id), None)


@dataclass(frozen=True, slots=True)
class CreatePrincipal:
    id: str
    tenant_id: str
    name: str
    kind: PrincipalKind
    roles: tuple[str, ...]
    request_id: str = ""


def create_principal(principal: Principal, command: CreatePrincipal) -> Events:
    """Nothing when the same request created it. Raises NameTaken."""
    if principal.id:
        if command.request_id and principal.request_id == command.request_id:
            return ()
        raise NameTaken("principal", command.name, principal.id)
    return (_user_created(command),) if command.kind == "user" else (_principal_created(command),)


def ensure_principal(principal: Principal, command: CreatePrincipal) -> Events:
    """Who must be there, and is no person: the owner, a service. Nothing when it is there."""
    return () if principal.id else (_principal_created(command),)


def is_erased(principal: Principal) -> bool:
    """Whether this was a person whose name was erased: whoever bears the name now is somebody else."""
    return principal.name == ERASED


def create_key(principal: Principal, key: ApiKey) -> Events:
    """Raises KeyExists when the same request created it before."""
    if principal.key(key.id):
        raise KeyExists(key.id)
    return (_key_created(principal, key),)


def ensure_key(principal: Principal, key: ApiKey) -> Events:
    """The one key under its label: nothing when it is there, else it takes the place of what bears the label."""
    present = principal.key(key.id)
    if present and present.sha256 == key.sha256 and present.revoked is None:
        return ()
    replaced = tuple(
        ApiKeyRevoked(principal_id=principal.id, key_id=old.id, reason="replaced by another key from the key file")
        for old in principal.keys
        if old.label == key.label and old.revoked is None
    )
    return (*replaced, _key_created(principal, key))


def revoke_key(principal: Principal, key_id: str, reason: str) -> Events:
    """Nothing when it is revoked already. Raises KeyMissing."""
    key = principal.key(key_id)
    if key is None:
        raise KeyMissing(key_id)
    return () if key.revoked is not None else (ApiKeyRevoked(principal_id=principal.id, key_id=key_id, reason=reason),)


def check_key(principal: Principal, presented: keys.PresentedKey, now: datetime) -> None:
    """Whether the key opens now. What is wrong with it is told only to whoever has its secret.

    Raises KeyUnknown, KeyRevoked, KeyExpired.
    """
    key = principal.key(presented.id)
    if not keys.same(key.sha256 if key else keys.NO_HASH, presented.sha256) or key is None:
        raise KeyUnknown(presented.id)
    if key.revoked is not None:
        raise KeyRevoked(key.id, key.label, key.revoked)
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyExpired(key.id, key.label, key.expires_at)


def evolve_principal(principal: Principal, event: Event) -> Principal:
    match event:
        case PrincipalCreated():
            return Principal(
                event.principal_id, event.tenant_id, event.name, event.kind, event.roles, (), event.request_id
            )
        case UserCreated():
            return Principal(event.principal_id, event.tenant_id, event.name, "user", event.roles, (), event.request_id)
        case ApiKeyCreated():
            key = ApiKey(event.key_id, event.label, event.secret_sha256, event.expires_at)
            others = tuple(other for other in principal.keys if other.id != key.id)
            return replace(principal, keys=(*others, key))
        case ApiKeyRevoked():
            return replace(principal, keys=tuple(_revoked(key, event) for key in principal.keys))
        case _:
            return principal


def _principal_created(command: CreatePrincipal) -> PrincipalCreated:
    return PrincipalCreated(
        principal_id=command.id,
        tenant_id=command.tenant_id,
        name=command.name,
        kind=command.kind,
        roles=command.roles,
        request_id=command.request_id,
    )


def _user_created(command: CreatePrincipal) -> UserCreated:
    return UserCreated(
        principal_id=command.id,
        tenant_id=command.tenant_id,
        name=command.name,
        roles=command.roles,
        request_id=command.request_id,
    )


def _key_created(principal: Principal, key: ApiKey) -> ApiKeyCreated:
    return ApiKeyCreated(
        principal_id=principal.id,
        key_id=key.id,
        label=key.label,
        secret_sha256=key.sha256,
        expires_at=key.expires_at,
    )


def _revoked(key: ApiKey, event: ApiKeyRevoked) -> ApiKey:
    return replace(key, revoked=event.reason) if key.id == event.key_id else key


# ------------------------------------------------------------------------------------------------------ definitions


@dataclass(frozen=True, slots=True)
class Definition:
    """The versions of a name: their digests, the first being version 1."""

    kind: DefinitionKind | None = None
    digests: tuple[str, ...] = ()

    def is_newest(self, digest: str) -> bool:
        return bool(self.digests) and self.digests[-1] == digest


@dataclass(frozen=True, slots=True)
class Define:
    name: str
    kind: DefinitionKind
    digest: str
    spec_json: str


def define(definition: Definition, command: Define) -> Events:
    """Nothing when the newest version has the same content; going back to older content is a new version. Raises KindTaken."""
    if definition.kind is not None and definition.kind != command.kind:
        raise KindTaken(command.name, definition.kind)
    if definition.is_newest(command.digest):
        return ()
    return (
        AgentDefined(
            name=command.name,
            kind=command.kind,
            definition_version=len(definition.digests) + 1,
            digest=command.digest,
            spec_json=command.spec_json,
        ),
    )


def evolve_definition(definition: Definition, event: Event) -> Definition:
    if isinstance(event, AgentDefined):
        return Definition(event.kind, (*definition.digests, event.digest))
    return definition


# ----------------------------------------------------------------------------------------------------------- agents


class AgentState(StrEnum):
    CREATED = "CREATED"
    INITIALIZED = "INITIALIZED"
    ACTIVE = "ACTIVE"
    IDLE = "IDLE"
    SUSPENDED = "SUSPENDED"
    TERMINATED = "TERMINATED"
    FAILED = "FAILED"


TRANSITIONS: Final[Mapping[AgentState, frozenset[AgentState]]] = MappingProxyType(
    {
        AgentState.CREATED: frozenset({AgentState.INITIALIZED, AgentState.FAILED, AgentState.TERMINATED}),
        AgentState.INITIALIZED: frozenset(
            {AgentState.IDLE, AgentState.ACTIVE, AgentState.SUSPENDED, AgentState.FAILED, AgentState.TERMINATED}
        ),
        AgentState.ACTIVE: frozenset({AgentState.IDLE, AgentState.SUSPENDED, AgentState.FAILED, AgentState.TERMINATED}),
        AgentState.IDLE: frozenset({AgentState.ACTIVE, AgentState.SUSPENDED, AgentState.FAILED, AgentState.TERMINATED}),
        # A resumed agent is active at once when runs that began before are still in progress.
        AgentState.SUSPENDED: frozenset({AgentState.IDLE, AgentState.ACTIVE, AgentState.FAILED, AgentState.TERMINATED}),
        AgentState.FAILED: frozenset({AgentState.IDLE, AgentState.ACTIVE, AgentState.TERMINATED}),
        AgentState.TERMINATED: frozenset(),
    }
)

TAKES_WORK: Final = frozenset({AgentState.INITIALIZED, AgentState.ACTIVE, AgentState.IDLE})


@dataclass(frozen=True, slots=True)
class RestartIntensity:
    """More than `failures_max` failed runs within `within` are a failure of the agent itself."""

    failures_max: int
    within: timedelta


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as its events tell it. `running` are the ids of runs in progress; `failures` the times of late failures.

    `seen_position` is the position in the log of agent-runtime up to which outcomes are counted.
    """

    id: str = ""
    tenant_id: str = ""
    name: str = ""
    definition_name: str = ""
    definition_version: int = 0
    definition_digest: str = ""
    capabilities: tuple[str, ...] = ()
    state: AgentState = AgentState.CREATED
    external: bool = False
    incarnation: int = 0
    health: Health = "alive"
    running: frozenset[str] = frozenset()
    runs_completed: int = 0
    runs_failed: int = 0
    failures: tuple[datetime, ...] = ()
    seen_position: int = 0
    request_id: str = ""

    @property
    def exists(self) -> bool:
        return bool(self.id)

    @property
    def terminated(self) -> bool:
        return self.state is AgentState.TERMINATED

    @property
    def takes_work(self) -> bool:
        return self.state in TAKES_WORK and self.health == "alive"


@dataclass(frozen=True, slots=True)
class CreateAgent:
    id: str
    tenant_id: str
    name: str
    definition_name: str
    definition_version: int
    definition_digest: str
    capabilities: tuple[str, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class RegisterExternal:
    id: str
    tenant_id: str
    name: str
    capabilities: tuple[str, ...]
    request_id: str = ""


def create_agent(agent: Agent, command: CreateAgent) -> Events:
    """Nothing when the same request created it. Raises NameTaken."""
    if agent.exists:
        if command.request_id and agent.request_id == command.request_id:
            return ()
        raise NameTaken("agent", command.name, agent.id)
    created = AgentCreated(
        agent_id=command.id,
        tenant_id=command.tenant_id,
        name=command.name,
        definition_name=command.definition_name,
        definition_version=command.definition_version,
        definition_digest=command.definition_digest,
        capabilities=command.capabilities,
        request_id=command.request_id,
    )
    return created, AgentInitialized(agent_id=command.id), AgentWentIdle(agent_id=command.id)


def register_external(agent: Agent, command: RegisterExternal) -> Events:
    """The next incarnation; nothing when the same request registered the present one. Raises NameTaken."""
    if agent.exists and not agent.external:
        raise NameTaken("agent", command.name, agent.id)
    if command.request_id and agent.request_id == command.request_id:
        return ()
    return (
        ExternalAgentRegistered(
            agent_id=command.id,
            tenant_id=command.tenant_id,
            name=command.name,
            capabilities=command.capabilities,
            incarnation=agent.incarnation + 1,
            request_id=command.request_id,
        ),
    )


def change_state(agent: Agent, target: AgentState, reason: str) -> Events:
    """What a person or a program orders: SUSPENDED, IDLE (resume) or TERMINATED. Nothing when it is so already.

    Raises TransitionRefused.
    """
    match target:
        case AgentState.SUSPENDED:
            return _order(agent, target, AgentSuspended(agent_id=agent.id, reason=reason))
        case AgentState.TERMINATED:
            return _order(agent, target, AgentTerminated(agent_id=agent.id, reason=reason))
        case AgentState.IDLE if agent.state in (AgentState.SUSPENDED, AgentState.FAILED):
            return (AgentResumed(agent_id=agent.id, reason=reason),)
        case AgentState.IDLE if agent.state is AgentState.IDLE:
            return ()
        case _:
            # Only its runs make an agent active or idle; an order cannot.
            orders = TRANSITIONS[agent.state] & {AgentState.SUSPENDED, AgentState.TERMINATED}
            raise TransitionRefused(agent.name, agent.state, target, orders)


def check_heartbeat(agent: Agent, incarnation: int) -> None:
    """Raises NotExternal, or StaleIncarnation for a zombie: a process whose place was taken, or whose agent is gone."""
    if not agent.external:
        raise NotExternal(agent.name)
    if agent.terminated or incarnation != agent.incarnation:
        raise StaleIncarnation(agent.name, incarnation, agent.incarnation)


def report_health(
    agent: Agent, incarnation: int, health: Health, last_heartbeat_at: datetime | None, evidence: str
) -> Events:
    """A change of health with its evidence; nothing when it is known, or is about another incarnation."""
    if agent.terminated or not agent.external or incarnation != agent.incarnation or health == agent.health:
        return ()
    return (
        AgentHealthChanged(
            agent_id=agent.id,
            incarnation=incarnation,
            health=health,
            last_heartbeat_at=last_heartbeat_at,
            evidence=evidence,
        ),
    )


def record_run_started(agent: Agent, run_id: str, source_position: int) -> Events:
    """What agent-runtime tells of a run that began; nothing when it was told before, or the agent is unknown or gone."""
    if _is_told(agent, source_position) or run_id in agent.running:
        return ()
    started = AgentRunStarted(agent_id=agent.id, run_id=run_id, source_position=source_position)
    if agent.state in (AgentState.IDLE, AgentState.INITIALIZED):
        return started, AgentActivated(agent_id=agent.id, run_id=run_id)
    return (started,)


def record_run_ended(
    agent: Agent, run_id: str, outcome: Outcome, ended_at: datetime, source_position: int, intensity: RestartIntensity
) -> Events:
    """What agent-runtime tells of a run that ended, and what follows for the agent."""
    if _is_told(agent, source_position) or run_id not in agent.running:
        return ()
    ended = AgentRunEnded(
        agent_id=agent.id, run_id=run_id, outcome=outcome, ended_at=ended_at, source_position=source_position
    )
    after = evolve_agent(agent, ended)
    if outcome == "failed" and AgentState.FAILED in TRANSITIONS[after.state] and is_past(after.failures, intensity):
        return ended, AgentFailed(agent_id=agent.id, reason=_past_intensity(intensity))
    if after.state is AgentState.ACTIVE and not after.running:
        return ended, AgentWentIdle(agent_id=agent.id)
    return (ended,)


def is_past(failures: Iterable[datetime], intensity: RestartIntensity) -> bool:
    """Whether the failures up to and including the last pass the restart intensity."""
    times = sorted(failures)
    if not times:
        return False
    return sum(at > times[-1] - intensity.within for at in times) > intensity.failures_max


def health_at(now: datetime, last_heartbeat_at: datetime, interval: timedelta, limits: tuple[int, int]) -> Health:
    """`limits` are the missed intervals after which an agent is suspect, and offline."""
    suspect_after, offline_after = limits
    silence = now - last_heartbeat_at
    if silence >= interval * offline_after:
        return "offline"
    return "suspect" if silence >= interval * suspect_after else "alive"


FAILURES_KEPT: Final = 128
"""Late failures remembered by an agent; no intensity may be larger."""


def evolve_agent(agent: Agent, event: Event) -> Agent:
    match event:
        case AgentCreated():
            return _created(event)
        case ExternalAgentRegistered():
            return _registered(agent, event)
        case AgentInitialized():
            return replace(agent, state=AgentState.INITIALIZED)
        case AgentActivated():
            return replace(agent, state=AgentState.ACTIVE)
        case AgentWentIdle():
            return replace(agent, state=AgentState.IDLE)
        case AgentRunStarted():
            return replace(
                agent,
                running=agent.running | {event.run_id},
                seen_position=max(agent.seen_position, event.source_position),
            )
        case AgentRunEnded():
            return _run_ended(agent, event)
        case AgentSuspended():
            return replace(agent, state=AgentState.SUSPENDED)
        case AgentResumed():
            return replace(agent, state=AgentState.ACTIVE if agent.running else AgentState.IDLE, failures=())
        case AgentTerminated():
            return replace(agent, state=AgentState.TERMINATED)
        case AgentFailed():
            return replace(agent, state=AgentState.FAILED)
        case AgentHealthChanged():
            return replace(agent, health=event.health)
        case _:
            return agent


def _order(agent: Agent, target: AgentState, event: Event) -> Events:
    if agent.state is target:
        return ()
    if target not in TRANSITIONS[agent.state]:
        raise TransitionRefused(agent.name, agent.state, target, TRANSITIONS[agent.state])
    return (event,)


def _is_told(agent: Agent, source_position: int) -> bool:
    return not agent.exists or agent.terminated or source_position <= agent.seen_position


def _past_intensity(intensity: RestartIntensity) -> str:
    return (
        f"more than {intensity.failures_max} runs failed within {intensity.within.total_seconds():g} s; "
        "find out why, then resume the agent"
    )


def _created(event: AgentCreated) -> Agent:
    return Agent(
        id=event.agent_id,
        tenant_id=event.tenant_id,
        name=event.name,
        definition_name=event.definition_name,
        definition_version=event.definition_version,
        definition_digest=event.definition_digest,
        capabilities=event.capabilities,
        state=AgentState.CREATED,
        request_id=event.request_id,
    )


def _registered(agent: Agent, event: ExternalAgentRegistered) -> Agent:
    """A suspension outlives the process that it was meant for; a failure does not."""
    return replace(
        agent,
        id=event.agent_id,
        tenant_id=event.tenant_id,
        name=event.name,
        capabilities=event.capabilities,
        external=True,
        incarnation=event.incarnation,
        health="alive",
        state=AgentState.SUSPENDED if agent.state is AgentState.SUSPENDED else AgentState.IDLE,
        request_id=event.request_id,
    )


def _run_ended(agent: Agent, event: AgentRunEnded) -> Agent:
    failed = event.outcome == "failed"
    times = (event.ended_at,) if failed and event.ended_at else ()
    return replace(
        agent,
        running=agent.running - {event.run_id},
        runs_completed=agent.runs_completed + (event.outcome == "completed"),
        runs_failed=agent.runs_failed + failed,
        failures=(*agent.failures, *times)[-FAILURES_KEPT:],
        seen_position=max(agent.seen_position, event.source_position),
    )
