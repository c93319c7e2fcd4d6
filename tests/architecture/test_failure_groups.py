"""Of the 23 groups of failures in llm-gateway's README each has tests, which name it, and the README names all their files."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
README = SERVICES / "llm-gateway" / "README.md"
GROUPS = range(1, 24)
CONTRACT = Path("services/llm-gateway/src/llm_gateway/providers/testing.py")
"""Tests that each provider's test inherits; `providers/testing` in the README."""


@cache
def files_by_group() -> dict[int, frozenset[Path]]:
    """The files with tests of each group that any test names."""
    found: dict[int, set[Path]] = {}
    for folder in (SERVICES, ROOT / "tests", ROOT / "libs"):
        for file in folder.rglob("*.py"):
            for group in re.findall(r"^ *(?:async )?def test_group_(\d+)_", file.read_text(), re.MULTILINE):
                found.setdefault(int(group), set()).add(file.relative_to(ROOT))
    return {group: frozenset(files) for group, files in found.items()}


def rows() -> dict[int, str]:
    """The last column of the table, by group."""
    found = re.findall(r"^\| (\d+) \|[^|\n]*\| ([^|\n]*) \|$", README.read_text(), re.MULTILINE)
    return {int(number): tests for number, tests in found}


def files_in(row: str) -> list[Path]:
    """What a row names: between semicolons files of one folder, of this service's if none is said before them."""
    return [file for part in row.split(";") for file in _files_of_one_folder(part)]


def _files_of_one_folder(part: str) -> list[Path]:
    said = re.search(r"([\w/-]+) test_", part)
    named = said[1] if said else "llm-gateway"
    folder = Path(named) if "/" in named else Path("services", named, "tests")
    tests = [folder / f"{name}.py" for name in re.findall(r"\btest_\w+", part)]
    return tests + [CONTRACT] * part.count("providers/testing")


def test_the_readme_has_all_groups_and_no_test_names_another() -> None:
    assert sorted(rows()) == list(GROUPS)
    assert sorted(files_by_group()) == list(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_the_readme_names_the_files_with_a_group_and_no_others(group: int) -> None:
    named = files_in(rows()[group])
    assert len(named) == len(set(named))
    assert set(named) == files_by_group()[group]


def test_a_file_is_told_by_its_folder_and_not_by_its_name_alone() -> None:
    row = "test_service, providers/testing (all); late: cost-ledger test_service, test_books; tests/system test_rush"
    assert [str(file) for file in files_in(row)] == [
        "services/llm-gateway/tests/test_service.py",
        str(CONTRACT),
        "services/cost-ledger/tests/test_service.py",
        "services/cost-ledger/tests/test_books.py",
        "tests/system/test_rush.py",
    ]
