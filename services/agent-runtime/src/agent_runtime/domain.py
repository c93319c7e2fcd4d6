"""What a run is: the fold of its events. No clock, no ids drawn, no I/O; the same events give the same state anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal

from pydantic import TypeAdapter
from synod.agent_runtime.events import (
    BallotsCast,
    ConversationTurnLoaded,
    MemberEnded,
    MembersRestarted,
    MembersStopRequested,
    Message,
    ModelCallFailed,
    ModelCallRequested,
    ModelCallSucceeded,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunDeadlinePassed,
    RunFailed,
    RunStarted,
    StepEnded,
    StepStarted,
    TextPart,
    ToolCallFailed,
    ToolCallIntended,
    ToolCallOutcomeUnknown,
    ToolCallPart,
    ToolCallSucceeded,
    ToolResultPart,
    ToolSpec,
    ToolsResolved,
    VoteDecided,
    VoteOpened,
)
from synod.common.definitions import AgentDefinition, AgentSpec, AnyDefinition, TeamDefinition, TeamSpec
from synod.common.event import Event
from synod.common.ids import derived_id
from synod.common.personal import ERASED
from synod.common.values import Failure

from agent_runtime.errors import HistoryInvalid

DEPTH_MAX: Final = 5
"""Levels of teams below the root, so that a team that names itself ends."""

RunStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
Outcome = Literal["completed", "failed", "cancelled"]
StepStatus = Literal["pending", "running", "voting", "completed", "failed"]
ENDED: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})


# --- ids and hashes: functions of what they name, so that a second worker arrives at the same ones ---------------------


def sha256_text(text: str) -> str:
    """SHA-256 of UTF-8 text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def model_call_id(run_id: str, turn: int, attempt: int) -> str:
    return derived_id("call", run_id, str(turn), str(attempt))


def effect_id(run_id: str, turn: int, index: int, tool: str, arguments_sha256: str) -> str:
    """Idempotency key of one tool call. The model's own call id has no part in it: models invent and repeat them."""
    return derived_id("eff", run_id, str(turn), str(index), tool, arguments_sha256)


def child_run_id(parent_run_id: str, step: str, member: str, attempt: int) -> str:
    return derived_id("run", parent_run_id, step, member, str(attempt))


def canonical_arguments(arguments_json: str) -> str:
    """One text for one meaning. What is no JSON stays as it is, for the tool's schema to refuse."""
    try:
        parsed = json.loads(arguments_json or "{}")
    except ValueError:
        return arguments_json
    return json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def chained(sha256: str, message: Message) -> str:
    """The hash of a transcript that grew by one message: a prompt is hashed in the time of what is new in it."""
    return sha256_text(sha256 + message.model_dump_json())


def transcript_sha256(messages: tuple[Message, ...]) -> str:
    sha256 = ""
    for message in messages:
        sha256 = chained(sha256, message)
    return sha256


_definitions: TypeAdapter[AgentDefinition | TeamDefinition] = TypeAdapter(AnyDefinition)


@lru_cache(maxsize=1024)
def parse_definition(spec_json: str) -> AgentDefinition | TeamDefinition:
    """The pinned definition; cached because every fold of every run of an agent asks for the same one."""
    return _definitions.validate_json(spec_json)


# --- state --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """The turns before this one, by reference: a version of the conversation's stream and the hash of its messages."""

    conversation_id: str
    until_version: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """One tool call of the current turn; without a result its outcome is not known yet."""

    intent: ToolCallIntended
    result: ToolResultPart | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class AgentWork:
    """How far one agent has come."""

    transcript: tuple[Message, ...]
    transcript_sha256: str
    history: History | None = None
    tools: tuple[ToolSpec, ...] | None = None
    tools_problem: str = ""
    turn: int = 0
    """Answers of the model so far."""
    attempt: int = 1
    """Number of the next call within its turn."""
    pending_call: str = ""
    """The call that was intended and has no outcome yet."""
    model_failure: Failure | None = None
    answer: Message | None = None
    """The latest answer, until every tool it asks for has its result."""
    finish_reason: str = ""
    uses: tuple[ToolUse, ...] = ()
    model_calls: int = 0
    tool_calls: int = 0
    token_messages: int = 0


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """How a run below this one ended."""

    outcome: Outcome
    output: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class StepState:
    """How far one step of a team has come. `changed_at` is when its last event occurred."""

    status: StepStatus = "pending"
    attempt: int = 1
    kind: Literal["agent", "vote"] = "agent"
    children: tuple[str, ...] = ()
    ended: Mapping[str, MemberOutcome] | None = None
    input: str = ""
    output: str = ""
    failure: Failure | None = None
    vote: VoteOpened | None = None
    cast: bool = False
    decision: VoteDecided | None = None
    changed_at: datetime | None = None

    @property
    def outcomes(self) -> Mapping[str, MemberOutcome]:
        return self.ended or {}

    @property
    def running(self) -> tuple[str, ...]:
        """Runs of this step that have not ended, in order."""
        if self.status not in ("running", "failed"):
            return ()
        return tuple(child for child in self.children if child not in self.outcomes)


@dataclass(frozen=True, slots=True)
class TeamWork:
    """How far a team has come."""

    steps: Mapping[str, StepState]
    restarts: tuple[datetime, ...] = ()
    stopping: frozenset[str] = frozenset()
    """Runs that were asked to cancel."""
    child_run_ids: tuple[str, ...] = ()
    proposal_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunState:
    """A run. `work` is AgentWork or TeamWork after the kind of its definition."""

    started: RunStarted
    tenant: str
    actor: str
    started_at: datetime
    definition: AgentDefinition | TeamDefinition
    work: AgentWork | TeamWork
    status: RunStatus = "queued"
    epoch: int = 0
    worker: str = ""
    cancel_reason: str | None = None
    deadline_passed: bool = False
    output: str = ""
    failure: Failure | None = None
    result_sha256: str = ""
    ended_at: datetime | None = None
    traceparent: str = ""
    """Of the request that started the run: what is done for it belongs to that trace."""

    @property
    def id(self) -> str:
        return self.started.run_id

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def erased(self) -> bool:
        """Whether the person in whose name it runs was erased, and with them all that was said in it."""
        return self.started.input == ERASED

    @property
    def deadline(self) -> datetime:
        return self.started_at + timedelta(seconds=self.definition.spec.timeout_s)

    @property
    def agent(self) -> AgentWork:
        if not isinstance(self.work, AgentWork):
            raise HistoryInvalid(self.id, "an event of an agent in the run of a team")
        return self.work

    @property
    def team(self) -> TeamWork:
        if not isinstance(self.work, TeamWork):
            raise HistoryInvalid(self.id, "an event of a team in the run of an agent")
        return self.work

    @property
    def agent_spec(self) -> AgentSpec:
        if not isinstance(self.definition, AgentDefinition):
            raise HistoryInvalid(self.id, "a team has no agent's specification")
        return self.definition.spec

    @property
    def team_spec(self) -> TeamSpec:
        if not isinstance(self.definition, TeamDefinition):
            raise HistoryInvalid(self.id, "an agent has no team's specification")
        return self.definition.spec


def outcome_of(state: RunState) -> MemberOutcome:
    """How an ended run looks from the run above it."""
    match state.status:
        case "completed":
            return MemberOutcome("completed", state.output)
        case "cancelled":
            return MemberOutcome("cancelled", failure=state.failure)
        case _:
            return MemberOutcome("failed", failure=state.failure)


def text_of(message: Message) -> str:
    """The text parts of a message, joined."""
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def tool_calls_of(message: Message) -> tuple[ToolCallPart, ...]:
    return tuple(part for part in message.parts if isinstance(part, ToolCallPart))


def user_message(text: str) -> Message:
    return Message(role="user", parts=(TextPart(text=text),))


# --- the fold -----------------------------------------------------------------------------------------------------------


def begin(event: RunStarted, tenant: str, actor: str, at: datetime, traceparent: str = "") -> RunState:
    """The state of a run after its first event."""
    definition = parse_definition(event.spec_json)
    work = _begin_team(definition) if isinstance(definition, TeamDefinition) else _begin_agent(event)
    return RunState(event, tenant, actor, at, definition, work, traceparent=traceparent)


def evolve(state: RunState, event: Event, at: datetime) -> RunState:
    """The state after one more event, which occurred `at`. An event that says nothing new leaves it as it is."""
    match event:
        case RunClaimed():
            return replace(state, status="running", epoch=event.epoch, worker=event.worker)
        case RunCancelRequested():
            return state if state.ended else replace(state, cancel_reason=event.reason)
        case RunDeadlinePassed():
            return replace(state, deadline_passed=True)
        case RunCompleted():
            return replace(
                state, status="completed", output=event.output, result_sha256=event.result_sha256, ended_at=at
            )
        case RunFailed():
            return replace(state, status="failed", failure=event.failure, ended_at=at)
        case RunCancelled():
            return replace(state, status="cancelled", failure=_cancelled(event.reason), ended_at=at)
        case _:
            return _evolve_work(state, event, at)


def _evolve_work(state: RunState, event: Event, at: datetime) -> RunState:
    if isinstance(state.work, AgentWork):
        return replace(state, work=evolve_agent(state.work, event))
    return replace(state, work=evolve_team(state.work, event, at))


def _cancelled(reason: str) -> Failure:
    return Failure(reason="CANCELLED", message=reason)


def _begin_agent(event: RunStarted) -> AgentWork:
    message = user_message(event.input)
    return AgentWork(transcript=(message,), transcript_sha256=chained("", message))


def _begin_team(definition: TeamDefinition) -> TeamWork:
    steps = definition.spec.steps
    last = (definition.spec.aggregator,) if definition.spec.aggregator else ()
    return TeamWork(steps={step.id: StepState() for step in (*steps, *last)})


# --- of an agent --------------------------------------------------------------------------------------------------------


def evolve_agent(work: AgentWork, event: Event) -> AgentWork:
    match event:
        case ConversationTurnLoaded():
            history = History(event.conversation_id, event.until_version, event.messages_sha256)
            return replace(work, history=history)
        case ToolsResolved():
            return replace(work, tools=event.tools, tools_problem=event.problem)
        case ModelCallRequested():
            return replace(work, pending_call=event.call_id, model_failure=None, model_calls=work.model_calls + 1)
        case ModelCallSucceeded():
            return _answered(work, event)
        case ModelCallFailed():
            return replace(work, pending_call="", model_failure=event.failure, attempt=work.attempt + 1)
        case ToolCallIntended():
            return replace(work, uses=(*work.uses, ToolUse(event)), tool_calls=work.tool_calls + 1)
        case ToolCallSucceeded():
            return _tool_ended(work, event.index, event.result_json, is_error=False)
        case ToolCallFailed():
            return _tool_ended(work, event.index, _failure_json(event.failure), is_error=True)
        case ToolCallOutcomeUnknown():
            return replace(work, uses=_mark_unknown(work.uses, event.index))
        case _:
            return work


def _answered(work: AgentWork, event: ModelCallSucceeded) -> AgentWork:
    return replace(
        work,
        transcript=(*work.transcript, event.message),
        transcript_sha256=chained(work.transcript_sha256, event.message),
        turn=event.turn,
        attempt=1,
        pending_call="",
        model_failure=None,
        answer=event.message,
        finish_reason=event.finish_reason,
        token_messages=work.token_messages + event.token_messages,
    )


def _tool_ended(work: AgentWork, index: int, content: str, *, is_error: bool) -> AgentWork:
    uses = tuple(_with_result(use, content, is_error) if use.intent.index == index else use for use in work.uses)
    results = tuple(use.result for use in uses if use.result is not None)
    expected = len(tool_calls_of(work.answer)) if work.answer else 0
    if len(results) < expected:
        return replace(work, uses=uses)
    message = Message(role="tool", parts=results)
    return replace(
        work,
        transcript=(*work.transcript, message),
        transcript_sha256=chained(work.transcript_sha256, message),
        answer=None,
        uses=(),
    )


def _with_result(use: ToolUse, content: str, is_error: bool) -> ToolUse:
    intent = use.intent
    part = ToolResultPart(tool_call_id=intent.tool_call_id, name=intent.tool, content=content, is_error=is_error)
    return ToolUse(intent, part)


def _mark_unknown(uses: tuple[ToolUse, ...], index: int) -> tuple[ToolUse, ...]:
    return tuple(replace(use, unknown=True) if use.intent.index == index else use for use in uses)


def _failure_json(failure: Failure) -> str:
    error = {"reason": failure.reason, "message": failure.message, "retryable": failure.retryable}
    return json.dumps({"error": error}, ensure_ascii=False)


# --- of a team ----------------------------------------------------------------------------------------------------------


def evolve_team(work: TeamWork, event: Event, at: datetime) -> TeamWork:
    match event:
        case StepStarted():
            return _step_started(work, event, at)
        case MemberEnded():
            outcome = MemberOutcome(event.outcome, event.output, event.failure)
            ended = {**work.steps[event.step].outcomes, event.child_run_id: outcome}
            return _with_step(work, event.step, replace(work.steps[event.step], ended=ended, changed_at=at))
        case MembersStopRequested():
            return replace(work, stopping=work.stopping | set(event.child_run_ids))
        case MembersRestarted():
            return _restarted(work, event, at)
        case VoteOpened():
            step = replace(work.steps[event.step], status="voting", vote=event, changed_at=at)
            return replace(_with_step(work, event.step, step), proposal_ids=(*work.proposal_ids, event.proposal_id))
        case BallotsCast():
            return _with_step(work, event.step, replace(work.steps[event.step], cast=True))
        case VoteDecided():
            return _with_step(work, event.step, replace(work.steps[event.step], decision=event))
        case StepEnded():
            return _with_step(work, event.step, _step_ended(work.steps[event.step], event, at))
        case _:
            return work


def _step_started(work: TeamWork, event: StepStarted, at: datetime) -> TeamWork:
    step = StepState(
        status="running",
        attempt=event.attempt,
        kind=event.kind,
        children=event.child_run_ids,
        input=event.input,
        changed_at=at,
    )
    return replace(_with_step(work, event.step, step), child_run_ids=(*work.child_run_ids, *event.child_run_ids))


def _step_ended(step: StepState, event: StepEnded, at: datetime) -> StepState:
    ended = dict(step.outcomes)
    if event.outcome == "completed" and step.kind == "agent":
        ended[step.children[0]] = MemberOutcome("completed", event.output)
    return replace(step, status=event.outcome, output=event.output, failure=event.failure, ended=ended, changed_at=at)


def _restarted(work: TeamWork, event: MembersRestarted, at: datetime) -> TeamWork:
    fresh = {name: StepState(attempt=work.steps[name].attempt + 1) for name in event.steps}
    return replace(work, steps={**work.steps, **fresh}, restarts=(*work.restarts, at))


def _with_step(work: TeamWork, name: str, step: StepState) -> TeamWork:
    return replace(work, steps={**work.steps, name: step})
