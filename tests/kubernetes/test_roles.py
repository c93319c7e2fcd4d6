"""deploy/postgres/roles.sh, which compose runs on an empty cluster and Kubernetes before every release."""

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from launcher.postgres import binary
from launcher.testing import RunningPostgres

from .overlays import ROOT


@pytest.fixture
def run(postgres_server: RunningPostgres, tmp_path: Path):
    """Runs the script for the roles `books` and `votes`, which go afterwards."""
    server = psycopg.conninfo.conninfo_to_dict(postgres_server.dsn())

    def run_with(password: str) -> None:
        (tmp_path / "roles").write_text(f"books {password}\nvotes {password}\n")
        environment = {
            "PATH": f"{binary('psql').parent}:{os.environ['PATH']}",
            "PGHOST": server["host"],
            "PGPORT": server["port"],
            "PGUSER": server["user"],
            "PGPASSWORD": server["password"],
            "ROLES_FILE": str(tmp_path / "roles"),
        }
        subprocess.run(["sh", ROOT / "deploy/postgres/roles.sh"], env=environment, check=True, timeout=60)

    yield run_with
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        for name in ("books", "votes"):
            connection.execute(f"drop database if exists {name}")
            connection.execute(f"drop role if exists {name}")
        # As it was for the tests of others, who use the same server.
        connection.execute("grant connect, temporary on database postgres, template1 to public")


def test_run_again_it_keeps_the_data_and_sets_the_password(run, postgres_server: RunningPostgres) -> None:
    run("first-password")
    with psycopg.connect(postgres_server.dsn(), dbname="books", user="books", password="first-password") as first:
        first.execute("create table kept (one int)")
    run("second-password")
    with psycopg.connect(postgres_server.dsn(), dbname="books", user="books", password="second-password") as again:
        assert again.execute("select count(*) from kept").fetchone() == (0,)


def powers(connection: psycopg.Connection, role: str) -> tuple[str, set[str]]:
    """What a role may do beyond its own databases, a letter each, and the roles that it is a member of."""
    attributes = connection.execute(
        "select concat(case when rolsuper then 'S' end, case when rolcreatedb then 'D' end,"
        " case when rolcreaterole then 'R' end, case when rolreplication then 'P' end,"
        " case when rolbypassrls then 'B' end) from pg_roles where rolname = %s",
        [role],
    ).fetchone()
    members = connection.execute(
        "select roleid::regrole::text from pg_auth_members where member = %s::regrole", [role]
    ).fetchall()
    assert attributes is not None
    return attributes[0], {name for (name,) in members}


def test_a_role_has_no_power_beyond_its_own_database(run, postgres_server: RunningPostgres) -> None:
    """Neither of its own nor by a role that it is in: pg_read_server_files, for one, reads what is another's."""
    run("a-password")
    with psycopg.connect(postgres_server.dsn()) as connection:
        assert [powers(connection, role) for role in ("books", "votes")] == [("", set())] * 2


def test_the_role_that_measures_sees_statistics_and_no_data(
    run, postgres_server: RunningPostgres, tmp_path: Path
) -> None:
    run("a-password")
    (tmp_path / "monitor.password").write_text("a-password")
    text = (ROOT / "deploy/observability/postgres/monitor.sql").read_text()
    (tmp_path / "monitor.sql").write_text(text.replace("/run/secrets", str(tmp_path)))
    command = [binary("psql"), "--quiet", "--no-psqlrc", f"--file={tmp_path / 'monitor.sql'}", postgres_server.dsn()]
    subprocess.run(command, check=True, timeout=60)
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        found = powers(connection, "monitor")
        with psycopg.connect(postgres_server.dsn("postgres", "monitor", "a-password")) as monitor:
            assert monitor.execute("show transaction_read_only").fetchone() == ("on",)
        with pytest.raises(psycopg.OperationalError, match='permission denied for database "books"'):
            psycopg.connect(postgres_server.dsn("books", "monitor", "a-password"))
        connection.execute("drop owned by monitor; drop role monitor")
    assert found == ("", {"pg_monitor"})


@pytest.mark.parametrize("another", ["votes", "postgres", "template1"])
def test_a_role_cannot_connect_to_what_is_not_its_own(run, postgres_server: RunningPostgres, another: str) -> None:
    run("a-password")
    server = postgres_server.dsn()
    with pytest.raises(psycopg.OperationalError, match=f'permission denied for database "{another}"'):
        psycopg.connect(server, dbname=another, user="books", password="a-password")
