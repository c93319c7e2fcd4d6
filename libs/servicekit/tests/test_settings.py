"""The environment becomes one frozen object, or a list of all that is wrong with it."""

import pytest
from pydantic import ValidationError
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
    with_environment(monkeypatch, SYNOD_POSTGRES_DSN=None, SYNOD_GRPC_PORT="many")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(ServiceSettings)
    assert "SYNOD_POSTGRES_DSN is not set" in caught.value.problems
    assert any(
        problem.startswith("SYNOD_GRPC_PORT: Input should be a valid integer") for problem in caught.value.problems
    )


def test_an_unknown_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, SYNOD_LIMITS__RPC_DEFUALT_S="5")
    with pytest.raises(SettingsInvalid, match="SYNOD_LIMITS__RPC_DEFUALT_S"):
        load_settings(ServiceSettings)


def test_settings_are_frozen_and_do_not_show_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch)
    settings = load_settings(ServiceSettings)
    with pytest.raises(ValidationError):
        settings.grpc_port = 1
    assert "secret" not in repr(settings)
