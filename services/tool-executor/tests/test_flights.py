"""Calls in flight end when another process has recorded their end."""

import asyncio
from contextlib import ExitStack

from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import StreamId
from eventlog.testing import an_append, an_event
from servicekit.clock import SystemClock
from servicekit.telemetry import Logger
from tool_executor.domain import ToolCall
from tool_executor.flights import Flights
from tool_executor.tools.runner import ToolResult

WAIT_S = 30


async def endless() -> ToolResult:
    await asyncio.Event().wait()
    raise AssertionError("the end of time")


async def landed(work: "asyncio.Task[ToolResult]", duration_ms: int) -> ToolCall:
    return ToolCall()


async def followed(flights: Flights, position: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while flights._followed != position:  # noqa: ASYNC110 - a position has no event to wait for
            await asyncio.sleep(0.01)


async def test_an_end_that_was_recorded_while_nobody_followed_is_noticed_by_who_follows_again() -> None:
    log = MemoryEventLog()
    flights = Flights(log, SystemClock(), Logger("test"))
    flights.launch("call_1", endless(), landed, ExitStack())
    flight = flights.get("call_1")
    assert flight is not None
    first = asyncio.create_task(flights.follow())
    await followed(flights, 0)
    await end(first)

    await log.append(an_append(StreamId("tool-call", "call_1"), an_event("ToolCallFailed")))
    second = asyncio.create_task(flights.follow())

    await asyncio.wait_for(flight.landed, WAIT_S)
    assert flight.work.cancelled()
    await end(second)
