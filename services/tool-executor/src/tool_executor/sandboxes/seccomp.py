"""The jail's system call filter: an allow list written as a classic BPF program.

Source: Linux Documentation/userspace-api/seccomp_filter.rst. `program()` is pure, so that tests can run it on every
architecture; `install()` binds it to the calling thread and whatever it starts, for good.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tool_executor.sandboxes.kernel import no_new_privileges, prctl
from tool_executor.sandboxes.syscalls import ABSENT, ALLOWED, CONDITIONAL, FATAL, Syscall

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
NOT_IMPLEMENTED = 0x00050000 | errno.ENOSYS

LOAD, AND, RETURN = 0x20, 0x54, 0x06
IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT = 0x15, 0x35, 0x45
OFFSET_NUMBER, OFFSET_ARCHITECTURE, OFFSET_ARGUMENTS = 0, 4, 16

X32_BIT = 0x40000000
CLONE_THREAD = 0x00010000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


class Architecture(Enum):
    """The value is AUDIT_ARCH_* of linux/audit.h, which the kernel shows to the filter."""

    X86_64 = 0xC000003E
    AARCH64 = 0xC00000B7


@dataclass(frozen=True, slots=True)
class Instruction:
    """One struct sock_filter; `true` and `false` say how many instructions a jump skips."""

    code: int
    operand: int
    true: int = 0
    false: int = 0


class UnsupportedArchitecture(Exception):
    """The filter has no system call table for this machine."""


def this_architecture() -> Architecture:
    machine = os.uname().machine
    match machine:
        case "x86_64":
            return Architecture.X86_64
        case "aarch64" | "arm64":
            return Architecture.AARCH64
        case _:
            raise UnsupportedArchitecture(f"no system call table for {machine}; x86_64 and aarch64 have one")


def program(architecture: Architecture, pid: int) -> tuple[Instruction, ...]:
    """The filter for a process with this id (it may signal itself and nobody else)."""
    return (
        *_only_architecture(architecture),
        *_always(FATAL, KILL_PROCESS, architecture),
        *_always(ABSENT, NOT_IMPLEMENTED, architecture),
        *_conditional(architecture, pid),
        *_always(ALLOWED, ALLOW, architecture),
        Instruction(RETURN, REFUSE),
    )


def install() -> None:
    """Put the calling process under the filter; OSError if the kernel refuses."""
    no_new_privileges()
    instructions = program(this_architecture(), os.getpid())
    raw = b"".join(struct.pack("HBBI", each.code, each.true, each.false, each.operand) for each in instructions)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(buffer)), 16)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _only_architecture(architecture: Architecture) -> Iterable[Instruction]:
    """A 32-bit or x32 call has other numbers: judging it by this table would let anything through."""
    yield Instruction(LOAD, OFFSET_ARCHITECTURE)
    yield Instruction(IF_EQUAL, architecture.value, true=1)
    yield Instruction(RETURN, KILL_PROCESS)
    yield Instruction(LOAD, OFFSET_NUMBER)
    if architecture is Architecture.X86_64:
        yield Instruction(IF_AT_LEAST, X32_BIT, false=1)
        yield Instruction(RETURN, KILL_PROCESS)


def _always(syscalls: tuple[Syscall, ...], verdict: int, architecture: Architecture) -> Iterable[Instruction]:
    for syscall in syscalls:
        if (number := _number(syscall, architecture)) is not None:
            yield Instruction(IF_EQUAL, number, false=1)
            yield Instruction(RETURN, verdict)


def _conditional(architecture: Architecture, pid: int) -> Iterable[Instruction]:
    for syscall in CONDITIONAL:
        if (number := _number(syscall, architecture)) is not None:
            condition = tuple(_condition(syscall.name, pid))
            yield Instruction(IF_EQUAL, number, false=len(condition))
            yield from condition


def _condition(name: str, pid: int) -> Iterable[Instruction]:
    match name:
        case "openat":
            return _not_truncating_for_read()
        case "clone":
            return _with_any_bit(0, CLONE_THREAD)  # threads, not processes
        case "prctl":
            return _one_of(0, (15, 16, 0x53564D41))  # set and get the thread's name, name a memory area
        case "ioctl":
            return _one_of(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))  # is it a terminal, readable, ...
        case "fcntl":
            return _one_of(1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032))  # not F_SETOWN: it aims signals
        case "prlimit64":
            return _one_of(0, (0, pid))
        case _:
            return _one_of(0, (pid,))  # kill, tgkill: abort() needs them, others must not be reached


def _one_of(argument: int, values: tuple[int, ...]) -> Iterable[Instruction]:
    yield _load_argument(argument)
    for value in values:
        yield Instruction(IF_EQUAL, value, false=1)
        yield Instruction(RETURN, ALLOW)
    yield Instruction(RETURN, REFUSE)


def _with_any_bit(argument: int, mask: int) -> Iterable[Instruction]:
    yield _load_argument(argument)
    yield Instruction(IF_ANY_BIT, mask, false=1)
    yield Instruction(RETURN, ALLOW)
    yield Instruction(RETURN, REFUSE)


def _not_truncating_for_read() -> Iterable[Instruction]:
    """Landlock before ABI 3 takes open(O_RDONLY | O_TRUNC) for a mere read, yet it empties the file."""
    yield _load_argument(2)
    yield Instruction(AND, os.O_TRUNC | os.O_ACCMODE)
    yield Instruction(IF_EQUAL, os.O_TRUNC | os.O_RDONLY, false=1)
    yield Instruction(RETURN, REFUSE)
    yield Instruction(RETURN, ALLOW)


def _load_argument(index: int) -> Instruction:
    """The low half: the kernel takes each of these arguments as a 32-bit value (both machines are little-endian)."""
    return Instruction(LOAD, OFFSET_ARGUMENTS + 8 * index)


def _number(syscall: Syscall, architecture: Architecture) -> int | None:
    return syscall.x86_64 if architecture is Architecture.X86_64 else syscall.aarch64
