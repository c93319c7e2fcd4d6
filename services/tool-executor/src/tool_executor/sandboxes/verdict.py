"""From how a process ended to the error it means. Pure: the kernel's facts come in, the failure goes out."""

import os
import signal
from dataclasses import dataclass
from enum import Enum

from tool_executor.errors import (
    CallCancelled,
    CpuLimit,
    FileLimit,
    MemoryLimit,
    OutputLimit,
    SandboxFailure,
    SyscallDenied,
    ToolCrashed,
    WallLimit,
)
from tool_executor.sandboxes.sandbox import MIB, Limits, Transcript
from tool_executor.sandboxes.wire import ExitCode


class KilledFor(Enum):
    """Why we killed the process ourselves."""

    WALL = "wall"
    OUTPUT = "output"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Ending:
    """`status` is a wait status (waitpid(2)); `killed_for` is set if the SIGKILL was ours."""

    status: int
    killed_for: KilledFor | None
    transcript: Transcript


def failure(ending: Ending, limits: Limits) -> SandboxFailure | None:
    """The failure an ending means, or None if the process ended well."""
    if ending.killed_for is not None:
        return _our_kill(ending.killed_for, limits, ending.transcript)
    if os.WIFSIGNALED(ending.status):
        return _signal(signal.Signals(os.WTERMSIG(ending.status)), limits, ending.transcript)
    return _exit(os.waitstatus_to_exitcode(ending.status), limits, ending.transcript)


def _our_kill(reason: KilledFor, limits: Limits, transcript: Transcript) -> SandboxFailure:
    match reason:
        case KilledFor.WALL:
            message = f"the call ran longer than {limits.wall_s:g} s; do less in one call"
            return WallLimit(message, transcript=transcript)
        case KilledFor.OUTPUT:
            message = f"the call printed more than {limits.output_bytes} bytes; print less, or return the value"
            return OutputLimit(message, transcript=transcript)
        case KilledFor.STOP:
            return CallCancelled(
                "the executor stopped while the call was running", retryable=True, transcript=transcript
            )


def _signal(number: signal.Signals, limits: Limits, transcript: Transcript) -> SandboxFailure:
    used_cpu_s = transcript.usage.cpu_user_s + transcript.usage.cpu_system_s
    match number:
        case signal.SIGXCPU:
            return _cpu(limits, transcript)
        case signal.SIGKILL if used_cpu_s >= limits.cpu_s:
            return _cpu(limits, transcript)  # the code ignored SIGXCPU, the hard limit does not ask
        case signal.SIGKILL:
            return MemoryLimit("the kernel killed the process: the machine ran out of memory", transcript=transcript)
        case signal.SIGXFSZ:
            return FileLimit(f"a file grew over {limits.file_bytes} bytes; write less", transcript=transcript)
        case signal.SIGSYS:
            message = "the code made a system call no tool may make (ptrace, mount, bpf, io_uring, keys, namespaces)"
            return SyscallDenied(message, transcript=transcript)
        case _:
            return ToolCrashed(f"the process died of {number.name}", signal=number.name, transcript=transcript)


def _exit(code: int, limits: Limits, transcript: Transcript) -> SandboxFailure | None:
    match code:
        case ExitCode.DONE:
            return None
        case ExitCode.OUT_OF_MEMORY:
            message = (
                f"the call needs more than {limits.memory_bytes // MIB} MiB of memory; work on less data at a time"
            )
            return MemoryLimit(message, transcript=transcript)
        case ExitCode.DENIED:
            message = "the code asked for what the jail forbids (a socket, a process, file modes): " + _last(transcript)
            return SyscallDenied(message, transcript=transcript)
        case _:
            return ToolCrashed(f"the process ended with code {code}: {_last(transcript)}", transcript=transcript)


def _cpu(limits: Limits, transcript: Transcript) -> SandboxFailure:
    return CpuLimit(f"the call used more than {limits.cpu_s} s of processor time; compute less", transcript=transcript)


def _last(transcript: Transcript) -> str:
    """The last line of standard error: of a traceback, the one that says what happened."""
    lines = transcript.stderr.text.strip().splitlines()
    return lines[-1][:300] if lines else "it wrote nothing to standard error"
