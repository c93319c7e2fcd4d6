"""A person is forgotten by one command, and a system that was told so keeps no payload readable on disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import nats
import psycopg
import pytest
from launcher.layout import AUTHORITY, SERVICES, Layout
from launcher.programs import environment
from launcher.testing import free_port_base
from nats.js.api import DeliverPolicy
from synod.agent_registry.v1 import agent_registry_pb2 as pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod_client import Synod

from .conftest import Command, RunningSystem

pytestmark = pytest.mark.system
NAME = "Ada Byron King of Lovelace"
SECRET = "The password of the vault is xyzzy."
DEFINITION = f"""\
apiVersion: synod/v1
kind: Agent
metadata: {{name: keeper}}
spec: {{behaviour: chat, model: {{name: simulator/sim-1}}, instructions: {SECRET}}}
"""
AUTHORITY_SERVICE = next(service for service in SERVICES if service.name == AUTHORITY)


async def person(synod: Synod, name: str) -> str:
    """The id of a new person."""
    request = pb.CreatePrincipalRequest(name=name, kind=pb.PRINCIPAL_KIND_USER, roles=["viewer"], request_id=name)
    stub = AgentRegistryStub(synod.connection.channel(AUTHORITY))
    return (await synod.connection.call(stub.CreatePrincipal, request)).id


async def names(synod: Synod) -> dict[str, str]:
    stub = AgentRegistryStub(synod.connection.channel(AUTHORITY))
    found = await synod.connection.call(stub.ListPrincipals, pb.ListPrincipalsRequest(page_size=100))
    return {principal.id: principal.name for principal in found.principals}


def everything(layout: Layout, running: RunningSystem) -> str:
    """Every row of every table of agent-registry's database, as text, bytes as hexadecimal."""
    dsn = environment(layout, running.system.credentials, AUTHORITY_SERVICE)["SYNOD_POSTGRES_DSN"]
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname !~ '^(pg_|information)'"
        ).fetchall()
        return "\n".join(
            text for (table,) in tables for (text,) in connection.execute(f"select t::text from {table} t".encode())
        )


def shown(text: str, rows: str) -> bool:
    return text in rows or text.encode().hex() in rows


def on_disk(directory: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in directory.rglob("*") if file.is_file())


async def copies(running: RunningSystem, count: int) -> list[bytes]:
    """The payloads in JetStream of the first events of agent-registry."""
    client = await nats.connect(running.system.observer_url)
    try:
        subscription = await client.jetstream().subscribe(
            f"synod.*.evt.{AUTHORITY}.>", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
        )
        return [(await subscription.next_msg(timeout=20)).data for _ in range(count)]
    finally:
        await client.close()


async def test_a_person_is_forgotten_everywhere_by_one_command(
    running: RunningSystem, synod: Synod, command: Command
) -> None:
    layout = running.system.layout
    ada, bob = await person(synod, NAME), await person(synod, "Robert Fitzroy of the Beagle")
    assert (await names(synod))[ada] == NAME
    assert shown(NAME, everything(layout, running))

    done = command("erase", ada, "--reason", "asked by letter", "--json")
    assert done.returncode == 0, done.stderr
    by_service = {row["service"]: row for row in json.loads(done.stdout)}
    assert by_service.keys() == {service.name for service in SERVICES}
    assert (by_service[AUTHORITY]["key"], by_service[AUTHORITY]["views_rebuilt"]) == ("destroyed", "principals")
    assert by_service["cost-ledger"]["key"] == "there was none"

    known = await names(synod)
    assert (known[ada], known[bob]) == ("[erased]", "Robert Fitzroy of the Beagle")
    rows = everything(layout, running)
    assert not shown(NAME, rows)
    assert shown("Robert Fitzroy of the Beagle", rows)
    head = (await synod.read(AUTHORITY, limit=1)).head_position
    payloads = await copies(running, head)
    assert any(ada.encode() in payload for payload in payloads)
    assert not any(NAME.encode() in payload for payload in payloads)
    assert command("events", "verify").returncode == 0
    assert command("views", "verify", AUTHORITY).returncode == 0


async def test_erasing_again_finds_no_key_and_is_recorded_again(synod: Synod, command: Command) -> None:
    grace = await person(synod, "Grace Brewster Hopper")
    first, again = (
        json.loads(command("erase", grace, "--reason", "asked", "--service", AUTHORITY, "--json").stdout)[0]
        for _ in range(2)
    )
    assert (first["key"], again["key"]) == ("destroyed", "there was none")
    assert again["position"] > first["position"]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """A system of one service with encryption at rest."""
    folder = tmp_path_factory.mktemp("encrypted")
    variables = {"SYNOD_ENCRYPT_AT_REST": "true", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    layout = Layout(folder / "data", free_port_base(), (AUTHORITY_SERVICE,), environment=variables, durable=False)
    running = RunningSystem(layout)
    try:
        running.call(running.system.up())
        yield running
    finally:
        running.close()


async def test_one_variable_encrypts_the_payloads_of_logs_and_streams_on_disk(encrypted: RunningSystem) -> None:
    layout = encrypted.system.layout
    async with Synod.connect(encrypted.endpoints) as synod:
        await synod.define(DEFINITION)
        page = await synod.read(AUTHORITY, limit=1000)
        assert any(SECRET.encode() in event.data for event in page.events)
        assert (await synod.verify_log(AUTHORITY)).ok
        assert await synod.rotate_data_key(AUTHORITY) == 2
    assert any(SECRET.encode() in payload for payload in await copies(encrypted, page.head_position))
    dsn = environment(layout, encrypted.system.credentials, AUTHORITY_SERVICE)["SYNOD_POSTGRES_DSN"]
    with psycopg.connect(dsn) as connection:
        stored = [bytes(data) for (data,) in connection.execute("select data from eventlog.events").fetchall()]
    assert len(stored) >= page.head_position
    assert not any(SECRET.encode() in data for data in stored)
    assert not on_disk(layout.data / "nats", SECRET)
