"""deploy/postgres/backup.sh, by which both READMEs back PostgreSQL up; tests/e2e restores what it printed."""

import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest
from launcher.postgres import binary
from launcher.testing import RunningPostgres

from .overlays import ROOT

SCRIPT = ROOT / "deploy/postgres/backup.sh"
SEGMENTS = 8
"""More than a checkpoint leaves there of those that it needs no more."""
DEADLINE_S = 60


@pytest.fixture
def environment(postgres_server: RunningPostgres) -> Mapping[str, str]:
    server = psycopg.conninfo.conninfo_to_dict(postgres_server.dsn())
    given = {f"PG{name.upper()}": str(server[name]) for name in ("host", "port", "user", "password")}
    return {"PATH": f"{binary('psql').parent}:{os.environ['PATH']}", **given}


def test_a_backup_holds_what_was_written_while_it_was_taken(
    postgres_server: RunningPostgres, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Also if the server writes so much, and checkpoints so often, that it removes what it keeps for nobody."""
    with subprocess.Popen(["sh", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as taking:
        assert taking.stdout
        begun = taking.stdout.read(1)  # and no more: what is not read waits, and the copy with it
        needed = segment_now(postgres_server)
        for _ in range(SEGMENTS):
            write_much(postgres_server)
        with (tmp_path / "backup.tar").open("wb") as file:
            file.write(begun + taking.stdout.read())
        assert taking.stderr
        said = taking.stderr.read().decode()
        assert (taking.wait(DEADLINE_S), said) == (0, said)
    with tarfile.open(tmp_path / "backup.tar") as tar:
        names = set(tar.getnames())
    assert {"backup_label", "PG_VERSION", f"pg_wal/{needed}"} <= {name.removeprefix("./") for name in names}
    assert slots(postgres_server) == 0


def test_a_backup_that_fails_says_so(environment: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "pg_basebackup").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pg_basebackup").chmod(0o755)
    broken = {**environment, "PATH": f"{tmp_path}:{environment['PATH']}"}
    done = subprocess.run(["sh", SCRIPT], env=broken, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode != 0
    assert "is no backup" in done.stderr


def write_much(server: RunningPostgres) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("select pg_logical_emit_message(false, 'test', repeat('x', 1000))")
        connection.execute("select pg_switch_wal()")
        connection.execute("checkpoint")


def segment_now(server: RunningPostgres) -> str:
    return str(asked(server, "select pg_walfile_name(pg_current_wal_insert_lsn())"))


def slots(server: RunningPostgres) -> int:
    return int(str(asked(server, "select count(*) from pg_replication_slots")))


def asked(server: RunningPostgres, query: str) -> object:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute(query).fetchone()
    assert row
    return row[0]
