"""Runs before a child's own program: binds the child's life to its parent's, gives up root, then becomes the program.

Called as `python -I -S shield.py <parent pid> <death signal> <identity> <program> <arguments...>`. It is a program of
its own, not a `preexec_fn`, because code between fork and exec may deadlock in a process that has threads. It imports
the standard library only, so that it costs some twenty milliseconds.

The identity is one of: `same`; `namespace:<uid>`, a user namespace in which our user is seen as <uid>, so that a
program that refuses root runs while the files stay ours; `drop:<uid>:<gid>`, the uid itself (files must be its own).
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
CANNOT_RUN = 126


def main(arguments: list[str]) -> None:
    parent, death_signal, identity, *program = arguments
    _take(identity)
    _die_with(int(parent), int(death_signal))
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        sys.exit(CANNOT_RUN)


def _take(identity: str) -> None:
    kind, *ids = identity.split(":")
    if kind == "namespace":
        _enter_namespace(int(ids[0]))
    elif kind == "drop":
        os.setgroups([])
        os.setgid(int(ids[1]))
        os.setuid(int(ids[0]))


def _enter_namespace(uid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _libc_call("unshare", CLONE_NEWUSER)
    # The kernel takes a group map from a process without privileges only once setgroups is given up.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{uid} {outer_gid} 1")


def _die_with(parent: int, death_signal: int) -> None:
    # After the change of identity: the kernel forgets the death signal whenever credentials change.
    if sys.platform != "linux":
        return
    _libc_call("prctl", PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit("the parent ended before its child began")


def _libc_call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        sys.exit(f"{function}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
