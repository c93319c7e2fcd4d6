"""Fakes of the ports, for tests of what stands on them."""

from eventlog.records import Context

from tool_executor.spending import Reservation


class FakeLedger:
    """Reserves whatever is asked and remembers it, unless it is given what to raise instead."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.reservations: list[Reservation] = []
        self.refusal = refusal

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.reservations.append(reservation)

    async def release(self, call_id: str, reason: str, context: Context) -> None:
        self.reservations = [each for each in self.reservations if each.call_id != call_id]
