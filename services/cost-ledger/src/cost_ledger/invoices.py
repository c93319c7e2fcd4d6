"""What a provider's invoice does to the book. Nothing is billed twice: of what is in force no line covers another's.

A line bills a model, or all models of the provider, for a time. It is about the calls of that model, by whichever name of
it they were made (naming.py), and no call is about two lines. What it says beyond the ledger is an adjustment, so that what
is payable for the time is what is invoiced. Credits are added to that. An invoice that corrects another takes its
place: what that one adjusted for the same is counted, and what it alone adjusted is taken back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from synod.common.event import Event
from synod.cost_ledger.events import InvoicedLine, ProviderInvoiceImported, ReconciliationDifferenceFound

from cost_ledger.book import Book, Imported, Reservation
from cost_ledger.commands import Cleared, ImportInvoice, InvoiceLine
from cost_ledger.errors import InvoiceConflict, InvoiceOverlaps, RequestInvalid
from cost_ledger.naming import billed_as, distance, family_of
from cost_ledger.postings import unexplained

_Time = tuple[datetime, datetime]
"""Half open."""
_Billed = tuple[str, datetime, datetime]
"""Model in lower case, since, until."""
_ANY_DISTANCE: Final = 3
"""That of a line about all models, which is farther than any name."""


@dataclass(frozen=True, slots=True)
class Part:
    """Costs that a line is about: those of a model in a time, half open. No model: all of the provider's."""

    line: int
    model: str
    since: datetime
    until: datetime


def import_invoice(book: Book, command: ImportInvoice) -> tuple[Event, ...]:
    """The invoice and each difference; nothing for a repetition. Raises what `is_new` does."""
    if not is_new(book, command):
        return ()
    lines = adjusted(book, command.lines, command.replaces)
    imported = ProviderInvoiceImported(
        invoice_id=command.invoice_id,
        provider=command.provider,
        content_sha256=command.content_sha256,
        lines=len(command.lines),
        invoiced_nano_usd=sum(line.invoiced for line in command.lines),
        ledger_nano_usd=sum(line.ledger for line in command.lines),
        billed=tuple(_recorded(line) for line in command.lines),
        replaces=command.replaces,
    )
    return (imported, *(_difference(command, number, line) for number, line in enumerate(lines, 1) if line.difference))


def is_new(book: Book, command: ImportInvoice) -> bool:
    """Whether it is to be imported; not if it was.

    InvoiceConflict if the id is that of an invoice with other content, InvoiceOverlaps if another in force bills the same,
    RequestInvalid if it bills something twice itself, or cannot replace what it says.
    """
    if (known := book.invoices.get(command.invoice_id)) is not None:
        if known.content_sha256 != command.content_sha256:
            raise InvoiceConflict(command.invoice_id)
        return False
    _refuse_replacing(book, command)
    _refuse_doubles(command.lines)
    _refuse_overlaps(book, command)
    return True


def recorded(book: Book, invoice_id: str) -> tuple[InvoiceLine, ...]:
    """The lines of an imported invoice, with what the ledger had for them then; none if they were not recorded."""
    return tuple(
        InvoiceLine(line.model, line.since, line.until, line.invoiced_nano_usd, _had(line))
        for line in book.invoices[invoice_id].lines
    )


def _had(line: InvoicedLine) -> int:
    return line.invoiced_nano_usd - line.adjusted_nano_usd


def adjusted(book: Book, lines: Iterable[InvoiceLine], replaces: str) -> tuple[InvoiceLine, ...]:
    """The lines, each with what the replaced invoice adjusted for the same; then what it alone has."""
    replaced = book.invoices.get(replaces)
    before: Counter[_Billed] = Counter()
    for old in replaced.lines if replaced else ():
        before[_what(old)] += old.adjusted_nano_usd
    kept = [replace(line, adjusted=before.pop(_what(line), 0)) for line in lines]
    return (*kept, *(InvoiceLine(*what, 0, 0, adjusted=amount) for what, amount in before.items() if amount))


def first_overlap(lines: Iterable[InvoiceLine]) -> tuple[int, int] | None:
    """The numbers, from 0, of two lines that bill the same; credits bill nothing."""
    billed = [(number, line) for number, line in enumerate(lines) if not line.is_credit]
    billed.sort(key=lambda each: each[1].since)
    until: dict[str, tuple[datetime, int]] = {}
    for number, line in billed:
        own = line.model.lower()
        for model in (own, "") if own else tuple(until):
            if model in until and line.since < until[model][0]:
                return (until[model][1], number)
        # The times of a model do not overlap, so its last line is the one that ends last.
        until[own] = (line.until, number)
    return None


def clear(
    lines: Sequence[InvoiceLine], left: MutableSequence[int], doubtful: Iterable[Reservation]
) -> tuple[Cleared, ...]:
    """What the lines show of holds in suspense: nano-USD `left` of each beyond what is settled are theirs, and taken from it.

    No invoice names single calls. So the first have it, each at most what it holds, and the others were not billed. A tool
    that holds time and no money is on no invoice, which says nothing of it.
    """
    cleared = []
    nearest: dict[str, list[int]] = {}
    for each in doubtful:
        if not (each.model or each.reserved):
            continue
        name = billed_as(each.model, each.attribution)
        if name not in nearest:
            nearest[name] = _nearest(lines, name)
        about = (n for n in nearest[name] if lines[n].since <= each.reserved_at < lines[n].until)
        if (number := next(about, None)) is not None:
            amount = min(left[number], each.reserved)
            cleared.append(Cleared(each.reservation_id, amount))
            left[number] -= amount
    return tuple(cleared)


def parts(lines: Sequence[InvoiceLine], models: Iterable[str]) -> Iterator[Part]:
    """Which costs of the models each line is about; none is in two of them, as long as no two lines bill the same."""
    for number, line in enumerate(lines):
        if not (line.model or line.is_credit):
            yield Part(number, "", line.since, line.until)
    for model in models:
        taken: list[_Time] = []
        for number in _nearest(lines, model):
            line = lines[number]
            if line.model:
                yield from (Part(number, model, *time) for time in _without((line.since, line.until), taken))
                taken.append((line.since, line.until))


def _nearest(lines: Sequence[InvoiceLine], model: str) -> list[int]:
    """The numbers of the lines about a model, the nearest name first. A cost is that of the first in whose time it is."""
    found = [(far, number) for number, line in enumerate(lines) if (far := _distance(line, model)) is not None]
    return [number for _, number in sorted(found)]


def _distance(line: InvoiceLine, model: str) -> int | None:
    if line.is_credit:
        return None
    return distance(line.model, model) if line.model else _ANY_DISTANCE


def _without(time: _Time, taken: Iterable[_Time]) -> Iterator[_Time]:
    """What is left of a time when others, which may overlap, are taken out of it."""
    since, until = time
    for start, end in sorted(taken):
        if since < min(start, until):
            yield since, min(start, until)
        since = max(since, end)
    if since < until:
        yield since, until


def _refuse_replacing(book: Book, command: ImportInvoice) -> None:
    if not command.replaces:
        return
    known = book.invoices.get(command.replaces)
    if known is None or not _is_of(known, command.provider):
        raise RequestInvalid("replaces", command.replaces, f"is no imported invoice of {command.provider}")
    if known.replaced_by:
        problem = f"is replaced by {known.replaced_by} already; replace that one"
        raise RequestInvalid("replaces", command.replaces, problem)
    if not known.lines:
        raise RequestInvalid(
            "replaces", command.replaces, "was recorded without its lines; bill the difference instead"
        )


def _refuse_doubles(lines: Sequence[InvoiceLine]) -> None:
    if (overlap := first_overlap(lines)) is not None:
        first, second = overlap
        problem = f"bills some of what lines[{first}] bills, {_described(lines[first])}"
        raise RequestInvalid(f"lines[{second}]", _described(lines[second]), problem)


def _refuse_overlaps(book: Book, command: ImportInvoice) -> None:
    new: dict[str, list[InvoiceLine]] = {}
    for line in command.lines:
        if not line.is_credit:
            new.setdefault(family_of(line.model), []).append(line)
    for invoice_id, known in book.invoices.items():
        if not known.replaced_by and _is_of(known, command.provider) and invoice_id != command.replaces:
            _refuse_overlap(command.invoice_id, new, invoice_id, known)


def _is_of(known: Imported, provider: str) -> bool:
    return known.provider.lower() == provider.lower()


def _refuse_overlap(invoice_id: str, new: Mapping[str, list[InvoiceLine]], other_id: str, other: Imported) -> None:
    for old in other.lines:
        if old.invoiced_nano_usd < 0:
            continue
        # Two names of a model may be about the same calls, which only the lines of one invoice can share.
        for model in (family_of(old.model), "") if old.model else tuple(new):
            for line in new.get(model, ()):
                if line.since < old.until and old.since < line.until:
                    raise InvoiceOverlaps(invoice_id, _described(line), other_id)


def _described(line: InvoiceLine) -> str:
    return f"{line.model or 'all models'} from {line.since.isoformat()} to {line.until.isoformat()}"


def _what(line: InvoiceLine | InvoicedLine) -> _Billed:
    return (line.model.lower(), line.since, line.until)


def _recorded(line: InvoiceLine) -> InvoicedLine:
    return InvoicedLine(
        model=line.model,
        since=line.since,
        until=line.until,
        invoiced_nano_usd=line.invoiced,
        adjusted_nano_usd=line.invoiced - line.ledger,
    )


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
        postings=unexplained(command.provider, line.difference).postings,
        adjusted_nano_usd=line.adjusted,
    )
