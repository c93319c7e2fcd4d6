"""The data directory of one system: that it is ours, that we alone use it, and that it can hold what comes."""

import errno
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from launcher.errors import DataLocked, DataUnusable, DiskFull, LauncherError
from launcher.layout import MIB, Layout

MARKER = "synod-data.json"
LOCK = "lock"
FORMAT = 1
ANOTHER = "Choose another directory with --data."


@contextmanager
def claimed(layout: Layout, *, fresh: bool = False) -> Iterator[None]:
    """Holds the data directory for us alone, made if it is not there, emptied first if `fresh`.

    Raises DataLocked, DataUnusable or DiskFull, each before anything in the directory is changed.
    """
    data = layout.data
    with ExitStack() as held:
        with _explained(data):
            _check_marker(data)
            data.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(data))
            if fresh:
                _empty(data)
            _check_space(layout)
            (data / MARKER).write_text(json.dumps({"kind": "synod-data", "format": FORMAT}))
            for directory in (layout.keys, layout.logs):
                directory.mkdir(mode=0o700, exist_ok=True)
        yield


@contextmanager
def _explained(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> LauncherError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("data", data, "the disk is full", f"Free space there. {ANOTHER}")
    return DataUnusable("data", data, f"cannot be used ({error.strerror})", f"Make it writable for you. {ANOTHER}")


def _check_marker(data: Path) -> None:
    if not data.exists() or not any(data.iterdir()):
        return
    try:
        marker = json.loads((data / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        raise DataUnusable("data", data, "has files but is not a data directory of Synod", ANOTHER) from None
    if marker.get("format") != FORMAT:
        problem = f"is of format {marker.get('format')}, this version writes {FORMAT}"
        raise DataUnusable("data", data, problem, f"Use the version that wrote it, or --fresh. {ANOTHER}")


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    with (data / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            remedy = f"Stop it (Ctrl-C there), or use it as it is. {ANOTHER}"
            raise DataLocked("data", data, f"is held by {holder}", remedy) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC ({shlex.join(sys.argv)})")
        lock.flush()
        yield
        lock.truncate(0)


def _empty(data: Path) -> None:
    # The marker goes last: a removal that was interrupted can be taken up again.
    for entry in sorted(data.iterdir(), key=lambda entry: entry.name == MARKER):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_space(layout: Layout) -> None:
    free, needed = shutil.disk_usage(layout.data).free, layout.limits.disk_free_bytes_min
    if free < needed:
        problem = f"{free // MIB} MiB are free on its disk, {needed // MIB} MiB are needed"
        raise DiskFull("data", layout.data, problem, f"Free space there. {ANOTHER}")
