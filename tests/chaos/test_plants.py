"""What the harness says it finds, it finds: each defect is planted into a running log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .checker import Kind
from .plants import PLANTS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280
"""It takes twenty seconds; a machine that is shared by many may need far more."""


def test_there_is_a_plant_for_all_that_can_be_wrong_but_what_ends_a_round_by_itself() -> None:
    assert {plant.found for plant in PLANTS.values()} == set(Kind) - {Kind.DIED, Kind.STUCK}


@pytest.mark.system
@pytest.mark.timeout(300)
def test_every_planted_defect_is_found(tmp_path: Path) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("tests", "libs/eventlog/tests"))
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--quick", "--seed", "1", "--plants", *PLANTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" found") == len(PLANTS), done.stdout
