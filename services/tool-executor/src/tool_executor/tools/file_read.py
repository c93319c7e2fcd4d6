"""file_read: read a text file of the run's workspace."""

from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

CHARACTERS_MAX = 100_000


class FileReadArguments(Arguments):
    path: str = Field(description="Relative path in the workspace.")
    first_line: int = Field(default=1, ge=1, description="Start at this line (1 is the first).")
    lines_max: int = Field(default=2000, ge=1, le=20_000, description="Read so many lines at most.")


class FileReadResult(Result):
    path: str
    text: str
    lines: int = Field(description="Lines in the whole file.")
    size_bytes: int
    truncated: bool = Field(description="True if the file goes on after the text.")


def run(arguments: FileReadArguments, workspace: Workspace) -> FileReadResult:
    """ToolError NOT_FOUND, INVALID_PATH, TOO_LARGE, NOT_TEXT."""
    raw = workspace.read_bytes(arguments.path)
    try:
        lines = raw.decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ToolError("NOT_TEXT", f"path: {arguments.path!r} is not UTF-8 text (byte {error.start})") from error
    last = arguments.first_line - 1 + arguments.lines_max
    text = "".join(lines[arguments.first_line - 1 : last])
    return FileReadResult(
        path=arguments.path,
        text=text[:CHARACTERS_MAX],
        lines=len(lines),
        size_bytes=len(raw),
        truncated=last < len(lines) or len(text) > CHARACTERS_MAX,
    )


TOOL = PureTool(
    name="file_read",
    version="1.0.0",
    title="Read a file",
    description="Reads a UTF-8 text file of this run's workspace, whole or by lines.",
    arguments=FileReadArguments,
    result=FileReadResult,
    effect=Effect.PURE,
    access=Access.READ,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"path": "notes/a.txt", "first_line": 2, "lines_max": 1},
            files={"notes/a.txt": "one\ntwo\nthree\n"},
            expected={"text": "two\n", "lines": 3, "size_bytes": 14, "truncated": True},
        ),
        SelfTest(arguments={"path": "/etc/passwd"}, error="INVALID_PATH"),
        SelfTest(arguments={"path": "missing.txt"}, error="NOT_FOUND"),
    ),
)
