"""python_exec: run Python that a model wrote. Only ever in the L2 jail."""

import errno
import json
import math
import traceback
from collections.abc import Mapping
from types import CodeType, TracebackType
from typing import Self

from pydantic import Field, JsonValue

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access, Level
from tool_executor.tools.profiles import PYTHON
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

FILE_NAME = "<python_exec>"
DEPTH_MAX = 30  # the executor takes 32, and wraps the value in two
INTEGER_BITS_MAX = 4096
TRACEBACK_LENGTH_MAX = 4000


class PythonArguments(Arguments):
    code: str = Field(
        min_length=1,
        max_length=100_000,
        description="Python 3 source. Leave the answer in the variable `result` (anything JSON can hold).",
    )


class PythonResult(Result):
    value: JsonValue = Field(description="What the variable `result` held at the end; null if it was not set.")
    stdout: str = ""
    stderr: str = ""

    def with_output(self, stdout: str, stderr: str) -> Self:
        """The streams as the executor read them: the process itself has no say in it."""
        return self.model_copy(update={"stdout": stdout, "stderr": stderr})


def run(arguments: PythonArguments, _: Workspace) -> PythonResult:
    """ToolError CODE_INVALID, CODE_RAISED, RESULT_NOT_JSON. The executor adds what the process printed."""
    scope: dict[str, object] = {"__name__": "__main__"}
    _execute(_compiled(arguments.code), scope)
    return PythonResult(value=_json(scope.get("result")))


def _compiled(code: str) -> CodeType:
    try:
        return compile(code, FILE_NAME, "exec")
    except (SyntaxError, ValueError) as error:
        raise ToolError("CODE_INVALID", f"code: {traceback.format_exception_only(error)[-1].strip()}") from error


def _execute(code: CodeType, scope: dict[str, object]) -> None:
    try:
        exec(code, scope)
    except MemoryError:
        raise
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ToolError("CODE_RAISED", f"code: ended itself with exit code {error.code!r}") from error
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.EPERM:
            raise  # the jail's refusal, which the sandbox reports
        raise ToolError("CODE_RAISED", f"code: {_own_traceback(error)}") from error


def _own_traceback(error: BaseException) -> str:
    """Without our own frames, which tell the author of the code nothing."""
    lines = traceback.format_exception(type(error), error, _frames_of_code(error.__traceback__))
    return "".join(lines).strip()[-TRACEBACK_LENGTH_MAX:]


def _frames_of_code(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename != FILE_NAME:
        frames = frames.tb_next
    return frames


def _json(value: object, depth: int = 0) -> JsonValue:
    """Plain JSON from Python values; numbers of numpy and sets, tuples and mappings are taken for what they mean."""
    if depth > DEPTH_MAX:
        raise ToolError("RESULT_NOT_JSON", f"result: is nested more than {DEPTH_MAX} deep; flatten it")
    match value:
        case int() if value.bit_length() > INTEGER_BITS_MAX:
            raise ToolError(
                "RESULT_NOT_JSON", "result: an integer has over a thousand digits; leave it as str or float"
            )
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _json(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_json(item, depth + 1) for item in value]
        case set() | frozenset():
            return sorted((_json(item, depth + 1) for item in value), key=json.dumps)
        case _:
            return _json_of_foreign(value, depth)


def _json_of_foreign(value: object, depth: int) -> JsonValue:
    for method in ("tolist", "isoformat"):  # numpy, datetime
        if callable(convert := getattr(value, method, None)):
            return _json(convert(), depth + 1)
    if type(value).__module__ in ("decimal", "fractions"):
        return str(value)
    message = f"result: a {type(value).__name__} is not JSON; leave numbers, text, lists or dicts in it"
    raise ToolError("RESULT_NOT_JSON", message)


TOOL = PureTool(
    name="python_exec",
    version="1.0.0",
    title="Run Python",
    description=(
        "Runs Python 3 with the standard library and numpy in a sealed process: the workspace's files can be read, "
        "nothing can be written, no network, no other processes. Put the answer into the variable `result`. Use "
        "file_write or chart_render to store something."
    ),
    arguments=PythonArguments,
    result=PythonResult,
    effect=Effect.PURE,
    min_level=Level.L2,
    profile=PYTHON,
    access=Access.READ,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"code": "print('hi')\nresult = sum(range(10))"},
            expected={"value": 45, "stdout": "hi\n", "stderr": ""},
        ),
        SelfTest(
            arguments={"code": "result = open('a.txt').read().split()"},
            files={"a.txt": "x y"},
            expected={"value": ["x", "y"]},
        ),
        SelfTest(arguments={"code": "import numpy\nresult = numpy.arange(3) * 2"}, expected={"value": [0, 2, 4]}),
        SelfTest(arguments={"code": "1 / 0"}, error="CODE_RAISED"),
        SelfTest(arguments={"code": "def"}, error="CODE_INVALID"),
        SelfTest(arguments={"code": "import socket; socket.socket()"}, error="SYSCALL_DENIED"),
    ),
)
