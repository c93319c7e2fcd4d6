"""Durable appends: many callers of one event each, beside the stock eventsourcing library on the same server."""

import asyncio
import threading
import time
from datetime import UTC, datetime

import psycopg
from eventlog.postgres import PostgresEventLog
from eventlog.records import Append, Context, NewEvent, StreamId
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from harness import Load, Report, Row, Size, closed_loop, postgres
from synod.common.ids import new_id, uuid7

PAYLOAD = (
    b'{"run_id":"run_0123456789abcdef","model":"provider/model","input_tokens":812,"output_tokens":133,"text":"%s"}'
)
EVENT = PAYLOAD % (b"x" * (320 - len(PAYLOAD)))
CONTEXT = Context(tenant="bench", actor="bench", correlation="run_bench")
STREAM_EVENTS = 200
SECONDS = {"small": 2.0, "full": 60.0}


async def measure(size: Size) -> Report:
    seconds = SECONDS[size]
    async with postgres() as dsn:
        peer = await asyncio.to_thread(stock, dsn, min(seconds, 5.0))
        one = await ours(dsn, 1, min(seconds, 5.0))
        many = await ours(dsn, 64, seconds)
        crowd = await ours(dsn, 256, min(seconds, 5.0))
    name = "stock eventsourcing, 1 event a save, 8 threads"
    rows = (
        Row("1 caller", "events/s", "1/s", one.per_second, None, name, peer.per_second),
        Row("1 caller", "latency p50", "ms", one.percentile_ms(50)),
        Row("64 callers", "events/s", "1/s", many.per_second, 15_000, name, peer.per_second),
        Row("64 callers", "latency p50", "ms", many.percentile_ms(50)),
        Row("64 callers", "latency p99", "ms", many.percentile_ms(99), 10, name, peer.percentile_ms(99)),
        Row("256 callers", "events/s", "1/s", crowd.per_second),
        Row("256 callers", "latency p99", "ms", crowd.percentile_ms(99)),
    )
    return Report("append", "flushed to disk (fsync on, synchronous_commit on) before each answer", rows)


async def ours(dsn: str, callers: int, seconds: float) -> Load:
    log = await PostgresEventLog.open(dsn)
    streams = [(StreamId("run", new_id("run")), 0) for _ in range(callers)]

    async def append(caller: int) -> None:
        stream, version = streams[caller]
        new = NewEvent("StepRecorded", 1, EVENT, uuid7(), datetime.now(UTC))
        await log.append(Append(stream, version, (new,), CONTEXT))
        full = version + 1 == STREAM_EVENTS
        streams[caller] = (StreamId("run", new_id("run")), 0) if full else (stream, version + 1)

    try:
        return await closed_loop(callers, seconds, append)
    finally:
        await log.close()


class Recorded(Aggregate):
    """An aggregate of the stock library with an event of the same size."""

    @event("Started")
    def __init__(self) -> None:
        self.text = ""

    @event("Recorded")
    def record(self, text: str) -> None:
        self.text = text


def stock(dsn: str, seconds: float) -> Load:
    """The library as it is installed, eight threads, one event a save."""
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    application = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(parts["dbname"]),
            "POSTGRES_HOST": str(parts["host"]),
            "POSTGRES_PORT": str(parts["port"]),
            "POSTGRES_USER": str(parts["user"]),
            "POSTGRES_PASSWORD": str(parts.get("password", "")),
            "POSTGRES_POOL_SIZE": "10",
        }
    )
    load, start = Load(), time.perf_counter()
    until = start + seconds

    def caller() -> None:
        recorded = Recorded()
        while (begun := time.perf_counter()) < until:
            recorded.record("x" * 250)
            application.save(recorded)
            load.latencies_s.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.took_s = time.perf_counter() - start
    application.close()
    return load
