"""The event log of a service in its process: opened, relayed to JetStream, projected into views, served, drained."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from eventlog.errors import (
    EventTooLarge,
    LogClosed,
    LogUnavailable,
    NotParked,
    QueueFull,
    RebuildRunning,
    UnknownView,
    VersionConflict,
)
from eventlog.folding import View
from eventlog.limits import Limits as LogLimits
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.relay import Relay
from eventlog.sources import LogSource, Source
from nats.aio.client import Client
from psycopg_pool import AsyncConnectionPool

from servicekit.clock import Clock
from servicekit.errors import (
    Aborted,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from servicekit.tasks import Tasks
from servicekit.telemetry import Logger, Metrics

LOG_ERRORS = (
    ErrorMap()
    .add(
        VersionConflict,
        lambda error: Aborted(
            f"{error.stream} was changed meanwhile (now at version {error.actual}); read it again and repeat",
            reason="VERSION_CONFLICT",
            metadata={"stream": str(error.stream), "actual": str(error.actual)},
        ),
    )
    .add(QueueFull, lambda error: ResourceExhausted(str(error), 1.0, reason="LOG_QUEUE_FULL"))
    .add(EventTooLarge, lambda error: InvalidArgument("data", error.size, str(error), reason="EVENT_TOO_LARGE"))
    .add(LogUnavailable, lambda error: Unavailable(str(error), 1.0, reason="LOG_UNAVAILABLE"))
    .add(LogClosed, lambda error: Unavailable("the service is stopping; repeat the call", 1.0, reason="STOPPING"))
    .add(UnknownView, lambda error: NotFound("view", error.name, reason="VIEW_NOT_FOUND"))
    .add(NotParked, lambda error: NotFound("parked event", str(error), reason="NOT_PARKED"))
    .add(RebuildRunning, lambda error: FailedPrecondition(str(error), reason="REBUILD_RUNNING"))
)
"""How the errors of the event log look to the callers of a service."""

MEASURE_S = 5.0
EVENTLOG_PERMISSIONS = {
    "Read": "events.read",
    "Subscribe": "events.read",
    "Verify": "events.verify",
    "ListViews": "views.read",
    "RebuildView": "views.rebuild",
    "VerifyView": "views.read",
    "ListParkedEvents": "views.read",
    "RedriveParkedEvent": "views.rebuild",
}


@dataclass(slots=True)
class History:
    """One log, its relay and its views. The relay outlives all that appends, so that a stop leaves nothing unsent."""

    service: str
    dsn: str
    pool: AsyncConnectionPool[Any]
    client: Client
    clock: Clock
    metrics: Metrics
    log_: Logger
    relaying: Tasks
    grace_s: float
    log: PostgresEventLog | None = None
    relay: Relay | None = None
    projectors: list[Projector] = field(default_factory=list)

    async def open(self, limits: LogLimits | None = None) -> PostgresEventLog:
        """The log, opened by the first call, and its relay started."""
        if self.log is None:
            self.log = await PostgresEventLog.open(self.dsn, limits=limits, clock=self.clock)
            self.relay = Relay(self.log, self.client, self.service)
            self.relaying.start("relay", self.relay.run)
        return self.log

    async def drain(self) -> None:
        """Wait until all that was appended is published, at most `grace_s`; then stop the relay and close the log.

        What is not published by then is not lost: the relay goes on where its stream ends at the next start.
        """
        if self.log is None or self.relay is None:
            return
        head = await self.log.head()
        published = await self.relay.wait_for(head, self.grace_s)
        if published < head:
            self.log_.warning("relay_behind", head=head, published=published)
        await self.relaying.stop(self.grace_s)
        await self.log.close()

    def add_view(self, view: View, source: Source | None) -> Projector:
        """Raises ValueError without a source when the log was not opened."""
        if source is None:
            if self.log is None:
                raise ValueError(f"view {view.name!r} has no source; open the log first, or name a StreamSource")
            source = LogSource(self.log, self.service)
        projector = Projector(self.pool, view, source)
        self.projectors.append(projector)
        return projector

    async def prepare_views(self) -> None:
        """Create the tables of every view, and bring those over the service's own log up to its head."""
        for projector in self.projectors:
            if projector.source.name == self.service:
                await projector.catch_up()
            else:
                await projector.prepare()

    async def measure(self) -> None:
        """Keep the gauges of log, relay and views current, for ever."""
        while True:
            await self.measure_once()
            await asyncio.sleep(MEASURE_S)

    async def measure_once(self) -> None:
        if self.log and self.relay:
            head = await self.log.head()
            self.metrics.eventlog_head.set(head)
            self.metrics.relay_lag.set(max(0, head - self.relay.position))
        for projector in self.projectors:
            self.metrics.view_position.labels(projector.view.name).set(await projector.position())
            self.metrics.view_lag.labels(projector.view.name).set(await projector.lag())
