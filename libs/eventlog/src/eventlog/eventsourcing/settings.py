"""The settings of the adapter, read once from the application's environment.

The server is named by the library's own settings (POSTGRES_DBNAME, _HOST, _PORT, _USER, _PASSWORD or
_GET_PASSWORD_TOPIC); a setting may be prefixed by the application's name in capitals, as all of the library's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eventsourcing.utils import Environment, resolve_topic
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from eventlog.eventsourcing.names import to_token
from eventlog.records import Context, require_token

SCHEMA_BYTES_MAX = 54
"""A longer name would be cut in the notification channel, which is the schema's name and `_appended`."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """One application's log."""

    dsn: str
    """Where PostgreSQL is; a password from a topic is asked for once, when the settings are read."""
    schema: str
    """EVENTLOG_SCHEMA: one application, one log, one schema. Default: `eventlog_` and the application's name, with
    POSTGRES_SCHEMA before it if that is set."""
    aggregate: str
    """EVENTLOG_AGGREGATE: the first half of every stream's name. Default: `aggregate`."""
    first_version: Literal[0, 1]
    """EVENTLOG_FIRST_VERSION: the aggregates' INITIAL_VERSION. Default: 1, as in the library."""
    originator_ids: Literal["uuid", "text"]
    """ORIGINATOR_ID_TYPE: the library's. Default: uuid."""
    context: Context
    """EVENTLOG_TENANT (default: `local`) and EVENTLOG_ACTOR (default: the application's name) outside of `acting`."""

    @classmethod
    def read(cls, environment: Environment) -> AdapterSettings:
        """The settings; OSError for one that is invalid, as the library raises."""
        aggregate = environment.get("EVENTLOG_AGGREGATE") or "aggregate"
        try:
            require_token("EVENTLOG_AGGREGATE", aggregate)
            return cls(
                dsn=_dsn(environment),
                schema=_schema(environment),
                aggregate=aggregate,
                first_version=1 if _choice(environment, "EVENTLOG_FIRST_VERSION", "1", "0") == "1" else 0,
                originator_ids="uuid"
                if _choice(environment, "ORIGINATOR_ID_TYPE", "uuid", "text") == "uuid"
                else "text",
                context=_context(environment),
            )
        except ValueError as error:
            raise OSError(str(error)) from error


def environment(dsn: str) -> dict[str, str]:
    """What an application's `env` needs to stand on the log in the database that `dsn` names (libpq's forms)."""
    named = conninfo_to_dict(dsn)
    return {
        "PERSISTENCE_MODULE": "eventlog.eventsourcing",
        "POSTGRES_DBNAME": str(named["dbname"]),
        "POSTGRES_HOST": str(named["host"]),
        "POSTGRES_PORT": str(named.get("port") or "5432"),
        "POSTGRES_USER": str(named["user"]),
        "POSTGRES_PASSWORD": str(named.get("password") or ""),
    }


def _dsn(environment: Environment) -> str:
    password_topic = environment.get("POSTGRES_GET_PASSWORD_TOPIC")
    password = resolve_topic(password_topic)() if password_topic else environment.get("POSTGRES_PASSWORD")
    return make_conninfo(
        dbname=environment.get("POSTGRES_DBNAME"),
        host=environment.get("POSTGRES_HOST"),
        port=environment.get("POSTGRES_PORT") or "5432",
        user=environment.get("POSTGRES_USER"),
        password=password or None,
    )


def _schema(environment: Environment) -> str:
    beside = (environment.get("POSTGRES_SCHEMA") or "public").strip()
    parts = ["" if beside == "public" else beside, "eventlog", environment.name.lower()]
    schema = environment.get("EVENTLOG_SCHEMA") or "_".join(part for part in parts if part)
    if len(schema.encode()) > SCHEMA_BYTES_MAX:
        raise ValueError(f"schema {schema!r} has more than {SCHEMA_BYTES_MAX} bytes, set EVENTLOG_SCHEMA")
    return schema


def _context(environment: Environment) -> Context:
    return Context(
        tenant=environment.get("EVENTLOG_TENANT") or "local",
        actor=environment.get("EVENTLOG_ACTOR") or to_token(environment.name) or "application",
    )


def _choice(environment: Environment, key: str, default: str, other: str) -> str:
    value = (environment.get(key) or default).lower()
    if value not in (default, other):
        raise ValueError(f"{key} must be {default!r} or {other!r}, got {value!r}")
    return value
