from pathlib import Path

import pytest
from tool_executor.errors import ToolError
from tool_executor.tools.date import DateArguments, DateResult, run
from tool_executor.tools.workspace import Workspace

NO_FILES = Workspace(Path("/nonexistent"), file_bytes_max=0, total_bytes_max=0)


def date(operation: str, when: str, **more: object) -> DateResult:
    return run(DateArguments.model_validate({"operation": operation, "date": when, **more}), NO_FILES)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T14:30:00Z",
        "2026-11-21 15:30:00+01:00",
        "20261121T143000Z",
        "Sat, 21 Nov 2026 14:30:00 +0000",
        "1795271400",
    ],
)
def test_reads_one_moment_in_many_forms(text: str) -> None:
    assert date("parse", text).moment.utc == "2026-11-21T14:30:00Z"


@pytest.mark.parametrize("text", ["2026-11-21", "21.11.2026", "November 21, 2026", "21 Nov 2026", "2026/11/21"])
def test_reads_one_day_in_many_forms(text: str) -> None:
    assert date("parse", text).moment.date == "2026-11-21"


@pytest.mark.parametrize("text", ["", "03/04/2026", "tomorrow", "2026-13-01", "99999999999999999999"])
def test_refuses_to_guess(text: str) -> None:
    with pytest.raises(ToolError) as caught:
        date("parse", text)
    assert caught.value.kind == "INVALID_DATE"


def test_reads_any_form_it_is_told() -> None:
    assert date("parse", "03/04/2026", format="%d/%m/%Y").moment.date == "2026-04-03"


def test_moves_the_wall_clock_by_days_and_real_time_by_hours() -> None:
    before = {"timezone": "Europe/Berlin"}  # clocks go forward at 2:00 on 29 March 2026
    assert date("add", "2026-03-28T12:00", days=1, **before).moment.iso == "2026-03-29T12:00:00+02:00"
    assert date("add", "2026-03-28T12:00", hours=24, **before).moment.iso == "2026-03-29T13:00:00+02:00"


def test_ends_a_shifted_month_at_its_last_day() -> None:
    assert date("add", "2026-01-31", months=1).moment.date == "2026-02-28"
    assert date("add", "2024-02-29", years=1).moment.date == "2025-02-28"
    assert date("add", "2026-01-15", months=-13).moment.date == "2024-12-15"


@pytest.mark.parametrize(
    ("start", "end", "years", "months", "days", "total_days"),
    [
        ("2024-02-29", "2025-02-28", 1, 0, 0, 365),
        ("2026-01-31", "2026-03-01", 0, 1, 1, 29),
        ("2026-03-01", "2026-01-31", 0, -1, -1, -29),
        ("2020-05-05", "2026-11-21", 6, 6, 16, 2391),
    ],
)
def test_tells_how_far_two_days_are_apart(
    start: str, end: str, years: int, months: int, days: int, total_days: int
) -> None:
    found = date("diff", start, other=end).difference
    assert found is not None
    assert (found.years, found.months, found.days, found.total_days) == (years, months, days, total_days)


def test_counts_elapsed_seconds_across_a_clock_change() -> None:
    found = date("diff", "2026-03-28T12:00", other="2026-03-29T12:00", timezone="Europe/Berlin").difference
    assert found is not None
    assert (found.total_seconds, found.total_days) == (23 * 3600, 1)


def test_refuses_to_leave_the_calendar() -> None:
    with pytest.raises(ToolError) as caught:
        date("add", "2026-01-01", years=9000)
    assert caught.value.kind == "OUT_OF_RANGE"


def test_asks_for_the_second_date() -> None:
    with pytest.raises(ToolError) as caught:
        date("diff", "2026-01-01")
    assert caught.value.kind == "INVALID_ARGUMENTS"
