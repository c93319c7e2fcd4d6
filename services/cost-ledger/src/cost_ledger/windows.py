"""Windows of budgets: which one a moment falls into, what it is called, and when it begins and ends.

Calendar windows are of a time zone: a day of Europe/Berlin lasts 23, 24 or 25 hours. Names are made of local time, with
the offset where the clock shows an hour twice, so that no two windows share a name. There is nothing to reset: a new
window is a name that no posting has used yet.

A rolling window is cut into slices, each with a name and balances of its own. What counts at a moment are the slices
that reach into the window, so a cost counts for up to one slice longer than the window, never shorter.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from synod.cost_ledger.events import Window

ROLLING_SLICES: Final = 24
ROLLING_MIN: Final = timedelta(minutes=1)
ROLLING_MAX: Final = timedelta(days=366)
LIFETIME: Final = "lifetime"

_HOUR_S: Final = 3_600
_SLICE_NAME: Final = "%Y-%m-%dT%H:%M:%SZ"
_SLICES_AHEAD: Final = 1
"""Another replica's clock may be in the next slice already; what it admitted there counts."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Half open, UTC. `end` is None for what never ends."""

    start: datetime | None
    end: datetime | None


def zone(name: str) -> tzinfo:
    """The time zone of an IANA name, UTC for none. Raises ZoneInfoNotFoundError or ValueError for what is none here."""
    return UTC if name in ("", "UTC") else ZoneInfo(name)


@cache
def zone_names() -> frozenset[str]:
    """The IANA names, and "" for UTC. The first call reads the time zone directory, some hundredths of a second."""
    # What Debian calls localtime is the clock of the machine, which another may have set otherwise.
    return frozenset(available_timezones() - {"localtime"} | {"", "UTC"})


def window_start(window: Window, at: datetime, time_zone: str = "UTC", rolling_s: int = 0) -> str:
    """The name of the window that `at` (aware) falls into."""
    if window == "lifetime":
        return LIFETIME
    if window == "rolling":
        return _slice_name(_slice_of(at, rolling_s), rolling_s)
    local = at.astimezone(zone(time_zone))
    match window:
        case "hour":
            return local.strftime("%Y-%m-%dT%H%z")
        case "day":
            return local.strftime("%Y-%m-%d")
        case "week":
            return local.strftime("%G-W%V")
        case "month":
            return local.strftime("%Y-%m")
        case "year":
            return local.strftime("%Y")


def counted(window: Window, name: str, rolling_s: int) -> tuple[str, ...]:
    """The names whose balances count together when the window of `name` is asked for."""
    return _live_slices(name, rolling_s) if window == "rolling" else (name,)


def stretch(window: Window, name: str, rolling_s: int) -> tuple[str, ...]:
    """The names within a whole window's length of `name`, before it or after: what happens once in a window has one of them."""
    return _slices_around(name, rolling_s) if window == "rolling" else (name,)


def bounds(window: Window, at: datetime, time_zone: str = "UTC", rolling_s: int = 0) -> Bounds:
    """When the window that `at` falls into begins and ends. A rolling window ends now and never."""
    if window == "lifetime":
        return Bounds(None, None)
    if window == "rolling":
        return Bounds(at - timedelta(seconds=rolling_s), None)
    where = zone(time_zone)
    local = at.astimezone(where)
    if window == "hour":
        return _hour_bounds(at, local, where)
    first = _first_day(window, local)
    return Bounds(_utc(first, where), _utc(_next_first_day(window, first), where))


def _hour_bounds(at: datetime, local: datetime, where: tzinfo) -> Bounds:
    """An hour of the clock, and only the part of it with the same offset: some clocks are changed by half an hour."""
    into = local.minute * 60 + local.second
    hour = at.astimezone(UTC).replace(microsecond=0) - timedelta(seconds=into)

    def is_other(second: int) -> bool:
        return (hour + timedelta(seconds=second)).astimezone(where).utcoffset() != local.utcoffset()

    first = bisect_left(range(into), True, key=lambda second: not is_other(second))
    end = into + bisect_left(range(into, _HOUR_S), True, key=is_other)
    return Bounds(hour + timedelta(seconds=first), hour + timedelta(seconds=end))


def _first_day(window: Window, local: datetime) -> datetime:
    """Midnight of the local day that the window begins with, without a zone."""
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
    match window:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
        case _:
            return day


def _next_first_day(window: Window, first: datetime) -> datetime:
    match window:
        case "week":
            return first + timedelta(days=7)
        case "month":
            return (first + timedelta(days=31)).replace(day=1)
        case "year":
            return first.replace(year=first.year + 1)
        case _:
            return first + timedelta(days=1)


def _utc(local: datetime, where: tzinfo) -> datetime:
    # The first of two midnights; and for a midnight that the clock skips, the moment at which it does.
    return local.replace(tzinfo=where).astimezone(UTC)


# --- rolling ---


def slice_s(rolling_s: int) -> int:
    """The length of a slice: whole seconds, so that 24 of them, rounded up, cover the window."""
    return -(-rolling_s // ROLLING_SLICES)


def _slice_of(at: datetime, rolling_s: int) -> int:
    return int(at.timestamp() // slice_s(rolling_s))


def _slice_name(number: int, rolling_s: int) -> str:
    return datetime.fromtimestamp(number * slice_s(rolling_s), UTC).strftime(_SLICE_NAME)


@lru_cache(maxsize=1024)
def _live_slices(name: str, rolling_s: int) -> tuple[str, ...]:
    return _slices(name, rolling_s, _SLICES_AHEAD)


@lru_cache(maxsize=1024)
def _slices_around(name: str, rolling_s: int) -> tuple[str, ...]:
    return _slices(name, rolling_s, _slices_of_window(rolling_s))


def _slices(name: str, rolling_s: int, ahead: int) -> tuple[str, ...]:
    newest = _slice_of(datetime.fromisoformat(name), rolling_s)
    oldest = newest - _slices_of_window(rolling_s)
    return tuple(_slice_name(number, rolling_s) for number in range(oldest, newest + ahead + 1))


def _slices_of_window(rolling_s: int) -> int:
    return -(-rolling_s // slice_s(rolling_s))
