"""What the registry refuses, and what the caller does about it.

RegistryError
├── KeyRejected              authenticate with another key
│   ├── KeyMalformed
│   ├── KeyUnknown
│   ├── KeyExpired
│   └── KeyRevoked
├── RoleUnknown              choose one of the roles named
├── RoleNotGrantable         let someone who holds these permissions do it
├── NameTaken                choose another name, or use what exists
├── KeyExists                the secret was shown once: revoke this key and create another
├── PrincipalMissing         list the principals, then name one that exists
├── KeyMissing               list the keys, then name one that exists
├── ReferenceMalformed       correct the value
├── DefinitionsInvalid       correct every problem that it lists
├── CatalogueUnknown         wait for tool-executor, then repeat
├── KindTaken                choose another name
├── DefinitionMissing        define it first
├── NotAnAgentDefinition     name a definition of kind Agent
├── AgentMissing             list the agents, then name one that exists
├── TransitionRefused        change to a state that the present one allows
├── NotExternal              agents of the runtime send no heartbeats
├── StaleIncarnation         stop, or register again
└── ViewBehind               what was ordered is done; read it a little later
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import islice
from typing import Final


class RegistryError(Exception):
    """The base of every error of this service."""


class KeyRejected(RegistryError):
    """An API key that opens nothing. The message never repeats its secret."""


class KeyMalformed(KeyRejected):
    def __init__(self) -> None:
        super().__init__(
            "the API key is not of the form syn_<key id>_<secret>; copy it whole, as it was shown at its creation"
        )


class KeyUnknown(KeyRejected):
    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"no API key {key_id!r} with this secret; check that the key is whole and belongs to this system, "
            "or create another with CreateApiKey"
        )
        self.key_id = key_id


class KeyExpired(KeyRejected):
    def __init__(self, key_id: str, label: str, expired_at: datetime) -> None:
        super().__init__(
            f"API key {key_id!r} ({label or 'without label'}) expired at {expired_at:%Y-%m-%dT%H:%M:%SZ}; "
            "whoever holds keys.create gets a new one with CreateApiKey for the same principal"
        )
        self.key_id = key_id
        self.expired_at = expired_at


class KeyRevoked(KeyRejected):
    def __init__(self, key_id: str, label: str, reason: str) -> None:
        super().__init__(
            f"API key {key_id!r} ({label or 'without label'}) was revoked: {reason}; "
            "whoever holds keys.create gets a new one with CreateApiKey for the same principal"
        )
        self.key_id = key_id


class RoleUnknown(RegistryError):
    def __init__(self, role: str, known: Iterable[str]) -> None:
        super().__init__(f"no such role; use one or more of {', '.join(known)}")
        self.role = role


class RoleNotGrantable(RegistryError):
    """Nobody gives what he does not hold."""

    def __init__(self, role: str, permission: str) -> None:
        super().__init__(
            f"role {role!r} includes {permission}, which the caller does not hold; ask an owner of the tenant"
        )
        self.role = role
        self.permission = permission


class NameTaken(RegistryError):
    def __init__(self, resource: str, name: str, holder: str) -> None:
        super().__init__(f"{resource} name {name!r} is in use by {holder}; use it, or choose another name")
        self.resource = resource
        self.name = name
        self.holder = holder


class KeyExists(RegistryError):
    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"this request_id created API key {key_id!r}, whose secret was shown once; revoke it and create another"
        )
        self.key_id = key_id


class PrincipalMissing(RegistryError):
    def __init__(self, principal_id: str) -> None:
        super().__init__(f"no principal {principal_id!r} in this tenant; ListPrincipals names those there are")
        self.principal_id = principal_id


class KeyMissing(RegistryError):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key {key_id!r} in this tenant; ListApiKeys names those there are")
        self.key_id = key_id


class ReferenceMalformed(RegistryError):
    """A field whose value can never be right."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field} = {value!r}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request of definitions. `document` and `line` count from 1; `field` is a path."""

    document: int
    line: int
    field: str
    value: str
    problem: str

    def __str__(self) -> str:
        where = f"document {self.document}, line {self.line}"
        what = f"{self.field} = {self.value}" if self.value else self.field
        return f"{where}, {what}: {self.problem}" if what else f"{where}: {self.problem}"


class DefinitionsInvalid(RegistryError):
    """Everything wrong with the request at once, in the order of the lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.document, problem.line)))
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__("\n".join([f"nothing was registered, {count} found:", *map(str, self.problems)]))


class CatalogueUnknown(RegistryError):
    """Whether the tools named exist cannot be said yet."""

    def __init__(self, tools: Iterable[str]) -> None:
        super().__init__(
            f"the tools {', '.join(tools)} cannot be checked: the catalogue is not known yet, "
            "because tool-executor has not announced any tool; start it (or wait for it), then define again"
        )


class KindTaken(RegistryError):
    """A concurrent request registered the name as another kind."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"{name!r} is registered as {kind}; choose another name")
        self.name = name


class DefinitionMissing(RegistryError):
    def __init__(self, reference: str, known: Iterable[str] = ()) -> None:
        super().__init__(
            f"no definition {reference!r}{near(reference, known)}; Define registers one, ListDefinitions names all"
        )
        self.reference = reference


class NotAnAgentDefinition(RegistryError):
    def __init__(self, reference: str, kind: str) -> None:
        super().__init__(
            f"{reference!r} is a {kind}; an agent is created from a definition of kind Agent (a team is run as it is)"
        )
        self.reference = reference


class AgentMissing(RegistryError):
    def __init__(self, agent: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"no agent {agent!r}{near(agent, known)}; ListAgents names those there are")
        self.agent = agent


class TransitionRefused(RegistryError):
    def __init__(self, agent: str, state: str, target: str, allowed: Iterable[str]) -> None:
        names = ", ".join(sorted(allowed)) or "no other state: create a new agent"
        super().__init__(f"agent {agent!r} is {state} and cannot become {target}; from {state} it can become {names}")
        self.agent = agent
        self.state = state
        self.target = target


class NotExternal(RegistryError):
    def __init__(self, agent: str) -> None:
        super().__init__(
            f"agent {agent!r} lives in agent-runtime, which speaks for it; only agents of RegisterExternalAgent send heartbeats"
        )
        self.agent = agent


class StaleIncarnation(RegistryError):
    """A zombie: another process took the agent's place, or the agent is gone."""

    def __init__(self, agent: str, incarnation: int, current: int) -> None:
        super().__init__(
            f"incarnation {incarnation} of agent {agent!r} is not the present one, which is {current}; "
            "stop this process, or register again with RegisterExternalAgent to take the place back"
        )
        self.agent = agent
        self.incarnation = incarnation
        self.current = current


class ViewBehind(RegistryError):
    """A write is in the log, and the view that should show it is slow."""

    def __init__(self, view: str, position: int) -> None:
        super().__init__(
            f"the change is stored at position {position}, but view {view} has not folded it yet; "
            "do not repeat the request, read the result in a moment"
        )


NEAR_NAMES_MAX: Final = 1_000
NEAR_LENGTH: Final = 4


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean a or b?"`` for names like this one, else nothing.

    Comparing is dear: names of a very different length are left out, and of a great many only some are looked at.
    """
    similar = islice((other for other in known if abs(len(other) - len(name)) <= NEAR_LENGTH), NEAR_NAMES_MAX)
    matches = get_close_matches(name, list(similar), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
