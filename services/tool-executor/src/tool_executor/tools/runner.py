"""Runs tools: checks the arguments, chooses the isolation, enforces the limits, checks what comes back."""

import asyncio
import hashlib
import json
import mimetypes
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue, ValidationError

from tool_executor.errors import OutputLimit, SandboxUnavailable, ToolCrashed, ToolError, WallLimit
from tool_executor.sandboxes.probe import Capabilities
from tool_executor.sandboxes.process_sandbox import SubprocessSandbox, ZygoteSandbox
from tool_executor.sandboxes.sandbox import (
    MIB,
    Level,
    Limits,
    OnOutput,
    Sandbox,
    SandboxJob,
    SandboxResult,
    Transcript,
    Usage,
)
from tool_executor.sandboxes.zygote_process import Profile
from tool_executor.tools.entry import ENTRY, Answer, Refused, Request
from tool_executor.tools.network import Network
from tool_executor.tools.tool import NetworkTool, PureTool, Result, Tool
from tool_executor.tools.workspace import Workspace

JSON_DEPTH_MAX = 32
CEILING = Limits(wall_s=600.0, cpu_s=120, memory_bytes=2048 * MIB)

MakeSandbox = Callable[[Profile, Level, Path], Sandbox]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """`calls_max` calls run at once, others wait; no call gets more than `ceiling`, whatever its manifest says."""

    calls_max: int = 8
    ceiling: Limits = CEILING


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file that a call left in the workspace; `path` is relative to it."""

    path: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call came to. `value` fits the tool's result schema; `level` is the isolation it really had."""

    value: dict[str, JsonValue]
    level: Level
    duration_s: float
    artefacts: tuple[Artefact, ...]
    transcript: Transcript


class Runner:
    """Runs the calls of one executor process, and owns their zygotes and private files until aclose().

    `state_dir` holds them (default: the system's temporary directory). `make_sandbox` is the seam to the isolation.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        limits: RunnerLimits = RunnerLimits(),
        *,
        network: Network | None = None,
        state_dir: Path | None = None,
        make_sandbox: MakeSandbox | None = None,
    ) -> None:
        self._capabilities = capabilities
        self._limits = limits
        self._network = network or Network()
        self._state = Path(tempfile.mkdtemp(prefix="tool-executor-", dir=state_dir))
        self._make_sandbox = make_sandbox or process_sandbox
        self._sandboxes: dict[tuple[Profile, Level], Sandbox] = {}
        self._slots = asyncio.Semaphore(limits.calls_max)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(
        self,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        workspace_dir: Path,
        deadline_s: float,
        on_output: OnOutput | None = None,
        *,
        allow_weaker: bool = False,
    ) -> ToolResult:
        """Run one call within `deadline_s` seconds, the wait for a free slot included.

        `workspace_dir` must exist. `allow_weaker` is an operator's explicit word for this tool: run it at the best
        level there is, even below the one it asks for. Raises a ToolCallFailed (tool_executor.errors) when the call
        comes to nothing; cancelling the task ends the call's process before CancelledError goes on.
        """
        began = time.monotonic()
        text = encoded(tool, arguments)
        level = choose_level(tool, self._capabilities, allow_weaker=allow_weaker)
        async with self._slot(deadline_s):
            left_s = deadline_s - (time.monotonic() - began)
            call = _Call(tool, text, workspace_dir, granted(tool.limits, self._limits.ceiling, left_s), on_output)
            result, transcript = await self._carry_out(call, level)
        return ToolResult(
            value=result.model_dump(mode="json"),
            level=level,
            duration_s=time.monotonic() - began,
            artefacts=tuple(_artefact(call.workspace(), path) for path in result.artefacts()),
            transcript=transcript,
        )

    async def start(self, tools: tuple[Tool, ...]) -> None:
        """Start the zygotes that these tools need here, so that their first call does not wait for imports."""
        for tool in tools:
            if tool.profile is not None and tool.min_level <= self._capabilities.best:
                await self._sandbox(tool.profile, choose_level(tool, self._capabilities)).start()

    async def aclose(self) -> None:
        """End running calls (they fail with CANCELLED) and remove every process and private file."""
        await asyncio.gather(*(sandbox.aclose() for sandbox in self._sandboxes.values()))
        await asyncio.to_thread(shutil.rmtree, self._state, ignore_errors=True)

    @asynccontextmanager
    async def _slot(self, deadline_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(deadline_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise WallLimit(f"no free slot within {deadline_s:g} s; call again later", retryable=True) from error
        try:
            yield
        finally:
            self._slots.release()

    async def _carry_out(self, call: "_Call", level: Level) -> tuple[Result, Transcript]:
        match call.tool:
            case NetworkTool() as tool:
                return await _in_process(call.limits.wall_s, tool.fetch(call.arguments, self._network))
            case PureTool(profile=None) as tool:
                # A thread cannot be killed: these tools bound their own work, and a late one is only no longer awaited.
                work = asyncio.to_thread(tool.compute, call.arguments, call.workspace())
                return await _in_process(call.limits.wall_s, work)
            case tool:
                done = await self._sandbox(tool.profile or Profile(tool.name), level).run(call.job(), call.on_output)
                return _answered(tool, done), done.transcript

    def _sandbox(self, profile: Profile, level: Level) -> Sandbox:
        key = (profile, level)
        if key not in self._sandboxes:
            self._sandboxes[key] = self._make_sandbox(profile, level, self._state)
        return self._sandboxes[key]


def process_sandbox(profile: Profile, level: Level, directory: Path) -> Sandbox:
    """The real sandbox of a level from L1 on."""
    return ZygoteSandbox(profile, directory) if level >= Level.L2 else SubprocessSandbox(directory)


def choose_level(tool: Tool, capabilities: Capabilities, *, allow_weaker: bool = False) -> Level:
    """The isolation a call gets: L0 without a profile, else the best there is. SandboxUnavailable if it is too weak."""
    if tool.profile is None:
        return Level.L0
    if capabilities.best >= tool.min_level or (allow_weaker and capabilities.best >= Level.L1):
        return capabilities.best
    raise SandboxUnavailable(
        required=tool.min_level.name,
        best=capabilities.best.name,
        missing={each.primitive: each.reason for each in capabilities.missing},
        fix=capabilities.fix,
    )


def granted(wanted: Limits, ceiling: Limits, left_s: float) -> Limits:
    """A tool's limits, lowered to the operator's ceiling and to the time that is left."""
    return replace(
        wanted,
        wall_s=min(wanted.wall_s, ceiling.wall_s, max(left_s, 0.0)),
        cpu_s=min(wanted.cpu_s, ceiling.cpu_s),
        memory_bytes=min(wanted.memory_bytes, ceiling.memory_bytes),
        file_bytes=min(wanted.file_bytes, ceiling.file_bytes),
        workspace_bytes=min(wanted.workspace_bytes, ceiling.workspace_bytes),
    )


def encoded(tool: Tool, arguments: Mapping[str, JsonValue]) -> str:
    """The arguments as JSON text that is known to fit the tool; ToolError INVALID_ARGUMENTS otherwise."""
    if _depth(arguments) > JSON_DEPTH_MAX:
        raise ToolError("INVALID_ARGUMENTS", f"arguments: nested more than {JSON_DEPTH_MAX} deep; flatten them")
    text = json.dumps(arguments)
    if len(text) > tool.limits.arguments_bytes:
        message = (
            f"arguments: {len(text)} bytes of JSON, the limit is {tool.limits.arguments_bytes}; pass a file instead"
        )
        raise ToolError("INVALID_ARGUMENTS", message)
    tool.check(text)
    return text


@dataclass(frozen=True, slots=True)
class _Call:
    tool: Tool
    arguments: str
    workspace_dir: Path
    limits: Limits
    on_output: OnOutput | None

    def workspace(self) -> Workspace:
        return Workspace(
            self.workspace_dir,
            file_bytes_max=self.limits.file_bytes,
            total_bytes_max=self.limits.workspace_bytes,
        )

    def job(self) -> SandboxJob:
        request = Request(
            module=self.tool.module,
            arguments=self.arguments,
            file_bytes_max=self.limits.file_bytes,
            workspace_bytes_max=self.limits.workspace_bytes,
        )
        return SandboxJob(
            entry=ENTRY,
            payload=request.model_dump_json().encode(),
            workspace=self.workspace_dir,
            access=self.tool.access,
            limits=self.limits,
        )


async def _in_process(wall_s: float, work: Awaitable[Result]) -> tuple[Result, Transcript]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(wall_s):
            result = await work
    except TimeoutError as error:
        raise WallLimit(f"the call ran longer than {wall_s:g} s; do less in one call") from error
    return result, Transcript(usage=Usage(wall_s=time.monotonic() - began))


def _answered(tool: Tool, done: SandboxResult) -> Result:
    """The result inside a sandbox's answer. It comes from where foreign code ran, so every part of it is checked."""
    try:
        answer = Answer.model_validate_json(done.value).answer
        if isinstance(answer, Refused):
            raise ToolError(answer.kind, answer.message, retryable=answer.retryable, transcript=done.transcript)
        if _depth(answer.value) > JSON_DEPTH_MAX:
            raise OutputLimit(f"the result is nested more than {JSON_DEPTH_MAX} deep", transcript=done.transcript)
        result = tool.result.model_validate_json(json.dumps(answer.value))
    except (ValidationError, RecursionError) as error:
        message = f"{tool.name} left a result that does not fit its schema"
        raise ToolCrashed(message, transcript=done.transcript) from error
    return result.with_output(done.transcript.stdout.text, done.transcript.stderr.text)


def _artefact(workspace: Workspace, path: str) -> Artefact:
    data = workspace.read_bytes(path)
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return Artefact(path, hashlib.sha256(data).hexdigest(), len(data), media_type)


def _depth(value: JsonValue | Mapping[str, JsonValue]) -> int:
    """Nesting depth, counted without recursion, because the value may have been made to break one."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > JSON_DEPTH_MAX + 1:
            return depth
        level = [child for each in level for child in _children(each)]
    return depth


def _children(value: JsonValue | Mapping[str, JsonValue]) -> list[JsonValue]:
    match value:
        case Mapping():
            return list(value.values())
        case list():
            return value
        case _:
            return []
