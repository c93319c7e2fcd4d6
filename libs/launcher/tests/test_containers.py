"""Secrets as files, and a configuration of NATS that is the launcher's own."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import nats
import psycopg
import pytest
from launcher.bus import authorization
from launcher.containers import configuration_drift, main, nats_configuration, write_secrets
from launcher.keys import NATS_CLIENTS
from launcher.layout import Service
from launcher.nats import binary
from launcher.processes import Command, free_port, start, stop, wait_until

SERVICES = (Service("agent-registry", 1), Service("cost-ledger", 5))


def test_a_secret_stays_when_the_files_are_made_again(tmp_path: Path) -> None:
    write_secrets(tmp_path, {}, SERVICES)
    first = {file.name: file.read_text() for file in (tmp_path / "files").iterdir()}
    write_secrets(tmp_path, {}, SERVICES)
    assert {file.name: file.read_text() for file in (tmp_path / "files").iterdir()} == first


def test_a_lost_key_is_named_and_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secrets", str(tmp_path)]) == 0
    (tmp_path / "keys" / "consensus.checkpoint.pem").unlink()
    before = {file.name: file.read_text() for file in (tmp_path / "files").iterdir()}
    assert main(["secrets", str(tmp_path)]) == 1
    assert "the key that signs the checkpoints of consensus is lost" in capsys.readouterr().err
    assert {file.name: file.read_text() for file in (tmp_path / "files").iterdir()} == before


def test_what_a_rotation_left_behind_is_given_on(tmp_path: Path) -> None:
    write_secrets(tmp_path, {}, SERVICES)
    keys, files = tmp_path / "keys", tmp_path / "files"
    before = [(files / f"cost-ledger.{kind}").read_text() for kind in ("former-checkpoints", "former-masters")]
    public, master = (
        (keys / "cost-ledger.checkpoint.pub.pem").read_text(),
        (keys / "cost-ledger.master.key").read_text(),
    )
    (keys / "cost-ledger.checkpoint.pub.pem").rename(keys / "cost-ledger.checkpoint.spring.pub.pem")
    (keys / "cost-ledger.checkpoint.pem").unlink()
    (keys / "cost-ledger.master.key").rename(keys / "cost-ledger.master.spring.key")
    write_secrets(tmp_path, {}, SERVICES)
    assert before == ["", ""]
    assert (files / "cost-ledger.former-checkpoints").read_text() == public
    assert (files / "cost-ledger.former-masters").read_text() == f"{master}\n"
    assert (files / "cost-ledger.master").read_text() != master


def test_others_on_this_machine_cannot_enter_and_containers_can_read(tmp_path: Path) -> None:
    write_secrets(tmp_path / "secrets", {}, SERVICES)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "secrets" / "files").iterdir()} == {0o644}


def test_the_address_of_a_database_holds_the_password_of_its_role(tmp_path: Path) -> None:
    credentials = write_secrets(tmp_path, {}, SERVICES)
    dsn = psycopg.conninfo.conninfo_to_dict((tmp_path / "files" / "cost-ledger.dsn").read_text())
    expected = {"user": "cost_ledger", "dbname": "cost_ledger", "host": "postgres", "port": "5432"}
    assert dsn == {**expected, "password": credentials.postgres["cost_ledger"]}
    roles = dict(line.split() for line in (tmp_path / "files" / "postgres.roles").read_text().splitlines())
    assert roles == {service.module: credentials.postgres[service.module] for service in SERVICES}


def test_a_providers_key_is_kept_until_another_is_given(tmp_path: Path) -> None:
    file = tmp_path / "files" / "openai.key"
    write_secrets(tmp_path, {}, SERVICES)
    empty = file.read_text()
    write_secrets(tmp_path, {"OPENAI_API_KEY": "sk-1"}, SERVICES)
    write_secrets(tmp_path, {}, SERVICES)
    assert (empty, file.read_text()) == ("", "sk-1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A NATS that reads nats.conf as the container does: its port, and the passwords by user."""
    credentials = write_secrets(tmp_path / "secrets", {}, SERVICES)
    port = free_port()
    here = nats_configuration(SERVICES).replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("/data", str(tmp_path))
    (tmp_path / "nats.conf").write_text(here.replace("127.0.0.1:8222", "127.0.0.1:-1"))
    (tmp_path / "passwords.conf").write_text((tmp_path / "secrets" / "files" / "nats.passwords").read_text())
    log = tmp_path / "log"
    process = start(Command((str(binary()), "--config", str(tmp_path / "nats.conf")), directory=tmp_path), log)
    try:
        wait_until(lambda: "Server is ready" in log.read_text(), process, log, 30.0, "nats-server")
        yield port, dict(credentials.nats)
    finally:
        stop(process, signal.SIGTERM, 10.0)


async def test_a_server_takes_the_configuration_and_refuses_another_services_events(
    server: tuple[int, dict[str, str]],
) -> None:
    port, passwords = server
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        refused.put_nowait(str(error).lower())

    address = f"nats://127.0.0.1:{port}"
    client = await nats.connect(address, user="cost-ledger", password=passwords["cost-ledger"], error_cb=on_error)
    try:
        await client.publish("synod.local.evt.cost-ledger.budget.1.BudgetSet", b"{}")
        await client.publish("synod.local.evt.agent-registry.agent.1.AgentDefined", b"{}")
        async with asyncio.timeout(30):
            assert "synod.local.evt.agent-registry.agent.1.agentdefined" in await refused.get()
        assert refused.empty()
    finally:
        await client.close()


def test_the_configuration_is_the_launchers_own() -> None:
    text = nats_configuration(SERVICES)
    names = ("agent-registry", "cost-ledger", *NATS_CLIENTS)
    words = re.sub(r"\$(password_\w+)", r'"\1"', text.partition("accounts: ")[2])
    variables = {name: f"password_{name.replace('-', '_')}" for name in names}
    assert json.loads(words) == authorization(SERVICES, variables)["accounts"]


def test_what_it_says_beside_is_written_down_and_no_more() -> None:
    """It is asked what it holds on its own loopback only, and listens for nothing but clients."""
    head = nats_configuration().partition("accounts: ")[0].splitlines()
    assert [line for line in head if line and not line.startswith("#")] == [
        'include "passwords.conf"',
        "server_name: synod",
        'listen: "0.0.0.0:4222"',
        'http: "127.0.0.1:8222"',
        "max_payload: 1048576",
        'jetstream { store_dir: "/data", max_mem: 268435456, key: $storage_key, cipher: aes }',
    ]


def test_the_configuration_that_is_made_does_not_drift() -> None:
    assert configuration_drift(nats_configuration()) == ()


@pytest.mark.parametrize(
    ("by_hand", "noticed"),
    [
        (('"synod.*.evt.consensus.>"', '"synod.*.evt.>"'), "synod.*.evt.>"),
        (('"users": [', '"users": [{"user": "eve", "password": "x"},'), "eve"),
        (("accounts: {", 'no_auth_user: "administrator"\naccounts: {'), "no_auth_user"),
        (('"127.0.0.1:8222"', '"0.0.0.0:8222"'), "0.0.0.0:8222"),
    ],
    ids=["permission", "user", "guest", "monitoring"],
)
def test_a_permission_that_is_widened_by_hand_is_reported(by_hand: tuple[str, str], noticed: str) -> None:
    made = nats_configuration()
    changed = made.replace(*by_hand, 1)
    assert changed != made
    assert [line for line in configuration_drift(changed) if line.startswith("+") and noticed in line]


def test_a_line_that_is_taken_away_by_hand_is_reported() -> None:
    first, *others = [line for line in nats_configuration().splitlines() if '"user": "consensus"' in line]
    assert not others
    changed = nats_configuration().replace(f"{first}\n", "")
    assert configuration_drift(changed) == (f"-{first}",)
