"""What a tool is: a manifest that can be read without running it, and a function from arguments to a result."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access, Level, Limits
from tool_executor.sandboxes.zygote_process import Profile
from tool_executor.tools.network import Network
from tool_executor.tools.workspace import Workspace

JsonObject = Mapping[str, JsonValue]
DETAILS_MAX = 8


class Arguments(BaseModel):
    """Base of every tool's arguments. Strict: "3" is no integer, and a name nobody defined is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Result(BaseModel):
    """Base of every tool's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def artefacts(self) -> tuple[str, ...]:
        """Paths in the workspace that the call has made."""
        return ()

    def with_output(self, stdout: str, stderr: str) -> Self:
        """This result with what its process printed, for tools whose output is part of the answer."""
        return self


class Effect(StrEnum):
    """What a second run of the same call would do to the world; decides what happens after a crash."""

    PURE = "pure"  # nothing
    IDEMPOTENT = "idempotent"  # what the first did
    AT_MOST_ONCE = "at_most_once"  # harm


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """One example that the tool must satisfy: `expected` is a part of the value, or `error` the kind it fails with."""

    arguments: JsonObject
    files: Mapping[str, str] = field(default_factory=dict)
    expected: JsonObject = field(default_factory=dict)
    error: str = ""


A = TypeVar("A", bound=Arguments)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """All that is known of a tool without running it. `profile` None: the tool runs in our process (level L0).

    `hosts` are the patterns of host names it may reach; the operator's policy narrows them further.
    """

    name: str
    version: str
    title: str
    description: str
    arguments: type[Arguments]
    result: type[Result]
    effect: Effect
    self_tests: tuple[SelfTest, ...]
    min_level: Level = Level.L0
    profile: Profile | None = None
    access: Access = Access.NONE
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = ()

    def parameters_schema(self) -> dict[str, JsonValue]:
        """JSON Schema 2020-12 of the arguments, as shown to models."""
        return self.arguments.model_json_schema()

    def result_schema(self) -> dict[str, JsonValue]:
        return self.result.model_json_schema(mode="serialization")

    @property
    def module(self) -> str:
        """The module that defines the tool as TOOL; a sandbox imports it by this name."""
        return self.arguments.__module__

    def check(self, arguments: str) -> None:
        """ToolError INVALID_ARGUMENTS, naming each wrong field, if the JSON text does not fit the parameters."""
        try:
            self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            raise ToolError("INVALID_ARGUMENTS", _explained(error)) from error


@dataclass(frozen=True, kw_only=True)
class PureTool(Tool, Generic[A, R]):
    """Computes on its arguments and the run's workspace, and reaches nothing else."""

    arguments: type[A]
    result: type[R]
    run: Callable[[A, Workspace], R]

    def compute(self, arguments: str, workspace: Workspace) -> R:
        return self.run(self.arguments.model_validate_json(arguments), workspace)


@dataclass(frozen=True, kw_only=True)
class NetworkTool(Tool, Generic[A, R]):
    """Talks to other hosts, always through the guarded network it is given."""

    arguments: type[A]
    result: type[R]
    run: Callable[[A, Network], Awaitable[R]]

    async def fetch(self, arguments: str, network: Network) -> R:
        return await self.run(self.arguments.model_validate_json(arguments), network)


def _explained(error: ValidationError) -> str:
    """One line per field: where, what is wrong, what was given."""
    return "; ".join(_explained_detail(detail) for detail in error.errors(include_url=False)[:DETAILS_MAX])


def _explained_detail(detail: ErrorDetails) -> str:
    field_name = ".".join(map(str, detail["loc"])) or "arguments"
    given = "" if detail["type"] == "missing" else f" (given: {str(detail['input'])[:80]!r})"
    return f"{field_name}: {detail['msg'].removeprefix('Value error, ')}{given}"
