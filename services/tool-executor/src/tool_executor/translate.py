"""Between protobuf and the domain: the only file that knows both."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from servicekit.errors import (
    AlreadyExists,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from servicekit.tags import tags_of, values_of
from synod.common.values import Attribution
from synod.cost_ledger.v1 import cost_ledger_pb2
from synod.tool_executor.events import EffectClass, ToolRegistered
from synod.tool_executor.v1 import tool_executor_pb2 as pb

from tool_executor import arguments, errors
from tool_executor.application import Answer, Order
from tool_executor.domain import Reconcile, Status, ToolCall
from tool_executor.manifests import Catalogue
from tool_executor.projections import GrantRow
from tool_executor.spending import Reservation
from tool_executor.workspaces import File

NAME_CHARACTERS_MAX: Final = 128
REASON_CHARACTERS_MAX: Final = 2_000

_EFFECTS: Final[Mapping[EffectClass, "pb.EffectClass.ValueType"]] = {
    "pure": pb.EFFECT_CLASS_PURE,
    "idempotent": pb.EFFECT_CLASS_IDEMPOTENT,
    "at_most_once": pb.EFFECT_CLASS_AT_MOST_ONCE,
}
_STATES: Final[Mapping[Status, "pb.ToolCallState.ValueType"]] = {
    "new": pb.TOOL_CALL_STATE_UNSPECIFIED,
    "running": pb.TOOL_CALL_STATE_RUNNING,
    "succeeded": pb.TOOL_CALL_STATE_SUCCEEDED,
    "failed": pb.TOOL_CALL_STATE_FAILED,
    "timed_out": pb.TOOL_CALL_STATE_TIMED_OUT,
    "cancelled": pb.TOOL_CALL_STATE_CANCELLED,
    "outcome_unknown": pb.TOOL_CALL_STATE_OUTCOME_UNKNOWN,
}


# --- in -----------------------------------------------------------------------------------------------------------------


def to_order(request: pb.ExecuteRequest, tenant: str, time_left_s: float | None) -> Order:
    return Order(
        call_id=name("call_id", request.call_id),
        tool=name("tool", request.tool),
        arguments_json=request.arguments_json,
        agent=name("agent", request.agent),
        workspace_id=name("workspace_id", request.workspace_id),
        attribution=_attribution(request.attribution, tenant, request.agent),
        time_left_s=time_left_s,
    )


def to_reconcile(request: pb.ReconcileToolCallRequest, by: str) -> Reconcile:
    if not request.reason.strip() or len(request.reason) > REASON_CHARACTERS_MAX:
        problem = f"say in 1 to {REASON_CHARACTERS_MAX} characters how you know what happened"
        raise InvalidArgument("reason", request.reason, problem)
    result_json = arguments.json_value("result_json", request.result_json or "null") if request.happened else ""
    return Reconcile(request.happened, result_json, request.reason, by)


def name(field: str, value: str) -> str:
    """Raises InvalidArgument unless ``value`` is a short printable text."""
    if not 0 < len(value) <= NAME_CHARACTERS_MAX or not value.isprintable():
        raise InvalidArgument(field, value, f"must be 1 to {NAME_CHARACTERS_MAX} printable characters")
    return value


def _attribution(message: cost_ledger_pb2.Attribution, tenant: str, agent: str) -> Attribution:
    """Whose the cost is, as the caller says, but for the tenant, which his token says."""
    fields = Attribution.model_fields.keys() - {"tags"}
    given = {field.name: value for field, value in message.ListFields() if field.name in fields}
    for field, value in given.items():
        name(f"attribution.{field}", value)
    tags = tags_of("attribution.tags", message.tags)
    return Attribution.model_validate({"agent": agent} | given | {"tenant_id": tenant, "tags": tags})


# --- out ----------------------------------------------------------------------------------------------------------------


def from_answer(answer: Answer) -> pb.ToolCall:
    message = from_call(answer.call)
    message.replayed = answer.replayed
    return message


def from_call(call: ToolCall) -> pb.ToolCall:
    assert call.requested is not None
    failure = call.failure
    return pb.ToolCall(
        call_id=call.requested.call_id,
        tool=call.requested.tool,
        tool_version=call.requested.tool_version,
        state=_STATES[call.status],
        result_json=call.result_json,
        failure=pb.ToolFailure(kind=failure.reason, message=failure.message, retryable=failure.retryable)
        if failure
        else None,
        artefacts=[pb.WorkspaceFile(**artefact.model_dump()) for artefact in call.artefacts],
        isolation=call.started.isolation if call.started else "",
        took=_duration_ms(call.duration_ms),
        attempt=call.attempt,
    )


def from_manifest(manifest: ToolRegistered) -> pb.Tool:
    return pb.Tool(
        name=manifest.name,
        version=manifest.tool_version,
        digest=manifest.digest,
        description=manifest.description,
        parameters_json=manifest.parameters_json,
        result_json=manifest.result_json,
        effect=_EFFECTS[manifest.effect],
        min_level=manifest.min_level,
        timeout=_duration_ms(manifest.timeout_ms),
    )


def from_catalogue(catalogue: Catalogue) -> pb.ListToolsResponse:
    return pb.ListToolsResponse(
        tools=[from_manifest(manifest) for manifest in catalogue.manifests],
        best_level=catalogue.capabilities.best.name,
        level_reason=catalogue.level_reason,
    )


def from_grant(row: GrantRow) -> pb.Grant:
    return pb.Grant(
        id=row.id,
        tenant_id=row.tenant,
        agent=row.agent,
        tool=row.tool,
        granted_at=_timestamp(row.granted_at),
        granted_by=row.granted_by,
        revoked_at=_timestamp(row.revoked_at) if row.revoked_at else None,
    )


def from_reservation(reservation: Reservation) -> cost_ledger_pb2.ReserveRequest:
    bounds = {"tool_ms": reservation.tool_ms_max, "cpu_ms": reservation.cpu_ms_max}
    return cost_ledger_pb2.ReserveRequest(
        reservation_id=reservation.call_id,
        attribution=_from_attribution(reservation.attribution),
        upper_bound_nano_usd=reservation.nano_usd_max,
        quantities=[cost_ledger_pb2.Quantity(unit=unit, quantity=most) for unit, most in bounds.items() if most],
        ttl=_duration_ms(round(reservation.ttl.total_seconds() * 1000)),
    )


def _from_attribution(attribution: Attribution) -> cost_ledger_pb2.Attribution:
    return cost_ledger_pb2.Attribution(**attribution.model_dump(exclude={"tags"}), tags=values_of(attribution.tags))


def from_file(file: File) -> pb.WorkspaceFile:
    return pb.WorkspaceFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256, media_type=file.media_type)


def _duration_ms(milliseconds: int) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(milliseconds)
    return duration


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


# --- errors -------------------------------------------------------------------------------------------------------------


class ArgumentsRefused(InvalidArgument):
    """One violation for each problem, so that a program can point at each."""

    def __init__(self, error: errors.ArgumentsInvalid) -> None:
        super().__init__(arguments.FIELD, error.tool, error.message, reason="INVALID_ARGUMENTS")
        self.message = f"{arguments.FIELD}: {error.message}"
        self._problems = error.problems

    def details(self) -> list[Message]:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=each.path, description=each.text)
            for each in self._problems
        ]
        return [error_details_pb2.BadRequest(field_violations=violations)]


def _tool_error(error: errors.ToolError) -> ServiceError:
    """What the files of a workspace refuse."""
    if error.kind == "NOT_FOUND":
        return NotFound("file", "", remedy=error.message)
    return InvalidArgument("path", "", error.message, reason=error.kind)


def _not_granted(error: errors.ToolNotGranted) -> ServiceError:
    refusal = PermissionDenied(f"tool {error.tool}", error.agent, message=error.message, reason="TOOL_NOT_GRANTED")
    refusal.metadata |= {"agent": error.agent, "tool": error.tool}
    return refusal


def _sandbox_unavailable(error: errors.SandboxUnavailable) -> ServiceError:
    metadata = {"required": error.required, "best": error.best, "fix": error.fix}
    return FailedPrecondition(error.message, reason=error.kind, metadata=metadata)


def _ledger_answer(error: errors.LedgerRefused) -> ServiceError:
    answer = error.answer
    return answer if isinstance(answer, ServiceError) else FailedPrecondition(error.message, reason="LEDGER_REFUSED")


ERRORS: Final = (
    ErrorMap()
    .add(errors.FieldInvalid, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(errors.ArgumentsInvalid, ArgumentsRefused)
    .add(
        errors.ToolUnknown,
        lambda error: NotFound("tool", error.reference, remedy=error.message.partition("; ")[2], reason="UNKNOWN_TOOL"),
    )
    .add(errors.ToolNotGranted, _not_granted)
    .add(
        errors.TooManyCalls,
        lambda error: ResourceExhausted(error.message, error.retry_after_s, reason="TOO_MANY_CALLS"),
    )
    .add(
        errors.IdempotencyConflict,
        lambda error: AlreadyExists("tool call", error.call_id, remedy=error.message, reason="IDEMPOTENCY_CONFLICT"),
    )
    .add(errors.CallUnknown, lambda error: NotFound("tool call", error.call_id, remedy="it is known from Execute on"))
    .add(errors.NotReconcilable, lambda error: FailedPrecondition(error.message, reason="OUTCOME_KNOWN"))
    .add(errors.LedgerRefused, _ledger_answer)
    .add(errors.LedgerUnavailable, lambda error: Unavailable(error.message, 1.0, reason="LEDGER_UNAVAILABLE"))
    .add(errors.GrantUnknown, lambda error: NotFound("grant", error.grant_id, remedy="see ListGrants"))
    .add(errors.SandboxUnavailable, _sandbox_unavailable)
    .add(errors.CallCancelled, lambda error: Unavailable(error.message, 1.0, reason="STOPPING"))
    .add(errors.ToolError, _tool_error)
)
