"""Use cases that only look: forecasts, comparisons of models, and what the same usage costs elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from eventlog.records import Context
from synod.common.money import nano_from_pico
from synod.common.values import Attribution

from cost_ledger.application import CostLedger
from cost_ledger.book import SCOPE_FIELDS, Book, Budget
from cost_ledger.charges import Charges, ModelFigures, Selection, SettledCharge, whole_hours
from cost_ledger.checks import check_model_name, check_period, check_terms
from cost_ledger.commands import Price, TellForecast
from cost_ledger.errors import RequestInvalid, TooMuchAtOnce, remedy
from cost_ledger.forecast import Forecast, History, Limit, forecast
from cost_ledger.ports import BudgetStatus
from cost_ledger.queries import Queries, SpendQuery
from cost_ledger.rates import cost_pico
from cost_ledger.terms import Terms, terms_in, text_of
from cost_ledger.windows import Bounds, bounds

HISTORY: Final = timedelta(days=28)
PRICED_MAX: Final = 200_000
"""Costs that one question prices anew."""
FORECAST_PAGE: Final = 200
"""Budgets that are read together to be forecast."""


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    status: BudgetStatus
    made_at: datetime
    window: Bounds
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model's attempts with what they cost, nano-USD."""

    figures: ModelFigures
    cost: int


@dataclass(frozen=True, slots=True)
class PricedUsage:
    """What usage cost, and what it would have cost. Nano-USD."""

    price: Price
    calls: int
    actual: int
    other: int


@dataclass(frozen=True, slots=True)
class ListedCharge:
    """A cost with what it would be by the price book alone, without the tenant's own prices and factors. Nano-USD."""

    charge: SettledCharge
    list_cost: int


@dataclass(frozen=True, slots=True)
class Reports:
    """Every method acts in the tenant of its context, on views that the caller has waited for."""

    ledger: CostLedger
    queries: Queries
    charges: Charges
    forecast_page: int = FORECAST_PAGE

    async def forecast_budget(self, budget_id: str, share: str, context: Context) -> BudgetForecast:
        """BudgetNotFound for an unknown id; RequestInvalid for a budget of shares without a share."""
        status = await self.ledger.get_budget(budget_id, context, share)
        if status.budget.per and not share:
            problem = f"budget {budget_id} has a limit for each {status.budget.per}: name one"
            raise RequestInvalid("share", share, problem)
        return await self._forecast(status, context.tenant)

    async def tell_forecasts(self, tenant: str) -> int:
        """Have the book say which budgets will now run out, or no longer; how many were looked at.

        Budgets of shares are left out: there may be a share for every conversation.
        """
        looked_at = 0
        async for status in self._budgets(tenant):
            if not status.budget.per:
                made = await self._forecast(status, tenant)
                await self.ledger.tell_forecast(_told(made), Context(tenant, actor="cost-ledger"))
                looked_at += 1
        return looked_at

    async def _budgets(self, tenant: str) -> AsyncIterator[BudgetStatus]:
        after = ""
        while page := await self.queries.budgets(tenant, after, self.forecast_page, self.ledger.clock.now()):
            for status in page:
                yield status
            after = page[-1].budget.budget_id

    async def _forecast(self, status: BudgetStatus, tenant: str) -> BudgetForecast:
        budget, now = status.budget, self.ledger.clock.now()
        until = now.replace(minute=0, second=0, microsecond=0)
        where = _where(budget, status.share)
        selection = Selection(where, until - HISTORY, until, budget.scope.model)
        amounts = await self.charges.hours(tenant, budget.unit, selection)
        # An hour before the first cost says nothing of how costs come.
        first = min(amounts, default=until)
        window = bounds(budget.window, now, budget.time_zone, budget.rolling_s)
        limit = Limit(status.posted, budget.limit, window.end, -(-budget.rolling_s // 3_600))
        made = forecast(History(whole_hours(amounts, first, until), until), limit)
        return BudgetForecast(status, now, window, made)

    async def compare_models(
        self, since: datetime | None, until: datetime | None, context: Context
    ) -> tuple[ComparedModel, ...]:
        """The models that were asked in the time, by name."""
        check_period(since, until)
        figures = await self.charges.models(context.tenant, since, until)
        rows = await self.queries.spend(context.tenant, SpendQuery(("model",), None, since, until))
        costs = {row.group[0]: row.cost for row in rows}
        return tuple(ComparedModel(each, costs.get(each.model, 0)) for each in figures)

    async def price_usage_at(self, model: str, terms: Terms, selection: Selection, context: Context) -> PricedUsage:
        """What every call of the selection would have cost at `model`, call by call, by the price of its time."""
        check_model_name("model", model)
        check_terms(terms)
        check_period(selection.since, selection.until)
        book = await self.ledger.books.read(context.tenant)
        price = self._price(book, model, terms, self.ledger.clock.now())
        if price.source == "unpriced":
            raise _unpriced(model, terms, price)
        calls = actual = other = 0
        async for charge in self.charges.settled(context.tenant, selection):
            if not charge.usage:
                continue
            if calls == PRICED_MAX:
                raise TooMuchAtOnce(PRICED_MAX)
            then = self._price(book, model, terms, charge.incurred_at)
            calls, actual = calls + 1, actual + charge.cost
            other += nano_from_pico(cost_pico(then.rates, charge.usage))
        return PricedUsage(price, calls, actual, other)

    def _price(self, book: Book, model: str, terms: Terms, at: datetime) -> Price:
        return book.price_of(model, self.ledger.prices.price(model, at, terms))

    def export(self, selection: Selection, context: Context) -> AsyncIterator[ListedCharge]:
        """Every settled cost of the selection, the oldest first."""
        check_period(selection.since, selection.until)
        return self._listed(self.charges.settled(context.tenant, selection))

    async def _listed(self, charges: AsyncIterator[SettledCharge]) -> AsyncIterator[ListedCharge]:
        async for charge in charges:
            yield ListedCharge(charge, self._list_cost(charge))

    def _list_cost(self, charge: SettledCharge) -> int:
        """What is not in the price book, or was settled by an amount, has no other price than what it cost."""
        if not (charge.model and charge.usage):
            return charge.cost
        listed = self.ledger.prices.price(charge.model, charge.incurred_at, terms_in(charge.price_context))
        return charge.cost if listed.source == "unpriced" else nano_from_pico(cost_pico(listed.rates, charge.usage))


def _unpriced(model: str, terms: Terms, price: Price) -> RequestInvalid:
    near = f"; priced is: {', '.join(price.near)}" if price.near else ""
    if terms:
        return RequestInvalid("price_context", text_of(terms), f"{model} has no price for it{near}")
    return RequestInvalid("model", model, f"has no price; {remedy(model)}{near}")


def _where(budget: Budget, share: str) -> dict[str, str]:
    scope: Attribution = budget.scope
    wanted = {name: value for name in SCOPE_FIELDS if name != "model" and (value := getattr(scope, name))}
    return wanted | ({budget.per: share} if budget.per else {})


def _told(made: BudgetForecast) -> TellForecast:
    status, found = made.status, made.forecast
    # A rolling window has another name every slice; what is told is of the budget.
    window = "rolling" if status.budget.window == "rolling" else status.window_start
    return TellForecast(
        budget_id=status.budget.budget_id,
        window_start=window,
        runs_out=found.exhausted_p50 is not None,
        exhausted_p50=found.exhausted_p50,
        exhausted_p10=found.exhausted_p10,
        posted=status.posted,
        limit=status.budget.limit,
        at=made.made_at,
    )
