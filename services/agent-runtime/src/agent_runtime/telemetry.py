"""What agent-runtime tells of the runs that have not ended."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from agent_runtime.projections import OpenRuns

STATES: Final = ("queued", "running", "waiting")


class Telemetry:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("runs_open", "Runs that have not ended", ("state",), registry=registry)
        self._oldest = Gauge(
            "runs_open_oldest_seconds",
            "Time since the start of the oldest of them; 0 without any",
            ("state",),
            registry=registry,
        )
        self._overdue = Gauge("runs_overdue", "Of those, past their deadline", registry=registry)

    def open_runs(self, found: Sequence[OpenRuns], now: datetime) -> None:
        by_state = {runs.state: runs for runs in found}
        for state in STATES:
            runs = by_state.get(state)
            self._open.labels(state).set(runs.count if runs else 0)
            self._oldest.labels(state).set(max(0.0, (now - runs.oldest).total_seconds()) if runs else 0)
        self._overdue.set(sum(runs.overdue for runs in found))
