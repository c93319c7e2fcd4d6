"""Events of agent-runtime. A run is its stream; replay folds these and asks nobody.

What people and models say to each other is personal: about whom the run was started by, the actor of its events.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from synod.common.event import Event, Value
from synod.common.personal import Personal
from synod.common.values import Failure, Tag


class TextPart(Value):
    kind: Literal["text"] = "text"
    text: Annotated[str, Personal()]


class ToolCallPart(Value):
    kind: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments_json: Annotated[str, Personal()]


class ToolResultPart(Value):
    kind: Literal["tool_result"] = "tool_result"
    tool_call_id: str
    name: str
    content: Annotated[str, Personal()]
    is_error: bool = False


class ReasoningPart(Value):
    """Opaque; goes back to its provider byte for byte."""

    kind: Literal["reasoning"] = "reasoning"
    text: Annotated[str, Personal()] = ""
    signature: bytes = b""
    provider: str = ""


class RefusalPart(Value):
    kind: Literal["refusal"] = "refusal"
    text: Annotated[str, Personal()]


Part = Annotated[TextPart | ToolCallPart | ToolResultPart | ReasoningPart | RefusalPart, Field(discriminator="kind")]


class Message(Value):
    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]


class ToolSpec(Value):
    """A tool as the model sees it, pinned for one run."""

    name: str
    version: str
    digest: str
    description: str
    parameters_json: str
    effect: Literal["pure", "idempotent", "at_most_once"] = "pure"
    timeout_s: float = 60.0


class Ballot(Value):
    """What a voter said. An empty option is an abstention; the reason says why."""

    voter: str
    run_id: str
    option: str = ""
    reason: Annotated[str, Personal()] = ""


class OptionTally(Value):
    option: str
    weight: int


class RunStarted(Event):
    """The run pins its definition by digest. A member's run names its parent and its step."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    root_run_id: str
    parent_run_id: str = ""
    step: str = ""
    definition_name: str
    definition_digest: str
    definition_kind: Literal["Agent", "Team"]
    # Canonical JSON of the pinned definition: a replay asks no registry.
    spec_json: str
    agent_id: str = ""
    input: Annotated[str, Personal()]
    conversation_id: str = ""
    workspace_id: str
    budget_nano_usd: int = 0
    # Depth below the root, limited so that teams of teams end.
    depth: int = 0
    # On every cost of the run and of the runs below it.
    tags: tuple[Tag, ...] = ()


class RunClaimed(Event):
    """A worker took the run. Appends of an older epoch are refused from here on."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    worker: str


class ConversationTurnLoaded(Event):
    """Earlier messages of the conversation that the run builds on, by reference to its stream."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    conversation_id: str
    until_version: int
    messages_sha256: str


class ToolsResolved(Event):
    """The tools offered to the model in every call of this run, so that prompts can be computed again.

    ``problem`` says in words which named tools do not exist; the run fails on it.
    """

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    tools: tuple[ToolSpec, ...]
    problem: str = ""


class ModelCallRequested(Event):
    """Intent before effect. The prompt is a function of the run's events up to here; its hash proves it."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    call_id: str
    turn: int
    model: str
    prompt_sha256: str
    # Above 1 when an earlier call of the turn failed and may be repeated.
    attempt: int = 1


class ModelCallSucceeded(Event):
    """The finished message, once."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    call_id: str
    turn: int
    model: str
    message: Message
    finish_reason: str
    input_tokens: int
    output_tokens: int
    simulated: bool = False
    # Token messages published while the answer was produced; the next call numbers on from here.
    token_messages: int = 0


class ModelCallFailed(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    call_id: str
    turn: int
    failure: Failure


class ToolCallIntended(Event):
    """Intent before effect. The effect id comes from run, turn, index and arguments, never from the model's call id."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    effect_id: str
    turn: int
    index: int
    tool: str
    tool_call_id: str
    arguments_json: Annotated[str, Personal()]
    arguments_sha256: str


class ToolCallSucceeded(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    effect_id: str
    turn: int
    index: int
    tool: str
    result_json: Annotated[str, Personal()]
    isolation: str = ""
    took_ms: int = 0


class ToolCallFailed(Event):
    """The tool ran and failed, or was refused; the model reads the failure and may go on."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    effect_id: str
    turn: int
    index: int
    tool: str
    failure: Failure


class ToolCallOutcomeUnknown(Event):
    """It may or may not have happened. The run stops here until somebody says."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    effect_id: str
    turn: int
    index: int
    tool: str


class StepStarted(Event):
    """A step of a team: a run below this one, or a proposal."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    kind: Literal["agent", "vote"]
    child_run_ids: tuple[str, ...] = ()
    input: Annotated[str, Personal()]
    # Above 1 after a restart by supervision.
    attempt: int = 1


class MemberEnded(Event):
    """A voter's run ended, or a member's run ended without success. (A success is told by StepEnded at once.)"""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    child_run_id: str
    outcome: Literal["completed", "failed", "cancelled"]
    output: Annotated[str, Personal()] = ""
    failure: Failure | None = None


class MembersStopRequested(Event):
    """The runs below were asked to cancel: the team ends or restarts and waits for them."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    child_run_ids: tuple[str, ...]
    reason: str


class MembersRestarted(Event):
    """Supervision starts these steps afresh because one of them failed."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    failed_step: str
    steps: tuple[str, ...]


class VoteOpened(Event):
    """The voters have answered; their ballots go to consensus under this proposal."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    proposal_id: str
    ballots: tuple[Ballot, ...] = ()


class BallotsCast(Event):
    """Consensus has every ballot that names an option; its decision is awaited."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    proposal_id: str


class VoteDecided(Event):
    """What consensus decided, recorded here so that a replay asks nobody. No outcome: undecided."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    proposal_id: str
    outcome: str = ""
    tally: tuple[OptionTally, ...] = ()
    explanation: Annotated[str, Personal()] = ""


class StepEnded(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    step: str
    outcome: Literal["completed", "failed"]
    output: Annotated[str, Personal()] = ""
    failure: Failure | None = None
    proposal_id: str = ""


class RunDeadlinePassed(Event):
    """The time the definition allows is over; nothing more is begun."""

    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    epoch: int
    timeout_s: int


class RunCancelRequested(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    reason: str


class RunCompleted(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    root_run_id: str
    parent_run_id: str = ""
    step: str = ""
    agent_id: str = ""
    definition_name: str
    epoch: int
    output: Annotated[str, Personal()]
    result_sha256: str


class RunFailed(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    root_run_id: str
    parent_run_id: str = ""
    step: str = ""
    agent_id: str = ""
    definition_name: str
    epoch: int
    failure: Failure


class RunCancelled(Event):
    AGGREGATE: ClassVar[str] = "run"

    run_id: str
    root_run_id: str
    parent_run_id: str = ""
    step: str = ""
    agent_id: str = ""
    definition_name: str
    epoch: int
    reason: str


class ConversationStarted(Event):
    AGGREGATE: ClassVar[str] = "conversation"

    conversation_id: str
    definition_name: str
    definition_digest: str
    spec_json: str


class TurnStarted(Event):
    """Only what is new is stored: the user's message. A second turn while one runs is refused."""

    AGGREGATE: ClassVar[str] = "conversation"

    conversation_id: str
    run_id: str
    text: Annotated[str, Personal()]


class TurnEnded(Event):
    """The messages that the turn added, tool calls included; never the whole prompt."""

    AGGREGATE: ClassVar[str] = "conversation"

    conversation_id: str
    run_id: str
    outcome: Literal["completed", "failed", "cancelled"]
    messages: tuple[Message, ...]
    ended_at: datetime


EVENTS: tuple[type[Event], ...] = (
    RunStarted,
    RunClaimed,
    ConversationTurnLoaded,
    ToolsResolved,
    ModelCallRequested,
    ModelCallSucceeded,
    ModelCallFailed,
    ToolCallIntended,
    ToolCallSucceeded,
    ToolCallFailed,
    ToolCallOutcomeUnknown,
    StepStarted,
    MemberEnded,
    MembersStopRequested,
    MembersRestarted,
    VoteOpened,
    BallotsCast,
    VoteDecided,
    StepEnded,
    RunDeadlinePassed,
    RunCancelRequested,
    RunCompleted,
    RunFailed,
    RunCancelled,
    ConversationStarted,
    TurnStarted,
    TurnEnded,
)
