"""What runs in the sandbox: a request in, an answer out, both JSON. The executor reads the answer as untrusted data."""

from importlib import import_module
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from tool_executor.errors import ToolError
from tool_executor.tools.tool import PureTool
from tool_executor.tools.workspace import Workspace

ENTRY = f"{__name__}:execute"


class Request(BaseModel):
    """Which tool, by the module that defines it as TOOL, on which arguments (JSON text, not yet validated)."""

    model_config = ConfigDict(frozen=True)

    module: str
    arguments: str
    file_bytes_max: int
    workspace_bytes_max: int


class Succeeded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["succeeded"] = "succeeded"
    value: dict[str, JsonValue]


class Refused(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["refused"] = "refused"
    kind: str
    message: str
    retryable: bool


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Succeeded | Refused


def execute(payload: bytes, workspace: str) -> bytes:
    """Run the requested tool; its ToolError is an answer, every other exception ends the process."""
    request = Request.model_validate_json(payload)
    try:
        return Answer(answer=Succeeded(value=_run(request, workspace))).model_dump_json().encode()
    except ToolError as error:
        refused = Refused(kind=error.kind, message=error.message, retryable=error.retryable)
        return Answer(answer=refused).model_dump_json().encode()


def _run(request: Request, workspace: str) -> dict[str, JsonValue]:
    tool = import_module(request.module).TOOL
    if not isinstance(tool, PureTool):
        raise ToolError("NOT_SANDBOXED", f"{request.module} holds no tool that runs in a sandbox")
    files = Workspace(
        Path(workspace), file_bytes_max=request.file_bytes_max, total_bytes_max=request.workspace_bytes_max
    )
    value: dict[str, JsonValue] = tool.compute(request.arguments, files).model_dump(mode="json")
    return value
