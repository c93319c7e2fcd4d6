"""Fakes, and a whole service inside a test: real gRPC, real PostgreSQL, real NATS.

async with serve_in_process(compose, settings_for(Settings, postgres_dsn, nats_url)) as service:
    stub = CostLedgerStub(service.channel)
    await stub.CreateBudget(...)
    denied = CostLedgerStub(service.connect(service.token(["budgets.read"])))
"""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from servicekit.app import Compose, running
from servicekit.auth import ANY_TENANT, Kind, Principal, StaticToken, issue, service_principal
from servicekit.clock import Clock, SystemClock
from servicekit.host import Host, S
from servicekit.limits import Limits
from servicekit.peers import CallTerms, PeerChannel, open_channel
from servicekit.retry import Backoff

TENANT = "local"
EVERYTHING = ("*",)
TOKEN_LIFE = timedelta(hours=1)


class FakeClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


@dataclass(slots=True)
class Served(Generic[S]):
    """A running service. `channel` acts as a user with every permission in the tenant "local"."""

    host: Host[S]
    key: Ed25519PrivateKey
    clock: Clock
    channel: PeerChannel = field(init=False)
    _channels: list[PeerChannel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = self.connect(self.token())

    @property
    def address(self) -> str:
        return f"{self.host.settings.grpc_host}:{self.host.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{self.host.settings.grpc_host}:{self.host.http.port}"

    def token(
        self,
        permissions: Sequence[str] = EVERYTHING,
        tenant: str = TENANT,
        *,
        id: str = "usr_test",
        kind: Kind = "user",
        on_behalf_of: str | None = None,
        ttl: timedelta = TOKEN_LIFE,
    ) -> str:
        """A token as agent-registry would sign it; a negative `ttl` makes one that has expired."""
        principal = Principal(id, tenant, kind, tuple(permissions), on_behalf_of)
        return issue(self.key, principal, ttl, now=self.clock.now())

    def connect(self, token: str) -> PeerChannel:
        """A channel that carries `token`, closed with the service."""
        settings = self.host.settings
        terms = CallTerms(StaticToken(token), self.clock, settings.limits, Backoff(initial_s=0.01))
        channel = open_channel(self.address, settings.service, settings.limits, self.host.tls)
        self._channels.append(PeerChannel(self.address, terms, channel))
        return self._channels[-1]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def serve_in_process(
    compose: Compose[S], settings: S, *, clock: Clock | None = None, key: Ed25519PrivateKey | None = None
) -> AsyncIterator[Served[S]]:
    """Run a service on free ports until the block ends; its own channels act as a service with every permission.

    Verifies tokens by `key`; give the same key to several services that talk to each other.
    """
    clock, key = clock or SystemClock(), key or Ed25519PrivateKey.generate()
    identity = StaticToken(
        issue(
            key,
            Principal(service_principal(settings.service), ANY_TENANT, "service", EVERYTHING),
            TOKEN_LIFE,
            now=clock.now(),
        )
    )

    async def composed(host: Host[S]) -> None:
        host.use_identity(identity)
        await compose(host)

    with tempfile.TemporaryDirectory(prefix="servicekit-") as directory:
        ours = {"grpc_port": 0, "http_port": 0, "auth_public_key_file": write_public_key(key, Path(directory))}
        async with running(settings.model_copy(update=ours), composed, clock=clock) as host:
            served = Served(host, key, clock)
            try:
                yield served
            finally:
                await served.close()


def settings_for(settings_type: type[S], postgres_dsn: str, nats_url: str, **values: Any) -> S:
    """The settings of a service in a test: free ports, time enough for a slow machine, and `values`."""
    given: dict[str, Any] = {
        **{port: 0 for port in ("grpc_port", "http_port", "edge_port") if port in settings_type.model_fields},
        "postgres_dsn": postgres_dsn,
        "nats_url": nats_url,
        "make_streams": True,
        "auth_public_key_file": Path("unused.pem"),
        "limits": Limits(startup_s=60, peers_wait_s=5, peer_deadline_s=60),
        "shutdown_grace_s": 5,
    }
    return settings_type(**(given | values))


def write_public_key(key: Ed25519PrivateKey, directory: Path) -> Path:
    """Write the public half of `key` as PEM; answers the file."""
    file = directory / "auth.pub.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file
