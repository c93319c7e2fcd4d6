"""When a budget runs out if spending goes on as it did. Pure.

The method: an exponentially weighted mean of the hours seen (half of the weight is the last 24 hours), times how much of
it each hour of the week usually has, once two weeks are known. Hours to come are that; the squared distances of the
hours seen from it, weighted in the same way, give their spread, and hours count as independent of each other.

It is statistics, so it calculates with floats: what it says is an estimate, never an amount that somebody owes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from typing import Final

HALF_LIFE_HOURS: Final = 24
PROFILE_HOURS_MIN: Final = 14 * 24
HORIZON: Final = timedelta(days=90)
WEEK_HOURS: Final = 7 * 24
ONE_IN_TEN: Final = 1.2816
"""Standard deviations above the mean that one in ten normal values passes."""
METHOD: Final = "EWMA of hours, half-life 24 h, by hour of the week once 14 days are known; normal spread"

_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class History:
    """What each whole hour cost, the oldest first; `until` is when the last of them ended. Integers of one unit."""

    hours: Sequence[int]
    until: datetime


@dataclass(frozen=True, slots=True)
class Limit:
    """What is posted of a limit, and when its window ends: None if never. `rolling_hours` is 0 for other windows."""

    posted: int
    limit: int
    end: datetime | None
    rolling_hours: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Times are None where a budget lasts until the end of its window, or 90 days."""

    burn_per_hour: int
    exhausted_p50: datetime | None
    exhausted_p10: datetime | None
    posted_at_end_p50: int
    posted_at_end_p90: int
    history_hours: int
    trend_percent: int | None


def forecast(history: History, limit: Limit) -> Forecast:
    """What will be, seen from the end of the history."""
    share_of = _profile(history)
    weights = [0.5 ** (age / HALF_LIFE_HOURS) for age in range(len(history.hours) - 1, -1, -1)]
    shares = [share_of(at) for at in _hours_of(history)]
    level = _ratio(_dot(weights, history.hours), _dot(weights, shares))
    distances = [(seen - level * share) ** 2 for seen, share in zip(history.hours, shares, strict=True)]
    spread = sqrt(_ratio(_dot(weights, distances), sum(weights)))
    courses = list(_courses(history, limit, lambda at: level * share_of(at), spread))
    return Forecast(
        burn_per_hour=round(level),
        exhausted_p50=next((at for at, middle, _ in courses if middle >= limit.limit), None),
        exhausted_p10=next((at for at, _, high in courses if high >= limit.limit), None),
        posted_at_end_p50=_at_end(limit, [middle for _, middle, _ in courses]),
        posted_at_end_p90=_at_end(limit, [high for _, _, high in courses]),
        history_hours=len(history.hours),
        trend_percent=trend_percent(history.hours),
    )


def trend_percent(hours: Sequence[int]) -> int | None:
    """The last 24 hours against the 24 before, in per cent; None if one of them is not known or nothing was spent before."""
    if len(hours) < 2 * HALF_LIFE_HOURS:
        return None
    last, before = sum(hours[-24:]), sum(hours[-48:-24])
    return round(100 * (last - before) / before) if before else None


def _courses(
    history: History, limit: Limit, expected: Callable[[datetime], float], spread: float
) -> Iterator[tuple[datetime, float, float]]:
    """For the end of each hour to come: what half of the courses have posted by then, and what one in ten has passed."""
    end = min(limit.end or history.until + HORIZON, history.until + HORIZON)
    window = limit.rolling_hours
    series = [float(seen) for seen in history.hours]
    total, at, number = float(limit.posted), history.until, 0
    if total >= limit.limit:
        yield at, total, total
    while at < end:
        step = min(_HOUR, end - at)
        series.append(expected(at) * (step / _HOUR))
        total, at, number = total + series[-1], at + step, number + 1
        if window and len(series) > window:
            total = max(total - series[-1 - window], 0.0)
        unknown = min(number, window) if window else number
        yield at, total, total + ONE_IN_TEN * spread * sqrt(unknown)


def _at_end(limit: Limit, amounts: Sequence[float]) -> int:
    if not amounts:
        return limit.posted
    return round(max(amounts) if limit.rolling_hours else amounts[-1])


def _profile(history: History) -> Callable[[datetime], float]:
    """How much of the mean an hour of the week has; 1 for all while less than two weeks are known."""
    mean = _ratio(sum(history.hours), len(history.hours))
    if len(history.hours) < PROFILE_HOURS_MIN or not mean:
        return lambda at: 1.0
    totals, counts = [0.0] * WEEK_HOURS, [0] * WEEK_HOURS
    for at, seen in zip(_hours_of(history), history.hours, strict=True):
        totals[_hour_of_week(at)] += seen
        counts[_hour_of_week(at)] += 1
    shares = [total / count / mean for total, count in zip(totals, counts, strict=True)]
    return lambda at: shares[_hour_of_week(at)]


def _hours_of(history: History) -> Iterator[datetime]:
    """When each hour of the history began."""
    first = history.until - len(history.hours) * _HOUR
    return (first + number * _HOUR for number in range(len(history.hours)))


def _hour_of_week(at: datetime) -> int:
    return at.weekday() * 24 + at.hour


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _ratio(amount: float, by: float) -> float:
    return amount / by if by else 0.0
