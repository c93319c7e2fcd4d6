"""gRPC in: translate, call, translate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc
from servicekit.context import event_context
from servicekit.paging import page_key, page_size
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1 import cost_ledger_pb2_grpc

from cost_ledger import translate
from cost_ledger.application import CostLedger
from cost_ledger.freshness import Freshness
from cost_ledger.queries import Queries

PERMISSIONS: Final = {
    "Reserve": "ledger.reserve",
    "Settle": "ledger.settle",
    "Release": "ledger.settle",
    "RenewReservation": "ledger.reserve",
    "GetReservation": "ledger.read",
    "SetBudget": "budgets.update",
    "GetBudget": "budgets.read",
    "ListBudgets": "budgets.read",
    "QuerySpend": "spend.read",
    "ListPrices": "prices.read",
    "SetPrice": "prices.update",
}

Call = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class CostLedgerRpc(cost_ledger_pb2_grpc.CostLedgerServicer):
    ledger: CostLedger
    queries: Queries
    freshness: Freshness

    async def Reserve(self, request: pb.ReserveRequest, context: Call) -> pb.Reservation:
        attribution = request.attribution
        caller = event_context(correlation=attribution.root_run_id or attribution.run_id)
        wanted = translate.to_reservation_request(request, caller.tenant)
        return translate.from_reservation(await self.ledger.reserve(wanted, caller))

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

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Call) -> pb.Budget:
        caller = event_context()
        wanted = translate.to_set_budget(request, caller.tenant, self.ledger.clock.now())
        return translate.from_budget(await self.ledger.set_budget(wanted, caller))

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
        await self.freshness.all()
        return translate.from_spend(await self.queries.spend(tenant, query))

    async def ListPrices(self, request: pb.ListPricesRequest, context: Call) -> pb.ListPricesResponse:
        size, after = page_size(request.page_size), page_key(request.page_token)
        found = await self.ledger.list_prices(request.provider, after, size, event_context())
        return translate.from_prices(found, size, self.ledger.prices.version)

    async def SetPrice(self, request: pb.SetPriceRequest, context: Call) -> pb.Price:
        return translate.from_price(await self.ledger.set_price(translate.to_set_price(request), event_context()))
