"""The use cases: load, decide, append, and read what was written. Identity, definitions, agents."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventlog.aggregates import Aggregates
from eventlog.codec import Codec
from eventlog.errors import VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, StreamId
from eventlog.vault import Vault
from servicekit.auth import ANY_TENANT, issue
from servicekit.auth import Principal as Caller
from servicekit.clock import Clock
from servicekit.context import current_principal, event_context
from synod.agent_registry.events import EVENTS, Health, PrincipalKind
from synod.common.definitions import AgentDefinition
from synod.common.event import Event
from synod.common.ids import derived_id, new_id
from synod.common.personal import ERASED
from synod.common.subjects import SHARED_TENANT

from agent_registry import definitions, domain, keys, ports, roles
from agent_registry.definitions import Checked, Known
from agent_registry.directory import Directory, Entry
from agent_registry.domain import Agent, AgentState, ApiKey, Definition, DefinitionKind, Principal, Tenant
from agent_registry.errors import (
    AgentMissing,
    DefinitionMissing,
    KeyMissing,
    NotAnAgentDefinition,
    PrincipalMissing,
    ReferenceMalformed,
    StaleIncarnation,
)
from agent_registry.ports import AgentRecord, DefinitionRecord, KeyRecord, Page, PrincipalRecord

SERVICE: Final = "agent-registry"
KEY_FILE: Final = "key file"
OWNER: Final = "owner"
NAMES: Final = "names-of-principals"
"""Whose key turns names into ids; no person is called so."""
ATTEMPTS_MAX: Final = 8

CODEC: Final[Codec[Event]] = Codec(EVENTS)


@dataclass(frozen=True, slots=True)
class Terms:
    """Times and limits that the use cases keep to."""

    token_ttl: timedelta
    heartbeat_interval: timedelta
    suspect_after: int
    offline_after: int
    intensity: domain.RestartIntensity


@dataclass(frozen=True, slots=True)
class Session:
    """A token and whose it is."""

    token: str
    expires_at: datetime
    principal: PrincipalRecord


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key with its text, which is never seen again."""

    record: KeyRecord
    text: str


class Identity:
    """Tenants, principals and API keys. `secret` gives an unguessable text each time it is called.

    The names of persons are sealed by the `vault`; without one none can be created, and their names read as erased.
    """

    def __init__(
        self,
        log: EventLog,
        view: ports.Principals,
        clock: Clock,
        signing_key: Ed25519PrivateKey,
        secret: Callable[[], str],
        terms: Terms,
        vault: Vault | None,
    ) -> None:
        self._tenants = Aggregates(log, "tenant", Tenant, domain.evolve_tenant, CODEC, clock)
        self._principals = Aggregates(log, "principal", Principal, domain.evolve_principal, CODEC, clock, vault=vault)
        self._vault = vault
        self._view = view
        self._clock = clock
        self._signing_key = signing_key
        self._secret = secret
        self._ttl = terms.token_ttl

    async def establish(self, tenant: str, owner_key: str | None, service_keys: dict[str, str]) -> int:
        """Create what must be there before anyone can call: tenant, owner, services; answers the last position.

        Repeated at every start it appends nothing, unless a key file changed: then the new key replaces the old.
        """
        context = Context(tenant=tenant, actor=SERVICE)
        created = await self._tenants.execute(tenant, lambda it: domain.create_tenant(it, tenant, tenant), context)
        positions = [created.position, await self._establish_owner(tenant, owner_key, context)]
        for service, sha256 in sorted(service_keys.items()):
            positions.append(await self._establish_service(service, sha256))
        return max(positions)

    async def authenticate(self, key_text: str) -> Session:
        """A token for whoever holds the key. Raises KeyRejected."""
        presented = keys.parse(key_text)
        key = await self._view.key(presented.id)
        principal = (await self._principals.load(key.principal_id)).state if key else Principal()
        now = self._clock.now()
        domain.check_key(principal, presented, now)
        record = await self._shown(principal.id)
        caller = Caller(principal.id, principal.tenant_id, principal.kind, roles.permissions(principal.roles))
        return Session(issue(self._signing_key, caller, self._ttl, now=now), now + self._ttl, record)

    async def create_principal(
        self, name: str, kind: PrincipalKind, given: tuple[str, ...], request_id: str
    ) -> PrincipalRecord:
        """Raises RoleUnknown, RoleNotGrantable, NameTaken, ReferenceMalformed; SubjectLocked for a person without a vault."""
        tenant = _tenant()
        _check_principal(name, kind, given)
        roles.check_grantable(given, current_principal().may)
        principal_id = await self._person_id(tenant, name) if kind == "user" else derived_id("prn", tenant, name)
        command = domain.CreatePrincipal(principal_id, tenant, name, kind, given, request_id)
        executed = await self._principals.execute(
            principal_id, lambda principal: domain.create_principal(principal, command), event_context()
        )
        await self._view.reached(executed.position)
        return await self._shown(principal_id)

    async def list_principals(self, page: Page) -> Sequence[PrincipalRecord]:
        return await self._view.principals(_tenant(), page)

    async def create_key(self, principal_id: str, label: str, expires_at: datetime | None, request_id: str) -> NewKey:
        """Raises PrincipalMissing, RoleNotGrantable, KeyExists, ReferenceMalformed."""
        principal = await self._own(principal_id)
        # A key of a more powerful principal would be a way around the roles.
        roles.check_grantable(principal.roles, current_principal().may)
        if expires_at is not None and expires_at <= self._clock.now():
            raise ReferenceMalformed("expires_at", expires_at.isoformat(), "is not in the future")
        key_id = _key_id(principal_id, request_id)
        text = keys.compose(key_id, self._secret())
        key = ApiKey(key_id, label, keys.sha256(text), expires_at)
        executed = await self._principals.execute(
            principal_id, lambda principal: domain.create_key(principal, key), event_context()
        )
        await self._view.reached(executed.position)
        return NewKey(await self._key(key_id), text)

    async def revoke_key(self, key_id: str, reason: str) -> KeyRecord:
        """Raises KeyMissing. Tokens that were issued for the key live on to their end."""
        found = await self._view.key(key_id)
        if found is None or (await self._principals.load(found.principal_id)).state.tenant_id != _tenant():
            raise KeyMissing(key_id)
        why = reason or "no reason given"
        executed = await self._principals.execute(
            found.principal_id, lambda principal: domain.revoke_key(principal, key_id, why), event_context()
        )
        await self._view.reached(executed.position)
        return await self._key(key_id)

    async def list_keys(self, principal_id: str, page: Page) -> Sequence[KeyRecord]:
        """Of one principal, or of all for an empty id."""
        return await self._view.keys(_tenant(), principal_id, page)

    async def _establish_owner(self, tenant: str, key_text: str | None, context: Context) -> int:
        owner_id = derived_id("prn", tenant, OWNER)
        command = domain.CreatePrincipal(owner_id, tenant, OWNER, "user", (OWNER,))
        position = await self._ensure(command, context)
        if key_text is None:
            return position
        presented = keys.parse(key_text)
        return max(position, await self._ensure_key(owner_id, presented, context))

    async def _establish_service(self, service: str, sha256: str) -> int:
        context = Context(tenant=SHARED_TENANT, actor=SERVICE)
        principal_id = f"svc-{service}"
        command = domain.CreatePrincipal(principal_id, ANY_TENANT, service, "service", ("service",))
        position = await self._ensure(command, context)
        presented = keys.PresentedKey(principal_id, sha256)
        return max(position, await self._ensure_key(principal_id, presented, context))

    async def _ensure(self, command: domain.CreatePrincipal, context: Context) -> int:
        executed = await self._principals.execute(
            command.id, lambda principal: domain.ensure_principal(principal, command), context
        )
        return executed.position

    async def _ensure_key(self, principal_id: str, presented: keys.PresentedKey, context: Context) -> int:
        key = ApiKey(presented.id, KEY_FILE, presented.sha256)
        executed = await self._principals.execute(
            principal_id, lambda principal: domain.ensure_key(principal, key), context
        )
        return executed.position

    async def _person_id(self, tenant: str, name: str) -> str:
        """One id for one name, so that it is given once; nobody else can tell whose it is, once the name is erased."""
        plain = derived_id("prn", tenant, name)
        if self._vault is None or (await self._principals.load(plain)).state.id:  # it is from before names were sealed
            return plain
        key = await self._vault.key(tenant, NAMES)
        candidates = (f"prn_{key.pseudonym(f'{name}/{number}')}" for number in count())
        for candidate in candidates:
            if not domain.is_erased((await self._principals.load(candidate)).state):
                return candidate
        raise AssertionError("there is always another candidate")

    async def _own(self, principal_id: str) -> Principal:
        principal = (await self._principals.load(_token("principal_id", principal_id))).state
        if not principal.id or principal.tenant_id != _tenant():
            raise PrincipalMissing(principal_id)
        return principal

    async def _shown(self, principal_id: str) -> PrincipalRecord:
        record = await self._view.principal(principal_id)
        if record is None:
            raise PrincipalMissing(principal_id)
        return record

    async def _key(self, key_id: str) -> KeyRecord:
        record = await self._view.key(key_id)
        if record is None:
            raise KeyMissing(key_id)
        return record


class Definitions:
    """Definitions of agents and teams: checked whole, immutable, versioned."""

    def __init__(self, log: EventLog, view: ports.Definitions, catalogue: ports.Catalogue, clock: Clock) -> None:
        self._log = log
        self._definitions = Aggregates(log, "definition", Definition, domain.evolve_definition, CODEC, clock)
        self._view = view
        self._catalogue = catalogue
        self._clock = clock

    async def define(self, text: str, *, validate_only: bool) -> list[DefinitionRecord]:
        """Register all definitions of the text, or none, in their order.

        Raises DefinitionsInvalid, CatalogueUnknown, KindTaken.
        """
        # A text of the largest size takes a tenth of a second; heartbeats must not wait for it.
        reading = await asyncio.to_thread(definitions.read, text)
        tenant = _tenant()
        known = await self._known(tenant, reading.checked)
        checked = await asyncio.to_thread(definitions.check, reading, known)
        if validate_only:
            return [await self._foreseen(tenant, item) for item in checked]
        return await self._register(tenant, checked)

    async def get(self, reference: str) -> DefinitionRecord:
        """By name, name@version or digest. Raises DefinitionMissing, ReferenceMalformed."""
        tenant = _tenant()
        record = await self._find(tenant, reference)
        if record is None:
            known = await self._view.registered(tenant, None)
            raise DefinitionMissing(reference, known)
        return record

    async def list_definitions(self, page: Page, *, all_versions: bool) -> Sequence[DefinitionRecord]:
        return await self._view.definitions(_tenant(), page, all_versions)

    async def _find(self, tenant: str, reference: str) -> DefinitionRecord | None:
        if len(reference) == 64:
            return await self._view.by_digest(tenant, reference)
        name, at, version = reference.partition("@")
        if at and not (version.isdecimal() and len(version) < 10):
            raise ReferenceMalformed(
                "definition", reference, "write name, name@version (such as analyst@2) or a digest"
            )
        return await self._view.version(tenant, name, int(version) if at else None)

    async def _known(self, tenant: str, checked: Sequence[Checked]) -> Known:
        has_team = any(item.kind == "Team" for item in checked)
        names = None if has_team else [item.name for item in checked]
        return Known(await self._view.registered(tenant, names), await self._catalogue.tools(tenant))

    async def _foreseen(self, tenant: str, item: Checked) -> DefinitionRecord:
        definition = (await self._definitions.load(_stream_id(tenant, item.name))).state
        return _record(item, len(definition.digests) + (0 if definition.is_newest(item.digest) else 1))

    async def _register(self, tenant: str, checked: Sequence[Checked]) -> list[DefinitionRecord]:
        for attempt in count(1):
            try:
                return await self._try_register(tenant, checked)
            except VersionConflict:
                if attempt == ATTEMPTS_MAX:
                    raise
        raise AssertionError("count() ended")

    async def _try_register(self, tenant: str, checked: Sequence[Checked]) -> list[DefinitionRecord]:
        """One append of all streams, so that a team is never there without its members."""
        plans = [await self._plan(tenant, item) for item in checked]
        appends = tuple(append for append in plans if append.events)
        if appends:
            appended = await self._log.append(*appends)
            await self._view.reached(appended.position)
        return [await self._registered(tenant, item, plan) for item, plan in zip(checked, plans, strict=True)]

    async def _plan(self, tenant: str, item: Checked) -> Append:
        stream = StreamId("definition", _stream_id(tenant, item.name))
        loaded = await self._definitions.load(stream.id)
        command = domain.Define(item.name, cast(DefinitionKind, item.kind), item.digest, item.spec_json)
        at = self._clock.now()
        events = tuple(CODEC.encode(event, at=at) for event in domain.define(loaded.state, command))
        return Append(stream, loaded.version, events, event_context())

    async def _registered(self, tenant: str, item: Checked, plan: Append) -> DefinitionRecord:
        record = await self._view.by_digest(tenant, item.digest)
        if record is None:
            raise DefinitionMissing(item.name)
        return _record(item, record.version, record.created_at, bool(plan.events))


class Agents:
    """Agents of the runtime and agents outside: their life, their health, who is free."""

    def __init__(
        self,
        log: EventLog,
        view: ports.Agents,
        directory: Directory,
        definitions: Definitions,
        clock: Clock,
        terms: Terms,
    ) -> None:
        self._agents = Aggregates(log, "agent", Agent, domain.evolve_agent, CODEC, clock, cache=16_384)
        self._view = view
        self._directory = directory
        self._definitions = definitions
        self._clock = clock
        self._terms = terms
        self._started_at = clock.now()
        self._written = 0

    @property
    def heartbeat_interval(self) -> timedelta:
        return self._terms.heartbeat_interval

    async def create(self, reference: str, name: str, request_id: str) -> AgentRecord:
        """Raises DefinitionMissing, NotAnAgentDefinition, NameTaken, ReferenceMalformed."""
        definition = await self._definitions.get(reference)
        if definition.kind != "Agent":
            raise NotAnAgentDefinition(reference, definition.kind)
        spec = AgentDefinition.model_validate_json(definition.spec_json).spec
        tenant, name = _tenant(), _name("name", name or definition.name)
        command = domain.CreateAgent(
            id=await self._seat(tenant, name),
            tenant_id=tenant,
            name=name,
            definition_name=definition.name,
            definition_version=definition.version,
            definition_digest=definition.digest,
            capabilities=spec.capabilities,
            request_id=request_id,
        )
        return await self._execute(command.id, lambda agent: domain.create_agent(agent, command))

    async def get(self, id_or_name: str) -> AgentRecord:
        """A living agent by id or name, or one that is gone. Raises AgentMissing."""
        tenant = _tenant()
        entry = self._directory.get(tenant, id_or_name)
        record = entry.record() if entry else await self._gone(tenant, id_or_name)
        if record is None:
            raise AgentMissing(id_or_name, self._directory.names(tenant))
        return record

    async def list_agents(self, page: Page, state: AgentState | None) -> list[AgentRecord]:
        """From the view; the living with what is no event, their heartbeats."""
        # Who reads waits for what was written here, not who writes: an agent is created in a fraction of the time.
        await self._view.reached(self._written)
        records = await self._view.agents(_tenant(), page, state)
        return [self._with_heartbeat(record) for record in records]

    def discover(self, capabilities: Sequence[str], limit: int) -> list[AgentRecord]:
        """Agents that can take work and offer all of these, least busy first."""
        return [entry.record() for entry in self._directory.discover(_tenant(), capabilities, limit)]

    async def register_external(self, name: str, capabilities: tuple[str, ...], request_id: str) -> AgentRecord:
        """A new incarnation under this name. Raises NameTaken, ReferenceMalformed."""
        tenant = _tenant()
        for index, capability in enumerate(capabilities):
            _name(f"capabilities[{index}]", capability)
        command = domain.RegisterExternal(
            await self._seat(tenant, _name("name", name)), tenant, name, tuple(dict.fromkeys(capabilities)), request_id
        )
        return await self._execute(command.id, lambda agent: domain.register_external(agent, command))

    async def heartbeat(self, agent_id: str, incarnation: int, busy: int) -> AgentState:
        """Note that an agent outside is alive. Raises AgentMissing, NotExternal, StaleIncarnation."""
        entry = self._directory.get(_tenant(), agent_id)
        if entry is None:
            raise AgentMissing(agent_id)
        await self._check_heartbeat(entry, incarnation)
        now = self._clock.now()
        silent_since = self._last_sign(entry)
        self._directory.beat(entry.agent.id, now, busy)
        if entry.agent.health != "alive":
            evidence = f"a heartbeat after {(now - silent_since).total_seconds():.1f} s of silence"
            await self._report(entry, "alive", now, evidence)
        return entry.agent.state

    async def change_state(self, agent_id: str, target: AgentState, reason: str) -> AgentRecord:
        """Suspend, resume (IDLE) or terminate. Raises AgentMissing, TransitionRefused."""
        record = await self.get(agent_id)
        why = reason or "no reason given"
        return await self._execute(record.id, lambda agent: domain.change_state(agent, target, why))

    async def sweep(self) -> None:
        """Look for agents outside that have fallen silent; one that was heard again says so itself.

        After a start of this process nobody is accused of the time it was away.
        """
        now = self._clock.now()
        for entry in self._directory.outside():
            last = self._last_sign(entry)
            limits = (self._terms.suspect_after, self._terms.offline_after)
            health = domain.health_at(now, last, self._terms.heartbeat_interval, limits)
            if _SEVERITY[health] > _SEVERITY[entry.agent.health]:
                await self._report(entry, health, entry.beat_at, _evidence(now, last, self._terms))

    async def run_started(self, agent_id: str, run_id: str, position: int, context: Context) -> None:
        """What agent-runtime tells; told twice it counts once."""
        await self._agents.execute(agent_id, lambda agent: domain.record_run_started(agent, run_id, position), context)

    async def run_ended(
        self, agent_id: str, run_id: str, outcome: domain.Outcome, at: datetime, position: int, context: Context
    ) -> None:
        """What agent-runtime tells; told twice it counts once. A failure too many fails the agent."""
        decide = partial(
            domain.record_run_ended,
            run_id=run_id,
            outcome=outcome,
            ended_at=at,
            source_position=position,
            intensity=self._terms.intensity,
        )
        await self._agents.execute(agent_id, decide, context)

    async def _gone(self, tenant: str, id_or_name: str) -> AgentRecord | None:
        await self._view.reached(self._written)
        return await self._view.agent(tenant, id_or_name)

    async def _seat(self, tenant: str, name: str) -> str:
        """The id of the living agent of this name, or the one that the next shall have.

        An id is a function of tenant, name and generation, so that two requests for one name meet in one stream, and
        the expected version lets only one of them create the agent.
        """
        for generation in count(1):
            agent_id = derived_id("agt", tenant, name, str(generation))
            if not (await self._agents.load(agent_id)).state.terminated:
                return agent_id
        raise AssertionError("count() ended")

    async def _execute(self, agent_id: str, decide: Callable[[Agent], domain.Events]) -> AgentRecord:
        executed = await self._agents.execute(agent_id, decide, event_context())
        self._written = max(self._written, executed.position)
        await self._directory.reached(executed.position)
        return await self.get(agent_id)

    async def _check_heartbeat(self, entry: Entry, incarnation: int) -> None:
        try:
            domain.check_heartbeat(entry.agent, incarnation)
        except StaleIncarnation:
            # Another process may have registered it a moment ago, which this one has not folded yet.
            domain.check_heartbeat((await self._agents.load(entry.agent.id)).state, incarnation)

    async def _report(self, entry: Entry, health: Health, at: datetime | None, evidence: str) -> None:
        incarnation = entry.agent.incarnation
        context = Context(tenant=entry.agent.tenant_id, actor=SERVICE)
        executed = await self._agents.execute(
            entry.agent.id, lambda agent: domain.report_health(agent, incarnation, health, at, evidence), context
        )
        await self._directory.reached(executed.position)

    def _last_sign(self, entry: Entry) -> datetime:
        return entry.beat_at or max(entry.registered_at, self._started_at)

    def _with_heartbeat(self, record: AgentRecord) -> AgentRecord:
        entry = self._directory.get(record.tenant, record.id)
        return entry.record() if entry is not None and entry.agent.external else record


_SEVERITY: Final[dict[Health, int]] = {"alive": 0, "suspect": 1, "offline": 2}


def _evidence(now: datetime, last: datetime, terms: Terms) -> str:
    silence = now - last
    missed = silence // terms.heartbeat_interval
    return (
        f"no heartbeat for {silence.total_seconds():.1f} s, that is {missed} intervals of "
        f"{terms.heartbeat_interval.total_seconds():g} s"
    )


def _record(item: Checked, version: int, created_at: datetime | None = None, created: bool = False) -> DefinitionRecord:
    kind = cast(DefinitionKind, item.kind)
    return DefinitionRecord(item.name, kind, version, item.digest, item.spec_json, created_at, created)


def _tenant() -> str:
    """The tenant of the call; InvalidArgument when the call is not made for one."""
    return event_context().tenant


def _stream_id(tenant: str, name: str) -> str:
    """Neither part has an underscore, so no two tenants meet."""
    return f"{tenant}_{name}"


def _key_id(principal_id: str, request_id: str) -> str:
    """A key id has no underscore, so that a key's text can be taken apart."""
    text = derived_id("k", principal_id, request_id) if request_id else new_id("k")
    return text.replace("_", "-")


def _check_principal(name: str, kind: PrincipalKind, given: tuple[str, ...]) -> None:
    if not 1 <= len(name) <= 64 or not name.isprintable() or name == ERASED:
        raise ReferenceMalformed("name", name, f"must have 1 to 64 printable characters, and not be {ERASED}")
    if kind == "service":
        raise ReferenceMalformed(
            "kind", kind, "services get their principals from the file of service keys, not by request"
        )
    if not given:
        raise ReferenceMalformed("roles", [], f"must name one or more of {', '.join(roles.GRANTABLE)}")


def _name(field: str, value: str) -> str:
    if not definitions.NAME.fullmatch(value):
        raise ReferenceMalformed(field, value, "must be 1 to 63 of a-z, 0-9 and -, beginning with a letter")
    return value


def _token(field: str, value: str) -> str:
    if not definitions.TOKEN.fullmatch(value):
        raise ReferenceMalformed(field, value, "must be 1 to 128 of A-Z, a-z, 0-9, _ and -")
    return value
