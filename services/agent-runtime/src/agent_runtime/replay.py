"""Strict replay: fold a recorded run again and check that every decision in it is the one this code would take.

It takes no port, so it cannot call anything outside; what other services answered is in the run's own events. Compared
are prompt hashes, effect ids and arguments, children and their inputs, ballots, outputs and the result's hash. The first
difference is reported by position and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from synod.agent_runtime.events import (
    BallotsCast,
    ConversationTurnLoaded,
    MemberEnded,
    MembersRestarted,
    MembersStopRequested,
    ModelCallFailed,
    ModelCallRequested,
    ModelCallSucceeded,
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunDeadlinePassed,
    RunFailed,
    RunStarted,
    StepEnded,
    StepStarted,
    ToolCallFailed,
    ToolCallIntended,
    ToolCallOutcomeUnknown,
    ToolCallSucceeded,
    VoteDecided,
    VoteOpened,
)
from synod.common.event import Event

from agent_runtime import recording, teams
from agent_runtime.conversations import ConversationState, told
from agent_runtime.decide import GIVEN_UP, next_directives
from agent_runtime.directives import AwaitMembers, CastBallots, Complete, OpenVote, StartChildren
from agent_runtime.domain import RunState, begin, evolve, outcome_of, sha256_text

OUTSIDE_CALLS: Final = 0
"""By construction: nothing in this module can reach another service."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as it stands in the log."""

    position: int
    event: Event
    at: datetime


@dataclass(frozen=True, slots=True)
class History:
    """All events of one run, in order."""

    run_id: str
    tenant: str
    actor: str
    events: tuple[Recorded, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found; `first_difference` is empty when all was equal."""

    equal: bool
    runs: int
    events: int
    recorded_sha256: str
    replayed_sha256: str
    first_difference: str
    outside_calls: int = OUTSIDE_CALLS


class _Differs(Exception):
    """The recorded event is not what the run leads to."""


def replay(run_id: str, histories: Mapping[str, History], conversation: ConversationState | None = None) -> Replayed:
    """Replay a run and every run below it. `histories` holds at least those."""
    replayer = _Replayer(histories, conversation)
    replayer.replay(run_id)
    return replayer.finding(run_id)


class _Replayer:
    def __init__(self, histories: Mapping[str, History], conversation: ConversationState | None) -> None:
        self._histories = histories
        self._conversation = conversation
        self._states: dict[str, RunState] = {}
        self._results: dict[str, str] = {}
        self._events = 0
        self._first: tuple[int, str] | None = None

    def replay(self, run_id: str) -> RunState | None:
        """The run's state at the end of its history; children are replayed when their parent asks for them."""
        if run_id in self._states:
            return self._states[run_id]
        history = self._histories.get(run_id)
        if history is None or not isinstance(history.events[0].event, RunStarted):
            self._differs(0, f"run {run_id}: its first event is missing")
            return None
        return self._fold(history, history.events[0].event)

    def finding(self, run_id: str) -> Replayed:
        state = self._states.get(run_id)
        recorded, replayed = state.result_sha256 if state else "", self._results.get(run_id, "")
        if recorded != replayed:
            self._differs(0, f"run {run_id}: result_sha256 is recorded as {recorded}, computed as {replayed}")
        first = self._first[1] if self._first else ""
        return Replayed(not first, len(self._states), self._events, recorded, replayed, first)

    def _fold(self, history: History, started: RunStarted) -> RunState:
        first = history.events[0]
        state = begin(started, history.tenant, history.actor, first.at)
        self._events += 1
        for recorded in history.events[1:]:
            self._events += 1
            self._compare(state, recorded)
            state = evolve(state, recorded.event, recorded.at)
        self._states[history.run_id] = state
        return state

    def _compare(self, state: RunState, recorded: Recorded) -> None:
        try:
            self._check(state, recorded.event, recorded.at)
        except _Differs as difference:
            where = f"run {state.id}, position {recorded.position}, {type(recorded.event).__name__}"
            self._differs(recorded.position, f"{where}: {difference}")

    def _differs(self, position: int, text: str) -> None:
        if self._first is None or 0 < position < self._first[0]:
            self._first = (position, text)

    def _check(self, state: RunState, event: Event, at: datetime) -> None:
        match event:
            case RunClaimed():
                _same("epoch", event.epoch, state.epoch + 1)
            case ModelCallSucceeded() | ModelCallFailed():
                _same("call_id", event.call_id, state.agent.pending_call)
                _same("turn", event.turn, state.agent.turn + 1)
            case ToolCallSucceeded() | ToolCallFailed() | ToolCallOutcomeUnknown():
                _check_tool_outcome(state, event)
            case ConversationTurnLoaded():
                self._check_conversation(event)
            case RunDeadlinePassed():
                _same("deadline passed", at >= state.deadline, True)
            case VoteOpened():
                _check_vote_opened(state, event)
            case BallotsCast() | VoteDecided():
                _check_proposal(state, event)
            case MemberEnded():
                self._check_member(state, event, event.child_run_id)
            case StepEnded() if self._ends_by_member(state, event):
                self._check_member(state, event, state.team.steps[event.step].children[0])
            case StepEnded() if _could_not_start(state, event):
                return
            case RunFailed() if event.failure.reason == GIVEN_UP:
                return
            case _ if isinstance(event, _DECISIONS):
                self._check_decision(state, event)

    def _check_decision(self, state: RunState, event: Event) -> None:
        """The event is among those that this code would append at this place."""
        directives = next_directives(state)
        expected = [one for directive in directives for one in recording.decisions(state, directive)]
        if event not in expected:
            raise _Differs(_difference(event, expected))
        if isinstance(event, StepStarted):
            self._check_children(state, event)
        if isinstance(event, RunCompleted):
            self._results[state.id] = _result_sha256(state)

    def _check_children(self, state: RunState, event: StepStarted) -> None:
        start = next(one for one in next_directives(state) if isinstance(one, StartChildren) and one.step == event.step)
        for child in start.children:
            replayed = self.replay(child.run_id)
            if replayed is None:
                raise _Differs(f"child run {child.run_id} has no history")
            begun = replayed.started
            _same(f"input of {child.run_id}", begun.input, event.input)
            _same(f"definition_name of {child.run_id}", begun.definition_name, child.member.partition("@")[0])
            _same(f"parent_run_id of {child.run_id}", begun.parent_run_id, state.id)
            _same(f"root_run_id of {child.run_id}", begun.root_run_id, state.started.root_run_id)
            _same(f"depth of {child.run_id}", begun.depth, state.started.depth + 1)
            _same(f"tags of {child.run_id}", begun.tags, state.started.tags)

    def _ends_by_member(self, state: RunState, event: StepEnded) -> bool:
        step = state.team.steps[event.step]
        return step.kind == "agent" and event.outcome == "completed" and bool(step.children)

    def _check_member(self, state: RunState, event: MemberEnded | StepEnded, child_run_id: str) -> None:
        child = self.replay(child_run_id)
        awaited = any(isinstance(one, AwaitMembers) and child_run_id in one.members for one in next_directives(state))
        _same(f"awaits {child_run_id}", awaited or child_run_id in state.team.steps[event.step].running, True)
        if child is None or not child.ended:
            raise _Differs(f"child run {child_run_id} has not ended")
        expected = teams.member_ended(state, event.step, child_run_id, outcome_of(child))
        if event != expected:
            raise _Differs(_difference(event, [expected]))

    def _check_conversation(self, event: ConversationTurnLoaded) -> None:
        if self._conversation is None:
            raise _Differs("the conversation is missing")
        loaded = told(self._conversation, event.until_version)
        _same("messages_sha256", event.messages_sha256, loaded.sha256)


_DECISIONS: Final = (
    ModelCallRequested,
    ToolCallIntended,
    StepStarted,
    StepEnded,
    MembersStopRequested,
    MembersRestarted,
    RunCompleted,
    RunFailed,
    RunCancelled,
)


def _result_sha256(state: RunState) -> str:
    for directive in next_directives(state):
        if isinstance(directive, Complete):
            return sha256_text(directive.output)
    return ""


def _check_tool_outcome(state: RunState, event: ToolCallSucceeded | ToolCallFailed | ToolCallOutcomeUnknown) -> None:
    for use in state.agent.uses:
        if use.intent.index == event.index and use.result is None:
            _same("effect_id", event.effect_id, use.intent.effect_id)
            _same("tool", event.tool, use.intent.tool)
            return
    raise _Differs(f"no call with index {event.index} is open")


def _check_vote_opened(state: RunState, event: VoteOpened) -> None:
    for directive in next_directives(state):
        if isinstance(directive, OpenVote) and directive.step == event.step:
            expected = recording.vote_opened(state, directive, event.proposal_id)
            if event != expected:
                raise _Differs(_difference(event, [expected]))
            return
    raise _Differs(f"step {event.step} has no vote to open")


def _check_proposal(state: RunState, event: BallotsCast | VoteDecided) -> None:
    opened = state.team.steps[event.step].vote
    _same("proposal_id", event.proposal_id, opened.proposal_id if opened else "")
    if isinstance(event, BallotsCast):
        due = any(isinstance(one, CastBallots) and one.step == event.step for one in next_directives(state))
        _same("ballots due", due, True)


def _could_not_start(state: RunState, event: StepEnded) -> bool:
    """A step whose members or whose proposal were refused outside; what was answered is the recorded failure."""
    wants = any(isinstance(one, StartChildren | OpenVote) and one.step == event.step for one in next_directives(state))
    return wants and event.failure is not None


def _same(field: str, recorded: object, computed: object) -> None:
    if recorded != computed:
        raise _Differs(f"{field} is recorded as {recorded!r}, computed as {computed!r}")


def _difference(event: Event, expected: list[Event]) -> str:
    """The first field that differs from the likeliest expectation."""
    alike = [one for one in expected if type(one) is type(event)]
    if not alike:
        names = ", ".join(type(one).__name__ for one in expected) or "no decision"
        return f"the run leads to {names} here"
    closest = min(alike, key=lambda one: len(_differing(event, one)))
    field = _differing(event, closest)[0]
    return f"{field} is recorded as {_short(event, field)}, computed as {_short(closest, field)}"


def _differing(one: Event, other: Event) -> list[str]:
    return [name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]


def _short(event: Event, field: str) -> str:
    text = repr(getattr(event, field))
    return text if len(text) <= 200 else text[:200] + "..."
