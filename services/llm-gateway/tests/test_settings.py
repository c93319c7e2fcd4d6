from pathlib import Path

import pytest
from llm_gateway.main import ollama_url, provider_entries
from llm_gateway.providers.pool import Origin
from llm_gateway.providers.transport import Transport, open_session
from llm_gateway.settings import Settings
from provider_simulator.testing import FIXED_NOW
from servicekit.settings import SettingsInvalid, load_settings

NEEDED = {"SYNOD_POSTGRES_DSN": "dsn", "SYNOD_NATS_URL": "nats", "SYNOD_AUTH_PUBLIC_KEY_FILE": "key.pem"}
PROVIDERS = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "GEMINI_API_KEY",
    "OLLAMA_HOST",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROVIDERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


async def available(settings: Settings) -> set[str]:
    async with open_session() as session:
        entries = provider_entries(settings, Transport(session), lambda: FIXED_NOW)
        return {entry.name for entry in entries if entry.provider is not None}


async def test_without_keys_no_provider_can_be_called() -> None:
    assert await available(load_settings(Settings)) == set()


async def test_providers_are_configured_by_their_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-two")
    monkeypatch.setenv("GEMINI_API_KEY", "three")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1")
    monkeypatch.setenv("SYNOD_SIMULATOR_URL", "http://127.0.0.1:7199")
    monkeypatch.setenv("SYNOD_VLLM_URL", "http://127.0.0.1:8000/v1")
    settings = load_settings(Settings)

    assert await available(settings) == {"openai", "anthropic", "google", "ollama", "simulator", "vllm"}
    assert "sk-one" not in repr(settings)
    assert settings.auth_public_key_file == Path("key.pem")


def test_a_proxy_is_read_from_the_usual_variables_and_one_of_another_kind_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@proxy.corp:3128")
    monkeypatch.setenv("no_proxy", "models.corp")
    settings = load_settings(Settings)
    assert settings.proxies.of(Origin(True, "api.openai.com", 443)) == settings.proxies.for_https
    assert settings.proxies.of(Origin(True, "models.corp", 443)) is None
    assert "secret" not in repr(settings)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.corp:1080")
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(Settings)
    (problem,) = refused.value.problems
    assert problem.startswith("HTTPS_PROXY must be http://host:port")


def test_one_limit_is_overridden_without_losing_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOD_LIMITS__STARTUP_S", "5")
    limits = load_settings(Settings).limits
    assert (limits.startup_s, limits.rpc_default_s, limits.rpc_max_s) == (5, 300, 900)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("xx", ' = "xx": is not JSON (Expecting value'),
        ('[{"per": "model", "requests_per_minute": 5}]', "[0].requests_per_minute = 5: is no field here; there is requests_p"),
        ('[{"per": "model"}]', '[0] = {"per": "model"}: limits nothing; give one of requests_per_min, '),
        ('[{"requests_per_min": 5}]', "[0].per is not set"),
        ('[{"per": "modle", "concurrent": 5}]', '[0].per = "modle": input should be '),
        ('[{"per": "model", "requests_per_min": -5}]', "[0].requests_per_min = -5: input should be greater than or equal to 0"),
        ('[{"per": "model", "concurrent": -1}]', "[0].concurrent = -1: input should be greater than or equal to 0"),
        ('[{"per": "model", "concurrent": 1, "models": ""}]', '[0].models = "": string should have at least 1 character'),
        ('[{"per": "model", "concurrent": 1, "low_share": 7}]', "[0].low_share = 7: input should be less than or equal to 1"),
        ('[{"per": "model", "concurrent": 1, "low_share": 0}]', "[0].low_share = 0: input should be greater than 0"),
        ('[{"per": "model", "concurrent": 1, "burst_s": 0}]', "[0].burst_s = 0: input should be greater than or equal to 1"),
        ('[{"per": "model", "concurrent": 1, "burst_s": 1e999}]', "[0].burst_s = Infinity: input should be a finite number"),
    ],
)  # fmt: skip
def test_a_rate_limit_that_is_mistyped_keeps_the_service_from_starting(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("SYNOD_RATE_LIMITS", text)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(Settings)
    (problem,) = refused.value.problems
    assert problem.startswith(f"SYNOD_RATE_LIMITS{told}")


def test_rate_limits_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = '[{"per": "model", "models": "openai/*", "requests_per_min": 500}, {"per": "tenant", "concurrent": 9, "low_share": 1}]'
    monkeypatch.setenv("SYNOD_RATE_LIMITS", rules)
    first, second = load_settings(Settings).rate_limits
    assert (first.models, first.requests_per_min, first.burst_s) == ("openai/*", 500, 10)
    assert (second.per, second.concurrent, second.low_share) == ("tenant", 9, 1)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434/v1"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("https://models.example", "https://models.example:11434/v1"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1"),
    ],
)
def test_the_host_of_ollama_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert ollama_url(host) == url
