"""How a system looks to a person: a live table on a terminal, a line for each change elsewhere."""

from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.layout import MIB
from launcher.supervisor import State, Status

REFRESH_PER_S = 4
PROBLEM_CHARS_MAX = 100
LOOKS: Mapping[State, tuple[str, str]] = {
    State.WAITING: ("·", "dim"),
    State.STARTING: ("◐", "yellow"),
    State.READY: ("●", "green"),
    State.DEGRADED: ("◍", "yellow"),
    State.RESTARTING: ("↻", "red"),
    State.STOPPING: ("◑", "yellow"),
    State.STOPPED: ("○", "dim"),
    State.FAILED: ("✗", "bold red"),
}


class LiveStatus:
    """A table that is redrawn in place while the block runs."""

    def __init__(self, console: Console) -> None:
        self._statuses: dict[str, Status] = {}
        self._began = monotonic()
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_S, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def changed(self, status: Status) -> None:
        self._statuses[status.name] = status

    def _render(self) -> RenderableType:
        return table(self._statuses, monotonic() - self._began)


class PlainStatus:
    """A line whenever a program enters another state; for logs and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._states: dict[str, State] = {}
        self._began = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def changed(self, status: Status) -> None:
        if self._states.get(status.name, State.WAITING) is not status.state:
            self._states[status.name] = status.state
            self._write(line(status, monotonic() - self._began))


def line(status: Status, elapsed_s: float) -> str:
    """One change as text, for example `  2.7 s  postgres            ready       127.0.0.1:7132`."""
    restarts = f"restart {status.restarts}  " if status.state is State.RESTARTING else ""
    rest = f"{restarts}{first_line(status.problem)}" if status.problem else status.address
    return f"{elapsed_s:6.1f} s  {status.name:<18}  {status.state.value:<10}  {rest}"


def table(statuses: Mapping[str, Status], elapsed_s: float) -> Table:
    """All programs as they are now."""
    ready = sum(status.state is State.READY for status in statuses.values())
    title = f"Synod  {ready} of {len(statuses)} ready  {elapsed_s:.0f} s"
    grid = Table("program", "state", "restarts", "address", "memory", "problem", title=title, title_justify="left")
    for status in statuses.values():
        grid.add_row(*_row(status))
    return grid


def _row(status: Status) -> tuple[RenderableType, ...]:
    sign, style = LOOKS[status.state]
    memory = f"{status.memory_bytes // MIB} MiB" if status.pid else ""
    state = Text(f"{sign} {status.state.value}", style)
    restarts = Text(str(status.restarts) if status.restarts else "", "red")
    return status.name, state, restarts, status.address, memory, Text(first_line(status.problem))


def first_line(problem: str) -> str:
    """What fits in a row of a problem that may be long."""
    head = problem.strip().partition("\n")[0]
    return head if len(head) <= PROBLEM_CHARS_MAX else f"{head[: PROBLEM_CHARS_MAX - 1]}…"
