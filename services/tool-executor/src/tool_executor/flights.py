"""The calls that run in this process. They belong to nobody's request: a caller that leaves does not stop its tool."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from eventlog.log import EventLog
from servicekit.clock import Clock
from servicekit.telemetry import Logger

from tool_executor.domain import ToolCall
from tool_executor.errors import CallCancelled
from tool_executor.following import read_new
from tool_executor.tools.runner import ToolResult

FOLLOW_S: Final = 30.0
ENDS: Final = frozenset({"ToolCallFailed", "ToolCallOutcomeUnknown"})

Work = Coroutine[Any, Any, ToolResult]
Land = Callable[["asyncio.Task[ToolResult]", int], Awaitable[ToolCall]]
"""Records the end of a task that took so many milliseconds; answers the state of the call from then on."""


@dataclass(slots=True, eq=False)
class Flight:
    """``work`` is the tool itself, which may be cancelled; ``landed`` ends with what was recorded then."""

    began: float
    work: "asyncio.Task[ToolResult]"
    landed: "asyncio.Task[ToolCall]" = field(init=False)


@dataclass(slots=True)
class Flights:
    log: EventLog
    clock: Clock
    log_: Logger
    _flights: dict[str, Flight] = field(default_factory=dict)
    _starting: set["asyncio.Task[bool]"] = field(default_factory=set)
    _followed: int | None = None

    def get(self, id: str) -> Flight | None:
        return self._flights.get(id)

    def duration_ms(self, id: str) -> int:
        """How long a call has been running here; 0 for one that does not."""
        flight = self._flights.get(id)
        return round((self.clock.monotonic() - flight.began) * 1000) if flight else 0

    async def start(self, start: Coroutine[Any, Any, bool]) -> bool:
        """Await ``start``, which goes on if the caller leaves: what it has recorded as started must also be launched."""
        task = asyncio.create_task(start, name="start of a tool call")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return await asyncio.shield(task)

    def launch(self, id: str, work: Work, land: Land, held: ExitStack) -> None:
        """Run ``work``; then ``land`` records its end. ``held`` is closed when all is done."""
        flight = Flight(self.clock.monotonic(), asyncio.create_task(work, name=f"tool call {id}"))
        self._flights[id] = flight
        flight.landed = asyncio.create_task(self._fly(id, flight, land, held), name=f"end of tool call {id}")
        flight.landed.add_done_callback(self._report)

    async def stop(self, id: str) -> None:
        """End a call's process; it is gone, and its end recorded, when this returns."""
        if flight := self._flights.get(id):
            if not flight.work.cancelling():
                # Once: a second time would interrupt the work while it puts down what it holds.
                flight.work.cancel()
            await asyncio.wait({flight.landed})

    async def close(self, grace_s: float) -> None:
        """Let what runs finish for ``grace_s``, then stop it."""
        if self._starting:
            await asyncio.wait(self._starting, timeout=grace_s)
        if landing := {flight.landed for flight in self._flights.values()}:
            await asyncio.wait(landing, timeout=grace_s)
        await asyncio.gather(*(self.stop(id) for id in tuple(self._flights)))

    async def follow(self) -> None:
        """Stop the calls whose end another process has recorded, because it cancelled them. Runs as the service does.

        Called again after a failure it goes on where it was.
        """
        if self._followed is None:
            self._followed = await self.log.head()
        while True:
            await self.log.wait_for(self._followed + 1, FOLLOW_S)
            position, events = await read_new(self.log, self._followed, ENDS)
            for event in events:
                await self.stop(event.stream.id)
            self._followed = position

    async def _fly(self, id: str, flight: Flight, land: Land, held: ExitStack) -> ToolCall:
        with held:
            try:
                # Waits without taking part in what happens to the work: its cancellation is not ours.
                await asyncio.wait({flight.work})
                return await land(flight.work, self.duration_ms(id))
            finally:
                del self._flights[id]

    def _report(self, landed: "asyncio.Task[ToolCall]") -> None:
        """Whoever waits for the call is told too; this is for the case that nobody does."""
        if landed.cancelled() or (error := landed.exception()) is None:
            return
        if not isinstance(error, CallCancelled):
            self.log_.error("tool_call_end_not_recorded", error=error, call=landed.get_name())
