"""How a tool call fails.

ToolCallFailed              kind (stable, UPPER_SNAKE), message, retryable
├── ToolError               the tool itself says so: wrong arguments, a missing file, a refused address
└── SandboxFailure          the isolation says so; carries what the call had written until then
    ├── SandboxUnavailable  SANDBOX_UNAVAILABLE  no isolation strong enough here; nothing ran
    ├── LimitExceeded       the call needed more than its manifest grants
    │   ├── WallLimit       LIMIT_WALL
    │   ├── CpuLimit        LIMIT_CPU
    │   ├── MemoryLimit     LIMIT_MEMORY
    │   ├── FileLimit       LIMIT_FILE
    │   └── OutputLimit     LIMIT_OUTPUT
    ├── SyscallDenied       SYSCALL_DENIED       the code asked the kernel for what the jail forbids
    ├── CallCancelled       CANCELLED            the executor stopped while the call was running
    └── ToolCrashed         TOOL_CRASHED         ended by a signal, or without leaving a result
"""

from typing import ClassVar

from tool_executor.sandboxes.sandbox import NO_TRANSCRIPT, Transcript


class ToolCallFailed(Exception):
    """A tool call came to no result. `retryable` says whether the same call may succeed later."""

    def __init__(self, kind: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable


class ToolError(ToolCallFailed):
    """The tool's own refusal. The message names the field, the value and the remedy, and is meant for the model."""


class SandboxFailure(ToolCallFailed):
    """The isolation ended or refused the call. `transcript` holds the output and the resources used until then."""

    KIND: ClassVar[str]

    def __init__(self, message: str, *, retryable: bool = False, transcript: Transcript = NO_TRANSCRIPT) -> None:
        super().__init__(self.KIND, message, retryable=retryable)
        self.transcript = transcript


class SandboxUnavailable(SandboxFailure):
    """No sandbox of the required level exists on this machine. `missing` maps a primitive to why it does not work."""

    KIND = "SANDBOX_UNAVAILABLE"

    def __init__(self, *, required: str, best: str, missing: dict[str, str], fix: str) -> None:
        reasons = "; ".join(f"{primitive}: {reason}" for primitive, reason in missing.items()) or "not started"
        super().__init__(f"isolation {required} is required, the best here is {best} ({reasons}). {fix}")
        self.required = required
        self.best = best
        self.missing = missing
        self.fix = fix


class LimitExceeded(SandboxFailure):
    """The call needed more than its limits grant."""


class WallLimit(LimitExceeded):
    KIND = "LIMIT_WALL"


class CpuLimit(LimitExceeded):
    KIND = "LIMIT_CPU"


class MemoryLimit(LimitExceeded):
    KIND = "LIMIT_MEMORY"


class FileLimit(LimitExceeded):
    KIND = "LIMIT_FILE"


class OutputLimit(LimitExceeded):
    KIND = "LIMIT_OUTPUT"


class SyscallDenied(SandboxFailure):
    KIND = "SYSCALL_DENIED"


class CallCancelled(SandboxFailure):
    KIND = "CANCELLED"


class ToolCrashed(SandboxFailure):
    """`signal` names the signal that ended the process, or is empty when it exited by itself."""

    KIND = "TOOL_CRASHED"

    def __init__(self, message: str, *, signal: str = "", transcript: Transcript = NO_TRANSCRIPT) -> None:
        super().__init__(message, transcript=transcript)
        self.signal = signal
