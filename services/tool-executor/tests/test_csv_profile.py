from pathlib import Path

import pytest
from tool_executor.errors import ToolError
from tool_executor.tools.csv_profile import ColumnProfile, CsvProfileArguments, CsvProfileResult, run
from tool_executor.tools.workspace import Workspace


def profile(directory: Path, text: str, **more: object) -> CsvProfileResult:
    (directory / "t.csv").write_text(text, encoding="utf-8")
    workspace = Workspace(directory, file_bytes_max=10**7, total_bytes_max=10**7)
    return run(CsvProfileArguments.model_validate({"path": "t.csv", **more}), workspace)


def column(directory: Path, *values: str) -> ColumnProfile:
    return profile(directory, "\n".join(["c,x", *(f"{value},1" for value in values)])).columns[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("1", "-2", "30"), "integer"),
        (("1", "2.5", "1e3"), "number"),
        (("007", "010"), "text"),
        (("00.5", "1"), "text"),
        (("true", "False"), "boolean"),
        (("2026-01-01", "2026-12-31"), "date"),
        (("2026-01-01T10:00", "2026-01-01T11:00:00+02:00"), "datetime"),
        (("1", "x"), "text"),
        (("", "null", "N/A"), "empty"),
        (("", "5"), "integer"),
        (("1e999", "1"), "text"),
        (("1_000", "1"), "text"),
        (("9" * 30, "1"), "number"),
    ],
)
def test_finds_the_narrowest_type_that_reads_all_values(tmp_path: Path, values: tuple[str, ...], kind: str) -> None:
    assert column(tmp_path, *values).type == kind


def test_describes_a_number_column(tmp_path: Path) -> None:
    found = column(tmp_path, "3", "", "1", "3", "2")
    assert (found.nulls, found.distinct, found.minimum, found.maximum, found.mean) == (1, 3, 1, 3, 2.25)


def test_guesses_the_delimiter_from_the_header(tmp_path: Path) -> None:
    assert profile(tmp_path, "a;b\n1,5;2\n").delimiter == ";"
    assert profile(tmp_path, "a\tb\n1\t2\n").delimiter == "\t"


def test_reads_quotes_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    found = profile(tmp_path, '\ufeffname,n\r\n"x, y",1\r\n"multi\nline",2\r\n')
    assert [each.name for each in found.columns] == ["name", "n"]
    assert found.rows == 2


def test_counts_ragged_rows_and_skips_blank_ones(tmp_path: Path) -> None:
    found = profile(tmp_path, "a,b\n1,2\n3\n\n4,5,6\n")
    assert (found.rows, found.ragged_rows) == (3, 2)


def test_stops_counting_values_that_are_too_many(tmp_path: Path) -> None:
    found = profile(tmp_path, "n,m\n" + "".join(f"{n},1\n" for n in range(10_500)))
    assert (found.columns[0].distinct, found.columns[0].distinct_is_minimum) == (10_000, True)
    assert found.columns[0].maximum == 10_499


def test_refuses_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    workspace = Workspace(tmp_path, file_bytes_max=1000, total_bytes_max=1000)
    with pytest.raises(ToolError) as caught:
        run(CsvProfileArguments(path="t.csv"), workspace)
    assert caught.value.kind == "NOT_TEXT"
