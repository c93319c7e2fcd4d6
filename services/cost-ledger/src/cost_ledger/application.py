"""The use cases of the ledger: check what was asked, add price and time, have the book decide."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from eventlog.records import Context
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Quantity, ReservationDenied

from cost_ledger.book import Book, Budget, Reservation
from cost_ledger.books import Books, Executed
from cost_ledger.checks import (
    TEXT_CHARS_MAX,
    TOKENS_MAX,
    check_amount,
    check_attributed_model,
    check_attribution,
    check_budget,
    check_factor,
    check_model,
    check_name,
    check_price,
    check_quantities,
    check_range,
    check_terms,
    check_text,
    check_ttl,
    check_usage,
)
from cost_ledger.commands import (
    OVERRIDE,
    STOCK_MAX,
    Charge,
    CloseStock,
    Command,
    Doubt,
    Expire,
    Price,
    Release,
    Renew,
    Reserve,
    ResumeBudget,
    ReturnStock,
    SetBudget,
    SetPrice,
    SetPriceFactor,
    Settle,
    SuspendBudget,
    TellForecast,
    Unreserved,
)
from cost_ledger.errors import (
    AlreadyRecorded,
    BudgetExceeded,
    BudgetNotFound,
    BudgetSuspended,
    LedgerError,
    RequestInvalid,
    ReservationClosed,
    ReservationConflict,
    ReservationNotFound,
    ReservationSettled,
    remedy,
)
from cost_ledger.naming import check_provider, check_scope_model, check_unprefixed, providers_of
from cost_ledger.ports import BudgetStatus, Clock, Due, History, Prices
from cost_ledger.terms import STANDARD, Terms, terms_in, text_of

TTL_DEFAULT: Final = timedelta(minutes=10)
RENEWED_MAX: Final = timedelta(days=7)
"""How long a hold may live from its admission on, however often it is renewed."""
NEAR_MAX: Final = 3
OUTCOME_PATIENCE_S: Final = 0.02
"""How long outcomes wait for a reservation to be committed with. Nobody waits for them, and what is decided meanwhile is
decided after them."""
EXPIRIES_MAX: Final = 500
"""Holds moved to suspense in one turn."""


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """At most so many tokens of `model`, or `upper_bound` nano-USD unless that is 0; without a model that and `quantities`.

    `ttl` None is the default.
    """

    reservation_id: str
    attribution: Attribution
    model: str
    input_tokens_max: int
    output_tokens_max: int
    upper_bound: int
    ttl: timedelta | None
    terms: Terms = STANDARD
    quantities: tuple[Quantity, ...] = ()
    modalities: frozenset[str] = frozenset()
    holder: str = ""
    """Who asks for it ahead of the call that will use it; empty when that call does."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One reservation of a batch, and in whose name it is asked for."""

    request: ReservationRequest
    context: Context


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was used: `usage`, or `amount` nano-USD if it is not None. `terms` are those billed, None if as reserved."""

    reservation_id: str
    usage: tuple[UsageLine, ...]
    amount: int | None
    usage_source: str
    quantities: tuple[Quantity, ...] = ()
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What an event of another service says was used under a reservation. `terms` are those billed, None if as reserved."""

    reservation_id: str
    usage: tuple[UsageLine, ...]
    usage_source: str
    attribution: Attribution
    model: str
    used_at: datetime
    source_position: int
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class Unbilled:
    """What an event says of an attempt that nobody bills."""

    reservation_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """What an event says of an attempt of which nobody knows, or will learn, whether it is billed."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class Returned:
    """What an event says of reservations made ahead that no call has used, and none will."""

    holder: str
    reservation_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """What an event says of a holder that has ended: of all that it reserved ahead, what was used has been told before."""

    holder: str


Outcome = Use | Unbilled | Unknown | Returned | Closed


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
        (outcome,) = await self.reserve_many((Asked(request, context),))
        if isinstance(outcome, LedgerError):
            raise outcome
        return outcome

    async def reserve_many(self, asked: Sequence[Asked]) -> list[Reservation | LedgerError]:
        """As `reserve` for each in order, in one turn of the book; what one is refused is its outcome alone."""
        commands = [self._reserve_command(each) for each in asked]
        contexts = [each.context for each in asked]
        wanted = [
            (command, context)
            for command, context in zip(commands, contexts, strict=True)
            if isinstance(command, Reserve)
        ]
        executed = iter(await self.books.execute_many(wanted))
        return [
            await self._outcome(command, next(executed), context) if isinstance(command, Reserve) else command
            for command, context in zip(commands, contexts, strict=True)
        ]

    async def renew(self, reservation_id: str, ttl: timedelta | None, context: Context) -> Reservation:
        """Let a hold live `ttl` from now on, the default if None. ReservationClosed once it is settled or released."""
        check_name("reservation_id", reservation_id)
        check_ttl(ttl)
        now = self.clock.now()
        known = await self.get_reservation(reservation_id, context)
        if not known.is_open:
            raise ReservationClosed(reservation_id, known.state)
        expires_at = min(now + (ttl or TTL_DEFAULT), known.reserved_at + RENEWED_MAX)
        executed = await self.books.execute(Renew(reservation_id, now, expires_at), context)
        return _require(executed.book, reservation_id)

    async def settle(self, settlement: Settlement, context: Context) -> Reservation:
        """Post what was used, whatever it is; a second time nothing happens. ReservationNotFound for an unknown id."""
        _check_settlement(settlement)
        command = Settle(
            reservation_id=settlement.reservation_id,
            usage=settlement.usage,
            amount=settlement.amount,
            usage_source=settlement.usage_source,
            at=self.clock.now(),
            quantities=settlement.quantities,
            billed=await self._billed(settlement.reservation_id, settlement.terms, context),
            price_context=None if settlement.terms is None else text_of(settlement.terms),
        )
        return await self._resolve(command, context)

    async def _billed(self, reservation_id: str, terms: Terms | None, context: Context) -> Price | None:
        """The price of the terms that were billed, at the time of the reservation, if they are not those reserved."""
        if terms is None:
            return None
        known = await self.get_reservation(reservation_id, context)
        if not known.model or text_of(terms) == known.price_context:
            return None
        return self.prices.price(known.model, known.reserved_at, terms)

    async def _billed_by_event(self, use: Use, context: Context) -> Price | None:
        """None also when nothing was reserved: then the use is priced by its own terms."""
        try:
            return await self._billed(use.reservation_id, use.terms, context)
        except ReservationNotFound:
            return None

    async def release(self, reservation_id: str, reason: str, context: Context) -> Reservation:
        """Free a hold. The caller vouches that nothing was billed. ReservationSettled if it was."""
        check_name("reservation_id", reservation_id)
        check_text("reason", reason)
        return await self._resolve(Release(reservation_id, reason), context)

    async def get_reservation(self, reservation_id: str, context: Context) -> Reservation:
        check_text("reservation_id", reservation_id)
        book = await self.books.read(context.tenant)
        return book.reservation(reservation_id) or await self._from_history(reservation_id, context)

    async def record(self, outcomes: Sequence[tuple[Outcome, Context]]) -> None:
        """Settle, release or doubt by events, in their order and in one turn of the book.

        A use is recorded even if nothing was reserved; a reservation that never was, or is forgotten, has nothing to be
        released or doubted. However often an outcome is delivered, it counts once. The first error is raised, after all.
        A stock that is too large for one command is closed to the end in turns of its own.
        """
        commands = [
            (command, context) for outcome, context in outcomes for command in await self._commands_by(outcome, context)
        ]
        booked = await self.books.execute_many(commands, OUTCOME_PATIENCE_S)
        for (command, context), executed in zip(commands, booked, strict=True):
            if isinstance(executed, LedgerError):
                if not await self._is_told_already(command, executed, context):
                    raise executed
            elif isinstance(command, CloseStock):
                await self._close_to_the_end(command, executed, context)

    async def _close_to_the_end(self, command: CloseStock, executed: Executed, context: Context) -> None:
        while len(executed.events) == STOCK_MAX:
            executed = await self.books.execute(command, context)

    async def _is_told_already(self, command: Command, error: LedgerError, context: Context) -> bool:
        """Whether nothing is left to do though the book refused the command."""
        match command, error:
            case _, AlreadyRecorded():
                return True
            case Release(), ReservationNotFound():
                return True
            case Settle(), ReservationNotFound():
                # It does not say whose it was, so that a book that has forgotten the reservation cannot record it anew.
                return await self._is_resolved(command, context)
            case _:
                return False

    async def _commands_by(self, outcome: Outcome, context: Context) -> Sequence[Command]:
        match outcome:
            case Use():
                return (await self._settlement_by(outcome, context),)
            case Unbilled(reservation_id, reason):
                return (Release(reservation_id, reason[:TEXT_CHARS_MAX]),)
            case Unknown(reservation_id):
                return (Doubt(reservation_id),)
            case Returned(holder, ids):
                parts = range(0, len(ids), STOCK_MAX)
                return [ReturnStock(holder, ids[first : first + STOCK_MAX]) for first in parts]
            case Closed(holder):
                return (CloseStock(holder),)

    async def _settlement_by(self, use: Use, context: Context) -> Settle:
        attribution = attributed(use.attribution, context.tenant, use.model)
        price = self._price_of_use(use)
        return Settle(
            use.reservation_id,
            use.usage,
            None,
            use.usage_source,
            self.clock.now(),
            use.source_position,
            Unreserved(attribution, use.model, price, use.used_at) if use.model else None,
            billed=None if use.terms is None else await self._billed_by_event(use, context),
            price_context=None if use.terms is None else text_of(use.terms),
        )

    def _price_of_use(self, use: Use) -> Price:
        """Of what may not have been reserved. Terms without a price cost the standard one, as a guess: it is not free."""
        price = self.prices.price(use.model, use.used_at, use.terms or STANDARD)
        if price.source != "unpriced" or not use.terms:
            return price
        standard = self.prices.price(use.model, use.used_at)
        return standard if standard.source == "unpriced" else replace(standard, source="book_fuzzy")

    async def charge(self, charge: Charge, context: Context) -> None:
        """Record a cost, once however often it is delivered. If its id is that of a reservation, it settles that."""
        check_amount("cost_nano_usd", charge.amount)
        known = await self.history.find(context.tenant, charge.charge_id)
        if known is not None and known.state == "settled":
            # Of a reservation that the book may have forgotten, so it could be taken for a cost without one.
            return
        owner = attributed(charge.attribution, context.tenant, "")
        await self._once(replace(charge, attribution=owner, at=self.clock.now()), context)

    async def settle_tool(self, charge: Charge, context: Context) -> None:
        """Settle the reservation of a tool call that failed; without a reservation nothing is known of its cost."""
        settlement = Settle(
            charge.charge_id,
            (),
            charge.amount,
            "provider_final",
            self.clock.now(),
            charge.source_position,
            quantities=charge.quantities,
        )
        await self._is_resolved(settlement, context)

    async def tell_forecast(self, command: TellForecast, context: Context) -> None:
        """Record whether a budget runs out, if that is news."""
        await self._once(command, context)

    async def expire_due(self) -> int:
        """Move holds whose time is over to suspense; how many were due."""
        now = self.clock.now()
        due = await self.history.due(now, EXPIRIES_MAX)
        await asyncio.gather(*(self._expire(each, now) for each in due))
        return len(due)

    async def set_budget(self, command: SetBudget, context: Context) -> BudgetStatus:
        """Create a budget or change its limit or hardness. BudgetFixed if scope or window differ.

        RequestInvalid also for a scope whose model matches nothing that is billed.
        """
        known = (await self.books.read(context.tenant)).budgets.get(command.budget_id)
        check_budget(command, known)
        if command.scope.model:
            check_scope_model(command.scope.model, await self._priced(context))
        executed = await self.books.execute(command, context)
        return _status(executed.book, executed.book.budget(command.budget_id), command.at, "")

    async def suspend_budget(self, command: SuspendBudget, context: Context) -> BudgetStatus:
        """Refuse every new reservation that matches the budget, until it is resumed. BudgetNotFound."""
        check_name("reason", command.reason)
        return await self._changed_budget(command, context)

    async def resume_budget(self, command: ResumeBudget, context: Context) -> BudgetStatus:
        """Let the budget decide by its limit again. BudgetNotFound."""
        return await self._changed_budget(command, context)

    async def _changed_budget(self, command: SuspendBudget | ResumeBudget, context: Context) -> BudgetStatus:
        await self.get_budget(command.budget_id, context)  # refuses an unknown one with what may be meant
        executed = await self.books.execute(command, context)
        return _status(executed.book, executed.book.budget(command.budget_id), self.clock.now(), "")

    async def get_budget(self, budget_id: str, context: Context, share: str = "") -> BudgetStatus:
        """A budget with the amounts of its window now; of one share if every share has the limit for itself."""
        book = await self.books.read(context.tenant)
        if budget_id not in book.budgets:
            raise BudgetNotFound(budget_id, tuple(difflib.get_close_matches(budget_id, book.budgets, n=NEAR_MAX)))
        budget = book.budget(budget_id)
        if share and not budget.per:
            raise RequestInvalid("share", share, f"budget {budget_id} has one limit for all; leave share empty")
        return _status(book, budget, self.clock.now(), share)

    async def set_price(self, price: SetPrice, context: Context, *, own_provider: bool = False) -> NamedPrice:
        """Override the price of a model for the tenant, for reservations from now on.

        A provider whose name is near to a known one is taken for a slip, unless it is said that it is one's own.
        """
        check_price(price)
        priced = await self._priced(context)
        if not own_provider:
            check_provider("provider", price.provider, providers_of(priced))
        check_unprefixed(price.provider, price.model, priced)
        executed = await self.books.execute(replace(price, at=self.clock.now()), context)
        name = f"{price.provider}/{price.model}"
        return NamedPrice(name, Price(executed.book.prices[name.lower()].rates, OVERRIDE, OVERRIDE))

    async def set_price_factor(self, factor: SetPriceFactor, context: Context) -> None:
        """Discount the price book, or mark it up, for the tenant, for reservations from now on."""
        check_factor(factor)
        priced = frozenset(self.prices.names())
        if factor.provider not in (providers := providers_of(priced)):
            check_provider("provider", factor.provider, providers)
            problem = f"has no price in the book that a factor could change; {remedy(factor.provider + '/MODEL')}"
            raise RequestInvalid("provider", factor.provider, problem)
        check_unprefixed(factor.provider, factor.model, priced)
        await self.books.execute(replace(factor, at=self.clock.now()), context)

    async def _priced(self, context: Context) -> frozenset[str]:
        """The models that have a price, of the book or of the tenant."""
        return frozenset((*self.prices.names(), *_own_names(await self.books.read(context.tenant))))

    async def set_first_prices(self, prices: Mapping[str, tuple[int, int]], context: Context) -> None:
        """Gives the tenant a price for each named model that it has none of its own for."""
        own = (await self.books.read(context.tenant)).prices
        for name, (input_pico, output_pico) in prices.items():
            provider, _, model = name.partition("/")
            if name.lower() not in own:
                price = SetPrice(provider, model, input_pico, output_pico, input_pico, input_pico)
                await self.set_price(price, context, own_provider=True)

    async def list_prices(self, provider: str, after: str, limit: int, context: Context) -> tuple[NamedPrice, ...]:
        """At most `limit` prices with names above `after`, ascending, the tenant's own before the book's.

        A model is listed once, in the book's spelling if it has one, and found by its provider in whatever case.
        """
        book = await self.books.read(context.tenant)
        spelled = {name.lower(): name for name in (*_own_names(book), *self.prices.names())}
        begins = f"{provider}/".lower() if provider else ""
        wanted = sorted(name for compared, name in spelled.items() if name > after and compared.startswith(begins))
        return tuple(self._named_price(book, name) for name in wanted[:limit])

    def _named_price(self, book: Book, name: str) -> NamedPrice:
        return NamedPrice(name, book.price_of(name, self.prices.price(name, self.clock.now())))

    def _reserve_command(self, asked: Asked) -> Reserve | RequestInvalid:
        try:
            _check_reservation(asked.request)
        except RequestInvalid as problem:
            return problem
        now, request, tenant = self.clock.now(), asked.request, asked.context.tenant
        attribution = attributed(request.attribution, tenant, request.model)
        return Reserve(
            reservation_id=request.reservation_id,
            request_sha256=_digest(request, attribution),
            attribution=attribution,
            model=request.model,
            input_tokens_max=request.input_tokens_max,
            output_tokens_max=request.output_tokens_max,
            fixed=request.upper_bound or (None if request.model else 0),
            book_price=self.prices.price(request.model, now, request.terms),
            at=now,
            expires_at=now + (request.ttl or TTL_DEFAULT),
            quantities=request.quantities,
            price_context=text_of(request.terms),
            modalities=request.modalities,
            holder=request.holder,
        )

    async def _outcome(
        self, command: Reserve, executed: Executed | LedgerError, context: Context
    ) -> Reservation | LedgerError:
        if isinstance(executed, AlreadyRecorded):
            return await self._repeated(command, context)
        if isinstance(executed, LedgerError):
            return executed
        return _denial(executed.events) or _require(executed.book, command.reservation_id)

    async def _repeated(self, command: Reserve, context: Context) -> Reservation | ReservationConflict:
        known = await self.history.find(context.tenant, command.reservation_id)
        if known is None or known.request_sha256 != command.request_sha256:
            return ReservationConflict(command.reservation_id)
        return known

    async def _is_resolved(self, command: Settle, context: Context) -> bool:
        """Settle what was reserved, remembered or not; False if nothing was."""
        try:
            await self._resolve(command, context)
        except ReservationNotFound:
            return False
        return True

    async def _resolve(self, command: Settle | Release, context: Context) -> Reservation:
        try:
            executed = await self.books.execute(command, context)
        except (ReservationNotFound, AlreadyRecorded):
            return await self._resolve_forgotten(command, context)
        return _require(executed.book, command.reservation_id)

    async def _resolve_forgotten(self, command: Settle | Release, context: Context) -> Reservation:
        """As the book would if it remembered: a bill of what was released is posted, what is settled is not released."""
        known = await self._from_history(command.reservation_id, context)
        match command:
            case Release() if known.state == "settled":
                raise ReservationSettled(known.reservation_id, known.settled)
            case Settle() if known.state != "settled":
                forgotten = await self._priced_anew(known, context)
                try:
                    executed = await self.books.execute(replace(command, forgotten=forgotten), context)
                except AlreadyRecorded:
                    return known  # it was settled, and the view does not have it yet
                return _require(executed.book, known.reservation_id)
        return known

    async def _priced_anew(self, known: Reservation, context: Context) -> Reservation:
        """A released reservation with rates, which no view keeps: those of its time and terms, at the factor pinned then.

        Of a price of the tenant's own nothing older is known than the one that is set now.
        """
        released = replace(known, state="released")
        if known.price_source == "fixed":
            return released
        book = await self.books.read(context.tenant)
        listed = self.prices.price(known.model, known.reserved_at, terms_in(known.price_context))
        own = known.price_source == OVERRIDE
        price = book.price_of(known.model, listed) if own else book.pinned(known, listed)
        return replace(released, rates=price.rates, price_version=price.version, price_source=price.source)

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

    It is the model that is billed that counts, whatever was said of it beside. A budget with the scope root_run_id covers a
    run and all of its members' runs.
    """
    model, root_run_id = model or attribution.model, attribution.root_run_id or attribution.run_id
    whole = (tenant, model, root_run_id)
    # Most are whole already, as the gateway's are: a copy of those would be for nothing.
    if (attribution.tenant_id, attribution.model, attribution.root_run_id) == whole:
        return attribution
    return attribution.model_copy(update={"tenant_id": tenant, "model": model, "root_run_id": root_run_id})


def _own_names(book: Book) -> Iterable[str]:
    return (own.model for own in book.prices.values())


def _status(book: Book, budget: Budget, now: datetime, share: str) -> BudgetStatus:
    hold = budget.share_at(now, budget.share_of(share))
    amounts = book.posted(hold), book.pending(hold), book.suspense(hold)
    return BudgetStatus(budget, hold.window_start, *amounts, share=hold.share)


def _require(book: Book, reservation_id: str) -> Reservation:
    if (known := book.reservation(reservation_id)) is None:
        raise ReservationNotFound(reservation_id)
    return known


def _denial(events: tuple[Event, ...]) -> BudgetExceeded | BudgetSuspended | None:
    return next((_refusal(event) for event in events if isinstance(event, ReservationDenied)), None)


def _refusal(event: ReservationDenied) -> BudgetExceeded | BudgetSuspended:
    if event.suspended_for:
        return BudgetSuspended(event.budget_id, event.suspended_for)
    if event.unit == "nano_usd":
        available, required = event.available_nano_usd, event.required_nano_usd
    else:
        available, required = event.available_quantity, event.required_quantity
    return BudgetExceeded(event.budget_id, available, required, event.unit, event.share)


def _digest(request: ReservationRequest, attribution: Attribution) -> str:
    """What makes two requests the same. The time to live does not: a retry may ask for another."""
    content = (
        attribution.model_dump_json(exclude={"tags"}),
        request.model,
        str(request.input_tokens_max),
        str(request.output_tokens_max),
        str(request.upper_bound),
        *([text_of(request.terms)] if request.terms else ()),
        *(f"{each.unit}={each.quantity}" for each in request.quantities),
        *sorted(request.modalities),
        *(f"tag {tag.name}={tag.value}" for tag in attribution.tags),
        *([f"holder {request.holder}"] if request.holder else ()),
    )
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _check_reservation(request: ReservationRequest) -> None:
    check_name("reservation_id", request.reservation_id)
    check_attribution("attribution", request.attribution)
    check_model(request.model, needed=not (request.upper_bound or request.quantities))
    check_attributed_model(request.attribution.model, request.model)
    check_range("input_tokens_max", request.input_tokens_max, TOKENS_MAX)
    check_range("output_tokens_max", request.output_tokens_max, TOKENS_MAX)
    check_amount("upper_bound_nano_usd", request.upper_bound)
    check_ttl(request.ttl)
    check_terms(request.terms)
    check_quantities(request.quantities)
    check_text("holder", request.holder)


def _check_settlement(settlement: Settlement) -> None:
    check_name("reservation_id", settlement.reservation_id)
    if settlement.amount is not None:
        check_amount("amount_nano_usd", settlement.amount)
    check_usage(settlement.usage)
    check_quantities(settlement.quantities)
    check_terms(settlement.terms or STANDARD)
