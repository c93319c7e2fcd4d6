"""The comparison with a second source of prices, on a few prices made up. `make compare-prices` does it with the real ones."""

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cost_ledger.rates import flat_card
from cost_ledger.testing import FakePrices

from .compare import PRICES_FILE, Difference, compare, main, read, report

NOW = datetime(2026, 11, 21, tzinfo=UTC)
OURS = FakePrices(
    {"openai/gpt-9": flat_card(2_500_000, 10_000_000, 250_000, 2_500_000), "google/gemini-9": flat_card(1, 1, 1, 1)}
)


def entry(**given: object) -> dict[str, object]:
    return {"litellm_provider": "openai", "mode": "chat"} | given


def test_equal_rates_agree_also_where_their_float_has_noise() -> None:
    theirs = {"gpt-9": entry(input_cost_per_token=2.5000000000000002e-06, output_cost_per_token=1e-05)}
    found = compare(OURS, theirs, NOW)
    assert (found.models, found.rates, found.differences, found.agreeing) == (1, 2, (), 1.0)


def test_a_rate_that_differs_is_told_with_both_values() -> None:
    found = compare(OURS, {"gpt-9": entry(input_cost_per_token=3e-06, output_cost_per_token=1e-05)}, NOW)
    assert found.differences == (Difference("openai/gpt-9", "input_cost_per_token", 2_500_000, 3_000_000),)
    assert found.agreeing == 0.5
    assert "3,000,000" in report(found)


@pytest.mark.parametrize(
    "theirs",
    [
        {"gpt-unheard-of": entry(input_cost_per_token=1.0)},
        {"gpt-9": entry(mode="embedding", input_cost_per_token=1.0)},
        {"gpt-9": entry(litellm_provider="azure", input_cost_per_token=1.0)},
        {"gpt-9": entry(input_cost_per_token=0.0)},
    ],
)
def test_what_only_one_of_the_two_prices_is_left_out(theirs: dict[str, dict[str, object]]) -> None:
    found = compare(OURS, theirs, NOW)
    assert (found.models, found.rates, found.agreeing) == (0, 0, 0.0)


def test_names_with_a_provider_before_them_are_found() -> None:
    theirs = {"gemini/gemini-9": entry(litellm_provider="gemini", input_cost_per_token=1e-12)}
    assert compare(OURS, theirs, NOW).rates == 1


def test_a_wheel_without_one_price_in_common_fails_the_comparison(tmp_path: Path) -> None:
    wheel = tmp_path / "litellm-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(PRICES_FILE, json.dumps({"sample_spec": {}}))
    assert read(wheel) == {"sample_spec": {}}
    assert main([str(tmp_path)]) == 1
