"""The services that a run needs, each behind the fewest methods. Their fakes are in agent_runtime.testing.

Every call is made in the tenant of the run, which the adapter learns from the argument or from the current call.
All raise CallFailed when the other side answered with an error, and CallInterrupted when the outcome is unknown: then
the same call may be repeated with the same id, because every one of them is idempotent by its id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from synod.agent_runtime.events import Ballot, Message, OptionTally, ToolSpec
from synod.common.definitions import ModelPolicy
from synod.common.values import Failure, Tag


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whom a cost belongs to."""

    tenant: str
    agent: str
    run_id: str
    root_run_id: str
    conversation_id: str = ""
    tags: tuple[Tag, ...] = ()


# --- models -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A prompt in full. `call_id` is the idempotency key: one id, one answer, charged once."""

    call_id: str
    model: ModelPolicy
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    attribution: Attribution


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    message: Message
    finish_reason: str
    model: str
    input_tokens: int
    output_tokens: int
    simulated: bool = False


class Models(Protocol):
    def stream(self, call: ModelCall) -> AsyncIterator[str | ModelAnswer]:
        """Pieces of text as they are produced, then the answer, once and last."""
        ...


# --- tools --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`call_id` is the effect id: repeated, it gives the recorded result."""

    call_id: str
    tool: str
    arguments_json: str
    agent: str
    workspace_id: str
    timeout_s: float
    attribution: Attribution


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """`failure` is set when state is "failed"; "unknown" says that the effect may or may not have happened."""

    state: Literal["succeeded", "failed", "unknown"]
    result_json: str = ""
    failure: Failure | None = None
    isolation: str = ""
    took_ms: int = 0


class Tools(Protocol):
    async def list_tools(self) -> tuple[ToolSpec, ...]:
        """The catalogue, as it is now."""
        ...

    async def execute(self, call: ToolCall) -> ToolOutcome:
        """A tool that fails or is refused is an outcome, not an exception."""
        ...

    async def cancel(self, call_id: str) -> None:
        """Ask that a call in progress be ended; one that has ended stays as it is."""
        ...


# --- who, how much, together ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pinned:
    """A definition, immutable under its digest; `spec_json` is its canonical JSON."""

    name: str
    kind: Literal["Agent", "Team"]
    version: int
    digest: str
    spec_json: str


class Registry(Protocol):
    async def definition(self, reference: str) -> Pinned:
        """By name, name@version or digest. Raises DefinitionNotFound too."""
        ...

    async def ensure_agent(self, pinned: Pinned) -> str:
        """Id of the agent that carries out runs of this definition; created when there is none."""
        ...


class Ledger(Protocol):
    async def set_budget(self, budget_id: str, limit_nano_usd: int, *, run_id: str = "", root_run_id: str = "") -> None:
        """A hard budget over the costs of one run, or of all runs below a root. Setting it again changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Proposal:
    request_id: str
    run_id: str
    title: str
    body: str
    options: tuple[str, ...]
    voters: tuple[str, ...]
    veto: tuple[str, ...]
    rule: str
    threshold: int
    deadline: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """`outcome` is empty when nobody won."""

    outcome: str
    tally: tuple[OptionTally, ...]
    explanation: str


class Consensus(Protocol):
    async def propose(self, proposal: Proposal) -> str:
        """Id of the proposal; the same for the same request id."""
        ...

    async def vote(self, proposal_id: str, ballots: Sequence[Ballot]) -> None:
        """All ballots as one. What is cast already, or comes after the decision, is accepted and changes nothing."""
        ...

    async def decision(self, proposal_id: str) -> Decision | None:
        """None while the proposal is open."""
        ...


class TokenSink(Protocol):
    async def publish(self, tenant: str, run_id: str, root_run_id: str, agent: str, sequence: int, text: str) -> None:
        """Tell whoever listens; nothing is stored, nobody need listen, and it never fails the run."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside, together."""

    models: Models
    tools: Tools
    registry: Registry
    ledger: Ledger
    consensus: Consensus
    tokens: TokenSink
