"""Waits before rate limits, on the clock of the event loop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llm_gateway.errors import RateLimited
from llm_gateway.limits import Line, Need, Priority, Ticket

_EARLY_S: Final = 0.001
"""Timers of the event loop may go off this much too early."""


@dataclass(slots=True)
class Admission:
    """`waiting` is told how many calls wait, `waited` how long one did, `short` that some wait still."""

    line: Line = field(default_factory=Line)
    waiting: Callable[[int], None] = lambda calls: None
    waited: Callable[[Priority, float], None] = lambda priority, seconds: None
    short: Callable[[], None] = lambda: None
    _turns: dict[Ticket, "asyncio.Future[None]"] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    async def enter(self, tenant: str, model: str, need: Need, priority: Priority, until: float) -> Ticket:
        """Returns when the call may be made; it must be given to `leave` afterwards. Raises RateLimited."""
        now = _now()
        ticket = self.line.ticket(tenant, model, need, priority, now, until)
        if not ticket.meters:
            return ticket
        wait_s = self.line.hopeless_s(ticket, now)
        if wait_s is not None:
            raise RateLimited(model, max(wait_s, 1.0))
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self.line.join(ticket)
        self.move()
        try:
            await turn
        except BaseException:
            self._withdraw(ticket)
            raise
        self.waited(priority, _now() - now)
        return ticket

    def leave(self, ticket: Ticket, used: Need | None) -> None:
        """The call has ended, and used so much; None when the provider counts nothing of it."""
        if ticket.meters:
            self.line.settle(ticket, _now(), used)
            self.move()

    def move(self) -> None:
        """Admits whoever fits now: time has passed, a call has ended, or there is more room than before."""
        now = _now()
        for ticket in self.line.late(now):
            self._end(ticket, RateLimited(ticket.model, 1.0))
        for ticket in self.line.admit(now):
            self._end(ticket)
        self.waiting(len(self.line))
        if len(self.line):
            self.short()
        self._set_timer(self.line.next_at(now))

    def _withdraw(self, ticket: Ticket) -> None:
        """It was refused, or its callers left: while it waited, or just as it was admitted."""
        self._turns.pop(ticket, None)
        if ticket.admitted:
            self.leave(ticket, None)
        else:
            self.line.leave(ticket)
            self.move()

    def _end(self, ticket: Ticket, error: RateLimited | None = None) -> None:
        turn = self._turns.pop(ticket)
        if turn.done():  # its caller is leaving, and will withdraw it
            return
        if error is None:
            turn.set_result(None)
        else:
            turn.set_exception(error)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self.line) and at != float("inf"):
            self._timer = asyncio.get_running_loop().call_at(at + _EARLY_S, self.move)


def _now() -> float:
    return asyncio.get_running_loop().time()
