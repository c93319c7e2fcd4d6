"""Whoever may write a service's database changes its history: `synod events verify` names the first position that does
not hold. A system of one service, so that nobody else's log is hurt; its history is put back after each attack.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eventlog.postgres import PostgresEventLog
from eventlog.records import StoredEvent
from eventlog.testing import rechained
from launcher.layout import AUTHORITY, SERVICES, Layout
from launcher.programs import environment
from launcher.testing import free_port_base
from synod_client import Synod

from .conftest import ROOT, RunningSystem

pytestmark = pytest.mark.system
SCRIPT = ROOT / "libs" / "eventlog" / "verify_inclusion.py"
STREAM_SCRIPT = ROOT / "libs" / "eventlog" / "verify_stream.py"
DEFINITION = """\
apiVersion: synod/v1
kind: Agent
metadata: {{name: witness-{number}}}
spec: {{behaviour: chat, model: {{name: simulator/sim-1}}, instructions: Say yes.}}
"""
UNLOCKED = "alter table eventlog.checkpoints disable trigger append_only; "
TABLES = ("events", "head", "checkpoints")


@dataclass(frozen=True)
class Registry:
    """The service under attack: three lots of events, a checkpoint after each, copies kept by somebody else."""

    running: RunningSystem
    dsn: str
    kept: Path
    signed: tuple[int, int, int]
    """Positions of the checkpoints."""

    def synod(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        data = str(self.running.system.layout.data)
        variables = {"SYNOD_DATA": data, "PATH": "/usr/bin:/bin", "HOME": data}
        program = [Path(sys.executable).parent / "synod", *arguments]
        return subprocess.run(program, env=variables, capture_output=True, text=True, timeout=90, check=False)

    def verified(self, *options: str) -> dict[str, Any]:
        """What `synod events verify` says, and its exit status as "status"."""
        done = self.synod("events", "verify", AUTHORITY, "--json", *options)
        assert done.stdout, done.stderr
        return {**json.loads(done.stdout)[AUTHORITY], "status": done.returncode}

    def sql(self, statements: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute(statements.encode())
            return found.fetchall() if found.description else []

    async def history(self) -> list[StoredEvent]:
        async with await PostgresEventLog.open(self.dsn) as log:
            return await log.read()

    async def rechain(self, start: int) -> None:
        """Change the event at `start`, and recompute every hash from there on, the head's too."""
        events = (await self.history())[start - 1 :]
        changed = rechained([events[0]._replace(actor="usr_mallory"), *events[1:]])
        with psycopg.connect(self.dsn) as connection:
            for forged in changed:
                connection.execute(
                    "update eventlog.events set actor = %(actor)s, stream_previous_hash = %(stream_previous_hash)s,"
                    " previous_hash = %(previous_hash)s, hash = %(hash)s where position = %(position)s",
                    forged._asdict(),
                )
            connection.execute("update eventlog.head set hash = %s", [changed[-1].hash])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("proof")
    authority = next(service for service in SERVICES if service.name == AUTHORITY)
    layout = Layout(folder / "data", free_port_base(), (authority,), durable=False)
    running = RunningSystem(layout)
    try:
        running.call(running.system.up())
        dsn = environment(layout, running.system.credentials, authority)["SYNOD_POSTGRES_DSN"]
        signed = running.call(_lots(running))
        found = Registry(running, dsn, folder / "kept.jsonl", signed)
        found.kept.write_text(found.synod("events", "checkpoints", AUTHORITY).stdout)
        for table in TABLES:
            found.sql(f"create table saved_{table} as table eventlog.{table}")
        yield found
    finally:
        running.close()


async def _lots(running: RunningSystem) -> tuple[int, int, int]:
    async with Synod.connect(running.endpoints) as synod:
        first, second, third = [await _lot(synod, number) for number in range(3)]
    return first, second, third


async def _lot(synod: Synod, number: int) -> int:
    """Some events, and the position of the checkpoint that the resting log then gets."""
    for each in range(4):
        await synod.define(DEFINITION.format(number=10 * number + each))
    head = (await synod.read(AUTHORITY, limit=1)).head_position
    while not (found := await synod.checkpoints(AUTHORITY, after=head - 1, limit=1)):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return found[0].position


@pytest.fixture(autouse=True)
def restored(registry: Registry) -> Iterator[None]:
    yield
    registry.sql(UNLOCKED + "truncate eventlog.events, eventlog.head, eventlog.checkpoints")
    for table in TABLES:
        registry.sql(f"insert into eventlog.{table} select * from saved_{table}")
    registry.sql("alter table eventlog.checkpoints enable trigger append_only")


def test_an_untouched_log_is_attested_to_its_end(registry: Registry) -> None:
    found = registry.verified("--checkpoints", str(registry.kept))
    head = registry.signed[-1]
    assert (found["ok"], found["status"], found["broken_position"]) == (True, 0, "0")
    assert (found["attested_position"], found["events"]) == (str(head), str(head))
    public = registry.running.system.layout.keys / f"{AUTHORITY}.checkpoint.pub.pem"
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert found["signed_by"] == json.loads(registry.kept.read_text().splitlines()[0])["key_id"]


Attack = Callable[[Registry], Awaitable[None]]


async def tampered_row(registry: Registry) -> None:
    registry.sql(f"update eventlog.events set actor = 'usr_mallory' where position = {registry.signed[0] + 2}")


async def deleted_row(registry: Registry) -> None:
    registry.sql(f"delete from eventlog.events where position = {registry.signed[0] + 2}")


async def swapped_pair(registry: Registry) -> None:
    first = registry.signed[0] + 2
    for old, new in ((first, 10**9), (first + 1, first), (10**9, first + 1)):
        registry.sql(f"update eventlog.events set position = {new} where position = {old}")


async def rechained_tail(registry: Registry) -> None:
    await registry.rechain(registry.signed[0] + 2)


async def rechained_tail_without_its_checkpoints(registry: Registry) -> None:
    await rechained_tail(registry)
    registry.sql(UNLOCKED + f"delete from eventlog.checkpoints where position > {registry.signed[0]}")


async def cut_tail(registry: Registry) -> None:
    (hash_,) = registry.sql(f"select hash from eventlog.events where position = {registry.signed[1] + 1}")[0]
    registry.sql(
        f"delete from eventlog.events where position > {registry.signed[1] + 1};"
        f"update eventlog.head set position = {registry.signed[1] + 1}, hash = '\\x{hash_.hex()}'"
    )


async def cut_tail_without_its_checkpoint(registry: Registry) -> None:
    await cut_tail(registry)
    await removed_checkpoint(registry)


async def removed_checkpoint(registry: Registry) -> None:
    registry.sql(UNLOCKED + f"delete from eventlog.checkpoints where position = {registry.signed[2]}")


async def forged_checkpoint(registry: Registry) -> None:
    await _replace_checkpoint(registry, "root_hash = head_hash")


async def replaced_checkpoint(registry: Registry) -> None:
    """By one that is truly signed, of another position."""
    columns = "head_hash, root_hash, signed_at, key_id, signature"
    await _replace_checkpoint(
        registry,
        f"({columns}) = (select {columns} from eventlog.checkpoints where position = {registry.signed[0]})",
    )


async def _replace_checkpoint(registry: Registry, change: str) -> None:
    registry.sql(UNLOCKED + f"update eventlog.checkpoints set {change} where position = {registry.signed[1]}")


FOUND: list[tuple[Attack, int, int, str]] = [
    (tampered_row, 0, 2, "differs from what was hashed"),
    (deleted_row, 0, 2, "the event is missing"),
    (swapped_pair, 0, 2, "does not name its predecessor's hash"),
    (rechained_tail, 1, 0, "the history is not the one signed"),
    (cut_tail, 1, 2, "the event is missing"),
    (forged_checkpoint, 1, 0, "the checkpoint is forged: its signature is not valid"),
    (replaced_checkpoint, 1, 0, "the checkpoint is forged: its signature is not valid"),
]
"""The attack, and the first position that does not hold: so far after the checkpoint of this number."""


@pytest.mark.parametrize(
    ("attack", "checkpoint", "beyond", "reason"), FOUND, ids=[attack.__name__ for attack, *_ in FOUND]
)
async def test_verify_names_the_first_position_that_does_not_hold(
    registry: Registry, attack: Attack, checkpoint: int, beyond: int, reason: str
) -> None:
    await attack(registry)
    found = registry.verified()
    assert (found["ok"], found["status"]) == (False, 1)
    assert int(found["broken_position"]) == registry.signed[checkpoint] + beyond
    assert reason in found["reason"]


HIDDEN: list[tuple[Attack, int, int]] = [
    (rechained_tail_without_its_checkpoints, 1, 0),
    (cut_tail_without_its_checkpoint, 1, 2),
]


@pytest.mark.parametrize(("attack", "checkpoint", "beyond"), HIDDEN, ids=[attack.__name__ for attack, *_ in HIDDEN])
async def test_copies_kept_elsewhere_find_what_deleted_checkpoints_would_hide(
    registry: Registry, attack: Attack, checkpoint: int, beyond: int
) -> None:
    await attack(registry)
    assert registry.verified()["ok"]
    found = registry.verified("--checkpoints", str(registry.kept))
    assert (found["ok"], found["status"]) == (False, 1)
    assert int(found["broken_position"]) == registry.signed[checkpoint] + beyond


async def test_a_checkpoint_that_was_removed_alone_takes_nothing_from_the_proof(registry: Registry) -> None:
    await removed_checkpoint(registry)
    assert registry.verified()["attested_position"] == str(registry.signed[1])
    assert registry.verified("--checkpoints", str(registry.kept))["attested_position"] == str(registry.signed[2])


def test_a_third_party_checks_an_event_with_what_the_command_exports(registry: Registry, tmp_path: Path) -> None:
    position = registry.signed[0] + 2
    exported = registry.synod("events", "prove", AUTHORITY, str(position), "--out", str(tmp_path))
    assert exported.returncode == 0, exported.stderr
    files = ["event.json", "proof.json", "checkpoint.json", "public.pem"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    assert _check(tmp_path, files) == (0, "")
    event = json.loads((tmp_path / "event.json").read_text())
    assert event["position"] == str(position)
    (tmp_path / "event.json").write_text(json.dumps(event | {"actor": "usr_mallory"}))
    assert _check(tmp_path, files) == (1, "the event is not the one signed\n")


def test_a_third_party_checks_a_whole_stream_with_what_the_command_exports(registry: Registry, tmp_path: Path) -> None:
    ((stream, events),) = registry.sql(
        "select stream, count(*) from eventlog.events"
        f" where tenant = (select tenant from eventlog.events where position = {registry.signed[2]})"
        " group by stream order by count(*) desc limit 1"
    )
    verified = registry.synod("events", "verify", AUTHORITY, "--stream", stream)
    assert (verified.returncode, f"{stream}: {events} events hold" in verified.stdout) == (0, True), verified.stderr
    exported = registry.synod("events", "prove", AUTHORITY, "--stream", stream, "--out", str(tmp_path))
    assert exported.returncode == 0, exported.stderr
    files = ["stream.json", "proofs.json", "public.pem"]
    assert _check(tmp_path, files, STREAM_SCRIPT) == (0, "")
    history = json.loads((tmp_path / "stream.json").read_text())
    assert len(history) == events
    history[-1]["actor"] = "usr_mallory"
    (tmp_path / "stream.json").write_text(json.dumps(history))
    assert _check(tmp_path, files, STREAM_SCRIPT) == (1, f"version {events} is not the one signed\n")


def _check(folder: Path, files: list[str], script: Path = SCRIPT) -> tuple[int, str]:
    """A stand-alone script, as somebody runs it who has these files and nothing of Synod."""
    copy = folder.parent / script.name
    copy.write_bytes(script.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", copy, *files],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout
