"""Channels to the services and connections to NATS, with identity, deadlines and retries."""

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from nats.aio.client import Client
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1 import agent_registry_pb2_grpc as registry_grpc

from synod_client.bus import connect
from synod_client.endpoints import Endpoints, Login
from synod_client.errors import SynodError, TryAgain, from_rpc
from synod_client.tls import VARIABLES

Reply = TypeVar("Reply")
Message = TypeVar("Message")
_RENEW_AT = 0.8
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What is heard of a service that is not there. CANCELLED comes from one that stops; we cancel a call by no longer waiting."""
_ANSWERED_BETWEEN = re.compile(r"^Received http2 header with status: (\d+)")
"""What gRPC says of an answer that is none of gRPC's. It takes its status for one of the service, such as 403 for a refusal."""
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
    # To the replicas of a service in turn, leaving out those that are gone or give no sign of life.
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Within the time of a call's attempts, not a second later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A new client does not wait for what another one of this process failed at.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy of the user's is for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Time for one call, and how often one that may be repeated is: while the service is unavailable, which a service that is
    started again is for some seconds.
    """

    timeout_s: float = 30.0
    attempts: int = 6
    backoff_first_s: float = 0.1
    backoff_max_s: float = 2.0
    stream_attempts: int = 10
    """How often in a row a broken stream is opened again without a message in between."""


@dataclass
class Connection:
    """One per process is enough. Owns its channels and connections; close() ends them."""

    endpoints: Endpoints
    limits: Limits = field(default_factory=Limits)
    monotonic: Callable[[], float] = time.monotonic
    tenant: str = ""
    """Of the API key; known after the first call."""
    principal: str = ""
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _former: list[grpc.aio.Channel] = field(default_factory=list)
    """Channels by certificates that were renewed: their calls go on."""
    _stamp: tuple[int, ...] = ()
    _token: str = field(default="", repr=False)
    _renew_at: float = float("-inf")
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _nats: dict[str, Client] = field(default_factory=dict)
    _connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def channel(self, service: str) -> grpc.aio.Channel:
        """Of now: ask again for each call, since one by TLS is another once certificates were renewed. Raises NotAllowed."""
        if self.endpoints.tls and self._stamp != (stamp := self.endpoints.tls.stamp()):
            self._former.extend(self._channels.values())
            self._channels, self._stamp = {}, stamp
        if service not in self._channels:
            self._channels[service] = self._open(service)
        return self._channels[service]

    def _open(self, service: str) -> grpc.aio.Channel:
        address = self.endpoints.address(service)
        if tls := self.endpoints.tls:
            # The certificate must be that of the service, wherever it is.
            options = (*_OPTIONS, ("grpc.ssl_target_name_override", service))
            return grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)
        return grpc.aio.insecure_channel(address, options=_OPTIONS)

    async def nats(self, login: Login) -> Client:
        """The connection of this user of NATS, opened on first use; reconnects by itself. Raises TryAgain, NotAllowed."""
        async with self._connecting:
            if login not in self._nats:
                self._nats[login] = await connect(self.endpoints.nats_url(login), login, self.endpoints.tls)
        return self._nats[login]

    async def close(self) -> None:
        await asyncio.gather(
            *(channel.close(None) for channel in (*self._channels.values(), *self._former)),
            *(client.close() for client in self._nats.values()),
        )

    async def call(
        self, method: Callable[..., Awaitable[Reply]], request: Any, *, timeout_s: float | None = None
    ) -> Reply:
        """A call that may be repeated: it only reads, or its request carries an idempotency key."""
        attempt = 0
        while True:
            try:
                return await self._once(method, request, timeout_s)
            except TryAgain as error:
                attempt += 1
                if attempt == self.limits.attempts or error.code not in _AWAY:
                    raise
                await asyncio.sleep(self.pause_s(attempt, error.retry_after_s))

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """The messages of a server stream; one that breaks raises TryAgain."""
        call = method(request, metadata=await self.metadata())
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._explained(from_rpc(error)) from error
        finally:
            call.cancel()

    async def resumed(
        self,
        open_after: Callable[[int], AsyncGenerator[Message, None]],
        cursor: int,
        cursor_of: Callable[[Message], int],
        *,
        endless: bool = False,
    ) -> AsyncGenerator[Message, None]:
        """The messages of a stream that is opened again after its last cursor when it breaks, or ends though ``endless``.

        Raises TryAgain when that has failed too often in a row.
        """
        failures = 0
        while True:
            try:
                async with aclosing(open_after(cursor)) as messages:
                    async for message in messages:
                        cursor, failures = max(cursor, cursor_of(message)), 0
                        yield message
                if not endless:
                    return
                reason = TryAgain("the service ended the stream", "STREAM_ENDED")
            except TryAgain as error:
                reason = error
            failures += 1
            if failures > self.limits.stream_attempts:
                raise reason
            await asyncio.sleep(self.pause_s(failures, reason.retry_after_s))

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """The token, renewed when four fifths of its life are over."""
        async with self._renewing:
            if self.monotonic() >= self._renew_at:
                await self._authenticate()
        return (("authorization", f"Bearer {self._token}"),)

    def pause_s(self, attempt: int, floor_s: float | None = None) -> float:
        """Full jitter under a cap that grows with the attempt (1, 2, ...), but never less than the service asked for."""
        cap = min(self.limits.backoff_max_s, self.limits.backoff_first_s * 2 ** (attempt - 1))
        return max(floor_s or 0.0, random.uniform(0, cap))

    async def _once(self, method: Callable[..., Awaitable[Reply]], request: Any, timeout_s: float | None) -> Reply:
        metadata = await self.metadata()
        try:
            return await method(request, timeout=timeout_s or self.limits.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._explained(from_rpc(error)) from error

    async def _authenticate(self) -> None:
        stub = registry_grpc.AgentRegistryStub(self.channel("agent-registry"))
        request = registry_pb.AuthenticateRequest(api_key=self.endpoints.required_key())
        try:
            answer: registry_pb.AuthenticateResponse = await stub.Authenticate(request, timeout=self.limits.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._explained(from_rpc(error)) from error
        self._token, self.tenant, self.principal = answer.token, answer.principal.tenant_id, answer.principal.id
        self._renew_at = self.monotonic() + _RENEW_AT * max(0.0, answer.expires_at.seconds - time.time())

    def _explained(self, error: SynodError) -> SynodError:
        """What a person can do about a service that nothing was heard of; a service's own words stay as they are."""
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not error.reason:
            return TryAgain("the service did not answer in time; try again", "DEADLINE_EXCEEDED", error.code)
        if not error.reason and (found := _ANSWERED_BETWEEN.match(error.message)):
            # A gateway does that for a container whose address is just gone.
            text = (
                f"no service of Synod answered but something on the way to it, with HTTP {found[1]}; is it started again? If "
                "not, look for a proxy or gateway there, and at the addresses"
            )
            return TryAgain(text, "ANSWERED_BETWEEN", grpc.StatusCode.UNAVAILABLE)
        if error.code is not grpc.StatusCode.UNAVAILABLE or error.reason:
            return error
        service = self.endpoints.service_at(error.message)
        where = f"{service} at {self.endpoints.address(service)}" if service else "the service"
        if "Socket closed" in error.message:
            # What a server does to who begins in the clear, or shows no certificate that it takes.
            where += f" hangs up (does it speak TLS? then set {', '.join(VARIABLES)}) and"
        text = f"{where} does not answer; is Synod running? `synod up` starts it and shows the state of every service"
        return TryAgain(text, "NOT_RUNNING", error.code)
