"""Use cases on a log in memory: what is forgotten, what is due, what a tenant pays."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger import snapshots
from cost_ledger.application import Asked, CostLedger, ReservationRequest, Settlement
from cost_ledger.book import EMPTY, Reservation
from cost_ledger.books import Books, Executed
from cost_ledger.commands import Command, SetBudget, SetPrice, SetPriceFactor
from cost_ledger.errors import (
    AlreadyRecorded,
    BudgetExceeded,
    LedgerError,
    RequestInvalid,
    ReservationConflict,
    ReservationSettled,
)
from cost_ledger.rates import UNPRICED, flat_card
from cost_ledger.testing import FakeHistory, FakePrices
from eventlog.memory import MemoryEventLog
from eventlog.records import Context, StreamId
from hypothesis import given, settings
from hypothesis import strategies as st
from servicekit.testing import FakeClock
from synod.common.values import Attribution, UsageLine

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACME = Context("acme", "usr_1")


class Forgetful(Books):
    """Books that remember nothing, so that only the log knows."""

    async def execute_many(self, commands: Sequence[tuple[Command, Context]]) -> list[Executed | LedgerError]:
        return [AlreadyRecorded("acme") for _ in commands]


@pytest.fixture
def history() -> FakeHistory:
    return FakeHistory()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
async def ledger(history: FakeHistory, clock: FakeClock) -> AsyncIterator[CostLedger]:
    books = Books(MemoryEventLog(), clock)
    yield CostLedger(books, FakePrices({"openai/gpt-5.5": flat_card(5, 30, 1, 6)}), history, clock)
    await books.close()


def request(amount: int = 10, **owner: str) -> ReservationRequest:
    return ReservationRequest("r1", Attribution(**owner), "", 0, 0, amount, None)


def forgotten(ledger: CostLedger) -> CostLedger:
    return CostLedger(Forgetful(ledger.books.log, ledger.clock), ledger.prices, ledger.history, ledger.clock)


async def reserved(ledger: CostLedger, history: FakeHistory) -> Reservation:
    held = await ledger.reserve(request(), ACME)
    history.reservations["acme", "r1"] = held
    return held


async def test_a_forgotten_reservation_is_answered_from_the_view(ledger: CostLedger, history: FakeHistory) -> None:
    held = await reserved(ledger, history)
    assert await forgotten(ledger).reserve(request(), ACME) == held
    assert await forgotten(ledger).settle(Settlement("r1", (), 5, "provider_final"), ACME) == held


async def amnesia(ledger: CostLedger, history: FakeHistory) -> CostLedger:
    """The ledger after a start, when the book has forgotten all outcomes and the view has them, as ever without rates."""
    stream = StreamId("book", "acme")
    book, stored = await ledger.books.read("acme"), await ledger.books.log.read_stream(stream)
    for name, known in book.closed.items():
        history.reservations["acme", name] = replace(known, rates=UNPRICED)
    image = snapshots.dump(book._replace(closed=EMPTY.closed))
    await ledger.books.close()
    await ledger.books.log.save_snapshot(stream, len(stored), snapshots.FOLD, image)
    return replace(ledger, books=Books(ledger.books.log, ledger.clock))


MODEL = "openai/gpt-5.5"
USED = (UsageLine(direction="input", quantity=2_000),)


@pytest.mark.parametrize("own", [False, True])
async def test_group_03_a_bill_of_what_was_released_is_posted_whether_the_book_remembers_it_or_not(
    ledger: CostLedger, history: FakeHistory, clock: FakeClock, own: bool
) -> None:
    posted = []
    for tenant in ("acme", "globex"):
        here = Context(tenant, "usr_1")
        if own:
            await ledger.set_price(SetPrice("openai", "gpt-5.5", 7, 7, 7, 7), here)
        await ledger.set_budget(SetBudget("day", Attribution(agent="writer"), 1_000, True, "day", NOW), here)
        owner = Attribution(agent="writer")
        await ledger.reserve(ReservationRequest("r1", owner, MODEL, 3_000, 0, 0, None), here)
        await ledger.release("r1", "not dispatched", here)
    clock.advance(86_400)
    forgetful = await amnesia(ledger, history)
    for tenant in ("globex", "acme"):
        here = Context(tenant, "usr_1")
        assert ("r1" in (await forgetful.books.read(tenant)).closed) is (tenant == "globex")
        for _ in range(2):
            settled = await forgetful.settle(Settlement("r1", USED, None, "provider_final"), here)
            assert (settled.state, settled.settled) == ("settled", 14 if own else 10)
        stored = [
            each for each in await ledger.books.log.read() if each.tenant == tenant and each.type == "CostSettled"
        ]
        posted += [json.loads(each.data) | {"attribution": None} for each in stored]
    assert len(posted) == 2
    assert posted[0] == posted[1]
    assert (posted[1]["late"], posted[1]["holds"][0]["window_start"]) == (True, "2026-11-21")
    await forgetful.books.close()


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_bill_of_what_was_released_is_at_the_factor_of_its_reservation(
    ledger: CostLedger, history: FakeHistory, clock: FakeClock, forgets: bool
) -> None:
    await ledger.set_price_factor(SetPriceFactor("openai", "", 2_000_000), ACME)
    await ledger.reserve(ReservationRequest("r1", Attribution(), MODEL, 3_000, 0, 0, None), ACME)
    await ledger.release("r1", "not dispatched", ACME)
    clock.advance(60)
    await ledger.set_price_factor(SetPriceFactor("openai", "", 3_000_000), ACME)
    found = await amnesia(ledger, history) if forgets else ledger
    settled = await found.settle(Settlement("r1", USED, None, "provider_final"), ACME)
    assert (settled.settled, settled.price_version) == (20, "fake 1 at 2000000 ppm")
    await found.books.close()


async def test_group_03_a_forgotten_bill_is_posted_once_though_the_view_is_behind(
    ledger: CostLedger, history: FakeHistory
) -> None:
    await ledger.reserve(request(), ACME)
    await ledger.release("r1", "not dispatched", ACME)
    forgetful = await amnesia(ledger, history)
    bill = Settlement("r1", (), 7, "provider_final")
    assert (await forgetful.settle(bill, ACME)).settled == 7
    before = history.reservations["acme", "r1"]
    again = await amnesia(forgetful, history)
    history.reservations["acme", "r1"] = before
    assert await again.settle(bill, ACME) == before
    assert (await again.books.read("acme")).balances["payable:tool"] == -7
    await again.books.close()


async def test_what_was_settled_is_not_released_though_the_book_has_forgotten_it(
    ledger: CostLedger, history: FakeHistory
) -> None:
    await ledger.reserve(request(), ACME)
    await ledger.settle(Settlement("r1", (), 7, "provider_final"), ACME)
    forgetful = await amnesia(ledger, history)
    with pytest.raises(ReservationSettled) as refused:
        await forgetful.release("r1", "never used", ACME)
    assert refused.value.settled == 7
    await forgetful.books.close()


async def test_a_forgotten_id_with_other_content_is_refused(ledger: CostLedger, history: FakeHistory) -> None:
    await reserved(ledger, history)
    with pytest.raises(ReservationConflict):
        await forgotten(ledger).reserve(request(amount=11), ACME)


async def test_a_retry_may_ask_for_another_time_to_live(ledger: CostLedger) -> None:
    first = await ledger.reserve(request(), ACME)
    longer = ReservationRequest("r1", Attribution(), "", 0, 0, 10, timedelta(hours=1))
    assert await ledger.reserve(longer, ACME) == first


async def test_a_run_without_a_team_is_its_own_root(ledger: CostLedger) -> None:
    held = await ledger.reserve(request(run_id="run_1"), ACME)
    assert held.attribution.root_run_id == "run_1"
    assert held.attribution.tenant_id == "acme"


async def test_what_is_due_moves_to_suspense_once(ledger: CostLedger, history: FakeHistory, clock: FakeClock) -> None:
    await reserved(ledger, history)
    clock.advance(600)
    # The view is behind the book, so the same hold is found due again.
    assert (await ledger.expire_due(), await ledger.expire_due()) == (1, 1)
    assert (await ledger.get_reservation("r1", ACME)).state == "suspense"
    assert await ledger.books.log.head() == 2


async def test_a_denied_reservation_may_be_asked_for_again_when_the_budget_was_raised(ledger: CostLedger) -> None:
    await ledger.set_budget(SetBudget("team", Attribution(), 5, True, "lifetime", NOW), ACME)
    with pytest.raises(BudgetExceeded):
        await ledger.reserve(request(), ACME)
    await ledger.set_budget(SetBudget("team", Attribution(), 50, True, "lifetime", NOW), ACME)
    assert (await ledger.reserve(request(), ACME)).state == "held"


async def test_a_first_price_is_set_once_and_never_over_the_tenants_own(ledger: CostLedger) -> None:
    await ledger.set_first_prices({"sim/one": (100, 400)}, ACME)
    (price,) = await ledger.list_prices("sim", "", 10, ACME)
    assert price.price.rates == flat_card(100, 400, 100, 100)
    own = SetPrice("sim", "one", 7, 7, 7, 7)
    await ledger.set_price(own, ACME)
    await ledger.set_first_prices({"sim/one": (100, 400)}, ACME)
    (price,) = await ledger.list_prices("sim", "", 10, ACME)
    assert price.price.rates == flat_card(7, 7, 7, 7)


async def test_a_tenants_own_price_replaces_the_books_in_the_list(ledger: CostLedger) -> None:
    await ledger.set_price(SetPrice("openai", "gpt-5.5", 1, 2, 1, 1), ACME)
    await ledger.set_price(SetPrice("simulator", "sim-1", 3, 4, 3, 3), ACME)
    listed = await ledger.list_prices("", "", 10, ACME)
    assert [(named.name, named.price.source) for named in listed] == [
        ("openai/gpt-5.5", "override"),
        ("simulator/sim-1", "override"),
    ]
    others = await ledger.list_prices("openai", "", 10, Context("globex", "usr_2"))
    assert [named.price.source for named in others] == ["book"]


@pytest.mark.parametrize(
    "zone",
    ["localtime", "posixrules", "posix/Europe/Berlin", "right/UTC", "Europe/berlin", "Europe", "../etc/localtime"],
)
async def test_a_time_zone_is_a_name_of_iana_and_no_file_of_the_machine(ledger: CostLedger, zone: str) -> None:
    daily = SetBudget("daily", Attribution(), 10, True, "day", NOW, time_zone=zone)
    with pytest.raises(RequestInvalid, match=f"time_zone = '{zone}': is no time zone; give an IANA name"):
        await ledger.set_budget(daily, ACME)
    for number, known in enumerate(("Europe/Berlin", "UTC", "")):
        await ledger.set_budget(replace(daily, budget_id=f"daily{number}", time_zone=known), ACME)


async def test_a_budget_of_before_keeps_its_time_zone_and_can_be_changed(ledger: CostLedger) -> None:
    daily = SetBudget("daily", Attribution(tenant_id="acme"), 10, True, "day", NOW, time_zone="localtime")
    await ledger.books.execute(daily, ACME)
    assert (await ledger.set_budget(replace(daily, limit=5), ACME)).budget.limit == 5
    with pytest.raises(RequestInvalid, match="time_zone = 'posixrules'"):
        await ledger.set_budget(replace(daily, time_zone="posixrules"), ACME)


async def test_a_model_is_listed_once_whatever_the_spelling_of_its_own_price(ledger: CostLedger) -> None:
    await ledger.set_price(SetPrice("openai", "GPT-5.5", 1, 2, 1, 1), ACME)
    await ledger.set_price(SetPrice("Own", "Model", 3, 4, 3, 3), ACME)
    listed = await ledger.list_prices("", "", 10, ACME)
    assert [(named.name, named.price.source) for named in listed] == [
        ("Own/Model", "override"),
        ("openai/gpt-5.5", "override"),
    ]
    assert [named.name for named in await ledger.list_prices("own", "", 10, ACME)] == ["Own/Model"]
    assert await ledger.list_prices("", "openai/gpt-5.5", 10, ACME) == ()


@pytest.mark.parametrize("model", ["*", "gpt-*"])
async def test_a_price_or_a_factor_of_a_pattern_is_refused_with_what_to_do(ledger: CostLedger, model: str) -> None:
    with pytest.raises(RequestInvalid, match=r"model = .*SetPriceFactor changes all models"):
        await ledger.set_price(SetPrice("openai", model, 1, 2, 1, 1), ACME)
    with pytest.raises(RequestInvalid, match=r"provider = .*a price is that of one model"):
        await ledger.set_price(SetPrice("own*", "m1", 1, 2, 1, 1), ACME, own_provider=True)
    with pytest.raises(RequestInvalid, match=r"model = .*leave it empty for all models"):
        await ledger.set_price_factor(SetPriceFactor("openai", model, 900_000), ACME)


@pytest.mark.parametrize("budget_id", ["", "two words", "-dash", "x" * 65])
async def test_a_budget_id_is_a_plain_name(ledger: CostLedger, budget_id: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        await ledger.set_budget(SetBudget(budget_id, Attribution(), 5, True, "lifetime", NOW), ACME)
    assert refused.value.field == "budget_id"


Outcome = tuple[str, object]
Wanted = list[tuple[int, int, str]]


def told(outcome: Reservation | LedgerError) -> Outcome:
    if isinstance(outcome, LedgerError):
        return type(outcome).__name__, str(outcome)
    return outcome.state, outcome


def asked(number: int, amount: int, actor: str) -> Asked:
    reservation = ReservationRequest(f"r{number}", Attribution(agent=actor), "", 0, 0, amount, None)
    return Asked(reservation, Context("acme", actor, correlation=f"run_{number}"))


async def at_once(ledger: CostLedger, wanted: Wanted) -> list[Outcome]:
    return [told(outcome) for outcome in await ledger.reserve_many([asked(*each) for each in wanted])]


async def one_after_the_other(ledger: CostLedger, wanted: Wanted) -> list[Outcome]:
    outcomes = []
    for each in wanted:
        (outcome,) = await ledger.reserve_many([asked(*each)])
        outcomes.append(told(outcome))
    return outcomes


async def recorded(ledger: CostLedger) -> list[tuple[object, ...]]:
    return [
        (stored.type, stored.data, stored.actor, stored.correlation)
        for stored in await ledger.books.log.read(limit=1_000)
    ]


async def opened(limits: dict[str, int]) -> CostLedger:
    clock = FakeClock(NOW)
    ledger = CostLedger(Books(MemoryEventLog(), clock), FakePrices(), FakeHistory(), clock)
    for agent, limit in limits.items():
        scope = Attribution(agent=agent)
        await ledger.set_budget(SetBudget(agent or "all", scope, limit, True, "lifetime", NOW), ACME)
    return ledger


@settings(max_examples=60, deadline=None)
@given(
    limits=st.fixed_dictionaries({"": st.integers(0, 60), "writer": st.integers(0, 60)}),
    # Of few ids, so that some are asked for twice, with the same content and with other; -1 is no amount.
    wanted=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([-1, 0, 7, 20]), st.sampled_from(["writer", "analyst"])),
        max_size=10,
    ),
    cut=st.integers(0, 10),
)
def test_group_06_a_batch_is_what_its_items_are_one_after_the_other(
    limits: dict[str, int], wanted: Wanted, cut: int
) -> None:
    async def compare() -> None:
        single, batched = await opened(limits), await opened(limits)
        expected = await one_after_the_other(single, wanted)
        assert await at_once(batched, wanted[:cut]) + await at_once(batched, wanted[cut:]) == expected
        assert await recorded(batched) == await recorded(single)
        assert await batched.books.read("acme") == await single.books.read("acme")
        for each in (single, batched):
            await each.books.close()

    asyncio.run(compare())


async def test_group_18_a_batch_of_which_a_part_is_known_adds_only_the_rest(ledger: CostLedger) -> None:
    first = await at_once(ledger, [(1, 10, "writer"), (2, 10, "writer")])
    again = await at_once(ledger, [(2, 10, "writer"), (3, 10, "writer"), (1, 10, "writer")])
    assert [again[2], again[0]] == first
    assert [stored.type for stored in await ledger.books.log.read()] == ["CostReserved"] * 3


async def test_an_item_that_is_refused_leaves_the_others_of_its_batch(ledger: CostLedger) -> None:
    await ledger.set_budget(SetBudget("all", Attribution(), 25, True, "lifetime", NOW), ACME)
    outcomes = await at_once(ledger, [(1, 10, "w"), (2, 20, "w"), (3, -1, "w"), (4, 10, "w"), (1, 11, "w")])
    assert [kind for kind, _ in outcomes] == ["held", "BudgetExceeded", "RequestInvalid", "held", "ReservationConflict"]


async def test_forgotten_items_of_a_batch_are_answered_from_the_view(ledger: CostLedger, history: FakeHistory) -> None:
    held = await reserved(ledger, history)
    outcomes = await forgotten(ledger).reserve_many([Asked(request(), ACME), Asked(request(amount=11), ACME)])
    assert outcomes[0] == held
    assert isinstance(outcomes[1], ReservationConflict)
