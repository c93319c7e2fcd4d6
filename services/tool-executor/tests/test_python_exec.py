"""What Python may leave in `result`; what it may not do is in test_jail."""

from pathlib import Path

import pytest
from pydantic import JsonValue
from tool_executor.errors import ToolCallFailed
from tool_executor.tools import python_exec
from tool_executor.tools.runner import Runner

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def value_of(runner: Runner, workspace: Path, code: str) -> JsonValue:
    return (await runner.run(python_exec.TOOL, {"code": code}, workspace, 30.0)).value["value"]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("x = 1", None),
        ("result = {'a': (1, 2.5), 'b': {True}}", {"a": [1, 2.5], "b": [True]}),
        ("result = {1: float('nan')}", {"1": None}),
        ("from datetime import date; result = date(2026, 1, 2)", "2026-01-02"),
        ("from decimal import Decimal; result = Decimal('0.10')", "0.10"),
        (
            "import numpy as np; result = {'m': np.eye(2), 's': np.float32(0.5)}",
            {"m": [[1.0, 0.0], [0.0, 1.0]], "s": 0.5},
        ),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)\nresult = f(5)", 120),
        ("import sys\nresult = 7\nsys.exit(0)", 7),
        ("result = 2 ** 100", 2**100),
    ],
)
async def test_returns(code: str, value: JsonValue, runner: Runner, workspace_dir: Path) -> None:
    assert await value_of(runner, workspace_dir, code) == value


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("result = object()", "RESULT_NOT_JSON", "a object is not JSON"),
        ("result = []\nfor _ in range(99): result = [result]", "RESULT_NOT_JSON", "nested"),
        ("result = 'half \\ud800'", "RESULT_NOT_JSON", "surrogates"),
        ("raise ValueError('half \\ud800')", "CODE_RAISED", "half ?"),
        ("result = 10 ** 5000", "RESULT_NOT_JSON", "digits"),
        ("def f():\n    raise KeyError('gone')\nf()", "CODE_RAISED", "line 2, in f"),
        ("import sys; sys.exit(3)", "CODE_RAISED", "exit code 3"),
        ("raise KeyboardInterrupt", "CODE_RAISED", "KeyboardInterrupt"),
        ("open('missing.txt')", "CODE_RAISED", "No such file"),
        ("x = = 1", "CODE_INVALID", "invalid syntax"),
    ],
)
async def test_refuses(code: str, kind: str, words: str, runner: Runner, workspace_dir: Path) -> None:
    with pytest.raises(ToolCallFailed) as caught:
        await value_of(runner, workspace_dir, code)
    assert caught.value.kind == kind
    assert words in caught.value.message


async def test_gives_different_random_numbers_to_each_call(runner: Runner, workspace_dir: Path) -> None:
    code = "import random, numpy\nresult = [random.random(), numpy.random.random()]"
    first, second = [await value_of(runner, workspace_dir, code) for _ in range(2)]
    assert not set(first) & set(second)
