"""Holds the price book against a second source: the prices that LiteLLM ships in its wheel.  ``make compare-prices``

Neither is the truth. Where they differ, one of them is late or wrong, and somebody should look before an invoice does. The
other source knows no effective dates, so that only the prices of the day are compared, for providers that both have by the
same names. Nothing of it is kept or imported: the wheel is fetched by its hash, and one JSON file in it is read.
"""

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final

from cost_ledger.ports import Prices
from cost_ledger.prices import PICO_PER_USD, load_price_book
from cost_ledger.rates import rate_of

PRICES_FILE: Final = "litellm/model_prices_and_context_window_backup.json"
PROVIDERS: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "xai": "x-ai",
    "groq": "groq",
}
"""What they call a provider, and what our price book does."""
RATES: Final = {
    "input_cost_per_token": ("input",),
    "output_cost_per_token": ("output",),
    "cache_read_input_token_cost": ("cache_read",),
}
AGREEING_MIN: Final = 0.85
"""Below this share of equal rates something is wrong with one of the two, not with single models."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Pico-USD per token."""

    model: str
    rate: str
    ours: int
    theirs: int


@dataclass(frozen=True, slots=True)
class Comparison:
    models: int
    rates: int
    differences: tuple[Difference, ...]

    @property
    def agreeing(self) -> float:
        return 1 - len(self.differences) / self.rates if self.rates else 0.0


def compare(ours: Prices, theirs: Mapping[str, Any], at: datetime) -> Comparison:
    """Every rate that both have for a model that ours knows by exactly that name."""
    models = rates = 0
    found: list[Difference] = []
    for name, entry in _named(theirs):
        price = ours.price(name, at)
        if price.source != "book":
            continue
        pairs = [
            (rate, rate_of(price.rates, units, 0), _pico(entry[rate]))
            for rate, units in RATES.items()
            if entry.get(rate) and rate_of(price.rates, units, 0)
        ]
        models, rates = models + bool(pairs), rates + len(pairs)
        found += [Difference(name, rate, mine, other) for rate, mine, other in pairs if mine != other]
    return Comparison(models, rates, tuple(found))


def _named(theirs: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, entry in sorted(theirs.items()):
        provider = PROVIDERS.get(entry.get("litellm_provider", ""))
        if provider is not None and entry.get("mode") == "chat":
            yield f"{provider}/{key.rpartition('/')[2]}", entry


def _pico(usd: float) -> int:
    """Their floats have noise in the last digits; ours are whole pico-USD."""
    return int((Decimal(repr(usd)) * PICO_PER_USD).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def read(wheel: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        found: dict[str, Any] = json.loads(archive.read(PRICES_FILE))
    return found


def report(found: Comparison) -> str:
    lines = [f"{each.model:44}{each.rate:30}{each.ours:>12,}{each.theirs:>12,}" for each in found.differences]
    head = f"{'model':44}{'rate, pico-USD per token':30}{'ours':>12}{'theirs':>12}"
    told = f"{found.rates} rates of {found.models} models compared, {100 * found.agreeing:.1f} % agree"
    return "\n".join([head, *lines, told] if lines else [told])


def main(arguments: Sequence[str]) -> int:
    """0 if at least 85 % of the rates agree."""
    (directory,) = arguments
    (wheel,) = Path(directory).glob("litellm-*.whl")
    found = compare(load_price_book(), read(wheel), datetime.now(UTC))
    print(report(found))
    return 0 if found.agreeing >= AGREEING_MIN else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
