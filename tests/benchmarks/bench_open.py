"""Opening a long stream: from its snapshot and by folding all of it, beside the stock library on the same server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median

from eventlog.aggregates import Aggregates, SnapshotPolicy
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, Append, NewEvent, StreamId
from harness import Report, Row, Size, postgres
from logs import CONTEXT
from stock import open_long
from synod.common.event import Event
from synod.common.ids import uuid7

EVENTS = {"tiny": 600, "small": 30_000, "full": 30_000}
OPENINGS = {"tiny": 2, "small": 9, "full": 25}
EVENTS_AN_APPEND = 500


class Recorded(Event):
    """What the stock library's aggregate records too."""

    AGGREGATE = "run"
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """The last text, and how many there were."""

    text: str = ""
    steps: int = 0


SNAPSHOTS = SnapshotPolicy[Run](
    "run",
    dump=lambda run: f"{run.steps} {run.text}".encode(),
    load=lambda data: Run(data.decode().partition(" ")[2], int(data.partition(b" ")[0])),
    every=1_000,
)


def evolve(run: Run, event: Recorded) -> Run:
    return replace(run, text=event.text, steps=run.steps + 1)


async def measure(size: Size) -> Report:
    events, openings = EVENTS[size], OPENINGS[size]
    async with postgres() as dsn:
        whole, snapshot = await ours(dsn, events, openings)
        stock_whole, stock_snapshot = await asyncio.to_thread(open_long, dsn, events, openings)
    peer = "stock eventsourcing, Application.repository.get"
    rows = (
        Row(f"{events:,} events, snapshot", "latency p50", "ms", snapshot, 50, peer, stock_snapshot),
        Row(f"{events:,} events, no snapshot", "latency p50", "ms", whole, None, peer, stock_whole),
        Row(f"{events:,} events, no snapshot", "events/s", "1/s", 1e3 * events / whole),
    )
    return Report("open", "the cache is off: every opening reads from PostgreSQL", rows)


async def ours(dsn: str, events: int, openings: int) -> tuple[float, float]:
    """Milliseconds to open a stream without and with its snapshot."""
    async with await PostgresEventLog.open(dsn) as log:
        await _fill(log, events)

        def open_with(snapshots: SnapshotPolicy[Run] | None) -> Callable[[], Awaitable[Run]]:
            async def open_once() -> Run:
                runs = Aggregates(log, "run", Run, evolve, Codec([Recorded]), SystemClock(), snapshots=snapshots)
                state = (await runs.load("long")).state
                await runs.settle()
                return state

            return open_once

        whole = await _median_ms(max(3, openings // 5), open_with(None), events)
        await open_with(SNAPSHOTS)()  # the first to fold it all leaves a snapshot
        return whole, await _median_ms(openings, open_with(SNAPSHOTS), events)


async def _fill(log: PostgresEventLog, events: int) -> None:
    codec, stream = Codec([Recorded]), StreamId("run", "long")
    for start in range(0, events, EVENTS_AN_APPEND):
        new: list[NewEvent] = [
            codec.encode(Recorded(text="x" * 250), id=uuid7(), at=datetime.now(UTC))
            for _ in range(min(EVENTS_AN_APPEND, events - start))
        ]
        await log.append(Append(stream, ANY, tuple(new), CONTEXT))


async def _median_ms(times: int, open_once: Callable[[], Awaitable[Run]], events: int) -> float:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        assert (await open_once()).steps == events
        took.append(1e3 * (time.perf_counter() - begun))
    return median(took)
