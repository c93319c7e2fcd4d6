"""What runs and what is open, whatever the batches in which events come."""

from datetime import UTC, datetime

import pytest
from eventlog.codec import Codec
from eventlog.memory import MemoryEventLog
from eventlog.projections import Projector
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.sources import LogSource
from llm_gateway.projections import OpenStock, Queries, ReservationsView
from llm_gateway.stock_journal import StockJournal
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import (
    EVENTS,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCompleted,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CODEC: Codec[Event] = Codec(EVENTS)
OWNER = Attribution(tenant_id="local", run_id="run_1", agent="scout")


def started(attempt: int) -> Event:
    return ModelCallAttemptStarted(
        request_id="req",
        attempt=attempt,
        model="fake/m",
        provider="fake",
        reservation_id=f"mc:{attempt}",
        attribution=OWNER,
    )


FAILED = ModelCallAttemptFailed(
    request_id="req",
    attempt=1,
    model="fake/m",
    reservation_id="mc:1",
    failure=Failure(reason="RATE_LIMITED", message="slow down"),
    billed="no",
)
COMPLETED = ModelCallCompleted(
    request_id="req",
    attempt=2,
    model="fake/m",
    provider="fake",
    reservation_id="mc:2",
    attribution=OWNER,
    input_tokens=7,
    output_tokens=3,
    usage=(),
    usage_source="provider_final",
    finish_reason="stop",
    response_sha256="bb",
    duration_ms=5,
)
WHOLE = (started(1), FAILED, started(2), COMPLETED)


async def test_running_calls_are_found_with_whom_they_belong_to(postgres_dsn: str) -> None:
    log = MemoryEventLog()
    new = tuple(CODEC.encode(event, at=NOW) for event in (started(1),))
    await log.append(Append(StreamId("model-call", "mc"), 0, new, Context("local", "usr_ada")))
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        await Projector(pool, ReservationsView(), LogSource(log, "llm-gateway")).catch_up()

        assert await Queries(pool).running() == [("mc", Context("local", "llm-gateway", "run_1"))]


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_attempt_runs_until_its_own_end(postgres_dsn: str, at_once: bool) -> None:
    log, found = MemoryEventLog(), []
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        projector, queries = Projector(pool, ReservationsView(), LogSource(log, "llm-gateway")), Queries(pool)
        for events in ((started(1), started(2)), (FAILED,), (COMPLETED,)):
            new = tuple(CODEC.encode(event, at=NOW) for event in events)
            await log.append(Append(StreamId("model-call", "mc"), ANY, new, Context("local", "usr_ada")))
            if not at_once:
                await projector.catch_up()
                found.append(await queries.running_reservations())
        await projector.catch_up()

        assert found == ([] if at_once else [["mc:1", "mc:2"], ["mc:2"], []])
        assert await queries.running_reservations() == []
        assert await queries.running() == []


async def test_of_two_attempts_the_one_that_has_not_failed_runs(postgres_dsn: str) -> None:
    log = MemoryEventLog()
    new = tuple(CODEC.encode(event, at=NOW) for event in (started(1), started(2), FAILED))
    await log.append(Append(StreamId("model-call", "mc"), 0, new, Context("local", "usr_ada")))
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        await Projector(pool, ReservationsView(), LogSource(log, "llm-gateway")).catch_up()

        assert await Queries(pool).running_reservations() == ["mc:2"]
        assert [id for id, _ in await Queries(pool).running()] == ["mc"]


async def test_a_stock_is_open_from_its_opening_to_its_close(postgres_dsn: str) -> None:
    log = MemoryEventLog()
    journal = StockJournal(log, CODEC, FakeClock())
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=3, open=False) as pool:
        projector, queries = Projector(pool, ReservationsView(), LogSource(log, "llm-gateway")), Queries(pool)
        for tenant in ("acme", "local"):
            await journal.opened(tenant, "gw_1.1")
        await journal.returned("acme", "gw_1.1", ["gw_1.1:1"])
        await projector.catch_up()
        assert await queries.stocks() == [OpenStock("acme", "gw_1.1"), OpenStock("local", "gw_1.1")]

        await journal.closed("acme", "gw_1.1")
        await projector.catch_up()
        assert await queries.stocks() == [OpenStock("local", "gw_1.1")]
