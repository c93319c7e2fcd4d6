"""The service as its clients see it: real gRPC, PostgreSQL and NATS.

Failure group 1 through gRPC. Group 18: the same request again gets the same answer and is charged once.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Literal

import grpc
import pytest
import pytest_asyncio
from cost_ledger.main import compose
from cost_ledger.prices import load_price_book
from cost_ledger.queries import Queries
from cost_ledger.settings import Settings
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from launcher.testing import RunningNats, RunningPostgres
from servicekit.auth import ANY_TENANT, TENANT
from servicekit.errors import (
    AlreadyExists,
    BudgetExhausted,
    BudgetSuspended,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceError,
    from_rpc_error,
    from_status,
)
from servicekit.paging import next_page_token
from servicekit.testing import FakeClock, Served, serve_in_process, settings_for
from synod.common.subjects import SHARED_TENANT
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIM = "simulator/sim-1"
WAIT_S = 30
VIEWS = {"spend", "budgets", "reservations", "model_usage", "tool_usage", "model_calls"}


TENANTS = count(1)

# One service for all tests of this file, each in a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(postgres_server: RunningPostgres, nats_url: str, clock: FakeClock) -> AsyncIterator[Served[Settings]]:
    with postgres_server.fresh_database() as dsn:
        async with serve_in_process(compose, settings_for(Settings, dsn, nats_url), clock=clock) as served:
            yield served


@pytest.fixture
def ledger(service: Served[Settings]) -> CostLedgerStub:
    return CostLedgerStub(service.connect(service.token(tenant=f"ledger-{next(TENANTS)}")))


def hold(reservation_id: str = "req_1:1", amount: int = 10, **more: object) -> pb.ReserveRequest:
    owner = pb.Attribution(agent="writer", run_id="run_2", root_run_id="run_1")
    values: dict[str, object] = {"upper_bound_nano_usd": amount, "attribution": owner}
    return pb.ReserveRequest(reservation_id=reservation_id, **(values | more))  # type: ignore[arg-type]


def settlement(reservation_id: str = "req_1:1", amount: int = 7) -> pb.SettleRequest:
    return pb.SettleRequest(
        reservation_id=reservation_id,
        amount_nano_usd=amount,
        free_of_charge=not amount,
        usage_source="provider_final",
    )


def budget(budget_id: str = "run_1", limit: int = 100, **more: object) -> pb.SetBudgetRequest:
    values: dict[str, object] = {"hard": True, "window": "lifetime"}
    return pb.SetBudgetRequest(budget_id=budget_id, limit_nano_usd=limit, **(values | more))  # type: ignore[arg-type]


def sim_price() -> pb.SetPriceRequest:
    return pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=1_000, output_pico_usd=2_000)


async def refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if await found():
                return
            await asyncio.sleep(0.01)


async def test_a_reservation_is_settled_by_its_usage_and_seen_in_budget_and_spend(ledger: CostLedgerStub) -> None:
    await ledger.SetPrice(sim_price())
    await ledger.SetBudget(budget(limit=10_000, scope=pb.Attribution(root_run_id="run_1")))
    held = await ledger.Reserve(hold(model=SIM, amount=0, input_tokens_max=100, output_tokens_max=50))
    assert (held.state, held.reserved_nano_usd) == (pb.RESERVATION_STATE_HELD, 200)
    assert (held.price_source, list(held.budget_ids)) == ("override", ["run_1"])
    used = [
        pb.UsageLine(direction="input", quantity=80),
        pb.UsageLine(direction="input", cache="read", quantity=10),
        pb.UsageLine(direction="output", quantity=20),
    ]
    settled = await ledger.Settle(pb.SettleRequest(reservation_id="req_1:1", usage=used, usage_source="provider_final"))
    assert (settled.state, settled.settled_nano_usd, settled.overrun_nano_usd) == (
        pb.RESERVATION_STATE_SETTLED,
        130,
        0,
    )
    state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (state.posted_nano_usd, state.pending_nano_usd, state.available_nano_usd) == (130, 0, 9_870)
    spend = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent", "model", "day"]))
    (row,) = spend.rows
    assert list(row.group) == ["writer", SIM, "2026-11-21"]
    assert (row.cost_nano_usd, row.input_tokens, row.output_tokens, row.calls) == (130, 90, 20, 1)
    assert spend.total_nano_usd == 130


async def test_group_01_200_concurrent_reservations_for_the_price_of_10_grant_exactly_10(
    ledger: CostLedgerStub,
) -> None:
    await ledger.SetBudget(budget(limit=100))
    outcomes = await asyncio.gather(
        *(ledger.Reserve(hold(f"r{number}")) for number in range(200)), return_exceptions=True
    )
    assert sum(isinstance(outcome, pb.Reservation) for outcome in outcomes) == 10
    refused = [from_rpc_error(outcome) for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(refused) == 190
    assert all(isinstance(error, BudgetExhausted) for error in refused)


def together(*items: pb.ReserveRequest, actors: Sequence[str] = ()) -> pb.ReserveManyRequest:
    names = actors or [""] * len(items)
    pairs = zip(items, names, strict=True)
    return pb.ReserveManyRequest(items=[pb.ReserveManyRequest.Item(reserve=item, actor=name) for item, name in pairs])


def refusals(answer: pb.ReserveManyResponse) -> list[ServiceError | None]:
    return [from_status(each.refusal) if each.refusal else None for each in answer.outcomes]


async def test_reservations_asked_for_together_are_each_answered_for_themselves(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget(limit=25))
    known = await ledger.Reserve(hold("known"))
    items = (hold("a"), hold("b"), hold("known"), hold("c", amount=-1), hold("d", amount=5), hold("a", amount=1))
    answer = await ledger.ReserveMany(together(*items))
    a, b, again, c, d, other = refusals(answer)
    assert (a, again, d) == (None, None, None)
    assert isinstance(b, BudgetExhausted)
    assert b.metadata == {"budget_id": "run_1", "available": "5", "required": "10"}
    assert isinstance(c, InvalidArgument)
    assert c.field == "upper_bound_nano_usd"
    assert isinstance(other, AlreadyExists)
    granted = [(each.state, each.reserved_nano_usd) for each in answer.outcomes if not each.refusal]
    assert granted == [(pb.RESERVATION_STATE_HELD, 10), (known.state, 10), (pb.RESERVATION_STATE_HELD, 5)]
    left = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (left.pending_nano_usd, left.available_nano_usd) == (25, 0)


async def test_group_18_a_batch_whose_answer_nobody_heard_may_be_asked_for_again_item_by_item(
    ledger: CostLedgerStub,
) -> None:
    await ledger.SetBudget(budget(limit=20))
    unheard = asyncio.ensure_future(ledger.ReserveMany(together(hold("a"), hold("b"))))

    async def is_decided() -> bool:
        return (await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))).pending_nano_usd > 0

    await until(is_decided)
    unheard.cancel()
    assert (await ledger.Reserve(hold("b"))).state == pb.RESERVATION_STATE_HELD
    assert refusals(await ledger.ReserveMany(together(hold("a"), hold("b")))) == [None, None]
    assert (await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))).pending_nano_usd == 20


async def test_reservations_ahead_of_their_calls_are_granted_while_twenty_times_as_much_is_left(
    ledger: CostLedgerStub,
) -> None:
    await ledger.SetBudget(budget(limit=220))
    stock = [hold(f"gw:{number}", holder="gw") for number in range(3)]
    for _ in range(2):  # the second time nothing is new
        answer = await ledger.ReserveMany(together(*stock, hold("now")))
        first, second, refused, now = answer.outcomes
        assert [(each.state, each.holder) for each in (first, second)] == [(pb.RESERVATION_STATE_HELD, "gw")] * 2
        assert (now.state, now.holder) == (pb.RESERVATION_STATE_HELD, "")
        error = from_status(refused.refusal)
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "NOTHING_TO_SPARE"
        assert error.metadata["budget_id"] == "run_1"
        assert "210 must be left" in error.message
    left = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (left.pending_nano_usd, left.available_nano_usd) == (30, 190)
    await ledger.SuspendBudget(pb.SuspendBudgetRequest(budget_id="run_1", reason="a leaked key"))
    assert isinstance(await refusal(ledger.Reserve(hold("gw:9", holder="gw"))), BudgetSuspended)


async def test_a_service_of_the_platform_says_in_whose_name_each_item_is_asked_for(service: Served[Settings]) -> None:
    tenant = f"ledger-{next(TENANTS)}"
    gateway = service.connect(service.token(tenant=ANY_TENANT, id="svc-llm-gateway", kind="service"))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    batch = together(hold("a"), hold("b"), hold("c"), actors=("usr_1", "agt_2", ""))
    batch.items[0].traceparent = trace
    batch.items[1].reserve.attribution.Clear()
    batch.items[1].correlation = "run_9"
    await CostLedgerStub(gateway).ReserveMany(batch, metadata=((TENANT, tenant),))
    log = EventLogStub(service.connect(service.token(tenant=tenant)))
    a, b, c = (await log.Read(log_pb.ReadRequest(page_size=10))).events
    assert [event.actor for event in (a, b, c)] == ["usr_1", "agt_2", "svc-llm-gateway"]
    assert [event.correlation_id for event in (a, b, c)] == ["run_1", "run_9", "run_1"]
    assert a.traceparent == trace
    assert b.traceparent.split("-")[1] == c.traceparent.split("-")[1] != trace.split("-")[1]


@pytest.mark.parametrize("kind", ["user", "service"])
async def test_nobody_of_a_tenant_reserves_in_anothers_name(
    service: Served[Settings], kind: Literal["user", "service"]
) -> None:
    token = service.token(tenant=f"ledger-{next(TENANTS)}", id="own", kind=kind)
    ledger = CostLedgerStub(service.connect(token))
    own, other = refusals(await ledger.ReserveMany(together(hold("a"), hold("b"), actors=("own", "usr_1"))))
    assert own is None
    assert isinstance(other, PermissionDenied)
    assert other.reason == "ACTOR_DENIED"
    assert (await refusal(ledger.GetReservation(pb.GetReservationRequest(reservation_id="b")))).reason == "NOT_FOUND"


async def test_more_items_than_a_book_decides_in_one_turn_are_refused(ledger: CostLedgerStub) -> None:
    error = await refusal(ledger.ReserveMany(together(*(hold(f"r{number}") for number in range(257)))))
    assert isinstance(error, InvalidArgument)
    assert error.field == "items"


async def test_group_01_two_replicas_on_one_database_grant_exactly_10_together(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serve_in_process(compose, settings)) for _ in range(2)]
        stubs = [CostLedgerStub(replica.channel) for replica in replicas]
        await stubs[0].SetBudget(budget(limit=100))
        outcomes = await asyncio.gather(
            *(stubs[number % 2].Reserve(hold(f"r{number}")) for number in range(200)), return_exceptions=True
        )
        assert sum(isinstance(outcome, pb.Reservation) for outcome in outcomes) == 10
        for stub in stubs:
            state = await stub.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
            assert (state.pending_nano_usd, state.available_nano_usd) == (100, 0)


async def test_a_refusal_names_the_budget_what_it_has_and_what_is_needed(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget(limit=9))
    error = await refusal(ledger.Reserve(hold(amount=10)))
    assert isinstance(error, BudgetExhausted)
    assert (error.budget_id, error.available, error.required) == ("run_1", 9, 10)
    assert "run_1 has 9 nano-USD left and the request needs 10" in error.message


async def test_an_unpriced_model_under_a_hard_budget_is_refused_with_a_remedy(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget())
    error = await refusal(ledger.Reserve(hold(model="openai/gpt-4o-nope", amount=0, input_tokens_max=1)))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "UNPRICED_MODEL"
    assert "synod prices set openai/gpt-4o-nope IN OUT (SetPrice)" in error.message
    assert "priced is: openai/gpt-4o" in error.message


async def test_group_18_the_same_reservation_again_is_the_same_answer_and_other_content_is_refused(
    ledger: CostLedgerStub,
) -> None:
    first = await ledger.Reserve(hold(amount=10))
    assert await ledger.Reserve(hold(amount=10)) == first
    error = await refusal(ledger.Reserve(hold(amount=11)))
    assert isinstance(error, AlreadyExists)
    assert "use another id" in error.message


async def test_group_03_a_settlement_twice_posts_once_and_an_overrun_is_shown(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget())
    await ledger.Reserve(hold(amount=10))
    settled = await ledger.Settle(settlement(amount=15))
    assert (settled.settled_nano_usd, settled.overrun_nano_usd) == (15, 5)
    assert await ledger.Settle(settlement(amount=99)) == settled
    state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert state.posted_nano_usd == 15


async def test_release_frees_the_hold_and_is_refused_after_settlement(ledger: CostLedgerStub) -> None:
    await ledger.Reserve(hold("a"))
    released = await ledger.Release(pb.ReleaseRequest(reservation_id="a", reason="never dispatched"))
    assert released.state == pb.RESERVATION_STATE_RELEASED
    await ledger.Reserve(hold("b"))
    await ledger.Settle(settlement("b"))
    error = await refusal(ledger.Release(pb.ReleaseRequest(reservation_id="b", reason="")))
    assert error.reason == "RESERVATION_SETTLED"
    spend = await ledger.QuerySpend(pb.QuerySpendRequest())
    assert [(row.cost_nano_usd, row.pending_nano_usd, row.calls) for row in spend.rows] == [(7, 0, 1)]


async def test_group_03_a_hold_without_outcome_moves_to_suspense_and_may_be_settled_late(
    ledger: CostLedgerStub, clock: FakeClock
) -> None:
    await ledger.SetBudget(budget())
    await ledger.Reserve(hold(ttl=Duration(seconds=60)))
    clock.advance(61)

    async def in_suspense() -> bool:
        found = await ledger.GetReservation(pb.GetReservationRequest(reservation_id="req_1:1"))
        return found.state == pb.RESERVATION_STATE_SUSPENSE

    await until(in_suspense)
    state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (state.pending_nano_usd, state.suspense, state.available_nano_usd) == (10, 10, 90)
    settled = await ledger.Settle(settlement(amount=7))
    assert settled.state == pb.RESERVATION_STATE_SETTLED
    state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (state.posted_nano_usd, state.pending_nano_usd, state.suspense) == (7, 0, 0)


async def test_group_03_what_is_in_suspense_is_listed_in_pages_until_it_ends(
    service: Served[Settings], ledger: CostLedgerStub, clock: FakeClock
) -> None:
    await ledger.SetBudget(budget())
    names = ["late 1", "z", "a", "billed", "unbilled"]
    await ledger.Reserve(hold(names[0], ttl=Duration(seconds=90)))
    clock.advance(10)
    for name in names[1:]:
        await ledger.Reserve(hold(name, ttl=Duration(seconds=60)))
    await ledger.Reserve(hold("under way", ttl=Duration(seconds=600)))

    async def listed(size: int) -> list[str]:
        token, found = "", list[str]()
        while True:
            page = await ledger.ListSuspense(pb.ListSuspenseRequest(page_size=size, page_token=token))
            found += [each.reservation_id for each in page.reservations]
            if not (token := page.next_page_token):
                return found

    assert await listed(2) == []
    clock.advance(90)

    async def all_are() -> bool:
        return len(await listed(10)) == len(names)

    await until(all_are)
    for size in (1, 2, 5, 6):
        assert await listed(size) == ["late 1", "a", "billed", "unbilled", "z"]
    (status,) = (await ledger.ListBudgets(pb.ListBudgetsRequest())).budgets
    assert status == await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
    assert (status.suspense, status.pending) == (50, 60)

    await ledger.Settle(settlement("billed"))
    await ledger.Release(pb.ReleaseRequest(reservation_id="unbilled", reason="not in the provider's list"))
    assert await listed(10) == ["late 1", "a", "z"]
    other = CostLedgerStub(service.connect(service.token(tenant="globex")))
    assert not (await other.ListSuspense(pb.ListSuspenseRequest())).reservations
    error = await refusal(ledger.ListSuspense(pb.ListSuspenseRequest(page_token=next_page_token(["not a time"], 1))))
    assert isinstance(error, InvalidArgument)
    assert error.field == "page_token"


async def test_budgets_are_listed_in_pages_and_as_get_shows_them(ledger: CostLedgerStub) -> None:
    for name in ("c", "a", "b"):
        await ledger.SetBudget(budget(name, window="day"))
    await ledger.Reserve(hold())
    first = await ledger.ListBudgets(pb.ListBudgetsRequest(page_size=2))
    second = await ledger.ListBudgets(pb.ListBudgetsRequest(page_size=2, page_token=first.next_page_token))
    listed = [*first.budgets, *second.budgets]
    assert listed == [await ledger.GetBudget(pb.GetBudgetRequest(budget_id=name)) for name in ("a", "b", "c")]
    assert (listed[0].pending_nano_usd, listed[0].window_start) == (10, "2026-11-21")
    assert second.next_page_token == ""


async def test_a_budget_keeps_its_scope(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget())
    assert (await ledger.SetBudget(budget(limit=500))).limit_nano_usd == 500
    error = await refusal(ledger.SetBudget(budget(scope=pb.Attribution(agent="writer"))))
    assert error.reason == "BUDGET_FIXED"


async def test_a_suspended_budget_refuses_with_its_reason_until_it_is_resumed(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget())
    await ledger.Reserve(hold("early"))
    stopped = await ledger.SuspendBudget(pb.SuspendBudgetRequest(budget_id="run_1", reason="a leaked key"))
    assert (stopped.suspended_for, stopped.pending) == ("a leaked key", 10)
    error = await refusal(ledger.Reserve(hold("late")))
    assert isinstance(error, BudgetSuspended)
    assert (error.budget_id, error.retryable, "a leaked key" in error.message) == ("run_1", False, True)
    assert (await ledger.Settle(settlement("early"))).settled_nano_usd == 7
    await ledger.SetBudget(budget(limit=200))
    (listed,) = (await ledger.ListBudgets(pb.ListBudgetsRequest())).budgets
    assert (listed.limit, listed.posted, listed.suspended_for) == (200, 7, "a leaked key")
    assert (await ledger.ResumeBudget(pb.ResumeBudgetRequest(budget_id="run_1"))).suspended_for == ""
    assert (await ledger.Reserve(hold("late"))).state == pb.RESERVATION_STATE_HELD
    (listed,) = (await ledger.ListBudgets(pb.ListBudgetsRequest())).budgets
    assert (listed.suspended_for, listed.pending) == ("", 10)


async def test_a_budget_is_suspended_for_a_reason_and_by_a_name_that_exists(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget())
    error = await refusal(ledger.SuspendBudget(pb.SuspendBudgetRequest(budget_id="run_1")))
    assert isinstance(error, InvalidArgument)
    assert error.field == "reason"
    error = await refusal(ledger.ResumeBudget(pb.ResumeBudgetRequest(budget_id="run_2")))
    assert isinstance(error, NotFound)
    assert "run_1" in error.message


async def test_an_unknown_budget_is_answered_with_similar_names(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget("team-monthly"))
    error = await refusal(ledger.GetBudget(pb.GetBudgetRequest(budget_id="team-montly")))
    assert isinstance(error, NotFound)
    assert "team-monthly" in error.message


async def test_spend_is_grouped_and_filtered_by_any_attribution(ledger: CostLedgerStub) -> None:
    for number, (agent, tool) in enumerate([("writer", ""), ("writer", "sql"), ("analyst", "sql")]):
        owner = pb.Attribution(agent=agent, tool=tool, run_id=f"run_{number}", user_id="usr_1")
        await ledger.Reserve(hold(f"r{number}", attribution=owner))
        await ledger.Settle(settlement(f"r{number}", amount=10**number))
    by_agent = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent"]))
    assert [(row.group[0], row.cost_nano_usd) for row in by_agent.rows] == [("analyst", 100), ("writer", 11)]
    sql = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent"], filter=pb.Attribution(tool="sql")))
    assert [(row.group[0], row.cost_nano_usd) for row in sql.rows] == [("analyst", 100), ("writer", 10)]
    # A run that belongs to no team is its own root.
    root = await ledger.QuerySpend(pb.QuerySpendRequest(filter=pb.Attribution(root_run_id="run_2")))
    assert root.total_nano_usd == 100


async def test_spend_of_a_time_that_ends_before_it_begins_is_refused_with_both_moments(ledger: CostLedgerStub) -> None:
    request = pb.QuerySpendRequest(until=Timestamp(seconds=3600))
    getattr(request, "from").FromSeconds(7200)
    error = await refusal(ledger.QuerySpend(request))
    assert isinstance(error, InvalidArgument)
    assert error.field == "until"
    assert error.message.endswith("1970-01-01T01:00:00+00:00': must be after from, 1970-01-01T02:00:00+00:00")


async def test_tags_are_kept_with_a_cost_and_choose_it_again(ledger: CostLedgerStub) -> None:
    for id, words in (("r1", {"team": "search", "feature": "chat"}), ("r2", {"team": "ads"}), ("r3", {})):
        held = await ledger.Reserve(hold(id, attribution=pb.Attribution(agent="writer", tags=words)))
        assert dict(held.attribution.tags) == words
        await ledger.Settle(settlement(id))
    search = pb.Attribution(tags={"team": "search"})
    spent = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent"], filter=search))
    assert [(list(row.group), row.calls) for row in spent.rows] == [(["writer"], 1)]
    pages = [page async for page in ledger.ExportSpend(pb.ExportSpendRequest(filter=search))]
    (exported,) = (charge for page in pages for charge in page.charges)
    assert (exported.id, dict(exported.attribution.tags)) == ("r1", {"team": "search", "feature": "chat"})
    by_team = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["tag:team", "agent"]))
    assert sorted(list(row.group) for row in by_team.rows) == [["", "writer"], ["ads", "writer"], ["search", "writer"]]
    error = await refusal(ledger.QuerySpend(pb.QuerySpendRequest(group_by=["tag:'); drop"])))
    assert isinstance(error, InvalidArgument)
    assert error.field == "group_by"
    both = pb.Attribution(tags={"team": "search", "feature": "mail"})
    assert not (await ledger.QuerySpend(pb.QuerySpendRequest(filter=both))).rows


async def test_the_same_id_with_other_tags_is_another_request(ledger: CostLedgerStub) -> None:
    await ledger.Reserve(hold("r1", attribution=pb.Attribution(tags={"team": "search"})))
    again = await ledger.Reserve(hold("r1", attribution=pb.Attribution(tags={"team": "search"})))
    assert again.state == pb.RESERVATION_STATE_HELD
    error = await refusal(ledger.Reserve(hold("r1", attribution=pb.Attribution(tags={"team": "ads"}))))
    assert isinstance(error, AlreadyExists)


async def test_tags_that_are_none_are_refused_by_name_and_budgets_take_none(ledger: CostLedgerStub) -> None:
    error = await refusal(ledger.Reserve(hold(attribution=pb.Attribution(tags={"team": ""}))))
    assert isinstance(error, InvalidArgument)
    assert error.field == "attribution.tags.team"
    error = await refusal(ledger.SetBudget(budget(scope=pb.Attribution(tags={"team": "search"}))))
    assert isinstance(error, InvalidArgument)
    assert error.field == "scope.tags"


async def test_spend_is_limited_in_time_half_open(ledger: CostLedgerStub, clock: FakeClock) -> None:
    await ledger.Reserve(hold("before"))
    clock.advance(60)
    await ledger.Reserve(hold("after", amount=20))
    boundary = Timestamp()
    boundary.FromDatetime(clock.now())
    early = await ledger.QuerySpend(pb.QuerySpendRequest(until=boundary))
    late = await ledger.QuerySpend(pb.QuerySpendRequest(**{"from": boundary}))  # type: ignore[arg-type]
    assert [row.pending_nano_usd for row in (*early.rows, *late.rows)] == [10, 20]


async def test_spend_of_nothing_is_no_row(ledger: CostLedgerStub) -> None:
    answer = await ledger.QuerySpend(pb.QuerySpendRequest())
    assert (list(answer.rows), answer.total_nano_usd) == ([], 0)


async def test_prices_are_listed_from_the_book_with_the_tenants_own_first(ledger: CostLedgerStub) -> None:
    set_ = await ledger.SetPrice(sim_price())
    assert (set_.source, set_.cache_read_pico_usd) == ("override", 1_000)
    listed = await ledger.ListPrices(pb.ListPricesRequest(provider="simulator"))
    assert list(listed.prices) == [set_]
    openai = await ledger.ListPrices(pb.ListPricesRequest(provider="openai", page_size=1000))
    gpt = next(price for price in openai.prices if price.model == "gpt-5.5")
    assert (gpt.input_pico_usd, gpt.output_pico_usd, gpt.source) == (5_000_000, 30_000_000, "book")
    assert openai.price_version.startswith("genai-prices ")


async def test_a_discount_on_a_provider_is_in_its_prices_and_in_what_a_call_costs(ledger: CostLedgerStub) -> None:
    async def prices() -> pb.Price:
        listed = await ledger.ListPrices(pb.ListPricesRequest(provider="openai", page_size=1_000))
        return next(price for price in listed.prices if price.model == "gpt-4o")

    full = await prices()
    made = await ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="openai", factor_ppm=900_000))
    assert (made.provider, made.model, made.factor_ppm) == ("openai", "", 900_000)
    found = await prices()
    assert found.input_pico_usd * 10 == full.input_pico_usd * 9
    assert (found.source, found.price_version) == ("book", f"{full.price_version} at 900000 ppm")
    wanted = pb.ReserveRequest(reservation_id="r1", model="openai/gpt-4o", output_tokens_max=1_000)
    held = await ledger.Reserve(wanted)
    assert held.reserved_nano_usd * 10_000 == full.output_pico_usd * 9 * 1_000


async def test_prices_come_in_pages_without_gap_or_repetition(ledger: CostLedgerStub) -> None:
    names: list[str] = []
    token = ""
    while True:
        page = await ledger.ListPrices(pb.ListPricesRequest(page_size=1000, page_token=token))
        names += [f"{price.provider}/{price.model}" for price in page.prices]
        token = page.next_page_token
        if not token:
            break
    assert len(names) > 2_000
    assert names == sorted(set(names))


async def test_a_renewed_hold_expires_later(ledger: CostLedgerStub, clock: FakeClock) -> None:
    await ledger.Reserve(hold("kept", ttl=Duration(seconds=60)))
    await ledger.Reserve(hold("left", ttl=Duration(seconds=60)))
    clock.advance(30)
    renewal = pb.RenewReservationRequest(reservation_id="kept", ttl=Duration(seconds=120))
    renewed = await ledger.RenewReservation(renewal)
    assert renewed.expires_at.ToDatetime(UTC) == clock.now() + timedelta(seconds=120)
    clock.advance(60)

    async def state(name: str) -> pb.ReservationState.ValueType:
        return (await ledger.GetReservation(pb.GetReservationRequest(reservation_id=name))).state

    async def left_expired() -> bool:
        return await state("left") == pb.RESERVATION_STATE_SUSPENSE

    await until(left_expired)
    assert await state("kept") == pb.RESERVATION_STATE_HELD
    # A hold in suspense still counts; renewing it changes nothing.
    again = await ledger.RenewReservation(pb.RenewReservationRequest(reservation_id="left"))
    assert again.state == pb.RESERVATION_STATE_SUSPENSE
    clock.advance(60)

    async def kept_expired() -> bool:
        return await state("kept") == pb.RESERVATION_STATE_SUSPENSE

    await until(kept_expired)
    await ledger.Settle(settlement("kept"))
    error = await refusal(ledger.RenewReservation(renewal))
    assert (error.reason, "is settled" in error.message) == ("RESERVATION_CLOSED", True)


async def test_group_14_batch_is_reserved_and_settled_at_its_price_and_a_downgrade_at_what_was_billed(
    ledger: CostLedgerStub,
) -> None:
    asked = {"model": "openai/gpt-5.5", "amount": 0, "input_tokens_max": 1_000}
    batch, fast = {"processing": "batch"}, {"service_tier": "fast"}
    held = [
        await ledger.Reserve(hold(f"r{n}", price_context=terms, **asked)) for n, terms in enumerate([{}, batch, fast])
    ]
    assert [each.reserved_nano_usd for each in held] == [5_000_000, 2_500_000, 12_500_000]
    assert held[1].price_context == "processing=batch"
    used = [pb.UsageLine(direction="input", quantity=1_000)]
    bill = pb.SettleRequest(reservation_id="r2", usage=used, usage_source="provider_final")
    bill.price_context["service_tier"] = "default"
    downgraded = await ledger.Settle(bill)
    assert (downgraded.settled_nano_usd, downgraded.price_context) == (5_000_000, "")


CONTROLS = ["a\x00b", "a\nb", "a\x7fb", "a\x85b"]


@pytest.mark.parametrize("text", CONTROLS)
@pytest.mark.parametrize("field", ["user_id", "run_id", "root_run_id", "model"])
async def test_a_control_character_is_refused_by_the_name_of_its_field(
    ledger: CostLedgerStub, field: str, text: str
) -> None:
    asked = hold(attribution=pb.Attribution(**{field: text}))
    error = await refusal(ledger.Reserve(asked))
    assert isinstance(error, InvalidArgument)
    assert (error.field, "control character" in error.problem) == (f"attribution.{field}", True)
    answer = await ledger.ReserveMany(
        pb.ReserveManyRequest(
            items=[
                pb.ReserveManyRequest.Item(reserve=hold("before")),
                pb.ReserveManyRequest.Item(reserve=asked),
                pb.ReserveManyRequest.Item(reserve=hold("after"), correlation=text),
                pb.ReserveManyRequest.Item(reserve=hold("last")),
            ]
        )
    )
    assert [each.state for each in answer.outcomes] == [
        pb.RESERVATION_STATE_HELD,
        pb.RESERVATION_STATE_UNSPECIFIED,
        pb.RESERVATION_STATE_UNSPECIFIED,
        pb.RESERVATION_STATE_HELD,
    ]
    assert [from_status(each.refusal).reason for each in answer.outcomes if each.refusal] == ["INVALID_ARGUMENT"] * 2


@pytest.mark.parametrize("text", CONTROLS)
async def test_no_name_or_reason_has_a_control_character(ledger: CostLedgerStub, text: str) -> None:
    await ledger.Reserve(hold())
    await ledger.SetBudget(budget())
    used = pb.UsageLine(direction="input", quantity=1, unit=text)
    filtered = pb.Attribution(user_id=text)
    calls = {
        "reservation_id": ledger.Reserve(hold(text)),
        "holder": ledger.Reserve(hold("other", holder=text)),
        "usage.unit": ledger.Settle(
            pb.SettleRequest(reservation_id="req_1:1", usage=[used], usage_source="provider_final")
        ),
        "reason": ledger.Release(pb.ReleaseRequest(reservation_id="req_1:1", reason=text)),
        "scope.agent": ledger.SetBudget(budget("other", scope=pb.Attribution(agent=text))),
        "reason ": ledger.SuspendBudget(pb.SuspendBudgetRequest(budget_id="run_1", reason=text)),
        "model": ledger.SetPrice(pb.SetPriceRequest(provider="simulator", model=text)),
        "reservation_id ": ledger.GetReservation(pb.GetReservationRequest(reservation_id=text)),
        "filter.user_id": ledger.QuerySpend(pb.QuerySpendRequest(filter=filtered)),
    }
    for field, call in calls.items():
        error = await refusal(call)
        assert isinstance(error, InvalidArgument), field
        assert error.field == field.strip()


async def test_a_run_whose_name_no_header_takes_is_refused_and_other_names_may_be_in_any_script(
    ledger: CostLedgerStub,
) -> None:
    error = await refusal(ledger.Reserve(hold(attribution=pb.Attribution(run_id="run\u00a01"))))
    assert isinstance(error, InvalidArgument)
    assert error.field == "attribution.run_id"
    held = await ledger.Reserve(hold(attribution=pb.Attribution(user_id="Zoë\u00a0Łuk\u200dasz 李")))
    assert held.attribution.user_id == "Zoë\u00a0Łuk\u200dasz 李"


async def test_a_cost_counts_in_the_budgets_of_the_model_that_is_asked_for(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget(limit=1, scope=pb.Attribution(model="openai/gpt-5.5")))
    asked = hold(
        model="openai/gpt-5.5", amount=0, input_tokens_max=10, attribution=pb.Attribution(model="openai/gpt-4o")
    )
    error = await refusal(ledger.Reserve(asked))
    assert isinstance(error, InvalidArgument)
    assert error.field == "attribution.model"
    for attributed, model in (
        ("openai/gpt-5.5", "openai/gpt-5.5"),
        ("openai/gpt-5.5", "openai/GPT-5.5"),
        ("", "openai/GPT-5.5"),
    ):
        asked.attribution.model, asked.model = attributed, model
        assert isinstance(await refusal(ledger.Reserve(asked)), BudgetExhausted)


async def test_what_no_call_can_cost_is_refused_and_nothing_is_held(ledger: CostLedgerStub) -> None:
    await ledger.SetBudget(budget("soft", 10**18, hard=False))
    dollar = pb.SetPriceRequest(provider="simulator", model="sim-1", input_pico_usd=10**12, output_pico_usd=10**12)
    await ledger.SetPrice(dollar)
    for asked in (hold(amount=10**15 + 1), hold(model=SIM, amount=0, input_tokens_max=10**12)):
        assert isinstance(await refusal(ledger.Reserve(asked)), InvalidArgument)
    await ledger.Reserve(hold(amount=10**15))
    found = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="soft"))
    assert (found.pending_nano_usd, found.available_nano_usd) == (10**15, 10**18 - 10**15)


async def test_terms_without_a_price_are_refused_under_a_hard_budget_and_those_with_one_are_told(
    ledger: CostLedgerStub,
) -> None:
    await ledger.SetBudget(budget(limit=10**12))
    asked = hold(model="openai/gpt-5.5", amount=0, input_tokens_max=1, price_context={"service_tier": "ultrafast"})
    error = await refusal(ledger.Reserve(asked))
    assert error.reason == "UNPRICED_MODEL"
    assert "for service_tier=ultrafast" in error.message
    assert "processing=batch" in error.message


async def test_a_quota_for_each_conversation_refuses_in_its_unit_and_names_whose_it_is(ledger: CostLedgerStub) -> None:
    rules = {"limit_nano_usd": 0, "limit_quantity": 100, "unit": "tokens", "per": "conversation_id"}
    await ledger.SetBudget(pb.SetBudgetRequest(budget_id="talk", hard=True, window="lifetime", **rules))  # type: ignore[arg-type]
    owner = pb.Attribution(conversation_id="c1")
    await ledger.SetPrice(sim_price())
    asked = {"model": SIM, "amount": 0, "attribution": owner, "input_tokens_max": 60}
    await ledger.Reserve(hold("first", **asked))
    error = await refusal(ledger.Reserve(hold("second", **asked)))
    assert isinstance(error, BudgetExhausted)
    assert (error.budget_id, error.available, error.required) == ("talk", 40, 60)
    assert "for c1 has 40 tokens left" in error.message
    shown = [await ledger.GetBudget(pb.GetBudgetRequest(budget_id="talk", share=share)) for share in ("c1", "c2")]
    assert [(each.pending, each.available, each.unit) for each in shown] == [(60, 40, "tokens"), (0, 100, "tokens")]


async def test_a_tool_reserves_time_and_money_and_settles_what_it_used(ledger: CostLedgerStub) -> None:
    quota = {"limit_nano_usd": 0, "limit_quantity": 10_000, "unit": "tool_ms", "window": "rolling"}
    await ledger.SetBudget(
        pb.SetBudgetRequest(budget_id="time", hard=True, rolling=Duration(seconds=3_600), **quota)  # type: ignore[arg-type]
    )
    bound = [pb.Quantity(unit="tool_ms", quantity=8_000)]
    await ledger.Reserve(hold("call_1", quantities=bound))
    assert isinstance(await refusal(ledger.Reserve(hold("call_2", quantities=bound))), BudgetExhausted)
    done = pb.SettleRequest(reservation_id="call_1", amount_nano_usd=4, usage_source="provider_final")
    done.quantities.add(unit="tool_ms", quantity=1_500)
    await ledger.Settle(done)
    state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="time"))
    assert (state.posted, state.pending, state.available) == (1_500, 0, 8_500)
    (listed,) = (await ledger.ListBudgets(pb.ListBudgetsRequest())).budgets
    assert listed == state


async def test_a_price_of_ones_own_may_have_tiers_fees_and_other_units(ledger: CostLedgerStub) -> None:
    price = sim_price()
    price.rates.add(unit="input", pico_usd=3_000, above_input_tokens=100)
    price.rates.add(unit="requests", pico_usd=7_000)
    price.rates.add(unit="input_audio", pico_usd=10_000)
    await ledger.SetPrice(price)
    for name, tokens, wanted in (("r1", 100, 107), ("r2", 101, 310)):
        await ledger.Reserve(hold(name, model=SIM, amount=0, input_tokens_max=tokens))
        used = [pb.UsageLine(direction="input", quantity=tokens)]
        settled = await ledger.Settle(pb.SettleRequest(reservation_id=name, usage=used, usage_source="provider_final"))
        assert (settled.reserved_nano_usd, settled.settled_nano_usd) == (wanted, wanted)
    heard = await ledger.Reserve(hold("r3", model=SIM, amount=0, input_tokens_max=10, modalities=["audio"]))
    assert heard.reserved_nano_usd == 107


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (hold(reservation_id=""), "reservation_id"),
        (hold(amount=-1), "upper_bound_nano_usd"),
        (hold(amount=0), "model"),
        (hold(model="gpt-5.5"), "model"),
        (hold(ttl=Duration(seconds=86_401)), "ttl"),
        (hold(model=SIM, input_tokens_max=-1), "input_tokens_max"),
        (hold(attribution=pb.Attribution(tenant_id="globex")), "attribution.tenant_id"),
        (hold(attribution=pb.Attribution(agent="a" * 300)), "attribution.agent"),
        (hold(quantities=[pb.Quantity(unit="miles", quantity=1)]), "quantities.unit"),
        (hold(quantities=[pb.Quantity(unit="tool_ms", quantity=-1)]), "quantities.quantity"),
        (hold(quantities=[pb.Quantity(unit="calls")] * 2), "quantities.unit"),
        (hold(modalities=["smell"]), "modalities"),
        (hold(price_context={"service tier": "flex"}), "price_context"),
        (hold(holder="h" * 257), "holder"),
    ],
)
async def test_a_wrong_reservation_is_refused_by_its_field(
    ledger: CostLedgerStub, request_: pb.ReserveRequest, field: str
) -> None:
    error = await refusal(ledger.Reserve(request_))
    assert isinstance(error, InvalidArgument)
    assert error.field == field


async def _share_of_a_whole(ledger: CostLedgerStub) -> pb.Budget:
    await ledger.SetBudget(budget("whole"))
    return await ledger.GetBudget(pb.GetBudgetRequest(budget_id="whole", share="c1"))


async def test_other_wrong_requests_are_refused_by_their_field(ledger: CostLedgerStub) -> None:
    wrong = pb.UsageLine(direction="sideways", quantity=1)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "window": lambda: ledger.SetBudget(budget(window="fortnight")),
        "budget_id": lambda: ledger.SetBudget(budget("two words")),
        "time_zone": lambda: ledger.SetBudget(budget(time_zone="Europe/Berlni")),
        "rolling": lambda: ledger.SetBudget(budget(window="rolling", rolling=Duration(seconds=5))),
        "per": lambda: ledger.SetBudget(budget(per="conversation")),
        "unit": lambda: ledger.SetBudget(budget(unit="token")),
        "limit_quantity": lambda: ledger.SetBudget(budget(limit_quantity=5)),
        "share": lambda: _share_of_a_whole(ledger),
        "group_by": lambda: ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agnet"])),
        "page_size": lambda: ledger.ListBudgets(pb.ListBudgetsRequest(page_size=1001)),
        "page_token": lambda: ledger.ListPrices(pb.ListPricesRequest(page_token="!")),
        "usage.direction": lambda: ledger.Settle(
            pb.SettleRequest(reservation_id="r", usage=[wrong], usage_source="provider_final")
        ),
        "usage": lambda: ledger.Settle(pb.SettleRequest(reservation_id="r", usage_source="provider_final")),
        "free_of_charge": lambda: ledger.Settle(
            pb.SettleRequest(reservation_id="r", amount_nano_usd=1, free_of_charge=True, usage_source="provider_final")
        ),
        "ttl": lambda: ledger.Reserve(pb.ReserveRequest(reservation_id="r", ttl=Duration(seconds=10**14))),
        "until": lambda: ledger.QuerySpend(pb.QuerySpendRequest(until=Timestamp(seconds=10**13))),
        "usage_source": lambda: ledger.Settle(pb.SettleRequest(reservation_id="r", amount_nano_usd=1)),
        "provider": lambda: ledger.SetPrice(pb.SetPriceRequest(model="sim-1")),
        "factor_ppm": lambda: ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="openai")),
        "scope.model": lambda: ledger.SetBudget(budget(scope=pb.Attribution(model="gpt-5.5"))),
        "model": lambda: ledger.SetPrice(pb.SetPriceRequest(provider="openai", model="openai/gpt-5.5")),
    }
    for field, call in calls.items():
        error = await refusal(call())
        assert isinstance(error, InvalidArgument)
        assert error.field == field


@pytest.mark.parametrize("seconds", [10**14, -(10**14), -1])
async def test_a_length_of_time_beyond_all_bounds_is_refused_by_its_field(ledger: CostLedgerStub, seconds: int) -> None:
    endless = Duration(seconds=seconds)
    renewal = pb.RenewReservationRequest(reservation_id="r", ttl=endless)
    for call, field in (
        (ledger.RenewReservation(renewal), "ttl"),
        (ledger.SetBudget(budget(window="rolling", rolling=endless)), "rolling"),
    ):
        error = await refusal(call)
        assert isinstance(error, InvalidArgument)
        assert error.field == field


async def test_a_budget_on_a_model_holds_its_snapshots(ledger: CostLedgerStub) -> None:
    scope = pb.Attribution(model="openai/gpt-5.5")
    await ledger.SetBudget(budget("none", limit=0, scope=scope))
    await ledger.SetPrice(pb.SetPriceRequest(provider="openai", model="gpt-5.5-2026-04-01", input_pico_usd=1_000))
    asked = pb.ReserveRequest(reservation_id="r", model="openai/gpt-5.5-2026-04-01", upper_bound_nano_usd=1)
    assert isinstance(await refusal(ledger.Reserve(asked)), BudgetExhausted)


async def test_a_provider_that_is_likely_a_slip_is_priced_only_if_it_is_said_to_be_ones_own(
    ledger: CostLedgerStub,
) -> None:
    price = pb.SetPriceRequest(provider="opnai", model="gpt-5.5", input_pico_usd=1)
    error = await refusal(ledger.SetPrice(price))
    assert "did you mean openai" in error.message
    assert (
        "openai"
        in (await refusal(ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="opnai", factor_ppm=1)))).message
    )
    price.own_provider = True
    assert (await ledger.SetPrice(price)).source == "override"
    assert (await ledger.SetBudget(budget(scope=pb.Attribution(model="opnai/*")))).budget_id


async def test_a_factor_for_a_provider_without_prices_is_refused_as_it_would_change_nothing(
    ledger: CostLedgerStub,
) -> None:
    error = await refusal(ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="simulator", factor_ppm=900_000)))
    assert isinstance(error, InvalidArgument)
    assert error.field == "provider"


async def test_what_was_free_is_settled_at_nothing_when_it_is_said(ledger: CostLedgerStub) -> None:
    await ledger.Reserve(hold())
    free = pb.SettleRequest(reservation_id="req_1:1", free_of_charge=True, usage_source="provider_final")
    settled = await ledger.Settle(free)
    assert (settled.state, settled.settled_nano_usd) == (pb.RESERVATION_STATE_SETTLED, 0)


async def test_what_was_never_reserved_is_not_found(ledger: CostLedgerStub) -> None:
    release = pb.ReleaseRequest(reservation_id="nowhere")
    assert isinstance(await refusal(ledger.Settle(settlement("nowhere"))), NotFound)
    assert isinstance(await refusal(ledger.Release(release)), NotFound)
    get = pb.GetReservationRequest(reservation_id="nowhere")
    assert isinstance(await refusal(ledger.GetReservation(get)), NotFound)


async def test_group_21_tenants_see_nothing_of_each_other(service: Served[Settings], ledger: CostLedgerStub) -> None:
    await ledger.Reserve(hold())
    await ledger.SetBudget(budget())
    other = CostLedgerStub(service.connect(service.token(tenant="globex")))
    assert isinstance(await refusal(other.GetReservation(pb.GetReservationRequest(reservation_id="req_1:1"))), NotFound)
    assert not (await other.ListBudgets(pb.ListBudgetsRequest())).budgets
    assert (await other.Reserve(hold(amount=10**6))).state == pb.RESERVATION_STATE_HELD


async def test_a_method_needs_its_permission(service: Served[Settings]) -> None:
    reader = CostLedgerStub(service.connect(service.token(["ledger.read"])))
    error = await refusal(reader.Reserve(hold()))
    assert isinstance(error, PermissionDenied)
    assert error.permission == "ledger.reserve"


async def test_group_05_a_restart_continues_where_it_stopped(postgres_dsn: str, fresh_nats: RunningNats) -> None:
    clock = FakeClock(NOW)
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with serve_in_process(compose, settings, clock=clock) as before:
        ledger = CostLedgerStub(before.channel)
        await ledger.SetBudget(budget(limit=15))
        await ledger.Reserve(hold("a"))
    async with serve_in_process(compose, settings, clock=clock) as after:
        ledger = CostLedgerStub(after.channel)
        assert isinstance(await refusal(ledger.Reserve(hold("b"))), BudgetExhausted)
        await ledger.Settle(settlement("a", amount=5))
        state = await ledger.GetBudget(pb.GetBudgetRequest(budget_id="run_1"))
        assert (state.posted_nano_usd, state.available_nano_usd) == (5, 10)


async def test_a_price_book_is_told_once_however_often_the_ledger_starts(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    for _ in range(2):
        async with serve_in_process(compose, settings, clock=FakeClock(NOW)) as served:
            reader = served.connect(served.token(tenant=SHARED_TENANT))
            stored = (await EventLogStub(reader).Read(log_pb.ReadRequest(page_size=100))).events
    (told,) = [json.loads(event.data) for event in stored if event.type == "PriceBookImported"]
    assert told["price_version"] == f"genai-prices {told['source_version']} {told['sha256'][:12]}"
    assert told["price_version"] == load_price_book().version
    assert told["models"] > 1_000
    assert date.fromisoformat(told["newest_effective_from"]) > date(2025, 1, 1)


async def test_group_05_every_view_is_equal_to_one_rebuilt_and_the_log_verifies(
    service: Served[Settings], ledger: CostLedgerStub, clock: FakeClock
) -> None:
    await ledger.SetPrice(sim_price())
    await ledger.SetBudget(budget(limit=1_000))
    for number in range(12):
        await ledger.Reserve(hold(f"r{number}", amount=20, ttl=Duration(seconds=60)))
        if number % 3 == 0:
            await ledger.Settle(settlement(f"r{number}", amount=number * 3))
        if number % 3 == 1:
            await ledger.Release(pb.ReleaseRequest(reservation_id=f"r{number}", reason="refused"))
    clock.advance(61)
    log = EventLogStub(service.channel)
    spend = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent"]))
    names = {view.name for view in (await log.ListViews(log_pb.ListViewsRequest())).views}
    assert names >= VIEWS
    for name in VIEWS:
        assert (await log.VerifyView(log_pb.VerifyViewRequest(name=name))).equal
        await log.RebuildView(log_pb.RebuildViewRequest(name=name))
    assert await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["agent"])) == spend
    assert (await log.Verify(log_pb.VerifyRequest())).ok


async def test_holds_are_a_metric_and_so_are_those_whose_time_is_over(
    ledger: CostLedgerStub, service: Served[Settings], clock: FakeClock
) -> None:
    registry, queries = service.host.metrics.registry, Queries(service.host.pool)
    await ledger.Reserve(hold(ttl=Duration(seconds=60)))
    async with asyncio.timeout(WAIT_S):
        while not (await queries.standing(clock.now() + timedelta(minutes=2))).overdue:
            await service.host.history.measure_once()
    await service.host.history.measure_once()
    assert (registry.get_sample_value("ledger_reservations_held") or 0) >= 1
    assert registry.get_sample_value("ledger_reservations_overdue") is not None
