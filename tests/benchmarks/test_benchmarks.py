"""Every benchmark runs and reports in the form that all keep. Its figures are for `make bench`, not for tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("bench_").replace("_", "-") for path in HERE.glob("bench_*.py"))


PEERS = {"gateway": "litellm", "step": "langgraph"}


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_runs_and_reports(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "run.py"), "--only", name, "--size", "tiny"]
    environment = {key: value for key, value in os.environ.items() if key != "SYNOD_BENCH_PEERS"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left_out = re.findall(r"^(\w+) is left out, .*: make bench-peers installs it$", done.stderr, re.MULTILINE)
    assert left_out == ([PEERS[name]] if name in PEERS else [])
    report = json.loads((tmp_path / "build" / "bench" / f"{name}.json").read_text())
    assert set(report) == {"name", "machine", "versions", "durability", "rows"}
    assert report["name"] == name
    assert report["durability"]
    for row in report["rows"]:
        assert set(row) == {"case", "metric", "unit", "value", "target", "peer", "peer_value"}
        # Of so few calls a difference of medians, or what is counted in ticks of the processor's clock, may be nothing.
        assert row["value"] > 0 or row["unit"] == "KiB" or (row["value"], row["unit"]) == (0, "ms")


@pytest.mark.parametrize("name", sorted(PEERS.values()))
def test_everything_that_a_peer_needs_is_pinned(name: str) -> None:
    lines = (HERE / "peers" / f"{name}.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert any(package.startswith(f"{name}==") for package in packages)
    assert [package for package in packages if not re.match(r"[a-z0-9-]+==\S+( ;|$)", package)] == []
