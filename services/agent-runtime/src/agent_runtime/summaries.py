"""One line for people about an event of a run."""

from __future__ import annotations

from typing import Final

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
    ToolCallFailed,
    ToolCallIntended,
    ToolCallOutcomeUnknown,
    ToolCallSucceeded,
    ToolsResolved,
    VoteDecided,
    VoteOpened,
)
from synod.common.event import Event

from agent_runtime.domain import text_of, tool_calls_of

CHARS_MAX: Final = 160


def summary(event: Event, agent: str) -> str:
    """What happened, in at most CHARS_MAX characters of one line."""
    text = " ".join(f"{agent} {_told(event)}".split())
    return text if len(text) <= CHARS_MAX else f"{text[: CHARS_MAX - 1]}…"


def _told(event: Event) -> str:
    match event:
        case RunStarted():
            return f"starts: {event.input}"
        case RunClaimed():
            return "is taken up by a worker" if event.epoch == 1 else f"is taken up again (epoch {event.epoch})"
        case ConversationTurnLoaded():
            return "reads the conversation"
        case ToolsResolved():
            return f"may use {', '.join(tool.name for tool in event.tools) or 'no tools'}{_colon(event.problem)}"
        case ModelCallRequested():
            return f"asks {event.model}" + (f" (attempt {event.attempt})" if event.attempt > 1 else "")
        case ModelCallSucceeded():
            return _said(event.message)
        case ModelCallFailed():
            return f"got no answer: {event.failure.message}"
        case _:
            return _told_of_tools(event)


def _told_of_tools(event: Event) -> str:
    match event:
        case ToolCallIntended():
            return f"calls {event.tool} {event.arguments_json}"
        case ToolCallSucceeded():
            return f"got from {event.tool}: {event.result_json}"
        case ToolCallFailed():
            return f"could not use {event.tool}: {event.failure.message}"
        case ToolCallOutcomeUnknown():
            return f"does not know whether {event.tool} acted"
        case _:
            return _told_of_team(event)


def _told_of_team(event: Event) -> str:
    match event:
        case StepStarted():
            return f"begins step {event.step}" + (f" again (attempt {event.attempt})" if event.attempt > 1 else "")
        case MemberEnded():
            return f"hears from step {event.step}: {event.outcome}"
        case MembersStopRequested():
            return f"stops {len(event.child_run_ids)} runs: {event.reason}"
        case MembersRestarted():
            return f"restarts {', '.join(event.steps)} because {event.failed_step} failed"
        case VoteOpened():
            votes = ", ".join(f"{ballot.voter}: {ballot.option or 'abstains'}" for ballot in event.ballots)
            return f"votes in step {event.step} ({votes})"
        case BallotsCast():
            return f"handed the ballots of step {event.step} to consensus"
        case VoteDecided():
            return f"decided in step {event.step}: {event.outcome or 'nothing'}{_colon(event.explanation)}"
        case StepEnded():
            failure = event.failure.message if event.failure else event.output
            return f"ended step {event.step} ({event.outcome}){_colon(failure)}"
        case _:
            return _told_of_end(event)


def _told_of_end(event: Event) -> str:
    match event:
        case RunDeadlinePassed():
            return f"is out of time ({event.timeout_s} s)"
        case RunCancelRequested():
            return f"is asked to stop: {event.reason}"
        case RunCompleted():
            return f"completed: {event.output}"
        case RunFailed():
            return f"failed ({event.failure.reason}): {event.failure.message}"
        case RunCancelled():
            return f"was cancelled: {event.reason}"
        case _:
            return event.type_name()


def _said(message: Message) -> str:
    calls = ", ".join(call.name for call in tool_calls_of(message))
    text = text_of(message)
    if calls:
        return f"wants {calls}{_colon(text)}"
    return f"says: {text}"


def _colon(text: str) -> str:
    return f": {text}" if text else ""
