"""How a tool call fails, and why the service refuses one.

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

Refused                     the request was not carried out; nothing ran and nothing changed
├── FieldInvalid            a field has a value that can never be right
├── ToolUnknown             no such tool or version; names near ones
├── ArgumentsInvalid        the arguments do not fit the tool's schema; carries every problem
├── ToolNotGranted          denied is the default
├── TooManyCalls            an agent or the executor runs as many calls as it may; repeat later
├── IdempotencyConflict     the call id stands for another call
├── CallUnknown             no call of this id in this tenant
├── NotReconcilable         the outcome of the call is known already, or it has not ended
├── GrantUnknown            no grant of this id in this tenant
├── LedgerRefused           a budget or quota has no room for the call; the ledger's own answer is passed on
└── LedgerUnavailable       the ledger cannot be asked now; repeat with the same call id
"""

from dataclasses import dataclass
from typing import ClassVar

from tool_executor.sandboxes.sandbox import NO_TRANSCRIPT, Transcript


class ToolCallFailed(Exception):
    """A tool call came to no result. `retryable` says whether the same call may succeed later.

    `transcript` holds the output and the resources used until then, NO_TRANSCRIPT where nobody measured.
    """

    def __init__(
        self, kind: str, message: str, *, retryable: bool = False, transcript: Transcript = NO_TRANSCRIPT
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable
        self.transcript = transcript


class ToolError(ToolCallFailed):
    """The tool's own refusal. The message names the field, the value and the remedy, and is meant for the model."""


class SandboxFailure(ToolCallFailed):
    """The isolation ended or refused the call."""

    KIND: ClassVar[str]

    def __init__(self, message: str, *, retryable: bool = False, transcript: Transcript = NO_TRANSCRIPT) -> None:
        super().__init__(self.KIND, message, retryable=retryable, transcript=transcript)


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


class Refused(Exception):
    """The base of every refusal by the service."""

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        return type(self).__name__


@dataclass(eq=False)
class FieldInvalid(Refused):
    field: str
    value: str
    problem: str

    @property
    def message(self) -> str:
        return f"{self.field} {self.value!r}: {self.problem}"


@dataclass(eq=False)
class ToolUnknown(Refused):
    reference: str
    near: tuple[str, ...]

    @property
    def message(self) -> str:
        known = f"did you mean {', '.join(self.near)}?" if self.near else "ListTools names those there are"
        return f"there is no tool {self.reference!r}; {known}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of the arguments; `path` is a JSON path, "$" for the whole."""

    path: str
    text: str


@dataclass(eq=False)
class ArgumentsInvalid(Refused):
    tool: str
    problems: tuple[Problem, ...]

    @property
    def message(self) -> str:
        listed = "; ".join(f"{problem.path}: {problem.text}" for problem in self.problems)
        return f"do not fit the parameters of {self.tool}: {listed}"


@dataclass(eq=False)
class ToolNotGranted(Refused):
    agent: str
    tool: str

    @property
    def message(self) -> str:
        return (
            f"agent {self.agent!r} may not use the tool {self.tool!r}: it has no grant; "
            f"GrantTool(agent={self.agent!r}, tool={self.tool!r}) allows it"
        )


@dataclass(eq=False)
class TooManyCalls(Refused):
    """`whose` runs `running` calls, the limit; one of them ends within `retry_after_s` as a rule."""

    whose: str
    running: int
    retry_after_s: float

    @property
    def message(self) -> str:
        return f"{self.whose} runs {self.running} tool calls, the most it may; repeat when one has ended"


@dataclass(eq=False)
class IdempotencyConflict(Refused):
    call_id: str
    differs: str

    @property
    def message(self) -> str:
        return f"call {self.call_id!r} was made before with another {self.differs}; take a new call id for a new call"


@dataclass(eq=False)
class CallUnknown(Refused):
    call_id: str

    @property
    def message(self) -> str:
        return f"there is no tool call {self.call_id!r}"


@dataclass(eq=False)
class NotReconcilable(Refused):
    call_id: str
    status: str

    @property
    def message(self) -> str:
        return f"call {self.call_id!r} is {self.status}: only a call whose outcome is unknown can be reconciled"


@dataclass(eq=False)
class GrantUnknown(Refused):
    grant_id: str

    @property
    def message(self) -> str:
        return f"there is no grant {self.grant_id!r}; see ListGrants"


@dataclass(eq=False)
class LedgerRefused(Refused):
    """`answer` is the ledger's own error, which is passed on to the caller unchanged."""

    answer: Exception

    @property
    def message(self) -> str:
        return str(self.answer)


@dataclass(eq=False)
class LedgerUnavailable(Refused):
    reason: str

    @property
    def message(self) -> str:
        return f"no call that is charged for may begin while cost-ledger cannot be asked: {self.reason}"
