"""The README's examples run as they stand."""

import ast
import inspect
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


async def test_the_examples_run_one_after_the_other(
    postgres_dsn: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_DSN", postgres_dsn)
    monkeypatch.setenv("NATS_URL", nats_url)
    names: dict[str, object] = {"__name__": "readme"}
    assert len(blocks()) >= 8
    for number, block in enumerate(blocks(), 1):
        code = compile(block, f"README.md block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)  # our own README
        if inspect.iscoroutine(result):
            await result


def test_every_test_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    contract = README.parent / "src" / "eventlog" / "testing.py"
    tests = "".join(path.read_text() for path in [contract, *Path(__file__).parent.glob("test_*.py")])
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
