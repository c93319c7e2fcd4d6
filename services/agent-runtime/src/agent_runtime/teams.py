"""Teams: which steps are ready, what a vote needs, what supervision does. Pure, like the behaviours.

The patterns sequence and parallel, and `after` in any step, all come down to one graph: a step starts when the steps
it waits for have completed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Literal

from synod.agent_runtime.events import Ballot, MemberEnded, StepEnded, VoteDecided, VoteOpened
from synod.common.definitions import AgentStep, VoteStep, predecessors
from synod.common.event import Event
from synod.common.ids import derived_id
from synod.common.values import Failure

from agent_runtime.ballots import ballot
from agent_runtime.directives import (
    AwaitDecision,
    AwaitMembers,
    Cancel,
    CastBallots,
    ChildStart,
    Complete,
    Directive,
    EndStep,
    Fail,
    OpenVote,
    RestartMembers,
    StartChildren,
    StopMembers,
)
from agent_runtime.domain import DEPTH_MAX, MemberOutcome, RunState, StepState, child_run_id
from agent_runtime.errors import HistoryInvalid, TemplateInvalid
from agent_runtime.templates import render

ESCALATED: Final = frozenset({"BUDGET_EXHAUSTED", "BUDGET_SUSPENDED", "TOOL_OUTCOME_UNKNOWN"})
"""Failures of a member that keep their reason in the team: the remedy lies outside, a restart would not help."""
NEVER_RESTARTED: Final = ESCALATED | {
    "CANCELLED",
    "UNKNOWN_MODEL",
    "UNKNOWN_TOOL",
    "DEFINITION_NOT_FOUND",
    "DEPTH_LIMIT",
    "NOT_AGREED",
}
ABSTENTION_GRACE_S: Final = 10
"""Deadline of a proposal when a voter abstained: all ballots are in, nobody else will come."""
BODY_CHARS_MAX: Final = 16_000
"""Of the task, as voters on a proposal may read it: consensus keeps 64 KiB of UTF-8."""


def next_directives(state: RunState, ending: Cancel | Fail | None) -> tuple[Directive, ...]:
    end = ending or _failed(state)
    if end is not None:
        return _wind_up(state, end)
    if (failing := _failing_step(state)) is not None:
        return _supervise(state, failing)
    if done := _completed(state):
        return (done,)
    moves = tuple(move for name in state.team.steps for move in _moves(state, name))
    return (*moves, *_await_members(state, tuple(state.team.steps)))


# --- the end ------------------------------------------------------------------------------------------------------------


def _failed(state: RunState) -> Fail | None:
    for name, step in state.team.steps.items():
        if step.status == "failed" and step.failure is not None:
            return Fail(_team_failure(state, name, step.failure))
    return None


def _team_failure(state: RunState, name: str, failure: Failure) -> Failure:
    spec = _spec(state, name)
    if isinstance(spec, VoteStep) or failure.reason in ("TEMPLATE_INVALID", "DEFINITION_NOT_FOUND", "DEPTH_LIMIT"):
        return Failure(reason=failure.reason, message=f"step {name}: {failure.message}")
    reason = failure.reason if failure.reason in ESCALATED else "MEMBER_FAILED"
    message = f"step {name}, agent {spec.agent}: {failure.reason}: {failure.message}"
    return Failure(reason=reason, message=message)


def _wind_up(state: RunState, end: Cancel | Fail) -> tuple[Directive, ...]:
    """No run below may outlive the team: stop them, wait for them, then end."""
    reason = end.reason if isinstance(end, Cancel) else end.failure.message
    return _stop(state, tuple(state.team.steps), reason) or (end,)


def _stop(state: RunState, steps: tuple[str, ...], reason: str) -> tuple[Directive, ...]:
    """What it takes until none of these steps has a run in progress; empty when that is so."""
    running = tuple(run_id for name in steps for run_id in state.team.steps[name].running)
    fresh = tuple(run_id for run_id in running if run_id not in state.team.stopping)
    stop = (StopMembers(fresh, reason),) if fresh else ()
    return (*stop, *_await_members(state, steps))


def _await_members(state: RunState, steps: tuple[str, ...]) -> tuple[Directive, ...]:
    members = {run_id: name for name in steps for run_id in state.team.steps[name].running}
    return (AwaitMembers(members),) if members else ()


def _completed(state: RunState) -> Complete | None:
    if any(step.status != "completed" for step in state.team.steps.values()):
        return None
    return Complete(_output(state))


def _output(state: RunState) -> str:
    spec, steps = state.team_spec, state.team.steps
    if spec.aggregator is not None:
        return steps[spec.aggregator.id].output
    if spec.pattern == "sequence":
        return steps[spec.steps[-1].id].output
    return json.dumps({name: step.output for name, step in steps.items()}, ensure_ascii=False)


# --- supervision --------------------------------------------------------------------------------------------------------


def _failing_step(state: RunState) -> str | None:
    """The first agent step whose run ended without success and has not been answered for."""
    for name, step in state.team.steps.items():
        if step.status == "running" and step.kind == "agent" and _is_failure(state, step):
            return name
    return None


def _is_failure(state: RunState, step: StepState) -> bool:
    child = step.children[0]
    outcome = step.outcomes.get(child)
    return outcome is not None and outcome.outcome != "completed" and child not in state.team.stopping


def _supervise(state: RunState, name: str) -> tuple[Directive, ...]:
    failure = _failure_of(state.team.steps[name])
    if not _may_restart(state, name, failure):
        return (EndStep(name, failure=failure),)
    affected = _affected(state, name)
    reason = f"step {name} failed and the team restarts it: {failure.message}"
    return _stop(state, affected, reason) or (RestartMembers(name, affected),)


def _failure_of(step: StepState) -> Failure:
    outcome = step.outcomes[step.children[0]]
    return outcome.failure or Failure(reason="CANCELLED", message="the run was cancelled")


def _may_restart(state: RunState, name: str, failure: Failure) -> bool:
    supervision = state.team_spec.supervision
    at = state.team.steps[name].changed_at
    if failure.reason in NEVER_RESTARTED or at is None:
        return False
    since: datetime = at - timedelta(seconds=supervision.within_s)
    return sum(restart > since for restart in state.team.restarts) < supervision.max_restarts


def _affected(state: RunState, name: str) -> tuple[str, ...]:
    """Steps that have begun and start afresh with the failed one."""
    begun = tuple(other for other, step in state.team.steps.items() if step.status != "pending")
    match state.team_spec.supervision.strategy:
        case "one_for_one":
            return (name,)
        case "rest_for_one":
            return begun[begun.index(name) :]
        case "one_for_all":
            return begun


# --- one step -----------------------------------------------------------------------------------------------------------


def _moves(state: RunState, name: str) -> Iterator[Directive]:
    step = state.team.steps[name]
    if step.status == "pending" and _is_ready(state, name):
        yield _start(state, name)
    elif step.status == "running" and step.kind == "vote" and not step.running:
        yield _open_vote(state, name)
    elif step.status == "voting":
        yield _continue_vote(state, name)


def _is_ready(state: RunState, name: str) -> bool:
    waits_for = predecessors(state.team_spec)[name]
    return all(state.team.steps[other].status == "completed" for other in waits_for)


def _start(state: RunState, name: str) -> Directive:
    if state.started.depth >= DEPTH_MAX:
        message = f"teams may be nested {DEPTH_MAX} deep; this one stands at depth {state.started.depth}"
        return EndStep(name, failure=Failure(reason="DEPTH_LIMIT", message=message))
    spec, attempt = _spec(state, name), state.team.steps[name].attempt
    try:
        task = render(spec.task, state.started.input, _outputs(state))
    except TemplateInvalid as error:
        return EndStep(name, failure=Failure(reason="TEMPLATE_INVALID", message=str(error)))
    kind: Literal["agent", "vote"] = "vote" if isinstance(spec, VoteStep) else "agent"
    children = tuple(ChildStart(child_run_id(state.id, name, member, attempt), member) for member in members(spec))
    return StartChildren(name, kind, attempt, task, children)


def members(spec: AgentStep | VoteStep) -> tuple[str, ...]:
    """Names of the agents that a step starts, in the order of its runs."""
    return spec.vote.voters if isinstance(spec, VoteStep) else (spec.agent,)


def _outputs(state: RunState) -> dict[str, str]:
    return {name: step.output for name, step in state.team.steps.items() if step.status == "completed"}


def _spec(state: RunState, name: str) -> AgentStep | VoteStep:
    spec = state.team_spec
    if spec.aggregator is not None and spec.aggregator.id == name:
        return spec.aggregator
    for step in spec.steps:
        if step.id == name:
            return step
    raise HistoryInvalid(state.id, f"the team has no step '{name}'")


def _vote_spec(state: RunState, name: str) -> VoteStep:
    spec = _spec(state, name)
    if not isinstance(spec, VoteStep):
        raise HistoryInvalid(state.id, f"step '{name}' is no vote")
    return spec


# --- votes --------------------------------------------------------------------------------------------------------------


def _open_vote(state: RunState, name: str) -> OpenVote:
    vote, step = _vote_spec(state, name).vote, state.team.steps[name]
    ballots = tuple(
        ballot(voter, run_id, vote.options, step.outcomes[run_id])
        for voter, run_id in zip(vote.voters, step.children, strict=True)
    )
    return OpenVote(
        step=name,
        request_id=derived_id("prop", state.id, name, str(step.attempt)),
        title=f"{state.started.definition_name}: {name}",
        body=step.input[:BODY_CHARS_MAX],
        options=vote.options,
        voters=vote.voters,
        veto=vote.veto,
        rule=vote.rule,
        threshold=vote.threshold,
        deadline_s=_deadline_s(vote.deadline_s, ballots),
        ballots=ballots,
    )


def _deadline_s(deadline_s: int, ballots: tuple[Ballot, ...]) -> int:
    return deadline_s if all(one.option for one in ballots) else min(deadline_s, ABSTENTION_GRACE_S)


def _continue_vote(state: RunState, name: str) -> Directive:
    step = state.team.steps[name]
    if step.vote is None:
        raise HistoryInvalid(state.id, f"step '{name}' votes without a proposal")
    if not step.cast:
        return CastBallots(name, step.vote.proposal_id, tuple(one for one in step.vote.ballots if one.option))
    if step.decision is None:
        return AwaitDecision(name, step.vote.proposal_id)
    return _close_vote(state, name, step.vote, step.decision)


def _close_vote(state: RunState, name: str, opened: VoteOpened, decision: VoteDecided) -> EndStep:
    spec = _vote_spec(state, name).vote
    output = vote_output(opened, decision)
    if spec.required and decision.outcome != spec.options[0]:
        got = f"decided '{decision.outcome}'" if decision.outcome else "decided nothing"
        message = f"the voters {got} where '{spec.options[0]}' was required: {decision.explanation}"
        return EndStep(name, output, Failure(reason="NOT_AGREED", message=message), opened.proposal_id)
    return EndStep(name, output, None, opened.proposal_id)


def vote_output(opened: VoteOpened, decision: VoteDecided) -> str:
    """JSON of the outcome, the tally and every ballot with its reason, dissent included."""
    content = {
        "outcome": decision.outcome,
        "tally": {tally.option: tally.weight for tally in decision.tally},
        "explanation": decision.explanation,
        "ballots": [{"voter": one.voter, "vote": one.option, "reason": one.reason} for one in opened.ballots],
    }
    return json.dumps(content, ensure_ascii=False)


# --- what a team records about a run below it ---------------------------------------------------------------------------


def member_ended(state: RunState, name: str, run_id: str, outcome: MemberOutcome) -> Event:
    """An agent step that succeeded ends at once; everything else is for the team to decide on."""
    if state.team.steps[name].kind == "agent" and outcome.outcome == "completed":
        return StepEnded(run_id=state.id, epoch=state.epoch, step=name, outcome="completed", output=outcome.output)
    return MemberEnded(
        run_id=state.id,
        epoch=state.epoch,
        step=name,
        child_run_id=run_id,
        outcome=outcome.outcome,
        output=outcome.output,
        failure=outcome.failure,
    )
