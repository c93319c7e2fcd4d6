"""The connection to NATS."""

import asyncio
import ssl
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Final, TypeVar
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client

from synod_client.endpoints import Login
from synod_client.errors import NotAllowed, SynodError, TryAgain
from synod_client.tls import VARIABLES, Certificates

Result = TypeVar("Result")
RECONNECT_WAIT_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 2
GIVE_UP_S: Final = 5
"""After a handshake that failed, nats-py waits for ever that the connection is closed."""
REQUEST_TIMEOUT_S: Final = 2.0
"""For an answer of JetStream; a request that a broken connection swallowed is made again after it."""
CLIENT_INBOX: Final = "_INBOX_client"
"""Where answers to the user ``client`` go; it may listen to no other inbox."""


async def connect(url: str, login: Login, tls: Certificates | None = None) -> Client:
    """A connection that reconnects for ever, each time by the certificates of then.

    Raises TryAgain if nothing answers now, NotAllowed for a wrong login or certificate.
    """
    failures: list[Exception] = []
    client: Client | None = None

    async def note(error: Exception) -> None:
        # connect() itself only says that there are no servers; the reason is told here.
        failures.append(error)

    async def renew() -> None:
        if tls and client:
            # Else what it had is tried again.
            with suppress(NotAllowed):
                client.options.update(tls.nats_options())

    try:
        async with asyncio.timeout(GIVE_UP_S):
            client = await nats.connect(
                url,
                name=f"synod-{login}",
                max_reconnect_attempts=1,
                reconnect_time_wait=RECONNECT_WAIT_S,
                connect_timeout=CONNECT_TIMEOUT_S,
                error_cb=note,
                disconnected_cb=renew,
                inbox_prefix=CLIENT_INBOX if login == "client" else "_INBOX",
                **(tls.nats_options() if tls else {}),
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise _explained([*failures, error], url, login) from error
    # The limit above is for the first connection, which a person waits for.
    client.options["max_reconnect_attempts"] = -1
    return client


async def whole(request: Awaitable[Result]) -> Result:
    """Awaits a request to NATS such that it can be cancelled at any moment.

    nats-py waits with asyncio.wait_for, which before Python 3.12 loses a cancellation that arrives together with the answer.
    """
    before = cancellations()
    try:
        return await request
    finally:
        if cancellations() > before:
            raise asyncio.CancelledError


def cancellations() -> int:
    """How often the present task was cancelled, lost ones included."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _explained(failures: Sequence[Exception], url: str, login: Login) -> SynodError:
    parts = urlsplit(url)
    where = f"NATS at {parts.hostname}:{parts.port or 4222}"
    if any(_is_refusal(error) for error in failures):
        return NotAllowed(
            f"{where} refuses the login of '{login}'; set SYNOD_NATS_URL=nats://user:password@host:port, or use the data "
            "directory of the running system (--data, SYNOD_DATA)",
            "NATS_LOGIN",
        )
    if any(isinstance(error, ssl.SSLError) for error in failures):
        return NotAllowed(
            f"{where} and this client do not agree on TLS ({failures[0]}); set {', '.join(VARIABLES)} to the files of that "
            "system (`synod tls show`), or none of them if it speaks in the clear",
            "TLS_REFUSED",
        )
    return TryAgain(
        f"{where} does not answer ({failures[0]}); start Synod with `synod up`, or set SYNOD_NATS_URL", "NOT_RUNNING"
    )


def _is_refusal(error: Exception) -> bool:
    """A server that refuses a login says so and hangs up at once, which may come before what it said has been read."""
    is_said = isinstance(error, nats.errors.AuthorizationError) or "uthorization" in str(error)
    return is_said or isinstance(error, ConnectionResetError)
