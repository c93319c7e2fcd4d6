"""Costs as rows of a file: plain columns, or those of FOCUS, the FinOps Open Cost and Usage Specification.

Amounts are exact decimals of US dollars. FOCUS has no words for agents and runs; they are tags. Text that a spreadsheet
would take for a formula is quoted, and breaks of lines in it are spaces, since names of agents and users come from whoever
made them.
"""

import csv
import json
import re
from collections.abc import AsyncIterable, Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TextIO

from synod.cost_ledger.v1.cost_ledger_pb2 import ExportedCharge

from synod_client.cli.output import as_dict

_NANO_PER_USD: Final = 1_000_000_000
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t")
_BREAK: Final = re.compile(r"\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
"""What ends a line, for one reader or another."""
_OWNERS: Final = (
    "project_id",
    "agent",
    "conversation_id",
    "run_id",
    "root_run_id",
    "user_id",
    "model",
    "tool",
)

_TAG_PREFIX: Final = "synod/"

Row = dict[str, str | int]


class Format(StrEnum):
    """How costs are written."""

    CSV = "csv"
    FOCUS = "focus"
    JSON = "json"


async def write(charges: AsyncIterable[ExportedCharge], form: Format, file: TextIO) -> int:
    """Write each cost as it comes; how many there were. JSON is one object a line."""
    if form is Format.JSON:
        return await _write_json(charges, file)
    row_of: Callable[[ExportedCharge], Row] = focus_row if form is Format.FOCUS else plain_row
    columns = list(row_of(ExportedCharge()))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    written = 0
    async for charge in charges:
        writer.writerow({name: _harmless(value) for name, value in row_of(charge).items()})
        written += 1
    return written


async def _write_json(charges: AsyncIterable[ExportedCharge], file: TextIO) -> int:
    written = 0
    async for charge in charges:
        file.write(json.dumps(as_dict(charge), ensure_ascii=False) + "\n")
        written += 1
    return written


def plain_row(charge: ExportedCharge) -> Row:
    owners: Row = {name: getattr(charge.attribution, name) for name in _OWNERS}
    return {
        "id": charge.id,
        "kind": charge.kind,
        "incurred_at": _time(charge.incurred_at.ToDatetime(UTC)),
        **owners,
        "tags": json.dumps(_words(charge), ensure_ascii=False) if charge.attribution.tags else "",
        "cost_usd": decimal_usd(charge.cost_nano_usd),
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "price_source": charge.price_source,
        "price_version": charge.price_version,
        "price_context": charge.price_context,
        "usage_source": charge.usage_source,
        "revision": charge.revision,
    }


def focus_row(charge: ExportedCharge) -> Row:
    """Columns of FOCUS 1.2: all mandatory ones, and of the others those that the ledger knows.

    ListCost is by the provider's published price, before what the tenant negotiated; the others are what is owed: there
    is no commitment, so that what is contracted, effective and billed are one. A row is a charge as it stands: a
    correction has changed it (x_Revision) and is no charge of its own, so ChargeClass is null.
    """
    owner = charge.attribution
    what = owner.model or owner.tool or "other"
    provider = owner.model.partition("/")[0] or "tool"
    cost = decimal_usd(charge.cost_nano_usd)
    return {
        "BilledCost": cost,
        "BillingAccountId": owner.tenant_id,
        "BillingAccountName": "",
        "BillingCurrency": "USD",
        **_periods(charge.incurred_at.ToDatetime(UTC)),
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": f"{'Call of' if owner.model else 'Tool'} {what}",
        "ChargeFrequency": "Usage-Based",
        **_quantities(charge),
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": provider,
        "ListCost": decimal_usd(charge.list_cost_nano_usd),
        "PricingCategory": "Standard",
        "ProviderName": provider,
        "PublisherName": provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": what,
        "ServiceSubcategory": "Generative AI" if owner.model else "Other (AI and Machine Learning)",
        "SkuId": what,
        "SkuPriceId": f"{what} {charge.price_context}".rstrip(),
        "SubAccountId": owner.project_id,
        "Tags": json.dumps(_tags(charge), ensure_ascii=False),
        "x_ChargeId": charge.id,
        "x_InputTokens": charge.input_tokens,
        "x_OutputTokens": charge.output_tokens,
        "x_PriceSource": charge.price_source,
        "x_PriceVersion": charge.price_version,
        "x_Revision": charge.revision,
    }


def _periods(at: datetime) -> Row:
    """FOCUS periods are half open; a call is charged within its second."""
    month = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return {
        "BillingPeriodEnd": _time((month + timedelta(days=31)).replace(day=1)),
        "BillingPeriodStart": _time(month),
        "ChargePeriodEnd": _time(at + timedelta(seconds=1)),
        "ChargePeriodStart": _time(at),
    }


def _quantities(charge: ExportedCharge) -> Row:
    """What was used is what is priced. Input and output have prices of their own, so no unit price is told."""
    tokens = charge.input_tokens + charge.output_tokens
    quantity, unit = (tokens, "Tokens") if tokens else (1, "Calls")
    return {
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "SkuMeter": unit,
    }


def _tags(charge: ExportedCharge) -> dict[str, str]:
    """FOCUS wants the keys of tags that the provider defines to have a prefix, and the users' own to have none."""
    owners = {f"{_TAG_PREFIX}{name}": value for name in _OWNERS if (value := getattr(charge.attribution, name))}
    return owners | _words(charge)


def _words(charge: ExportedCharge) -> dict[str, str]:
    return dict(sorted(charge.attribution.tags.items()))


def decimal_usd(nano: int) -> str:
    """``1500`` as ``0.0000015``: exact, and nothing a spreadsheet could take for text."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), _NANO_PER_USD)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


def _harmless(value: str | int) -> str | int:
    if not isinstance(value, str):
        return value
    # A lone carriage return is written without quotes, and whoever reads by lines takes what follows any break for a row.
    line = _BREAK.sub(" ", value)
    if _is_formula(line) and not _is_number(line):
        return f"'{line}"
    return line


def _is_formula(line: str) -> bool:
    return line.startswith(_FORMULA_STARTS) or line.lstrip().startswith(_FORMULA_STARTS)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdigit()


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
