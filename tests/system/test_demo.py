"""The main job, as `make demo` runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launcher.testing import free_port_base
from synod_client.endpoints import SERVICES

from .conftest import ROOT

pytestmark = pytest.mark.system


@pytest.mark.timeout(300)
def test_demo_proves_itself(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "synod"
    command = [program, "demo", "--out", str(tmp_path), "--port-base", str(free_port_base())]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    outcome = json.loads((tmp_path / "demo.json").read_text())
    assert outcome["state"] == "completed"
    assert outcome["replay_equal"]
    assert outcome["views_equal"]
    assert outcome["logs_verified"]
    assert sum(outcome["attested_to"].values()) > 100
    assert f"{len(SERVICES)} of {len(SERVICES)} logs verified" in found.stdout
    assert outcome["cost_nano_usd"] > 0
    assert outcome["events"] > 100
    report = (tmp_path / "model-scout" / "report.md").read_text()
    assert "USD a month" in report
    assert (tmp_path / "model-scout" / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert outcome["run_id"] in found.stdout
