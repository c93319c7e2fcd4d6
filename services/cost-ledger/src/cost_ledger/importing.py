"""Tells once of each price book that comes into use. Reservations pin its version; the event proves what it held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventlog.errors import VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, StreamId
from synod.common.ids import derived_uuid
from synod.common.subjects import SHARED_TENANT
from synod.cost_ledger.events import PriceBookImported

from cost_ledger.books import CODEC
from cost_ledger.ports import Clock
from cost_ledger.prices import PriceBook

STREAM: Final = "price-book"


@dataclass(frozen=True, slots=True)
class Importing:
    """Any number of processes may tell of the same book: its stream begins with the first."""

    log: EventLog
    clock: Clock

    async def tell(self, book: PriceBook) -> None:
        """Record the book unless it was before. Raises the errors of the log."""
        event = imported(book)
        new = CODEC.encode(event, id=derived_uuid(STREAM, event.sha256), at=self.clock.now())
        context = Context(SHARED_TENANT, actor="cost-ledger")
        try:
            await self.log.append(Append(StreamId(STREAM, event.sha256), 0, (new,), context))
        except VersionConflict:
            return


def imported(book: PriceBook) -> PriceBookImported:
    days = [day for model in book.models.values() for day in model.days()]
    return PriceBookImported(
        price_version=book.version,
        source=book.source,
        source_version=book.source_version,
        sha256=book.sha256,
        models=len(book.models),
        newest_effective_from=max(days, default=None),
    )
