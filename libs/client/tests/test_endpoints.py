"""Where the client looks for Synod: the environment, then what `synod up` wrote, then the defaults."""

import json
from pathlib import Path

import pytest
from synod_client import Endpoints, InvalidInput, NotAllowed, TryAgain
from synod_client.endpoints import SERVICES, default_data_directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The directory of a system that is up."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "dev.key").write_text("syn_dev_written\n")
    (keys / "observer.nats").write_text("nats://observer:pAsSwOrD@127.0.0.1:9142")
    endpoints = {"cost-ledger": "127.0.0.1:9105", "nats": "nats://127.0.0.1:9142", "http": "http://127.0.0.1:9980"}
    (tmp_path / "system.json").write_text(json.dumps({"endpoints": endpoints}))
    return tmp_path


def test_without_anything_the_defaults_hold_and_the_key_is_missing(tmp_path: Path) -> None:
    found = Endpoints.discover({}, tmp_path / "nowhere")
    assert [found.address(service) for service in SERVICES[:2]] == ["127.0.0.1:7101", "127.0.0.1:7102"]
    assert (found.nats, found.edge, found.data) == ("nats://127.0.0.1:7142", "http://127.0.0.1:8080", None)
    assert found.models == "http://127.0.0.1:8081"
    with pytest.raises(NotAllowed, match=r"set SYNOD_API_KEY, or start a system on this machine with `synod up`"):
        found.required_key()


def test_what_a_system_here_wrote_comes_before_the_defaults(data: Path) -> None:
    found = Endpoints.discover({}, data)
    assert (found.address("cost-ledger"), found.address("consensus")) == ("127.0.0.1:9105", "127.0.0.1:7106")
    assert (found.nats, found.edge, found.required_key()) == (
        "nats://127.0.0.1:9142", "http://127.0.0.1:9980", "syn_dev_written",
    )  # fmt: skip
    assert found.nats_url("observer") == "nats://observer:pAsSwOrD@127.0.0.1:9142"
    assert found.nats_url("client") == found.nats


def test_the_environment_comes_before_what_a_system_here_wrote(data: Path) -> None:
    environment = {
        "SYNOD_API_KEY": "syn_other",
        "SYNOD_HOST": "synod.example",
        "SYNOD_PORT_BASE": "8000",
        "SYNOD_EDGE_URL": "https://synod.example",
    }
    found = Endpoints.discover(environment, data)
    assert (found.address("cost-ledger"), found.nats) == ("synod.example:8005", "nats://synod.example:8042")
    assert (found.edge, found.required_key()) == ("https://synod.example", "syn_other")
    assert found.nats_url("observer") == found.nats


def test_models_are_asked_at_their_own_edge_where_it_is_named(data: Path) -> None:
    written = {"http": "http://127.0.0.1:9980", "models": "http://127.0.0.1:9981"}
    (data / "system.json").write_text(json.dumps({"endpoints": written}))
    assert Endpoints.discover({}, data).models == "http://127.0.0.1:9981"
    named = {"SYNOD_EDGE_URL": "https://synod.example", "SYNOD_MODELS_URL": "https://models.example"}
    assert Endpoints.discover(named, data).models == "https://models.example"
    assert Endpoints.discover({"SYNOD_PORT_BASE": "8000"}, data).models == "http://127.0.0.1:8981"


def test_models_are_asked_at_the_edge_for_everything_where_only_that_is_named(data: Path) -> None:
    """Another address of this machine may lead nowhere."""
    assert Endpoints.discover({}, data).models == "http://127.0.0.1:9980"
    assert Endpoints.discover({"SYNOD_EDGE_URL": "https://synod.example"}, data).models == "https://synod.example"


def test_a_nats_address_in_the_environment_is_used_for_every_login(data: Path) -> None:
    found = Endpoints.discover({"SYNOD_NATS_URL": "nats://me:mine@elsewhere:4222"}, data)
    assert {found.nats_url("observer"), found.nats_url("client")} == {"nats://me:mine@elsewhere:4222"}


def test_system_json_may_name_files_elsewhere(data: Path, tmp_path: Path) -> None:
    key = tmp_path / "elsewhere.key"
    key.write_text("syn_elsewhere")
    (data / "system.json").write_text(json.dumps({"endpoints": {}, "dev_key_file": str(key)}))
    assert Endpoints.discover({}, data).required_key() == "syn_elsewhere"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"endpoints": 7}', "null"])
def test_a_broken_system_json_is_named_with_what_to_do(data: Path, text: str) -> None:
    (data / "system.json").write_text(text)
    with pytest.raises(TryAgain, match=r"system\.json is not what `synod up` writes .*remove the file") as broken:
        Endpoints.discover({}, data)
    assert broken.value.reason == "SYSTEM_FILE_BROKEN"


@pytest.mark.parametrize("text", ["seventy", "0", "-1", "65000", ""])
def test_a_port_base_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"SYNOD_PORT_BASE='{text}' is not a port from 1 to 64554"):
        Endpoints.discover({"SYNOD_PORT_BASE": text}, tmp_path)


def test_an_unknown_service_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="there is no service 'ledger'; services are agent-registry, agent-runtime"):
        Endpoints.discover({}, Path("nowhere")).address("ledger")


def test_the_data_directory_is_the_one_given_else_the_users_own() -> None:
    assert default_data_directory({"SYNOD_DATA": "/data"}) == Path("/data")
    assert default_data_directory({"XDG_DATA_HOME": "/home/ada/.data"}) == Path("/home/ada/.data/synod")
    assert default_data_directory({}) == Path.home() / ".local" / "share" / "synod"


def test_secrets_do_not_show_in_a_representation(data: Path) -> None:
    shown = repr(Endpoints.discover({}, data))
    assert "syn_dev_written" not in shown
    assert "pAsSwOrD" not in shown
