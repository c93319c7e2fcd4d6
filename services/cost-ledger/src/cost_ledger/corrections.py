"""Use cases after the fact: price settled costs anew, compare a provider's invoice with the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from eventlog.records import Context
from synod.common.money import nano_from_pico
from synod.cost_ledger.events import ChargeRerated

from cost_ledger import invoices
from cost_ledger.book import Book, Reservation
from cost_ledger.books import Books
from cost_ledger.charges import Charges, Selection, SettledCharge
from cost_ledger.checks import check_model_name, check_name, check_period, check_range, check_text
from cost_ledger.commands import Cleared, ImportInvoice, InvoiceLine, Price, Rerate
from cost_ledger.errors import AlreadyRecorded, RequestInvalid, TooMuchAtOnce
from cost_ledger.ports import Doubtful, Prices
from cost_ledger.rates import cost_pico
from cost_ledger.terms import terms_in

RERATED_MAX: Final = 20_000
"""Costs looked at in one call; whoever has more asks for parts of the time."""
AT_ONCE: Final = 256
"""Corrections that wait for the book together, so that it commits them in groups."""
INVOICE_LINES_MAX: Final = 400
"""One invoice is one append to the log, an event for each line that differs."""
CLEARED_MAX: Final = 200
"""Holds in suspense that one invoice may clear; they are in the same append."""
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
    id of the invoice that it corrects.
    """

    invoice_id: str
    provider: str
    lines: tuple[InvoiceLine, ...]
    clear_suspense: bool = False
    replaces: str = ""

    @property
    def billed(self) -> tuple[InvoiceLine, ...]:
        """What is compared with the ledger: all but credits."""
        return tuple(line for line in self.lines if not line.is_credit)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """An invoice's lines with what the ledger has for them, and the holds that it cleared."""

    lines: tuple[InvoiceLine, ...]
    cleared: tuple[Cleared, ...] = ()


@dataclass(frozen=True, slots=True)
class Corrections:
    """Every method acts in the tenant of its context, on views that the caller has waited for."""

    books: Books
    prices: Prices
    charges: Charges
    doubtful: Doubtful

    async def rerate(self, request: RerateRequest, context: Context) -> Rerating:
        """Post, or with dry_run only count, the difference between what costs were and what their price now makes of them.

        A cost whose model has no price keeps its amount. A correction that another call made first is left to that one.
        """
        _check_rerating(request)
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
        price = book.price_then(charge.model, self._book_price(charge), charge.incurred_at, charge.price_source)
        if price is None or price.source == "unpriced":
            return None
        after_pico = cost_pico(price.rates, charge.usage)
        if nano_from_pico(after_pico) == charge.cost:
            return None
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

        InvoiceConflict if the id is that of an invoice with other content; InvoiceOverlaps if another bills the same;
        InvoiceOvertaken if a hold that it clears was settled meanwhile; TooMuchAtOnce if it would clear too many.
        """
        _check_invoice(invoice)
        lines = [await self._compared(invoice.provider, line, context.tenant) for line in invoice.lines]
        doubtful = await self._doubtful(invoice, context.tenant)
        reconciled = _cleared(invoice, lines, doubtful)
        command = ImportInvoice(
            invoice.invoice_id,
            invoice.provider,
            _digest(invoice),
            reconciled.lines,
            reconciled.cleared,
            invoice.replaces,
        )
        executed = await self.books.execute(command, context)
        return replace(reconciled, lines=invoices.adjusted(executed.book, reconciled.lines, invoice.replaces))

    async def _doubtful(self, invoice: Invoice, tenant: str) -> Sequence[Reservation]:
        if not (invoice.clear_suspense and invoice.billed):
            return ()
        since, until = min(line.since for line in invoice.billed), max(line.until for line in invoice.billed)
        found = await self.doubtful.in_suspense(tenant, f"{invoice.provider}/", since, until, CLEARED_MAX + 1)
        if len(found) > CLEARED_MAX:
            raise TooMuchAtOnce(CLEARED_MAX)
        return found

    async def _compared(self, provider: str, line: InvoiceLine, tenant: str) -> InvoiceLine:
        if line.is_credit:
            return line
        if line.model:
            found = await self.charges.of_model(tenant, line.model, line.since, line.until)
        else:
            found = await self.charges.total(tenant, f"{provider}/", line.since, line.until)
        return InvoiceLine(line.model, line.since, line.until, line.invoiced, found)


def _cleared(invoice: Invoice, lines: Iterable[InvoiceLine], doubtful: Sequence[Reservation]) -> Reconciled:
    """One line after the other, so that a hold that two of them are about is cleared once and counts in both."""
    cleared: dict[str, Cleared] = {}
    compared: list[InvoiceLine] = []
    for line in lines:
        if line.is_credit:
            compared.append(line)
            continue
        meant = [each for each in doubtful if _is_about(line, each)]
        known = sum(cleared[each.reservation_id].amount for each in meant if each.reservation_id in cleared)
        billed = max(line.invoiced - line.ledger - known, 0)
        found = invoices.clear(billed, (each for each in meant if each.reservation_id not in cleared))
        cleared |= {each.reservation_id: each for each in found}
        compared.append(replace(line, ledger=line.ledger + known + sum(each.amount for each in found)))
    return Reconciled(tuple(compared), tuple(cleared.values()))


def _is_about(line: InvoiceLine, hold: Reservation) -> bool:
    return line.since <= hold.reserved_at < line.until and line.model in ("", hold.model)


def _selection(request: RerateRequest) -> Selection:
    return Selection({"model": request.model} if request.model else {}, request.since, request.until)


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
        if line.model and not line.model.startswith(f"{invoice.provider}/"):
            raise RequestInvalid("lines.model", line.model, f"must be empty or begin with {invoice.provider}/")
