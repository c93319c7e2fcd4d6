"""Reservations made before the calls that will use them, on a clock that the tests hold."""

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from eventlog.records import Context
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway import stock as stock_module
from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.ports import Reservation
from llm_gateway.stock import (
    ASK_WITHIN_S,
    DOUBTFUL_S,
    KIND_MAX,
    SPARES_MAX,
    STEPS,
    TAKE_WITHIN_S,
    TTL_S,
    Shelf,
    Spare,
    Stock,
)
from llm_gateway.testing import FakeLedger, FakeWorkers, MemoryStockEvents
from servicekit.testing import FakeClock
from synod.common.values import Attribution, Tag

CONTEXT = Context(tenant="local", actor="usr_ada", correlation="run_1")
SPARE_S = 1.0
WANTED = Reservation("mc_1:1", Attribution(tenant_id="local", agent="scout"), "fake/m", 1_000, 100, 300.0)


@dataclass
class World:
    ledger: FakeLedger = field(default_factory=FakeLedger)
    events: MemoryStockEvents = field(default_factory=MemoryStockEvents)
    workers: FakeWorkers = field(default_factory=FakeWorkers)
    clock: FakeClock = field(default_factory=FakeClock)
    spare_s: float = SPARE_S

    def __post_init__(self) -> None:
        self.workers.now = self.clock.monotonic
        self.told = {"made": 0, "used": 0}
        self.stock = Stock(
            self.ledger, self.events, self.workers, self.spare_s, self.clock.monotonic, self._made, self._used
        )

    def _made(self, reservations: int) -> None:
        self.told["made"] += reservations

    def _used(self) -> None:
        self.told["used"] += 1

    async def call(self, wanted: Reservation = WANTED, context: Context = CONTEXT, *, after: float = 0.0) -> str | None:
        """What a call finds, and then all is done that it led to."""
        self.clock.advance(after)
        spare = await self.stock.take(wanted, context)
        await asyncio.gather(*self.stock._making)
        return None if spare is None else spare.id

    async def often(self, times: int, *, every: float = 0.003) -> list[str | None]:
        return [await self.call(after=every) for _ in range(times)]


async def test_who_calls_once_finds_nothing_and_nothing_is_made_for_him() -> None:
    world = World()

    assert await world.call() is None
    assert await world.call(after=1.0) is None
    assert world.ledger.ahead == []


async def test_who_calls_again_and_again_finds_one_made_each_time() -> None:
    world = World()

    first, second, *rest = await world.often(200)

    assert (first, second) == (None, None)
    assert None not in rest
    assert len(set(rest)) == len(rest)
    assert world.told["used"] == len(rest)
    assert world.told["made"] == len(world.ledger.ahead)


async def test_one_that_was_made_is_like_what_is_wanted_and_covers_it() -> None:
    world = World()

    await world.often(3)

    made = world.ledger.ahead[0]
    assert made.holder == world.workers.holder
    assert made.id == f"{world.workers.holder}:1"
    assert made.ttl_s == TTL_S
    assert made.input_tokens_max == 1_024
    assert replace(made, id="", input_tokens_max=0, ttl_s=0, holder="") == replace(
        WANTED, id="", input_tokens_max=0, ttl_s=0
    )


OTHERS = {
    "agent": replace(WANTED, attribution=Attribution(tenant_id="local", agent="other")),
    "tags": replace(
        WANTED, attribution=Attribution(tenant_id="local", agent="scout", tags=(Tag(name="a", value="b"),))
    ),
    "model": replace(WANTED, model="fake/other"),
    "input": replace(WANTED, input_tokens_max=1_025),
    "less input": replace(WANTED, input_tokens_max=500),
    "output": replace(WANTED, output_tokens_max=101),
    "terms": replace(WANTED, terms={"service_tier": "flex"}),
    "modalities": replace(WANTED, modalities=("image",)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_one_of_another_kind_is_never_taken(other: Reservation) -> None:
    world = World()
    await world.often(10)

    assert await world.call(other) is None


@pytest.mark.parametrize("context", [Context("other", "usr_ada"), Context("local", "usr_bob")])
async def test_nobody_takes_what_was_made_in_anothers_name(context: Context) -> None:
    world = World()
    await world.often(10)

    assert await world.call(context=context) is None


async def test_a_run_of_another_correlation_and_trace_takes_none_of_them_along() -> None:
    world, seen = World(), []

    class Told(FakeLedger):
        async def reserve_ahead(self, reservations: Sequence[Reservation], context: Context) -> Collection[str]:
            seen.append(context)
            return await super().reserve_ahead(reservations, context)

    world.ledger = Told()
    world.__post_init__()
    await world.often(3)

    assert seen[0] == Context("local", "usr_ada")


async def test_the_stock_is_on_record_before_anything_is_reserved_and_once() -> None:
    world = World(events=MemoryStockEvents(failures=1))

    await world.often(2)
    assert world.ledger.ahead == []
    await world.often(2, every=SPARE_S / 4)
    assert world.events.stocks == []  # at rest after the failure
    await world.often(20, every=SPARE_S / 4)

    assert world.events.stocks == [("local", world.workers.holder)]
    assert world.ledger.ahead


async def test_what_nobody_uses_in_time_is_returned_once() -> None:
    world = World()
    await world.often(10)

    world.clock.advance(SPARE_S / 2)
    await world.stock.return_unused()
    assert world.events.unused == []
    world.clock.advance(SPARE_S)
    await world.stock.return_unused()
    await world.stock.return_unused()

    assert set(world.events.unused) == unused(world)
    assert len(world.events.unused) == len(unused(world)) > 0
    assert await world.call() is None


def unused(world: World) -> set[str]:
    """The oldest are used first."""
    return {each.id for each in world.ledger.ahead[world.told["used"] :]}


async def test_one_that_is_too_old_is_not_taken_even_if_nobody_has_looked() -> None:
    world = World()
    await world.often(10)

    assert await world.call(after=SPARE_S + 0.001) is None
    await world.stock.return_unused()
    assert set(world.events.unused) == unused(world)


async def test_what_cannot_be_recorded_is_returned_at_the_next_look() -> None:
    world = World()
    await world.often(10)
    world.events.failures = 1
    world.clock.advance(2 * SPARE_S)

    await world.stock.return_unused()
    assert world.events.unused == []
    await world.stock.return_unused()
    assert set(world.events.unused) == unused(world)


async def test_one_given_back_is_returned_and_not_taken_again() -> None:
    world = World()
    await world.often(10)
    spare = await world.stock.take(WANTED, CONTEXT)
    assert spare is not None

    world.stock.give_back(spare)
    taken = await world.often(100)
    await world.stock.return_unused()

    assert spare.id not in taken
    assert world.events.unused == [spare.id]


async def test_where_little_is_left_nothing_is_made_and_calls_go_the_long_way_for_a_while() -> None:
    world = World()
    world.ledger.spares = 0

    assert set(await world.often(100)) == {None}
    asked = len(world.ledger.asked_ahead)
    assert asked == 1
    await world.often(1, every=SPARE_S)
    await world.often(5)
    assert len(world.ledger.asked_ahead) == 2


@pytest.mark.parametrize("refusal", [LedgerUnavailable("down"), LedgerRefused("BAD", RuntimeError("bad"))])
async def test_a_ledger_that_does_not_answer_or_refuses_all_is_left_alone_for_a_while(refusal: Exception) -> None:
    world = World(FakeLedger([refusal]))

    assert set(await world.often(50)) == {None}
    await world.stock.return_unused()
    assert world.events.unused == []
    assert await world.often(1, every=SPARE_S) == [None]
    assert None not in (await world.often(20))[2:]


async def test_what_the_ledger_may_have_made_or_not_is_returned_when_it_can_make_it_no_more() -> None:
    world = World(FakeLedger([LedgerUnavailable("no answer")]))
    await world.often(3)

    world.clock.advance(DOUBTFUL_S - 1)
    await world.stock.return_unused()
    assert world.events.unused == []
    assert not world.stock.is_certain
    world.clock.advance(2)
    await world.stock.return_unused()
    assert world.stock.is_certain
    assert world.events.unused == [f"{world.workers.holder}:{number}" for number in (1, 2, 3)]


class SlowLedger(FakeLedger):
    """Answers what is asked ahead once it may."""

    def __init__(self, refusals: Iterable[Exception | None] = ()) -> None:
        super().__init__(refusals)
        self.may_answer = asyncio.Event()

    async def reserve_ahead(self, reservations: Sequence[Reservation], context: Context) -> Collection[str]:
        await self.may_answer.wait()
        return await super().reserve_ahead(reservations, context)


async def on_their_way(*refusals: Exception) -> tuple[World, SlowLedger, int]:
    """A world where nothing is spare and so many are on their way, asked for by a call that went on without."""
    ledger = SlowLedger(refusals)
    world = World(ledger)
    assert await world.stock.take(WANTED, CONTEXT) is None
    world.clock.advance(0.01)
    assert await world.stock.take(WANTED, CONTEXT) is None  # what it asks for itself it does not wait for
    (shelf,) = world.stock._shelves.values()
    assert shelf.coming > 1
    return world, ledger, shelf.coming


async def waiting(world: World, calls: int) -> list["asyncio.Task[Spare | None]"]:
    """Calls that have gone as far as they can."""
    tasks = [asyncio.create_task(world.stock.take(WANTED, CONTEXT)) for _ in range(calls)]
    await asyncio.sleep(0)
    return tasks


async def test_calls_wait_for_those_on_their_way_and_no_more_than_there_will_be() -> None:
    world, ledger, _ = await on_their_way()
    (shelf,) = world.stock._shelves.values()

    calls = await waiting(world, 2 * KIND_MAX)
    on_their_own = [call for call in calls if call.done()]
    coming = shelf.coming
    assert shelf.waiting == len(calls) - len(on_their_own) == coming
    assert KIND_MAX / 2 <= coming <= KIND_MAX
    ledger.may_answer.set()
    spares = await asyncio.gather(*calls)

    assert {call.result() for call in on_their_own} == {None}
    assert {spare.id for spare in spares if spare} == {each.id for each in ledger.ahead}
    assert len(ledger.ahead) == world.told["used"] == coming
    assert shelf.waiting == shelf.coming == 0


@pytest.mark.parametrize("refusal", [LedgerUnavailable("down"), LedgerRefused("BAD", RuntimeError("bad"))])
async def test_who_waits_goes_on_without_once_none_will_come(refusal: Exception) -> None:
    world, ledger, _ = await on_their_way(refusal)
    calls = await waiting(world, 2)

    ledger.may_answer.set()

    assert await asyncio.gather(*calls) == [None, None]


async def test_where_fewer_come_than_were_asked_for_the_others_go_on_without() -> None:
    world, ledger, coming = await on_their_way()
    ledger.spares = 1
    calls = await waiting(world, coming)

    ledger.may_answer.set()

    assert sum(spare is not None for spare in await asyncio.gather(*calls)) == 1


async def test_a_call_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world, ledger, coming = await on_their_way()
    monkeypatch.setattr(stock_module, "COMING_S", 0.001)

    (call,) = await waiting(world, 1)
    assert await call is None

    ledger.may_answer.set()
    await asyncio.gather(*world.stock._making)
    assert len(ledger.ahead) == coming  # and are there for the next
    assert await world.stock.take(WANTED, CONTEXT) is not None


async def test_who_leaves_while_he_waits_takes_nothing_along() -> None:
    world, ledger, coming = await on_their_way()
    leaving, *staying = await waiting(world, coming)

    ledger.may_answer.set()
    leaving.cancel()
    spares = await asyncio.gather(*staying)
    (late,) = await waiting(world, 1)

    assert leaving.cancelled()
    assert None not in spares
    assert late.result() is not None


async def test_who_waits_gets_none_once_it_is_closed() -> None:
    world, ledger, _ = await on_their_way()
    calls = await waiting(world, 2)

    world.clock.advance(0.01)
    closing = asyncio.create_task(world.stock.close())
    await asyncio.sleep(0)
    ledger.may_answer.set()
    await closing

    assert await asyncio.gather(*calls) == [None, None]
    assert sorted(world.events.unused) == sorted(each.id for each in ledger.ahead) != []


async def test_nothing_is_made_or_taken_once_the_lock_is_in_doubt() -> None:
    world = World(spare_s=10 * TAKE_WITHIN_S)
    await world.often(10)
    made = len(world.ledger.ahead)
    world.workers.freeze()

    assert await world.call(after=TAKE_WITHIN_S - 0.1) is not None
    assert await world.call(after=0.2) is None
    assert set(await world.often(20)) == {None}
    assert len(world.ledger.ahead) == made
    await world.stock.return_unused()
    assert set(world.events.unused) == unused(world)


async def test_a_provider_may_be_asked_somewhat_longer_than_one_may_be_taken() -> None:
    world = World()
    await world.often(10)
    spare = await world.stock.take(WANTED, CONTEXT)
    assert spare is not None
    world.workers.freeze()

    world.clock.advance(ASK_WITHIN_S - 0.1)
    assert world.stock.may_ask(spare)
    world.clock.advance(0.2)
    assert not world.stock.may_ask(spare)


async def test_under_a_new_holder_a_new_stock_is_opened() -> None:
    world = World()
    await world.often(10)
    before = world.workers.holder
    world.workers.lose_lock()

    assert world.workers.holder != before
    await world.often(200)

    assert world.events.stocks == [("local", before), ("local", world.workers.holder)]
    assert world.ledger.ahead[-1].holder == world.workers.holder


async def test_once_closed_it_makes_and_gives_nothing_and_what_was_on_its_way_has_come() -> None:
    world = World()
    await world.often(1)
    await world.stock.take(WANTED, CONTEXT)
    assert world.stock._making

    await world.stock.close()

    assert not world.stock._making
    made = len(world.ledger.ahead)
    assert made > 0
    assert set(await world.often(10)) == {None}
    assert len(world.ledger.ahead) == made


async def test_what_calls_gave_back_at_their_end_is_returned_before_the_close() -> None:
    world = World()
    await world.often(10)
    spare = await world.stock.take(WANTED, CONTEXT)
    assert spare is not None
    world.stock.give_back(spare)

    await world.stock.close()

    assert world.events.unused[0] == spare.id


async def test_switched_off_it_makes_none() -> None:
    world = World(spare_s=0)

    assert set(await world.often(100)) == {None}
    assert world.ledger.ahead == []
    await world.stock.run()  # ends


async def test_no_more_are_spare_than_a_process_may_have() -> None:
    world = World()
    for kind in range(100):
        wanted = replace(WANTED, output_tokens_max=kind + 1)
        for _ in range(30):
            await world.call(wanted, after=0.00001)

    assert world.told["made"] - world.told["used"] == SPARES_MAX
    world.clock.advance(2 * SPARE_S)
    await world.stock.return_unused()
    await world.stock.return_unused()
    assert len(set(world.events.unused)) == SPARES_MAX
    await world.often(10)
    assert world.told["made"] - world.told["used"] > SPARES_MAX  # those returned count no more


async def test_kinds_that_nobody_asks_for_any_more_are_forgotten() -> None:
    world = World()
    for kind in range(100):
        await world.call(replace(WANTED, output_tokens_max=kind + 1))

    world.clock.advance(2 * SPARE_S)
    await world.stock.return_unused()

    assert world.stock._shelves == {}


@given(st.lists(st.floats(0, 2), max_size=200))
def test_a_shelf_never_asks_for_more_than_a_kind_may_have(steps: Iterable[float]) -> None:
    shelf, now = Shelf(), 0.0
    for number, step in enumerate(steps):
        now += step
        shelf.want(now)
        missing = shelf.missing(now)
        assert missing >= 0
        shelf.spares.extend(Spare(f"{number}:{each}", "local", "gw", now) for each in range(missing))
        assert len(shelf.spares) <= KIND_MAX
        if shelf.spares:
            shelf.spares.popleft()


@given(st.integers(0, 2**40))
async def test_a_bound_is_rounded_up_by_an_eighth_at_most(tokens: int) -> None:
    world = World()
    for _ in range(2):
        await world.call(replace(WANTED, input_tokens_max=tokens))

    made = world.ledger.ahead[0].input_tokens_max
    assert tokens <= made <= math.ceil(tokens * (1 + 1 / STEPS))
