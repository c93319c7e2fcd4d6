"""The short form: every fault once, and the log keeps its word. `make chaos` is the long one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .nemesis import NEMESES
from .report import KINDS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
KINDS_OF_KILL = sum(nemesis.weight > 0 for nemesis in NEMESES)
TIMEOUT_S = 280
"""It takes half a minute; a machine that is shared by many may need far more."""


def test_the_log_keeps_its_word_through_every_fault(tmp_path: Path) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("tests", "libs/eventlog/tests"))
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--quick", "--kills", str(KINDS_OF_KILL), "--seed", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads((tmp_path / "build" / "chaos.json").read_text())
    (target,) = report["targets"]
    rows = {row["nemesis"]: row for row in target["rows"]}
    expected = {nemesis.name for nemesis in NEMESES} - ({"fill disk"} if report["skipped"] else set())
    assert {name for name, row in rows.items() if row["times"]} == expected | {"start", "all"}
    assert rows["all"]["acked"] > 100
    assert {column: rows["all"][column] for column in KINDS} == dict.fromkeys(KINDS, 0)
