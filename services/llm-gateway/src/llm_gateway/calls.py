"""A model call as an aggregate: accepted once, tried one attempt after another, ended once. Pure.

          new ──────────────────────┐ ServedFromCache: to completed, with an equal call's answer
             │ AttemptStarted 1     │ (from waiting too)
             │                      ▼
             │         AttemptFailed (billed: no | unknown)
    ┌──▶ waiting ◀───────────────┐
    │        │ AttemptStarted    │
    │        ▼                   │
    │     running ───────────────┘  (AttemptStarted: a rival beside the one that runs, at most one)
    │        ├──▶ completed   answered; its usage settles the reservation
    │        ├──▶ cancelled   nobody waited for it; what was delivered is charged as counted
    └────────┴──▶ failed      no attempt answered

Of two attempts at once the first to show content or to answer wins. The other ends in the same append as the call, so that
none is left running behind the end.

A process that dies leaves a call running. Whoever finds it ends the attempt with an unknown outcome, and the call waits
for its caller to come back. What a living process runs is left to it: the log lets only one begin an attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from synod.common.event import Event
from synod.common.values import Failure
from synod.llm_gateway.events import (
    Acceptance,
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
AT_ONCE_MAX: Final = 2
"""Attempts of one call that may run at once."""
OUTRUN: Final = Failure(reason="OUTRUN", message="another attempt of the call was faster", retryable=True)


@dataclass(frozen=True, slots=True)
class Lost:
    """How an attempt ended that did not answer."""

    started: ModelCallAttemptStarted
    failure: Failure
    billed: Billed

    @property
    def event(self) -> ModelCallAttemptFailed:
        started = self.started
        return ModelCallAttemptFailed(
            request_id=started.request_id,
            attempt=started.attempt,
            model=started.model,
            reservation_id=started.reservation_id,
            failure=self.failure,
            billed=self.billed,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """`attempt` is the number of the last attempt started, from 1; `running` those that run, in the order of their start;
    `answered` the one that the call was answered by; `reserved` the reservations of all that were ever started.
    """

    phase: Phase = "new"
    request_id: str = ""
    request_sha256: str = ""
    attempt: int = 0
    running: tuple[ModelCallAttemptStarted, ...] = ()
    answered: int = 0
    failure: Failure | None = None
    reserved: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.phase in ("completed", "failed", "cancelled")


def evolve(call: Call, event: Event) -> Call:
    """The call after an event of its stream."""
    match event:
        case ModelCallAccepted():
            return Call("waiting", event.request_id, event.request_sha256)
        case ModelCallAttemptStarted():
            call = _accepted(call, event)
            reserved = (*call.reserved, event.reservation_id)
            return _evolved(call, "running", (*call.running, event), event.attempt, reserved=reserved)
        case ModelCallAttemptFailed():
            left = tuple(each for each in call.running if each.attempt != event.attempt)
            return _evolved(call, "running" if left else "waiting", left, call.attempt)
        case ModelCallCompleted():
            return _evolved(call, "completed", (), call.attempt, answered=event.attempt)
        case ModelCallServedFromCache():
            call = _accepted(call, event)
            return _evolved(call, "completed", call.running, call.attempt, answered=call.attempt)
        case ModelCallFailed():
            return _evolved(call, "failed", (), call.attempt, failure=event.failure)
        case ModelCallCancelled():
            return _evolved(call, "cancelled", (), call.attempt)
        case _:
            return call


def _accepted(call: Call, event: ModelCallAttemptStarted | ModelCallServedFromCache) -> Call:
    """The call once it is accepted: the first event of it says so."""
    accepted = event.accepted
    return call if accepted is None else Call("waiting", event.request_id, accepted.request_sha256)


def _evolved(
    call: Call,
    phase: Phase,
    running: tuple[ModelCallAttemptStarted, ...],
    attempt: int,
    *,
    answered: int | None = None,
    failure: Failure | None = None,
    reserved: tuple[str, ...] | None = None,
) -> Call:
    """What is not named stays. By hand, since `dataclasses.replace` costs as much as all else that is done with an event."""
    return Call(
        phase,
        call.request_id,
        call.request_sha256,
        attempt,
        running,
        call.answered if answered is None else answered,
        failure or call.failure,
        call.reserved if reserved is None else reserved,
    )


def check_same(call: Call, request_id: str, request_sha256: str) -> None:
    """Raises RequestIdReused when the call was accepted with other content."""
    if call.phase != "new" and call.request_sha256 != request_sha256:
        raise RequestIdReused(request_id)


def begin(call: Call, started: ModelCallAttemptStarted, request_sha256: str) -> Sequence[Event]:
    """Starts the next attempt; the first one accepts the call. No event if the attempt was started before."""
    check_same(call, started.request_id, request_sha256)
    fits = not call.ended and not call.running and started.attempt == call.attempt + 1
    return (started,) if fits else ()


def rival(call: Call, started: ModelCallAttemptStarted) -> Sequence[Event]:
    """Starts another attempt beside the one that runs. No event if none does any more, or two do."""
    fits = 0 < len(call.running) < AT_ONCE_MAX and started.attempt == call.attempt + 1
    return (started,) if fits else ()


def serve(call: Call, served: ModelCallServedFromCache, accepted: Acceptance) -> Sequence[Event]:
    """Ends a call that no attempt runs for with another's answer; one that was not accepted yet is."""
    check_same(call, served.request_id, accepted.request_sha256)
    if call.phase == "waiting":
        return (served,)
    return (served.model_copy(update={"accepted": accepted}),) if call.phase == "new" else ()


def fail(call: Call, lost: Sequence[Lost], *, last: bool = False) -> Sequence[Event]:
    """Ends running attempts, the last of which tells why; with `last`, and if no other runs, the call.

    `lost` may tell of an attempt that was not started in the log yet, and will not be. Another's of the same number is
    none of them.
    """
    known = [each for each in lost if each.started in call.running]
    if not known:
        return ()
    events = (*_unused(call, lost), *(each.event for each in known))
    if not last or len(known) < len(call.running):
        return events
    return (*events, ModelCallFailed(request_id=call.request_id, failure=known[-1].failure))


def give_up(call: Call, failure: Failure) -> Sequence[Event]:
    """Ends a call that waits, because no further attempt may be made."""
    return (ModelCallFailed(request_id=call.request_id, failure=failure),) if call.phase == "waiting" else ()


def has_begun(call: Call, started: ModelCallAttemptStarted) -> bool:
    """Whether this very attempt is one that runs."""
    return started in call.running


def is_passed_over(call: Call, started: ModelCallAttemptStarted) -> bool:
    """Whether nobody will ever be asked under the reservation of this attempt: the call has ended, or had one of its number
    that was reserved with another.
    """
    return (call.ended or started.attempt <= call.attempt) and started.reservation_id not in call.reserved


def has_completed(call: Call, attempt: int) -> bool:
    """Whether the call was answered by this attempt."""
    return call.phase == "completed" and call.answered == attempt


def end(call: Call, outcome: ModelCallCompleted | ModelCallCancelled, lost: Sequence[Lost] = ()) -> Sequence[Event]:
    """Ends the call by the outcome of a running attempt; one that was ended meanwhile has none any more.

    What else runs ends before it: as `lost` says, which may tell what `fail` may be told, else unknown.
    """
    if not _runs(call, outcome.attempt):
        return ()
    told = {each.started.attempt: each for each in lost}
    others = [each for each in call.running if each.attempt != outcome.attempt]
    failed = [told.get(each.attempt, Lost(each, OUTRUN, "unknown")).event for each in others]
    return (*failed, *_unused(call, lost), outcome)


def _unused(call: Call, lost: Sequence[Lost]) -> Sequence[Event]:
    """Start and end of what was reserved and not needed any more."""
    new = [each for each in lost if each.started.attempt > call.attempt]
    return tuple(event for each in new for event in (each.started, each.event))


def _runs(call: Call, attempt: int) -> bool:
    return any(each.attempt == attempt for each in call.running)
