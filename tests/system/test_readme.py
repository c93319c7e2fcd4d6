"""The README is true: each of its commands is run, its Python too, and what it links to is there."""

import re
import shlex
import subprocess
import sys

import pytest

from .conftest import ROOT, Command, RunningSystem

pytestmark = pytest.mark.system
README = (ROOT / "README.md").read_text()
# `make demo` and `synod up` are run by test_demo.py and by the fixture of this folder, `make test` runs this very test.
ELSEWHERE = {"make demo", "make test", "make setup", ".venv/bin/synod up"}


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in shell_lines() if line.startswith("make ")} <= targets


def test_commands_run_in_their_order(command: Command) -> None:
    """In one test, because each builds on those before it."""
    lines = [line for line in shell_lines() if line not in ELSEWHERE]
    assert len(lines) >= 8
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/synod"
        done = command(*arguments)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), line


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "The result is 42.5."), (1, "1 synod.agent-runtime."), (2, "Hello from the simulator.")],
)
def test_python_examples_run(running: RunningSystem, command: Command, number: int, said: str) -> None:
    command("define", "deploy/examples/helper.yaml")
    command("tools", "grant", "calculator", "calc")
    command("run", "calculator", "Go ahead", "--detach")
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    environment = {"SYNOD_DATA": str(running.system.layout.data), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
    named = re.findall(r"\]\((services/[^)]+\.py)\)\s+`(\w+)`", README)
    assert named
    assert [name for path, name in named if f"def {name}" not in (ROOT / path).read_text()] == []
