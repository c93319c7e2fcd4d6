"""The events by which a run's decisions are recorded, before they are carried out.

One function for both sides: a worker appends what it returns, a replay compares it with what was appended.
"""

from __future__ import annotations

from synod.agent_runtime.events import (
    MembersRestarted,
    MembersStopRequested,
    ModelCallRequested,
    RunCancelled,
    RunCompleted,
    RunFailed,
    StepEnded,
    StepStarted,
    VoteOpened,
)
from synod.common.event import Event

from agent_runtime.directives import (
    CallModel,
    CallTools,
    Cancel,
    Complete,
    Directive,
    EndStep,
    Fail,
    OpenVote,
    RestartMembers,
    StartChildren,
    StopMembers,
)
from agent_runtime.domain import RunState, sha256_text


def decisions(state: RunState, directive: Directive) -> tuple[Event, ...]:
    """What to append before the directive is carried out; empty for what was recorded already or only observes."""
    run_id, epoch = state.id, state.epoch
    match directive:
        case CallModel():
            return () if state.agent.pending_call == directive.call_id else (_model_call(state, directive),)
        case CallTools():
            recorded = {use.intent.index for use in state.agent.uses}
            return tuple(intent for intent in directive.intents if intent.index not in recorded)
        case StartChildren():
            return (_step_started(state, directive),)
        case StopMembers(run_ids, reason):
            return (MembersStopRequested(run_id=run_id, epoch=epoch, child_run_ids=run_ids, reason=reason),)
        case RestartMembers(failed_step, steps):
            return (MembersRestarted(run_id=run_id, epoch=epoch, failed_step=failed_step, steps=steps),)
        case EndStep():
            return (_step_ended(state, directive),)
        case Complete() | Fail() | Cancel():
            return (_run_ended(state, directive),)
        case _:
            return ()


def vote_opened(state: RunState, directive: OpenVote, proposal_id: str) -> VoteOpened:
    """Recorded after consensus answered, because the proposal's id is its to give."""
    return VoteOpened(
        run_id=state.id,
        epoch=state.epoch,
        step=directive.step,
        proposal_id=proposal_id,
        ballots=directive.ballots,
    )


def _model_call(state: RunState, directive: CallModel) -> ModelCallRequested:
    return ModelCallRequested(
        run_id=state.id,
        epoch=state.epoch,
        call_id=directive.call_id,
        turn=directive.turn,
        model=directive.model.name,
        prompt_sha256=directive.prompt.sha256,
        attempt=directive.attempt,
    )


def _step_started(state: RunState, directive: StartChildren) -> StepStarted:
    return StepStarted(
        run_id=state.id,
        epoch=state.epoch,
        step=directive.step,
        kind=directive.kind,
        child_run_ids=tuple(child.run_id for child in directive.children),
        input=directive.input,
        attempt=directive.attempt,
    )


def _step_ended(state: RunState, directive: EndStep) -> StepEnded:
    return StepEnded(
        run_id=state.id,
        epoch=state.epoch,
        step=directive.step,
        outcome="failed" if directive.failure else "completed",
        output=directive.output,
        failure=directive.failure,
        proposal_id=directive.proposal_id,
    )


def _run_ended(state: RunState, directive: Complete | Fail | Cancel) -> Event:
    started = state.started
    who = {
        "run_id": state.id,
        "root_run_id": started.root_run_id,
        "parent_run_id": started.parent_run_id,
        "step": started.step,
        "agent_id": started.agent_id,
        "definition_name": started.definition_name,
    }
    match directive:
        case Complete(output):
            return RunCompleted(**who, epoch=state.epoch, output=output, result_sha256=sha256_text(output))
        case Fail(failure):
            return RunFailed(**who, epoch=state.epoch, failure=failure)
        case Cancel(reason):
            return RunCancelled(**who, epoch=state.epoch, reason=reason)
