"""Use cases after the fact: price settled costs anew, compare a provider's invoice with the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from eventlog.records import Context
from synod.common.money import nano_from_pico
from synod.cost_ledger.events import ChargeRerated, CostSettled, ReservationReleased

from cost_ledger import invoices
from cost_ledger.book import UNSURE, Book, Reservation
from cost_ledger.books import Books
from cost_ledger.charges import Charges, Selection, SettledCharge
from cost_ledger.checks import check_model_name, check_name, check_period, check_range, check_text
from cost_ledger.commands import COST_NANO_MAX, Cleared, ClearSuspense, ImportInvoice, InvoiceLine, Price, Rerate
from cost_ledger.errors import AlreadyRecorded, RequestInvalid, TooMuchAtOnce
from cost_ledger.freshness import Freshness
from cost_ledger.naming import ANY_MODEL, check_biller, providers_of
from cost_ledger.ports import Doubtful, Prices
from cost_ledger.rates import cost_pico
from cost_ledger.terms import terms_in

RERATED_MAX: Final = 20_000
"""Costs looked at in one call; whoever has more asks for parts of the time."""
AT_ONCE: Final = 256
"""Corrections that wait for the book together, so that it commits them in groups."""
INVOICE_LINES_MAX: Final = 400
"""One invoice is one append to the log, an event for each line that differs."""
CLEARED_AT_ONCE: Final = 64
"""Holds in suspense that a command of an invoice names: what else waits for the book waits for so many."""
DOUBTFUL_PAGE: Final = 256
"""Holds in suspense that are read at a time."""
INVOICE_NANO_MAX: Final = 10**18


@dataclass(frozen=True, slots=True)
class RerateRequest:
    """All settled costs of `model` (empty: all models) in a time, or only those that had no price."""

    model: str
    since: datetime | None
    until: datetime | None
    unpriced_only: bool
    dry_run: bool
    reason: str


@dataclass(slots=True)
class Rerated:
    """What it came to for a model. Nano-USD."""

    charges: int = 0
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class Rerating:
    """`looked_at` costs, of which those in `models` change."""

    looked_at: int = 0
    models: dict[str, Rerated] = field(default_factory=dict)

    def add(self, model: str, before: int, after: int) -> None:
        found = self.models.setdefault(model, Rerated())
        found.charges, found.before, found.after = found.charges + 1, found.before + before, found.after + after


@dataclass(frozen=True, slots=True)
class Invoice:
    """Lines as the provider has them, `ledger` not yet known.

    With `clear_suspense` it is final for the times of its lines: it settles what is in suspense there. `replaces` is the
    id of the invoice that it corrects. Of one's `own_provider` the ledger need not know anything.
    """

    invoice_id: str
    provider: str
    lines: tuple[InvoiceLine, ...]
    clear_suspense: bool = False
    replaces: str = ""
    own_provider: bool = False


@dataclass(frozen=True, slots=True)
class Reconciled:
    """An invoice's lines with what the ledger has for them, and the holds that this import of it cleared.

    Of an invoice that was imported before, the lines are as they were posted then, and `in_suspense` is how many holds it
    would clear by now: it clears no more, but one that replaces it does.
    """

    lines: tuple[InvoiceLine, ...]
    cleared: tuple[Cleared, ...] = ()
    was_imported: bool = False
    in_suspense: int = 0


@dataclass(frozen=True, slots=True)
class Corrections:
    """Every method acts in the tenant of its context. `views` are those that they post by."""

    books: Books
    prices: Prices
    charges: Charges
    doubtful: Doubtful
    views: Freshness

    async def rerate(self, request: RerateRequest, context: Context) -> Rerating:
        """Post, or with dry_run only count, the difference between what costs were and what their price now makes of them.

        A cost whose model has no price keeps its amount; one that turns out to be free gets its price. A correction that
        another call made first is left to that one. RequestInvalid before anything is posted if a cost would come to more
        than one call may; ViewIncomplete if anything is to be posted and a view lacks something.
        """
        _check_rerating(request)
        await (self.views.all() if request.dry_run else self.views.complete(context.tenant))
        book = await self.books.read(context.tenant)
        rerating = Rerating()
        waiting: list[Rerate] = []
        async for charge in self.charges.settled(context.tenant, _selection(request)):
            rerating.looked_at += 1
            if rerating.looked_at > RERATED_MAX:
                raise TooMuchAtOnce(RERATED_MAX)
            if (correction := self._correction(charge, book, request)) is not None:
                waiting.append(correction)
        for start in range(0, len(waiting), AT_ONCE):
            await self._carry_out(waiting[start : start + AT_ONCE], rerating, request.dry_run, context)
        return rerating

    def _correction(self, charge: SettledCharge, book: Book, request: RerateRequest) -> Rerate | None:
        if not charge.usage or (request.unpriced_only and charge.price_source != "unpriced"):
            return None
        listed = self._book_price(charge)
        price = book.price_then(charge.model, listed, charge.incurred_at, charge.price_source, charge.price_version)
        if price is None or price.source == "unpriced":
            return None
        after_pico = cost_pico(price.rates, charge.usage)
        after = nano_from_pico(after_pico)
        if after == charge.cost and not _becomes_sure(charge, price):
            return None
        _check_cost(charge, after)
        return Rerate(
            reservation_id=charge.id,
            revision=charge.revision + 1,
            attribution=charge.attribution,
            model=charge.model,
            before=charge.cost,
            after_pico=after_pico,
            price=price,
            holds=charge.holds,
            incurred_at=charge.incurred_at,
            reason=request.reason,
        )

    def _book_price(self, charge: SettledCharge) -> Price:
        return self.prices.price(charge.model, charge.incurred_at, terms_in(charge.price_context))

    async def _carry_out(
        self, corrections: Sequence[Rerate], rerating: Rerating, dry_run: bool, context: Context
    ) -> None:
        done = [True] * len(corrections)
        if not dry_run:
            done = await asyncio.gather(*(self._rerated(each, context) for each in corrections))
        for each, is_done in zip(corrections, done, strict=True):
            if is_done:
                rerating.add(each.model, each.before, nano_from_pico(each.after_pico))

    async def _rerated(self, command: Rerate, context: Context) -> bool:
        try:
            executed = await self.books.execute(command, context)
        except AlreadyRecorded:
            return False
        return any(isinstance(event, ChargeRerated) for event in executed.events)

    async def import_invoice(self, invoice: Invoice, context: Context) -> Reconciled:
        """The lines with what the ledger has for them. The first time each difference is posted as an adjustment.

        What is in suspense is cleared first, part by part, and the invoice is compared with what has come of that. So an
        import that ends on its way has posted nothing but what was billed, and its repetition does the rest. An invoice
        that is imported is answered as it was posted.

        InvoiceConflict if the id is that of an invoice with other content; InvoiceOverlaps if another bills the same;
        InvoiceOvertaken if a hold that it clears was settled meanwhile; ViewIncomplete if a view lacks something.
        RequestInvalid also for a provider of which there is neither a cost nor a price, unless it is told to be one's own.
        """
        _check_invoice(invoice)
        book = await self.books.read(context.tenant)
        if (known := await self._imported(invoice, book, context.tenant)) is not None:
            return known
        await self.views.complete(context.tenant)
        await self._check_biller(invoice, book, context.tenant)
        command = await self._compared(invoice, context.tenant)
        cleared = await self._clear_suspense(command, context) if invoice.clear_suspense else ()
        if cleared:
            await self.views.complete(context.tenant)
            command = await self._compared(invoice, context.tenant)
        executed = await self.books.execute(command, context)
        if not executed.events and (known := await self._imported(invoice, executed.book, context.tenant)) is not None:
            return replace(known, cleared=cleared)
        return Reconciled(invoices.adjusted(executed.book, command.lines, invoice.replaces), cleared)

    async def _imported(self, invoice: Invoice, book: Book, tenant: str) -> Reconciled | None:
        """What was posted for it; None if it is new. Raises what the book would refuse it for."""
        command = _command(invoice, invoice.lines)
        if invoices.is_new(book, command):
            return None
        await self.views.all()
        lines = invoices.recorded(book, invoice.invoice_id)
        if not lines:
            # It is older than the recording of lines.
            lines = (await self._compared(invoice, tenant)).lines
        in_suspense = await self._in_suspense(command, tenant) if invoice.clear_suspense else 0
        return Reconciled(invoices.adjusted(book, lines, invoice.replaces), (), True, in_suspense)

    async def _check_biller(self, invoice: Invoice, book: Book, tenant: str) -> None:
        """A slip of its provider would be compared with nothing, and posted in full."""
        known = providers_of([*map(str.lower, self.prices.names()), *book.prices])
        if invoice.provider.lower() in known or invoice.replaces:
            return
        if not invoice.own_provider:
            # It reads all costs of the tenant, so it is for what has no price only.
            known |= await self.charges.providers(tenant)
        check_biller(invoice.provider, known, own_provider=invoice.own_provider)

    async def _in_suspense(self, command: ImportInvoice, tenant: str) -> int:
        pages = self._doubtful(command, tenant)
        return sum([len(invoices.clear(command.lines, [0] * len(command.lines), page)) async for page in pages])

    async def _clear_suspense(self, command: ImportInvoice, context: Context) -> tuple[Cleared, ...]:
        """Every line's holds, the oldest first, have what it bills beyond what the ledger has for it."""
        left = [max(line.invoiced - line.ledger, 0) for line in command.lines]
        cleared: list[Cleared] = []
        async for page in self._doubtful(command, context.tenant):
            found = invoices.clear(command.lines, left, page)
            cleared += await self._clear(command, found, context)
        return tuple(cleared)

    async def _clear(
        self, command: ImportInvoice, cleared: tuple[Cleared, ...], context: Context
    ) -> tuple[Cleared, ...]:
        """In as many commands as it takes. Fewer are cleared if the same invoice was imported meanwhile."""
        done = 0
        while waiting := cleared[done : done + CLEARED_AT_ONCE]:
            executed = await self.books.execute(ClearSuspense(command, waiting), context)
            if not executed.events:
                break
            done += sum(isinstance(event, CostSettled | ReservationReleased) for event in executed.events)
        return cleared[:done]

    async def _doubtful(self, command: ImportInvoice, tenant: str) -> AsyncIterator[Sequence[Reservation]]:
        """What is in suspense in the time of the lines, the oldest first; read in pages."""
        billed = [line for line in command.lines if not line.is_credit]
        if not billed:
            return
        since, until, after = min(line.since for line in billed), max(line.until for line in billed), ""
        prefix = f"{command.provider}/"
        while page := await self.doubtful.in_suspense(tenant, prefix, since, until, after, DOUBTFUL_PAGE):
            yield page
            since, after = page[-1].reserved_at, page[-1].reservation_id

    async def _compared(self, invoice: Invoice, tenant: str) -> ImportInvoice:
        """What is to be imported, with what the ledger has for the lines now."""
        found = [0] * len(invoice.lines)
        for part in invoices.parts(invoice.lines, await self._models(invoice, tenant)):
            found[part.line] += await self._cost(invoice.provider, part, tenant)
        lines = [replace(line, ledger=cost) for line, cost in zip(invoice.lines, found, strict=True)]
        return _command(invoice, tuple(lines))

    async def _models(self, invoice: Invoice, tenant: str) -> Sequence[str]:
        """Those with costs that a line may be about by the model's name."""
        named = [line for line in invoice.lines if line.model and not line.is_credit]
        if not named:
            return ()
        since, until = min(line.since for line in named), max(line.until for line in named)
        return await self.charges.billed_names(tenant, f"{invoice.provider}/", since, until)

    async def _cost(self, provider: str, part: invoices.Part, tenant: str) -> int:
        if part.model:
            return await self.charges.billed_by(tenant, part.model, part.since, part.until)
        return await self.charges.total(tenant, f"{provider}/", part.since, part.until)


def _becomes_sure(charge: SettledCharge, price: Price) -> bool:
    return charge.price_source in UNSURE and price.source not in UNSURE


def _check_cost(charge: SettledCharge, after: int) -> None:
    """The book refuses it too, but only after other corrections of the same call were posted."""
    if after > COST_NANO_MAX:
        problem = (
            f"cost {charge.id} would come to {after} nano-USD, and one call to {COST_NANO_MAX} at most; look at the price,"
            " or leave it out by since and until"
        )
        raise RequestInvalid("model", charge.model, problem)


def _selection(request: RerateRequest) -> Selection:
    return Selection({"model": request.model} if request.model else {}, request.since, request.until)


def _command(invoice: Invoice, lines: tuple[InvoiceLine, ...]) -> ImportInvoice:
    return ImportInvoice(invoice.invoice_id, invoice.provider, _digest(invoice), lines, invoice.replaces)


def _digest(invoice: Invoice) -> str:
    rows = [f"{line.model} {line.since.isoformat()} {line.until.isoformat()} {line.invoiced}" for line in invoice.lines]
    how = ["clear suspense"] if invoice.clear_suspense else []
    how += [f"replaces {invoice.replaces}"] if invoice.replaces else []
    return hashlib.sha256("\n".join([invoice.provider, *rows, *how]).encode()).hexdigest()


def _check_rerating(request: RerateRequest) -> None:
    if request.model:
        check_model_name("model", request.model)
    check_period(request.since, request.until)
    check_text("reason", request.reason)
    if not request.reason and not request.dry_run:
        raise RequestInvalid("reason", "", "say why costs change; it stands in every correction")


def _check_invoice(invoice: Invoice) -> None:
    check_name("invoice_id", invoice.invoice_id)
    check_name("provider", invoice.provider)
    check_text("replaces", invoice.replaces)
    if not 1 <= len(invoice.lines) <= INVOICE_LINES_MAX:
        raise RequestInvalid("lines", len(invoice.lines), f"must be 1 to {INVOICE_LINES_MAX}")
    for line in invoice.lines:
        check_period(line.since, line.until)
        check_range("lines.amount_nano_usd", line.invoiced, INVOICE_NANO_MAX, minimum=-INVOICE_NANO_MAX)
        if line.model and not line.model.lower().startswith(f"{invoice.provider.lower()}/"):
            raise RequestInvalid("lines.model", line.model, f"must be empty or begin with {invoice.provider}/")
        if line.model.endswith(ANY_MODEL):
            raise RequestInvalid("lines.model", line.model, "must be empty for all models of the provider")
