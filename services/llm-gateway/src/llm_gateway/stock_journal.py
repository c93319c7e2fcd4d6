"""What becomes of reservations made ahead, in the log: cost-ledger releases by it what no call has used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, StreamId
from servicekit.clock import Clock
from synod.common.event import Event
from synod.common.ids import derived_id, derived_uuid
from synod.llm_gateway.events import ReservationsReturned, ReservationStockClosed, ReservationStockOpened

ACTOR: Final = "llm-gateway"


@dataclass(frozen=True, slots=True)
class StockJournal:
    """A stock is what one holder has reserved ahead for one tenant.

    The same said again is known to the log and changes nothing, whoever says it. Everything raises LogUnavailable and
    QueueFull; then it may be said again.
    """

    log: EventLog
    codec: Codec[Event]
    clock: Clock

    async def opened(self, tenant: str, holder: str) -> None:
        """To be said before the first reservation: only what was opened is closed, should the holder die."""
        await self._append(tenant, holder, ReservationStockOpened(holder=holder))

    async def returned(self, tenant: str, holder: str, reservation_ids: Sequence[str]) -> None:
        """No call has used these and none will."""
        ids = tuple(reservation_ids)
        await self._append(tenant, holder, ReservationsReturned(holder=holder, reservation_ids=ids), *ids)

    async def closed(self, tenant: str, holder: str) -> None:
        """Nothing of the stock will be used, and of what was used the log tells already."""
        await self._append(tenant, holder, ReservationStockClosed(holder=holder))

    async def _append(self, tenant: str, holder: str, event: Event, *what: str) -> None:
        stream = StreamId(event.AGGREGATE, derived_id("stk", tenant, holder))
        new = self.codec.encode(event, id=_event_id(stream, event, what), at=self.clock.now())
        await self.log.append(Append(stream, ANY, (new,), Context(tenant, ACTOR)))


def _event_id(stream: StreamId, event: Event, what: Sequence[str]) -> UUID:
    return derived_uuid(stream.id, event.type_name(), *what)
