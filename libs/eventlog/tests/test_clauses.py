"""The table of clauses names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = Path(__file__).parents[1] / "docs" / "clauses.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| clause")]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_clause_names_a_test_or_a_run_that_there_is(row: str) -> None:
    tests = re.findall(r"`([\w./-]+)::(test_\w+)`", row)
    runs = re.findall(r"`make (?:bench ONLY=([\w-]+)|chaos)", row)
    assert tests or runs, row
    for bench in filter(None, runs):
        assert (ROOT / "tests/benchmarks" / f"bench_{bench.replace('-', '_')}.py").exists(), f"no benchmark {bench}"
    for path, name in tests:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
