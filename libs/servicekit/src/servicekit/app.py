"""The life of a service process: start in dependency order, serve, stop so that nothing is lost.

    settings -> http (health only) -> keys -> postgres -> nats -> peers -> compose -> views -> grpc -> commands -> ready
    SIGTERM: not ready -> callers leave -> commands finish -> calls finish -> tasks and views end -> log and relay drain

What a phase opens is closed in reverse order, also when a later phase fails. Each phase writes one log line when it
waits, with what is missing and what to do, and one when it is done. Peers are waited for but not insisted on: two
services may be each other's peers, and each must be able to start first.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from time import monotonic, perf_counter
from typing import Generic

import uvloop
from eventlog.errors import ArchiveMissing, KeyUnusable
from eventlog.limits import Limits as LogLimits
from eventlog.patience import postgres_address
from faststream.nats import NatsBroker
from nats.aio.client import Client
from psycopg_pool import AsyncConnectionPool

from servicekit.auth import Authenticator, KeyFileInvalid, load_public_key
from servicekit.clock import Clock, SystemClock
from servicekit.commands import Commands
from servicekit.dependencies import (
    POSTGRES_ERRORS,
    Missing,
    PortTaken,
    nats_broker,
    no_other_replica_in,
    open_pool,
    probe_nats,
    probe_postgres,
    watch_postgres,
)
from servicekit.health import Health
from servicekit.history import LOG_ERRORS, History
from servicekit.host import Host, S
from servicekit.http import HttpServer
from servicekit.nats_headers import read_headers_quickly
from servicekit.peers import Peers, PeerUnknown
from servicekit.retry import Backoff
from servicekit.rpc import Guard, PermissionMissing, RpcServer
from servicekit.settings import FINISH_SHARE, ServiceSettings, SettingsInvalid, load_settings
from servicekit.tasks import Tasks
from servicekit.telemetry import Logger, Metrics, Tracing, configure_logging
from servicekit.tls import Material, Tls, TlsFiles, TlsInvalid, follow

Compose = Callable[[Host[S]], Awaitable[None]]
Probe = Callable[[], Awaitable[None]]

EXIT_OK = 0
EXIT_START_FAILED = 1
EXIT_SETTINGS_INVALID = 2
GRACE_LEAST_S = 1.0
"""What is closed last has at least so long."""
COLLECT_AFTER = (5_000, 200, 20)
"""Thresholds of the garbage collector. Python's own 700 objects are the fields of some ten events: of the time of a
rebuild, a third went into looking for garbage. 50,000 at once stop everything for 25 ms, these for 1 ms."""
DEPENDENCY_CHECK_S = 5.0
_PROBE_RETRY = Backoff(initial_s=0.2, factor=1.5, max_s=2, full_jitter=False)
_TASK_RETRY = Backoff(initial_s=0.2, max_s=30)


class StartFailed(Exception):
    """A phase could not be completed; `missing` says what it lacks and what to do."""

    def __init__(self, phase: str, missing: str) -> None:
        super().__init__(f"{phase}: {missing}")
        self.phase = phase
        self.missing = missing


EXPECTED = (
    StartFailed,
    ArchiveMissing,
    KeyFileInvalid,
    KeyUnusable,
    PermissionMissing,
    PeerUnknown,
    PortTaken,
    TlsInvalid,
)


def run(settings_type: type[S], compose: Compose[S]) -> int:
    """Run a service until SIGTERM or SIGINT; answers the exit code. The body of every service's main.

    0 after a clean stop, 1 when a phase of the start failed, 2 when the environment is no valid configuration.
    """
    try:
        settings = load_settings(settings_type)
    except SettingsInvalid as error:
        configure_logging("unconfigured", "INFO")
        for problem in error.problems:
            Logger("unconfigured").error("phase", phase="settings", state="failed", missing=problem)
        return EXIT_SETTINGS_INVALID
    configure_logging(settings.service, settings.log_level)
    collect_seldom()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(settings, compose))


async def _until_signal(settings: S, compose: Compose[S]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with running(settings, compose, stop=stop):
            if not settings.prepare_only:
                _keep_what_is_loaded()
                await stop.wait()
    except StartFailed:
        # The phase that failed has said so in the log already.
        return EXIT_START_FAILED
    return EXIT_OK


def collect_seldom() -> None:
    """For a process that decodes many events, keeps few, and makes no cycles of them."""
    gc.set_threshold(*COLLECT_AFTER)


def _keep_what_is_loaded() -> None:
    """What a service has loaded by now it keeps: looking through it for garbage again and again finds none."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def running(
    settings: S, compose: Compose[S], *, clock: Clock | None = None, stop: asyncio.Event | None = None
) -> AsyncIterator[Host[S]]:
    """Start the service, give its host while it is ready (or prepared, if that is all it is to be), stop it. Raises
    StartFailed.

    A `stop` that is set during the start ends the waiting for what is missing.
    """
    log, metrics = Logger(settings.service), Metrics()
    health, grace = Health(metrics.ready, metrics.problem), Grace(settings.shutdown_grace_s)
    phases = _Phases(settings, health, log, stop or asyncio.Event(), grace)
    async with AsyncExitStack() as stack:
        host = await _Start(settings, clock or SystemClock(), metrics, phases, stack).all(compose)
        reached = "prepared" if settings.prepare_only else "ready"
        phases.health.enter(reached)
        log.info("phase", phase=reached, state="ok", grpc_port=host.grpc_port, http_port=host.http.port)
        try:
            yield host
        finally:
            phases.health.enter("stopping")
            phases.grace.begin()
            await host.rpc.set_serving(False)
            log.info("phase", phase="stop", state="draining", grace_s=settings.shutdown_grace_s)
            await asyncio.sleep(settings.shutdown_drain_s)
    log.info("phase", phase="stop", state="ok")


@dataclass(slots=True)
class _Start(Generic[S]):
    """One start: each phase opens something and leaves on the stack what closes it."""

    settings: S
    clock: Clock
    metrics: Metrics
    phases: "_Phases"
    stack: AsyncExitStack

    async def all(self, compose: Compose[S]) -> Host[S]:
        tracing = Tracing(self.settings.service, self.settings.otlp_endpoint)
        self.stack.callback(tracing.close)
        http = await self.http()
        authenticator, tls = await self.keys()
        pool = await self.postgres()
        broker, client = await self.nats(tls)
        peers = await self.peers(tls)
        host = self.host(tracing, http, authenticator, tls, pool, broker, client, peers)
        async with self.phases.phase("compose"), no_other_replica_in(pool):
            await compose(host)
        if self.settings.prepare_only:
            async with self.phases.phase("views"):
                await host.history.prepare_views()
        else:
            await self.serve(host)
        return host

    async def http(self) -> HttpServer:
        """First of all, so that a probe can ask what the start is waiting for."""
        settings = self.settings
        server = HttpServer(
            settings.service, self.phases.health, self.metrics.registry, settings.limits.http_body_bytes_max
        )
        async with self.phases.phase("http"):
            await server.start(settings.grpc_host, settings.http_port)
            self.stack.push_async_callback(server.stop)
        return server

    async def keys(self) -> tuple[Authenticator, Tls | None]:
        settings = self.settings
        async with self.phases.phase("keys"):
            key = load_public_key(settings.auth_public_key_file)
            files = TlsFiles.named(settings.tls_ca_file, settings.tls_certificate_file, settings.tls_key_file)
            tls = Tls(files, self.clock) if files else None
        return Authenticator(key, self.clock, cache_max=settings.limits.tokens_cached_max), tls

    async def postgres(self) -> AsyncConnectionPool:
        async with self.phases.phase("postgres"):
            await self.phases.wait_for("postgres", lambda: probe_postgres(self.settings))
            return await self.stack.enter_async_context(open_pool(self.settings))

    async def nats(self, tls: Tls | None) -> tuple[NatsBroker, Client]:
        async with self.phases.phase("nats"):
            await self.phases.wait_for("nats", lambda: probe_nats(self.settings, tls))
            broker = nats_broker(self.settings, self.phases.health, self.phases.log, tls)
            client = await broker.connect()
            read_headers_quickly(client)
            self.stack.push_async_callback(broker.stop)
        return broker, client

    async def peers(self, tls: Tls | None) -> Peers:
        settings = self.settings
        peers = Peers(settings.peers, self.clock, settings.limits, tls)
        self.stack.push_async_callback(peers.close)
        async with self.phases.phase("peers"):
            if settings.service_key_file:
                peers.exchange_key(settings.service_key_file)
            await asyncio.gather(*(self._reach(peers, name) for name in settings.peers))
        return peers

    async def _reach(self, peers: Peers, name: str) -> None:
        """Wait a while for a peer; one that is still missing makes the service degraded, and is named."""
        try:
            limit_s = self.settings.limits.peers_wait_s
            await self.phases.wait_for(f"peer {name}", lambda: peers.probe(name), limit_s)
        except StartFailed as late:
            self.phases.log.warning("phase", phase="peers", state="degraded", missing=late.missing)

    def host(
        self,
        tracing: Tracing,
        http: HttpServer,
        authenticator: Authenticator,
        tls: Tls | None,
        pool: AsyncConnectionPool,
        broker: NatsBroker,
        client: Client,
        peers: Peers,
    ) -> Host[S]:
        settings, clock, metrics = self.settings, self.clock, self.metrics
        log, health, service, limits = self.phases.log, self.phases.health, settings.service, settings.limits
        errors = LOG_ERRORS.including(POSTGRES_ERRORS)
        guard = Guard(service, authenticator, errors, limits, clock, tracing, metrics, log, tls)
        commands = Commands(
            service,
            broker,
            client.jetstream(),
            clock=clock,
            limits=limits,
            tracing=tracing,
            metrics=metrics,
            log=log,
            make_streams=settings.make_streams,
        )
        return Host(
            settings=settings,
            clock=clock,
            log_=log,
            pool=pool,
            nats=client,
            broker=broker,
            metrics=metrics,
            tracing=tracing,
            health=health,
            errors=errors,
            commands=commands,
            rpc=RpcServer(guard),
            tasks=Tasks(clock, health, metrics, log, _TASK_RETRY),
            peers=peers,
            tls=tls,
            http=http,
            history=self.history(pool, client),
            stack=self.stack,
        )

    def history(self, pool: AsyncConnectionPool, client: Client) -> History:
        settings, log = self.settings, self.phases.log
        return History(
            service=settings.service,
            limits=LogLimits(answer_timeout_s=settings.limits.postgres_answer_s),
            dsn=settings.postgres_dsn.get_secret_value(),
            pool=pool,
            client=client,
            clock=self.clock,
            metrics=self.metrics,
            health=self.phases.health,
            log_=log,
            relaying=Tasks(self.clock, self.phases.health, self.metrics, log, _TASK_RETRY),
            grace_s=settings.shutdown_grace_s,
            checkpoint_key_file=settings.checkpoint_key_file,
            former_checkpoint_key_files=settings.former_checkpoint_key_files,
            master_key_file=settings.master_key_file,
            require_sealing=settings.require_sealing,
            former_master_key_files=settings.former_master_key_files,
            encrypt_at_rest=settings.encrypt_at_rest,
            archive_directory=settings.archive_directory,
            operator_tenant=settings.operator_tenant,
            make_streams=settings.make_streams,
        )

    async def serve(self, host: Host[S]) -> None:
        """Open the doors, the widest last. They are closed in reverse: commands, calls, then tasks."""
        settings, grace = self.settings, self.phases.grace
        async with self.phases.phase("tasks"):
            self.stack.push_async_callback(lambda: host.tasks.stop(grace.left_s()))
            host.tasks.start("dependencies", _watch(host, settings))
            if host.tls:
                host.tasks.start("tls", _follow_files(host, host.tls))
            await host.start_composed()
        async with self.phases.phase("grpc"):
            host.grpc_port = await host.rpc.start(settings.grpc_host, settings.grpc_port)
            self.stack.push_async_callback(lambda: host.finish_calls(grace.left_to_finish_s()))
        async with self.phases.phase("commands"):
            await self.phases.wait_for("commands", host.commands.prepare)
            await host.commands.start()
            self.stack.push_async_callback(host.commands.stop)
        async with self.phases.phase("announce"):
            await host.announce()
            await host.rpc.set_serving(True)


@dataclass(slots=True)
class Grace:
    """The time in which a process that is told to stop should have stopped. All that is closed shares it, so that a call
    that takes long does not double it; but whoever comes last has something to put down too.
    """

    whole_s: float
    clock: Callable[[], float] = monotonic
    _begun_s: float | None = None

    def begin(self) -> None:
        self._begun_s = self.clock()

    def left_s(self) -> float:
        return self._left_of_s(self.whole_s)

    def left_to_finish_s(self) -> float:
        """How long calls may still take: what they leave behind at their end has to be put down in what is left then."""
        return self._left_of_s(FINISH_SHARE * self.whole_s)

    def _left_of_s(self, part_s: float) -> float:
        spent_s = 0.0 if self._begun_s is None else self.clock() - self._begun_s
        return max(min(GRACE_LEAST_S, self.whole_s), part_s - spent_s)


@dataclass(slots=True)
class _Phases:
    """Reports the phases of a start, and waits for what they need."""

    settings: ServiceSettings
    health: Health
    log: Logger
    stop: asyncio.Event
    grace: "Grace"

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Raises StartFailed for whatever the block raises, after reporting it."""
        self.health.enter(name)
        started = perf_counter()
        try:
            yield
        except EXPECTED as error:
            # What an operator can repair is one line; a defect below gets its stack trace.
            missing = error.missing if isinstance(error, StartFailed) else str(error)
            raise self._failed(name, missing) from error
        except Exception as error:
            raise self._failed(name, repr(error), error) from error
        self.log.info("phase", phase=name, state="ok", seconds=round(perf_counter() - started, 3))

    async def wait_for(self, component: str, probe: Probe, timeout_s: float | None = None) -> None:
        """Probe until it succeeds. Raises StartFailed with what is missing at the timeout, or when told to stop."""
        give_up_at = monotonic() + (timeout_s or self.settings.limits.startup_s)
        said = ""
        for attempt in count():
            try:
                await probe()
            except Missing as missing:
                said = self._say(component, str(missing), said)
            else:
                self.health.recover(component)
                return
            pause_s = _PROBE_RETRY.delay_s(attempt)
            if monotonic() + pause_s > give_up_at or await self._stopped_within(pause_s):
                raise StartFailed(component, said)

    def _failed(self, phase: str, missing: str, error: Exception | None = None) -> StartFailed:
        self.health.enter("stopping")
        self.log.error("phase", error=error, phase=phase, state="failed", missing=missing)
        return StartFailed(phase, missing)

    def _say(self, component: str, missing: str, said: str) -> str:
        if missing != said:
            self.health.degrade(component, missing)
            self.log.warning("phase", phase=component, state="waiting", missing=missing)
        return missing

    async def _stopped_within(self, pause_s: float) -> bool:
        try:
            async with asyncio.timeout(pause_s):
                await self.stop.wait()
        except TimeoutError:
            return False
        return True


def _watch(host: Host[S], settings: ServiceSettings) -> Probe:
    """Look after what was there at the start: the database, and the peers that were late."""
    where = postgres_address(settings.postgres_dsn.get_secret_value())
    check_postgres = watch_postgres(host.pool, host.health, where)

    async def watch() -> None:
        while True:
            await asyncio.sleep(DEPENDENCY_CHECK_S)
            await check_postgres()
            await _check_commands(host)
            for name in settings.peers:
                await _check_peer(host, name)

    return watch


def _follow_files(host: Host[S], tls: Tls) -> Probe:
    def renew(material: Material) -> None:
        # Taken at the next reconnect; a connection that is there stays.
        host.nats.options["tls"] = material.context

    return follow(tls, host.health, host.metrics, host.log_, renew, host.clock)


async def _check_commands(host: Host[S]) -> None:
    try:
        await host.commands.probe()
    except Missing as missing:
        host.health.degrade("commands", str(missing))
    else:
        host.health.recover("commands")


async def _check_peer(host: Host[S], name: str) -> None:
    try:
        await host.peers.probe(name)
    except Missing as missing:
        host.health.degrade(f"peer {name}", str(missing))
    else:
        host.health.recover(f"peer {name}")
