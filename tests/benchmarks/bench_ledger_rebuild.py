"""A book of the ledger rebuilt from a million of its events by a process that has nothing else.

Failure group 23: the balance of every account is that of the book that decided the events. The events are what the
ledger decides on reservations, settlements, releases and expiries; they are decided in memory and written in bulk.
"""

import asyncio
import hashlib
import resource
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from multiprocessing import get_context

from cost_ledger.book import EMPTY, Book
from cost_ledger.books import AGGREGATE, CODEC, Books
from cost_ledger.commands import Command, Expire, Price, Release, Reserve, SetBudget, Settle
from cost_ledger.domain import decide
from cost_ledger.folding import fold
from cost_ledger.rates import flat_card
from eventlog.postgres import PostgresEventLog
from eventlog.records import Append, Context, StreamId
from harness import Report, Row, Size, postgres
from servicekit.app import collect_seldom
from servicekit.clock import SystemClock
from synod.common.event import Event
from synod.common.ids import uuid7
from synod.common.values import Attribution, UsageLine

EVENTS: dict[Size, int] = {"tiny": 2_000, "small": 50_000, "full": 1_000_000}
APPENDED_AT_ONCE = 500
START = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = "local"
MODEL = "simulator/sim-1"
AGENTS = tuple(f"agent-{number}" for number in range(50))
RICH_NANO = 10**15


@dataclass(frozen=True)
class Rebuilt:
    """What a process found that started without a snapshot, and what it took."""

    seconds: float
    cpu_s: float
    resident_mib: float
    accounts: int
    balances_sha256: str


async def measure(size: Size) -> Report:
    async with postgres() as dsn:
        written, expected = await filled(dsn, EVENTS[size])
        # A process of its own: what was needed to decide the events is not a part of reading them.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found = await asyncio.get_running_loop().run_in_executor(alone, rebuilt, dsn)
    assert found.balances_sha256 == digest(expected.balances), "the balances differ"
    assert sum(expected.balances.values()) == 0
    case = f"book rebuilt from {written:,} events, without a snapshot"
    rows = (
        Row(case, "events/s", "1/s", written / found.seconds),
        Row(case, "seconds", "s", found.seconds),
        Row(case, "seconds per million events", "s", 1e6 * found.seconds / written),
        Row(case, "CPU seconds per million events", "s", 1e6 * found.cpu_s / written),
        Row(case, "memory of the process", "MiB", found.resident_mib),
        Row(case, "accounts with the balances of the book that decided", "", found.accounts),
    )
    return Report("ledger-rebuild", "the events are on disk (fsync on), read in pages of 1,000", rows)


async def filled(dsn: str, events: int) -> tuple[int, Book]:
    """A history of decided commands in the log, and the book that those who decided it had at its end."""
    log = await PostgresEventLog.open(dsn)
    book, version, clock = EMPTY, 0, SystemClock()
    stream, context = StreamId(AGGREGATE, TENANT), Context(TENANT, "bench")
    batch: list[Event] = []
    for command in history():
        decided = decide(book, command)
        book = fold(book, decided)
        batch += decided
        if len(batch) >= APPENDED_AT_ONCE or version + len(batch) >= events:
            new = tuple(CODEC.encode(event, id=uuid7(), at=clock.now()) for event in batch)
            await log.append(Append(stream, version, new, context))
            version, batch = version + len(batch), []
        if version >= events:
            break
    await log.close()
    return version, book


def rebuilt(dsn: str) -> Rebuilt:
    """As the service does it that starts."""
    collect_seldom()
    return asyncio.run(_rebuilt(dsn))


async def _rebuilt(dsn: str) -> Rebuilt:
    log = await PostgresEventLog.open(dsn)
    books = Books(log, SystemClock(), snapshot_events=10**9)
    begun, cpu = time.perf_counter(), time.process_time()
    book = await books.read(TENANT)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    await books.close()
    await log.close()
    resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Rebuilt(took, cpu, resident_mib, len(book.balances), digest(book.balances))


def digest(balances: Mapping[str, int]) -> str:
    """The same for two books if, and only if, every account has the same balance in both."""
    lines = "\n".join(f"{account} {balance}" for account, balance in sorted(balances.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def history() -> Iterator[Command]:
    """Calls without end: most are settled, some are released, some expire and are settled late."""
    price = Price(flat_card(1_000, 4_000, 100, 1_250), "book 1", "book")
    yield SetBudget("all", Attribution(), RICH_NANO, True, "month", START)
    yield SetBudget("hour", Attribution(), RICH_NANO, True, "rolling", START, rolling_s=3_600)
    for agent in AGENTS:
        yield SetBudget(agent, Attribution(agent=agent), RICH_NANO, False, "day", START)
    usage = (UsageLine(direction="input", quantity=700), UsageLine(direction="output", quantity=90))
    for number in count():
        at, name = START + timedelta(seconds=number), f"req_{number}:1"
        owner = Attribution(tenant_id=TENANT, agent=AGENTS[number % len(AGENTS)], model=MODEL)
        yield Reserve(name, name, owner, MODEL, 800, 200, None, price, at, at + timedelta(minutes=1))
        if number % 10 == 0:
            yield Release(name, "refused")
            continue
        if number % 10 == 1:
            yield Expire(name, at + timedelta(minutes=1))
        yield Settle(name, usage, None, "provider_final", at)
