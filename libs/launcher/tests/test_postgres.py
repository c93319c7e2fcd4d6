"""PostgreSQL as root and as somebody else, in deep directories, and after a crash of its making."""

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from launcher import postgres
from launcher.errors import DataUnusable, StartFailed
from launcher.postgres import VOLATILE, EmbeddedPostgres
from launcher.processes import Command, Identity, free_port, run, unprivileged

NOBODY = 65534
A_LAUNCHER = """
import os, sys
from pathlib import Path
import psycopg
from launcher.postgres import VOLATILE, EmbeddedPostgres
from launcher.processes import free_port

assert os.geteuid() != 0

server = EmbeddedPostgres(Path(sys.argv[1]), free_port(), "secret", VOLATILE, durable=False)
process = server.start()
with psycopg.connect(server.dsn()) as connection:
    print(connection.execute("SELECT 'works'").fetchone()[0])
server.stop(process)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach, unlike those of pytest."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def server_in(directory: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(directory, free_port(), "secret", VOLATILE, durable=False)


def answer_of(server: EmbeddedPostgres) -> object:
    process = server.start()
    try:
        with psycopg.connect(server.dsn()) as connection:
            return connection.execute("SELECT 1").fetchone()
    finally:
        server.stop(process)


def test_files_stay_ours_and_closed_to_others(tmp_path: Path) -> None:
    server = server_in(tmp_path / "postgres")
    assert answer_of(server) == (1,)
    assert server.data.stat().st_uid == os.geteuid()
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


@pytest.mark.parametrize("first", ["namespace", "drop"])
def test_root_without_user_namespaces_runs_it_as_another_user_on_the_same_data(
    monkeypatch: pytest.MonkeyPatch, first: str, open_directory: Path
) -> None:
    if os.geteuid() != 0:
        assert unprivileged() == Identity()
        return
    server = server_in(open_directory / "postgres")
    dropped = Identity(f"drop:{NOBODY}:{NOBODY}", owner=(NOBODY, NOBODY))
    identities = [unprivileged(), dropped] if first == "namespace" else [dropped, unprivileged()]
    for identity in identities:
        monkeypatch.setattr(postgres, "unprivileged", lambda identity=identity: identity)
        assert answer_of(server) == (1,)


def test_a_user_who_is_not_root_runs_it(tmp_path: Path) -> None:
    # Inside the namespace the whole launcher is somebody else, whoever runs the tests.
    command = Command((sys.executable, "-c", A_LAUNCHER, str(tmp_path / "postgres")), identity=unprivileged())
    assert run(command, timeout_s=60) == "works\n"


def test_a_path_too_long_for_a_unix_socket_is_no_hindrance(tmp_path: Path) -> None:
    assert answer_of(server_in(tmp_path / ("deep" * 20) / ("er" * 20))) == (1,)


def test_a_cluster_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    server = server_in(tmp_path)
    (tmp_path / "data.unfinished-1").mkdir()
    assert answer_of(server) == (1,)


def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    server = server_in(tmp_path)
    server.data.mkdir()
    (server.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(DataUnusable, match="PostgreSQL 17, needed is 18"):
        server.prepare()


def test_a_port_in_use_is_told_with_a_remedy(tmp_path: Path) -> None:
    first = server_in(tmp_path / "first")
    process = first.start()
    second = EmbeddedPostgres(tmp_path / "second", first.port, "secret", VOLATILE, durable=False)
    with pytest.raises(StartFailed, match="Address already in use") as failure:
        second.start()
    first.stop(process)
    assert "--port-base" in failure.value.remedy


@pytest.mark.parametrize("fate", ["reused by a stranger", "zombie"])
def test_a_lock_whose_process_id_is_another_now_does_not_hinder_a_start(tmp_path: Path, fate: str) -> None:
    server = server_in(tmp_path)
    process = server.start()
    process.send_signal(signal.SIGKILL)
    if fate == "zombie":
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()
        for lock in (server.data / "postmaster.pid", *server.data.glob(".s.PGSQL.*.lock")):
            lock.write_text(lock.read_text().replace(str(process.pid), "1", 1))

    assert answer_of(server) == (1,)
    process.wait()


def test_a_server_of_an_earlier_launcher_is_found(tmp_path: Path) -> None:
    server = server_in(tmp_path)
    assert server.running_pid() is None
    process = server.start()
    assert server.running_pid() == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert server.running_pid() is None
