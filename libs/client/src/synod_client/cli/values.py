"""Values on the command line: amounts, moments, lengths of time, terms. Whatever cannot be read is a usage error."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from synod.common.money import parse_usd
from typer.core import TyperCommand

_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_LENGTH: Final = re.compile(r"(\d{1,6})([mhd])")
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_NEGATIVE: Final = re.compile(r"-\$?[0-9.,]+")
NANO_PER_MILLION_IN_PICO: Final = 1_000
"""A nano-USD per million is a thousandth of a pico-USD for one."""
POSITION_MAX: Final = 2**63 - 1
_FIXED_HELP: Final = "a day (2026-11-01) or a moment (2026-11-01T08:00Z)"
_MOMENT_HELP: Final = "a day (2026-11-01), a moment (2026-11-01T08:00Z), or a time ago (90m, 24h, 7d)"

Since = Annotated[str, typer.Option("--since", help=f"Only from then on: {_MOMENT_HELP}.")]
Until = Annotated[str, typer.Option("--until", help="Only before then, written like --since.")]


class OfAmounts(TyperCommand):
    """A command whose arguments are amounts: one below 0 would be taken for an option that there is not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for text in args:
            if _NEGATIVE.fullmatch(text):
                raise typer.BadParameter(f"'{text}' is less than nothing; give 0 or more", ctx=ctx)
        return super().parse_args(ctx, args)


def nano_usd(text: str, hint: str) -> int:
    try:
        return parse_usd(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error


def pico_usd_each(text: str, hint: str) -> int:
    """US dollars for a million of something, as pico-USD for one."""
    each, finer = divmod(nano_usd(text, hint), NANO_PER_MILLION_IN_PICO)
    if finer:
        problem = (
            f"'{text}' is finer than a price is kept, which is 0.000001 dollars per million: give at most six decimals"
        )
        raise typer.BadParameter(problem, param_hint=hint)
    return each


def signed_nano_usd(text: str, hint: str) -> int:
    """Also an amount below zero, as a credit is."""
    return -nano_usd(text[1:], hint) if text.startswith("-") else nano_usd(text, hint)


def whole_number(text: str, hint: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise typer.BadParameter(f"'{text}' is not a whole number of at most 18 digits, such as 1000", param_hint=hint)
    return int(text)


def length(text: str, hint: str) -> timedelta:
    """``"90m"``, ``"24h"``, ``"7d"``."""
    if (found := _LENGTH.fullmatch(text)) is None:
        raise typer.BadParameter(f"'{text}' is not a length of time, such as 90m, 24h or 7d", param_hint=hint)
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str, hint: str) -> Timestamp | None:
    """A moment in UTC unless it says otherwise; None for nothing."""
    if not text:
        return None
    try:
        if _LENGTH.fullmatch(text):
            return stamp(datetime.now(UTC) - length(text, hint))
    except OverflowError:
        raise typer.BadParameter(f"'{text}' is not {_MOMENT_HELP}", param_hint=hint) from None
    return _read_moment(text, hint, _MOMENT_HELP)


def fixed_moment(text: str, hint: str) -> Timestamp:
    """A moment that is the same whenever it is read: no time ago."""
    return _read_moment(text, hint, _FIXED_HELP)


def _read_moment(text: str, hint: str, expected: str) -> Timestamp:
    try:
        found = datetime.fromisoformat(text)
        # The first and the last hours of all time have no moment in UTC.
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"'{text}' is not {expected}", param_hint=hint) from None


def period(since: str, until: str) -> tuple[Timestamp | None, Timestamp | None]:
    """The moments of --since and --until, of which the second must be later."""
    start, end = moment(since, "--since"), moment(until, "--until")
    if start is not None and end is not None and start.ToNanoseconds() >= end.ToNanoseconds():
        raise typer.BadParameter(f"'{until}' is not after --since '{since}'", param_hint="--until")
    return start, end


def stamp(at: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(at)
    return found


def provider_and_model(text: str, hint: str) -> tuple[str, str]:
    provider, found, name = text.partition("/")
    if not (found and provider and name):
        raise typer.BadParameter(f"'{text}' is not provider/model, such as ollama/qwen3", param_hint=hint)
    return provider, name


def tags(texts: list[str] | None) -> dict[str, str]:
    """``["team=search"]`` as a mapping; the ledger says which names and values there are."""
    return _pairs(texts, "--tag", "team=search")


def terms(texts: list[str] | None, hint: str) -> dict[str, str]:
    """``["processing=batch"]`` as a mapping."""
    return _pairs(texts, hint, "processing=batch")


def _pairs(texts: list[str] | None, hint: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or []:
        name, is_pair, value = text.partition("=")
        if not (is_pair and name and value):
            raise typer.BadParameter(f"'{text}' is not NAME=VALUE, such as {example}", param_hint=hint)
        if found.setdefault(name, value) != value:
            raise typer.BadParameter(f"'{name}' is given as '{found[name]}' and as '{value}'", param_hint=hint)
    return found
