"""What a service's compose function is given: everything around it, opened, and where to hang its own parts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from aiohttp.web_routedef import AbstractRouteDef
from eventlog.folding import ProjectorLimits, View
from eventlog.limits import Limits as LogLimits
from eventlog.log import EventLog
from eventlog.personal_log import PersonalLog, follow_erasures
from eventlog.projections import Projector
from eventlog.side_table import SideTable
from eventlog.sources import Source
from eventlog.vault import Vault
from faststream.nats import NatsBroker
from nats.aio.client import Client
from opentelemetry.trace import Tracer
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event

from servicekit.auth import TokenSource
from servicekit.clock import Clock
from servicekit.commands import REDELIVERY, C, Commands, CommandSpec, DeadLetters, Handler, Queue
from servicekit.errors import ErrorMap
from servicekit.health import Health
from servicekit.history import History
from servicekit.http import HttpServer
from servicekit.peers import PeerChannel, Peers
from servicekit.retry import Backoff
from servicekit.rpc import AddToServer, RpcServer
from servicekit.settings import ServiceSettings
from servicekit.tasks import Tasks, Work
from servicekit.telemetry import Logger, Metrics, Tracing
from servicekit.tls import Tls

S = TypeVar("S", bound=ServiceSettings)

UNSEALED = "what people write is stored in the clear and cannot be erased; set SYNOD_MASTER_KEY_FILE"
Hook = Callable[[], Awaitable[object]]
Leaving = Callable[[float], Awaitable[object]]
"""Given how many seconds it may take."""


@dataclass(slots=True)
class Host(Generic[S]):
    """The process around a service. Only compose adds to it; after compose it is what it is.

    What compose opens is closed in reverse, after calls, commands and tasks have ended: on_stop hooks, the log.
    """

    settings: S
    clock: Clock
    log_: Logger
    pool: AsyncConnectionPool
    nats: Client
    broker: NatsBroker
    metrics: Metrics
    tracing: Tracing
    health: Health
    errors: ErrorMap
    commands: Commands
    rpc: RpcServer
    tasks: Tasks
    peers: Peers
    tls: Tls | None
    http: HttpServer
    history: History
    stack: AsyncExitStack
    grpc_port: int = 0
    """The port that is listened on, once ready."""
    _tasks_to_start: list[tuple[str, Work]] = field(default_factory=list)
    _when_ready: list[Hook] = field(default_factory=list)
    _leaving: list[Leaving] = field(default_factory=list)
    _forgetting: list[Callable[[], None]] = field(default_factory=list)
    _routes: list[AbstractRouteDef] = field(default_factory=list)

    @property
    def tracer(self) -> Tracer:
        return self.tracing.tracer

    @property
    def queue(self) -> Queue:
        """Where to send commands to other services."""
        return self.commands.queue

    @property
    def vault(self) -> Vault | None:
        """The keys of personal data, to be given to Aggregates; None without master_key_file or before open_log."""
        return self.history.vault

    @property
    def dead_letters(self) -> DeadLetters:
        return self.commands.dead_letters

    def add_rpc(
        self,
        add_to_server: AddToServer,
        servicer: object,
        permissions: Mapping[str, str],
        errors: ErrorMap | None = None,
    ) -> None:
        """Serve a generated service. `permissions` names one permission per method, "" for a public one.

        `errors` maps the service's domain errors. Raises PermissionMissing when a method has no permission.
        """
        self.rpc.add(add_to_server, servicer, permissions, errors or ErrorMap())

    async def open_log(
        self, limits: LogLimits | None = None, *, relay_pace_s: float = 0.0, side_table: SideTable | None = None
    ) -> EventLog:
        """Open the service's event log in its database, relay it to JetStream, and serve it by the EventLog rpc.

        `relay_pace_s` is RelayConfig's `pace_s`: more than 0 where calls wait for what the relay would take of the machine,
        and nobody for the events. `side_table` takes the rows that appends bring beside their events.
        """
        if self.history.log is None:
            self.stack.push_async_callback(self.history.drain)
        return await self.history.open(limits, relay_pace_s, side_table)

    async def open_personal_log(self, classes: Iterable[type[Event]], limits: LogLimits | None = None) -> EventLog:
        """As open_log, for a service in whose events (`classes`) may be what people wrote: sealed in the log, in the name of
        the actor, and in the clear to the service. Its codec is `sealed_below`, its views that keep such data read this
        log; what it keeps itself it forgets on_erasure. Without a master key nothing is sealed, and health says so.
        """
        log = await self.open_log(limits)
        if self.vault is None:
            self.health.degrade("sealing", UNSEALED)
            self.log_.warning("personal_data_unsealed", problem=UNSEALED)
            return log
        self.on_erasure(self.vault.forget)
        self.add_task("erasures", partial(follow_erasures, log, self._forget))
        return PersonalLog(log, self.vault, classes)

    def on_erasure(self, forget: Callable[[], None]) -> None:
        """Call `forget` whenever a person was erased, in whatever process, and at the start."""
        self._forgetting.append(forget)

    def _forget(self) -> None:
        for forget in self._forgetting:
            forget()

    def add_view(self, view: View, source: Source | None = None, limits: ProjectorLimits | None = None) -> Projector:
        """Fold `source`, by default the service's own log, into the tables of `view`; they are there before any call.

        Queries read the schema view_<name> through `pool`. Raises ValueError without a source and an open log.
        """
        projector = self.history.add_view(view, source, limits)
        self.add_task(f"view {view.name}", projector.run)
        return projector

    def add_task(self, name: str, work: Work) -> None:
        """Run `work` in the background once composed; a crash is logged, degrades the service, and restarts it."""
        self._tasks_to_start.append((name, work))

    def add_measurement(self, measure: Hook) -> None:
        """Call `measure` every few seconds to keep gauges of the service current. Needs an open log."""
        self.history.measurements.append(measure)

    def add_command(
        self,
        verb: str,
        handler: Handler[C],
        model: type[C],
        *,
        ack_wait_s: float = 30.0,
        max_deliver: int = 5,
        concurrency: int = 1,
        backoff: Backoff = REDELIVERY,
        errors: ErrorMap | None = None,
    ) -> None:
        """Handle the commands synod.<tenant>.cmd.<service>.<verb>; see commands.CommandSpec for the terms."""
        known = self.errors.including(errors)
        self.commands.add(CommandSpec(verb, handler, model, ack_wait_s, max_deliver, concurrency, backoff, known))

    def add_routes(self, routes: Sequence[AbstractRouteDef]) -> None:
        """Serve HTTP routes beside /health, /live, /ready and /metrics."""
        self._routes.extend(routes)

    def channel(self, peer: str) -> PeerChannel:
        """A channel to another service, under this service's identity. Raises PeerUnknown without an address."""
        return self.peers.channel(peer)

    def use_identity(self, source: TokenSource) -> None:
        """Identify to peers by `source` instead of the API key in service_key_file."""
        self.peers.identify_by(source)

    def on_ready(self, hook: Hook) -> None:
        """Call `hook` once everything serves, before the service reports ready."""
        self._when_ready.append(hook)

    def on_leave(self, hook: Leaving) -> None:
        """Call `hook` when calls have to finish, and with the time for it: for calls that come in another way than by gRPC."""
        self._leaving.append(hook)

    def on_stop(self, hook: Hook) -> None:
        """Call `hook` when the service stops, after its calls, commands and tasks have ended."""
        self.stack.push_async_callback(hook)

    async def start_composed(self) -> None:
        """Start what compose added. Called by app, once."""
        await self.history.prepare_views()
        if self.history.log:
            self.history.serve(self.rpc)
            self.add_task("measure", self.history.measure)
            if self.vault:
                self.add_task("pending erasures", self.history.end_erasures)
        for name, work in self._tasks_to_start:
            self.tasks.start(name, work)
        if self._routes:
            await self.http.add_routes(self._routes)

    async def announce(self) -> None:
        """Run the on_ready hooks. Called by app, once."""
        for hook in self._when_ready:
            await hook()

    async def finish_calls(self, grace_s: float) -> None:
        """Let no more calls in, and end those that take longer. Called by app, once."""
        await asyncio.gather(self.rpc.stop(grace_s), *(hook(grace_s) for hook in self._leaving))
