"""Definitions of agents and teams, as people write them in YAML. Immutable once registered.

agent-registry validates them whole and keeps the canonical JSON; agent-runtime carries them out.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Usd = Annotated[str, Field(pattern=r"^\$?[0-9]{1,9}(\.[0-9]{1,9})?$", description="US dollars, such as 0.25")]


class Definition(BaseModel):
    """Unknown fields are errors here: a misspelt word in a definition must not be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metadata(Definition):
    name: Name
    description: str = Field(default="", max_length=1000)
    labels: dict[str, str] = Field(default_factory=dict)


class ModelPolicy(Definition):
    name: str = Field(min_length=1, max_length=128, description="provider/model or an alias")
    fallback: tuple[str, ...] = Field(default=(), max_length=5)
    max_output_tokens: int = Field(default=1024, ge=1, le=128_000)
    temperature: float | None = Field(default=None, ge=0, le=2)


class Supervision(Definition):
    """How many failures are borne before they escalate."""

    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"] = "one_for_one"
    max_restarts: int = Field(default=2, ge=0, le=100)
    within_s: int = Field(default=60, ge=1, le=86_400)


class AgentSpec(Definition):
    behaviour: Literal["chat", "react"] = "react"
    model: ModelPolicy
    instructions: str = Field(min_length=1, max_length=32_768)
    tools: tuple[str, ...] = Field(default=(), max_length=64)
    capabilities: tuple[Name, ...] = Field(default=(), max_length=32)
    budget: Usd | None = Field(default=None, description="hard limit of one run, US dollars")
    max_turns: int = Field(default=16, ge=1, le=200, description="model calls in one run")
    timeout_s: int = Field(default=600, ge=1, le=86_400)


class AgentStep(Definition):
    """One agent or team does one task. ``{{input}}`` and ``{{steps.<id>.output}}`` stand for what came before."""

    id: Name
    agent: Name
    task: str = Field(min_length=1, max_length=32_768)
    after: tuple[Name, ...] | None = Field(default=None, description="default: the step before, in a sequence")


class VoteSpec(Definition):
    """Each voter answers the task with JSON {"vote": option, "reason": text}; consensus decides."""

    voters: tuple[Name, ...] = Field(min_length=1, max_length=50)
    options: tuple[str, ...] = Field(default=("approve", "reject"), min_length=2, max_length=10)
    rule: Literal["majority", "two_thirds", "unanimous", "threshold", "veto"] = "majority"
    threshold: int = Field(default=0, ge=0)
    veto: tuple[Name, ...] = ()
    deadline_s: int = Field(default=600, ge=1, le=86_400)
    required: bool = Field(default=True, description="the run fails unless the first option wins")


class VoteStep(Definition):
    id: Name
    vote: VoteSpec
    task: str = Field(min_length=1, max_length=32_768)
    after: tuple[Name, ...] | None = None


Step = AgentStep | VoteStep


class TeamSpec(Definition):
    """sequence: each step after the one before. parallel: all at once, then the aggregator reads all outputs."""

    pattern: Literal["sequence", "parallel"] = "sequence"
    steps: tuple[Step, ...] = Field(min_length=1, max_length=64)
    aggregator: AgentStep | None = None
    budget: Usd | None = None
    supervision: Supervision = Supervision()
    timeout_s: int = Field(default=3600, ge=1, le=86_400)


class AgentDefinition(Definition):
    api_version: Literal["synod/v1"] = Field(alias="apiVersion")
    kind: Literal["Agent"]
    metadata: Metadata
    spec: AgentSpec


class TeamDefinition(Definition):
    api_version: Literal["synod/v1"] = Field(alias="apiVersion")
    kind: Literal["Team"]
    metadata: Metadata
    spec: TeamSpec


AnyDefinition = Annotated[AgentDefinition | TeamDefinition, Field(discriminator="kind")]


def canonical_json(definition: AgentDefinition | TeamDefinition) -> str:
    """One text for one meaning: sorted keys, no spaces, defaults spelt out."""
    return json.dumps(
        definition.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def digest(spec_json: str) -> str:
    """SHA-256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(spec_json.encode()).hexdigest()


def predecessors(spec: TeamSpec) -> dict[str, tuple[str, ...]]:
    """For each step the steps it waits for, the pattern's defaults filled in; the aggregator waits for all."""
    waits: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for step in spec.steps:
        waits[step.id] = step.after if step.after is not None else before
        before = (step.id,) if spec.pattern == "sequence" else ()
    if spec.aggregator is not None:
        waits[spec.aggregator.id] = tuple(step.id for step in spec.steps)
    return waits
