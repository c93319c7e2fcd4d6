"""Folding a log into a view: by our projector, and beside it the stock library's runner on its own recorder."""

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

from eventlog.folding import Connection
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import StoredEvent
from eventlog.sources import LogSource
from harness import Report, Row, Size, postgres
from logs import fill
from psycopg_pool import AsyncConnectionPool
from stock import project

EVENTS = {"tiny": 2_000, "small": 50_000, "full": 1_000_000}
STOCK_EVENTS = {"tiny": 100, "small": 1_000, "full": 5_000}


class StepsView:
    """Counts the events of each stream: one row a stream, upserted once a batch."""

    name: ClassVar[str] = "steps"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = None
    tables: ClassVar[str] = "create table steps (stream text primary key, events bigint not null)"

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        counts: dict[str, int] = {}
        for event in events:
            counts[event.stream.id] = counts.get(event.stream.id, 0) + 1
        await connection.execute(
            "insert into steps select * from unnest(%s::text[], %s::bigint[])"
            " on conflict (stream) do update set events = steps.events + excluded.events",
            (list(counts), list(counts.values())),
        )


async def measure(size: Size) -> Report:
    events = EVENTS[size]
    async with postgres() as dsn:
        seconds, cpu = await ours(dsn, events)
        peer = await asyncio.to_thread(project, dsn, STOCK_EVENTS[size])
    name = "stock ProjectionRunner"
    rows = (
        Row("view of 1 row a stream", "events/s", "1/s", events / seconds, 200_000, name, peer),
        Row("view of 1 row a stream", "seconds per million events", "s", 1e6 * seconds / events, 10),
        Row("view of 1 row a stream", "CPU of the folding process", "us/event", 1e6 * cpu / events),
    )
    return Report("rebuild", "position and view in one transaction, fsync on", rows)


async def ours(dsn: str, events: int) -> tuple[float, float]:
    """Wall and CPU seconds of a rebuild from the first event on."""
    log = await PostgresEventLog.open(dsn)
    async with AsyncConnectionPool(dsn, min_size=3, max_size=6, open=False) as pool:
        await fill(log, events)
        projector = Projector(pool, StepsView(), LogSource(log))
        await projector.prepare()
        start, cpu = time.perf_counter(), time.process_time()
        folded = await projector.rebuild()
        took = time.perf_counter() - start, time.process_time() - cpu
    await log.close()
    assert folded == events
    return took
