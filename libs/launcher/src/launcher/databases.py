"""One role and one database for each service; no role can connect to another's database."""

from collections.abc import Mapping

import psycopg
from psycopg import sql

from launcher.errors import StartFailed

SHARED_DATABASES = ("postgres", "template1")
REVOKE_PUBLIC = sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC")


def provision(superuser_dsn: str, passwords: Mapping[str, str]) -> None:
    """Makes role and database of each name, or sets the password of a role that is there. Keeps all data.

    Raises StartFailed if PostgreSQL refuses.
    """
    try:
        with psycopg.connect(superuser_dsn, autocommit=True) as connection:
            _provision(connection, passwords)
    except psycopg.Error as error:
        remedy = "If <data>/keys was lost, the databases cannot be opened: restore it, or start anew with --fresh."
        raise StartFailed("databases", ", ".join(passwords), f"PostgreSQL refused: {error}".strip(), remedy) from error


def _provision(connection: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    for database in SHARED_DATABASES:
        connection.execute(REVOKE_PUBLIC.format(sql.Identifier(database)))
    for name, password in passwords.items():
        _ensure_role(connection, name, password)
        _ensure_database(connection, name)


def _ensure_role(connection: psycopg.Connection, name: str, password: str) -> None:
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    verb = sql.SQL("ALTER" if known else "CREATE")
    statement = sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}")
    connection.execute(statement.format(verb, sql.Identifier(name), sql.Literal(password)))


def _ensure_database(connection: psycopg.Connection, name: str) -> None:
    owned = sql.Identifier(name)
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(owned, owned))
    connection.execute(REVOKE_PUBLIC.format(owned))
