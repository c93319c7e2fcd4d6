"""The composition root of cost-ledger."""

import asyncio
from functools import partial
from typing import Final

from eventlog.folding import ProjectorLimits
from eventlog.records import Context
from eventlog.shared_source import SharedStreamSource
from eventlog.sources import StreamSource
from servicekit.app import run
from servicekit.host import Host
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import add_CostLedgerServicer_to_server

from cost_ledger.application import CostLedger
from cost_ledger.books import Books
from cost_ledger.charges import Charges
from cost_ledger.corrections import Corrections
from cost_ledger.expiry import Expiry
from cost_ledger.forecasting import Forecasting
from cost_ledger.freshness import Freshness
from cost_ledger.importing import Importing
from cost_ledger.model_calls import ModelCalls
from cost_ledger.ports import Clock
from cost_ledger.prices import load_price_book
from cost_ledger.projections import BudgetsView, ReservationsView, SpendView
from cost_ledger.queries import Queries
from cost_ledger.reports import Reports
from cost_ledger.rpc import PERMISSIONS, CostLedgerRpc
from cost_ledger.settings import Settings
from cost_ledger.subscriptions import LLM_GATEWAY, TOOL_EXECUTOR, ModelUsage, ToolUsage
from cost_ledger.telemetry import Telemetry
from cost_ledger.translate import ERRORS

UNHURRIED: Final = ProjectorLimits(pace_s=0.5)
"""Of views that only questions read. Those wait until what was written before them is folded, which is done at once."""

RELAY_PACE_S: Final = 0.05
"""Of its events, for which nobody waits as the callers of Reserve do for what relaying takes of the machine."""


async def compose(host: Host[Settings]) -> None:
    log = await host.open_log(relay_pace_s=RELAY_PACE_S)
    prices = await asyncio.to_thread(load_price_book)
    await Importing(log, host.clock).tell(prices)
    telemetry = Telemetry(host.metrics.registry, (*prices.names(), *host.settings.first_prices))
    books, queries = Books(log, host.clock, booked=telemetry.booked), Queries(host.pool)
    host.on_stop(books.close)
    ledger = CostLedger(books, prices, queries, host.clock)
    spend, budgets, reservations = (
        host.add_view(view, limits=UNHURRIED) for view in (SpendView(), BudgetsView(), ReservationsView())
    )
    model_calls = SharedStreamSource(host.nats, LLM_GATEWAY)
    uses = [
        host.add_view(ModelUsage(ledger), model_calls),
        host.add_view(ToolUsage(ledger), StreamSource(host.nats, TOOL_EXECUTOR)),
    ]
    freshness = Freshness(
        log, [spend, budgets, reservations], [*uses, host.add_view(ModelCalls(), model_calls, UNHURRIED)]
    )
    charges = Charges(host.pool)
    reports = Reports(ledger, queries, charges)
    corrections = Corrections(books, prices, charges, queries, Freshness(log, [spend, reservations], uses))
    servicer = CostLedgerRpc(ledger, queries, reports, corrections, freshness)
    host.add_rpc(add_CostLedgerServicer_to_server, servicer, PERMISSIONS, ERRORS)
    host.add_measurement(partial(_measure, queries, telemetry, host.clock))
    host.add_task("expiry", Expiry(ledger).run)
    host.add_task("forecasting", Forecasting(reports).run)
    context = Context(tenant=host.settings.first_prices_tenant, actor=host.settings.service)
    await ledger.set_first_prices(host.settings.first_prices, context)


async def _measure(queries: Queries, telemetry: Telemetry, clock: Clock) -> None:
    telemetry.standing(await queries.standing(clock.now()))


def main() -> int:
    return run(Settings, compose)
