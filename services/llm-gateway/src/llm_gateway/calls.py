"""A model call as an aggregate: accepted once, tried one attempt after another, ended once. Pure.

      ModelCallAccepted
             │
             ▼        AttemptFailed (billed: no | unknown)
    ┌──▶ waiting ◀───────────────┐         (ServedFromCache: to completed, with an equal call's answer)
    │        │ AttemptStarted    │
    │        ▼                   │
    │     running ───────────────┘
    │        ├──▶ completed   answered; its usage settles the reservation
    │        ├──▶ cancelled   nobody waited for it; what was delivered is charged as counted
    └────────┴──▶ failed      no attempt answered

A process that dies leaves a call running. Whoever finds it ends the attempt with an unknown outcome, and the call waits
for its caller to come back. What a living process runs is left to it: the log lets only one begin an attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synod.common.event import Event
from synod.common.values import Failure
from synod.llm_gateway.events import (
    ModelCallAccepted,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallFailed,
    ModelCallServedFromCache,
)

from llm_gateway.errors import RequestIdReused

Phase = Literal["new", "waiting", "running", "completed", "failed", "cancelled"]
Billed = Literal["no", "unknown"]


@dataclass(frozen=True, slots=True)
class Call:
    """`attempt` is the number of the last attempt started, from 1; `running` that attempt, while it runs."""

    phase: Phase = "new"
    request_id: str = ""
    request_sha256: str = ""
    attempt: int = 0
    running: ModelCallAttemptStarted | None = None
    failure: Failure | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ("completed", "failed", "cancelled")


def evolve(call: Call, event: Event) -> Call:
    """The call after an event of its stream."""
    match event:
        case ModelCallAccepted():
            return Call("waiting", event.request_id, event.request_sha256)
        case ModelCallAttemptStarted():
            return replace(call, phase="running", attempt=event.attempt, running=event)
        case ModelCallAttemptFailed():
            return replace(call, phase="waiting", running=None)
        case ModelCallCompleted():
            return replace(call, phase="completed", running=None)
        case ModelCallServedFromCache():
            return replace(call, phase="completed")
        case ModelCallFailed():
            return replace(call, phase="failed", running=None, failure=event.failure)
        case ModelCallCancelled():
            return replace(call, phase="cancelled", running=None)
        case _:
            return call


def check_same(call: Call, request_id: str, request_sha256: str) -> None:
    """Raises RequestIdReused when the call was accepted with other content."""
    if call.phase != "new" and call.request_sha256 != request_sha256:
        raise RequestIdReused(request_id)


def begin(call: Call, accepted: ModelCallAccepted, started: ModelCallAttemptStarted) -> Sequence[Event]:
    """Starts the next attempt, and with the first one accepts the call. No event if the attempt was started before."""
    check_same(call, accepted.request_id, accepted.request_sha256)
    if call.ended or call.running is not None or started.attempt != call.attempt + 1:
        return ()
    return (started,) if call.phase == "waiting" else (accepted, started)


def serve(call: Call, accepted: ModelCallAccepted, served: ModelCallServedFromCache) -> Sequence[Event]:
    """Ends a call that no attempt runs for with another's answer; one that was not accepted yet is."""
    check_same(call, accepted.request_id, accepted.request_sha256)
    if call.phase == "waiting":
        return (served,)
    return (accepted, served) if call.phase == "new" else ()


def fail_attempt(call: Call, attempt: int, failure: Failure, billed: Billed, *, last: bool = False) -> Sequence[Event]:
    """Ends a running attempt, and with the last one the call."""
    running = call.running
    if running is None or running.attempt != attempt:
        return ()
    ended = ModelCallAttemptFailed(
        request_id=running.request_id,
        attempt=attempt,
        model=running.model,
        reservation_id=running.reservation_id,
        failure=failure,
        billed=billed,
    )
    return (ended, ModelCallFailed(request_id=running.request_id, failure=failure)) if last else (ended,)


def give_up(call: Call, failure: Failure) -> Sequence[Event]:
    """Ends a call that waits, because no further attempt may be made."""
    return (ModelCallFailed(request_id=call.request_id, failure=failure),) if call.phase == "waiting" else ()


def has_begun(call: Call, started: ModelCallAttemptStarted) -> bool:
    """Whether this very attempt is the one that runs."""
    return call.running == started


def has_completed(call: Call, attempt: int) -> bool:
    """Whether the call was answered by this attempt."""
    return call.phase == "completed" and call.attempt == attempt


def end(call: Call, outcome: ModelCallCompleted | ModelCallCancelled) -> Sequence[Event]:
    """Ends the call by the outcome of its running attempt; an attempt that was ended meanwhile has none any more."""
    running = call.running
    return (outcome,) if running is not None and running.attempt == outcome.attempt else ()
