"""What a call may take at most, to be held before its effect. Pure, but for the port to who holds it.

A call reserves under its own id, so that another attempt of it, in whatever process, reserves nothing more, and what
ends the call settles it: cost-ledger reads that from the events.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from eventlog.records import Context
from synod.common.values import Attribution
from synod.tool_executor.events import ToolCallRequested

from tool_executor.manifests import Offer
from tool_executor.tools.runner import CEILING
from tool_executor.tools.tool import NetworkTool, Tool

OVERRUN_S: Final = 0.2
"""What a runner is given beyond a call's deadline to end it in its own words."""
GRACE: Final = timedelta(seconds=60)
"""How much longer than the call its hold lives, so that the end of the call finds it."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Upper bounds of one call: nano-USD, and milliseconds of time and of the processor."""

    call_id: str
    attribution: Attribution
    nano_usd_max: int
    tool_ms_max: int
    cpu_ms_max: int
    ttl: timedelta


class Ledger(Protocol):
    """Says whether a call may take what it may need."""

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        """Hold the bounds, in the name of the context's actor; the same reservation again is no second one.

        Raises LedgerRefused, also if that was released since: then nothing can be held under its id any more. Raises
        LedgerUnavailable.
        """
        ...

    async def release(self, call_id: str, reason: str, context: Context) -> None:
        """Give back what a call holds; nothing if it holds nothing. Raises LedgerUnavailable."""
        ...


def reservation_of(requested: ToolCallRequested, offer: Offer) -> Reservation | None:
    """None for what our own process computes and nobody has set a price for: it takes too little to ask for."""
    tool = offer.tool
    if not (requested.price_nano_usd or leaves_process(tool)):
        return None
    longest = timedelta(milliseconds=offer.manifest.timeout_ms, seconds=OVERRUN_S)
    return Reservation(
        call_id=requested.call_id,
        attribution=requested.attribution,
        nano_usd_max=requested.price_nano_usd,
        tool_ms_max=round(longest.total_seconds() * 1000),
        cpu_ms_max=min(tool.limits.cpu_s, CEILING.cpu_s) * 1000 if tool.profile is not None else 0,
        ttl=longest + GRACE,
    )


def leaves_process(tool: Tool) -> bool:
    """Whether it runs in a process of its own, or waits for another machine."""
    return tool.profile is not None or isinstance(tool, NetworkTool)
