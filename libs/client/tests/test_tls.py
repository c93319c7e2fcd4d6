"""A client that speaks TLS: where its certificates come from, what is said when they are wrong, and their renewal."""

import json
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from launcher import certificates
from synod_client import Endpoints, InvalidInput, NotAllowed, Synod, TryAgain
from synod_client.bus import connect
from synod_client.cli import app
from synod_client.cli.output import Exit
from synod_client.connection import Connection
from synod_client.tls import NAMES, Certificates
from typer.testing import CliRunner

FILES = {
    "SYNOD_TLS_CA_FILE": "/c/ca.crt",
    "SYNOD_TLS_CERTIFICATE_FILE": "/c/tls.crt",
    "SYNOD_TLS_KEY_FILE": "/c/tls.key",
}
CERTIFICATES = Certificates(Path("/c/ca.crt"), Path("/c/tls.crt"), Path("/c/tls.key"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    certificates.ensure(tmp_path / "tls", certificates.utc_now())
    return tmp_path / "tls"


@pytest.fixture
def own(directory: Path) -> Certificates:
    files = certificates.files_of(directory, certificates.CLIENT)
    return Certificates(files.ca, files.certificate, files.key)


def synod(data: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"SYNOD_DATA": str(data), "COLUMNS": "200"})


def test_certificates_come_from_the_environment_else_from_the_system_here(tmp_path: Path) -> None:
    written = {name: f"/written/{name}" for name in NAMES}
    (tmp_path / "system.json").write_text(json.dumps({"endpoints": {}, **written}))
    assert Endpoints.discover(FILES, tmp_path).tls == CERTIFICATES
    assert Endpoints.discover({}, tmp_path).tls == Certificates.named(written)
    assert Endpoints.discover({"SYNOD_HOST": "elsewhere"}, tmp_path).tls is None
    assert Endpoints.discover({}, tmp_path / "nowhere").tls is None


def test_some_of_the_files_only_are_refused() -> None:
    with pytest.raises(InvalidInput, match="SYNOD_TLS_CA_FILE and SYNOD_TLS_KEY_FILE must be set too"):
        Endpoints.discover({"SYNOD_TLS_CERTIFICATE_FILE": "/c/tls.crt"}, Path("/nowhere"))


async def test_a_file_that_cannot_be_used_is_named() -> None:
    connection = Connection(Endpoints({"consensus": "127.0.0.1:1"}, "", "", "key", tls=CERTIFICATES))
    with pytest.raises(NotAllowed, match=r"/c/tls.crt: no TLS can be spoken with it \(No such file"):
        connection.channel("consensus")
    with pytest.raises(NotAllowed, match="no TLS can be spoken with it"):
        await connect("nats://127.0.0.1:1", "client", CERTIFICATES)


async def test_calls_after_a_renewal_go_by_the_new_certificate_and_those_before_it_are_not_ended(
    directory: Path, own: Certificates
) -> None:
    connection = Connection(Endpoints({"consensus": "127.0.0.1:1"}, "", "", "key", tls=own))
    first = connection.channel("consensus")
    assert connection.channel("consensus") is first
    certificates.renew(directory, certificates.utc_now())
    assert connection.channel("consensus") is not first
    assert first.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    await connection.close()
    assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_the_bus_is_told_nothing_before_tls_is_spoken(
    own: Certificates, fresh_nats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synod_client.bus.GIVE_UP_S", 0.5)
    assert own.nats_options()["tls_handshake_first"] is True
    with pytest.raises((NotAllowed, TryAgain), match=r"^NATS at "):
        await connect(fresh_nats.url, "client", own)


async def test_a_service_that_hangs_up_is_explained(fakes: Any, own: Certificates) -> None:
    """A server in the clear, called by TLS; the other way round is in tests/system."""
    async with Synod.connect(Endpoints(fakes.addresses, "", "", "key", tls=own)) as connected:
        with pytest.raises(TryAgain, match="does not answer; is Synod running"):
            await connected.runs()


def test_certificates_are_made_shown_and_rotated_by_command(tmp_path: Path) -> None:
    assert "new certificates: agent-registry, cost-ledger" in synod(tmp_path, "tls", "init").output
    assert "none is due" in synod(tmp_path, "tls", "init").output
    shown = synod(tmp_path, "tls", "show").output
    assert [name for name in ("authority", "nats", "client", "cost-ledger") if name not in shown] == []
    before = (tmp_path / "tls/nats/tls.crt").read_text()
    assert "new certificates:" in synod(tmp_path, "tls", "rotate").output
    assert (tmp_path / "tls/nats/tls.crt").read_text() != before


def test_an_authority_is_replaced_by_command_and_not_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synod(tmp_path, "tls", "init")
    assert "believed beside the present one" in synod(tmp_path, "tls", "rotate", "--introduce").output
    early = synod(tmp_path, "tls", "rotate")
    later = certificates.utc_now() + timedelta(minutes=1)
    monkeypatch.setattr(certificates, "utc_now", lambda: later)
    assert "new certificates:" in synod(tmp_path, "tls", "rotate").output
    assert "believed no more: former-" in synod(tmp_path, "tls", "rotate", "--retire").output
    assert early.exit_code == Exit.REFUSED
    assert "not everybody may believe it yet" in early.stderr


def test_a_client_outside_is_told_its_variables(tmp_path: Path) -> None:
    said = dict(line.split("=", 1) for line in synod(tmp_path, "tls", "issue", "host-7").output.splitlines())
    assert said.keys() == FILES.keys()
    context = Certificates(*(Path(said[name]) for name in FILES)).context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert synod(tmp_path, "tls", "issue", "nats").exit_code == Exit.REFUSED
