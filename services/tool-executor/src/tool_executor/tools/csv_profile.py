"""csv_profile: what is in a CSV file, column by column, before anybody queries it."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime

from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access, Level
from tool_executor.tools.profiles import PLAIN
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

COLUMNS_MAX = 500
DISTINCT_MAX = 10_000
VALUE_LENGTH_MAX = 200
SAMPLE_BYTES = 16 * 1024
NULLS = frozenset({"", "null", "none", "na", "n/a", "nan"})
BOOLEANS = frozenset({"true", "false", "yes", "no"})


class CsvProfileArguments(Arguments):
    path: str = Field(description="A CSV or TSV file of the workspace, UTF-8, with a header line.")
    delimiter: str | None = Field(default=None, min_length=1, max_length=1, description="Guessed if not given.")
    samples: int = Field(default=3, ge=0, le=20, description="How many different values of each column to show.")


class ColumnProfile(Result):
    name: str
    type: str = Field(description="integer, number, boolean, date, datetime, text, or empty.")
    nulls: int
    distinct: int
    distinct_is_minimum: bool = Field(description="True if counting stopped.")
    minimum: int | float | str | None
    maximum: int | float | str | None
    mean: float | None
    samples: tuple[str, ...]


class CsvProfileResult(Result):
    path: str
    delimiter: str
    rows: int
    ragged_rows: int = Field(description="Rows with more or fewer fields than the header.")
    columns: tuple[ColumnProfile, ...]


def run(arguments: CsvProfileArguments, workspace: Workspace) -> CsvProfileResult:
    """ToolError NOT_FOUND, TOO_LARGE, NOT_TEXT, INVALID_CSV."""
    try:
        with workspace.open(arguments.path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            return _profile(arguments, text)
    except UnicodeDecodeError as error:
        raise ToolError("NOT_TEXT", f"path: {arguments.path!r} is not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise ToolError("INVALID_CSV", f"path: {arguments.path!r} is not readable as CSV ({error})") from error


def _profile(arguments: CsvProfileArguments, text: io.TextIOWrapper) -> CsvProfileResult:
    delimiter = arguments.delimiter or _guessed(text)
    rows = csv.reader(text, delimiter=delimiter)
    columns = [_Column(name) for name in _header(rows, arguments.path)]
    count = ragged = 0
    for row in rows:
        if not row:
            continue
        count += 1
        ragged += len(row) != len(columns)
        for column, value in zip(columns, row, strict=False):
            column.add(value.strip())
    return CsvProfileResult(
        path=arguments.path,
        delimiter=delimiter,
        rows=count,
        ragged_rows=ragged,
        columns=tuple(column.profile(count, arguments.samples) for column in columns),
    )


def _guessed(text: io.TextIOWrapper) -> str:
    sample = text.read(SAMPLE_BYTES)
    text.seek(0)
    header = sample.partition("\n")[0]
    return max(",;\t|", key=header.count)


def _header(rows: Iterator[list[str]], path: str) -> list[str]:
    header = next(rows, [])
    if not header:
        raise ToolError("INVALID_CSV", f"path: {path!r} is empty; a header line is needed")
    if len(header) > COLUMNS_MAX:
        raise ToolError("TOO_LARGE", f"path: {path!r} has {len(header)} columns, the limit is {COLUMNS_MAX}")
    return header


def _integer(text: str) -> int:
    if text.strip("+-").startswith("0") and text.strip("+-") != "0":
        raise ValueError("leading zeros make an identifier, not a number")
    if len(text) > 18:
        raise ValueError("too long for a 64-bit number")
    return int(_plain(text))


def _plain(text: str) -> str:
    """Python takes 1_000 for a number, and nobody else does."""
    if "_" in text:
        raise ValueError("not a number outside of Python")
    return text


def _number(text: str) -> float:
    value = float(_plain(text))
    if not math.isfinite(value) or (text.strip("+-")[:1] == "0" and text.strip("+-")[1:2].isdigit()):
        raise ValueError("not a finite number")
    return value


def _boolean(text: str) -> str:
    if text.lower() not in BOOLEANS:
        raise ValueError("neither true nor false")
    return text.lower()


def _date(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _datetime(text: str) -> str:
    return datetime.fromisoformat(text).isoformat()


Parsed = int | float | str
# From narrow to wide: a column has the first type that reads all its values.
TYPES: tuple[tuple[str, Callable[[str], Parsed]], ...] = (
    ("integer", _integer),
    ("number", _number),
    ("boolean", _boolean),
    ("date", _date),
    ("datetime", _datetime),
    ("text", str),
)


@dataclass
class _Column:
    """Grows with the rows. It holds one candidate type at a time, and bounds of that and every wider type."""

    name: str
    values: int = 0
    candidates: dict[str, "_Range"] = field(default_factory=lambda: {name: _Range(parse) for name, parse in TYPES})
    distinct: dict[str, None] = field(default_factory=dict)
    distinct_is_minimum: bool = False

    def add(self, text: str) -> None:
        if text.lower() in NULLS:
            return
        self.values += 1
        self._count(text[:VALUE_LENGTH_MAX])
        for name in [name for name, candidate in self.candidates.items() if not candidate.accepts(text)]:
            del self.candidates[name]

    def profile(self, rows: int, samples: int) -> ColumnProfile:
        name, found = next(iter(self.candidates.items()))
        shown = found if self.values else _Range(str)
        return ColumnProfile(
            name=self.name,
            type=name if self.values else "empty",
            nulls=rows - self.values,
            distinct=len(self.distinct),
            distinct_is_minimum=self.distinct_is_minimum,
            minimum=shown.minimum,
            maximum=shown.maximum,
            mean=shown.total / self.values if self.values and name in ("integer", "number") else None,
            samples=tuple(self.distinct)[:samples],
        )

    def _count(self, text: str) -> None:
        if len(self.distinct) < DISTINCT_MAX:
            self.distinct[text] = None
        elif text not in self.distinct:
            self.distinct_is_minimum = True


@dataclass
class _Range:
    parse: Callable[[str], Parsed]
    minimum: Parsed | None = None
    maximum: Parsed | None = None
    total: float = 0.0

    def accepts(self, text: str) -> bool:
        try:
            value = self.parse(text[:VALUE_LENGTH_MAX])
        except ValueError:
            return False
        self.minimum = value if self.minimum is None else min(self.minimum, value)
        self.maximum = value if self.maximum is None else max(self.maximum, value)
        self.total += value if isinstance(value, int | float) else 0.0
        return True


TOOL = PureTool(
    name="csv_profile",
    version="1.0.0",
    title="Profile a CSV file",
    description=(
        "Describes every column of a CSV file: type, nulls, distinct values, minimum, maximum, mean and sample values. "
        "Use it before sql_query."
    ),
    arguments=CsvProfileArguments,
    result=CsvProfileResult,
    effect=Effect.PURE,
    min_level=Level.L1,
    profile=PLAIN,
    access=Access.READ,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"path": "prices.csv", "samples": 1},
            files={"prices.csv": "model,usd,since\na,1.5,2026-01-01\nb,,2026-02-01\na,2.5,2026-03-01\n"},
            expected={
                "rows": 3,
                "delimiter": ",",
                "columns": [
                    {"name": "model", "type": "text", "nulls": 0, "distinct": 2, "samples": ["a"]},
                    {"name": "usd", "type": "number", "nulls": 1, "minimum": 1.5, "maximum": 2.5, "mean": 2.0},
                    {"name": "since", "type": "date", "minimum": "2026-01-01", "maximum": "2026-03-01"},
                ],
            },
        ),
        SelfTest(arguments={"path": "missing.csv"}, error="NOT_FOUND"),
        SelfTest(arguments={"path": "empty.csv"}, files={"empty.csv": ""}, error="INVALID_CSV"),
    ),
)
