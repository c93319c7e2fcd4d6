"""Small systems of fake services."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
from launcher.layout import Layout, Limits, Service
from launcher.testing import free_port_base

FAKES = Path(__file__).parent / "fakes"
DEADLINE_S = 30.0
QUICK = Limits(
    ready_timeout_s=20,
    stop_grace_s=1.0,
    backoff_initial_s=0.01,
    backoff_max_s=0.1,
    health_poll_s=0.05,
    ready_poll_s=0.01,
)
STEADY = Service("steady", 1)
NEEDY = Service("steady-two", 2, needs=("steady",))
STUBBORN = Service("stubborn", 3, needs=("steady",))
BROKEN = Service("broken", 4)

MakeLayout = Callable[..., Layout]


@pytest.fixture
def make_layout(tmp_path: Path) -> MakeLayout:
    """Makes the layout of the services given, on free ports, in a directory of this test."""

    def make(*services: Service, limits: Limits = QUICK, **environment: str) -> Layout:
        return Layout(
            tmp_path / "data",
            free_port_base(),
            services,
            environment={"PYTHONPATH": str(FAKES), "PATH": "/usr/bin:/bin", **environment},
            limits=limits,
            durable=False,
        )

    return make


def runs(pid: int) -> bool:
    """True while a process is there and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int) -> bool:
    """True as soon as a process is gone; who was killed with its group needs a moment for it."""
    end = monotonic() + DEADLINE_S
    while runs(pid) and monotonic() < end:
        sleep(0.01)
    return not runs(pid)
