"""Finds out by trial which isolation this machine offers. `python -I -m tool_executor.sandboxes.probe` prints it.

Every primitive is tried for real in a child of a fresh process: kernel versions and configuration files lie, as a
container's own seccomp profile may refuse what the kernel can do.
"""

import errno
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tool_executor.sandboxes import jail, kernel, landlock, seccomp
from tool_executor.sandboxes.sandbox import MIB, Access, Level
from tool_executor.sandboxes.zygote_process import ENVIRONMENT

TIMEOUT_S = 30.0
FIXES = {
    "landlock": "Run on Linux 5.13 or later with `landlock` in the lsm= list, in a container profile that allows it.",
    "seccomp": "Allow seccomp(2) filters, on x86_64 or aarch64.",
    "jail": "Allow Landlock and seccomp together; the reason above says which step failed.",
    "rlimits": "Let the process lower its own resource limits.",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A primitive that does not work here, and why."""

    primitive: str
    reason: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found: the levels to be had, Landlock's ABI (0: none) and what is missing for more."""

    levels: tuple[Level, ...]
    landlock_abi: int
    missing: tuple[Missing, ...] = ()

    @property
    def best(self) -> Level:
        return max(self.levels)

    @property
    def fix(self) -> str:
        """What an operator can do about what is missing."""
        return " ".join(FIXES[each.primitive] for each in self.missing)


def probe() -> Capabilities:
    """Try every primitive in a fresh process (about 0.2 s); what fails, or does not end in time, counts as missing."""
    command = [sys.executable, "-I", "-m", "tool_executor.sandboxes.probe"]
    try:
        done = subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, timeout=TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        return capabilities(0, {"jail": f"the probe did not end within {TIMEOUT_S:g} s"})
    except subprocess.CalledProcessError as error:
        return capabilities(0, {"jail": error.stderr.decode(errors="replace").strip()[-300:]})
    found = json.loads(done.stdout)
    return capabilities(found["landlock_abi"], found["missing"])


def capabilities(landlock_abi: int, missing: dict[str, str]) -> Capabilities:
    """L0 needs nothing, L1 resource limits, L2 everything."""
    levels = [Level.L0]
    if "rlimits" not in missing:
        levels.append(Level.L1)
    if not missing:
        levels.append(Level.L2)
    return Capabilities(tuple(levels), landlock_abi, tuple(Missing(*each) for each in missing.items()))


class NotEnforced(Exception):
    """The kernel accepted a restriction, and then did not apply it."""


def _try_landlock() -> None:
    landlock.restrict(((Path("/usr"), landlock.READ),))
    _expect(errno.EACCES, "listing /etc", lambda: next(Path("/etc").iterdir()))


def _try_seccomp() -> None:
    seccomp.install()
    _expect(errno.EPERM, "opening a socket", socket.socket)
    _expect(errno.EPERM, "forking", os.fork)


def _try_jail(result: Path) -> None:
    jail.confine(result, None, Access.NONE)
    result.write_bytes(b"written")
    _expect(errno.EACCES, "listing the directory of the result", lambda: next(result.parent.iterdir()))


def _try_rlimits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (256 * MIB, 256 * MIB))
    _expect(errno.ENOMEM, "mapping 512 MiB", lambda: mmap.mmap(-1, 512 * MIB))


def _primitives(result: Path) -> tuple[tuple[str, Callable[[], None]], ...]:
    return (
        ("landlock", _try_landlock),
        ("seccomp", _try_seccomp),
        ("jail", lambda: _try_jail(result)),
        ("rlimits", _try_rlimits),
    )


def _expect(code: int, what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        if error.errno == code:
            return
        raise
    raise NotEnforced(f"{what} was not refused")


def _failure_of(attempt: Callable[[], None]) -> str:
    """Why the attempt fails, or nothing. It runs in a child, because a restriction cannot be taken back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, _outcome(attempt).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        reason = report.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return reason or (f"the attempt ended with {code}" if code else "")


def _outcome(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
    except (NotEnforced, seccomp.UnsupportedArchitecture) as error:
        return str(error)
    return ""


def _landlock_abi() -> int:
    try:
        return landlock.abi()
    except OSError:
        return 0


def _report() -> dict[str, object]:
    with tempfile.NamedTemporaryFile() as result:
        reasons = {name: _failure_of(attempt) for name, attempt in _primitives(Path(result.name))}
    return {"landlock_abi": _landlock_abi(), "missing": {name: reason for name, reason in reasons.items() if reason}}


if __name__ == "__main__":
    kernel.no_new_privileges()
    json.dump(_report(), sys.stdout)
