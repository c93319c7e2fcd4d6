"""Durable appends: many callers of one event each, beside the stock eventsourcing library on the same server."""

import asyncio
import time
from datetime import UTC, datetime

import psycopg
from eventlog.postgres import PostgresEventLog
from eventlog.records import Append, NewEvent, StreamId
from harness import Load, Report, Row, Size, closed_loop, postgres
from logs import CONTEXT, EVENT
from stock import save
from synod.common.ids import new_id, uuid7

STREAM_EVENTS = 200
SECONDS = {"tiny": 0.2, "small": 2.0, "full": 60.0}


async def measure(size: Size) -> Report:
    seconds = SECONDS[size]
    async with postgres() as dsn:
        peer = await asyncio.to_thread(save, dsn, min(seconds, 5.0))
        threads = await asyncio.to_thread(save, dsn, min(seconds, 5.0), 32)
        adapter = await asyncio.to_thread(save, dsn, min(seconds, 5.0), 32, "eventlog.eventsourcing")
        raw = await asyncio.to_thread(commit_rows, dsn, min(seconds, 5.0))
        one = await ours(dsn, 1, min(seconds, 5.0))
        many = await ours(dsn, 64, seconds)
        crowd = await ours(dsn, 256, min(seconds, 5.0))
        stored_bytes = await asyncio.to_thread(bytes_per_event, dsn)
    name = "stock eventsourcing, 1 event a save, 8 threads"
    same = "same Application on its stock recorder"
    rows = (
        Row("1 caller", "events/s", "1/s", one.per_second, None, name, peer.per_second),
        Row(
            "1 caller",
            "latency p50",
            "ms",
            one.percentile_ms(50),
            None,
            "bare insert of one row, committed",
            raw.percentile_ms(50),
        ),
        Row("64 callers", "events/s", "1/s", many.per_second, 15_000, name, peer.per_second),
        Row("64 callers", "latency p50", "ms", many.percentile_ms(50)),
        Row("64 callers", "latency p99", "ms", many.percentile_ms(99), 10, name, peer.percentile_ms(99)),
        Row("256 callers", "events/s", "1/s", crowd.per_second),
        Row("256 callers", "latency p99", "ms", crowd.percentile_ms(99)),
        Row(f"an event with {len(EVENT)} bytes of data", "table and indexes", "bytes", stored_bytes),
        Row("library, 32 threads", "events/s", "1/s", adapter.per_second, None, same, threads.per_second),
        Row(
            "library, 32 threads", "latency p99", "ms", adapter.percentile_ms(99), None, same, threads.percentile_ms(99)
        ),
    )
    return Report("append", "flushed to disk (fsync on, synchronous_commit on) before each answer", rows)


def commit_rows(dsn: str, seconds: float) -> Load:
    """What PostgreSQL itself needs to commit a row of our size: no index, no decision, a blocking client."""
    load = Load()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table bare (data bytea not null)")
        while load.took_s < seconds:
            begun = time.perf_counter()
            connection.execute("insert into bare values (%b)", (EVENT,), prepare=True, binary=True)
            load.latencies_s.append(time.perf_counter() - begun)
            load.took_s += load.latencies_s[-1]
    return load


def bytes_per_event(dsn: str) -> float:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select pg_total_relation_size('eventlog.events')::float8 / count(*) from eventlog.events"
        ).fetchone()
    assert row is not None
    return float(row[0])


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
