"""Events of tool-executor: the catalogue, grants, and calls from request to outcome."""

from typing import Annotated, ClassVar, Literal

from synod.common.event import Event, Value
from synod.common.personal import Personal
from synod.common.values import Attribution, Failure

EffectClass = Literal["pure", "idempotent", "at_most_once"]


class Artefact(Value):
    path: str
    size_bytes: int
    sha256: str
    media_type: str


class ToolRegistered(Event):
    """A version of a tool with the digest of its manifest."""

    AGGREGATE: ClassVar[str] = "tool"

    name: str
    tool_version: str
    digest: str
    description: str
    parameters_json: str
    result_json: str
    effect: EffectClass
    min_level: str
    timeout_ms: int


class ToolGranted(Event):
    AGGREGATE: ClassVar[str] = "grant"

    grant_id: str
    agent: str
    tool: str
    granted_by: str


class GrantRevoked(Event):
    AGGREGATE: ClassVar[str] = "grant"

    grant_id: str
    revoked_by: str


class SandboxCapabilitiesProbed(Event):
    """What this worker can do, tried for real when it started."""

    AGGREGATE: ClassVar[str] = "sandbox"

    worker: str
    best_level: str
    levels: tuple[str, ...]
    landlock_abi: int
    reasons: tuple[str, ...]


class ToolCallRequested(Event):
    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    tool: str
    tool_version: str
    tool_digest: str
    agent: str
    workspace_id: str
    arguments_json: Annotated[str, Personal()]
    arguments_sha256: str
    effect: EffectClass
    grant_id: str
    attribution: Attribution
    price_nano_usd: int = 0
    """What it costs if it comes to a result; held at cost-ledger with the time that it may take."""


class ToolCallStarted(Event):
    """Appended before the effect. Without a terminal event after it, the outcome is unknown."""

    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    attempt: int
    worker: str
    isolation: str


class ToolCallCompleted(Event):
    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    attempt: int
    tool: str
    result_json: Annotated[str, Personal()]
    artefacts: tuple[Artefact, ...] = ()
    isolation: str
    duration_ms: int
    cpu_ms: int = 0
    attribution: Attribution
    cost_nano_usd: int = 0


class ToolCallFailed(Event):
    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    attempt: int
    tool: str
    outcome: Literal["failed", "timed_out", "cancelled"]
    failure: Failure
    duration_ms: int
    cpu_ms: int | None = None
    """None where nobody measured."""


class ToolCallOutcomeUnknown(Event):
    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    attempt: int
    tool: str
    evidence: str


class ToolCallReconciled(Event):
    """Somebody said what happened."""

    AGGREGATE: ClassVar[str] = "tool-call"

    call_id: str
    happened: bool
    result_json: Annotated[str, Personal()]
    reason: Annotated[str, Personal()]
    by: str
    cost_nano_usd: int = 0


EVENTS: tuple[type[Event], ...] = (
    ToolRegistered,
    ToolGranted,
    GrantRevoked,
    SandboxCapabilitiesProbed,
    ToolCallRequested,
    ToolCallStarted,
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallOutcomeUnknown,
    ToolCallReconciled,
)
