"""What the edge shows of the system: one frozen model per resource, the same in REST, SSE and WebSocket frames.

Money is integer nano-USD, rates are integer pico-USD per token, times are UTC (RFC 3339). Enumerations are lower-case
words. An empty string means that a field does not apply.
"""

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

T = TypeVar("T")


class Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Item(Resource, Generic[T]):
    """The answer to a question about one thing."""

    data: T


class Page(Resource, Generic[T]):
    """The answer to a question about many things. Pass ``next_cursor`` as ``cursor`` to go on; null at the end."""

    data: tuple[T, ...]
    next_cursor: str | None = None


def _word(prefix: str) -> BeforeValidator:
    """RUN_STATE_QUEUED as queued."""
    return BeforeValidator(lambda name: str(name).removeprefix(prefix).lower())


RunState = Annotated[
    Literal["unspecified", "queued", "running", "waiting", "completed", "failed", "cancelled"], _word("RUN_STATE_")
]
AgentState = Annotated[
    Literal["unspecified", "created", "initialized", "active", "idle", "suspended", "terminated", "failed"],
    _word("AGENT_STATE_"),
]
AgentHealth = Annotated[Literal["unspecified", "alive", "suspect", "offline"], _word("AGENT_HEALTH_")]
ProposalState = Annotated[Literal["unspecified", "open", "decided", "undecided"], _word("PROPOSAL_STATE_")]
RuleName = Annotated[
    Literal["unspecified", "majority", "two_thirds", "unanimous", "threshold", "veto"], _word("RULE_KIND_")
]
EffectClass = Annotated[Literal["unspecified", "pure", "idempotent", "at_most_once"], _word("EFFECT_CLASS_")]


class Definition(Resource):
    name: str
    kind: str
    version: int
    digest: str = Field(description="SHA-256 of the canonical JSON; what a run pins")
    spec_json: str
    created_at: datetime | None = None
    created: bool = Field(description="true when this call registered it")


class Agent(Resource):
    id: str
    name: str
    definition_name: str
    definition_version: int
    definition_digest: str
    capabilities: tuple[str, ...]
    state: AgentState
    health: AgentHealth
    busy: int = Field(description="runs in progress")
    external: bool
    runs_completed: int
    runs_failed: int
    created_at: datetime | None = None
    last_heartbeat_at: datetime | None = None


class RunFailure(Resource):
    reason: str
    message: str


class Run(Resource):
    id: str
    state: RunState
    definition_name: str
    definition_digest: str
    input: str
    output: str
    failure: RunFailure | None = None
    result_sha256: str
    parent_run_id: str
    root_run_id: str
    step: str
    epoch: int
    model_calls: int
    tool_calls: int
    child_run_ids: tuple[str, ...]
    proposal_ids: tuple[str, ...]
    tags: dict[str, str] = Field(default={}, description="on all that the run and the runs below it cost")
    conversation_id: str
    started_at: datetime | None = None
    ended_at: datetime | None = None


class RunUpdate(Resource):
    """Something that happened in a run or below it. Tokens have cursor 0 and are not repeated."""

    cursor: int
    run_id: str
    agent: str
    type: str
    data: dict[str, JsonValue] = {}
    summary: str
    at: datetime | None = None
    token_sequence: int = 0

    @property
    def is_token(self) -> bool:
        return self.type == "Token"

    @property
    def token(self) -> str:
        return str(self.data.get("text", ""))


class Replay(Resource):
    equal: bool
    runs: int
    events: int
    recorded_sha256: str
    replayed_sha256: str
    first_difference: str
    outside_calls: int


class ConversationMessage(Resource):
    role: str
    text: str
    run_id: str
    at: datetime | None = None


class Conversation(Resource):
    id: str
    definition_name: str
    definition_digest: str
    messages: tuple[ConversationMessage, ...]
    active_run_id: str
    created_at: datetime | None = None


class LoggedEvent(Resource):
    """One fact of a service's log, as it is stored."""

    position: int
    stream: str
    version: int
    id: str
    type: str
    type_version: int
    occurred_at: datetime
    recorded_at: datetime
    causation_id: str = ""
    correlation_id: str = ""
    actor: str
    data: JsonValue
    hash: str = Field(description="SHA-256 over the event and the hash before it, hexadecimal")


class EventPage(Resource):
    """``next_cursor`` is the position up to which events were considered; null when the log ends there."""

    data: tuple[LoggedEvent, ...]
    next_cursor: str | None
    head_position: int


class SpendRow(Resource):
    group: tuple[str, ...]
    cost_nano_usd: int
    pending_nano_usd: int
    input_tokens: int
    output_tokens: int
    calls: int


class Spend(Resource):
    group_by: tuple[str, ...]
    rows: tuple[SpendRow, ...]
    total_nano_usd: int


class Scope(Resource):
    """Which costs count: every field that is set must match."""

    project_id: str = ""
    agent: str = ""
    conversation_id: str = ""
    run_id: str = ""
    root_run_id: str = ""
    user_id: str = ""
    model: str = ""
    tool: str = ""


class Budget(Resource):
    budget_id: str
    scope: Scope = Scope()
    limit_nano_usd: int
    hard: bool
    window: str
    posted_nano_usd: int
    pending_nano_usd: int
    available_nano_usd: int
    suspended_for: str = Field(
        default="", description="why it refuses whatever is asked; empty while it is not suspended"
    )


class Model(Resource):
    id: str
    provider: str
    dialect: str
    context_tokens: int
    output_tokens_max: int
    capabilities: tuple[str, ...]
    available: bool
    unavailable_reason: str
    simulated: bool
    aliases: tuple[str, ...]


class Tool(Resource):
    name: str
    version: str
    digest: str
    description: str
    parameters_json: str
    result_json: str
    effect: EffectClass
    min_level: str


class Voter(Resource):
    id: str
    weight: int
    veto: bool


class Ballot(Resource):
    voter_id: str
    option: str
    reason: str
    weight: int
    late: bool


class Tally(Resource):
    option: str
    weight: int


class Rule(Resource):
    kind: RuleName
    threshold: int


class Proposal(Resource):
    id: str
    title: str
    body: str
    options: tuple[str, ...]
    electorate: tuple[Voter, ...]
    rule: Rule | None = None
    state: ProposalState
    outcome: str
    tally: tuple[Tally, ...]
    ballots: tuple[Ballot, ...]
    explanation: str
    run_id: str
    version: int
    deadline: datetime | None = None
    opened_at: datetime | None = None
    decided_at: datetime | None = None


class View(Resource):
    service: str
    name: str
    version: int
    source: str
    position: int
    lag_events: int
    parked_events: int


class StreamLoad(Resource):
    """What JetStream holds for one service."""

    service: str
    events_head: int = Field(description="position of the newest event that was published")
    commands_waiting: int
    dead_letters: int


class ProcessLoad(Resource):
    """The gateway's own process."""

    sessions_open: int
    frames_sent: int
    frames_dropped: int
    resident_bytes: int
    cpu_seconds: float
    uptime_s: float


class SystemMetrics(Resource):
    at: datetime
    gateway: ProcessLoad
    services: tuple[StreamLoad, ...]
    agents_by_state: dict[str, int]


class AgentMetrics(Resource):
    at: datetime
    agents: tuple[Agent, ...]


class PeerHealth(Resource):
    service: str
    ok: bool
    problem: str = ""


class SystemHealth(Resource):
    status: str
    problems: dict[str, str]
    services: tuple[PeerHealth, ...]
