"""How the system does, from sources that cost little: this process, JetStream's own counts, and the fleet."""

import resource
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nats.aio.client import Client
from nats.js.api import StreamInfo
from servicekit.clock import Clock
from servicekit.errors import ServiceError
from servicekit.health import Health
from synod.common.subjects import command_stream, dead_letter_stream, event_stream

from ws_gateway.clients import PEERS, CallerServices
from ws_gateway.hub.channels import SERVICES
from ws_gateway.resources import AgentMetrics, PeerHealth, ProcessLoad, StreamLoad, SystemHealth, SystemMetrics
from ws_gateway.sessions import Register

KEPT_S: Final = 1.0
"""Figures younger than this are used again, so that many watchers cost as much as one."""
PERMISSION: Final = "views.read"
"""What the state of the machinery needs; the same as the state of its views."""
_STATM: Final = Path("/proc/self/statm")


@dataclass(slots=True)
class Monitoring:
    """Measures when asked, at most once a second for each tenant."""

    client: Client
    register: Register
    health: Health
    clock: Clock
    started_s: float
    _fleet: dict[str, tuple[float, AgentMetrics]] = field(default_factory=dict)
    _streams: tuple[float, tuple[StreamLoad, ...]] | None = None

    async def system(self, services: CallerServices) -> SystemMetrics:
        """Raises PermissionDenied, or what agent-registry refuses."""
        services.caller.require(PERMISSION)
        agents = (await self.agents(services)).agents
        return SystemMetrics(
            at=self.clock.now(),
            gateway=self._process(),
            services=await self._loads(),
            agents_by_state=dict(Counter(agent.state for agent in agents)),
        )

    async def agents(self, services: CallerServices) -> AgentMetrics:
        services.caller.require("agents.read")
        tenant, now_s = services.caller.principal.tenant, self.clock.monotonic()
        kept = self._fleet.get(tenant)
        if kept is None or now_s - kept[0] > KEPT_S:
            fleet = (await services.agents()).data
            kept = (now_s, AgentMetrics(at=self.clock.now(), agents=fleet))
            self._fleet[tenant] = kept
        return kept[1]

    async def health_of(self, services: CallerServices) -> SystemHealth:
        """This process and, by a small question to each, the services behind it."""
        services.caller.require(PERMISSION)
        peers = tuple([await _ask(services, name) for name in PEERS])
        healthy = self.health.status == "ok" and all(peer.ok for peer in peers)
        return SystemHealth(status="ok" if healthy else "degraded", problems=self.health.problems, services=peers)

    def _process(self) -> ProcessLoad:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return ProcessLoad(
            sessions_open=len(self.register),
            frames_sent=self.register.sent,
            frames_dropped=self.register.dropped,
            resident_bytes=_resident_bytes(usage.ru_maxrss),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            uptime_s=round(self.clock.monotonic() - self.started_s, 1),
        )

    async def _loads(self) -> tuple[StreamLoad, ...]:
        now_s = self.clock.monotonic()
        if self._streams is None or now_s - self._streams[0] > KEPT_S:
            infos = {info.config.name or "": info for info in await self.client.jetstream().streams_info()}
            self._streams = (now_s, tuple(_load(service, infos) for service in SERVICES))
        return self._streams[1]


def _load(service: str, infos: dict[str, StreamInfo]) -> StreamLoad:
    def messages(stream: str) -> int:
        return infos[stream].state.messages if stream in infos else 0

    events = infos.get(event_stream(service))
    return StreamLoad(
        service=service,
        events_head=events.state.last_seq if events else 0,
        commands_waiting=messages(command_stream(service)),
        dead_letters=messages(dead_letter_stream(service)),
    )


async def _ask(services: CallerServices, name: str) -> PeerHealth:
    try:
        await services.views(name)
    except ServiceError as error:
        return PeerHealth(service=name, ok=False, problem=error.message)
    return PeerHealth(service=name, ok=True)


def _resident_bytes(peak_kib: int) -> int:
    """Pages in memory now; on systems without /proc the peak so far."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_kib * 1024
