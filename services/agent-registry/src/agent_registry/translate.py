"""Protobuf to domain and back, and the domain's errors as gRPC answers. The only file that knows both."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from eventlog.errors import VersionConflict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from servicekit.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from synod.agent_registry.events import PrincipalKind
from synod.agent_registry.v1 import agent_registry_pb2 as pb

from agent_registry import roles
from agent_registry.application import NewKey, Session
from agent_registry.domain import AgentState
from agent_registry.errors import (
    AgentMissing,
    CatalogueUnknown,
    DefinitionMissing,
    DefinitionsInvalid,
    KeyExists,
    KeyExpired,
    KeyMalformed,
    KeyMissing,
    KeyRejected,
    KeyRevoked,
    KeyUnknown,
    KindTaken,
    NameTaken,
    NotAnAgentDefinition,
    NotExternal,
    PrincipalMissing,
    Problem,
    ReferenceMalformed,
    RegistryError,
    RoleNotGrantable,
    RoleUnknown,
    StaleIncarnation,
    TransitionRefused,
    ViewBehind,
)
from agent_registry.ports import AgentRecord, DefinitionRecord, KeyRecord, Page, PrincipalRecord

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
DISCOVER_DEFAULT: Final = 10
DISCOVER_MAX: Final = 100
MESSAGE_CHARS_MAX: Final = 600
VIOLATION_CHARS_MAX: Final = 240
VIOLATIONS_CHARS_MAX: Final = 4_000
"""All of an answer's trailers stay below 8 KiB, from where on gRPC clients refuse them. What was left out is counted."""
CATALOGUE_RETRY_S: Final = 2.0

R = TypeVar("R")


class PageRequest(Protocol):
    @property
    def page_size(self) -> int: ...

    @property
    def page_token(self) -> str: ...


class InvalidDefinitions(InvalidArgument):
    """One FieldViolation for each problem, and the first problems in the message."""

    def __init__(self, error: DefinitionsInvalid) -> None:
        first = error.problems[0]
        super().__init__("yaml", first.field, first.problem, reason="DEFINITIONS_INVALID")
        text = str(error)
        self.message = text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"
        self.args = (self.message,)
        self.metadata["problems"] = str(len(error.problems))
        self._violations = _violations(error.problems)

    def details(self) -> list[Message]:
        return [error_details_pb2.BadRequest(field_violations=self._violations)]


ERRORS: Final = (
    ErrorMap()
    .add(KeyMalformed, lambda error: Unauthenticated(str(error), reason="KEY_MALFORMED"))
    .add(KeyUnknown, lambda error: Unauthenticated(str(error), reason="KEY_UNKNOWN", metadata={"key_id": error.key_id}))
    .add(KeyExpired, lambda error: _key_expired(error))
    .add(KeyRevoked, lambda error: Unauthenticated(str(error), reason="KEY_REVOKED", metadata={"key_id": error.key_id}))
    .add(KeyRejected, lambda error: Unauthenticated(str(error)))
    .add(RoleUnknown, lambda error: InvalidArgument("roles", error.role, str(error), reason="ROLE_UNKNOWN"))
    .add(
        RoleNotGrantable,
        lambda error: PermissionDenied(error.permission, message=str(error), reason="ROLE_NOT_GRANTABLE"),
    )
    .add(NameTaken, lambda error: AlreadyExists(error.resource, error.name, reason="NAME_TAKEN"))
    .add(KeyExists, lambda error: FailedPrecondition(str(error), reason="KEY_EXISTS"))
    .add(PrincipalMissing, lambda error: _not_found("principal", error.principal_id, error))
    .add(KeyMissing, lambda error: _not_found("API key", error.key_id, error))
    .add(ReferenceMalformed, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(DefinitionsInvalid, InvalidDefinitions)
    .add(CatalogueUnknown, lambda error: Unavailable(str(error), CATALOGUE_RETRY_S, reason="CATALOGUE_UNKNOWN"))
    .add(KindTaken, lambda error: FailedPrecondition(str(error), reason="KIND_TAKEN"))
    .add(DefinitionMissing, lambda error: _not_found("definition", error.reference, error))
    .add(NotAnAgentDefinition, lambda error: FailedPrecondition(str(error), reason="NOT_AN_AGENT_DEFINITION"))
    .add(AgentMissing, lambda error: _not_found("agent", error.agent, error))
    .add(TransitionRefused, lambda error: FailedPrecondition(str(error), reason="TRANSITION_REFUSED"))
    .add(NotExternal, lambda error: FailedPrecondition(str(error), reason="NOT_EXTERNAL"))
    .add(StaleIncarnation, lambda error: FailedPrecondition(str(error), reason="STALE_INCARNATION"))
    .add(ViewBehind, lambda error: _view_behind(error))
    .add(VersionConflict, lambda error: Aborted(f"{error}; others write here at the same time, repeat the call"))
)


def page(request: PageRequest, parts: int = 1) -> Page:
    """Raises ReferenceMalformed for a size out of range or a token that no answer gave."""
    if not 0 <= request.page_size <= PAGE_SIZE_MAX:
        raise ReferenceMalformed("page_size", request.page_size, f"must be from 1 to {PAGE_SIZE_MAX}, or 0 for 100")
    return Page(request.page_size or PAGE_SIZE_DEFAULT, _after(request.page_token, parts))


def next_page(records: Sequence[R], asked: Page, key: Callable[[R], tuple[str, ...]]) -> str:
    """The token of the page that follows; empty when this one is the last."""
    if len(records) < asked.size:
        return ""
    return base64.urlsafe_b64encode(json.dumps(key(records[-1])).encode()).decode()


def _after(token: str, parts: int) -> tuple[str, ...]:
    if not token:
        return ()
    problem = "is not a page token of this method; use next_page_token of its last answer, or none to begin"
    try:
        key = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise ReferenceMalformed("page_token", token, problem) from error
    if not isinstance(key, list) or len(key) != parts or not all(isinstance(part, str) for part in key):
        raise ReferenceMalformed("page_token", token, problem)
    if parts == 2 and not key[1].isdecimal():
        raise ReferenceMalformed("page_token", token, problem)
    return tuple(key)


def discover_limit(limit: int) -> int:
    if not 0 <= limit <= DISCOVER_MAX:
        raise ReferenceMalformed("limit", limit, f"must be from 1 to {DISCOVER_MAX}, or 0 for {DISCOVER_DEFAULT}")
    return limit or DISCOVER_DEFAULT


def busy(value: int) -> int:
    if value < 0:
        raise ReferenceMalformed("busy", value, "must be the number of tasks in progress, 0 or more")
    return value


def kind(value: pb.PrincipalKind.ValueType) -> PrincipalKind:
    if value not in _KINDS:
        raise ReferenceMalformed(
            "kind", pb.PrincipalKind.Name(value), "must be PRINCIPAL_KIND_USER or PRINCIPAL_KIND_AGENT"
        )
    return _KINDS[value]


def ordered_state(value: pb.AgentState.ValueType) -> AgentState:
    """The state that an order asks for."""
    known = filter_state(value)
    if known not in (AgentState.SUSPENDED, AgentState.IDLE, AgentState.TERMINATED):
        raise ReferenceMalformed(
            "state",
            pb.AgentState.Name(value),
            "must be AGENT_STATE_SUSPENDED, AGENT_STATE_IDLE (resume) or AGENT_STATE_TERMINATED",
        )
    return known


def filter_state(value: pb.AgentState.ValueType) -> AgentState | None:
    if value not in pb.AgentState.values():
        raise ReferenceMalformed("state", value, f"must be one of {', '.join(pb.AgentState.keys())}")
    return AgentState(pb.AgentState.Name(value).removeprefix("AGENT_STATE_")) if value else None


def when(request: pb.CreateApiKeyRequest) -> datetime | None:
    """When the key shall expire, if it shall."""
    return request.expires_at.ToDatetime(tzinfo=UTC) if request.HasField("expires_at") else None


def session(value: Session) -> pb.AuthenticateResponse:
    return pb.AuthenticateResponse(
        token=value.token, expires_at=_timestamp(value.expires_at), principal=principal(value.principal)
    )


def principal(record: PrincipalRecord) -> pb.Principal:
    return pb.Principal(
        id=record.id,
        tenant_id=record.tenant,
        name=record.name,
        kind=_KINDS_PB[record.kind],
        roles=record.roles,
        permissions=roles.permissions(record.roles),
        created_at=_timestamp(record.created_at),
    )


def new_key(value: NewKey) -> pb.CreateApiKeyResponse:
    return pb.CreateApiKeyResponse(key=key(value.record), secret=value.text)


def key(record: KeyRecord) -> pb.ApiKey:
    return pb.ApiKey(
        id=record.id,
        principal_id=record.principal_id,
        label=record.label,
        created_at=_timestamp(record.created_at),
        expires_at=_timestamp(record.expires_at),
        revoked_at=_timestamp(record.revoked_at),
    )


def definition(record: DefinitionRecord) -> pb.Definition:
    return pb.Definition(
        name=record.name,
        kind=record.kind,
        version=record.version,
        digest=record.digest,
        spec_json=record.spec_json,
        created_at=_timestamp(record.created_at),
        created=record.created,
    )


def agent(record: AgentRecord) -> pb.Agent:
    return pb.Agent(
        id=record.id,
        tenant_id=record.tenant,
        name=record.name,
        definition_digest=record.definition_digest,
        definition_name=record.definition_name,
        definition_version=record.definition_version,
        capabilities=record.capabilities,
        state=state(record.state),
        health=pb.AgentHealth.Value(f"AGENT_HEALTH_{record.health.upper()}"),
        busy=record.busy,
        incarnation=record.incarnation,
        external=record.external,
        created_at=_timestamp(record.created_at),
        last_heartbeat_at=_timestamp(record.last_heartbeat_at),
        runs_completed=record.runs_completed,
        runs_failed=record.runs_failed,
    )


def state(value: AgentState) -> pb.AgentState.ValueType:
    return pb.AgentState.Value(f"AGENT_STATE_{value.value}")


_KINDS: Final[dict[pb.PrincipalKind.ValueType, PrincipalKind]] = {
    pb.PRINCIPAL_KIND_USER: "user",
    pb.PRINCIPAL_KIND_AGENT: "agent",
    pb.PRINCIPAL_KIND_SERVICE: "service",
}
_KINDS_PB: Final = {known: value for value, known in _KINDS.items()}


def _timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    result = Timestamp()
    result.FromDatetime(value)
    return result


def _key_expired(error: KeyExpired) -> ServiceError:
    metadata = {"key_id": error.key_id, "expired_at": error.expired_at.isoformat()}
    return Unauthenticated(str(error), reason="KEY_EXPIRED", metadata=metadata)


def _view_behind(error: ViewBehind) -> ServiceError:
    # Not UNAVAILABLE, which channels answer by repeating the request.
    return DeadlineExceeded(str(error), reason="VIEW_BEHIND")


def _not_found(resource: str, id: str, error: RegistryError) -> NotFound:
    return NotFound(resource, id, message=str(error))


def _violations(problems: Sequence[Problem]) -> list[Message]:
    shown: list[Message] = []
    left = VIOLATIONS_CHARS_MAX
    for index, problem in enumerate(problems):
        violation = _violation(problem)
        left -= violation.ByteSize()
        if left < 0:
            more = len(problems) - index
            return [*shown, _field_violation("yaml", f"and {more} more; correct these first")]
        shown.append(violation)
    return shown


def _violation(problem: Problem) -> Message:
    field = f"documents[{problem.document - 1}]" + (f".{problem.field}" if problem.field else "")
    text = str(problem)
    shown = text if len(text) <= VIOLATION_CHARS_MAX else text[: VIOLATION_CHARS_MAX - 1] + "…"
    return _field_violation(field[:100], shown)


def _field_violation(field: str, description: str) -> Message:
    violation: Message = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return violation
