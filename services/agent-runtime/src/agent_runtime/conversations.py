"""What a conversation is: the fold of its turns. Only what is new in a turn is stored, never a whole prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from synod.agent_runtime.events import ConversationStarted, Message, TurnEnded, TurnStarted
from synod.common.event import Event

from agent_runtime.domain import chained, user_message
from agent_runtime.errors import HistoryInvalid, TurnInProgress


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and what it led to. `version` is that of the stream after the turn ended, 0 before."""

    run_id: str
    text: str
    asked_at: datetime
    outcome: str = ""
    messages: tuple[Message, ...] = ()
    ended_at: datetime | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class ConversationState:
    started: ConversationStarted
    tenant: str
    started_at: datetime
    version: int = 1
    turns: tuple[Turn, ...] = ()
    active_run_id: str = ""


def evolve_conversation(state: ConversationState, event: Event, at: datetime) -> ConversationState:
    """The conversation after one more event of its stream."""
    version = state.version + 1
    match event:
        case TurnStarted():
            turn = Turn(event.run_id, event.text, at)
            return replace(state, version=version, turns=(*state.turns, turn), active_run_id=event.run_id)
        case TurnEnded():
            turns = tuple(_ended(turn, event, version) if turn.run_id == event.run_id else turn for turn in state.turns)
            return replace(state, version=version, turns=turns, active_run_id="")
        case _:
            return replace(state, version=version)


def _ended(turn: Turn, event: TurnEnded, version: int) -> Turn:
    return replace(turn, outcome=event.outcome, messages=event.messages, ended_at=event.ended_at, version=version)


def start_turn(state: ConversationState, run_id: str, text: str) -> TurnStarted:
    """Raises TurnInProgress: an agent answers one message of a conversation at a time."""
    if state.active_run_id:
        raise TurnInProgress(state.started.conversation_id, state.active_run_id)
    return TurnStarted(conversation_id=state.started.conversation_id, run_id=run_id, text=text)


@dataclass(frozen=True, slots=True)
class Told:
    """The messages a new turn builds on, the version they end at, and their hash."""

    messages: tuple[Message, ...]
    until_version: int
    sha256: str


def told(state: ConversationState, until_version: int | None = None) -> Told:
    """The turns that ended well, up to a version of the stream (default: all so far).

    A turn that failed or was cancelled is left out with its question: models expect every question to be answered.
    """
    turns = [turn for turn in state.turns if turn.outcome == "completed"]
    if until_version is not None:
        turns = [turn for turn in turns if turn.version <= until_version]
    messages = tuple(message for turn in turns for message in (user_message(turn.text), *turn.messages))
    sha256 = ""
    for message in messages:
        sha256 = chained(sha256, message)
    return Told(messages, max((turn.version for turn in turns), default=1), sha256)


def require_turn(state: ConversationState, run_id: str) -> Turn:
    """The turn that a run carries out. Raises HistoryInvalid when there is none."""
    for turn in state.turns:
        if turn.run_id == run_id:
            return turn
    raise HistoryInvalid(state.started.conversation_id, f"it has no turn of run {run_id}")
