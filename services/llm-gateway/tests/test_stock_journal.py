"""What becomes of reservations made ahead, in the log."""

import pytest
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable, QueueFull
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended
from llm_gateway.stock_journal import StockJournal
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.llm_gateway.events import EVENTS, ReservationsReturned, ReservationStockClosed, ReservationStockOpened

CODEC: Codec[Event] = Codec(EVENTS)
HOLDER = "gw_1.1"


class Away(MemoryEventLog):
    """Stores what it is given, and answers by `error`."""

    error: Exception | None = None

    async def append(self, *appends: Append) -> Appended:
        appended = await super().append(*appends)
        if self.error is not None:
            raise self.error
        return appended


async def test_a_stock_is_told_of_in_a_stream_of_its_tenant() -> None:
    log = MemoryEventLog()
    journal = StockJournal(log, CODEC, FakeClock())
    await journal.opened("acme", HOLDER)
    await journal.opened("local", HOLDER)
    await journal.returned("acme", HOLDER, ["gw_1.1:1", "gw_1.1:2"])
    await journal.closed("acme", HOLDER)

    stored = await log.read()

    assert [(each.tenant, CODEC.decode(each)) for each in stored] == [
        ("acme", ReservationStockOpened(holder=HOLDER)),
        ("local", ReservationStockOpened(holder=HOLDER)),
        ("acme", ReservationsReturned(holder=HOLDER, reservation_ids=("gw_1.1:1", "gw_1.1:2"))),
        ("acme", ReservationStockClosed(holder=HOLDER)),
    ]
    assert {(each.stream.aggregate, each.actor) for each in stored} == {("reservation-stock", "llm-gateway")}
    assert [each.version for each in stored] == [1, 1, 2, 3]


async def test_what_is_said_again_changes_nothing_whoever_says_it() -> None:
    log, clock = MemoryEventLog(), FakeClock()
    for journal in (StockJournal(log, CODEC, clock), StockJournal(log, CODEC, clock)):
        await journal.opened("local", HOLDER)
        await journal.returned("local", HOLDER, ["gw_1.1:1"])
        await journal.closed("local", HOLDER)
        clock.advance(1)
    assert await log.head() == 3

    await journal.returned("local", HOLDER, ["gw_1.1:2"])
    await journal.closed("local", "gw_1.2")
    assert await log.head() == 5


@pytest.mark.parametrize("error", [LogUnavailable("down"), QueueFull(1)])
async def test_what_the_log_did_not_answer_is_raised_and_may_be_said_again(error: Exception) -> None:
    log = Away()
    journal = StockJournal(log, CODEC, FakeClock())
    log.error = error
    with pytest.raises(type(error)):
        await journal.opened("local", HOLDER)
    log.error = None
    await journal.opened("local", HOLDER)
    assert await log.head() == 1
