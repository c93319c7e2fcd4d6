"""Cleans up behind a launcher that was killed: ends what it left running and removes its temporary directories.

A program of its own (standard library only) that its launcher starts first and tells, a line at a time on standard
input, what would have to be cleaned up: `group <id>`, `-group <id>`, `directory <path>`, `-directory <path>`. When the
input ends the launcher has ended, however that came about. Children get a death signal from the kernel at the same
moment (shield.py); the warden waits for them, then kills what is left of their process groups, grandchildren included.
"""

import os
import shutil
import signal
import sys
import time

POLL_S = 0.02


def main(grace_s: float) -> None:
    groups, directories = _listen()
    end = time.monotonic() + grace_s
    while any(map(_exists, groups)) and time.monotonic() < end:
        time.sleep(POLL_S)
    for group in filter(_exists, groups):
        os.killpg(group, signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _listen() -> tuple[set[int], set[str]]:
    groups: set[int] = set()
    directories: set[str] = set()
    for line in sys.stdin:
        what, _, value = line.rstrip("\n").partition(" ")
        match what:
            case "group":
                groups.add(int(value))
            case "-group":
                groups.discard(int(value))
            case "directory":
                directories.add(value)
            case "-directory":
                directories.discard(value)
    return groups, directories


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main(float(sys.argv[1]))
