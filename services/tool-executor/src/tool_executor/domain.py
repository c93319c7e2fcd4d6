"""Tool calls and grants: what may happen. Pure: everything comes as a value.

A call is requested and started in one append, before its effect; a start without an end is an open question. What may
be done about it depends on the tool's effect: a pure or idempotent call is tried again, an at-most-once call has an
unknown outcome until somebody says what happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synod.common.event import Event
from synod.common.values import Failure
from synod.tool_executor.events import (
    Artefact,
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

from tool_executor.errors import GrantUnknown, IdempotencyConflict, NotReconcilable

EVERY = "*"
"""In a grant: every agent, or every tool."""
WORKER_DIED = "its worker died while the tool ran"
EXECUTOR_STOPPED = "the executor stopped while the tool ran"
NOT_HAPPENED = Failure(
    reason="EFFECT_DID_NOT_HAPPEN",
    message="whoever reconciled the call says that its effect did not happen; call again with a new call id",
    retryable=True,
)

Status = Literal["new", "running", "succeeded", "failed", "timed_out", "cancelled", "outcome_unknown"]
Outcome = Literal["failed", "timed_out", "cancelled"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``requested`` is None before the first event; ``started`` is the latest attempt."""

    requested: ToolCallRequested | None = None
    started: ToolCallStarted | None = None
    status: Status = "new"
    result_json: str = ""
    failure: Failure | None = None
    artefacts: tuple[Artefact, ...] = ()
    duration_ms: int = 0
    reconciled: ToolCallReconciled | None = None

    @property
    def attempt(self) -> int:
        return self.started.attempt if self.started else 0

    @property
    def at_most_once(self) -> bool:
        return self.requested is not None and self.requested.effect == "at_most_once"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who is about to run a call, in which isolation."""

    worker: str
    isolation: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    result_json: str
    artefacts: tuple[Artefact, ...]
    isolation: str
    duration_ms: int
    cpu_ms: int


@dataclass(frozen=True, slots=True)
class Failed:
    """``certain``: it is known that the effect did not happen, because the tool itself said so or never ran. ``cpu_ms`` is
    None where nobody measured.
    """

    outcome: Outcome
    failure: Failure
    duration_ms: int
    certain: bool
    cpu_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt was stopped from outside, which says nothing about its effect."""

    evidence: str


End = Succeeded | Failed | Interrupted


@dataclass(frozen=True, slots=True)
class Reconcile:
    happened: bool
    result_json: str
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class Grant:
    granted: ToolGranted | None = None
    revoked: bool = False

    @property
    def stands(self) -> bool:
        return self.granted is not None and not self.revoked


# --- calls --------------------------------------------------------------------------------------------------------------


def evolve_call(state: ToolCall, event: Event) -> ToolCall:
    """The call after an event of its stream."""
    match event:
        case ToolCallRequested():
            return replace(state, requested=event)
        case ToolCallStarted():
            return replace(state, started=event, status="running")
        case ToolCallCompleted(result_json=result, artefacts=artefacts, duration_ms=duration_ms):
            return replace(state, status="succeeded", result_json=result, artefacts=artefacts, duration_ms=duration_ms)
        case ToolCallFailed(outcome=outcome, failure=failure, duration_ms=duration_ms):
            return replace(state, status=outcome, failure=failure, duration_ms=duration_ms)
        case ToolCallOutcomeUnknown(evidence=evidence):
            return replace(state, status="outcome_unknown", failure=Failure(reason="OUTCOME_UNKNOWN", message=evidence))
        case ToolCallReconciled(happened=True, result_json=result):
            return replace(state, reconciled=event, status="succeeded", result_json=result, failure=None)
        case ToolCallReconciled():
            return replace(state, reconciled=event, status="failed", failure=NOT_HAPPENED)
        case _:
            return state


def start(state: ToolCall, requested: ToolCallRequested, attempt: Attempt) -> Sequence[Event]:
    """Request and start a call; the same call again is no event. Raises IdempotencyConflict."""
    if state.requested is not None:
        check_same(state.requested, requested.tool, requested.arguments_sha256, requested.agent)
        return []
    return [requested, _started(requested.call_id, 1, attempt)]


def check_same(before: ToolCallRequested, reference: str, arguments_sha256: str, agent: str) -> None:
    """Raises IdempotencyConflict unless ``reference`` ("name" or "name@version") and the rest are those of before."""
    name, _, version = reference.partition("@")
    if name != before.tool or version not in ("", before.tool_version):
        raise IdempotencyConflict(before.call_id, f"tool ({before.tool}@{before.tool_version})")
    if arguments_sha256 != before.arguments_sha256:
        raise IdempotencyConflict(before.call_id, "set of arguments")
    if agent != before.agent:
        raise IdempotencyConflict(before.call_id, f"agent ({before.agent})")


def start_again(state: ToolCall, lost_attempt: int, attempt: Attempt) -> Sequence[Event]:
    """Take over a call whose worker has died: another attempt, if the effect allows one."""
    if state.requested is None or not _runs(state, lost_attempt):
        return []
    if state.at_most_once:
        return give_up(state, lost_attempt, WORKER_DIED)
    return [_started(state.requested.call_id, lost_attempt + 1, attempt)]


def give_up(state: ToolCall, attempt: int, evidence: str) -> Sequence[Event]:
    """An attempt has ended without a result. Of an at-most-once call the outcome is unknown; others stay open."""
    if state.requested is None or not _runs(state, attempt) or not state.at_most_once:
        return []
    return [_unknown(state.requested, attempt, evidence)]


def finish(state: ToolCall, attempt: int, end: End) -> Sequence[Event]:
    """Record the end of an attempt; no event if the call has ended otherwise meanwhile."""
    requested = state.requested
    if requested is None or not _runs(state, attempt):
        return []
    match end:
        case Succeeded():
            return [_completed(requested, attempt, end)]
        case Failed(certain=False) if state.at_most_once:
            evidence = f"{end.failure.reason}: {end.failure.message}"
            return [_unknown(requested, attempt, evidence)]
        case Failed():
            return [_failed(requested, attempt, end)]
        case Interrupted():
            return give_up(state, attempt, end.evidence)


def cancel(state: ToolCall, by: str, duration_ms: int) -> Sequence[Event]:
    """Cancel a call that runs; of a started at-most-once call the outcome is unknown. What has ended stays."""
    if state.requested is None or state.status != "running":
        return []
    if state.at_most_once:
        return [_unknown(state.requested, state.attempt, f"cancelled by {by} while it ran")]
    failure = Failure(reason="CANCELLED", message=f"cancelled by {by}")
    return [_failed(state.requested, state.attempt, Failed("cancelled", failure, duration_ms, certain=False))]


def reconcile(state: ToolCall, command: Reconcile) -> Sequence[Event]:
    """Say what happened. The same word again is no event. Raises NotReconcilable."""
    assert state.requested is not None
    call_id = state.requested.call_id
    said = ToolCallReconciled(
        call_id=call_id,
        happened=command.happened,
        result_json=command.result_json,
        reason=command.reason,
        by=command.by,
        cost_nano_usd=state.requested.price_nano_usd if command.happened else 0,
    )
    if state.reconciled == said:
        return []
    if state.status != "outcome_unknown":
        raise NotReconcilable(call_id, state.status)
    return [said]


def _runs(state: ToolCall, attempt: int) -> bool:
    return state.status == "running" and state.attempt == attempt


def _started(call_id: str, number: int, attempt: Attempt) -> ToolCallStarted:
    return ToolCallStarted(call_id=call_id, attempt=number, worker=attempt.worker, isolation=attempt.isolation)


def _completed(requested: ToolCallRequested, attempt: int, end: Succeeded) -> ToolCallCompleted:
    return ToolCallCompleted(
        call_id=requested.call_id,
        attempt=attempt,
        tool=requested.tool,
        result_json=end.result_json,
        artefacts=end.artefacts,
        isolation=end.isolation,
        duration_ms=end.duration_ms,
        cpu_ms=end.cpu_ms,
        attribution=requested.attribution,
        cost_nano_usd=requested.price_nano_usd,
    )


def _failed(requested: ToolCallRequested, attempt: int, end: Failed) -> ToolCallFailed:
    return ToolCallFailed(
        call_id=requested.call_id,
        attempt=attempt,
        tool=requested.tool,
        outcome=end.outcome,
        failure=end.failure,
        duration_ms=end.duration_ms,
        cpu_ms=end.cpu_ms,
    )


def _unknown(requested: ToolCallRequested, attempt: int, evidence: str) -> ToolCallOutcomeUnknown:
    return ToolCallOutcomeUnknown(call_id=requested.call_id, attempt=attempt, tool=requested.tool, evidence=evidence)


# --- grants and the catalogue -------------------------------------------------------------------------------------------


def evolve_grant(state: Grant, event: Event) -> Grant:
    match event:
        case ToolGranted():
            return Grant(event)
        case GrantRevoked():
            return replace(state, revoked=True)
        case _:
            return state


def grant(state: Grant, granted: ToolGranted) -> Sequence[Event]:
    return [] if state.stands else [granted]


def revoke(state: Grant, grant_id: str, by: str) -> Sequence[Event]:
    """Raises GrantUnknown; a grant that is revoked already stays so."""
    if state.granted is None:
        raise GrantUnknown(grant_id)
    return [GrantRevoked(grant_id=grant_id, revoked_by=by)] if state.stands else []


def evolve_tool(state: ToolRegistered | None, event: Event) -> ToolRegistered | None:
    return event if isinstance(event, ToolRegistered) else state


def register(state: ToolRegistered | None, manifest: ToolRegistered) -> Sequence[Event]:
    """Register a version of a tool, once for each digest that it has had."""
    return [] if state == manifest else [manifest]
