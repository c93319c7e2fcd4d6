"""The environment becomes one frozen object, or a list of all that is wrong with it."""

from pathlib import Path

import pytest
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from servicekit.settings import ServiceSettings, SettingsInvalid, load_settings

GOOD = {
    "SYNOD_SERVICE": "cost-ledger",
    "SYNOD_GRPC_PORT": "7105",
    "SYNOD_HTTP_PORT": "7205",
    "SYNOD_POSTGRES_DSN": "postgresql://u:secret@localhost/ledger",
    "SYNOD_NATS_URL": "nats://127.0.0.1:7142",
    "SYNOD_AUTH_PUBLIC_KEY_FILE": "/keys/auth.pub.pem",
}


def with_environment(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in (GOOD | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_every_field_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, SYNOD_PEERS='{"agent-registry": "127.0.0.1:7101"}', SYNOD_LIMITS__RPC_DEFAULT_S="5")
    settings = load_settings(ServiceSettings)
    assert (settings.service, settings.grpc_port) == ("cost-ledger", 7105)
    assert settings.peers == {"agent-registry": "127.0.0.1:7101"}
    assert (settings.limits.rpc_default_s, settings.limits.rpc_max_s) == (5, 300)


def test_a_missing_and_a_malformed_variable_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, SYNOD_POSTGRES_DSN=None, POSTGRES_DSN="another's", SYNOD_GRPC_PORT="many")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(ServiceSettings)
    assert "SYNOD_POSTGRES_DSN is not set" in caught.value.problems
    assert any(
        problem.startswith('SYNOD_GRPC_PORT = "many": input should be a valid integer')
        for problem in caught.value.problems
    )


def test_an_unknown_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, SYNOD_LIMITS__RPC_DEFUALT_S="5")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(ServiceSettings)
    assert caught.value.problems == (
        'SYNOD_LIMITS__RPC_DEFUALT_S = "5": is no field here; there is rpc_default_s, rpc_max_s',
    )


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SYNOD_PEERS": "xx"}, 'SYNOD_PEERS = "xx": is not JSON (Expecting value: line 1 column 1 (char 0)); give a JSON'),
        ({"SYNOD_PEERS": "[]"}, "SYNOD_PEERS = []: must be a JSON object"),
        ({"SYNOD_PEERS": '{"cost-ledger": 5}'}, "SYNOD_PEERS.cost-ledger = 5: input should be a valid string"),
        ({"SYNOD_LIMITS": '{"startup_s": "soon"}'}, 'SYNOD_LIMITS.startup_s = "soon": input should be a valid number'),
        ({"SYNOD_LIMITS__STARTUP_S": "soon"}, 'SYNOD_LIMITS__STARTUP_S = "soon": input should be a valid number'),
        ({"SYNOD_FORMER_MASTER_KEY_FILES": '["a", 5]'}, "SYNOD_FORMER_MASTER_KEY_FILES[1] = 5: input is not a valid path"),
        ({"SYNOD_SERVICE": "X" * 200}, f'SYNOD_SERVICE = "{"X" * 78}…: string should match'),
        ({"PROVIDER_COUNT": "-1"}, 'PROVIDER_COUNT = "-1": input should be greater than or equal to 0'),
    ],
)  # fmt: skip
def test_a_mistake_is_told_by_a_variable_that_there_is_and_its_value(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    with_environment(monkeypatch, SYNOD_SIGNING_KEY_FILE="signing.pem", **variables)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(WithKeys)
    (problem,) = caught.value.problems
    assert problem.startswith(told)


def test_of_a_secret_that_is_refused_the_value_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("from-file")
    files = {"SYNOD_SIGNING_KEY_FILE": "signing.pem", "SYNOD_GRPC_PORT_FILE": str(tmp_path / "port")}
    with_environment(monkeypatch, PROVIDER_KEY="short", SYNOD_GRPC_PORT=None, **files)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(WithKeys)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["SYNOD_GRPC_PORT_FILE", "PROVIDER_KEY"]
    assert "short" not in str(caught.value)
    assert "from-file" not in str(caught.value)


def test_settings_are_frozen_and_do_not_show_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch)
    settings = load_settings(ServiceSettings)
    with pytest.raises(ValidationError):
        settings.grpc_port = 1
    assert "secret" not in repr(settings)


class WithKeys(ServiceSettings):
    """A field that is a path, and one that has the name of another program's variable."""

    signing_key_file: Path
    signing_key: str = ""
    provider_key: SecretStr | None = Field(
        None, min_length=8, validation_alias=AliasChoices("PROVIDER_KEY", "provider_key")
    )
    provider_count: int = Field(0, ge=0, validation_alias=AliasChoices("PROVIDER_COUNT", "provider_count"))


def test_a_secret_is_read_from_the_file_that_its_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dsn").write_text("postgresql://u:from-file@db/ledger\n")
    (tmp_path / "provider").write_text("key-from-file")
    files = {"SYNOD_POSTGRES_DSN_FILE": str(tmp_path / "dsn"), "PROVIDER_KEY_FILE": str(tmp_path / "provider")}
    with_environment(monkeypatch, SYNOD_POSTGRES_DSN=None, SYNOD_SIGNING_KEY_FILE="/keys/signing.pem", **files)
    settings = load_settings(WithKeys)
    assert settings.postgres_dsn.get_secret_value() == "postgresql://u:from-file@db/ledger"
    assert settings.provider_key is not None
    assert settings.provider_key.get_secret_value() == "key-from-file"


def test_a_field_that_is_a_path_is_not_read_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, SYNOD_SIGNING_KEY_FILE="/keys/signing.pem")
    settings = load_settings(WithKeys)
    assert (settings.signing_key_file, settings.signing_key) == (Path("/keys/signing.pem"), "")


def test_every_file_that_cannot_be_read_is_named_and_no_content_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing")
    files = {"SYNOD_POSTGRES_DSN_FILE": missing, "SYNOD_NATS_PASSWORD_FILE": missing}
    with_environment(monkeypatch, SYNOD_POSTGRES_DSN=None, **files)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(ServiceSettings)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == sorted(files)
    assert missing in str(caught.value)


def test_a_secret_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_environment(monkeypatch, SYNOD_POSTGRES_DSN_FILE=str(tmp_path / "dsn"))
    with pytest.raises(SettingsInvalid, match="SYNOD_POSTGRES_DSN and SYNOD_POSTGRES_DSN_FILE are both set"):
        load_settings(ServiceSettings)
