"""Windows of budgets by the clock of a place: days of 23 and 25 hours, hours that come twice, months that end early.

Failure group 16: window boundaries, zones with daylight saving, leap days.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cost_ledger.windows import ROLLING_SLICES, bounds, counted, slice_s, window_start
from hypothesis import given
from hypothesis import strategies as st
from synod.cost_ledger.events import Window

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # falls back at 01:00 to 00:00: midnight comes twice
    "Africa/Cairo",  # springs forward at 00:00: some days have no midnight
    "Australia/Lord_Howe",  # moves by half an hour
    "Asia/Kathmandu",  # +05:45
    "Pacific/Apia",
]
CALENDAR: list[Window] = ["hour", "day", "week", "month", "year"]
INSTANTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def hours(window: Window, moment: datetime, zone: str) -> float:
    found = bounds(window, moment, zone)
    assert found.start is not None and found.end is not None
    return (found.end - found.start) / timedelta(hours=1)


@pytest.mark.parametrize(
    ("window", "moment", "zone", "name"),
    [
        ("day", "2026-03-29T01:30:00", "Europe/Berlin", "2026-03-29"),
        ("day", "2026-11-30T23:30:00", "Europe/Berlin", "2026-11-30"),
        ("week", "2027-01-01T12:00:00", "Europe/Berlin", "2026-W53"),
        ("week", "2026-12-28T00:00:00", "Europe/Berlin", "2026-W53"),
        ("month", "2028-02-29T23:59:59", "America/New_York", "2028-02"),
        ("year", "2026-12-31T23:59:59", "Asia/Kathmandu", "2026"),
        ("hour", "2026-11-21T14:59:00", "Asia/Kathmandu", "2026-11-21T14+0545"),
        ("lifetime", "2026-11-21T14:59:00", "Asia/Kathmandu", "lifetime"),
    ],
)
def test_a_window_is_named_by_the_local_calendar(window: Window, moment: str, zone: str, name: str) -> None:
    assert window_start(window, at(moment, zone), zone) == name


def test_a_moment_is_in_another_day_on_the_other_side_of_the_world() -> None:
    moment = at("2026-11-30T23:30:00")
    names = [window_start("month", moment, zone) for zone in ("UTC", "Europe/Berlin", "America/New_York")]
    assert names == ["2026-11", "2026-12", "2026-11"]


def test_group_16_a_day_lasts_23_hours_when_clocks_go_forward_and_25_when_they_go_back() -> None:
    assert hours("day", at("2026-03-29T12:00:00", "Europe/Berlin"), "Europe/Berlin") == 23
    assert hours("day", at("2026-10-25T12:00:00", "Europe/Berlin"), "Europe/Berlin") == 25
    assert hours("day", at("2026-10-26T12:00:00", "Europe/Berlin"), "Europe/Berlin") == 24


def test_group_16_an_hour_that_comes_twice_is_two_windows() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    names = [window_start("hour", first + timedelta(hours=n), "Europe/Berlin") for n in range(3)]
    assert names == ["2026-10-25T02+0200", "2026-10-25T02+0100", "2026-10-25T03+0100"]


def test_group_16_a_day_whose_midnight_comes_twice_begins_with_the_first() -> None:
    day = bounds("day", at("2026-11-01T12:00:00", "America/Havana"), "America/Havana")
    assert (day.start, hours("day", at("2026-11-01T12:00:00", "America/Havana"), "America/Havana")) == (
        datetime(2026, 11, 1, 4, tzinfo=UTC),
        25,
    )


def test_group_16_a_day_without_midnight_begins_when_the_clock_jumps() -> None:
    noon = at("2026-04-24T12:00:00", "Africa/Cairo")
    assert bounds("day", noon, "Africa/Cairo").start == datetime(2026, 4, 23, 22, tzinfo=UTC)
    assert hours("day", noon, "Africa/Cairo") == 23


@pytest.mark.parametrize(("month", "days"), [("2026-02", 28), ("2028-02", 29), ("2026-04", 30), ("2026-12", 31)])
def test_group_16_a_month_ends_where_the_calendar_says(month: str, days: int) -> None:
    assert hours("month", at(f"{month}-01T00:00:00"), "UTC") == days * 24


def test_group_16_a_leap_day_is_a_window_of_its_own_and_makes_its_year_longer() -> None:
    leap_day = at("2028-02-29T12:00:00", "Europe/Berlin")
    names = [window_start("day", leap_day + timedelta(days=days), "Europe/Berlin") for days in (-1, 0, 1)]
    assert names == ["2028-02-28", "2028-02-29", "2028-03-01"]
    assert hours("year", leap_day, "Europe/Berlin") == 366 * 24
    assert hours("year", at("2100-02-28T12:00:00", "Europe/Berlin"), "Europe/Berlin") == 365 * 24


@pytest.mark.parametrize(
    ("zone", "changes_at"),
    [
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),  # 02:00 is 01:30
        ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),  # 02:00 is 02:30
        ("Pacific/Chatham", datetime(2026, 4, 4, 14, tzinfo=UTC)),  # 03:45 is 02:45
        ("Pacific/Chatham", datetime(2026, 9, 26, 14, tzinfo=UTC)),  # 02:45 is 03:45
        ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ],
)
def test_group_16_an_hour_ends_where_the_clock_is_changed_within_it(zone: str, changes_at: datetime) -> None:
    moments = [changes_at + timedelta(minutes=minutes, microseconds=-1) for minutes in range(-180, 181, 5)]
    for moment in (*moments, changes_at):
        found = bounds("hour", moment, zone)
        assert found.start is not None and found.end is not None
        around = [moment + timedelta(minutes=minutes) for minutes in range(-90, 91)]
        name = window_start("hour", moment, zone)
        within = [each for each in around if window_start("hour", each, zone) == name]
        assert within == [each for each in around if found.start <= each < found.end]
        assert bounds("hour", found.end, zone).start == found.end


@given(moment=INSTANTS, zone=st.sampled_from(ZONES), window=st.sampled_from(CALENDAR))
def test_group_16_windows_cover_time_without_gap_and_overlap(moment: datetime, zone: str, window: Window) -> None:
    found = bounds(window, moment, zone)
    assert found.start is not None and found.end is not None
    assert found.start <= moment < found.end
    name = window_start(window, moment, zone)
    last = found.end - timedelta(microseconds=1)
    assert window_start(window, found.start, zone) == window_start(window, last, zone) == name
    assert window_start(window, found.end, zone) != name
    assert bounds(window, found.end, zone).start == found.end


@given(moment=INSTANTS, rolling_s=st.integers(60, 366 * 86_400), share=st.floats(0, 1))
def test_group_16_every_moment_within_a_rolling_window_counts_and_none_much_older(
    moment: datetime, rolling_s: int, share: float
) -> None:
    names = counted("rolling", window_start("rolling", moment, rolling_s=rolling_s), rolling_s)
    within = moment - timedelta(seconds=rolling_s * share)
    older = moment - timedelta(seconds=rolling_s + 2 * slice_s(rolling_s))
    assert window_start("rolling", within, rolling_s=rolling_s) in names
    assert window_start("rolling", older, rolling_s=rolling_s) not in names
    # One for the slice that is cut, one for a clock that is ahead.
    assert len(names) <= ROLLING_SLICES + 2


def test_what_a_replica_with_a_clock_a_little_ahead_admitted_counts() -> None:
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    ahead = window_start("rolling", now + timedelta(seconds=1), rolling_s=3600)
    assert ahead in counted("rolling", window_start("rolling", now - timedelta(seconds=1), rolling_s=3600), 3600)
