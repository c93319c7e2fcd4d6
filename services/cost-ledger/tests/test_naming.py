"""What a name of a model means, and which names are taken for slips."""

import re

import pytest
from cost_ledger.errors import RequestInvalid
from cost_ledger.naming import (
    check_biller,
    check_provider,
    check_scope_model,
    check_unprefixed,
    compared_scopes_of,
    distance,
    family_of,
    pattern_of,
    scopes_of,
)

KNOWN = ("openai/gpt-5.5", "anthropic/claude-5", "together/meta-llama/Llama-4", "openrouter/openrouter/auto")


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("openai/gpt-5.5-2026-04-01", "openai/gpt-5.5"),
        ("anthropic/claude-5-20260401", "anthropic/claude-5"),
        ("google/claude-5@20260401", "google/claude-5"),
        ("mistral/mistral-large-2411", "mistral/mistral-large"),
        ("google/gemini-3-preview-05-06", "google/gemini-3-preview"),
        ("mistral/ministral-8b-latest", "mistral/ministral-8b"),
    ],
)
def test_a_snapshot_is_held_by_the_scope_of_its_model(model: str, family: str) -> None:
    assert scopes_of(model) == (model, family, model.partition("/")[0] + "/*")
    assert all(re.search(pattern_of(scope), model) for scope in scopes_of(model))


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("openai/gpt-5.5", "openai/gpt-5.5", 0),
        ("openai/gpt-5.5", "openai/gpt-5.5-2026-04-01", 1),
        ("openai/gpt-5.5-2026-04-01", "openai/gpt-5.5", 2),
        ("openai/gpt-5.5-2026-04-01", "openai/gpt-5.5-2026-08-01", None),
        ("openai/gpt-5.5", "openai/gpt-5.5-mini", None),
    ],
)
def test_what_is_billed_is_as_near_to_a_call_as_its_name(name: str, model: str, expected: int | None) -> None:
    assert distance(name, model) == expected
    assert expected is None or family_of(name) == family_of(model)


def test_names_are_compared_in_lower_case_by_budgets_and_by_views() -> None:
    spelled = "OpenAI/GPT-5.5-2026-04-01"
    assert compared_scopes_of(spelled) == compared_scopes_of(spelled.lower()) == scopes_of(spelled.lower())
    assert all(re.search(pattern_of(scope), spelled) for scope in ("openai/gpt-5.5", "openai/*", spelled.lower()))


@pytest.mark.parametrize("model", ["openai/gpt-5.5-mini", "openai/gpt-5.55", "openai/gpt-4", "x/openai/gpt-5.5"])
def test_another_model_is_not_held(model: str) -> None:
    assert "openai/gpt-5.5" not in scopes_of(model)
    assert not re.search(pattern_of("openai/gpt-5.5"), model)


@pytest.mark.parametrize(
    ("scope", "meant"),
    [
        ("gpt-5.5", "openai/gpt-5.5"),
        ("fast", "must be provider/model"),
        ("OpenAI/*", "openai"),
        ("OpenAI/gpt-5.5", "openai"),
        ("opnai/gpt-5.5", "openai"),
        ("openai/GPT-5.5", "openai/gpt-5.5"),
        ("together/meta-llama/llama-4", "together/meta-llama/Llama-4"),
        ("openai/gpt-*", "provider/*"),
        ("*/gpt-5.5", "provider/*"),
        ("openai/", "provider/model"),
    ],
)
def test_a_scope_that_can_match_nothing_is_refused_with_what_may_be_meant(scope: str, meant: str) -> None:
    with pytest.raises(RequestInvalid, match=re.escape(meant)):
        check_scope_model(scope, KNOWN)


@pytest.mark.parametrize(
    "scope", ["openai/gpt-5.5", "openai/*", "openai/gpt-6", "ollama/Qwen3:8b", "together/meta-llama/Llama-4"]
)
def test_a_scope_that_may_match_is_taken(scope: str) -> None:
    check_scope_model(scope, KNOWN)
    assert scope in (*scopes_of(scope), "openai/*")


def test_a_provider_like_a_known_one_is_taken_for_a_slip_and_another_for_ones_own() -> None:
    for slip in ("opnai", "OpenAI", "openai/gpt-5.5"):
        with pytest.raises(RequestInvalid, match="did you mean openai"):
            check_provider("provider", slip, {"openai", "anthropic"})
    for own in ("simulator", "ollama", "openai"):
        check_provider("provider", own, {"openai", "anthropic"})


def test_who_bills_is_known_in_whatever_case_or_is_said_to_be_ones_own() -> None:
    known = {"openai", "tool"}
    for provider, own in (("openai", False), ("OpenAI", False), ("opnai", True), ("acme", True)):
        check_biller(provider, known, own_provider=own)
    for provider, words in (
        ("opnai", "neither a cost nor a price here.*give own_provider.*did you mean openai"),
        ("acme", r"neither a cost nor a price here.*--own-provider`\)$"),
    ):
        with pytest.raises(RequestInvalid, match=words):
            check_biller(provider, known, own_provider=False)
    with pytest.raises(RequestInvalid, match=r"provider's name alone; did you mean acme\?"):
        check_biller("acme/m1", known, own_provider=True)


def test_a_model_with_its_provider_in_front_twice_is_refused_unless_it_is_called_so() -> None:
    for spelled in ("openai/gpt-5.5", "OPENAI/gpt-5.5"):
        with pytest.raises(RequestInvalid, match=r"did you mean gpt-5\.5"):
            check_unprefixed("openai", spelled, KNOWN)
    for spelled in ("openrouter/auto", "OpenRouter/Auto"):
        check_unprefixed("openrouter", spelled, KNOWN)
    check_unprefixed("openrouter", "openai/gpt-5.5", KNOWN)
