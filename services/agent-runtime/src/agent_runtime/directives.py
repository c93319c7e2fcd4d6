"""What a run wants done next. Pure values: a worker carries them out, a replay compares them with what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from synod.agent_runtime.events import Ballot, Message, ToolCallIntended, ToolSpec
from synod.common.definitions import ModelPolicy
from synod.common.values import Failure

from agent_runtime.domain import History


@dataclass(frozen=True, slots=True)
class LoadConversation:
    """Fix how much of the conversation this run builds on."""

    conversation_id: str


@dataclass(frozen=True, slots=True)
class ResolveTools:
    """Pin the named tools for the whole run."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads. `sha256` covers all of it, the history by its own hash."""

    system: str
    history: History | None
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class CallModel:
    call_id: str
    turn: int
    attempt: int
    model: ModelPolicy
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class CallTools:
    """Carry these out side by side. Their intents are recorded before the first is dispatched."""

    intents: tuple[ToolCallIntended, ...]


@dataclass(frozen=True, slots=True)
class ChildStart:
    """A run to start below this one: an agent or a team by name, and its task."""

    run_id: str
    member: str


@dataclass(frozen=True, slots=True)
class StartChildren:
    step: str
    kind: Literal["agent", "vote"]
    attempt: int
    input: str
    children: tuple[ChildStart, ...]


@dataclass(frozen=True, slots=True)
class StopMembers:
    run_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RestartMembers:
    failed_step: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenVote:
    """Propose with a frozen electorate. Every field derives from the run, so proposing twice is proposing once.

    The deadline counts from the moment of proposing; a repeat does not move it.
    """

    step: str
    request_id: str
    title: str
    body: str
    options: tuple[str, ...]
    voters: tuple[str, ...]
    veto: tuple[str, ...]
    rule: str
    threshold: int
    deadline_s: int
    ballots: tuple[Ballot, ...]


@dataclass(frozen=True, slots=True)
class CastBallots:
    step: str
    proposal_id: str
    ballots: tuple[Ballot, ...]


@dataclass(frozen=True, slots=True)
class EndStep:
    step: str
    output: str = ""
    failure: Failure | None = None
    proposal_id: str = ""


@dataclass(frozen=True, slots=True)
class AwaitMembers:
    """Wait for these runs: record those that have ended. Holds no process when none has."""

    members: Mapping[str, str]
    """Run id to step."""


@dataclass(frozen=True, slots=True)
class AwaitDecision:
    """Wait for consensus: record its decision if there is one. Holds no process when there is none."""

    step: str
    proposal_id: str


@dataclass(frozen=True, slots=True)
class Complete:
    output: str


@dataclass(frozen=True, slots=True)
class Fail:
    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancel:
    reason: str


Directive = (
    LoadConversation
    | ResolveTools
    | CallModel
    | CallTools
    | StartChildren
    | StopMembers
    | RestartMembers
    | OpenVote
    | CastBallots
    | EndStep
    | AwaitMembers
    | AwaitDecision
    | Complete
    | Fail
    | Cancel
)
