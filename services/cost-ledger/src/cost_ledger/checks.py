"""What a caller may ask for: every field within its limits. Each check raises RequestInvalid with the field's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, get_args

from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Quantity, Unit, UnitRate

from cost_ledger.book import SCOPE_FIELDS, Budget
from cost_ledger.commands import COST_NANO_MAX, QUANTITY_MAX, SetBudget, SetPrice, SetPriceFactor
from cost_ledger.errors import RequestInvalid
from cost_ledger.terms import Terms
from cost_ledger.windows import ROLLING_MAX, ROLLING_MIN, zone_names

TTL_MAX: Final = timedelta(hours=24)
LIMIT_NANO_MAX: Final = 10**18
"""One thousand million US dollars: a limit above is none."""
TOKENS_MAX: Final = 10**12
RATE_PICO_MAX: Final = 10**12
"""One US dollar per token."""
RATE_OTHER_PICO_MAX: Final = 10**18
"""A million US dollars for another unit."""
RATES_MAX: Final = 64
FACTOR_PPM_MAX: Final = 100_000_000
"""A hundred times the price book."""
TEXT_CHARS_MAX: Final = 256
USAGE_LINES_MAX: Final = 64
TERMS_MAX: Final = 8
ITEMS_MAX: Final = 256
"""Of a batch; a book decides as many in one turn."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
"""What no name has, and PostgreSQL (NUL) and headers do not take."""
_BUDGET_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}")
_TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")


def check_batch(items: int) -> None:
    if items > ITEMS_MAX:
        raise RequestInvalid("items", items, f"has at most {ITEMS_MAX} entries")


def check_model(model: str, *, needed: bool) -> None:
    """`needed`: without one nothing would be held."""
    check_text("model", model)
    if not model and needed:
        raise RequestInvalid("model", "", "give a model with token bounds, upper_bound_nano_usd, or quantities")
    if model:
        check_model_name("model", model)


def check_model_name(field: str, model: str) -> None:
    check_name(field, model)
    if "/" not in model:
        raise RequestInvalid(field, model, "must be written provider/model, such as openai/gpt-5.5")


def check_ttl(ttl: timedelta | None) -> None:
    if ttl is not None and not timedelta(0) < ttl <= TTL_MAX:
        raise RequestInvalid("ttl", str(ttl), "must be above 0 and at most 24 hours")


def check_usage(usage: tuple[UsageLine, ...]) -> None:
    if len(usage) > USAGE_LINES_MAX:
        raise RequestInvalid("usage", len(usage), f"has at most {USAGE_LINES_MAX} lines")
    for line in usage:
        check_range("usage.quantity", line.quantity, TOKENS_MAX)
        check_text("usage.unit", line.unit)
        check_text("usage.ttl", line.ttl)


def check_quantities(quantities: Iterable[Quantity]) -> None:
    """Each unit once; money has a field of its own."""
    seen = set()
    for each in quantities:
        if each.unit == "nano_usd" or each.unit in seen:
            raise RequestInvalid("quantities.unit", each.unit, "is a quota's unit, each at most once")
        seen.add(each.unit)
        check_range("quantities.quantity", each.quantity, QUANTITY_MAX)


def check_terms(terms: Terms) -> None:
    if len(terms) > TERMS_MAX:
        raise RequestInvalid("price_context", len(terms), f"has at most {TERMS_MAX} entries")
    for name, value in terms:
        if not (_TERM.fullmatch(name) and _TERM.fullmatch(value)):
            raise RequestInvalid("price_context", f"{name}={value}", "is made of A-Z a-z 0-9 . _ / -, such as batch")


def check_budget(command: SetBudget, known: Budget | None = None) -> None:
    """`known` is the budget that it changes: that keeps its time zone, also one that no new budget may have."""
    if not _BUDGET_ID.fullmatch(command.budget_id):
        problem = "must be 1 to 64 characters of A-Z a-z 0-9 . _ : / @ -, the first a letter or digit"
        raise RequestInvalid("budget_id", command.budget_id, problem)
    check_attribution("scope", command.scope)
    if command.unit == "nano_usd":
        check_range("limit_nano_usd", command.limit, LIMIT_NANO_MAX)
    else:
        check_range("limit_quantity", command.limit, QUANTITY_MAX)
    if command.per and command.per not in SCOPE_FIELDS:
        raise RequestInvalid("per", command.per, f"must be empty or one of {', '.join(SCOPE_FIELDS)}")
    if known is None or known.time_zone != command.time_zone:
        _check_zone(command)
    _check_window(command)


def _check_zone(command: SetBudget) -> None:
    if command.time_zone not in zone_names():
        problem = "is no time zone; give an IANA name such as Europe/Berlin, or UTC"
        raise RequestInvalid("time_zone", command.time_zone, problem)


def _check_window(command: SetBudget) -> None:
    # In seconds: a timedelta cannot hold all that a caller may send.
    rolling_s = command.rolling_s
    if command.window != "rolling":
        if rolling_s:
            raise RequestInvalid("rolling", f"{rolling_s} s", f"belongs to the window rolling, not {command.window}")
    elif not ROLLING_MIN.total_seconds() <= rolling_s <= ROLLING_MAX.total_seconds():
        raise RequestInvalid("rolling", f"{rolling_s} s", "must be from 1 minute to 366 days")


def check_price(price: SetPrice) -> None:
    check_name("provider", price.provider)
    _check_one("provider", price.provider, "a price is that of one model")
    check_name("model", price.model)
    _check_one("model", price.model, "a price is that of one model; SetPriceFactor changes all models of a provider")
    check_range("input_pico_usd", price.input_pico, RATE_PICO_MAX)
    check_range("output_pico_usd", price.output_pico, RATE_PICO_MAX)
    check_range("cache_read_pico_usd", price.cache_read_pico, RATE_PICO_MAX)
    check_range("cache_write_pico_usd", price.cache_write_pico, RATE_PICO_MAX)
    if len(price.more) > RATES_MAX:
        raise RequestInvalid("rates", len(price.more), f"has at most {RATES_MAX} entries")
    for rate in price.more:
        _check_rate(rate)


def check_factor(factor: SetPriceFactor) -> None:
    check_name("provider", factor.provider)
    check_text("model", factor.model)
    _check_one("model", factor.model, "leave it empty for all models of the provider")
    if not 1 <= factor.factor_ppm <= FACTOR_PPM_MAX:
        raise RequestInvalid("factor_ppm", factor.factor_ppm, f"must be from 1 to {FACTOR_PPM_MAX}")


def _check_one(field: str, name: str, instead: str) -> None:
    """A pattern would be kept as a name that no call ever has."""
    if "*" in name:
        raise RequestInvalid(field, name, f"is no name of one {field}: {instead}")


def _check_rate(rate: UnitRate) -> None:
    check_name("rates.unit", rate.unit)
    if not 1 <= rate.per <= QUANTITY_MAX:
        raise RequestInvalid("rates.per", rate.per, f"must be from 1 to {QUANTITY_MAX}")
    # A unit that is not a token, such as an hour of audio, may cost more than a token.
    check_range("rates.pico_usd", rate.pico_usd, RATE_OTHER_PICO_MAX)
    check_range("rates.above_input_tokens", rate.above_input_tokens, TOKENS_MAX)


def check_unit(field: str, unit: str) -> None:
    if unit not in get_args(Unit):
        raise RequestInvalid(field, unit, f"must be one of {', '.join(get_args(Unit))}")


def check_attribution(field: str, attribution: Attribution) -> None:
    for name in SCOPE_FIELDS:
        # Every reservation is looked at, and most fields are empty and all that are not are short.
        if (value := getattr(attribution, name)) and (len(value) > TEXT_CHARS_MAX or _CONTROL.search(value)):
            check_text(f"{field}.{name}", value)


def check_attributed_model(attributed: str, model: str) -> None:
    """Else the cost would be of one model, and count in the budgets of another."""
    if model and attributed and attributed.lower() != model.lower():
        raise RequestInvalid("attribution.model", attributed, f"must be empty or the model that is asked for, {model}")


def check_correlation(field: str, value: str) -> None:
    """It travels in headers, which take less than a name may have."""
    check_text(field, value)
    if not value.isprintable():
        raise RequestInvalid(field, value, "must be of printable characters, and of spaces only the plain one")


def check_period(since: datetime | None, until: datetime | None, begins: str = "since") -> None:
    """`begins` is the request's name for the first moment."""
    if since is not None and until is not None and since >= until:
        raise RequestInvalid("until", until.isoformat(), f"must be after {begins}, {since.isoformat()}")


def check_name(field: str, value: str) -> None:
    if not value:
        raise RequestInvalid(field, value, "must not be empty")
    check_text(field, value)


def check_text(field: str, value: str) -> None:
    if len(value) > TEXT_CHARS_MAX:
        raise RequestInvalid(field, value[:32], f"has {len(value)} characters, at most {TEXT_CHARS_MAX} are allowed")
    if found := _CONTROL.search(value):
        raise RequestInvalid(field, value, f"has the control character U+{ord(found[0]):04X}, which no text may have")


def check_amount(field: str, value: int) -> None:
    """Of one cost."""
    check_range(field, value, COST_NANO_MAX)


def check_range(field: str, value: int, maximum: int, minimum: int = 0) -> None:
    if not minimum <= value <= maximum:
        raise RequestInvalid(field, value, f"must be from {minimum} to {maximum}")
