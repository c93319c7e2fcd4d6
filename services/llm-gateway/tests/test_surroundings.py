"""Circuits and limits in the log."""

import asyncio

from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended
from llm_gateway.headroom import Adjusted
from llm_gateway.surroundings import Surroundings
from synod.common.subjects import SHARED_TENANT
from synod.llm_gateway.events import EVENTS, CircuitClosed, CircuitHalfOpened, CircuitOpened, RateLimitAdjusted

WAIT_S = 10
KEYED = "p/m eu 1a2b3c4d"


class Stumbling(MemoryEventLog):
    """Cannot be written at first."""

    failures = 2

    async def append(self, *appends: Append) -> Appended:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("down")
        return await super().append(*appends)


async def written(log: MemoryEventLog, count: int, surroundings: Surroundings) -> list[object]:
    codec = Codec(EVENTS)
    running = asyncio.create_task(surroundings.run())
    try:
        async with asyncio.timeout(WAIT_S):
            while await log.head() < count:  # noqa: ASYNC110 - the log in memory offers no event
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
    stored = await log.read()
    assert {event.tenant for event in stored} == {SHARED_TENANT}
    assert {event.stream.aggregate for event in stored} == {"circuit"}
    return [codec.decode(event) for event in stored]


async def test_group_11_what_a_circuit_does_is_in_the_log_in_its_order() -> None:
    log = MemoryEventLog()
    surroundings = Surroundings(log, Codec(EVENTS), SystemClock(), "gw_1")
    surroundings.circuit_changed(KEYED, "open", 5.0)
    surroundings.circuit_changed(KEYED, "half_open", 0.0)
    surroundings.circuit_changed(KEYED, "closed", 0.0)
    whose = {"model": "p/m", "deployment": "eu", "key_id": "1a2b3c4d", "worker": "gw_1"}
    assert await written(log, 3, surroundings) == [
        CircuitOpened(**whose, open_ms=5000),
        CircuitHalfOpened(**whose),
        CircuitClosed(**whose),
    ]


async def test_an_adjusted_limit_is_in_the_log_even_if_it_stumbles() -> None:
    log = Stumbling()
    surroundings = Surroundings(log, Codec(EVENTS), SystemClock(), "gw_1")
    surroundings.limit_adjusted(Adjusted("p/m", "requests", 60, 12, 3))
    assert await written(log, 1, surroundings) == [
        RateLimitAdjusted(model="p/m", worker="gw_1", meter="requests", from_per_min=60, to_per_min=12, remaining=3)
    ]
