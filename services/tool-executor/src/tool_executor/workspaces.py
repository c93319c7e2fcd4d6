"""The workspaces of all runs: a directory each, <root>/<tenant>/<workspace id>, with limits on what is put into it."""

import hashlib
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool_executor.errors import FieldInvalid, ToolError
from tool_executor.sandboxes.sandbox import MIB
from tool_executor.tools.workspace import Workspace

FILE_BYTES_MAX: Final = 16 * MIB
WORKSPACE_BYTES_MAX: Final = 64 * MIB
FILES_MAX: Final = 1000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class File:
    """``sha256`` is hexadecimal."""

    path: str
    size_bytes: int
    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Workspaces:
    """The calls block for as long as the disk does: call them in a thread. They raise FieldInvalid and ToolError."""

    root: Path

    def directory(self, tenant: str, workspace_id: str) -> Path:
        """The directory of a workspace, which exists from now on."""
        path = self._path(tenant, workspace_id)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def put(self, tenant: str, workspace_id: str, path: str, content: bytes) -> File:
        workspace = _workspace(self.directory(tenant, workspace_id))
        names = {file.path for file in workspace.files()}
        if path not in names and len(names) >= FILES_MAX:
            raise ToolError("TOO_LARGE", f"path: the workspace has its {FILES_MAX} files; replace one of them")
        workspace.write_bytes(path, content)
        return _file(path, content)

    def get(self, tenant: str, workspace_id: str, path: str) -> tuple[File, bytes]:
        content = self._existing(tenant, workspace_id).read_bytes(path)
        return _file(path, content), content

    def files(self, tenant: str, workspace_id: str) -> tuple[File, ...]:
        """In order of path; none of a workspace that nothing was put into."""
        if not self._path(tenant, workspace_id).is_dir():
            return ()
        workspace = self._existing(tenant, workspace_id)
        return tuple(_file(file.path, workspace.read_bytes(file.path)) for file in workspace.files())

    def _existing(self, tenant: str, workspace_id: str) -> Workspace:
        path = self._path(tenant, workspace_id)
        if not path.is_dir():
            raise ToolError("NOT_FOUND", f"workspace_id: nothing was put into {workspace_id!r} yet")
        return _workspace(path)

    def _path(self, tenant: str, workspace_id: str) -> Path:
        for field, name in (("tenant", tenant), ("workspace_id", workspace_id)):
            if _NAME.fullmatch(name) is None:
                raise FieldInvalid(field, name[:128], "must be 1 to 128 of A-Z a-z 0-9 _ -, such as the id of a run")
        return self.root / tenant / workspace_id


def _workspace(root: Path) -> Workspace:
    return Workspace(root, file_bytes_max=FILE_BYTES_MAX, total_bytes_max=WORKSPACE_BYTES_MAX)


def _file(path: str, content: bytes) -> File:
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return File(path, len(content), hashlib.sha256(content).hexdigest(), media_type)
