"""The file of deployments and models, and what becomes of the catalogue when it changes."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from eventlog.master_keys import LocalMasterKey
from llm_gateway.catalogue import Catalogue, KnownModel, ProviderEntry
from llm_gateway.deployments import with_roster
from llm_gateway.domain import ModelRequest
from llm_gateway.errors import ModelUnavailable, RosterInvalid, UnsupportedParameter
from llm_gateway.hedging import Hedge
from llm_gateway.keys import KEY_BYTES_MAX, key_id, seal
from llm_gateway.prices import Price
from llm_gateway.providers.catalog import OPENAI
from llm_gateway.providers.testing import FakeProvider, asked, in_time
from llm_gateway.providers.transport import Transport, open_session
from llm_gateway.roster import LoadedRoster, Roster, RosterFile
from provider_simulator.testing import RunningSimulator

NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = "sk-of-a-test"
EU = {"name": "openai-eu", "provider": "openai", "dialect": "openai-chat", "region": "eu", "weight": 2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "roster.json"


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session)


def catalogue(roster: dict[str, object], transport: Transport, keys: dict[str, str] | None = None) -> Catalogue:
    own = ProviderEntry("openai", "openai-chat", OPENAI, FakeProvider(), models=(KnownModel("gpt-4o", 128_000),))
    loaded = LoadedRoster(Roster.model_validate(roster), keys or {})
    return Catalogue(with_roster([own], loaded, transport, lambda: NOW), today=lambda: NOW.date())


async def test_a_roster_is_given_when_it_or_a_key_has_changed(file: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "eu.key"
    key_file.write_text(f"{KEY}\n")
    file.write_text(json.dumps({"deployments": [{**EU, "key_file": str(key_file)}]}))
    roster = RosterFile(file)

    first = await roster.changed()
    assert first is not None
    assert first.keys == {"openai-eu": KEY}
    assert KEY not in repr(first)
    assert await roster.changed() is None

    key_file.write_text("sk-rotated")
    rotated = await roster.changed()
    assert rotated is not None
    assert rotated.keys == {"openai-eu": "sk-rotated"}


NO_KEYS = [
    (b"", "the key is empty"),
    (b"\n", "the key is empty"),
    (b"sk-a\nsk-b", "a key is one line of printable ASCII"),
    (b"sk-\r\nx-evil: 1", "a key is one line of printable ASCII"),
    ("sk-ü".encode(), "a key is one line of printable ASCII"),
    (b"\xff\xfe\x00", "a key is one line of printable ASCII"),
    (b"k" * (KEY_BYTES_MAX + 1), "a key has no more than 4096 bytes"),
]


@pytest.mark.parametrize(("held", "problem"), NO_KEYS)
async def test_a_file_that_holds_no_key_is_named_and_the_key_before_it_stays(
    file: Path, tmp_path: Path, held: bytes, problem: str
) -> None:
    key_file = tmp_path / "eu.key"
    key_file.write_text(KEY)
    file.write_text(json.dumps({"deployments": [{**EU, "key_file": str(key_file)}]}))
    roster = RosterFile(file)
    assert await roster.changed() is not None

    key_file.write_bytes(held)
    for _ in range(2):
        with pytest.raises(RosterInvalid, match=f"{key_file}: {problem}"):
            await roster.changed()

    key_file.write_text(KEY)
    assert await roster.changed() is None


async def test_a_sealed_key_that_is_none_is_named_by_its_deployment(file: Path) -> None:
    master = LocalMasterKey(bytes(32), "test")
    sealed = await seal(master, "openai-eu", "")
    file.write_text(json.dumps({"deployments": [{**EU, "key_sealed": sealed}]}))
    with pytest.raises(RosterInvalid, match="openai-eu: the key is empty"):
        await RosterFile(file, [master]).changed()


async def test_a_sealed_key_is_opened_by_the_master_key(file: Path) -> None:
    master = LocalMasterKey(bytes(32), "test")
    sealed = await seal(master, "openai-eu", KEY)
    file.write_text(json.dumps({"deployments": [{**EU, "key_sealed": sealed}]}))
    loaded = await RosterFile(file, [master]).changed()
    assert loaded is not None
    assert loaded.keys == {"openai-eu": KEY}
    with pytest.raises(RosterInvalid, match="set SYNOD_MASTER_KEY_FILE"):
        await RosterFile(file).changed()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "the roster: Invalid JSON"),
        ({"deployments": [{**EU, "weight": 0}]}, "deployments.0.weight: Input should be greater than or equal to 1"),
        ({"deployments": [{**EU, "api_key": KEY}]}, "deployments.0.api_key: Extra inputs are not permitted"),
        ({"deployments": [{**EU, "key_file": "/a", "key_sealed": "b"}]}, "give key_file or key_sealed, not both"),
        ({"deployments": [EU, EU]}, "deployment openai-eu is there more than once"),
        ({"deployments": [{**EU, "key_file": "/no/such/file"}]}, "/no/such/file cannot be read"),
        ({"models": [{"id": "no-provider"}]}, "models.0.id"),
    ],
)
async def test_what_is_wrong_is_named_and_no_key_is_shown(file: Path, content: object, problem: str) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RosterInvalid) as caught:
        await RosterFile(file).changed()
    assert problem in str(caught.value)
    assert KEY not in str(caught.value)


async def test_a_model_has_a_target_at_each_deployment_that_serves_it(transport: Transport) -> None:
    roster: dict[str, object] = {
        "deployments": [EU, {**EU, "name": "openai-us", "region": "us", "models": ["gpt-5*"], "weight": 1}]
    }
    found = catalogue(roster, transport, {"openai-eu": KEY}).targets("openai/gpt-4o")
    assert [(one.deployment, one.region, one.weight) for one in found] == [("", "", 1), ("openai-eu", "eu", 2)]
    assert found[0].circuit == "openai/gpt-4o"
    assert found[1].circuit == f"openai/gpt-4o openai-eu {key_id(KEY)}"


async def test_the_roster_says_whether_a_model_thinks_without_being_asked(transport: Transport) -> None:
    assert not catalogue({}, transport).target("openai/gpt-4o").reasons
    known = catalogue({"models": [{"id": "openai/gpt-4o", "reasons": True}]}, transport)
    assert known.target("openai/gpt-4o").reasons


async def test_another_key_is_another_circuit(transport: Transport) -> None:
    circuits = {
        catalogue({"deployments": [EU]}, transport, {"openai-eu": key}).targets("openai/gpt-4o")[1].circuit
        for key in (KEY, "sk-rotated")
    }
    assert len(circuits) == 2


async def test_a_provider_that_only_the_roster_knows_takes_any_model(transport: Transport) -> None:
    spec = {"name": "farm", "provider": "groq", "dialect": "openai-compatible", "base_url": "http://127.0.0.1:9/v1"}
    (target,) = catalogue({"deployments": [spec]}, transport).targets("groq/llama-4")
    assert (target.id, target.model, target.deployment) == ("groq/llama-4", "llama-4", "farm")
    with pytest.raises(RosterInvalid, match="give base_url"):
        catalogue({"deployments": [{**spec, "base_url": ""}]}, transport)


async def test_a_deprecated_model_answers_with_a_warning_and_a_retired_one_is_refused(transport: Transport) -> None:
    def roster(day: str) -> dict[str, object]:
        return {"models": [{"id": "openai/gpt-4o", "retires_on": day, "replacement": "openai/gpt-5-mini"}]}

    known = catalogue(roster("2026-11-22"), transport)
    warning = "openai/gpt-4o is deprecated and will be retired on 2026-11-22; use openai/gpt-5-mini"
    assert known.target("openai/gpt-4o").warnings == (warning,)
    assert known.callable_models() == ()
    with pytest.raises(ModelUnavailable, match="retired on 2026-11-21; use openai/gpt-5-mini"):
        catalogue(roster("2026-11-21"), transport).target("openai/gpt-4o")


async def test_a_model_is_listed_with_what_the_roster_knows(transport: Transport) -> None:
    spec = {"id": "openai/own-1", "input_usd_per_million": "0.25", "output_usd_per_million": 2, "context_tokens": 4096}
    known = catalogue({"models": [spec, {"id": "openai/gpt-4o", "output_tokens_max": 16_384}]}, transport)
    cards = {card.id: card for card in known.cards()}
    assert (cards["openai/own-1"].price, cards["openai/own-1"].context_tokens) == (Price(250_000, 2_000_000), 4096)
    assert (cards["openai/gpt-4o"].output_tokens_max, cards["openai/gpt-4o"].context_tokens) == (16_384, 128_000)
    assert known.price("openai/own-1") == Price(250_000, 2_000_000)


async def test_a_model_is_hedged_as_the_roster_says_and_no_other_is(transport: Transport) -> None:
    hedged = {"id": "openai/own-1", "hedge_after_s": 2.5, "hedge_pays_twice": True}
    known = catalogue({"models": [hedged, {"id": "openai/own-2", "hedge_pays_twice": True}]}, transport)
    assert known.target("openai/own-1").hedge == Hedge(2.5, pays_twice=True)
    assert known.target("openai/own-2").hedge is None
    assert known.target("openai/gpt-4o").hedge is None


@pytest.mark.parametrize("unsupported", ["drop", "reject"])
async def test_what_a_model_lacks_is_left_out_with_a_warning_or_refused(
    transport: Transport, simulator: RunningSimulator, unsupported: str
) -> None:
    spec = {"name": "own", "provider": "openai", "dialect": "openai-chat", "base_url": f"{simulator.origin}/v1"}
    model = {"id": "openai/sim-1", "lacks": ["temperature"], "unsupported": unsupported}
    known = catalogue({"deployments": [spec], "models": [model]}, transport)
    assert "temperature" not in known.capabilities("openai/sim-1")
    assert "temperature" in known.capabilities("openai/gpt-4o")

    provider = known.targets("openai/sim-1")[1].provider
    request = ModelRequest("sim-1", asked("answer: yes").messages, temperature=0.5)
    if unsupported == "drop":
        answer = await provider.generate(request, in_time())
        assert answer.warnings == ("temperature is not supported by sim-1 and was left out",)
    else:
        with pytest.raises(UnsupportedParameter):
            await provider.generate(request, in_time())
