"""A guarded gRPC server of all four kinds of calls, without PostgreSQL or NATS, on a contract of StringValues."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.auth import Authenticator, Principal, issue
from servicekit.clock import SystemClock
from servicekit.errors import ErrorMap
from servicekit.limits import Limits
from servicekit.peers import open_channel
from servicekit.rpc import Guard, RpcServer
from servicekit.telemetry import Logger, Metrics, Tracing
from servicekit.tls import Tls

KINDS = {
    "Unary": grpc.unary_unary_rpc_method_handler,
    "Download": grpc.unary_stream_rpc_method_handler,
    "Upload": grpc.stream_unary_rpc_method_handler,
    "Chat": grpc.stream_stream_rpc_method_handler,
    "WatchWords": grpc.unary_stream_rpc_method_handler,
}


class Echo:
    """Answers what it is sent. Tests subclass it."""

    async def Unary(self, request: StringValue, context: Any) -> StringValue:
        return request

    async def Download(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        for word in request.value.split():
            yield StringValue(value=word)

    async def Upload(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value=" ".join([request.value async for request in requests]))

    async def WatchWords(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        await asyncio.Event().wait()

    async def Chat(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request


def add_echo_to_server(servicer: Any, server: Any) -> None:
    """What protoc would generate for Echo."""
    handlers = {
        name: make(getattr(servicer, name), StringValue.FromString, StringValue.SerializeToString)
        for name, make in KINDS.items()
    }
    server.add_registered_method_handlers("test.Echo", handlers)


class EchoStub:
    """The stub protoc would generate for Echo."""

    def __init__(self, channel: Any) -> None:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream", "unary_stream")
        for name, kind in zip(KINDS, kinds, strict=True):
            call = getattr(channel, kind)(f"/test.Echo/{name}", StringValue.SerializeToString, StringValue.FromString)
            setattr(self, name, call)


class RunningEcho:
    """A running server; `stub` calls it without a token, `metadata` makes one."""

    def __init__(self, server: RpcServer, guard: Guard, key: Ed25519PrivateKey, port: int, channel: Any) -> None:
        self.server = server
        self.guard = guard
        self.key = key
        self.address = f"127.0.0.1:{port}"
        self.channel = channel
        self.stub: Any = EchoStub(channel)

    def token(
        self, permissions: Sequence[str] = ("*",), tenant: str = "local", ttl_s: float = 60, **fields: Any
    ) -> str:
        principal = Principal("usr_ada", tenant, **({"kind": "user"} | fields), permissions=tuple(permissions))
        return issue(self.key, principal, timedelta(seconds=ttl_s), now=self.guard.clock.now())

    def metadata(self, *permissions: str, **fields: Any) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token(permissions or ('*',), **fields)}"),)


ServeEcho = Callable[..., AbstractAsyncContextManager[RunningEcho]]


@pytest.fixture
def serve_echo() -> ServeEcho:
    @asynccontextmanager
    async def serve(
        servicer: Any = None,
        *,
        permissions: dict[str, str] | None = None,
        errors: ErrorMap | None = None,
        limits: Limits | None = None,
        tracing: Tracing | None = None,
        port: int = 0,
        tls: Tls | None = None,
    ) -> AsyncIterator[RunningEcho]:
        key, clock, limits = Ed25519PrivateKey.generate(), SystemClock(), limits or Limits()
        guard = Guard(
            "echo",
            Authenticator(key.public_key(), clock),
            ErrorMap(),
            limits,
            clock,
            tracing or Tracing("echo"),
            Metrics(),
            Logger("echo"),
            tls,
        )
        server = RpcServer(guard)
        named = permissions if permissions is not None else {name: f"echo.{name.lower()}" for name in KINDS}
        server.add(add_echo_to_server, servicer or Echo(), named, errors or ErrorMap())
        port = await server.start("127.0.0.1", port)
        await server.set_serving(True)
        address = f"127.0.0.1:{port}"
        opened = open_channel(address, tls.current.holder, limits, tls) if tls else grpc.aio.insecure_channel(address)
        async with opened as channel:
            yield RunningEcho(server, guard, key, port, channel)
        await server.stop(0)

    return serve


@pytest.fixture
def echo_type() -> type[Echo]:
    """To subclass; modules under tests/ do not import each other."""
    return Echo


@pytest.fixture
def echo_stub() -> type[EchoStub]:
    return EchoStub


@pytest.fixture
def add_echo() -> Callable[[Any, Any], None]:
    return add_echo_to_server
