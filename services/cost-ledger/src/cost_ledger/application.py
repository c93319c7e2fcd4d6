"""The use cases of the ledger: check what was asked, add price and time, have the book decide."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from eventlog.records import Context
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Hold, ReservationDenied

from cost_ledger.book import SCOPE_FIELDS, Book, Budget, Reservation
from cost_ledger.books import Books
from cost_ledger.commands import (
    OVERRIDE,
    Charge,
    Command,
    Expire,
    Price,
    Release,
    Reserve,
    SetBudget,
    SetPrice,
    Settle,
    Unreserved,
)
from cost_ledger.errors import (
    AlreadyRecorded,
    BudgetExceeded,
    BudgetNotFound,
    RequestInvalid,
    ReservationConflict,
    ReservationNotFound,
)
from cost_ledger.ports import BudgetStatus, Clock, Due, History, Prices
from cost_ledger.rates import RateCard

TTL_DEFAULT: Final = timedelta(minutes=10)
TTL_MAX: Final = timedelta(hours=24)
AMOUNT_NANO_MAX: Final = 10**18
"""One thousand million US dollars: whatever is above is a mistake, and sums of such amounts still fit into int64."""
TOKENS_MAX: Final = 10**12
RATE_PICO_MAX: Final = 10**12
"""One US dollar per token."""
TEXT_CHARS_MAX: Final = 256
USAGE_LINES_MAX: Final = 64
NEAR_MAX: Final = 3
EXPIRIES_MAX: Final = 500
"""Holds moved to suspense in one turn."""

_BUDGET_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}")


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """At most so many tokens of `model`, or `upper_bound` nano-USD unless that is 0. `ttl` None is the default."""

    reservation_id: str
    attribution: Attribution
    model: str
    input_tokens_max: int
    output_tokens_max: int
    upper_bound: int
    ttl: timedelta | None


@dataclass(frozen=True, slots=True)
class Use:
    """What an event of another service says was used under a reservation."""

    reservation_id: str
    usage: tuple[UsageLine, ...]
    usage_source: str
    attribution: Attribution
    model: str
    used_at: datetime
    source_position: int


@dataclass(frozen=True, slots=True)
class NamedPrice:
    """The price of "provider/model" that a tenant pays now."""

    name: str
    price: Price


@dataclass(frozen=True, slots=True)
class CostLedger:
    """Every method acts in the tenant of its context, and raises the errors of errors.py and of the event log."""

    books: Books
    prices: Prices
    history: History
    clock: Clock

    async def reserve(self, request: ReservationRequest, context: Context) -> Reservation:
        """Hold the upper bound in all budgets that match, or in none. The same request again gets the same answer."""
        _check_reservation(request)
        command = self._reserve_command(request, context.tenant)
        try:
            executed = await self.books.execute(command, context)
        except AlreadyRecorded:
            return await self._repeated(command, context)
        _raise_denied(executed.events)
        return _require(executed.book, request.reservation_id)

    async def settle(
        self,
        reservation_id: str,
        usage: tuple[UsageLine, ...],
        amount: int | None,
        usage_source: str,
        context: Context,
    ) -> Reservation:
        """Post what was used, whatever it is; a second time nothing happens. ReservationNotFound for an unknown id."""
        _check_settlement(reservation_id, usage, amount)
        command = Settle(reservation_id, usage, amount, usage_source, self.clock.now())
        return await self._resolve(reservation_id, command, context)

    async def release(self, reservation_id: str, reason: str, context: Context) -> Reservation:
        """Free a hold. The caller vouches that nothing was billed. ReservationSettled if it was."""
        _check_text("reason", reason)
        return await self._resolve(reservation_id, Release(reservation_id, reason), context)

    async def get_reservation(self, reservation_id: str, context: Context) -> Reservation:
        book = await self.books.read(context.tenant)
        return book.reservation(reservation_id) or await self._from_history(reservation_id, context)

    async def settle_use(self, use: Use, context: Context) -> None:
        """Settle by an event. It is recorded even if nothing was reserved, and once however often it is delivered."""
        attribution = attributed(use.attribution, context.tenant, use.model)
        price = self.prices.price(use.model, use.used_at)
        unreserved = Unreserved(attribution, use.model, price, use.used_at) if use.model else None
        await self._once(
            Settle(
                use.reservation_id,
                use.usage,
                None,
                use.usage_source,
                self.clock.now(),
                use.source_position,
                unreserved,
            ),
            context,
        )

    async def release_unbilled(self, reservation_id: str, reason: str, context: Context) -> None:
        """Release by an event; a reservation that never was, or is forgotten, holds nothing to release."""
        try:
            await self._once(Release(reservation_id, reason[:TEXT_CHARS_MAX]), context)
        except ReservationNotFound:
            return

    async def charge(self, charge: Charge, context: Context) -> None:
        """Record a cost that has no reservation, once however often it is delivered."""
        _check_amount("cost_nano_usd", charge.amount)
        owner = attributed(charge.attribution, context.tenant, "")
        await self._once(replace(charge, attribution=owner), context)

    async def expire_due(self) -> int:
        """Move holds whose time is over to suspense; how many were due."""
        now = self.clock.now()
        due = await self.history.due(now, EXPIRIES_MAX)
        await asyncio.gather(*(self._expire(each, now) for each in due))
        return len(due)

    async def set_budget(self, command: SetBudget, context: Context) -> BudgetStatus:
        """Create a budget or change its limit or hardness. BudgetFixed if scope or window differ."""
        _check_budget(command)
        executed = await self.books.execute(command, context)
        return _status(executed.book, executed.book.budget(command.budget_id), command.at)

    async def get_budget(self, budget_id: str, context: Context) -> BudgetStatus:
        book = await self.books.read(context.tenant)
        if budget_id not in book.budgets:
            raise BudgetNotFound(budget_id, tuple(difflib.get_close_matches(budget_id, book.budgets, n=NEAR_MAX)))
        return _status(book, book.budget(budget_id), self.clock.now())

    async def set_price(self, price: SetPrice, context: Context) -> NamedPrice:
        """Override the price of a model for the tenant, for reservations from now on."""
        _check_price(price)
        executed = await self.books.execute(price, context)
        name = f"{price.provider}/{price.model}"
        return NamedPrice(name, Price(executed.book.prices[name], OVERRIDE, OVERRIDE))

    async def set_first_prices(self, prices: Mapping[str, tuple[int, int]], context: Context) -> None:
        """Gives the tenant a price for each named model that it has none of its own for."""
        own = (await self.books.read(context.tenant)).prices
        for name, (input_pico, output_pico) in prices.items():
            provider, _, model = name.partition("/")
            if name not in own:
                price = SetPrice(provider, model, input_pico, output_pico, input_pico, input_pico)
                await self.set_price(price, context)

    async def list_prices(self, provider: str, after: str, limit: int, context: Context) -> tuple[NamedPrice, ...]:
        """At most `limit` prices with names above `after`, ascending, the tenant's own before the book's."""
        own = (await self.books.read(context.tenant)).prices
        names = sorted({*self.prices.names(), *own})
        wanted = [name for name in names if name > after and (not provider or name.startswith(f"{provider}/"))]
        return tuple(self._named_price(name, own.get(name)) for name in wanted[:limit])

    def _named_price(self, name: str, own: RateCard | None) -> NamedPrice:
        if own is not None:
            return NamedPrice(name, Price(own, OVERRIDE, OVERRIDE))
        return NamedPrice(name, self.prices.price(name, self.clock.now()))

    def _reserve_command(self, request: ReservationRequest, tenant: str) -> Reserve:
        now = self.clock.now()
        attribution = attributed(request.attribution, tenant, request.model)
        return Reserve(
            reservation_id=request.reservation_id,
            request_sha256=_digest(replace(request, attribution=attribution)),
            attribution=attribution,
            model=request.model,
            input_tokens_max=request.input_tokens_max,
            output_tokens_max=request.output_tokens_max,
            fixed=request.upper_bound or None,
            book_price=self.prices.price(request.model, now),
            at=now,
            expires_at=now + (request.ttl or TTL_DEFAULT),
        )

    async def _repeated(self, command: Reserve, context: Context) -> Reservation:
        known = await self.history.find(context.tenant, command.reservation_id)
        if known is None or known.request_sha256 != command.request_sha256:
            raise ReservationConflict(command.reservation_id)
        return known

    async def _resolve(self, reservation_id: str, command: Command, context: Context) -> Reservation:
        try:
            executed = await self.books.execute(command, context)
        except (ReservationNotFound, AlreadyRecorded):
            return await self._from_history(reservation_id, context)
        return _require(executed.book, reservation_id)

    async def _from_history(self, reservation_id: str, context: Context) -> Reservation:
        known = await self.history.find(context.tenant, reservation_id)
        if known is None:
            raise ReservationNotFound(reservation_id)
        return known

    async def _once(self, command: Command, context: Context) -> None:
        try:
            await self.books.execute(command, context)
        except AlreadyRecorded:
            return

    async def _expire(self, due: Due, now: datetime) -> None:
        await self._once(Expire(due.reservation_id, now), Context(due.tenant, actor="cost-ledger"))


def attributed(attribution: Attribution, tenant: str, model: str) -> Attribution:
    """An attribution made whole: the caller's tenant, the model that is used, and a run that is its own root.

    So a budget with the scope root_run_id covers a run and all of its members' runs.
    """
    return attribution.model_copy(
        update={
            "tenant_id": tenant,
            "model": attribution.model or model,
            "root_run_id": attribution.root_run_id or attribution.run_id,
        }
    )


def _status(book: Book, budget: Budget, now: datetime) -> BudgetStatus:
    hold: Hold = budget.hold_at(now)
    return BudgetStatus(budget, hold.window_start, book.posted(hold), book.pending(hold))


def _require(book: Book, reservation_id: str) -> Reservation:
    if (known := book.reservation(reservation_id)) is None:
        raise ReservationNotFound(reservation_id)
    return known


def _raise_denied(events: tuple[Event, ...]) -> None:
    for event in events:
        if isinstance(event, ReservationDenied):
            raise BudgetExceeded(event.budget_id, event.available_nano_usd, event.required_nano_usd)


def _digest(request: ReservationRequest) -> str:
    """What makes two requests the same. The time to live does not: a retry may ask for another."""
    content = (
        request.attribution.model_dump_json(),
        request.model,
        str(request.input_tokens_max),
        str(request.output_tokens_max),
        str(request.upper_bound),
    )
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _check_reservation(request: ReservationRequest) -> None:
    _check_name("reservation_id", request.reservation_id)
    _check_attribution("attribution", request.attribution)
    _check_text("model", request.model)
    if not request.model and not request.upper_bound:
        raise RequestInvalid("model", "", "give a model with token bounds, or upper_bound_nano_usd")
    if request.model and "/" not in request.model:
        raise RequestInvalid("model", request.model, "must be written provider/model, such as openai/gpt-5.5")
    _check_range("input_tokens_max", request.input_tokens_max, TOKENS_MAX)
    _check_range("output_tokens_max", request.output_tokens_max, TOKENS_MAX)
    _check_amount("upper_bound_nano_usd", request.upper_bound)
    if request.ttl is not None and not timedelta(0) < request.ttl <= TTL_MAX:
        raise RequestInvalid("ttl", str(request.ttl), "must be above 0 and at most 24 hours")


def _check_settlement(reservation_id: str, usage: tuple[UsageLine, ...], amount: int | None) -> None:
    _check_name("reservation_id", reservation_id)
    if amount is not None:
        _check_amount("amount_nano_usd", amount)
    if len(usage) > USAGE_LINES_MAX:
        raise RequestInvalid("usage", len(usage), f"has at most {USAGE_LINES_MAX} lines")
    for line in usage:
        _check_range("usage.quantity", line.quantity, TOKENS_MAX)


def _check_budget(command: SetBudget) -> None:
    if not _BUDGET_ID.fullmatch(command.budget_id):
        problem = "must be 1 to 64 characters of A-Z a-z 0-9 . _ : / @ -, the first a letter or digit"
        raise RequestInvalid("budget_id", command.budget_id, problem)
    _check_attribution("scope", command.scope)
    _check_amount("limit_nano_usd", command.limit)


def _check_price(price: SetPrice) -> None:
    _check_name("provider", price.provider)
    _check_name("model", price.model)
    _check_range("input_pico_usd", price.input_pico, RATE_PICO_MAX)
    _check_range("output_pico_usd", price.output_pico, RATE_PICO_MAX)
    _check_range("cache_read_pico_usd", price.cache_read_pico, RATE_PICO_MAX)
    _check_range("cache_write_pico_usd", price.cache_write_pico, RATE_PICO_MAX)


def _check_attribution(field: str, attribution: Attribution) -> None:
    for name in SCOPE_FIELDS:
        _check_text(f"{field}.{name}", getattr(attribution, name))


def _check_name(field: str, value: str) -> None:
    if not value:
        raise RequestInvalid(field, value, "must not be empty")
    _check_text(field, value)


def _check_text(field: str, value: str) -> None:
    if len(value) > TEXT_CHARS_MAX:
        raise RequestInvalid(field, value[:32], f"has {len(value)} characters, at most {TEXT_CHARS_MAX} are allowed")


def _check_amount(field: str, value: int) -> None:
    _check_range(field, value, AMOUNT_NANO_MAX)


def _check_range(field: str, value: int, maximum: int) -> None:
    if not 0 <= value <= maximum:
        raise RequestInvalid(field, value, f"must be from 0 to {maximum}")
