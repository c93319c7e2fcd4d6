"""What a sandbox is asked to do, what it answers, and the Protocol that every level implements."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Literal, Protocol

KIB = 1024
MIB = 1024 * KIB


class Level(IntEnum):
    """Strength of isolation; a higher level contains every promise of a lower one."""

    L0 = 0  # in process: our own reviewed, bounded code
    L1 = 1  # a process of its own with resource limits and an empty environment: trusted code only
    L2 = 2  # L1 and no_new_privs, Landlock and seccomp: code written by a model


class Access(StrEnum):
    """What a call may do with the files of its run's workspace."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may use. Reaching a limit ends the call with the error of that limit."""

    wall_s: float = 30.0
    cpu_s: int = 10
    memory_bytes: int = 512 * MIB
    file_bytes: int = 16 * MIB
    workspace_bytes: int = 64 * MIB
    descriptors: int = 64
    arguments_bytes: int = 256 * KIB
    result_bytes: int = 256 * KIB
    output_kept_bytes: int = 64 * KIB
    output_bytes: int = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxJob:
    """One function to run apart from us, with the workspace as its working directory.

    `entry` is "module:function", of (payload: bytes, workspace: str) -> bytes.
    """

    entry: str
    payload: bytes
    workspace: Path | None = None
    access: Access = Access.NONE
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Output:
    """What a call wrote to one stream: head and tail if it was much, and how much it was in truth."""

    text: str = ""
    size_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resources of one call, as the kernel reported them when the process ended."""

    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    stdout: Output = Output()
    stderr: Output = Output()
    usage: Usage = Usage()


NO_TRANSCRIPT = Transcript()


@dataclass(frozen=True, slots=True)
class SandboxResult:
    value: bytes
    transcript: Transcript


StreamName = Literal["stdout", "stderr"]
OnOutput = Callable[[StreamName, bytes], None]


class Sandbox(Protocol):
    """Runs one job at a time per call of run(); calls may overlap.

    The sandbox owns its processes, pipes and the private directory of each call, and removes them before run() ends.
    The caller owns the workspace: it exists before, and stays after. run() raises a SandboxFailure and nothing else
    (tool_executor.errors); when its task is cancelled the job's process is killed before CancelledError goes on.
    The value is what the job's function returned. It was written by the jailed process, so it is data to be validated;
    how the process ended is known only from the kernel.
    """

    @property
    def level(self) -> Level: ...

    async def start(self) -> None:
        """Do now what the first run would do before its job, as far as that can be done ahead."""
        ...

    async def run(self, job: SandboxJob, on_output: OnOutput | None = None) -> SandboxResult: ...

    async def aclose(self) -> None: ...
