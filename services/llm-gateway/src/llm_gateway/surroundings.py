"""What happens around calls, in the log: circuits that open and close, limits that providers tighten and loosen.

No call waits for it. What happens while the log cannot be written is kept, up to a bound; the newest is worth most.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from eventlog.codec import Codec
from eventlog.errors import LogUnavailable, QueueFull
from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, StreamId
from servicekit.clock import Clock
from servicekit.retry import Backoff
from synod.common.event import Event
from synod.common.ids import derived_id
from synod.common.subjects import SHARED_TENANT
from synod.llm_gateway.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, RateLimitAdjusted

from llm_gateway.catalogue import model_of
from llm_gateway.circuits import Phase
from llm_gateway.headroom import Adjusted

KEPT_MAX: Final = 1000
BACKOFF: Final = Backoff(initial_s=0.1, max_s=5.0)
ACTOR: Final = "llm-gateway"


@dataclass(slots=True)
class Surroundings:
    """Told by the hot path, written by ``run``. `worker` is this process: each has circuits of its own."""

    log: EventLog
    codec: Codec[Event]
    clock: Clock
    worker: str
    _told: deque[tuple[str, Event]] = field(default_factory=lambda: deque(maxlen=KEPT_MAX))
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    def circuit_changed(self, circuit: str, phase: Phase, open_s: float) -> None:
        model, deployment, key_id = model_of(circuit)
        match phase:
            case "open":
                event: Event = CircuitOpened(
                    model=model, deployment=deployment, key_id=key_id, worker=self.worker, open_ms=round(open_s * 1000)
                )
            case "half_open":
                event = CircuitHalfOpened(model=model, deployment=deployment, key_id=key_id, worker=self.worker)
            case "closed":
                event = CircuitClosed(model=model, deployment=deployment, key_id=key_id, worker=self.worker)
        self._tell(circuit, event)

    def limit_adjusted(self, adjusted: Adjusted) -> None:
        model, deployment, key_id = model_of(adjusted.circuit)
        event = RateLimitAdjusted(
            model=model,
            deployment=deployment,
            key_id=key_id,
            worker=self.worker,
            meter=adjusted.meter,
            from_per_min=adjusted.from_per_min,
            to_per_min=adjusted.to_per_min,
            remaining=adjusted.remaining,
        )
        self._tell(adjusted.circuit, event)

    async def run(self) -> None:
        """Writes what was told, in its order, for as long as the process lives."""
        failures = 0
        while True:
            self._grown.clear()
            if not self._told:
                await self._grown.wait()
                continue
            circuit, event = self._told[0]
            try:
                await self._append(circuit, event)
                failures = 0
            except (LogUnavailable, QueueFull):
                await asyncio.sleep(BACKOFF.delay_s(failures))
                failures += 1
                continue
            if self._told and self._told[0][1] is event:
                self._told.popleft()

    def _tell(self, circuit: str, event: Event) -> None:
        self._told.append((circuit, event))
        self._grown.set()

    async def _append(self, circuit: str, event: Event) -> None:
        stream = StreamId(event.AGGREGATE, derived_id("cir", circuit, self.worker))
        new = self.codec.encode(event, at=self.clock.now())
        await self.log.append(Append(stream, ANY, (new,), Context(SHARED_TENANT, ACTOR)))
