"""date: read, shift, compare and convert points in time. It does not know what time it is now."""

import calendar
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

# Only forms that mean one date: 03/04/2026 is left out on purpose.
FORMATS = ("%Y/%m/%d", "%d.%m.%Y", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%Y%m%d")
AMOUNT_MAX = 1_000_000


class DateArguments(Arguments):
    operation: Literal["parse", "add", "diff", "convert"] = Field(
        description="parse: read a date; add: shift it; diff: from date to other; convert: show it in another timezone."
    )
    date: str = Field(
        max_length=100, description="ISO 8601, RFC 5322, '21 November 2026', '21.11.2026' or unix seconds."
    )
    other: str | None = Field(default=None, max_length=100, description="The second date of diff.")
    timezone: str = Field(
        default="UTC", max_length=64, description="IANA name. The zone of a date without one, and of the answer."
    )
    format: str | None = Field(
        default=None, max_length=64, description="strptime format, for any other way of writing."
    )
    years: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    months: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    weeks: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    days: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    hours: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    minutes: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)
    seconds: int = Field(default=0, ge=-AMOUNT_MAX, le=AMOUNT_MAX)


class Moment(Result):
    iso: str
    utc: str
    date: str
    time: str
    weekday: str
    iso_week: int
    day_of_year: int
    unix_s: int
    timezone: str
    utc_offset_s: int


class Difference(Result):
    """`total_days` counts calendar days in the zone asked for; `total_seconds` is elapsed time."""

    total_seconds: int
    total_days: int
    years: int
    months: int
    days: int


class DateResult(Result):
    moment: Moment
    difference: Difference | None = None


def run(arguments: DateArguments, _: Workspace) -> DateResult:
    """ToolError INVALID_DATE, UNKNOWN_TIMEZONE, OUT_OF_RANGE, INVALID_ARGUMENTS."""
    zone = _zone(arguments.timezone)
    start = _read("date", arguments.date, arguments.format, zone)
    try:
        return _answer(arguments, start, zone)
    except (OverflowError, ValueError) as error:
        raise ToolError("OUT_OF_RANGE", "date: the result leaves the years 1 to 9999; shift by less") from error


def _answer(arguments: DateArguments, start: datetime, zone: ZoneInfo) -> DateResult:
    match arguments.operation:
        case "parse" | "convert":
            return DateResult(moment=_moment(start.astimezone(zone)))
        case "add":
            return DateResult(moment=_moment(_shifted(start.astimezone(zone), arguments)))
        case "diff":
            if arguments.other is None:
                raise ToolError("INVALID_ARGUMENTS", "other: diff needs the second date")
            end = _read("other", arguments.other, arguments.format, zone)
            return DateResult(moment=_moment(end.astimezone(zone)), difference=_difference(start, end, zone))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"timezone: {name!r} is no IANA time zone; use a name like 'Europe/Berlin' or 'UTC'"
        raise ToolError("UNKNOWN_TIMEZONE", message) from error


def _read(field: str, text: str, form: str | None, zone: tzinfo) -> datetime:
    for parse in (_by_format,) if form else (_iso, _unix, _mail, _by_known_formats):
        if (found := parse(text.strip(), form or "")) is not None:
            return found if found.tzinfo else found.replace(tzinfo=zone)
    message = f"{field}: {text!r} is no date this tool can read without guessing; write it as 2026-11-21T14:30:00+01:00"
    raise ToolError("INVALID_DATE", message)


def _iso(text: str, _: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _unix(text: str, _: str) -> datetime | None:
    """More than eight digits, lest a year or a date without dashes be taken for seconds."""
    try:
        return datetime.fromtimestamp(float(text), UTC) if len(text.lstrip("-").split(".")[0]) > 8 else None
    except (ValueError, OverflowError, OSError):
        return None


def _mail(text: str, _: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text) if ":" in text else None
    except ValueError:
        return None


def _by_known_formats(text: str, _: str) -> datetime | None:
    return next((found for form in FORMATS if (found := _by_format(text, form))), None)


def _by_format(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)  # noqa: DTZ007  the caller gives it its zone
    except ValueError:
        return None


def _shifted(start: datetime, by: DateArguments) -> datetime:
    """Calendar units move the wall clock, hours and less move real time: they differ when clocks change."""
    months = start.year * 12 + start.month - 1 + by.years * 12 + by.months
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    moved = start.replace(year=year, month=month + 1, day=day) + timedelta(days=by.days, weeks=by.weeks)
    elapsed = timedelta(hours=by.hours, minutes=by.minutes, seconds=by.seconds)
    return (moved.astimezone(UTC) + elapsed).astimezone(start.tzinfo)


def _difference(start: datetime, end: datetime, zone: ZoneInfo) -> Difference:
    # Two times of one zone subtract and compare by their wall clocks, whatever the clocks did between them.
    elapsed = end.astimezone(UTC) - start.astimezone(UTC)
    forward = elapsed >= timedelta(0)
    early, late = (moment.astimezone(zone) for moment in ((start, end) if forward else (end, start)))
    months = (late.year - early.year) * 12 + late.month - early.month
    if _add_months(early, months) > late.replace(tzinfo=None):
        months -= 1
    rest = late.replace(tzinfo=None) - _add_months(early, months)
    sign = 1 if forward else -1
    return Difference(
        total_seconds=int(elapsed.total_seconds()),
        total_days=(end.astimezone(zone).date() - start.astimezone(zone).date()).days,
        years=sign * (months // 12),
        months=sign * (months % 12),
        days=sign * rest.days,
    )


def _add_months(moment: datetime, months: int) -> datetime:
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day, tzinfo=None)


def _moment(moment: datetime) -> Moment:
    offset = moment.utcoffset() or timedelta(0)
    return Moment(
        iso=moment.isoformat(),
        utc=moment.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        date=moment.date().isoformat(),
        time=moment.time().isoformat(),
        weekday=calendar.day_name[moment.weekday()],
        iso_week=moment.isocalendar().week,
        day_of_year=moment.timetuple().tm_yday,
        unix_s=int(moment.timestamp()),
        timezone=str(moment.tzinfo),
        utc_offset_s=int(offset.total_seconds()),
    )


TOOL = PureTool(
    name="date",
    version="1.0.0",
    title="Dates and time zones",
    description=(
        "Reads a date, adds years to seconds to it, tells the difference of two dates, or converts to another time "
        "zone. It cannot tell the present time."
    ),
    arguments=DateArguments,
    result=DateResult,
    effect=Effect.PURE,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"operation": "parse", "date": "21 November 2026"},
            expected={"moment": {"iso": "2026-11-21T00:00:00+00:00", "weekday": "Saturday", "iso_week": 47}},
        ),
        SelfTest(
            arguments={"operation": "add", "date": "2028-01-31", "months": 1},
            expected={"moment": {"date": "2028-02-29"}},
        ),
        SelfTest(
            arguments={"operation": "diff", "date": "2026-01-15", "other": "2026-03-01"},
            expected={"difference": {"total_days": 45, "months": 1, "days": 14}},
        ),
        SelfTest(
            arguments={"operation": "convert", "date": "2026-07-01T12:00:00Z", "timezone": "America/New_York"},
            expected={"moment": {"time": "08:00:00", "utc_offset_s": -14400}},
        ),
        SelfTest(arguments={"operation": "parse", "date": "03/04/2026"}, error="INVALID_DATE"),
        SelfTest(
            arguments={"operation": "parse", "date": "2026-01-01", "timezone": "Mars/Base"}, error="UNKNOWN_TIMEZONE"
        ),
    ),
)
