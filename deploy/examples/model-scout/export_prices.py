"""Writes the price book of genai-prices to a CSV file: every model of every provider that charges by text tokens.

Usage: ``python deploy/examples/model-scout/export_prices.py OUT.csv [--at 2026-11-21]``. Prices are US dollars per million
tokens as exact decimals, in force at noon UTC of the day. Rows are sorted, so that the same book gives the same file.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

from genai_prices import data, types

COLUMNS = (
    "provider",
    "model",
    "name",
    "context_tokens",
    "deprecated",
    "input_usd_per_mtok",
    "output_usd_per_mtok",
    "cache_read_usd_per_mtok",
    # Above this many input tokens the tier's prices hold for the whole request.
    "tier_from_tokens",
    "tier_input_usd_per_mtok",
    "tier_output_usd_per_mtok",
)
Row = dict[str, str]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", type=date.fromisoformat, default=datetime.now(UTC).date(), help="day, default today")
    options = parser.parse_args(arguments)
    rows = sorted(
        price_rows(datetime.combine(options.at, time(12), UTC)), key=lambda row: (row["provider"], row["model"])
    )
    write(options.out, rows)
    print(
        f"{options.out}: {len(rows)} models of {len({row['provider'] for row in rows})} providers, prices of {options.at}"
    )
    return 0


def price_rows(at: datetime) -> Iterator[Row]:
    for provider in data.providers:
        for model in provider.models:
            row = price_row(provider.id, model, at)
            if row is not None:
                yield row


def price_row(provider: str, model: types.ModelInfo, at: datetime) -> Row | None:
    """The row of a model, or None when it does not charge by text tokens in and out."""
    prices = model.get_prices(at)
    known = prices.__dict__
    given, returned = known.get("input_mtok"), known.get("output_mtok")
    if given is None or returned is None:
        return None
    threshold, tier_input = tier(given)
    tier_output = tier(returned)[1]
    return {
        "provider": provider,
        "model": model.id,
        "name": model.name or model.id,
        "context_tokens": str(model.context_window or ""),
        "deprecated": "true" if model.deprecated else "false",
        "input_usd_per_mtok": decimal(base(given)),
        "output_usd_per_mtok": decimal(base(returned)),
        "cache_read_usd_per_mtok": decimal(base(known.get("cache_read_mtok"))),
        "tier_from_tokens": str(threshold or ""),
        "tier_input_usd_per_mtok": decimal(tier_input),
        "tier_output_usd_per_mtok": decimal(tier_output),
    }


def base(price: Decimal | types.TieredPrices | None) -> Decimal | None:
    return price.base if isinstance(price, types.TieredPrices) else price


def tier(price: Decimal | types.TieredPrices) -> tuple[int | None, Decimal | None]:
    """Threshold and price of the first tier above the base."""
    if not isinstance(price, types.TieredPrices) or not price.tiers:
        return None, None
    first = min(price.tiers, key=lambda found: found.start)
    return first.start, first.price


def decimal(value: Decimal | None) -> str:
    return "" if value is None else format(value, "f")


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
