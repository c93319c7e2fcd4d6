"""What an append costs the server as the log grows: to new streams, and to streams picked from all of history."""

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psycopg
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, NO_STREAM, Append, ExpectedVersion, NewEvent, StreamId
from harness import Report, Row, Size, closed_loop, postgres
from logs import CONTEXT, EVENT
from synod.common.ids import new_id, uuid7

SIZES = {
    "tiny": (0, 2_000),
    "small": (0, 100_000, 1_000_000),
    "full": (0, 1_000_000, 3_000_000, 10_000_000),
}
SECONDS = {"tiny": 0.2, "small": 4.0, "full": 5.0}
FILLING_S_MAX = 300.0
CHUNK_EVENTS = 250_000
STREAM_EVENTS = 20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Target = tuple[StreamId, ExpectedVersion]

FILL = """
insert into eventlog.events
select n, 'run/old_' || (n - %(first)s) / %(of)s || '_' || %(first)s, (n - %(first)s) %% %(of)s + 1,
    ('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'StepRecorded', 1, 'bench', null, now(), now(), null,
    'run_bench', 'bench', '', %(data)s, sha256(int8send(n - 1)), sha256(int8send(n))
from generate_series(%(first)s::bigint, %(last)s::bigint) n
"""


async def measure(size: Size) -> Report:
    rows: list[Row] = []
    async with postgres() as dsn:
        await (await PostgresEventLog.open(dsn)).close()
        spent_s = 0.0
        for wanted in SIZES[size]:
            spent_s += fill(dsn, wanted, FILLING_S_MAX - spent_s)
            events = wanted if spent_s < FILLING_S_MAX else head(dsn)
            rows += [] if not events else size_of(dsn, events)
            rows += await appended(dsn, f"{events:,} events, new streams", new_stream, SECONDS[size])
            if events:
                old = partial(old_stream, list(range(1, events, CHUNK_EVENTS)), min(events, CHUNK_EVENTS))
                rows += await appended(dsn, f"{events:,} events, streams of all history", old, SECONDS[size])
            if spent_s >= FILLING_S_MAX:
                break
    return Report("growth", "flushed to disk (fsync on, synchronous_commit on) before each answer", tuple(rows))


def fill(dsn: str, events: int, seconds_max: float) -> float:
    """Grow the log to so many events, as far as the time allows; the seconds it took. Its hashes prove nothing."""
    begun = time.perf_counter()
    with psycopg.connect(dsn, autocommit=True) as connection:
        while (stands := head(dsn)) < events and time.perf_counter() - begun < seconds_max:
            last = min(events, stands + CHUNK_EVENTS)
            with connection.transaction():
                connection.execute("set local synchronous_commit = off")
                connection.execute(
                    FILL, {"first": stands + 1, "last": last, "of": STREAM_EVENTS, "data": EVENT}, binary=True
                )
                connection.execute("update eventlog.head set position = %s, hash = sha256(int8send(%s))", (last, last))
        connection.execute("vacuum analyze eventlog.events")
        connection.execute("checkpoint")
    return time.perf_counter() - begun


def size_of(dsn: str, events: int) -> list[Row]:
    """What an event takes in the table and in its indexes."""
    with psycopg.connect(dsn) as connection:
        sizes = connection.execute(
            "select pg_table_size('eventlog.events'), pg_indexes_size('eventlog.events'), count(*) from eventlog.events"
        ).fetchone()
    assert sizes is not None
    table, indexes, count = sizes
    case = f"{events:,} events"
    return [
        Row(case, "table, bytes an event", "B", table / count),
        Row(case, "indexes, bytes an event", "B", indexes / count),
    ]


async def appended(dsn: str, case: str, target: Callable[[], Target], seconds: float) -> tuple[Row, Row]:
    """64 callers of one event each; what it took the backends of the log."""
    async with await PostgresEventLog.open(dsn) as log:

        async def append(_: int) -> None:
            new = NewEvent("StepRecorded", 1, EVENT, uuid7(), datetime.now(UTC))
            stream, expected = target()
            await log.append(Append(stream, expected, (new,), CONTEXT))

        before_s = server_cpu_s(dsn)
        load = await closed_loop(64, seconds, append)
        cpu_s = server_cpu_s(dsn) - before_s
    return (
        Row(case, "events/s", "1/s", load.per_second),
        Row(case, "CPU of the server for an event", "us", max(cpu_s, TICK_S) / len(load.latencies_s) * 1e6),
    )


def server_cpu_s(dsn: str) -> float:
    """What the backends of the database have used so far. They are processes of this machine."""
    with psycopg.connect(dsn) as connection:
        pids = connection.execute(
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
    ticks = 0
    for (pid,) in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks * TICK_S


def new_stream() -> Target:
    return StreamId("run", new_id("run")), NO_STREAM


def old_stream(firsts: list[int], chunk_events: int) -> Target:
    """One of the streams of the chunks of history that begin at `firsts`."""
    return StreamId("run", f"old_{random.randrange(chunk_events // STREAM_EVENTS)}_{random.choice(firsts)}"), ANY


def head(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select position from eventlog.head").fetchone()
    assert row is not None
    return int(row[0])
