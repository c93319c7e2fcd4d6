"""What is left behind by a test session that was killed: nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

HANGING_TEST = """
import os, select, signal
from pathlib import Path

# A shell lets what it starts in the background ignore SIGINT, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

def test_that_never_ends(postgres_server, nats_server, launcher_directory):
    pids = [str(server.process.pid) for server in (postgres_server, nats_server)]
    Path({report!r}).write_text(" ".join([str(launcher_directory), *pids, "."]))
    select.select([], [], [], 60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_pytest_leaves_no_server_and_no_directory(tmp_path: Path, how: signal.Signals) -> None:
    report = tmp_path / "report"
    (tmp_path / "test_hang.py").write_text(HANGING_TEST.format(report=str(report)))
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "launcher.testing",
        "-c",
        os.devnull,
        str(tmp_path / "test_hang.py"),
    )
    said = tmp_path / "said"
    with said.open("wb") as output:
        pytest_process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)

    def is_reported() -> bool:
        assert pytest_process.poll() is None, said.read_text()
        return report.exists() and report.read_text().endswith(".")

    try:
        _wait_for(is_reported)
        pytest_process.send_signal(how)
        pytest_process.wait(30)
    finally:
        pytest_process.kill()
        pytest_process.wait()

    directory, *pids, _ = report.read_text().split()

    _wait_for(lambda: not Path(directory).exists())
    _wait_for(lambda: not any(map(_runs, pids)))


WAITING_TEST = """
import asyncio

async def of_a_promise():
    await asyncio.Event().wait()

async def test_that_waits_for_ever():
    await asyncio.create_task(of_a_promise(), name="the promised one")
"""


def test_a_test_out_of_time_shows_what_its_tasks_wait_for(tmp_path: Path) -> None:
    (tmp_path / "test_wait.py").write_text(WAITING_TEST)
    options = ("-p", "launcher.testing", "-c", os.devnull, "--asyncio-mode", "auto", "--timeout", "1")
    command = (sys.executable, "-m", "pytest", *options, str(tmp_path / "test_wait.py"))
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False).stdout
    _, _, tasks = said.partition("asyncio tasks")
    assert "the promised one:" in tasks
    assert "test_wait.py:5 in of_a_promise" in tasks


def _runs(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    end = monotonic() + deadline_s
    while not condition():
        assert monotonic() < end, "the condition did not hold in time"
        sleep(0.02)
