"""The connections that are open in this process, and their trace in the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from eventlog.records import Context
from httpedge.callers import Caller
from httpedge.meters import answers_counter
from prometheus_client import CollectorRegistry, Counter, Gauge
from servicekit.errors import ResourceExhausted
from servicekit.telemetry import traceparent
from synod.common.ids import new_id

from ws_gateway.application import Sessions
from ws_gateway.domain import Close, Open, ReportError, Transport

FULL = 4429
GONE = 1000


class Connected(Protocol):
    """What the register may ask of an open connection."""

    @property
    def channels(self) -> tuple[str, ...]: ...

    @property
    def frames_dropped(self) -> int: ...

    def end(self, code: int, reason: str) -> None:
        """Close it soon; a second call changes nothing."""
        ...


@dataclass(slots=True)
class Live:
    """An open session. `ended` is what its closing event will say."""

    id: str
    caller: Caller
    connection: Connected
    frames_sent: int = 0
    ended: tuple[int, str] = (1006, "the connection was lost")


class Meters:
    """Prometheus metrics of the edge. Labels are named in code; ids never become labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sessions = Gauge("edge_sessions_open", "Connections that are open", ("transport",), registry=registry)
        self.frames_sent = Counter("edge_frames_sent_total", "Frames sent", registry=registry)
        self.frames_dropped = Counter("edge_frames_dropped_total", "Frames that found no room", registry=registry)
        self.reports = Counter("edge_client_reports_total", "Reports of pages", ("kind",), registry=registry)
        self.violations = Counter(
            "edge_violations_total", "Frames that break the protocol", ("code",), registry=registry
        )
        self.requests = answers_counter(registry)


@dataclass(slots=True)
class Register:
    """Who is connected to this process."""

    sessions: Sessions
    meters: Meters
    connections_max: int
    _live: dict[str, Live] = field(default_factory=dict)
    _unfinished: int = 0
    _finished: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self._live)

    def get(self, tenant: str, session_id: str) -> Live | None:
        live = self._live.get(session_id)
        return live if live is not None and live.caller.principal.tenant == tenant else None

    @asynccontextmanager
    async def session(
        self, caller: Caller, transport: Transport, remote: str, connection: Connected
    ) -> AsyncIterator[Live]:
        """Opened in the log before the block and closed after it, whatever ends it. Raises ResourceExhausted."""
        if len(self._live) >= self.connections_max:
            raise ResourceExhausted(
                f"this gateway serves at most {self.connections_max} connections; come back later", 5.0
            )
        live = Live(new_id("ses"), caller, connection)
        context = context_of(caller)
        await self.sessions.open(Open(live.id, caller.principal.id, transport, remote), context)
        self._live[live.id] = live
        self._unfinished += 1
        self.meters.sessions.labels(transport).inc()
        try:
            yield live
        finally:
            del self._live[live.id]
            self.meters.sessions.labels(transport).dec()
            await asyncio.shield(self._close(live, context))

    async def report(self, live: Live, message: str, detail: str) -> None:
        """Keep what a page reports as an event of its session."""
        await self.sessions.report_error(ReportError(live.id, message, detail), context_of(live.caller))

    def count_sent(self, live: Live) -> None:
        live.frames_sent += 1
        self.sent += 1
        self.meters.frames_sent.inc()

    async def end_all(self, code: int, reason: str, timeout_s: float) -> None:
        """End every connection; returns when the end of each is in the log, or at the timeout."""
        for live in tuple(self._live.values()):
            live.connection.end(code, reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._unfinished:
                    self._finished.clear()
                    await self._finished.wait()

    async def _close(self, live: Live, context: Context) -> None:
        code, reason = live.ended
        dropped = live.connection.frames_dropped
        self.dropped += dropped
        self.meters.frames_dropped.inc(dropped)
        try:
            await self.sessions.close(Close(live.id, code, reason, live.frames_sent, dropped), context)
        finally:
            self._unfinished -= 1
            self._finished.set()


def context_of(caller: Caller) -> Context:
    principal = caller.principal
    return Context(principal.tenant, principal.actor, traceparent=traceparent())
