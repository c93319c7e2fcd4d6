"""Channels to the services, with identity, deadlines and retries."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1 import agent_registry_pb2_grpc as registry_grpc

from synod_client.endpoints import Endpoints
from synod_client.errors import SynodError, TryAgain, from_rpc

Reply = TypeVar("Reply")
_RENEW_AT = 0.8
_MESSAGE_BYTES_MAX = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Time for one call, and how often a call that may be repeated is."""

    timeout_s: float = 30.0
    attempts: int = 4
    backoff_first_s: float = 0.1
    backoff_max_s: float = 2.0


class Stub(Protocol):
    """Any generated stub class."""

    def __init__(self, channel: grpc.aio.Channel) -> None: ...


@dataclass
class Connection:
    """One per process is enough. Owns its channels; close() ends them."""

    endpoints: Endpoints
    limits: Limits = field(default_factory=Limits)
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _token: str = ""
    _renew_at: float = 0.0
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    tenant: str = ""
    principal: str = ""

    def channel(self, service: str) -> grpc.aio.Channel:
        if service not in self._channels:
            options = [("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)]
            self._channels[service] = grpc.aio.insecure_channel(self.endpoints.address(service), options=options)
        return self._channels[service]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def call(
        self, method: Callable[..., Awaitable[Reply]], request: Any, *, timeout_s: float | None = None
    ) -> Reply:
        """A call that may be repeated: it only reads, or its request carries an idempotency key."""
        for attempt in range(self.limits.attempts):
            try:
                return await self._once(method, request, timeout_s)
            except TryAgain as error:
                if attempt + 1 == self.limits.attempts or error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(self._pause(attempt, error))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """The messages of a server stream; a broken one raises and is the caller's to resume from its cursor."""
        try:
            async for message in method(request, metadata=await self.metadata()):
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """The token, renewed when four fifths of its life are over."""
        async with self._renewing:
            if time.monotonic() >= self._renew_at:
                await self._authenticate()
        return (("authorization", f"Bearer {self._token}"),)

    async def _once(self, method: Callable[..., Awaitable[Reply]], request: Any, timeout_s: float | None) -> Reply:
        try:
            return await method(request, timeout=timeout_s or self.limits.timeout_s, metadata=await self.metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def _authenticate(self) -> None:
        stub = registry_grpc.AgentRegistryStub(self.channel("agent-registry"))
        request = registry_pb.AuthenticateRequest(api_key=self.endpoints.required_key())
        try:
            answer: registry_pb.AuthenticateResponse = await stub.Authenticate(request, timeout=self.limits.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._explained(from_rpc(error)) from error
        self._token, self.tenant, self.principal = answer.token, answer.principal.tenant_id, answer.principal.id
        self._renew_at = time.monotonic() + _RENEW_AT * max(0.0, answer.expires_at.seconds - time.time())

    def _explained(self, error: SynodError) -> SynodError:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            address = self.endpoints.address("agent-registry")
            return TryAgain(f"nothing answers at {address}; start Synod with `synod up`", "NOT_RUNNING", error.code)
        return error

    def _pause(self, attempt: int, error: TryAgain) -> float:
        """Full jitter under a growing cap, but never less than the service asked for."""
        cap = min(self.limits.backoff_max_s, self.limits.backoff_first_s * 2**attempt)
        return max(error.retry_after_s or 0.0, random.uniform(0, cap))
