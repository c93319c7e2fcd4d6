"""A small disk of our own, to be filled: a tmpfs in a mount namespace that only we and our children see. Needs no root."""

import ctypes
import errno
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
DISK_BYTES = 160 * 1024 * 1024
CHUNKS_BYTES = (1024 * 1024, 4096)


class DiskRefused(Exception):
    """This machine lets us have no disk of our own; the message says why."""


class SmallDisk:
    """What is mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Take every free byte."""
        with self._filler.open("wb", buffering=0) as filler:
            for size in CHUNKS_BYTES:
                _write_while_room(filler.fileno(), b"\0" * size)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


def mount(path: Path) -> SmallDisk:
    """A small disk at `path`. Call it before any thread is started. Raises DiskRefused."""
    path.mkdir(parents=True)
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    options = f"size={DISK_BYTES},mode=0700".encode()
    _checked(libc.mount(b"chaos", os.fsencode(path), b"tmpfs", 0, options), "mount")
    return SmallDisk(path)


def _write_while_room(descriptor: int, chunk: bytes) -> None:
    try:
        while True:
            os.write(descriptor, chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _checked(result: int, call: str) -> None:
    if result != 0:
        raise DiskRefused(f"{call}: {os.strerror(ctypes.get_errno())}")
