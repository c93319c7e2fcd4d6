"""What a service stands on, PostgreSQL and NATS: reached, watched, and named with a remedy when they are missing."""

import asyncio
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import nats
import psycopg
from eventlog.folding import is_away
from eventlog.patience import NOTICE_THAT_WE_LEFT, ImpatientConnection, postgres_address, unhurried
from faststream.nats import NatsBroker
from faststream.nats.security import NatsSecurity, NatsUserPassword
from nats.errors import Error as NatsError
from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown
from psycopg_pool import AsyncConnectionPool

from servicekit.errors import ErrorMap, Unavailable
from servicekit.health import Health
from servicekit.settings import ServiceSettings
from servicekit.telemetry import Logger
from servicekit.tls import Tls

_NATS_TLS = "; with TLS it needs `handshake_first: auto` and a certificate that names its address"


def _database_away(error: psycopg.OperationalError) -> Unavailable | None:
    """None for what PostgreSQL calls operational too and is about the statement, such as a value too long for an index."""
    if not is_away(error):
        return None
    text = _reason(error)
    named = text if "PostgreSQL" in text else f"PostgreSQL cannot be reached: {text}"
    return Unavailable(f"{named}; repeat in a moment", 1.0, reason="POSTGRES_UNAVAILABLE")


POSTGRES_ERRORS = ErrorMap().add(psycopg.OperationalError, _database_away)
"""How a database that is away or silent looks to the callers of a service."""


class PortTaken(Exception):
    """A port to listen on cannot be had. The text names it and the variable that moves it."""

    def __init__(self, variable: str, host: str, port: int, reason: object) -> None:
        super().__init__(f"cannot listen on {host}:{port} ({_reason(reason)}); free it or set {variable} to another")


class Missing(Exception):
    """A dependency does not answer. The text names its address, the reason, and what to do."""


async def probe_postgres(settings: ServiceSettings) -> None:
    """Raises Missing."""
    dsn = settings.postgres_dsn.get_secret_value()
    where = postgres_address(dsn)
    try:
        timeout_s = max(1, round(settings.limits.probe_s))
        async with await ImpatientConnection.connect(
            dsn, connect_timeout=timeout_s, answer_timeout_s=settings.limits.probe_s
        ) as connection:
            await connection.execute("select 1")
    except psycopg.Error as error:
        raise Missing(
            f"PostgreSQL at {where} does not answer ({_reason(error)}); "
            "start it (`synod up` starts one) or set SYNOD_POSTGRES_DSN to where it is"
        ) from error


@asynccontextmanager
async def no_other_replica_in(pool: AsyncConnectionPool) -> AsyncIterator[None]:
    """One replica of the service after the other: "create table if not exists" fails where two make the table at once."""
    async with pool.connection() as connection, connection.transaction():
        with unhurried(connection):
            await connection.execute("select pg_advisory_xact_lock(hashtextextended('synod compose', 0))")
        yield


async def probe_nats(settings: ServiceSettings, tls: Tls | None = None) -> None:
    """Raises Missing, also when the server runs without JetStream."""
    where = nats_address(settings.nats_url)
    refusals: list[Exception] = []

    async def note(error: Exception) -> None:
        # connect itself raises "no servers available"; the reason is only told here.
        refusals.append(error)

    try:
        async with asyncio.timeout(settings.limits.probe_s):
            # max_reconnect_attempts bounds the first connect too, which else tries for two minutes.
            client = await nats.connect(
                settings.nats_url,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                error_cb=note,
                **_nats_login(settings),
                **(tls.current.nats_options() if tls else {}),
            )
    except (NatsError, OSError, TimeoutError) as error:
        raise Missing(
            f"NATS at {where} does not answer ({_reason(refusals[-1] if refusals else error)}); "
            f"start it (`synod up` starts one) or set SYNOD_NATS_URL to where it is{_NATS_TLS if tls else ''}"
        ) from error
    try:
        await client.jetstream().account_info()
    except (NatsError, TimeoutError) as error:
        raise Missing(
            f"NATS at {where} has no JetStream ({_reason(error)}); start nats-server with --jetstream"
        ) from error
    finally:
        await client.close()


def open_pool(settings: ServiceSettings) -> AsyncConnectionPool:
    """A pool for the service's own database, not yet opened.

    A statement that is not answered in time raises NoAnswer, and its connection is replaced.
    """
    return AsyncConnectionPool(
        settings.postgres_dsn.get_secret_value(),
        connection_class=ImpatientConnection,
        kwargs={"answer_timeout_s": settings.limits.postgres_answer_s},
        min_size=1,
        max_size=settings.limits.postgres_connections_max,
        timeout=settings.limits.rpc_default_s,
        check=_check_if_spoken_to,
        configure=_configure,
        open=False,
    )


class AnyText(StrDumperUnknown):
    """Text as PostgreSQL can hold it: NUL, which it cannot, as its symbol U+2400.

    People, models and tools may write it. An event has it as it is; a view of events must take what is in them.
    """

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\u2400") if "\0" in obj else obj)


async def _configure(connection: AsyncConnection) -> None:
    connection.adapters.register_dumper(str, AnyText)
    await connection.set_autocommit(True)
    await connection.execute(NOTICE_THAT_WE_LEFT)
    await connection.set_autocommit(False)


async def _check_if_spoken_to(connection: AsyncConnection) -> None:
    """Ask the server whether a connection lives only if there is something to read on it.

    An idle server is silent, and one that is gone has closed the connection, which reads as an end. Asking each time
    would double the round trips of every query.
    """
    heard = select.poll()
    heard.register(connection.fileno(), select.POLLIN)
    if heard.poll(0):
        await AsyncConnectionPool.check_connection(connection)


def nats_broker(settings: ServiceSettings, health: Health, log: Logger, tls: Tls | None = None) -> NatsBroker:
    """The service's one connection to NATS, not yet opened; it reconnects for ever and tells `health`."""
    where = nats_address(settings.nats_url)

    async def disconnected() -> None:
        if health.phase == "stopping":
            return
        health.degrade("nats", f"the connection to NATS at {where} is lost; reconnecting")
        log.warning("nats_disconnected", address=where)

    async def reconnected() -> None:
        health.recover("nats")
        log.info("nats_reconnected", address=where)

    return NatsBroker(
        settings.nats_url,
        name=settings.service,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
        graceful_timeout=settings.finish_s,
        security=_nats_security(settings, tls),
        apply_types=True,
        logger=None,
    )


def watch_postgres(pool: AsyncConnectionPool, health: Health, where: str) -> Callable[[], Awaitable[None]]:
    """A check, to be repeated, that tells `health` whether the database answers."""

    async def check() -> None:
        try:
            async with pool.connection(timeout=5) as connection:
                await connection.execute("select 1")
        except psycopg.Error as error:
            health.degrade("postgres", f"PostgreSQL at {where} does not answer ({_reason(error)})")
        else:
            health.recover("postgres")

    return check


def nats_address(url: str) -> str:
    """host:port of a NATS URL, without its password."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.hostname}:{parts.port or 4222}"


def _nats_login(settings: ServiceSettings) -> dict[str, str]:
    if not (settings.nats_user and settings.nats_password):
        return {}
    return {"user": settings.nats_user, "password": settings.nats_password.get_secret_value()}


def _nats_security(settings: ServiceSettings, tls: Tls | None) -> NatsSecurity | None:
    login = _nats_login(settings)
    context, is_first = (tls.current.context, True) if tls else (None, False)
    if login:
        return NatsUserPassword(login["user"], login["password"], ssl_context=context, tls_handshake_first=is_first)
    return NatsSecurity(ssl_context=context, tls_handshake_first=is_first) if tls else None


def _reason(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
