"""file_write: write a text file into the run's workspace."""

import hashlib

from pydantic import Field

from tool_executor.sandboxes.sandbox import Access
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

CHARACTERS_MAX = 200_000


class FileWriteArguments(Arguments):
    path: str = Field(description="Relative path in the workspace; missing directories are made.")
    content: str = Field(max_length=CHARACTERS_MAX)
    overwrite: bool = Field(default=True, description="False: fail if the file exists.")


class FileWriteResult(Result):
    path: str
    size_bytes: int
    sha256: str

    def artefacts(self) -> tuple[str, ...]:
        return (self.path,)


def run(arguments: FileWriteArguments, workspace: Workspace) -> FileWriteResult:
    """ToolError INVALID_PATH, FILE_EXISTS, TOO_LARGE. The file is written whole or not at all."""
    data = arguments.content.encode()
    workspace.write_bytes(arguments.path, data, replace=arguments.overwrite)
    return FileWriteResult(path=arguments.path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


TOOL = PureTool(
    name="file_write",
    version="1.0.0",
    title="Write a file",
    description="Writes UTF-8 text into a file of this run's workspace, where other tools and people find it.",
    arguments=FileWriteArguments,
    result=FileWriteResult,
    effect=Effect.IDEMPOTENT,
    access=Access.WRITE,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"path": "out/hello.txt", "content": "hello"},
            expected={
                "size_bytes": 5,
                "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            },
        ),
        SelfTest(arguments={"path": "../up.txt", "content": "x"}, error="INVALID_PATH"),
        SelfTest(
            arguments={"path": "a.txt", "content": "x", "overwrite": False}, files={"a.txt": "y"}, error="FILE_EXISTS"
        ),
    ),
)
