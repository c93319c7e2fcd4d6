"""The heart: what a run wants done next, as a function of its folded state and of nothing else."""

from __future__ import annotations

from typing import Final

from synod.common.values import Failure

from agent_runtime import teams
from agent_runtime.behaviours import BEHAVIOURS
from agent_runtime.directives import Cancel, Directive, Fail, LoadConversation
from agent_runtime.domain import AgentWork, RunState

MODEL_ATTEMPTS_MAX: Final = 4
"""Calls of one turn before a failure that might pass is taken as final."""

ERASED_MEANWHILE: Final = Failure(
    reason="RUN_ERASED", message="what was said in this run was erased with the data of whom it was for"
)

GIVEN_UP: Final = "INTERNAL"
"""Reason of a run that its workers could not carry on with: a fault of this service, not a decision of the run."""


def next_directives(state: RunState) -> tuple[Directive, ...]:
    """Empty when the run has ended. Several directives do not depend on each other."""
    if state.ended:
        return ()
    if isinstance(state.work, AgentWork):
        return _next_of_agent(state, state.work)
    return teams.next_directives(state, ending(state))


def ending(state: RunState) -> Cancel | Fail | None:
    """Why the run must end now, whatever else it might do."""
    if state.cancel_reason is not None:
        return Cancel(state.cancel_reason)
    if state.deadline_passed:
        return Fail(_timed_out(state))
    if state.erased:
        return Fail(ERASED_MEANWHILE)
    return None


def _next_of_agent(state: RunState, work: AgentWork) -> tuple[Directive, ...]:
    if (end := ending(state)) is not None:
        return (end,)
    if work.model_failure is not None and (failed := _given_up(work, work.model_failure)):
        return (failed,)
    if state.started.conversation_id and work.history is None:
        return (LoadConversation(state.started.conversation_id),)
    return BEHAVIOURS[state.agent_spec.behaviour](state)


def _given_up(work: AgentWork, failure: Failure) -> Fail | None:
    if failure.retryable and work.attempt <= MODEL_ATTEMPTS_MAX:
        return None
    return Fail(failure)


def _timed_out(state: RunState) -> Failure:
    seconds = state.definition.spec.timeout_s
    message = (
        f"{state.started.definition_name} did not finish within {seconds} s; raise spec.timeout_s, or give it a "
        "smaller task"
    )
    return Failure(reason="TIMEOUT", message=message)
