"""What is asked after the fact, as clients see it: corrections, comparisons, invoices, forecasts, exports."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cost_ledger.application import CostLedger
from cost_ledger.books import Books
from cost_ledger.charges import Charges
from cost_ledger.commands import Cleared, ClearSuspense, ImportInvoice
from cost_ledger.corrections import DOUBTFUL_PAGE
from cost_ledger.main import compose
from cost_ledger.model_calls import ModelCalls
from cost_ledger.prices import load_price_book
from cost_ledger.queries import Queries, SpendQuery
from cost_ledger.reports import Reports
from cost_ledger.settings import Settings
from cost_ledger.translate import to_invoice
from eventlog.codec import Codec
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, NewEvent, StreamId
from google.protobuf.timestamp_pb2 import Timestamp
from launcher.testing import RunningPostgres
from servicekit.errors import AlreadyExists, InvalidArgument, ServiceError, Unavailable, from_rpc_error
from servicekit.testing import FakeClock, Served, serve_in_process, settings_for
from synod.common.event import Event
from synod.common.ids import derived_uuid, uuid7
from synod.common.values import Attribution, Failure, UsageLine
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway import events as llm

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
SIM = "simulator/sim-1"
TENANTS = count(1)

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
def tenant() -> str:
    return f"reports-{next(TENANTS)}"


@pytest.fixture
def connect(service: Served[Settings], tenant: str) -> Callable[[], CostLedgerStub]:
    """A stub with a fresh token: one lasts an hour of the clock."""
    return lambda: CostLedgerStub(service.connect(service.token(tenant=tenant)))


@pytest.fixture
def ledger(connect: Callable[[], CostLedgerStub]) -> CostLedgerStub:
    return connect()


@dataclass(frozen=True, slots=True)
class World:
    """The use cases of the running service, called as its background task calls them."""

    reports: Reports
    log: Callable[[], EventLogStub]
    tenant: str

    async def told(self) -> list[tuple[int, bool]]:
        answer = await self.log().Read(log_pb.ReadRequest(page_size=1_000))
        events = [event for event in answer.events if event.tenant == self.tenant]
        decoded = [json.loads(event.data) for event in events if event.type == "BudgetForecastChanged"]
        return [(each["revision"], each["runs_out"]) for each in decoded]


@pytest_asyncio.fixture(loop_scope="module")
async def world(service: Served[Settings], tenant: str, clock: FakeClock) -> AsyncIterator[World]:
    host = service.host
    assert host.history.log is not None
    books = Books(host.history.log, clock)
    ledger = CostLedger(books, load_price_book(), Queries(host.pool), clock)

    def log() -> EventLogStub:
        return EventLogStub(service.connect(service.token(tenant=tenant)))

    yield World(Reports(ledger, Queries(host.pool), Charges(host.pool)), log, tenant)
    await books.close()


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def price(input_pico: int, output_pico: int, model: str = "sim-1") -> pb.SetPriceRequest:
    provider = "simulator"
    return pb.SetPriceRequest(provider=provider, model=model, input_pico_usd=input_pico, output_pico_usd=output_pico)


async def use(ledger: CostLedgerStub, name: str, input_tokens: int, output_tokens: int, model: str = SIM) -> int:
    """Reserve and settle a call; its cost."""
    owner = pb.Attribution(agent="writer", conversation_id="c1", run_id="run_1")
    await ledger.Reserve(
        pb.ReserveRequest(
            reservation_id=name,
            attribution=owner,
            model=model,
            input_tokens_max=input_tokens,
            output_tokens_max=output_tokens,
        )
    )
    lines = [
        pb.UsageLine(direction="input", quantity=input_tokens),
        pb.UsageLine(direction="output", quantity=output_tokens),
    ]
    settled = await ledger.Settle(pb.SettleRequest(reservation_id=name, usage=lines, usage_source="provider_final"))
    return settled.settled_nano_usd


async def spent(ledger: CostLedgerStub, budget_id: str = "all") -> int:
    return (await ledger.GetBudget(pb.GetBudgetRequest(budget_id=budget_id))).posted


async def refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def everything(limit: int = 10**12, **more: Any) -> pb.SetBudgetRequest:
    given: dict[str, Any] = {"budget_id": "all", "limit_nano_usd": limit, "window": "lifetime"}
    return pb.SetBudgetRequest(**(given | more))


class TestRerating:
    async def test_an_unpriced_call_gets_its_price_later_and_the_budget_the_difference(
        self, ledger: CostLedgerStub
    ) -> None:
        await ledger.SetBudget(everything())
        assert await use(ledger, "r1", 100, 50) == 0
        await ledger.SetPrice(price(1_000, 2_000))
        request = pb.RerateChargesRequest(unpriced_only=True, dry_run=True)
        tried = await ledger.RerateCharges(request)
        assert (tried.changed, tried.difference_nano_usd, tried.dry_run) == (1, 200, True)
        assert await spent(ledger) == 0
        done = await ledger.RerateCharges(pb.RerateChargesRequest(unpriced_only=True, reason="priced late"))
        assert (done.changed, done.difference_nano_usd) == (1, 200)
        assert [(row.model, row.before_nano_usd, row.after_nano_usd) for row in done.rows] == [(SIM, 0, 200)]
        assert await spent(ledger) == 200
        spend = await ledger.QuerySpend(pb.QuerySpendRequest())
        assert spend.total_nano_usd == 200
        assert (await ledger.GetReservation(pb.GetReservationRequest(reservation_id="r1"))).settled_nano_usd == 200

    async def test_a_second_run_finds_nothing_and_a_lower_price_gives_back(self, ledger: CostLedgerStub) -> None:
        await ledger.SetBudget(everything())
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        await ledger.SetPrice(price(500, 1_000))
        first = await ledger.RerateCharges(pb.RerateChargesRequest(model=SIM, reason="discount"))
        again = await ledger.RerateCharges(pb.RerateChargesRequest(model=SIM, reason="discount"))
        assert (first.difference_nano_usd, again.changed, await spent(ledger)) == (-100, 0, 100)
        await ledger.SetPrice(price(2_000, 2_000))
        third = await ledger.RerateCharges(pb.RerateChargesRequest(model=SIM, reason="error"))
        assert (third.difference_nano_usd, await spent(ledger)) == (200, 300)

    async def test_a_price_that_was_set_later_is_for_older_costs_only_if_they_have_none(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        assert await use(ledger, "own price", 100, 50) == 200
        assert await use(ledger, "list price", 100, 50, "openai/gpt-5.5") > 0
        assert await use(ledger, "no price", 100, 50, "simulator/sim-2") == 0
        clock.advance(600)
        ledger = connect()
        await ledger.SetPrice(price(9_000, 9_000))
        await ledger.SetPrice(price(9_000, 9_000, "sim-2"))
        await ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="openai", factor_ppm=2_000_000))
        tried = await ledger.RerateCharges(pb.RerateChargesRequest(dry_run=True))
        assert [(row.model, row.before_nano_usd, row.after_nano_usd) for row in tried.rows] == [
            ("simulator/sim-2", 0, 1_350)
        ]

    async def test_a_wrong_price_that_was_set_after_the_costs_is_corrected_by_the_right_one(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetBudget(everything())
        assert await use(ledger, "no price", 100, 50) == 0
        for wrong_times, cost in ((1_000, 200_000), (1, 200)):
            clock.advance(600)
            ledger = connect()
            await ledger.SetPrice(price(1_000 * wrong_times, 2_000 * wrong_times))
            await ledger.RerateCharges(pb.RerateChargesRequest(reason="a slip" if wrong_times > 1 else "set right"))
            assert await spent(ledger) == cost
        assert (await ledger.RerateCharges(pb.RerateChargesRequest(dry_run=True))).changed == 0

    async def test_a_call_that_turns_out_to_be_free_is_not_unpriced_any_more(self, ledger: CostLedgerStub) -> None:
        assert await use(ledger, "r1", 100, 50) == 0
        await ledger.SetPrice(price(0, 0))
        done = await ledger.RerateCharges(pb.RerateChargesRequest(reason="free"))
        assert (done.changed, done.difference_nano_usd) == (1, 0)
        (page,) = await collect(ledger, pb.ExportSpendRequest())
        assert [(charge.cost_nano_usd, charge.price_source) for charge in page.charges] == [(0, "override")]
        assert (await ledger.RerateCharges(pb.RerateChargesRequest(reason="free"))).changed == 0

    async def test_a_correction_that_no_call_can_cost_is_refused_before_any_is_posted(
        self, ledger: CostLedgerStub
    ) -> None:
        await ledger.SetBudget(everything())
        for name, tokens in (("r1", 100), ("r2", 2_000_000), ("r3", 100)):
            await use(ledger, name, tokens, 0)
        await ledger.SetPrice(price(10**12, 0))
        for request in (pb.RerateChargesRequest(dry_run=True), pb.RerateChargesRequest(reason="priced late")):
            error = await refusal(ledger.RerateCharges(request))
            assert isinstance(error, InvalidArgument)
            assert (error.field, "cost r2 would come to" in error.message) == ("model", True)
        assert await spent(ledger) == 0

    async def test_two_corrections_at_once_count_once(self, ledger: CostLedgerStub) -> None:
        await ledger.SetBudget(everything())
        for number in range(20):
            await use(ledger, f"r{number}", 100, 50)
        await ledger.SetPrice(price(1_000, 2_000))
        both = await asyncio.gather(
            *(ledger.RerateCharges(pb.RerateChargesRequest(reason="priced late")) for _ in range(2))
        )
        assert sum(each.changed for each in both) == 20
        assert await spent(ledger) == 20 * 200

    async def test_a_correction_is_posted_to_the_window_of_the_cost(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetBudget(everything(window="day"))
        await use(ledger, "r1", 100, 50)
        clock.advance(86_400)
        ledger = connect()
        await ledger.SetPrice(price(1_000, 2_000))
        await ledger.RerateCharges(pb.RerateChargesRequest(reason="priced late"))
        assert await spent(ledger) == 0
        by_day = await ledger.QuerySpend(pb.QuerySpendRequest(group_by=["day"]))
        assert [(row.group[0], row.cost_nano_usd) for row in by_day.rows] == [
            ((clock.now() - timedelta(days=1)).strftime("%Y-%m-%d"), 200)
        ]

    async def test_a_model_is_corrected_and_found_in_whatever_case_it_was_called(self, ledger: CostLedgerStub) -> None:
        for name, model in (("r1", SIM), ("r2", "Simulator/SIM-1"), ("r3", "simulator/sim-2")):
            await use(ledger, name, 100, 50, model)
        await ledger.SetPrice(price(1_000, 2_000))
        asked = pb.RerateChargesRequest(model="simulator/Sim-1", reason="priced late")
        done = await ledger.RerateCharges(asked)
        assert sorted((row.model, row.after_nano_usd) for row in done.rows) == [("Simulator/SIM-1", 200), (SIM, 200)]
        only = pb.Attribution(model=SIM.upper())
        spend = await ledger.QuerySpend(pb.QuerySpendRequest(filter=only, group_by=["model"]))
        assert sorted(row.group[0] for row in spend.rows) == ["Simulator/SIM-1", SIM]
        exported = await collect(ledger, pb.ExportSpendRequest(filter=only))
        assert [charge.id for page in exported for charge in page.charges] == ["r1", "r2"]

    async def test_a_correction_needs_a_reason(self, ledger: CostLedgerStub) -> None:
        error = await refusal(ledger.RerateCharges(pb.RerateChargesRequest()))
        assert isinstance(error, InvalidArgument)
        assert error.field == "reason"


class TestWhatIf:
    async def test_the_same_usage_at_another_model_is_priced_call_by_call(self, ledger: CostLedgerStub) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        for number in range(3):
            await use(ledger, f"r{number}", 100_000, 1_000)
        found = await ledger.PriceUsageAt(pb.PriceUsageAtRequest(model="openai/gpt-5.5"))
        # Each call is below the cliff at 272,000 input tokens, though all together are not.
        each = 100_000 * 5_000 + 1_000 * 30_000
        assert (found.calls, found.actual_nano_usd, found.other_nano_usd) == (3, 3 * 102_000, 3 * each)
        batch = pb.PriceUsageAtRequest(model="openai/gpt-5.5", price_context={"processing": "batch"})
        assert (await ledger.PriceUsageAt(batch)).other_nano_usd == 3 * each // 2

    async def test_a_model_without_a_price_is_refused_with_similar_names(self, ledger: CostLedgerStub) -> None:
        error = await refusal(ledger.PriceUsageAt(pb.PriceUsageAtRequest(model="openai/gpt-4o-nope")))
        assert isinstance(error, InvalidArgument)
        assert "openai/gpt-4o" in error.message


ALL_MODELS = pb.InvoiceLine(model="simulator/*", since=stamp(NOW), until=stamp(NOW + timedelta(days=1)))


class TestInvoices:
    def invoice(self, amount: int, now: datetime) -> pb.ImportInvoiceRequest:
        line = pb.InvoiceLine(
            model=SIM,
            since=stamp(now - timedelta(days=1)),
            until=stamp(now + timedelta(days=1)),
            amount_nano_usd=amount,
        )
        return pb.ImportInvoiceRequest(invoice_id="inv_1", provider="simulator", lines=[line])

    async def test_an_invoice_is_compared_and_its_difference_posted_once(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        for _ in range(2):
            found = await ledger.ImportInvoice(self.invoice(230, clock.now()))
            assert (found.invoiced_nano_usd, found.ledger_nano_usd, found.difference_nano_usd) == (230, 200, 30)
        log = EventLogStub(service.connect(service.token(tenant=tenant)))
        stored = [each async for each in read_types(log, tenant)]
        assert stored.count("ReconciliationDifferenceFound") == stored.count("ProviderInvoiceImported") == 1

    async def test_of_an_invoice_that_is_imported_twice_at_once_the_second_is_answered_as_the_first(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        invoice = self.invoice(30, clock.now())
        both = await asyncio.gather(*(ledger.ImportInvoice(invoice) for _ in range(2)))
        assert sorted(each.was_imported for each in both) == [False, True]
        assert [each.difference_nano_usd for each in both] == [30, 30]
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        assert (await Queries(service.host.pool).balances(tenant))["payable:simulator"] == -30

    async def test_an_invoice_is_about_calls_of_its_provider_in_whatever_case(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        ledger = connect()
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        await use(ledger, "r2", 100, 50, "Simulator/SIM-1")
        bounds = {"model": "Simulator/SIM-1", "input_tokens_max": 100, "output_tokens_max": 100}
        await ledger.Reserve(pb.ReserveRequest(reservation_id="r3", attribution=pb.Attribution(), **bounds))
        await self.given_up(connect, clock, "r3")
        invoice = self.invoice(700, clock.now())
        invoice.clear_suspense = True
        for model in (SIM, ""):
            invoice.lines[0].model = model
            invoice.invoice_id, invoice.replaces = (f"of {model}", "") if model else ("of all", f"of {SIM}")
            found = await connect().ImportInvoice(invoice)
            assert (found.ledger_nano_usd, found.difference_nano_usd) == (700, 0)
        assert (await connect().GetReservation(pb.GetReservationRequest(reservation_id="r3"))).settled_nano_usd == 300

    async def test_an_invoice_of_a_provider_in_another_case_is_the_same_again(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        await use(ledger, "r2", 100, 50, "Simulator/sim-1")
        invoice = self.invoice(430, clock.now())
        invoice.provider = "SIMULATOR"
        assert (await ledger.ImportInvoice(invoice)).difference_nano_usd == 30
        invoice.provider, invoice.invoice_id = "Simulator", "inv_2"
        assert (await refusal(ledger.ImportInvoice(invoice))).reason == "INVOICE_OVERLAP"
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        balances = await Queries(service.host.pool).balances(tenant)
        owed = {name: amount for name, amount in balances.items() if not name.startswith("expense:")}
        assert owed == {"payable:simulator": -430, "adjustment:simulator": 30}

    async def test_a_provider_without_cost_and_price_is_refused_unless_it_is_said_to_be_right(
        self, ledger: CostLedgerStub, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        invoice = self.invoice(200, clock.now())
        invoice.provider, invoice.lines[0].model = "simulatr", ""
        error = await refusal(ledger.ImportInvoice(invoice))
        assert isinstance(error, InvalidArgument)
        assert error.field == "provider"
        assert error.message.endswith("did you mean simulator?")
        invoice.own_provider = True
        for _ in range(2):
            assert (await ledger.ImportInvoice(invoice)).difference_nano_usd == 200
            # The same invoice, however its provider was vouched for.
            invoice.own_provider = False
        invoice.invoice_id, invoice.replaces, invoice.lines[0].amount_nano_usd = "inv_2", "inv_1", 0
        assert (await ledger.ImportInvoice(invoice)).difference_nano_usd == -200

    async def test_a_provider_whose_calls_have_no_price_is_known_by_them(
        self, ledger: CostLedgerStub, clock: FakeClock
    ) -> None:
        await use(ledger, "r1", 100, 50)
        assert (await ledger.ImportInvoice(self.invoice(200, clock.now()))).difference_nano_usd == 200

    async def test_an_invoice_for_tools_is_compared_with_what_tools_cost(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        for name, tool in (("r1", "search"), ("r2", "sql"), ("r3", "")):
            await self.use_tool(ledger, name, tool, 700)
        invoice = self.invoice(700, clock.now())
        invoice.provider = "tool"
        for model, replaces, amount in (
            ("tool/Search", "", 700),
            ("tool/other", "of tool/Search", 700),
            ("", "of tool/other", 2_100),
        ):
            invoice.invoice_id, invoice.replaces = f"of {model}", replaces
            invoice.lines[0].model, invoice.lines[0].amount_nano_usd = model, amount
            found = await ledger.ImportInvoice(invoice)
            assert (found.ledger_nano_usd, found.difference_nano_usd) == (amount, 0)
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        assert (await Queries(service.host.pool).balances(tenant))["payable:tool"] == -2_100

    async def use_tool(self, ledger: CostLedgerStub, name: str, tool: str, cost: int) -> None:
        owner = pb.Attribution(tool=tool)
        await ledger.Reserve(pb.ReserveRequest(reservation_id=name, upper_bound_nano_usd=1_000, attribution=owner))
        done = pb.SettleRequest(reservation_id=name, amount_nano_usd=cost, usage_source="provider_final")
        await ledger.Settle(done)

    async def test_a_final_invoice_for_tools_clears_what_tools_have_in_suspense_and_no_models(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        ledger = connect()
        owner = pb.Attribution(tool="search")
        for name in ("a", "b"):
            hold = pb.ReserveRequest(reservation_id=name, upper_bound_nano_usd=300, attribution=owner)
            await ledger.Reserve(hold)
            clock.advance(60)
        await self.in_suspense(connect, clock, "c")
        await self.given_up(connect, clock, "a", "b")
        invoice = self.invoice(300, clock.now())
        invoice.provider, invoice.lines[0].model, invoice.clear_suspense = "tool", "tool/search", True
        found = await connect().ImportInvoice(invoice)
        assert (found.ledger_nano_usd, found.difference_nano_usd) == (300, 0)
        assert (found.settled_from_suspense, found.released_from_suspense) == (1, 1)
        left = await connect().ListSuspense(pb.ListSuspenseRequest())
        assert [each.reservation_id for each in left.reservations] == ["c"]

    async def test_what_was_settled_by_an_amount_is_exported_as_such_and_not_as_unpriced(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        ledger = connect()
        for name in ("by hand", "by invoice"):
            hold = pb.ReserveRequest(reservation_id=name, model=SIM, upper_bound_nano_usd=300)
            assert (await ledger.Reserve(hold)).price_source == "unpriced"
        await self.given_up(connect, clock, "by hand", "by invoice")
        ledger = connect()
        by_hand = pb.SettleRequest(reservation_id="by hand", amount_nano_usd=200, usage_source="provider_final")
        await ledger.Settle(by_hand)
        invoice = self.invoice(500, clock.now())
        invoice.clear_suspense = True
        await ledger.ImportInvoice(invoice)
        charges = [charge async for page in ledger.ExportSpend(pb.ExportSpendRequest()) for charge in page.charges]
        told = {charge.id: (charge.cost_nano_usd, charge.price_source) for charge in charges}
        assert told == {"by hand": (200, "fixed"), "by invoice": (300, "fixed")}

    async def test_an_invoice_that_agrees_leaves_no_difference(self, ledger: CostLedgerStub, clock: FakeClock) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        found = await ledger.ImportInvoice(self.invoice(200, clock.now()))
        assert found.difference_nano_usd == 0

    async def in_suspense(self, connect: Callable[[], CostLedgerStub], clock: FakeClock, *names: str) -> None:
        """Holds of 300 nano-USD each whose outcome nobody tells."""
        ledger = connect()
        await ledger.SetPrice(price(1_000, 2_000))
        for name in names:
            bounds = {"model": SIM, "input_tokens_max": 100, "output_tokens_max": 100}
            await ledger.Reserve(pb.ReserveRequest(reservation_id=name, attribution=pb.Attribution(), **bounds))
            clock.advance(60)
        await self.given_up(connect, clock, *names)

    async def given_up(self, connect: Callable[[], CostLedgerStub], clock: FakeClock, *names: str) -> None:
        clock.advance(600)
        ledger, waiting = connect(), list(names)
        async with asyncio.timeout(30):
            while waiting:
                found = await ledger.GetReservation(pb.GetReservationRequest(reservation_id=waiting[-1]))
                if found.state == pb.RESERVATION_STATE_SUSPENSE:
                    waiting.pop()

    async def test_a_final_invoice_settles_what_it_bills_of_suspense_and_releases_the_rest(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        budget = pb.SetBudgetRequest(budget_id="all", limit_nano_usd=1_000, hard=True, window="lifetime")
        await connect().SetBudget(budget)
        await self.in_suspense(connect, clock, "a", "b", "c")
        await use(connect(), "r1", 10, 45)
        invoice = self.invoice(100 + 300 + 120, clock.now())
        invoice.clear_suspense = True
        for _ in range(2):
            found = await connect().ImportInvoice(invoice)
            assert found.difference_nano_usd == 0
        told = (found.invoiced_nano_usd, found.ledger_nano_usd)
        assert told == (520, 520)
        reservations = [
            await connect().GetReservation(pb.GetReservationRequest(reservation_id=name)) for name in ("a", "b", "c")
        ]
        assert [each.settled_nano_usd for each in reservations] == [300, 120, 0]
        assert reservations[2].state == pb.RESERVATION_STATE_RELEASED
        after = await connect().GetBudget(pb.GetBudgetRequest(budget_id="all"))
        assert (after.posted, after.pending) == (520, 0)

    async def test_a_final_invoice_clears_whatever_is_in_suspense_beside_other_commands(
        self,
        service: Served[Settings],
        ledger: CostLedgerStub,
        connect: Callable[[], CostLedgerStub],
        tenant: str,
        clock: FakeClock,
    ) -> None:
        """More holds than a page has, and more events than a request to the log takes: four thresholds each, of two budgets."""
        for share in ("conversation_id", "user_id"):
            await ledger.SetBudget(everything(budget_id=share, limit=100, per=share))
        names = [f"r{number:03}" for number in range(DOUBTFUL_PAGE + 4)]
        owners = {name: pb.Attribution(conversation_id=name, user_id=name) for name in names}
        holds = [
            pb.ReserveRequest(reservation_id=name, attribution=owners[name], model=SIM, upper_bound_nano_usd=100)
            for name in names
        ]
        for part in (holds[:200], holds[200:]):
            await ledger.ReserveMany(
                pb.ReserveManyRequest(items=[pb.ReserveManyRequest.Item(reserve=each) for each in part])
            )
        await self.given_up(connect, clock, *names)
        invoice = self.invoice(100 * len(names) - 150, clock.now())
        invoice.clear_suspense = True
        bystanders = [pb.ReserveRequest(reservation_id=f"b{number}", upper_bound_nano_usd=1) for number in range(50)]
        ledger = connect()
        found, *held = await asyncio.gather(ledger.ImportInvoice(invoice), *map(ledger.Reserve, bystanders))
        assert {each.state for each in held} == {pb.RESERVATION_STATE_HELD}
        assert (found.settled_from_suspense, found.released_from_suspense) == (len(names) - 1, 1)
        assert found.settled_from_suspense_nano_usd == found.ledger_nano_usd == invoice.lines[0].amount_nano_usd
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        balances = await Queries(service.host.pool).balances(tenant)
        assert balances["payable:simulator"] == -invoice.lines[0].amount_nano_usd
        assert not any(name.startswith(("suspense", "adjustment")) for name in balances)

    async def test_an_import_that_ended_on_its_way_is_finished_by_its_repetition(
        self,
        service: Served[Settings],
        connect: Callable[[], CostLedgerStub],
        tenant: str,
        clock: FakeClock,
    ) -> None:
        await self.in_suspense(connect, clock, "a", "b", "c")
        invoice = self.invoice(300 + 120, clock.now())
        invoice.clear_suspense = True
        await self.cleared_first(service, invoice, tenant, clock, "a")
        found = await connect().ImportInvoice(invoice)
        assert (found.ledger_nano_usd, found.difference_nano_usd) == (420, 0)
        assert (found.settled_from_suspense, found.released_from_suspense) == (1, 1)
        await connect().ListBudgets(pb.ListBudgetsRequest())
        assert (await Queries(service.host.pool).balances(tenant))["payable:simulator"] == -420

    async def cleared_first(
        self, service: Served[Settings], invoice: pb.ImportInvoiceRequest, tenant: str, clock: FakeClock, name: str
    ) -> None:
        """What an import does first, by a process that then ends."""
        assert service.host.history.log is not None
        books = Books(service.host.history.log, clock)
        billed = to_invoice(invoice)
        command = ImportInvoice(billed.invoice_id, billed.provider, "", billed.lines)
        await books.execute(ClearSuspense(command, (Cleared(name, 300),)), Context(tenant, actor="somebody"))
        await books.close()

    async def test_what_a_final_invoice_bills_beyond_all_holds_is_an_adjustment(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await self.in_suspense(connect, clock, "a")
        invoice = self.invoice(1_000, clock.now())
        invoice.clear_suspense = True
        found = await connect().ImportInvoice(invoice)
        assert (found.ledger_nano_usd, found.difference_nano_usd) == (300, 700)
        assert (found.settled_from_suspense_nano_usd, found.settled_from_suspense) == (300, 1)

    async def test_a_final_invoice_again_is_answered_as_it_was_posted_and_tells_what_came_since(
        self, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await self.in_suspense(connect, clock, "a")
        invoice = self.invoice(600, clock.now())
        invoice.clear_suspense = True
        first = await connect().ImportInvoice(invoice)
        assert (first.difference_nano_usd, first.settled_from_suspense, first.was_imported) == (300, 1, False)
        await self.in_suspense(connect, clock, "b")
        again = await connect().ImportInvoice(invoice)
        assert (again.ledger_nano_usd, again.difference_nano_usd, again.settled_from_suspense) == (300, 300, 0)
        assert (again.was_imported, again.in_suspense) == (True, 1)
        held = await connect().GetReservation(pb.GetReservationRequest(reservation_id="b"))
        assert held.state == pb.RESERVATION_STATE_SUSPENSE
        invoice.invoice_id, invoice.replaces = "inv_2", "inv_1"
        second = await connect().ImportInvoice(invoice)
        assert (second.ledger_nano_usd, second.difference_nano_usd, second.settled_from_suspense) == (600, -300, 1)

    async def test_the_same_invoice_with_other_content_is_refused(
        self, ledger: CostLedgerStub, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await ledger.ImportInvoice(self.invoice(1, clock.now()))
        error = await refusal(ledger.ImportInvoice(self.invoice(2, clock.now())))
        assert isinstance(error, AlreadyExists)

    async def test_what_is_billed_already_is_refused_unless_it_is_corrected(
        self, ledger: CostLedgerStub, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        await ledger.ImportInvoice(self.invoice(210, clock.now()))
        second = self.invoice(225, clock.now())
        second.invoice_id = "inv_2"
        error = await refusal(ledger.ImportInvoice(second))
        assert (error.reason, error.metadata["other"]) == ("INVOICE_OVERLAP", "inv_1")
        second.replaces = "inv_1"
        for _ in range(2):
            found = await ledger.ImportInvoice(second)
            assert (found.ledger_nano_usd, found.difference_nano_usd) == (200, 15)
            assert found.lines[0].adjusted_nano_usd == 10

    async def test_a_credit_is_no_comparison_with_the_ledger(self, ledger: CostLedgerStub, clock: FakeClock) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 100, 50)
        invoice = self.invoice(200, clock.now())
        invoice.lines.add().CopyFrom(invoice.lines[0])
        invoice.lines[1].amount_nano_usd = -30
        found = await ledger.ImportInvoice(invoice)
        assert [line.difference_nano_usd for line in found.lines] == [0, -30]

    async def test_nothing_is_posted_by_a_view_that_is_behind(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        async with service.host.pool.connection() as connection:
            # Whoever reads goes on, and the view waits until the end of the transaction.
            await connection.execute("lock table view_spend.charge in exclusive mode")
            await use(ledger, "r1", 100, 50)
            invoiced, rerated, tried = await asyncio.gather(
                refusal(ledger.ImportInvoice(self.invoice(200, clock.now()))),
                refusal(ledger.RerateCharges(pb.RerateChargesRequest(reason="priced late"))),
                ledger.RerateCharges(pb.RerateChargesRequest(dry_run=True)),
            )
        for error in (invoiced, rerated):
            assert isinstance(error, Unavailable)
            assert (error.reason, error.retry_after_s) == ("VIEW_INCOMPLETE", 1.0)
            assert "the view spend is" in error.message
        assert tried.charges == 0
        found = await ledger.ImportInvoice(self.invoice(200, clock.now()))
        assert (found.ledger_nano_usd, found.difference_nano_usd) == (200, 0)
        assert (await Queries(service.host.pool).balances(tenant))["payable:simulator"] == -200

    async def test_nothing_is_posted_by_a_view_with_a_parked_event_of_the_tenant(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, clock: FakeClock
    ) -> None:
        assert service.host.history.log is not None
        broken = NewEvent("CostSettled", 1, b"{}", uuid7(), clock.now())
        append = Append(StreamId("unreadable", tenant), ANY, (broken,), Context(tenant, actor="somebody"))
        await service.host.history.log.append(append)
        error = await refusal(ledger.ImportInvoice(self.invoice(200, clock.now())))
        assert isinstance(error, Unavailable)
        assert "spend has 1 parked events" in error.message
        assert "`synod views parked cost-ledger`" in error.message
        rerating = pb.RerateChargesRequest(reason="priced late")
        assert (await refusal(ledger.RerateCharges(rerating))).reason == "VIEW_INCOMPLETE"
        other = CostLedgerStub(service.connect(service.token(tenant=f"{tenant}-other")))
        await other.SetPrice(price(1_000, 2_000))
        assert (await other.ImportInvoice(self.invoice(200, clock.now()))).difference_nano_usd == 200
        assert (await ledger.QuerySpend(pb.QuerySpendRequest())).total_nano_usd == 0

    async def test_a_call_is_found_by_whichever_name_of_its_model_it_was_made_or_billed(
        self, ledger: CostLedgerStub, clock: FakeClock
    ) -> None:
        for name, model in (("r1", "sim-1"), ("r2", "sim-1-2026-04-01"), ("r3", "sim-2")):
            await ledger.SetPrice(price(1_000, 2_000, model))
            await use(ledger, name, 100, 50, f"simulator/{model}")
        invoice = self.invoice(210, clock.now())
        invoice.lines.add().CopyFrom(invoice.lines[0])
        invoice.lines[1].model, invoice.lines[1].amount_nano_usd = "simulator/sim-2-latest", 230
        invoice.lines[0].model = "simulator/sim-1-2026-08-01"
        invoice.lines.add().CopyFrom(invoice.lines[0])
        invoice.lines[2].model, invoice.lines[2].amount_nano_usd = "simulator/sim-1-2026-04-01", 200
        found = await ledger.ImportInvoice(invoice)
        assert [line.ledger_nano_usd for line in found.lines] == [200, 200, 200]
        assert [line.difference_nano_usd for line in found.lines] == [10, 30, 0]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"lines": []}, "lines"),
            ({"lines": [ALL_MODELS]}, "lines.model"),
            ({"invoice_id": ""}, "invoice_id"),
            ({"provider": "openai"}, "lines.model"),
        ],
    )
    async def test_a_wrong_invoice_is_refused_by_its_field(
        self, ledger: CostLedgerStub, clock: FakeClock, change: dict[str, Any], field: str
    ) -> None:
        given = {"invoice_id": "inv_1", "provider": "simulator", "lines": self.invoice(1, clock.now()).lines}
        error = await refusal(ledger.ImportInvoice(pb.ImportInvoiceRequest(**(given | change))))
        assert isinstance(error, InvalidArgument)
        assert error.field == field


class TestForecasts:
    async def test_a_budget_is_forecast_from_the_hours_before(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetBudget(everything(limit=1_000))
        await ledger.SetPrice(price(1_000, 2_000))
        for number in range(3):
            await use(ledger, f"r{number}", 50, 25)
            clock.advance(3_600)
            ledger = connect()
        made = await ledger.ForecastBudget(pb.ForecastBudgetRequest(budget_id="all"))
        assert (made.history_hours, made.burn_per_hour, made.budget.posted) == (3, 100, 300)
        hour = clock.now().replace(minute=0)
        # 700 are left at 100 an hour.
        assert made.exhausted_p50.ToDatetime(UTC) == hour + timedelta(hours=7)
        assert not made.HasField("window_end")
        assert "EWMA" in made.method

    async def test_shares_are_forecast_one_by_one(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetBudget(everything(limit=1_000, per="conversation_id"))
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 50, 25)
        clock.advance(3_600)
        ledger = connect()
        made = await ledger.ForecastBudget(pb.ForecastBudgetRequest(budget_id="all", share="c1"))
        assert (made.budget.posted, made.burn_per_hour) == (100, 100)
        error = await refusal(ledger.ForecastBudget(pb.ForecastBudgetRequest(budget_id="all")))
        assert isinstance(error, InvalidArgument)
        assert error.field == "share"

    async def test_the_share_of_a_model_is_looked_at_and_forecast_in_whatever_case(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        await ledger.SetBudget(everything(limit=1_000, per="model"))
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 50, 25)
        await use(ledger, "r2", 50, 25, "Simulator/SIM-1")
        clock.advance(3_600)
        for share in (SIM, "simulator/Sim-1"):
            made = await connect().ForecastBudget(pb.ForecastBudgetRequest(budget_id="all", share=share))
            assert (made.budget.share, made.budget.posted, made.burn_per_hour) == (SIM, 200, 200)

    async def test_every_budget_is_looked_at_however_many_there_are(
        self, ledger: CostLedgerStub, world: "World"
    ) -> None:
        for number in range(5):
            await ledger.SetBudget(everything(budget_id=f"b{number}", limit=1_000))
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        assert await replace(world.reports, forecast_page=2).tell_forecasts(world.tenant) == 5

    async def test_the_budget_of_a_provider_is_forecast_from_the_costs_of_its_models(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock
    ) -> None:
        for scope in ("simulator/*", SIM, "simulator/other"):
            owner = pb.Attribution(model=scope)
            await ledger.SetBudget(everything(budget_id=scope.replace("*", "all"), limit=1_000, scope=owner))
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 50, 25)
        clock.advance(3_600)
        ledger = connect()
        burns = {}
        for budget_id in ("simulator/all", SIM, "simulator/other"):
            made = await ledger.ForecastBudget(pb.ForecastBudgetRequest(budget_id=budget_id))
            burns[budget_id] = made.burn_per_hour
        assert burns == {"simulator/all": 100, SIM: 100, "simulator/other": 0}

    async def test_a_budget_that_will_run_out_is_told_once_by_all_replicas_and_again_when_it_will_not(
        self, ledger: CostLedgerStub, connect: Callable[[], CostLedgerStub], clock: FakeClock, world: "World"
    ) -> None:
        await ledger.SetBudget(everything(limit=1_000))
        await ledger.SetPrice(price(1_000, 2_000))
        await use(ledger, "r1", 50, 25)
        clock.advance(3_600)
        ledger = connect()
        await ledger.QuerySpend(pb.QuerySpendRequest())
        await asyncio.gather(*(world.reports.tell_forecasts(world.tenant) for _ in range(3)))
        assert await world.told() == [(1, True)]
        await ledger.SetBudget(everything(limit=10**9))
        await ledger.ListBudgets(pb.ListBudgetsRequest())
        for _ in range(2):
            await world.reports.tell_forecasts(world.tenant)
        assert await world.told() == [(1, True), (2, False)]


class TestComparison:
    async def test_models_are_compared_by_what_the_gateway_told_of_its_attempts(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        log = MemoryEventLog()
        for number, ms in enumerate([100, 200, 300]):
            await publish(log, tenant, completed(f"req_{number}", ms))
        await publish(log, tenant, started("req_3"))
        await publish(log, tenant, failed("req_3"))
        await publish(log, tenant, started("req_4"))
        await publish(log, tenant, cancelled("req_4"))
        async with service.host.pool.connection() as connection:
            await connection.execute("set local search_path to view_model_calls")
            await ModelCalls().apply(connection, await log.read())
        await use(ledger, "req_0:1", 100, 50)
        (found,) = (await ledger.CompareModels(pb.CompareModelsRequest())).models
        assert (found.model, found.calls, found.failed, found.cancelled) == (SIM, 5, 1, 1)
        assert (found.latency_p50_ms, found.latency_p95_ms, found.first_content_p50_ms) == (200, 300, 20)
        assert (found.input_tokens, found.cached_tokens, found.cached_of_10000) == (300, 120, 4_000)
        assert (found.errors_of_10000, found.cost_nano_usd, found.cost_per_call_nano_usd) == (2_000, 200, 66)

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_an_attempt_told_of_twice_ends_as_it_was_told_last(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str, at_once: bool
    ) -> None:
        log = MemoryEventLog()
        for event in (started("a"), failed("a"), cancelled("a"), completed("b", 100), started("c"), cancelled("b")):
            await publish(log, tenant, event)
        told = await log.read()
        async with service.host.pool.connection() as connection:
            await connection.execute("set local search_path to view_model_calls")
            for batch in [told] if at_once else [[each] for each in told]:
                await ModelCalls().apply(connection, batch)
        (found,) = (await ledger.CompareModels(pb.CompareModelsRequest())).models
        assert (found.calls, found.failed, found.cancelled) == (2, 0, 2)

    async def test_a_call_answered_from_the_cache_costs_nothing_and_saved_what_its_equal_cost(
        self, service: Served[Settings], ledger: CostLedgerStub, tenant: str
    ) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        cost = await use(ledger, "first:1", 100, 50)
        log = MemoryEventLog()
        for number in range(3):
            await publish(log, tenant, served(f"req_{number}", "first:1"))
        async with service.host.pool.connection() as connection:
            await connection.execute("set local search_path to view_model_calls")
            await ModelCalls().apply(connection, await log.read())
        (found,) = (await ledger.CompareModels(pb.CompareModelsRequest())).models
        assert (found.model, found.calls, found.served_from_cache) == (SIM, 0, 3)
        assert (found.saved_nano_usd, found.cost_nano_usd) == (3 * cost, cost)

    async def test_attempts_of_another_time_are_left_out(self, ledger: CostLedgerStub, clock: FakeClock) -> None:
        later = stamp(clock.now() + timedelta(days=1))
        assert not (await ledger.CompareModels(pb.CompareModelsRequest(since=later))).models


def completed(request_id: str, duration_ms: int) -> llm.ModelCallCompleted:
    return llm.ModelCallCompleted(
        request_id=request_id,
        attempt=1,
        model="sim-1",
        provider="simulator",
        reservation_id=f"{request_id}:1",
        attribution=Attribution(),
        input_tokens=100,
        output_tokens=50,
        usage=(
            UsageLine(direction="input", quantity=60),
            UsageLine(direction="input", cache="read", quantity=40),
            UsageLine(direction="output", quantity=50),
        ),
        usage_source="provider_final",
        finish_reason="stop",
        response_sha256="",
        duration_ms=duration_ms,
        first_content_ms=duration_ms // 10,
    )


def served(request_id: str, source: str) -> llm.ModelCallServedFromCache:
    return llm.ModelCallServedFromCache(
        request_id=request_id,
        model=SIM,
        attribution=Attribution(),
        source_reservation_id=source,
        input_tokens=100,
        output_tokens=50,
        usage=(),
        finish_reason="stop",
        response_sha256="",
    )


def started(request_id: str) -> llm.ModelCallAttemptStarted:
    return llm.ModelCallAttemptStarted(
        request_id=request_id,
        attempt=1,
        model="sim-1",
        provider="simulator",
        reservation_id=f"{request_id}:1",
        attribution=Attribution(),
    )


def failed(request_id: str) -> llm.ModelCallAttemptFailed:
    return llm.ModelCallAttemptFailed(
        request_id=request_id,
        attempt=1,
        model="sim-1",
        reservation_id=f"{request_id}:1",
        failure=Failure(reason="OVERLOADED", message="529"),
        billed="no",
    )


def cancelled(request_id: str) -> llm.ModelCallCancelled:
    return llm.ModelCallCancelled(
        request_id=request_id, attempt=1, reservation_id=f"{request_id}:1", usage=(), usage_source="gateway_counted"
    )


async def publish(log: MemoryEventLog, tenant: str, event: Event) -> None:
    name = derived_uuid(event.type_name(), str(await log.head()))
    new = Codec(llm.EVENTS).encode(event, id=name, at=NOW)
    await log.append(Append(StreamId(event.AGGREGATE, str(name)), ANY, (new,), Context(tenant, "svc_llm-gateway")))


class TestHistory:
    async def test_spend_is_told_by_hour_day_week_and_month(self, service: Served[Settings], tenant: str) -> None:
        rows = [
            ("a", datetime(2026, 12, 31, 23, 30, tzinfo=UTC), 1),
            ("b", datetime(2027, 1, 1, 0, 30, tzinfo=UTC), 10),
        ]
        async with service.host.pool.connection() as connection:
            for name, at, cost in rows:
                await connection.execute(INSERT_CHARGE, (tenant, name, at, cost))
        queries = Queries(service.host.pool)
        found = {
            period: [(row.group[0], row.cost) for row in await queries.spend(tenant, SpendQuery((period,)))]
            for period in ("hour", "day", "week", "month")
        }
        assert found == {
            "hour": [("2027-01-01T00Z", 10), ("2026-12-31T23Z", 1)],
            "day": [("2027-01-01", 10), ("2026-12-31", 1)],
            "week": [("2026-W53", 11)],
            "month": [("2027-01", 10), ("2026-12", 1)],
        }


INSERT_CHARGE = """
    insert into view_spend.charge values
    (%s, 'charge', %s, '', '', '', '', '', '', '', '', '{}', %s, 'fixed', '', '', '', %s, 0, 0, 0, 1, 0, 0, '[]', '[]', 0)
"""


class TestExport:
    async def test_the_list_cost_is_before_what_the_tenant_pays_instead(self, ledger: CostLedgerStub) -> None:
        await ledger.SetPriceFactor(pb.SetPriceFactorRequest(provider="openai", factor_ppm=900_000))
        used = [pb.UsageLine(direction="input", quantity=1_000)]
        for name in ("discounted", "own"):
            asked = pb.ReserveRequest(reservation_id=name, model="openai/gpt-5.5", input_tokens_max=1_000)
            await ledger.Reserve(asked)
            await ledger.Settle(pb.SettleRequest(reservation_id=name, usage=used, usage_source="provider_final"))
            await ledger.SetPrice(pb.SetPriceRequest(provider="openai", model="gpt-5.5", input_pico_usd=1_000_000))
        found = [charge async for page in ledger.ExportSpend(pb.ExportSpendRequest()) for charge in page.charges]
        costs = {each.id: (each.cost_nano_usd, each.list_cost_nano_usd) for each in found}
        assert costs == {"discounted": (4_500_000, 5_000_000), "own": (1_000_000, 5_000_000)}

    async def test_every_cost_is_exported_once_and_in_order(self, ledger: CostLedgerStub, clock: FakeClock) -> None:
        await ledger.SetPrice(price(1_000, 2_000))
        for number in range(12):
            await use(ledger, f"r{number:02}", 100, number)
            clock.advance(60)
        found = [charge async for page in ledger.ExportSpend(pb.ExportSpendRequest()) for charge in page.charges]
        assert [charge.id for charge in found] == [f"r{number:02}" for number in range(12)]
        assert [charge.cost_nano_usd for charge in found] == [100 + 2 * number for number in range(12)]
        assert {charge.attribution.agent for charge in found} == {"writer"}
        assert all(each.list_cost_nano_usd == each.cost_nano_usd for each in found)
        late = pb.ExportSpendRequest(since=found[10].incurred_at)
        assert sum([len(page.charges) async for page in ledger.ExportSpend(late)]) == 2
        other = pb.ExportSpendRequest(filter=pb.Attribution(agent="analyst"))
        assert [page async for page in ledger.ExportSpend(other)] == []

    async def test_a_time_that_ends_before_it_begins_is_refused(self, ledger: CostLedgerStub) -> None:
        request = pb.ExportSpendRequest(since=stamp(NOW), until=stamp(NOW - timedelta(hours=1)))
        error = await refusal(collect(ledger, request))
        assert isinstance(error, InvalidArgument)
        assert error.field == "until"


async def collect(ledger: CostLedgerStub, request: pb.ExportSpendRequest) -> list[pb.ExportSpendResponse]:
    return [page async for page in ledger.ExportSpend(request)]


async def read_types(log: EventLogStub, tenant: str) -> AsyncIterator[str]:
    answer = await log.Read(log_pb.ReadRequest(page_size=1_000))
    for event in answer.events:
        if event.tenant == tenant:
            yield event.type
