"""`synod up` as a person and as a machine sees it, each run a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from time import monotonic, sleep

import pytest
from launcher.layout import Layout, Service
from launcher.up import ExitCode, UpOptions, run
from rich.console import Console

from .conftest import BROKEN, QUICK, STEADY, STUBBORN, MakeLayout, runs

DEADLINE_S = 60.0
ENDLESS = Service("endless", 2, needs=("steady",))
"""Its start never ends."""
PROGRAM = """
import json
import sys
from pathlib import Path
from launcher.layout import Limits, Service
from launcher.up import UpOptions, run

data, base, services, fakes, grace_s = sys.argv[1:]
chosen = tuple(Service(name, number, needs=tuple(needs)) for name, number, *needs in json.loads(services))
surroundings = {"PYTHONPATH": fakes, "PATH": "/usr/bin:/bin"}
limits = Limits(stop_grace_s=float(grace_s), backoff_initial_s=0.01)
sys.exit(run(UpOptions(Path(data), int(base), services=chosen, environment=surroundings, limits=limits)))
"""


class Up:
    """One running `synod up`."""

    def __init__(self, layout: Layout) -> None:
        services = json.dumps([[service.name, service.number, *service.needs] for service in layout.services])
        fakes, grace_s = layout.environment["PYTHONPATH"], str(layout.limits.stop_grace_s)
        arguments = (str(layout.data), str(layout.port_base), services, fakes, grace_s)
        self._layout = layout
        self.output = layout.data.parent / f"output-{monotonic()}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                (sys.executable, "-c", PROGRAM, *arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_says(self, text: str) -> str:
        wait_for(lambda: text in self.output.read_text() or self.process.poll() is not None)
        said = self.output.read_text()
        assert text in said, said
        return said

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)

    def leaves_nothing(self) -> None:
        """Fails unless every process is gone; who was killed with its group needs a moment for it."""
        wait_for(lambda: not self.descendants())

    def descendants(self) -> list[int]:
        """Every process of the system: by the data directory in what it runs or works in, or by who started it."""
        return [pid for pid in _all_pids() if pid != os.getpid() and self._is_of_system(pid)]

    def _is_of_system(self, pid: int) -> bool:
        try:
            directory = Path(f"/proc/{pid}/cwd").readlink()
        except OSError:
            return False
        return directory.is_relative_to(self._layout.data)


@pytest.fixture
def up() -> Iterator[Callable[[Layout], Up]]:
    started: list[Up] = []

    def start(layout: Layout) -> Up:
        started.append(Up(layout))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_interrupt_stops_everything_and_is_success(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    system = up(make_layout(STEADY, STUBBORN))
    said = system.until_says("Ready. Ctrl-C stops everything")
    assert "development key     syn_dev_" in said
    assert len(system.descendants()) >= 5

    assert system.end(signal.SIGINT) == ExitCode.STOPPED

    system.leaves_nothing()
    assert "stopped" in system.output.read_text()


def test_the_development_key_is_shown_once(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    layout = make_layout()
    first = up(layout)
    first.until_says("Ready.")
    first.end(signal.SIGTERM)

    second = up(layout)
    said = second.until_says("Ready.")
    second.end(signal.SIGTERM)

    assert "syn_dev_" in first.output.read_text()
    assert "syn_dev_" not in said
    assert str(layout.keys / "dev.key") in said


def test_a_killed_launcher_leaves_no_process(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    layout = make_layout(STEADY, STUBBORN)
    system = up(layout)
    system.until_says("Ready.")
    child = int((layout.data / "state" / "stubborn" / "child").read_text().rstrip("."))

    system.end(signal.SIGKILL)

    wait_for(lambda: not system.descendants() and not runs(child))
    again = up(layout)
    again.until_says("Ready.")
    assert again.end(signal.SIGTERM) == ExitCode.STOPPED


def test_interrupt_during_the_start_stops_what_had_started(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    system = up(make_layout(STEADY, ENDLESS))
    system.until_says("starting")
    assert system.end(signal.SIGINT) == ExitCode.INTERRUPTED
    system.leaves_nothing()


def test_a_second_interrupt_does_not_wait_for_grace(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    system = up(make_layout(STEADY, STUBBORN, limits=replace(QUICK, stop_grace_s=2 * DEADLINE_S)))
    system.until_says("Ready.")
    system.process.send_signal(signal.SIGINT)
    system.until_says("stopping")
    assert system.end(signal.SIGINT) == ExitCode.STOPPED
    system.leaves_nothing()


def test_a_second_up_says_who_holds_the_data(make_layout: MakeLayout, up: Callable[[Layout], Up]) -> None:
    layout = make_layout()
    first = up(layout)
    first.until_says("Ready.")

    second = up(layout)

    assert second.process.wait(DEADLINE_S) == ExitCode.ALREADY_UP
    assert f"is held by process {first.process.pid} since" in second.output.read_text()


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"port_base": 80}, ExitCode.SETTING_INVALID, ("port-base = 80", "must be from 1024")),
        ({"services": (BROKEN,)}, ExitCode.FAILED, ("broken", "SYNOD_MEANING is not set")),
        ({"data": Path(__file__)}, ExitCode.FAILED, ("data = ", "cannot be used (Not a directory)", "--data")),
        ({"data": Path("/proc/nowhere")}, ExitCode.FAILED, ("data = /proc/nowhere", "cannot be used", "--data")),
        ({"data": Path(__file__).parent}, ExitCode.FAILED, ("is not a data directory of Synod", "--data")),
        ({"services": (Service("absent", 1),)}, ExitCode.FAILED, ("No module named absent",)),
    ],
)
def test_what_cannot_work_is_explained(
    make_layout: MakeLayout, changed: dict[str, object], code: ExitCode, words: tuple[str, ...]
) -> None:
    layout = make_layout(STEADY)
    options = {"data": layout.data, "port_base": layout.port_base, "environment": layout.environment, "limits": QUICK}
    said = StringIO()

    assert run(UpOptions(**(options | {"services": ()} | changed)), Console(file=said, width=200)) == code  # type: ignore[arg-type]

    assert all(word in said.getvalue() for word in words), said.getvalue()


def test_a_port_in_use_is_named_with_who_uses_it(make_layout: MakeLayout) -> None:
    layout = make_layout(STEADY)
    said = StringIO()
    options = UpOptions(layout.data, layout.port_base, services=(STEADY,), environment=layout.environment, limits=QUICK)
    with socket.create_server(("127.0.0.1", layout.grpc_port(STEADY))):
        assert run(options, Console(file=said, width=200)) == ExitCode.FAILED
    assert f"port of steady gRPC = {layout.grpc_port(STEADY)}" in said.getvalue()
    assert f"process {os.getpid()} (" in said.getvalue()


def wait_for(condition: Callable[[], bool]) -> None:
    end = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < end, "the condition did not hold in time"
        sleep(0.02)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
