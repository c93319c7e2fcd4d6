import re
import subprocess
import sys

import pytest
from llm_gateway.catalogue import ANY_MODEL, ANY_MODEL_IN_A_PATH, Catalogue, KnownModel, ProviderEntry, hosted_models
from llm_gateway.domain import EmbeddingRequest, Embeddings
from llm_gateway.errors import ModelUnavailable, UnknownModel
from llm_gateway.main import SIMULATOR_MODELS
from llm_gateway.providers.catalog import ANTHROPIC, KINDS, OPENAI, OPENAI_COMPATIBLE, DialectName
from llm_gateway.providers.testing import FakeProvider

ENTRIES = (
    ProviderEntry("simulator", "openai-chat", OPENAI, FakeProvider(), accepts=SIMULATOR_MODELS, simulated=True),
    ProviderEntry("openai", "openai-chat", OPENAI, FakeProvider(), models=hosted_models("openai")),
    ProviderEntry(
        "anthropic", "anthropic-messages", ANTHROPIC, None, "set ANTHROPIC_API_KEY", hosted_models("anthropic")
    ),
    ProviderEntry("ollama", "openai-compatible", OPENAI_COMPATIBLE, FakeProvider(), accepts=ANY_MODEL),
    ProviderEntry("aws", "anthropic-messages", ANTHROPIC, FakeProvider(), accepts=ANY_MODEL_IN_A_PATH),
)
CATALOGUE = Catalogue(ENTRIES, {"small": "openai/gpt-5-mini"})


def test_hosted_models_come_from_the_price_book_with_their_context() -> None:
    models = {model.name: model.context_tokens for model in hosted_models("anthropic")}
    assert models["claude-opus-5"] == 1_000_000
    assert all(models.values())


def test_only_chat_models_are_listed() -> None:
    names = [model.name for model in hosted_models("openai")]
    assert "gpt-5-mini" in names
    assert not [name for name in names if re.search(r"audio|image|embedding|realtime|codex|tts", name)]


@pytest.mark.parametrize(
    ("asked", "id", "name"),
    [
        ("openai/gpt-5-mini", "openai/gpt-5-mini", "gpt-5-mini"),
        ("small", "openai/gpt-5-mini", "gpt-5-mini"),
        ("openai/gpt-4o-2024-08-06", "openai/gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
        ("ollama/library/qwen3:8b", "ollama/library/qwen3:8b", "library/qwen3:8b"),
        ("simulator/sim-429", "simulator/sim-429", "sim-429"),
    ],
)
def test_a_model_is_found_by_its_name(asked: str, id: str, name: str) -> None:
    target = CATALOGUE.target(asked)
    assert (target.id, target.model, target.simulated) == (id, name, asked.startswith("simulator"))


@pytest.mark.parametrize(
    "name",
    ["cheap/../dear", "cheap?x=", "cheap#", "cheap%2f..%2fdear", "//dear", "cheap dear", "cheap\n", ".", "", "m" * 129],
)
def test_a_name_that_leads_elsewhere_in_an_address_is_no_models(name: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOGUE.target(f"aws/{name}")


@pytest.mark.parametrize(
    "name", ["qwen3:8b", "meta-llama/Llama-3.3-70B", "claude-opus-5@20260101", "us.anthropic.claude-v1:0", "a_b~c+d"]
)
def test_names_as_servers_and_clouds_have_them_are_taken(name: str) -> None:
    assert CATALOGUE.target(f"ollama/{name}").model == CATALOGUE.target(f"aws/{name}").model == name


@pytest.mark.parametrize("name", ["/models/llama", "@cf/meta/llama-3.1-8b-instruct", "model(v2)", "modèle", "m" * 128])
def test_a_server_that_gets_the_name_in_the_body_takes_any(name: str) -> None:
    assert CATALOGUE.target(f"ollama/{name}").model == name


@pytest.mark.parametrize("name", ["a b", "a\n", "a\x00", "", "m" * 129])
def test_but_none_that_cannot_be_a_name(name: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOGUE.target(f"ollama/{name}")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("openai/gpt-5-mni", "openai/gpt-5-mini"),
        ("gpt-5-mini", "openai/gpt-5-mini"),
        ("openai/claude-opus-5", "anthropic/claude-opus-5"),
        ("smal", "small"),
        ("openai/", "openai/o1"),
    ],
)
def test_an_unknown_model_names_those_that_are_near(asked: str, near: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        CATALOGUE.target(asked)
    assert near in caught.value.near


@pytest.mark.parametrize("asked", ["", "/", "nothing/like-it", "simulator/sim-2", "openai/gpt-4o-mini-turbo-x"])
def test_a_name_that_is_no_model_is_refused(asked: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOGUE.target(asked)


def test_a_model_without_a_key_is_listed_with_what_to_set() -> None:
    with pytest.raises(ModelUnavailable, match="set ANTHROPIC_API_KEY"):
        CATALOGUE.target("anthropic/claude-opus-5")
    (card,) = [card for card in CATALOGUE.cards("anthropic") if card.id == "anthropic/claude-opus-5"]
    assert (card.remedy, card.context_tokens) == ("set ANTHROPIC_API_KEY", 1_000_000)


def test_cards_carry_aliases_and_capabilities() -> None:
    (card,) = [card for card in CATALOGUE.cards("openai") if card.id == "openai/gpt-5-mini"]
    assert card.aliases == ("small",)
    assert {"tools", "streaming", "json_schema"} <= set(card.capabilities)


@pytest.mark.parametrize(
    ("dialect", "model", "reasons"),
    [
        ("openai-chat", "gpt-4o", False),
        ("openai-chat", "gpt-5-mini", True),
        ("openai-responses", "o3", True),
        ("anthropic-messages", "claude-haiku-4-5-20251001", False),
        ("anthropic-messages", "claude-opus-5", True),
        ("anthropic-messages", "claude-of-next-year", True),
        ("gemini-generate", "gemini-2.0-flash", False),
        ("gemini-generate", "gemini-2.5-flash-lite", False),
        ("gemini-generate", "gemini-2.5-flash", True),
        ("openai-compatible", "qwen3", False),
    ],
)
def test_models_are_known_to_think_without_being_asked(dialect: DialectName, model: str, reasons: bool) -> None:
    kind = KINDS[dialect]
    entry = ProviderEntry("p", dialect, kind.profile, FakeProvider(), accepts=ANY_MODEL, profiles=kind.families)
    assert Catalogue((entry,)).target(f"p/{model}").reasons == reasons


class NoVectors:
    """An embedder that nothing is asked of."""

    name = "simulator"

    async def embed(self, request: EmbeddingRequest, deadline: float) -> Embeddings:
        raise AssertionError("an embedder was asked")


def test_what_answers_in_vectors_alone_is_listed_and_stands_for_no_call() -> None:
    entry = ProviderEntry(
        "simulator",
        "openai-chat",
        OPENAI,
        FakeProvider(),
        models=(KnownModel("sim-1"),),
        embedder=NoVectors(),
        embeds=(KnownModel("sim-embed"),),
    )
    known = Catalogue((entry,))
    assert [card.id for card in known.cards()] == ["simulator/sim-1", "simulator/sim-embed"]
    assert known.callable_models() == ("simulator/sim-1",)


OFFLINE = """
import socket

def refuse(*_):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from llm_gateway.catalogue import hosted_models
from llm_gateway.counting import input_bound
from llm_gateway.domain import Message, Text
import llm_gateway.main

print(min(len(hosted_models(provider)) for provider in ("openai", "anthropic", "google")))
print(input_bound([Message("user", (Text("word " * 100),))]))
"""


def test_group_22_a_start_knows_models_and_counts_without_a_network() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True, timeout=60)
    models, tokens = map(int, done.stdout.split())
    assert (models > 5, tokens > 500) == (True, True)
