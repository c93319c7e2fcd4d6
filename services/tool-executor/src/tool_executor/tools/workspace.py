"""The files of one run. No path leads out of it: not by "..", not by a symbolic link, not by a race.

Every component of a path is opened relative to the one before with O_NOFOLLOW (the openat(2) way), so what was checked
is what is used.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tool_executor.errors import ToolError

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PATH_DEPTH_MAX = 16
PATH_LENGTH_MAX = 512
FILES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class WorkspaceFile:
    path: str
    size_bytes: int


class Workspace:
    """Reads and writes beneath `root`, which must exist. Paths are relative, with "/" between their parts."""

    def __init__(self, root: Path, *, file_bytes_max: int, total_bytes_max: int) -> None:
        self._root = root
        self._file_bytes_max = file_bytes_max
        self._total_bytes_max = total_bytes_max

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The file for reading; ToolError NOT_FOUND, INVALID_PATH or TOO_LARGE."""
        with self._parent(path, make=False) as (parent, name):
            descriptor = _opened(parent, name, path)
        try:
            self._expect_regular(descriptor, path)
            file = os.fdopen(descriptor, "rb", closefd=False)
            yield file
        finally:
            os.close(descriptor)

    def read_bytes(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def write_bytes(self, path: str, data: bytes, *, replace: bool = True) -> None:
        """Write the file whole or not at all, with the directories above it. ToolError TOO_LARGE, FILE_EXISTS, ..."""
        self._expect_room(path, len(data))
        with self._parent(path, make=True) as (parent, name):
            if not replace and _exists(parent, name):
                raise ToolError("FILE_EXISTS", f"path: {path!r} exists; choose another name or set overwrite to true")
            _write_whole(parent, name, data, path)

    def check(self, path: str) -> None:
        """The checks of open(), for libraries that open files by name."""
        with self.open(path):
            return

    def files(self) -> tuple[WorkspaceFile, ...]:
        """All regular files in order of path; links are passed over."""
        return tuple(sorted(self._walk(), key=lambda file: file.path))

    def _walk(self) -> Iterator[WorkspaceFile]:
        seen = 0
        for directory, _, names, descriptor in os.fwalk(self._root, follow_symlinks=False):
            for name in names:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                seen += 1
                if seen > FILES_MAX:
                    raise ToolError("TOO_LARGE", f"the workspace has more than {FILES_MAX} files; remove some")
                if stat.S_ISREG(found.st_mode):
                    yield WorkspaceFile(str((Path(directory) / name).relative_to(self._root)), found.st_size)

    @contextmanager
    def _parent(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds the path's last component, and that component's name."""
        parts = _parts(path)
        descriptor = os.open(self._root, DIRECTORY)
        try:
            for part in parts[:-1]:
                descriptor = _descend(descriptor, part, path, make=make)
            yield descriptor, parts[-1]
        finally:
            os.close(descriptor)

    def _expect_regular(self, descriptor: int, path: str) -> None:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ToolError("INVALID_PATH", f"path: {path!r} is not a file")
        if found.st_size > self._file_bytes_max:
            message = (
                f"path: {path!r} has {found.st_size} bytes, the limit is {self._file_bytes_max}; use a smaller file"
            )
            raise ToolError("TOO_LARGE", message)

    def _expect_room(self, path: str, size_bytes: int) -> None:
        if size_bytes > self._file_bytes_max:
            message = f"content for {path!r} has {size_bytes} bytes, the limit is {self._file_bytes_max}; write less"
            raise ToolError("TOO_LARGE", message)
        used = sum(file.size_bytes for file in self._walk() if file.path != path)
        if used + size_bytes > self._total_bytes_max:
            message = f"{path!r} would fill the workspace over {self._total_bytes_max} bytes ({used} used); write less"
            raise ToolError("TOO_LARGE", message)


def _parts(path: str) -> tuple[str, ...]:
    pure = PurePosixPath(path)
    wrong = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in path
    if wrong or len(pure.parts) > PATH_DEPTH_MAX or len(path) > PATH_LENGTH_MAX:
        message = f"path: {path[:200]!r} does not name a file inside the workspace; give a relative path without '..'"
        raise ToolError("INVALID_PATH", message)
    return pure.parts


def _descend(parent: int, part: str, path: str, *, make: bool) -> int:
    """The directory `part` of `parent`, which is closed; made if asked."""
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(part, mode=0o700, dir_fd=parent)
        child = os.open(part, DIRECTORY, dir_fd=parent)
    except OSError as error:
        raise _refusal(error, path) from error
    os.close(parent)
    return child


def _opened(parent: int, name: str, path: str) -> int:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise _refusal(error, path) from error


def _write_whole(parent: int, name: str, data: bytes, path: str) -> None:
    """By a new file and a rename, which replaces a link instead of following it."""
    part = f".{secrets.token_hex(16)}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode=0o600, dir_fd=parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.rename(part, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        if _exists(parent, part):
            os.unlink(part, dir_fd=parent)
        raise _refusal(error, path) from error


def _exists(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _refusal(error: OSError, path: str) -> ToolError:
    if isinstance(error, FileNotFoundError):
        return ToolError("NOT_FOUND", f"path: there is no {path!r} in the workspace; list its files, then choose one")
    message = f"path: {path!r} is not usable ({error.strerror}); links, devices and files used as folders are refused"
    return ToolError("INVALID_PATH", message)
