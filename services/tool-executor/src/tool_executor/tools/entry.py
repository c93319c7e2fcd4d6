"""What runs in the sandbox: a request in, an answer out, both JSON. The executor reads the answer as untrusted data."""

from importlib import import_module
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import PydanticSerializationError

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
        return _written(Answer(answer=Succeeded(value=_run(request, workspace))))
    except ToolError as error:
        refused = Refused(kind=error.kind, message=_utf_8(error.message), retryable=error.retryable)
        return _written(Answer(answer=refused))


def _written(answer: Answer) -> bytes:
    """Python's text may hold halves of characters, as in the names of files that are no UTF-8; JSON's may not."""
    try:
        return answer.model_dump_json().encode()
    except PydanticSerializationError as error:
        raise ToolError("RESULT_NOT_JSON", f"result: it holds what JSON cannot ({str(error)[:200]})") from error


def _utf_8(text: str) -> str:
    return text.encode(errors="replace").decode()


def _run(request: Request, workspace: str) -> dict[str, JsonValue]:
    tool = import_module(request.module).TOOL
    if not isinstance(tool, PureTool):
        raise ToolError("NOT_SANDBOXED", f"{request.module} holds no tool that runs in a sandbox")
    files = Workspace(
        Path(workspace), file_bytes_max=request.file_bytes_max, total_bytes_max=request.workspace_bytes_max
    )
    value: dict[str, JsonValue] = tool.compute(request.arguments, files).model_dump(mode="json")
    return value
