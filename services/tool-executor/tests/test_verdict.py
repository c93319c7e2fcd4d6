import signal

import pytest
from tool_executor.errors import ToolCrashed
from tool_executor.sandboxes.sandbox import NO_TRANSCRIPT, Limits, Output, Transcript, Usage
from tool_executor.sandboxes.verdict import Ending, KilledFor, failure
from tool_executor.sandboxes.wire import ExitCode

LIMITS = Limits(cpu_s=2)


def kind_of(status: int, killed_for: KilledFor | None = None, transcript: Transcript = NO_TRANSCRIPT) -> str:
    failed = failure(Ending(status, killed_for, transcript), LIMITS)
    return failed.kind if failed else ""


def exited(code: int) -> int:
    return code << 8


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (exited(ExitCode.DONE), ""),
        (exited(ExitCode.RAISED), "TOOL_CRASHED"),
        (exited(ExitCode.OUT_OF_MEMORY), "LIMIT_MEMORY"),
        (exited(ExitCode.DENIED), "SYSCALL_DENIED"),
        (exited(1), "TOOL_CRASHED"),
        (signal.SIGXCPU, "LIMIT_CPU"),
        (signal.SIGXFSZ, "LIMIT_FILE"),
        (signal.SIGSYS, "SYSCALL_DENIED"),
        (signal.SIGKILL, "LIMIT_MEMORY"),
        (signal.SIGSEGV, "TOOL_CRASHED"),
    ],
)
def test_tells_what_an_ending_means(status: int, kind: str) -> None:
    assert kind_of(status) == kind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(KilledFor.WALL, "LIMIT_WALL"), (KilledFor.OUTPUT, "LIMIT_OUTPUT"), (KilledFor.STOP, "CANCELLED")],
)
def test_tells_our_own_kill_from_the_kernels(reason: KilledFor, kind: str) -> None:
    assert kind_of(signal.SIGKILL, reason) == kind


def test_takes_a_kill_after_all_processor_time_for_the_hard_cpu_limit() -> None:
    spent = Transcript(usage=Usage(cpu_user_s=2.5, cpu_system_s=0.5))
    assert kind_of(signal.SIGKILL, transcript=spent) == "LIMIT_CPU"


def test_names_the_signal_and_the_last_line_of_a_crash() -> None:
    crashed = failure(Ending(signal.SIGSEGV, None, Transcript()), LIMITS)
    assert isinstance(crashed, ToolCrashed)
    assert crashed.signal == "SIGSEGV"
    raised = failure(
        Ending(exited(ExitCode.RAISED), None, Transcript(stderr=Output("Traceback\nKeyError: 'x'"))), LIMITS
    )
    assert raised is not None
    assert "KeyError: 'x'" in raised.message
