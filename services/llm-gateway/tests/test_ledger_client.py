"""The ledger's client: one call for those who ask alone, one for all who ask meanwhile, and each answered for itself."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from eventlog.records import Context
from llm_gateway.clients import BATCH_MAX, GrpcLedger
from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.ports import Reservation
from servicekit.context import current_call
from servicekit.errors import (
    Aborted,
    BudgetExhausted,
    FailedPrecondition,
    PermissionDenied,
    ServiceError,
    Unavailable,
    Unimplemented,
    to_status,
)
from servicekit.retry import Backoff
from servicekit.telemetry import continuing
from synod.common.values import Attribution
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb

ACME = Context("acme", "usr_1", correlation="run_1")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WAIT_S = 10


@dataclass
class Stub:
    """A ledger that answers a call when it is let, and does with it what the test says."""

    calls: list[list[str]] = field(default_factory=list)
    items: list[pb.ReserveManyRequest.Item] = field(default_factory=list)
    in_the_name_of: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[str, ServiceError] = field(default_factory=dict)
    failures: list[ServiceError] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    knows_holders: bool = True
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    let: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def Reserve(self, request: pb.ReserveRequest, *, timeout: float) -> pb.Reservation:
        await self._arrive([request.reservation_id])
        if refusal := self.refusals.get(request.reservation_id):
            raise refusal
        self.held.append(request.reservation_id)
        return pb.Reservation(reservation_id=request.reservation_id)

    async def ReserveMany(self, request: pb.ReserveManyRequest, *, timeout: float) -> pb.ReserveManyResponse:
        self.items += request.items
        await self._arrive([item.reserve.reservation_id for item in request.items])
        return pb.ReserveManyResponse(outcomes=[self._outcome(item.reserve) for item in request.items])

    async def Release(self, request: pb.ReleaseRequest, *, timeout: float) -> pb.Reservation:
        self.released.append(request.reservation_id)
        return pb.Reservation(reservation_id=request.reservation_id)

    def _outcome(self, reserve: pb.ReserveRequest) -> pb.ReserveManyResponse.Outcome:
        id = reserve.reservation_id
        if refusal := self.refusals.get(id):
            return pb.ReserveManyResponse.Outcome(refusal=to_status(refusal, "cost-ledger").SerializeToString())
        self.held.append(id)
        holder = reserve.holder if self.knows_holders else ""
        return pb.ReserveManyResponse.Outcome(state=pb.RESERVATION_STATE_HELD, holder=holder)

    async def _arrive(self, ids: list[str]) -> None:
        principal = current_call().principal
        self.in_the_name_of.append((principal.tenant, principal.actor))
        async with self.came:
            self.calls.append(ids)
            self.came.notify_all()
        await self.let.acquire()
        if self.failures and len(ids) > 1:
            raise self.failures.pop(0)

    async def until_called(self, times: int) -> None:
        async with asyncio.timeout(WAIT_S), self.came:
            await self.came.wait_for(lambda: len(self.calls) >= times)

    def let_all(self) -> None:
        for _ in range(1_000):
            self.let.release()


def ledger_of(stub: Stub, timeout_s: float = WAIT_S) -> GrpcLedger:
    return GrpcLedger(stub, timeout_s, Backoff(initial_s=0.001, max_s=0.001))  # type: ignore[arg-type]


def reservation(id: str) -> Reservation:
    return Reservation(id, Attribution(agent="writer"), "simulator/sim-1", 10, 5, 60)


def asking(ledger: GrpcLedger, *ids: str, context: Context = ACME) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(ledger.reserve(reservation(id), context)) for id in ids]


async def outcomes(tasks: list[asyncio.Task[None]]) -> list[object]:
    async with asyncio.timeout(WAIT_S):
        return list(await asyncio.gather(*tasks, return_exceptions=True))


async def batched(stub: Stub, ledger: GrpcLedger, *ids: str) -> list[asyncio.Task[None]]:
    """Asks for `first`, and for the ids while that is under way."""
    (first,) = asking(ledger, "first")
    await stub.until_called(1)
    rest = asking(ledger, *ids)
    await asyncio.sleep(0)
    return [first, *rest]


async def test_who_asks_alone_is_asked_for_at_once_and_in_its_own_name() -> None:
    stub = Stub()
    stub.let_all()
    await ledger_of(stub).reserve(reservation("r1"), ACME)
    assert stub.calls == [["r1"]]
    assert stub.in_the_name_of == [("acme", "usr_1")]
    assert stub.items == []


async def test_what_is_asked_for_during_a_call_goes_out_together_and_in_order() -> None:
    stub = Stub()
    waiting = await batched(stub, ledger_of(stub), "a", "b", "c")
    stub.let_all()
    assert await outcomes(waiting) == [None] * 4
    assert stub.calls == [["first"], ["a", "b", "c"]]


async def test_every_item_of_a_batch_says_in_whose_name_and_trace_it_is_asked_for() -> None:
    stub = Stub()
    ledger = ledger_of(stub)
    waiting = await batched(stub, ledger)
    with continuing(TRACE):
        waiting += asking(ledger, "a")
    waiting += asking(ledger, "b", context=Context("acme", "agt_2", correlation="run_2"))
    await asyncio.sleep(0)
    stub.let_all()
    await outcomes(waiting)
    assert [(item.actor, item.correlation, item.traceparent) for item in stub.items] == [
        ("usr_1", "run_1", TRACE),
        ("agt_2", "run_2", ""),
    ]
    assert stub.in_the_name_of[1] == ("acme", "")


async def test_no_tenant_waits_for_another_or_shares_its_call() -> None:
    stub = Stub()
    ledger = ledger_of(stub)
    waiting = await batched(stub, ledger, "a")
    waiting += asking(ledger, "other", context=Context("globex", "usr_9"))
    await stub.until_called(2)
    assert stub.calls == [["first"], ["other"]]
    stub.let_all()
    await outcomes(waiting)
    assert stub.in_the_name_of == [("acme", "usr_1"), ("globex", "usr_9"), ("acme", "")]


async def test_an_item_that_is_refused_refuses_no_other() -> None:
    stub = Stub(refusals={"b": BudgetExhausted("team", 3, 10)})
    waiting = await batched(stub, ledger_of(stub), "a", "b", "c")
    stub.let_all()
    _, a, b, c = await outcomes(waiting)
    assert (a, c) == (None, None)
    assert isinstance(b, LedgerRefused)
    assert isinstance(b.answer, BudgetExhausted)
    assert b.answer.metadata["budget_id"] == "team"
    assert stub.held == ["first", "a", "c"]


async def test_an_item_that_the_book_was_too_busy_for_is_asked_for_again() -> None:
    stub = Stub(refusals={"a": Aborted("others were faster", reason="BOOK_CONTENDED")})
    waiting = await batched(stub, ledger_of(stub), "a", "b")
    stub.let.release()
    stub.let.release()
    await stub.until_called(3)
    stub.refusals.clear()
    stub.let_all()
    assert await outcomes(waiting) == [None] * 3
    assert stub.calls == [["first"], ["a", "b"], ["a"]]


async def test_items_of_a_batch_whose_connection_is_lost_are_each_asked_for_again() -> None:
    stub = Stub(failures=[Unavailable("connection lost")])
    waiting = await batched(stub, ledger_of(stub), "a", "b")
    stub.let_all()
    assert await outcomes(waiting) == [None] * 3
    assert sorted(id for call in stub.calls for id in call) == ["a", "a", "b", "b", "first"]


async def test_a_call_that_is_refused_as_a_whole_is_refused_to_each() -> None:
    stub = Stub(failures=[PermissionDenied("ledger.reserve")])
    waiting = await batched(stub, ledger_of(stub), "a", "b")
    stub.let_all()
    first, *rest = await outcomes(waiting)
    assert first is None
    assert all(isinstance(each, LedgerRefused) and isinstance(each.answer, PermissionDenied) for each in rest)


async def test_a_ledger_of_an_older_release_is_asked_one_by_one() -> None:
    stub = Stub(failures=[Unimplemented("no such method")])
    waiting = await batched(stub, ledger_of(stub), "a", "b")
    stub.let_all()
    assert await outcomes(waiting) == [None] * 3
    assert stub.calls == [["first"], ["a", "b"], ["a"], ["b"]]
    assert stub.in_the_name_of[2:] == [("acme", "usr_1")] * 2


async def test_who_gives_up_while_waiting_is_not_asked_for() -> None:
    stub = Stub()
    first, a, b = await batched(stub, ledger_of(stub), "a", "b")
    a.cancel()
    stub.let_all()
    await outcomes([first, a, b])
    assert stub.calls == [["first"], ["b"]]


@pytest.mark.parametrize("end", [lambda first: first.cancel(), lambda _: None])
async def test_the_others_go_on_however_the_call_before_them_ends(end: Callable[[asyncio.Task[None]], object]) -> None:
    stub = Stub(refusals={"first": BudgetExhausted("team", 0, 1)})
    first, a = await batched(stub, ledger_of(stub), "a")
    end(first)
    stub.let_all()
    gave_up, granted = await outcomes([first, a])
    assert isinstance(gave_up, asyncio.CancelledError | LedgerRefused)
    assert granted is None


async def test_group_04_who_waits_for_a_call_that_hangs_waits_no_longer_than_for_one_of_its_own() -> None:
    stub = Stub()
    waiting = await batched(stub, ledger_of(stub, timeout_s=0.01), "a")
    (_, a) = waiting
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(LedgerUnavailable, match="no answer within"):
            await a
    stub.let_all()
    assert await outcomes(waiting[:1]) == [None]


async def test_more_than_fit_into_a_batch_go_out_in_several() -> None:
    stub = Stub()
    waiting = await batched(stub, ledger_of(stub), *(f"r{number}" for number in range(BATCH_MAX + 2)))
    stub.let_all()
    assert await outcomes(waiting) == [None] * len(waiting)
    assert [len(call) for call in stub.calls] == [1, BATCH_MAX, 2]


# --- ahead of the calls ---


def ahead(*ids: str) -> list[Reservation]:
    return [replace(reservation(id), holder="gw_1.1") for id in ids]


async def test_what_is_made_ahead_is_asked_for_together_and_each_is_answered_for_itself() -> None:
    stub = Stub(refusals={"b": FailedPrecondition("little is left", reason="NOTHING_TO_SPARE")})
    stub.let_all()

    assert await ledger_of(stub).reserve_ahead(ahead("a", "b", "c"), ACME) == {"a", "c"}
    assert stub.calls == [["a", "b", "c"]]
    assert {(item.reserve.holder, item.actor, item.traceparent) for item in stub.items} == {("gw_1.1", "usr_1", "")}
    assert stub.released == []


async def test_it_waits_for_no_call_that_is_under_way() -> None:
    stub = Stub()
    ledger = ledger_of(stub)
    (waiting,) = asking(ledger, "first")
    await stub.until_called(1)

    made = asyncio.create_task(ledger.reserve_ahead(ahead("a"), ACME))
    await stub.until_called(2)
    stub.let_all()

    assert await made == {"a"}
    assert await outcomes([waiting]) == [None]


async def test_a_ledger_that_does_not_know_what_made_ahead_means_gets_it_back_at_once() -> None:
    stub = Stub(knows_holders=False)
    stub.let_all()

    assert await ledger_of(stub).reserve_ahead(ahead("a", "b"), ACME) == set()
    assert sorted(stub.released) == ["a", "b"]


async def test_what_fails_as_a_whole_is_not_asked_for_again() -> None:
    stub = Stub(failures=[Unavailable("starting", 1.0)])
    stub.let_all()

    with pytest.raises(LedgerUnavailable):
        await ledger_of(stub).reserve_ahead(ahead("a", "b"), ACME)
    assert stub.calls == [["a", "b"]]
