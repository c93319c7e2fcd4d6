"""The few kernel calls that the standard library does not offer."""

import ctypes
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522


def checked(result: int) -> int:
    """The result of a C call, or the OSError that errno names."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    arguments = (ctypes.c_ulong(first), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0))
    checked(LIBC.prctl(ctypes.c_int(option), *arguments))


def no_new_privileges() -> None:
    """No setuid program can raise this process any more; the kernel demands it before Landlock and seccomp."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal: int) -> None:
    """Have the kernel send `signal` to this process when the thread that forked it ends."""
    prctl(PR_SET_PDEATHSIG, signal)


def hide_memory() -> None:
    """Keep processes of the same user from reading this one through /proc or ptrace."""
    prctl(PR_SET_DUMPABLE, 0)


def drop_capabilities() -> None:
    """Give up every capability: uid 0 is then an ordinary user that happens to own root's files."""
    header = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION_3, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    checked(LIBC.capset(header, nothing))
