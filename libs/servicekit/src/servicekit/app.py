"""The life of a service process: start in dependency order, serve, stop so that nothing is lost.

    settings -> http (health only) -> postgres -> nats -> peers -> compose -> views -> grpc -> commands -> ready
    SIGTERM: not ready -> commands finish -> calls finish -> tasks and views end -> log and relay drain -> close

What a phase opens is closed in reverse order, also when a later phase fails. Each phase writes one log line when it
waits, with what is missing and what to do, and one when it is done. Peers are waited for but not insisted on: two
services may be each other's peers, and each must be able to start first.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from time import monotonic, perf_counter

import uvloop
from psycopg_pool import AsyncConnectionPool

from servicekit.auth import Authenticator, KeyFileInvalid, load_public_key
from servicekit.clock import Clock, SystemClock
from servicekit.commands import Commands
from servicekit.dependencies import (
    Missing,
    nats_broker,
    open_pool,
    postgres_address,
    probe_nats,
    probe_postgres,
    watch_postgres,
)
from servicekit.errors import ErrorMap
from servicekit.health import Health
from servicekit.history import LOG_ERRORS
from servicekit.host import Host, S
from servicekit.http import HttpServer
from servicekit.peers import Peers, PeerUnknown
from servicekit.retry import Backoff
from servicekit.rpc import Guard, PermissionMissing, RpcServer
from servicekit.settings import ServiceSettings, SettingsInvalid, load_settings
from servicekit.tasks import Tasks
from servicekit.telemetry import Logger, Metrics, Tracing, configure_logging

Compose = Callable[[Host[S]], Awaitable[None]]

EXIT_OK = 0
EXIT_START_FAILED = 1
EXIT_SETTINGS_INVALID = 2
DEPENDENCY_CHECK_S = 5.0
EXPECTED = (KeyFileInvalid, PermissionMissing, PeerUnknown, OSError, RuntimeError)
_PROBE_RETRY = Backoff(initial_s=0.2, factor=1.5, max_s=2, full_jitter=False)
_TASK_RETRY = Backoff(initial_s=0.2, max_s=30)


class StartFailed(Exception):
    """A phase could not be completed; `missing` says what it lacks and what to do."""

    def __init__(self, phase: str, missing: str) -> None:
        super().__init__(f"{phase}: {missing}")
        self.phase = phase
        self.missing = missing


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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(settings, compose))


async def _until_signal(settings: S, compose: Compose[S]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with running(settings, compose, stop=stop):
            await stop.wait()
    except StartFailed:
        # The phase that failed has said so in the log already.
        return EXIT_START_FAILED
    return EXIT_OK


@asynccontextmanager
async def running(
    settings: S, compose: Compose[S], *, clock: Clock | None = None, stop: asyncio.Event | None = None
) -> AsyncIterator[Host[S]]:
    """Start the service, give its host while it is ready, stop it. Raises StartFailed.

    A `stop` that is set during the start ends the waiting for what is missing.
    """
    log, metrics = Logger(settings.service), Metrics()
    health = Health(metrics.ready)
    async with AsyncExitStack() as stack:
        phases = _Phases(settings, health, log, stop or asyncio.Event())
        host = await _start(settings, compose, clock or SystemClock(), phases, metrics, stack)
        health.enter("ready")
        log.info("phase", phase="ready", state="ok", grpc_port=host.grpc_port, http_port=host.http.port)
        try:
            yield host
        finally:
            health.enter("stopping")
            log.info("phase", phase="stop", state="draining", grace_s=settings.shutdown_grace_s)
            await host.rpc.set_serving(False)
    log.info("phase", phase="stop", state="ok")


async def _start(
    settings: S, compose: Compose[S], clock: Clock, phases: "_Phases", metrics: Metrics, stack: AsyncExitStack
) -> Host[S]:
    """All phases in order; `stack` undoes them in reverse."""
    log, health, limits, grace_s = phases.log, phases.health, settings.limits, settings.shutdown_grace_s
    tracing = Tracing(settings.service, settings.otlp_endpoint)
    stack.callback(tracing.close)
    http = HttpServer(settings.service, health, metrics.registry, limits.http_body_bytes_max)
    async with phases.phase("http"):
        await http.start(settings.grpc_host, settings.http_port)
        stack.push_async_callback(http.stop)
    async with phases.phase("keys"):
        authenticator = Authenticator(
            load_public_key(settings.auth_public_key_file), clock, cache_max=limits.tokens_cached_max
        )
    async with phases.phase("postgres"):
        await phases.wait_for("postgres", lambda: probe_postgres(settings))
        pool = open_pool(settings)
        await stack.enter_async_context(pool)
    async with phases.phase("nats"):
        await phases.wait_for("nats", lambda: probe_nats(settings))
        broker = nats_broker(settings, health, log)
        client = await broker.connect()
        stack.push_async_callback(broker.stop)
    async with phases.phase("peers"):
        peers = Peers(settings.peers, clock, limits)
        stack.push_async_callback(peers.close)
        if settings.service_key_file:
            peers.exchange_key(settings.service_key_file)
        await _await_peers(peers, settings, phases)
    errors = ErrorMap().including(LOG_ERRORS)
    guard = Guard(settings.service, authenticator, errors, limits, clock, tracing, metrics, log)
    host = Host(
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
        commands=Commands(
            settings.service,
            broker,
            client.jetstream(),
            clock=clock,
            limits=limits,
            tracing=tracing,
            metrics=metrics,
            log=log,
        ),
        rpc=RpcServer(guard),
        tasks=Tasks(clock, health, metrics, log, _TASK_RETRY),
        peers=peers,
        http=http,
        stack=stack,
    )
    async with phases.phase("compose"):
        await compose(host)
    async with phases.phase("tasks"):
        stack.push_async_callback(host.tasks.stop, grace_s)
        host.tasks.start("postgres-watch", _watch(pool, health, settings))
        await host.start_composed()
    async with phases.phase("grpc"):
        host.grpc_port = await host.rpc.start(settings.grpc_host, settings.grpc_port)
        stack.push_async_callback(host.rpc.stop, grace_s)
    async with phases.phase("commands"):
        await host.commands.start()
        stack.push_async_callback(host.commands.stop)
    async with phases.phase("announce"):
        await host.announce()
        await host.rpc.set_serving(True)
    return host


@dataclass(slots=True)
class _Phases:
    """Reports the phases of a start, and waits for what they need."""

    settings: ServiceSettings
    health: Health
    log: Logger
    stop: asyncio.Event

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Raises StartFailed for whatever the block raises, after reporting it."""
        self.health.enter(name)
        started = perf_counter()
        try:
            yield
        except StartFailed as error:
            self.log.error("phase", phase=name, state="failed", missing=error.missing)
            raise
        except EXPECTED as error:
            # What an operator can repair is one line; a defect in compose below gets its stack trace.
            self.log.error("phase", phase=name, state="failed", missing=str(error))
            raise StartFailed(name, str(error)) from error
        except Exception as error:
            self.log.error("phase", error=error, phase=name, state="failed", missing=repr(error))
            raise StartFailed(name, repr(error)) from error
        self.log.info("phase", phase=name, state="ok", seconds=round(perf_counter() - started, 3))

    async def wait_for(
        self, component: str, probe: Callable[[], Awaitable[None]], timeout_s: float | None = None
    ) -> None:
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


async def _await_peers(peers: Peers, settings: ServiceSettings, phases: _Phases) -> None:
    """Wait a while for every peer; one that is still missing makes the service degraded, and is named."""

    async def reach(name: str) -> None:
        try:
            await phases.wait_for(f"peer {name}", lambda: peers.probe(name), settings.limits.peers_wait_s)
        except StartFailed:
            phases.log.warning("phase", phase="peers", state="degraded", missing=name)

    await asyncio.gather(*(reach(name) for name in settings.peers))


def _watch(pool: AsyncConnectionPool, health: Health, settings: ServiceSettings) -> Callable[[], Awaitable[None]]:
    check = watch_postgres(pool, health, postgres_address(settings.postgres_dsn.get_secret_value()))

    async def watch() -> None:
        while True:
            await asyncio.sleep(DEPENDENCY_CHECK_S)
            await check()

    return watch
