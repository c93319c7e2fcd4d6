"""Forecasts on histories that a person can check."""

from datetime import UTC, datetime, timedelta

from cost_ledger.forecast import Forecast, History, Limit, forecast, trend_percent
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MONTH_END = datetime(2026, 12, 1, tzinfo=UTC)


def made(hours: list[int], limit: int, posted: int = 0, end: datetime | None = MONTH_END, rolling: int = 0) -> Forecast:
    return forecast(History(hours, NOW), Limit(posted, limit, end, rolling))


def test_steady_spending_runs_out_when_the_rest_is_divided_by_it() -> None:
    found = made([10] * 48, limit=1_000, posted=480)
    assert found.burn_per_hour == 10
    # 520 are left: 52 hours.
    assert found.exhausted_p50 == found.exhausted_p10 == NOW + timedelta(hours=52)


def test_a_budget_that_lasts_to_the_end_of_its_window_does_not_run_out() -> None:
    found = made([10] * 48, limit=10_000, posted=480)
    assert (found.exhausted_p50, found.exhausted_p10) == (None, None)
    hours_left = int((MONTH_END - NOW) / timedelta(hours=1))
    assert found.posted_at_end_p50 == found.posted_at_end_p90 == 480 + 10 * hours_left


def test_without_a_history_nothing_is_expected() -> None:
    found = made([], limit=100, posted=5)
    assert (found.burn_per_hour, found.exhausted_p50, found.posted_at_end_p50) == (0, None, 5)


def test_a_budget_that_is_used_up_ran_out_now() -> None:
    assert made([10] * 5, limit=100, posted=100).exhausted_p50 == NOW


def test_the_last_day_has_half_of_the_weight() -> None:
    assert made([0] * 24 * 12 + [100] * 24, limit=10**9).burn_per_hour == 50


def test_uneven_spending_runs_out_earlier_in_one_case_of_ten() -> None:
    found = made([0, 0, 0, 40] * 12, limit=1_000, posted=480)
    assert found.exhausted_p10 is not None
    assert found.exhausted_p50 is not None
    assert found.exhausted_p10 < found.exhausted_p50


def test_weekends_are_expected_to_be_quiet_once_two_weeks_are_known() -> None:
    first = NOW - timedelta(days=21)
    hours = [0 if (first + timedelta(hours=hour)).weekday() >= 5 else 10 for hour in range(21 * 24)]
    quiet = forecast(History(hours, NOW), Limit(0, 10**9, NOW + timedelta(days=7)))
    # Five working days of 240 each, and a weekend of nothing.
    assert abs(quiet.posted_at_end_p50 - 1_200) <= 1


def test_in_a_rolling_window_what_is_older_is_given_back() -> None:
    steady = made([10] * 48, limit=250, posted=240, end=None, rolling=24)
    assert steady.exhausted_p50 is None
    assert steady.posted_at_end_p50 == 240
    # The day before was quiet, so nothing is given back while this day's pace fills the window.
    rising = made([0] * 24 + [20] * 24, limit=500, posted=480, end=None, rolling=24)
    assert rising.exhausted_p50 is None


def test_a_trend_compares_the_last_day_with_the_one_before() -> None:
    assert trend_percent([10] * 24 + [15] * 24) == 50
    assert trend_percent([0] * 24 + [15] * 24) is None
    assert trend_percent([10] * 47) is None


@given(hours=st.lists(st.integers(0, 1_000), max_size=400), limit=st.integers(1, 10**6), posted=st.integers(0, 10**6))
def test_one_case_in_ten_is_never_later_and_never_cheaper_than_half_of_them(
    hours: list[int], limit: int, posted: int
) -> None:
    found = made(hours, limit, posted)
    assert found.posted_at_end_p90 >= found.posted_at_end_p50 >= posted
    if found.exhausted_p50 is not None:
        assert found.exhausted_p10 is not None
        assert NOW <= found.exhausted_p10 <= found.exhausted_p50 <= MONTH_END
