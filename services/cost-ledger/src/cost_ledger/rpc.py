"""gRPC in: translate, call, translate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import grpc
from servicekit.context import event_context
from servicekit.errors import ServiceError
from servicekit.paging import page_key, page_size
from servicekit.telemetry import continuing
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1 import cost_ledger_pb2_grpc

from cost_ledger import translate
from cost_ledger.application import Asked, CostLedger
from cost_ledger.checks import check_batch, check_correlation, check_period
from cost_ledger.commands import ResumeBudget, SuspendBudget
from cost_ledger.corrections import Corrections
from cost_ledger.errors import RequestInvalid
from cost_ledger.freshness import Freshness
from cost_ledger.queries import LATEST, Queries
from cost_ledger.reports import Reports

PERMISSIONS: Final = {
    "Reserve": "ledger.reserve",
    "ReserveMany": "ledger.reserve",
    "Settle": "ledger.settle",
    "Release": "ledger.settle",
    "RenewReservation": "ledger.reserve",
    "GetReservation": "ledger.read",
    "ListSuspense": "ledger.read",
    "SetBudget": "budgets.update",
    "SuspendBudget": "budgets.update",
    "ResumeBudget": "budgets.update",
    "GetBudget": "budgets.read",
    "ListBudgets": "budgets.read",
    "QuerySpend": "spend.read",
    "ListPrices": "prices.read",
    "SetPrice": "prices.update",
    "SetPriceFactor": "prices.update",
    "ForecastBudget": "budgets.read",
    "CompareModels": "spend.read",
    "PriceUsageAt": "spend.read",
    "RerateCharges": "prices.update",
    "ImportInvoice": "prices.update",
    "ExportSpend": "spend.read",
}

EXPORT_PAGE: Final = 500
"""Costs in one message of an export."""

Call = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class CostLedgerRpc(cost_ledger_pb2_grpc.CostLedgerServicer):
    ledger: CostLedger
    queries: Queries
    reports: Reports
    corrections: Corrections
    freshness: Freshness

    async def Reserve(self, request: pb.ReserveRequest, context: Call) -> pb.Reservation:
        caller = event_context(correlation=_correlation(request))
        wanted = translate.to_reservation_request(request, caller.tenant)
        return translate.from_reservation(await self.ledger.reserve(wanted, caller))

    async def ReserveMany(self, request: pb.ReserveManyRequest, context: Call) -> pb.ReserveManyResponse:
        check_batch(len(request.items))
        asked = [_reservation_of(item) for item in request.items]
        answers = iter(await self.ledger.reserve_many([each for each in asked if isinstance(each, Asked)]))
        return translate.from_outcomes([next(answers) if isinstance(each, Asked) else each for each in asked])

    async def Settle(self, request: pb.SettleRequest, context: Call) -> pb.Reservation:
        settled = await self.ledger.settle(translate.to_settlement(request), event_context())
        return translate.from_reservation(settled)

    async def Release(self, request: pb.ReleaseRequest, context: Call) -> pb.Reservation:
        released = await self.ledger.release(request.reservation_id, request.reason, event_context())
        return translate.from_reservation(released)

    async def RenewReservation(self, request: pb.RenewReservationRequest, context: Call) -> pb.Reservation:
        renewed = await self.ledger.renew(request.reservation_id, translate.to_ttl(request), event_context())
        return translate.from_reservation(renewed)

    async def GetReservation(self, request: pb.GetReservationRequest, context: Call) -> pb.Reservation:
        found = await self.ledger.get_reservation(request.reservation_id, event_context())
        return translate.from_reservation(found)

    async def ListSuspense(self, request: pb.ListSuspenseRequest, context: Call) -> pb.ListSuspenseResponse:
        size, (since, after) = page_size(request.page_size), translate.to_place(request.page_token)
        await self.freshness.own()
        found = await self.queries.in_suspense(event_context().tenant, "", since, LATEST, after, size)
        return translate.from_suspense(found, size)

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Call) -> pb.Budget:
        caller = event_context()
        wanted = translate.to_set_budget(request, caller.tenant, self.ledger.clock.now())
        return translate.from_budget(await self.ledger.set_budget(wanted, caller))

    async def SuspendBudget(self, request: pb.SuspendBudgetRequest, context: Call) -> pb.Budget:
        wanted = SuspendBudget(request.budget_id, request.reason)
        return translate.from_budget(await self.ledger.suspend_budget(wanted, event_context()))

    async def ResumeBudget(self, request: pb.ResumeBudgetRequest, context: Call) -> pb.Budget:
        wanted = ResumeBudget(request.budget_id)
        return translate.from_budget(await self.ledger.resume_budget(wanted, event_context()))

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Call) -> pb.Budget:
        found = await self.ledger.get_budget(request.budget_id, event_context(), request.share)
        return translate.from_budget(found)

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Call) -> pb.ListBudgetsResponse:
        size, after = page_size(request.page_size), page_key(request.page_token)
        await self.freshness.own()
        found = await self.queries.budgets(event_context().tenant, after, size, self.ledger.clock.now())
        return translate.from_budgets(found, size)

    async def QuerySpend(self, request: pb.QuerySpendRequest, context: Call) -> pb.QuerySpendResponse:
        tenant = event_context().tenant
        query = translate.to_spend_query(request, tenant)
        check_period(query.since, query.until, "from")
        await self.freshness.all()
        return translate.from_spend(await self.queries.spend(tenant, query))

    async def ListPrices(self, request: pb.ListPricesRequest, context: Call) -> pb.ListPricesResponse:
        size, after = page_size(request.page_size), page_key(request.page_token)
        found = await self.ledger.list_prices(request.provider, after, size, event_context())
        return translate.from_prices(found, size, self.ledger.prices.version)

    async def SetPrice(self, request: pb.SetPriceRequest, context: Call) -> pb.Price:
        price = translate.to_set_price(request)
        set_ = await self.ledger.set_price(price, event_context(), own_provider=request.own_provider)
        return translate.from_price(set_)

    async def SetPriceFactor(self, request: pb.SetPriceFactorRequest, context: Call) -> pb.PriceFactor:
        await self.ledger.set_price_factor(translate.to_set_price_factor(request), event_context())
        return translate.from_price_factor(request)

    async def ForecastBudget(self, request: pb.ForecastBudgetRequest, context: Call) -> pb.BudgetForecast:
        await self.freshness.all()
        made = await self.reports.forecast_budget(request.budget_id, request.share, event_context())
        return translate.from_forecast(made)

    async def CompareModels(self, request: pb.CompareModelsRequest, context: Call) -> pb.CompareModelsResponse:
        await self.freshness.all()
        since, until = translate.to_period(request)
        return translate.from_comparison(await self.reports.compare_models(since, until, event_context()))

    async def PriceUsageAt(self, request: pb.PriceUsageAtRequest, context: Call) -> pb.PriceUsageAtResponse:
        caller = event_context()
        selection = translate.to_selection(request, caller.tenant)
        await self.freshness.all()
        found = await self.reports.price_usage_at(request.model, translate.to_terms(request), selection, caller)
        return translate.from_priced_usage(request.model, found)

    async def RerateCharges(self, request: pb.RerateChargesRequest, context: Call) -> pb.RerateChargesResponse:
        found = await self.corrections.rerate(translate.to_rerating(request), event_context())
        return translate.from_rerating(found, dry_run=request.dry_run)

    async def ImportInvoice(self, request: pb.ImportInvoiceRequest, context: Call) -> pb.Reconciliation:
        invoice = translate.to_invoice(request)
        return translate.from_reconciliation(invoice, await self.corrections.import_invoice(invoice, event_context()))

    async def ExportSpend(self, request: pb.ExportSpendRequest, context: Call) -> AsyncIterator[pb.ExportSpendResponse]:
        caller = event_context()
        selection = translate.to_selection(request, caller.tenant)
        await self.freshness.all()
        page: list[pb.ExportedCharge] = []
        async for charge in self.reports.export(selection, caller):
            page.append(translate.from_charge(charge))
            if len(page) == EXPORT_PAGE:
                yield pb.ExportSpendResponse(charges=page)
                page = []
        if page:
            yield pb.ExportSpendResponse(charges=page)


def _reservation_of(item: pb.ReserveManyRequest.Item) -> Asked | ServiceError | RequestInvalid:
    """What an item asks for and in whose name, or why it cannot be asked."""
    try:
        check_correlation("actor", item.actor)
        check_correlation("correlation", item.correlation)
        with continuing(item.traceparent):
            caller = event_context(correlation=_correlation(item.reserve) or item.correlation, actor=item.actor)
        return Asked(translate.to_reservation_request(item.reserve, caller.tenant), caller)
    except (ServiceError, RequestInvalid) as error:
        return error


def _correlation(request: pb.ReserveRequest) -> str:
    """The run that all is for, if it is for one."""
    name = "root_run_id" if request.attribution.root_run_id else "run_id"
    correlation: str = getattr(request.attribution, name)
    check_correlation(f"attribution.{name}", correlation)
    return correlation
