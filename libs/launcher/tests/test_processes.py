"""Children that cannot outlive us, and what is said when one fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher.errors import BinaryMissing, StartFailed
from launcher.processes import (
    PORT_MIN,
    Command,
    Warden,
    ephemeral_port_min,
    explain,
    free_port,
    run,
    start,
    stop,
    unprivileged,
    wait_until,
)

from .conftest import ends, runs

SLEEPER = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")
PARENT_OF_SLEEPER = """
import os, sys
from launcher.processes import Command, start
from pathlib import Path
sleeper = Command((sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"))
print(start(sleeper, Path(os.devnull)).pid, flush=True)
sys.stdin.read()
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    command = (sys.executable, "-c", PARENT_OF_SLEEPER)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()
    assert ends(child)


def test_a_group_of_a_launcher_that_ended_is_killed_and_its_directory_removed(tmp_path: Path) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    with subprocess.Popen(SLEEPER, start_new_session=True) as sleeper:
        warden = Warden(grace_s=0.0)
        warden.watch_group(sleeper.pid)
        warden.watch_directory(directory)
        warden.close()
        assert sleeper.wait(30) == -signal.SIGKILL
    assert not directory.exists()


def test_what_was_released_is_left_alone() -> None:
    with subprocess.Popen(SLEEPER, start_new_session=True) as sleeper:
        warden = Warden(grace_s=0.0)
        warden.watch_group(sleeper.pid)
        warden.release_group(sleeper.pid)
        warden.close()
        assert sleeper.poll() is None
        sleeper.kill()


def test_an_unprivileged_program_is_not_root_though_its_files_are_ours(tmp_path: Path) -> None:
    script = "import os; open('made', 'w').close(); print(os.geteuid())"
    said = run(Command((sys.executable, "-c", script), directory=tmp_path, identity=unprivileged()), timeout_s=30)
    assert int(said) != 0
    assert (tmp_path / "made").stat().st_uid == os.geteuid()


def test_a_program_for_another_machine_is_told_as_such(tmp_path: Path) -> None:
    program = tmp_path / "postgres"
    program.write_bytes(b"\x7fELF of another architecture")
    program.chmod(0o755)
    with pytest.raises(BinaryMissing, match="Exec format error") as missing:
        run(Command((str(program),)), timeout_s=10)
    assert "architecture" in missing.value.remedy


def test_a_program_that_never_gets_ready_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(Command(SLEEPER), log)
    with pytest.raises(StartFailed, match=r"0\.05 s: was not ready in time"):
        wait_until(lambda: False, process, log, 0.05, "sleeper")
    stop(process, signal.SIGTERM, 10)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("PANIC:  could not write to file: No space left on device", "Free space"),
        ("[FTL] Can't start JetStream: no space left on device", "Free space"),
        ("could not bind IPv4 address: Address already in use", "--port-base"),
        ("listen tcp 127.0.0.1:7142: bind: address already in use", "--port-base"),
        ("could not open file: Permission denied", "writable"),
        ("something new", "See its log"),
    ],
)
def test_what_servers_say_when_they_fail_comes_with_a_remedy(output: str, remedy: str) -> None:
    error = explain("/bin/postgres", 1, output)
    assert output in error.problem
    assert remedy in error.remedy


def test_a_free_port_is_none_that_a_connection_of_somebody_is_given() -> None:
    assert all(PORT_MIN <= free_port() < ephemeral_port_min() for _ in range(100))
