"""What each service may not do on the servers they share, tried on real ones for every pair of services."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import nats
import psycopg
import pytest
from launcher.databases import provision
from launcher.keys import NATS_CLIENTS, OBSERVER
from launcher.layout import SERVICES
from launcher.nats import EmbeddedNats
from launcher.postgres import new_password
from launcher.programs import nats_users
from launcher.testing import RunningNats, RunningPostgres
from nats.aio.client import Client

NAMES = tuple(service.name for service in SERVICES)
DATABASES = tuple(service.module for service in SERVICES)
DEADLINE_S = 30.0
PASSWORDS = dict.fromkeys((*NAMES, *NATS_CLIENTS), "password")


@pytest.fixture(scope="module")
def shared_nats(tmp_path_factory: pytest.TempPathFactory, launcher_warden) -> Iterator[RunningNats]:  # type: ignore[no-untyped-def]
    """A server with the users and permissions of the whole system."""
    directory = tmp_path_factory.mktemp("nats")
    launcher_warden.watch_directory(directory)
    server = RunningNats(EmbeddedNats(directory, users=nats_users(SERVICES, PASSWORDS)), launcher_warden)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def connected(server: RunningNats, user: str) -> AsyncIterator[tuple[Client, asyncio.Queue[str]]]:
    """A client, and what the server refused it."""
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        refused.put_nowait(str(error).lower())

    client = await nats.connect(server.url, user=user, password=PASSWORDS[user], error_cb=on_error)
    try:
        yield client, refused
    finally:
        await client.close()


async def refusals(queue: asyncio.Queue[str], count: int) -> list[str]:
    """So many refusals, in alphabetical order."""
    async with asyncio.timeout(DEADLINE_S):
        return sorted([await queue.get() for _ in range(count)])


def event_of(service: str) -> str:
    return f"synod.acme.evt.{service}.thing.thg_1.thinghappened"


def refusal(subject: str) -> str:
    return f'nats: permissions violation for publish to "{subject}"'


@pytest.mark.parametrize("user", NAMES)
async def test_a_service_publishes_its_own_events_and_no_others(shared_nats: RunningNats, user: str) -> None:
    others = sorted(event_of(other) for other in NAMES if other != user)
    async with connected(shared_nats, user) as (client, refused):
        await client.publish(event_of(user), b"{}")
        for subject in others:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(others)) == [refusal(subject) for subject in others]
        assert refused.empty()


@pytest.mark.parametrize("user", NATS_CLIENTS)
async def test_who_is_no_service_publishes_no_event(shared_nats: RunningNats, user: str) -> None:
    subjects = sorted(event_of(name) for name in NAMES)
    async with connected(shared_nats, user) as (client, refused):
        for subject in subjects:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(subjects)) == [refusal(subject) for subject in subjects]


@pytest.mark.parametrize("subject", [event_of(NAMES[0]), "synod.acme.cmd.agent-runtime.run", "synod.sys.consensus.hb"])
async def test_an_observer_publishes_nothing(shared_nats: RunningNats, subject: str) -> None:
    async with connected(shared_nats, OBSERVER) as (client, refused):
        await client.publish(subject, b"{}")
        assert await refusals(refused, 1) == [refusal(subject)]


def test_nobody_connects_without_a_password(shared_nats: RunningNats) -> None:
    host, _, port = shared_nats.url.removeprefix("nats://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection,
        connection.makefile("rwb") as lines,
    ):
        assert lines.readline().startswith(b"INFO ")
        lines.write(b"CONNECT {}\r\nPING\r\n")
        lines.flush()
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"


@pytest.fixture(scope="module")
def roles(postgres_server: RunningPostgres) -> Iterator[dict[str, str]]:
    """A role and a database of each service on the session's server: their passwords."""
    passwords = {name: new_password() for name in DATABASES}
    provision(postgres_server.dsn(), passwords)
    yield passwords
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        for name in DATABASES:
            connection.execute(f"drop database {name} with (force)")
            connection.execute(f"drop role {name}")


@pytest.mark.parametrize("role", DATABASES)
def test_a_role_connects_to_its_own_database_and_no_other(
    postgres_server: RunningPostgres, roles: dict[str, str], role: str
) -> None:
    with psycopg.connect(postgres_server.dsn(role, role, roles[role])) as connection:
        assert connection.execute("select current_database()").fetchone() == (role,)
    for other in ("postgres", "template1", *(name for name in DATABASES if name != role)):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(postgres_server.dsn(other, role, roles[role]))


@pytest.mark.parametrize(
    "statement", ["create role intruder superuser", "create database mine", "copy (select 1) to program 'true'"]
)
def test_a_role_has_no_power_over_the_server(
    postgres_server: RunningPostgres, roles: dict[str, str], statement: str
) -> None:
    role = DATABASES[0]
    dsn = postgres_server.dsn(role, role, roles[role])
    with psycopg.connect(dsn, autocommit=True) as own, pytest.raises(psycopg.errors.InsufficientPrivilege):
        own.execute(statement)
