"""What is said of costs after the fact: corrections, invoices, forecasts. Never by rewriting; each is an event of its own."""

from __future__ import annotations

from collections.abc import Iterable

from synod.common.event import Event
from synod.common.money import nano_from_pico
from synod.cost_ledger.events import (
    BudgetForecastChanged,
    ChargeRerated,
    Posting,
    ProviderInvoiceImported,
    ReconciliationDifferenceFound,
)

from cost_ledger.book import Amounts, Book, Reservation, Told
from cost_ledger.commands import Cleared, ImportInvoice, InvoiceLine, Rerate, TellForecast
from cost_ledger.errors import InvoiceConflict
from cost_ledger.postings import moved, owed


def rerate(book: Book, command: Rerate) -> tuple[Event, ...]:
    """The correction to the windows of the cost; none if it is right, or was corrected since the command was made."""
    known = book.reservation(command.reservation_id)
    after = nano_from_pico(command.after_pico)
    if after == command.before or (known is not None and known.settled != command.before):
        return ()
    delta = after - command.before
    entry = moved(book, command.holds, "budget", "spent", Amounts(delta)) + owed(
        command.attribution, command.model, delta
    )
    return (
        ChargeRerated(
            reservation_id=command.reservation_id,
            revision=command.revision,
            attribution=command.attribution,
            model=command.model,
            before_nano_usd=command.before,
            after_nano_usd=after,
            after_pico_usd=command.after_pico,
            price_version=command.price.version,
            price_source=command.price.source,
            holds=command.holds,
            incurred_at=command.incurred_at,
            reason=command.reason,
            postings=entry.postings,
        ),
    )


def import_invoice(book: Book, command: ImportInvoice) -> tuple[Event, ...]:
    """The invoice and each difference. InvoiceConflict if the id is that of an invoice with other content."""
    if (known := book.invoices.get(command.invoice_id)) is not None:
        if known != command.content_sha256:
            raise InvoiceConflict(command.invoice_id)
        return ()
    imported = ProviderInvoiceImported(
        invoice_id=command.invoice_id,
        provider=command.provider,
        content_sha256=command.content_sha256,
        lines=len(command.lines),
        invoiced_nano_usd=sum(line.invoiced for line in command.lines),
        ledger_nano_usd=sum(line.ledger for line in command.lines),
    )
    differences = (
        _difference(command, number, line) for number, line in enumerate(command.lines, 1) if line.difference
    )
    return (imported, *differences)


def clear(billed: int, doubtful: Iterable[Reservation]) -> tuple[Cleared, ...]:
    """What an invoice shows of holds in suspense: `billed` nano-USD beyond what is settled are theirs.

    No invoice names single calls. So the first have it, each at most what it holds, and the others were not billed.
    """
    cleared = []
    for each in doubtful:
        amount = min(billed, each.reserved)
        cleared.append(Cleared(each.reservation_id, amount))
        billed -= amount
    return tuple(cleared)


def _difference(command: ImportInvoice, number: int, line: InvoiceLine) -> ReconciliationDifferenceFound:
    return ReconciliationDifferenceFound(
        invoice_id=command.invoice_id,
        line=number,
        provider=command.provider,
        model=line.model,
        since=line.since,
        until=line.until,
        invoiced_nano_usd=line.invoiced,
        ledger_nano_usd=line.ledger,
        postings=(
            Posting(account=f"adjustment:{command.provider}", amount_nano_usd=line.difference),
            Posting(account=f"payable:{command.provider}", amount_nano_usd=-line.difference),
        ),
    )


def tell_forecast(book: Book, command: TellForecast) -> tuple[Event, ...]:
    told = book.forecasts.get((command.budget_id, command.window_start), Told())
    if told.runs_out == command.runs_out:
        return ()
    return (
        BudgetForecastChanged(
            budget_id=command.budget_id,
            window_start=command.window_start,
            revision=told.revision + 1,
            runs_out=command.runs_out,
            exhausted_p50=command.exhausted_p50,
            exhausted_p10=command.exhausted_p10,
            posted=command.posted,
            limit=command.limit,
            made_at=command.at,
        ),
    )
