"""Reservations made ahead of their calls: granted only where much is left, given back when no call comes."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger import errors, snapshots
from cost_ledger.application import Asked, Closed, CostLedger, ReservationRequest, Returned, Unknown
from cost_ledger.book import EMPTY, Book, Reservation
from cost_ledger.books import Books
from cost_ledger.commands import (
    STOCK_MAX,
    CloseStock,
    Command,
    Doubt,
    Expire,
    Price,
    Release,
    Reserve,
    ReturnStock,
    SetBudget,
    Settle,
    SuspendBudget,
)
from cost_ledger.domain import SPARE_TIMES, decide
from cost_ledger.errors import ModelUnpriced, NothingToSpare, RequestInvalid, ReservationConflict
from cost_ledger.folding import fold
from cost_ledger.rates import UNPRICED, flat_card
from cost_ledger.testing import FakeHistory, FakePrices
from eventlog.memory import MemoryEventLog
from eventlog.records import Context
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import (
    BudgetCommitmentReached,
    CostReserved,
    Hold,
    ReservationDenied,
    ReservationReleased,
    Unit,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACME = Context("acme", "svc-llm-gateway")
MODEL = "openai/gpt-5.5"
PRICE = Price(flat_card(1_000, 2_000, 100, 1_250), "book 1", "book")
HOLDER = "llm-gateway/1"


def budget(budget_id: str = "team", limit: int = 1_000, unit: Unit = "nano_usd", **more: object) -> SetBudget:
    given: dict[str, object] = {"scope": Attribution(), "hard": True, "window": "lifetime", "at": NOW}
    return SetBudget(budget_id=budget_id, limit=limit, unit=unit, **(given | more))  # type: ignore[arg-type]


def ahead(number: int = 1, amount: int = 10, **more: object) -> Reserve:
    given: dict[str, object] = {
        "reservation_id": f"{HOLDER}:{number}",
        "attribution": Attribution(tenant_id="acme", agent="writer", conversation_id="c1", model=MODEL),
        "model": MODEL,
        "input_tokens_max": 0,
        "output_tokens_max": 0,
        "fixed": amount,
        "book_price": PRICE,
        "holder": HOLDER,
    }
    return Reserve(request_sha256="sha", at=NOW, expires_at=NOW + timedelta(minutes=10), **(given | more))  # type: ignore[arg-type]


def after(*commands: Command, book: Book = EMPTY) -> Book:
    for command in commands:
        book = fold(book, decide(book, command))
    return book


def left(book: Book, budget_id: str = "team", share: str = "") -> int:
    return book.available(Hold(budget_id=budget_id, window_start="lifetime", share=share))


def refused(book: Book, command: Reserve) -> NothingToSpare:
    with pytest.raises(NothingToSpare) as caught:
        decide(book, command)
    return caught.value


def state(book: Book, number: int = 1) -> str:
    known = book.reservation(f"{HOLDER}:{number}")
    assert known is not None
    return known.state


def released(events: tuple[Event, ...]) -> list[str]:
    return [event.reservation_id for event in events if isinstance(event, ReservationReleased)]


class TestGranting:
    def test_it_is_a_reservation_as_any_and_says_whose_it_is(self) -> None:
        (reserved,) = decide(after(budget()), ahead())
        (ordinary,) = decide(after(budget()), ahead(holder=""))
        assert isinstance(reserved, CostReserved)
        assert reserved.model_copy(update={"holder": ""}) == ordinary
        assert reserved.holder == HOLDER

    def test_twenty_times_its_amount_must_be_left_after_it(self) -> None:
        needed = 10 * (1 + SPARE_TIMES)
        assert (needed, left(after(budget(limit=210), ahead()))) == (210, 10 * SPARE_TIMES)
        error = refused(after(budget(limit=209)), ahead())
        assert (error.budget_id, error.available, error.required, error.needed) == ("team", 209, 10, 210)
        assert (error.unit, error.share) == ("nano_usd", "")
        assert "budget team has 209 nano_usd left, and 210 must be left" in str(error)

    def test_what_is_held_already_counts(self) -> None:
        book = after(budget(limit=220), ahead(1))
        assert left(after(ahead(2), book=book)) == 200
        assert refused(after(ahead(2), book=book), ahead(3)).available == 200

    def test_one_of_several_budgets_is_enough_to_refuse_and_nothing_is_held_in_any(self) -> None:
        writer = Attribution(agent="writer")
        book = after(
            budget("all"), budget("writer", 209, scope=writer), budget("other", 1, scope=Attribution(agent="x"))
        )
        assert refused(book, ahead()).budget_id == "writer"
        assert isinstance(decide(book, ahead(holder=""))[0], CostReserved)

    def test_a_quota_has_as_much_to_spare(self) -> None:
        tokens = ahead(fixed=None, input_tokens_max=10, output_tokens_max=5)
        assert left(after(budget("quota", 315, "tokens"), tokens), "quota") == 300
        error = refused(after(budget("quota", 314, "tokens")), tokens)
        assert (error.unit, error.available, error.required, error.needed) == ("tokens", 314, 15, 315)

    def test_a_number_of_calls_has_as_much_to_spare(self) -> None:
        book = after(budget("calls", 21, "calls"), ahead(1))
        assert refused(book, ahead(2)).available == 20

    def test_each_share_of_a_budget_is_looked_at_for_itself(self) -> None:
        book = after(budget(limit=215, per="conversation_id"), ahead(1))
        error = refused(book, ahead(2))
        assert (error.share, error.available, "budget team for c1 has" in str(error)) == ("c1", 205, True)
        other = Attribution(tenant_id="acme", agent="writer", conversation_id="c2", model=MODEL)
        assert left(after(ahead(2, attribution=other), book=book), share="c2") == 205

    def test_a_soft_budget_refuses_nothing(self) -> None:
        assert left(after(budget(limit=5, hard=False), ahead())) == -5

    def test_a_budget_of_which_it_needs_nothing_does_not_refuse_unless_it_is_overdrawn(self) -> None:
        book = after(budget("time", 0, "tool_ms"), budget())
        assert isinstance(decide(book, ahead())[0], CostReserved)
        free = ahead(amount=0, model="", attribution=Attribution(tenant_id="acme"))
        overdrawn = after(budget(limit=10), ahead(7, holder=""), Settle(f"{HOLDER}:7", (), 11, "provider_final", NOW))
        assert refused(overdrawn, ahead(amount=0, fixed=0)).available == -1
        assert isinstance(decide(overdrawn, free)[0], CostReserved)

    def test_a_suspended_budget_refuses_as_ever_and_leaves_no_event(self) -> None:
        book = after(budget(limit=10**9, hard=False), SuspendBudget("team", "a leaked key"))
        with pytest.raises(errors.BudgetSuspended, match="a leaked key"):
            decide(book, ahead())
        assert isinstance(decide(book, ahead(holder=""))[0], ReservationDenied)

    def test_a_model_without_a_price_is_refused_under_a_hard_budget_as_ever(self) -> None:
        unpriced = ahead(fixed=None, book_price=Price(UNPRICED, "book 1", "unpriced"))
        with pytest.raises(ModelUnpriced):
            decide(after(budget()), unpriced)
        assert isinstance(decide(EMPTY, unpriced)[0], CostReserved)

    def test_an_alert_is_told_by_what_is_held_ahead_too(self) -> None:
        book = after(budget(limit=420), *(ahead(number) for number in range(20)))
        assert isinstance(decide(book, ahead(20))[1], BudgetCommitmentReached)

    def test_the_same_request_again_is_answered_whatever_is_left(self) -> None:
        book = after(budget(limit=210), ahead(), SuspendBudget("team", "stop"))
        assert decide(book, ahead()) == ()


class TestGivingBack:
    def test_what_is_returned_is_released_held_or_in_suspense(self) -> None:
        book = after(budget(), ahead(1), ahead(2), ahead(3), Expire(f"{HOLDER}:2", NOW + timedelta(hours=1)))
        events = decide(book, ReturnStock(HOLDER, (f"{HOLDER}:2", f"{HOLDER}:1", f"{HOLDER}:2", "unknown")))
        assert released(events) == [f"{HOLDER}:2", f"{HOLDER}:1"]
        assert all(isinstance(event, ReservationReleased) and "never used" in event.reason for event in events)
        book = fold(book, events)
        assert (left(book), state(book, 3)) == (990, "held")
        assert not any(name.startswith("suspense") for name in book.balances)

    def test_a_second_return_does_nothing_even_if_it_was_billed_after_all(self) -> None:
        returned = ReturnStock(HOLDER, (f"{HOLDER}:1",))
        book = after(budget(), ahead(), returned)
        assert decide(book, returned) == ()
        book = after(Settle(f"{HOLDER}:1", (), 7, "provider_final", NOW), book=book)
        assert (decide(book, returned), left(book)) == ((), 993)

    def test_only_the_holders_own_is_returned(self) -> None:
        book = after(budget(), ahead(1), ahead(2, holder=""), ahead(3, holder="llm-gateway/2"))
        ids = tuple(f"{HOLDER}:{number}" for number in (1, 2, 3))
        assert released(decide(book, ReturnStock(HOLDER, ids))) == [f"{HOLDER}:1"]
        assert decide(book, ReturnStock("nobody", ids)) == ()
        assert decide(book, ReturnStock("", ids)) == ()

    def test_a_close_frees_what_is_held_and_leaves_what_an_attempt_has_told_of(self) -> None:
        book = after(
            budget(),
            *(ahead(number) for number in (1, 2, 3, 4, 5)),
            ahead(6, holder="llm-gateway/2"),
            ahead(7, holder=""),
            Settle(f"{HOLDER}:2", (), 7, "provider_final", NOW),
            Doubt(f"{HOLDER}:3"),
            Release(f"{HOLDER}:4", "refused"),
        )
        events = decide(book, CloseStock(HOLDER))
        assert released(events) == [f"{HOLDER}:1", f"{HOLDER}:5"]
        book = fold(book, events)
        states = [state(book, number) for number in range(1, 8)]
        assert states == ["released", "settled", "suspense", "released", "released", "held", "held"]
        assert decide(book, CloseStock(HOLDER)) == ()

    def test_nobody_is_no_holder(self) -> None:
        assert decide(after(budget(), ahead(holder="")), CloseStock("")) == ()

    def test_one_command_frees_no_more_than_fits_in_a_request_to_the_log(self) -> None:
        book = after(*(ahead(number) for number in range(STOCK_MAX + 1)))
        events = decide(book, CloseStock(HOLDER))
        assert len(events) == STOCK_MAX
        assert len(decide(fold(book, events), CloseStock(HOLDER))) == 1

    def test_what_was_used_is_settled_as_any_and_keeps_its_holder(self) -> None:
        book = after(budget(), ahead(), Settle(f"{HOLDER}:1", (), 7, "provider_final", NOW))
        known = book.reservation(f"{HOLDER}:1")
        assert known is not None
        assert (known.state, known.settled, known.holder, left(book)) == ("settled", 7, HOLDER, 993)


class TestSnapshots:
    def test_a_snapshot_keeps_the_holder_of_what_is_open_and_closed(self) -> None:
        book = after(budget(), ahead(1), ahead(2), Release(f"{HOLDER}:2", "refused"))
        assert snapshots.load(snapshots.dump(book)) == book

    def test_bytes_from_before_there_were_holders_have_none(self) -> None:
        book = after(budget(), ahead(1, holder=""), ahead(2, holder=""), Release(f"{HOLDER}:2", "refused"))
        image = json.loads(snapshots.dump(book))
        for reservation in (*image["open"], *image["closed"]):
            assert reservation.pop("holder") == ""
        assert snapshots.load(json.dumps(image).encode()) == book


@pytest.fixture
async def ledger() -> AsyncIterator[CostLedger]:
    clock = FakeClock(NOW)
    books = Books(MemoryEventLog(), clock)
    yield CostLedger(books, FakePrices(), FakeHistory(), clock)
    await books.close()


def request(number: int = 1, amount: int = 10, holder: str = HOLDER) -> ReservationRequest:
    return ReservationRequest(f"{HOLDER}:{number}", Attribution(), "", 0, 0, amount, None, holder=holder)


async def stock(ledger: CostLedger, size: int) -> list[Reservation]:
    outcomes = await ledger.reserve_many([Asked(request(number), ACME) for number in range(size)])
    return [outcome for outcome in outcomes if isinstance(outcome, Reservation)]


async def open_ids(ledger: CostLedger) -> set[str]:
    return set((await ledger.books.read("acme")).open)


async def test_each_of_a_batch_leaves_as_much_and_what_is_refused_is_not_recorded(ledger: CostLedger) -> None:
    await ledger.set_budget(budget(limit=230), ACME)
    assert [held.holder for held in await stock(ledger, 5)] == [HOLDER] * 3
    assert [stored.type for stored in await ledger.books.log.read()] == ["BudgetSet", *["CostReserved"] * 3]


async def test_the_holder_is_a_part_of_what_an_id_stands_for(ledger: CostLedger) -> None:
    held = await ledger.reserve(request(), ACME)
    assert await ledger.reserve(request(), ACME) == held
    for other in ("", "llm-gateway/2"):
        with pytest.raises(ReservationConflict):
            await ledger.reserve(request(holder=other), ACME)


async def test_a_holder_is_no_longer_than_other_names(ledger: CostLedger) -> None:
    with pytest.raises(RequestInvalid) as refused:
        await ledger.reserve(request(holder="h" * 257), ACME)
    assert refused.value.field == "holder"


async def test_a_stock_larger_than_a_command_is_closed_to_the_end(ledger: CostLedger) -> None:
    held = await stock(ledger, 2 * STOCK_MAX + 1)
    await ledger.record([(Unknown(held[7].reservation_id), ACME), (Closed(HOLDER), ACME)])
    assert await open_ids(ledger) == {held[7].reservation_id}
    head = await ledger.books.log.head()
    await ledger.record([(Closed(HOLDER), ACME), (Closed("nobody"), ACME)])
    assert await ledger.books.log.head() == head


async def test_a_return_larger_than_a_command_is_taken_whole(ledger: CostLedger) -> None:
    held = await stock(ledger, STOCK_MAX + 2)
    returned = Returned(HOLDER, tuple(each.reservation_id for each in held[1:]))
    await ledger.record([(returned, ACME), (returned, ACME), (Returned(HOLDER, ()), ACME)])
    assert await open_ids(ledger) == {held[0].reservation_id}


async def test_a_book_of_another_tenant_is_not_touched(ledger: CostLedger) -> None:
    await stock(ledger, 2)
    elsewhere = replace(ACME, tenant="globex")
    await ledger.record([(Closed(HOLDER), elsewhere), (Returned(HOLDER, (f"{HOLDER}:0",)), elsewhere)])
    assert len(await open_ids(ledger)) == 2
