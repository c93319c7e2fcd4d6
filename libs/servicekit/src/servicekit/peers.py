"""Channels to other services that carry who calls, for whom, in which trace, and until when.

A channel adds to each call the token of this service, the tenant and actor it acts for, traceparent, correlation,
and a deadline: the shortest of the caller's, what is left of the call being served, and the limit for peers.
Idempotent unary calls are repeated with full jitter while a peer is UNAVAILABLE.

A peer is a name that may have many addresses. Calls go to its replicas in turn, to those that say they serve
(grpc.health.v1, watched on each connection): one that dies, hangs or is about to stop is left out.
While none can be reached, a call waits a moment before it is sent, for then nothing was done that a repetition would
do twice.

The stubs' calls are wrapped, not intercepted: grpc.aio runs an intercepted call as a task of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from synod.agent_registry.v1 import agent_registry_pb2, agent_registry_pb2_grpc

from servicekit.auth import ACTOR, ANY_TENANT, AUTHORIZATION, TENANT, StaticToken, TokenSource
from servicekit.channels import RenewedChannel
from servicekit.clock import Clock
from servicekit.context import current_call
from servicekit.dependencies import Missing
from servicekit.errors import DeadlineExceeded, Unauthenticated, from_rpc_error, of_peer
from servicekit.limits import Limits
from servicekit.retry import Backoff
from servicekit.rpc import CAUSATION, CORRELATION
from servicekit.telemetry import TRACEPARENT, traceparent
from servicekit.tls import Tls

IDEMPOTENT_PREFIXES = ("Get", "List", "Read", "Find", "Count", "Check", "Verify", "Authenticate", "Discover", "Spend")
IDEMPOTENCY_FIELDS = ("request_id", "idempotency_key")
TOKEN_RENEW_SHARE = 0.8
"""A token is renewed when this share of its life is over, so that none expires in flight."""

LOAD_BALANCING = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}},
)
"""A service config of gRPC (gRFC A17 for the health check)."""

Metadata = tuple[tuple[str, str], ...]
Connect = Callable[[float], Awaitable[bool]]
"""Waits at most until a moment of the terms' clock for a replica of the peer to be reached; answers whether one can be."""


class PeerUnknown(Exception):
    """A channel was asked for a service whose address is not in SYNOD_PEERS."""


@dataclass(frozen=True, slots=True)
class CallTerms:
    """What a channel adds to every call."""

    identity: TokenSource
    clock: Clock
    limits: Limits
    backoff: Backoff

    async def metadata(self, asked: Any) -> "AsSent":
        """What the caller asks to send, and what it does not name of what a channel adds. The token of this service is
        fetched only where none is given. Raises Unauthenticated when it cannot be had.
        """
        given: Metadata = tuple(asked or ())
        named = dict(given)
        call = current_call()
        tenant = "" if call.principal.tenant == ANY_TENANT else call.principal.tenant
        token = "" if AUTHORIZATION in named else await self.identity.token()
        ours = (
            (AUTHORIZATION, f"Bearer {token}" if token else ""),
            (TENANT, tenant),
            (ACTOR, call.principal.actor if tenant else ""),
            (TRACEPARENT, traceparent()),
            (CORRELATION, call.correlation),
            (CAUSATION, str(call.causation) if call.causation else ""),
        )
        return AsSent(given + tuple([pair for pair in ours if pair[1] and pair[0] not in named]))

    def timeout_s(self, given: float | None, default_s: float | None) -> float | None:
        """Seconds this call may take. Raises DeadlineExceeded when the call being served has none left."""
        limit_s, deadline = default_s if given is None else given, current_call().deadline
        if deadline is None:
            return limit_s
        left_s = deadline - self.clock.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the call being served has no time left to ask a peer", reason="DEADLINE_PASSED")
        return left_s if limit_s is None else min(limit_s, left_s)


class AsSent(grpc.aio.Metadata):
    """Pairs that are sent as they are, and can only be gone through.

    Of anything else grpc.aio makes a Metadata, by three calls for each pair, only to make a tuple of it again.
    """

    def __init__(self, pairs: Metadata) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


class PeerChannel(grpc.aio.Channel):
    """A grpc.aio channel whose unary calls are awaited and whose streams are iterated, as generated stubs do.

    Differs from a bare channel in one way: a unary call is a coroutine, so code() and trailing_metadata() of the call
    object are not at hand; errors carry them.
    """

    def __init__(self, address: str, terms: CallTerms, channel: grpc.aio.Channel | None = None) -> None:
        self.address = address
        self._terms = terms
        self._channel = channel or grpc.aio.insecure_channel(address, options=_options(terms.limits))

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        invoke = self._channel.unary_unary(method, *args, **kwargs)
        return _unary(self._terms, method, invoke, self._connected, request_is_stream=False)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        invoke = self._channel.stream_unary(method, *args, **kwargs)
        return _unary(self._terms, method, invoke, self._connected, request_is_stream=True)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _streaming(self._terms, method, self._channel.unary_stream(method, *args, **kwargs), self._connected)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _streaming(self._terms, method, self._channel.stream_stream(method, *args, **kwargs), self._connected)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def _connected(self, until: float) -> bool:
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return True
        try:
            async with asyncio.timeout(until - self._terms.clock.monotonic()):
                await self._channel.channel_ready()
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> "PeerChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class KeyExchange:
    """Exchanges the service's API key at agent-registry for tokens, keeps one, and renews it at 80 % of its life."""

    def __init__(self, key_file: Path, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._key_file = key_file
        self._stub = agent_registry_pb2_grpc.AgentRegistryStub(channel)
        self._clock = clock
        self._token = ""
        self._renew_at = 0.0
        self._renewing = asyncio.Lock()

    async def token(self) -> str:
        if self._fresh():
            return self._token
        async with self._renewing:
            if not self._fresh():
                await self._renew()
        return self._token

    def _fresh(self) -> bool:
        return bool(self._token) and self._clock.monotonic() < self._renew_at

    async def _renew(self) -> None:
        request = agent_registry_pb2.AuthenticateRequest(api_key=self._key())
        try:
            answer = await self._stub.Authenticate(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        life_s = answer.expires_at.ToMicroseconds() / 1e6 - self._clock.now().timestamp()
        self._renew_at = self._clock.monotonic() + life_s * TOKEN_RENEW_SHARE
        self._token = answer.token

    def _key(self) -> str:
        try:
            return self._key_file.read_text().strip()
        except OSError as error:
            raise Unauthenticated(
                f"SYNOD_SERVICE_KEY_FILE={self._key_file} cannot be read ({error.strerror}); "
                "write the service's API key into it",
                reason="KEY_FILE_MISSING",
            ) from error


class Identity:
    """Who a process is to its peers, which may be decided after its channels were opened. Nobody, until then."""

    def __init__(self) -> None:
        self.source: TokenSource = StaticToken("")

    async def token(self) -> str:
        return await self.source.token()


class Peers:
    """The channels of a service, one per peer, opened when first asked for."""

    def __init__(self, addresses: Mapping[str, str], clock: Clock, limits: Limits, tls: Tls | None = None) -> None:
        self._addresses = addresses
        self._clock = clock
        self._limits = limits
        self._tls = tls
        self._channels: dict[str, PeerChannel] = {}
        self._identity = Identity()

    def exchange_key(self, key_file: Path) -> None:
        """Identify by the API key in `key_file`. Raises PeerUnknown without the address of agent-registry."""
        registry = self._open("agent-registry", StaticToken(""))
        self._channels["agent-registry (authentication)"] = registry
        self.identify_by(KeyExchange(key_file, registry, self._clock))

    def identify_by(self, source: TokenSource) -> None:
        """Take tokens from `source` from now on, also for channels that are open."""
        self._identity.source = source

    def channel(self, peer: str) -> PeerChannel:
        if peer not in self._channels:
            self._channels[peer] = self._open(peer, self._identity)
        return self._channels[peer]

    def address(self, peer: str) -> str:
        if peer not in self._addresses:
            known = ", ".join(sorted(self._addresses)) or "none"
            raise PeerUnknown(
                f"no address of peer {peer!r} (known: {known}); add it to SYNOD_PEERS, "
                f'for example SYNOD_PEERS=\'{{"{peer}": "127.0.0.1:7101"}}\''
            )
        return self._addresses[peer]

    async def probe(self, peer: str) -> None:
        """Raises Missing unless the peer accepts connections."""
        try:
            async with asyncio.timeout(self._limits.probe_s):
                await self.channel(peer).channel_ready()
        except TimeoutError as error:
            refuses = ", or does not take this service's certificate (SYNOD_TLS_CERTIFICATE_FILE)" if self._tls else ""
            raise Missing(
                f"peer {peer} at {self.address(peer)} does not answer{refuses}; "
                "start it, or correct its address in SYNOD_PEERS"
            ) from error

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _open(self, peer: str, identity: TokenSource) -> PeerChannel:
        address = self.address(peer)
        terms = CallTerms(identity, self._clock, self._limits, Backoff(initial_s=0.05, max_s=1))
        return PeerChannel(address, terms, open_channel(address, peer, self._limits, self._tls))


def open_channel(address: str, peer: str, limits: Limits, tls: Tls | None) -> grpc.aio.Channel:
    """A bare channel to `peer`; with TLS to whoever holds the certificate of that name, and to nobody else."""
    options = _options(limits)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    named = (*options, ("grpc.ssl_target_name_override", peer))
    return RenewedChannel(
        tls, lambda material: grpc.aio.secure_channel(address, material.channel_credentials(), options=named)
    )


def is_idempotent(method: str, request: object) -> bool:
    """Whether the same call twice has the effect of one: a question by its name, or an order with a request id."""
    return _is_question(method) or _is_named(request)


def _is_question(method: str) -> bool:
    return method.rsplit("/", 1)[-1].startswith(IDEMPOTENT_PREFIXES)


def _is_named(request: object) -> bool:
    return any(getattr(request, field, "") for field in IDEMPOTENCY_FIELDS)


def _unary(
    terms: CallTerms, method: str, invoke: Any, connect: Connect, *, request_is_stream: bool
) -> Callable[..., Any]:
    question, now = _is_question(method), terms.clock.monotonic

    async def call(request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        repeatable = not request_is_stream and (question or _is_named(request))
        attempts = terms.limits.peer_attempts_max if repeatable else 1
        ours = await terms.metadata(metadata)
        limit_s = terms.timeout_s(timeout, terms.limits.peer_deadline_s) or terms.limits.peer_deadline_s
        began = now()
        give_up_at, connect_until = began + limit_s, began + min(terms.limits.peer_connect_s, limit_s / 2)
        for attempt in range(attempts):
            # A replica that is lost between the question and the call is waited for too.
            options["wait_for_ready"] = await connect(connect_until)
            try:
                return await invoke(request, timeout=give_up_at - now(), metadata=ours, **options)
            except grpc.aio.AioRpcError as error:
                delay_s = terms.backoff.delay_s(attempt)
                last = attempt + 1 == attempts or now() + delay_s >= give_up_at
                if last or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise of_peer(error, method) from None
            await asyncio.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    return call


def _streaming(terms: CallTerms, method: str, invoke: Any, connect: Connect) -> Callable[..., "PeerStream"]:
    def call(request: Any = None, *, timeout: float | None = None, metadata: Any = None, **options: Any) -> PeerStream:
        async def open_call() -> Any:
            ours = await terms.metadata(metadata)
            await connect(terms.clock.monotonic() + terms.limits.peer_connect_s)
            # A stream lives as long as its reader wants; only what is left of the call being served bounds it.
            return invoke(request, timeout=terms.timeout_s(timeout, None), metadata=ours, **options)

        return PeerStream(method, open_call)

    return call


class PeerStream:
    """A stream of responses, opened at the first read or write, because the token for it may have to be fetched."""

    def __init__(self, method: str, open_call: Callable[[], Any]) -> None:
        self._method = method
        self._open_call = open_call
        self._call: Any = None
        self._cancelled = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        call = await self._opened()
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise of_peer(error, self._method) from None
        finally:
            call.cancel()

    async def read(self) -> Any:
        return await (await self._opened()).read()

    async def write(self, request: Any) -> None:
        await (await self._opened()).write(request)

    async def done_writing(self) -> None:
        await (await self._opened()).done_writing()

    def cancel(self) -> bool:
        self._cancelled = True
        return bool(self._call.cancel()) if self._call else True

    async def _opened(self) -> Any:
        if self._call is None:
            self._call = await self._open_call()
            if self._cancelled:
                self._call.cancel()
        return self._call


def _options(limits: Limits) -> tuple[tuple[str, int | str], ...]:
    return (
        ("grpc.service_config", LOAD_BALANCING),
        # Nobody else may say how: a service config can also stand in the DNS.
        ("grpc.service_config_disable_resolution", 1),
        # gRPC's own 30 s would be too long where the only replica it knows of was replaced.
        ("grpc.dns_min_time_between_resolutions_ms", int(limits.peer_lookup_s * 1000)),
        ("grpc.keepalive_time_ms", int(limits.peer_ping_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.peer_pong_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        # Peers restart: reconnect within a second, not after the two minutes that gRPC's own backoff can reach.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Sub-channels are shared by all channels of a process unless told otherwise.
        ("grpc.use_local_subchannel_pool", 1),
        # http_proxy is for providers and tools: gRPC would have it carry every call between services.
        ("grpc.enable_http_proxy", 0),
    )
