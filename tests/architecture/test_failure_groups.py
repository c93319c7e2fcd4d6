"""Of the 23 groups of failures in llm-gateway's README each has tests, which name it and stand where the README says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "services" / "llm-gateway" / "README.md"
GROUPS = range(1, 24)


def files_with(group: int) -> frozenset[str]:
    """The names of the files with a test of the group."""
    named = f"def test_group_{group:02}_"
    return frozenset(
        file.stem
        for folder in ("services", "tests")
        for file in (ROOT / folder).rglob("t*.py")
        if named in file.read_text()
    )


def rows() -> dict[int, str]:
    found = re.findall(r"^\| (\d+) \| ([^\n]*) \|$", README.read_text(), re.MULTILINE)
    return {int(number): rest for number, rest in found}


@pytest.mark.parametrize("group", GROUPS)
def test_each_failure_group_has_a_test_that_names_it(group: int) -> None:
    assert files_with(group)


@pytest.mark.parametrize("group", GROUPS)
def test_the_files_with_a_group_stand_where_the_readme_says(group: int) -> None:
    named = set(re.findall(r"\btest_\w+", rows()[group]))
    assert named
    assert named <= files_with(group)
