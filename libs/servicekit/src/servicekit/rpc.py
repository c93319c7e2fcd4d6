"""The gRPC server: every handler wrapped once, at start, in all that a call must pass.

A call is traced, given a deadline, authenticated and authorised, its errors get google.rpc details, and it is counted.
Handlers are wrapped when they are registered, which costs one coroutine per call; four interceptors would cost four
look-ups and four coroutines.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar
from uuid import UUID

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer
from opentelemetry.trace import Span, SpanKind, StatusCode
from synod.common.ids import new_id

from servicekit.auth import ANONYMOUS, PUBLIC, Authenticator, Principal
from servicekit.clock import Clock
from servicekit.context import Call, enter_call
from servicekit.dependencies import PortTaken
from servicekit.errors import DeadlineExceeded, ErrorMap, Internal, InvalidArgument, ServiceError, Unavailable, trailers
from servicekit.limits import Limits
from servicekit.telemetry import TRACEPARENT, Logger, Metrics, Tracing
from servicekit.tls import Tls, check_holder

CORRELATION = "synod-correlation"
CAUSATION = "synod-causation"

# The types of grpc are generic in its stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Unary: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"
T = TypeVar("T")


class AddToServer(Protocol):
    """A generated add_<Service>Servicer_to_server function."""

    def __call__(self, servicer: Any, server: Any, /) -> None: ...


class PermissionMissing(Exception):
    """A method has no permission, or a permission no method. Found at start, so that no caller finds it."""


FOLLOWING = ("Watch", "Subscribe")
"""Streams of methods so named have no end of their own; a server that stops ends them, and lets all others finish."""


class Followers:
    """The open calls that only follow what happens."""

    def __init__(self) -> None:
        self.ended = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def following(self) -> Iterator[None]:
        """The current task follows while the block runs."""
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        self.ended = True
        for task in self._tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Guard:
    """What a call passes on its way in and out, shared by all methods of a service."""

    service: str
    authenticator: Authenticator
    errors: ErrorMap
    limits: Limits
    clock: Clock
    tracing: Tracing
    metrics: Metrics
    log: Logger
    tls: Tls | None = None
    """Callers must hold certificates, and services those that name them."""
    followers: Followers = field(default_factory=Followers)

    def wrap(self, method: str, permission: str, handler: Any) -> Any:
        """The handler of `method` ("/package.Service/Method"), guarded."""
        gate = _Gate(self, method, permission)
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream
            guarded = _guard_stream(gate, behaviour)
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            guarded = _guard_unary(gate, behaviour, timed=not handler.request_streaming)
        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        return make(guarded, handler.request_deserializer, handler.response_serializer)


_MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _guard_unary(gate: _Gate, behaviour: Unary, *, timed: bool) -> Unary:
    async def call(request: Any, context: Context) -> Any:
        async with _Passage(gate, context) as passage:
            if timed and passage.timeout_s is not None:
                return await gate.within(passage.timeout_s, behaviour(request, context))
            return await behaviour(request, context)

    return call


def _guard_stream(gate: _Gate, behaviour: Any) -> Any:
    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        # aclosing, because a client that leaves must end the handler now and not when garbage is collected.
        async with _Passage(gate, context), aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    async def follow(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _Passage(gate, context), aclosing(behaviour(request, context)) as responses:
            with gate.guard.followers.following():
                async for response in responses:
                    yield response

    async def write(request: Any, context: Context) -> None:
        async with _Passage(gate, context):
            await behaviour(request, context)

    if not inspect.isasyncgenfunction(behaviour):
        return write
    return follow if gate.follows else generate


_STOPPING = Unavailable("the service is stopping; follow again from the last cursor", 1.0, reason="STOPPING")


class _Gate:
    """One method: its permission, and its metrics with labels bound once."""

    def __init__(self, guard: Guard, method: str, permission: str) -> None:
        self.guard = guard
        self.method = method
        self.permission = permission
        self.follows = method.rsplit("/", 1)[-1].startswith(FOLLOWING)
        self.seconds = guard.metrics.rpc_seconds.labels(method)
        self._answered = {code: guard.metrics.rpc_requests.labels(method, code) for code in ("OK",)}

    def answered(self, code: str) -> None:
        if code not in self._answered:
            self._answered[code] = self.guard.metrics.rpc_requests.labels(self.method, code)
        self._answered[code].inc()

    def admit(self, metadata: Mapping[str, str], remaining_s: float | None) -> Call:
        """The call, once its deadline, token and permission are found good. Raises ServiceError."""
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceeded(
                f"the deadline of this call to {self.method} had passed when it arrived; nothing was done, "
                "repeat it with a longer deadline",
                reason="DEADLINE_PASSED",
            )
        deadline = None if remaining_s is None else self.guard.clock.monotonic() + remaining_s
        correlation = metadata.get(CORRELATION, "")
        return Call(self._principal(metadata), deadline, correlation, _causation(metadata.get(CAUSATION)))

    def timeout_s(self, remaining_s: float | None) -> float | None:
        """What this server must enforce itself; None where gRPC enforces the client's own, shorter deadline."""
        limits = self.guard.limits
        if remaining_s is None:
            return limits.rpc_default_s
        return limits.rpc_max_s if remaining_s > limits.rpc_max_s else None

    async def within(self, timeout_s: float, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(timeout_s) as scope:
                return await answer
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceeded(
                f"{self.method} took longer than the {timeout_s:g} s this server allows a call "
                f"(default {self.guard.limits.rpc_default_s:g} s without a deadline, at most "
                f"{self.guard.limits.rpc_max_s:g} s); send a deadline or ask for less",
                reason="SERVER_DEADLINE",
            ) from error

    def _principal(self, metadata: Mapping[str, str]) -> Principal:
        if self.permission == PUBLIC:
            return ANONYMOUS
        return self.guard.authenticator.authorize(metadata, self.permission)


class _Passage:
    """One call through a gate, as a context manager: admits, and answers for whatever the handler raises."""

    __slots__ = ("_context", "_gate", "_span", "_started", "timeout_s")

    def __init__(self, gate: _Gate, context: Context) -> None:
        self._gate = gate
        self._context = context
        self._started = perf_counter()
        self._span: Span | None = None
        self.timeout_s: float | None = None

    async def __aenter__(self) -> _Passage:
        gate, context = self._gate, self._context
        gate.guard.metrics.rpc_open.inc()
        # Values are bytes under keys that end in -bin, of which nothing here reads any.
        metadata: Mapping[str, Any] = dict(context.invocation_metadata() or ())
        self._span = gate.guard.tracing.start(gate.method, SpanKind.SERVER, metadata.get(TRACEPARENT, ""))
        remaining_s = context.time_remaining()
        try:
            call = gate.admit(metadata, remaining_s)
            if gate.guard.tls:
                check_holder(context.auth_context(), call.principal)
            enter_call(call)
        except ServiceError as error:
            await self._refuse(error)
        self.timeout_s = gate.timeout_s(remaining_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._finish("OK")
        elif isinstance(error, grpc.aio.AbortError):
            code = self._context.code()
            self._finish(getattr(code, "name", "UNKNOWN"))
        elif isinstance(error, Exception):
            await self._refuse(self._answer(error))
        elif self._gate.follows and self._gate.guard.followers.ended:
            await self._refuse(_STOPPING)
        else:
            # CancelledError or GeneratorExit: the client has left or its deadline has passed; nobody hears an answer.
            self._finish("DEADLINE_EXCEEDED" if self._context.time_remaining() == 0 else "CANCELLED")

    def _answer(self, error: Exception) -> ServiceError:
        if known := self._gate.guard.errors.translate(error):
            return known
        internal = Internal(new_id("err"), self._gate.guard.service)
        self._gate.guard.log.error("rpc_failed", error=error, error_id=internal.error_id, method=self._gate.method)
        return internal

    async def _refuse(self, error: ServiceError) -> None:
        if self._span:
            self._span.set_status(StatusCode.ERROR, error.reason)
        self._finish(error.code.name)
        await self._context.abort(error.code, error.message, trailers(error, self._gate.guard.service))

    def _finish(self, code: str) -> None:
        gate = self._gate
        gate.guard.metrics.rpc_open.dec()
        gate.answered(code)
        gate.seconds.observe(perf_counter() - self._started)
        if self._span:
            self._span.end()


class _Health(HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Those who watch the health of a server that stops are told that it does not serve, and then ended."""

    def __init__(self, followers: Followers) -> None:
        super().__init__()
        self._followers = followers

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        with self._followers.following():
            try:
                await super().Watch(request, context)
            except asyncio.CancelledError:
                if not self._followers.ended:
                    raise
                await context.abort(_STOPPING.code, _STOPPING.message)


class RpcServer:
    """The gRPC server of a service, with health and reflection."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._health = _Health(guard.followers)
        self._names = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=guard.limits.rpc_concurrent_max, options=_options(guard.limits)
        )
        self._add_unguarded(health_pb2_grpc.add_HealthServicer_to_server, self._health)

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(
        self, add_to_server: AddToServer, servicer: object, permissions: Mapping[str, str], errors: ErrorMap
    ) -> None:
        """Serve `servicer`. Raises PermissionMissing unless `permissions` names exactly the methods of the service."""
        registrar = _Registrar()
        add_to_server(servicer, registrar)
        guard = self._with(errors)
        for service, handlers in registrar.services.items():
            _check_permissions(service, set(handlers), set(permissions))
            wrapped = {
                name: guard.wrap(f"/{service}/{name}", permissions[name], handler) for name, handler in handlers.items()
            }
            self._serve(service, wrapped)
            self._names.append(service)

    async def start(self, host: str, port: int) -> int:
        """Listen; answers the port. Raises PortTaken."""
        reflecting = ReflectionServicer(self._names)
        self._add_unguarded(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflecting)
        try:
            bound = self._listen(f"{host}:{port}")
        except RuntimeError as error:
            raise PortTaken("SYNOD_GRPC_PORT", host, port, "gRPC could not bind it") from error
        await self.set_serving(False)
        await self._server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end those that only follow, let the others finish for `grace_s`, then cancel the rest."""
        self._guard.followers.end()
        await self._server.stop(grace_s)

    def _add_unguarded(self, add_to_server: AddToServer, servicer: object) -> None:
        registrar = _Registrar()
        add_to_server(servicer, registrar)
        for service, handlers in registrar.services.items():
            self._serve(service, handlers)

    def _serve(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """By generic handlers alone: grpc.aio keeps a task for each method that it knows by name, and with each call that
        comes it waits anew for all of them. With twenty methods that was a fifth of what a call costs the server.
        """
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))

    def _listen(self, address: str) -> int:
        if tls := self._guard.tls:
            return self._server.add_secure_port(address, tls.server_credentials())
        return self._server.add_insecure_port(address)

    def _with(self, errors: ErrorMap) -> Guard:
        return replace(self._guard, errors=self._guard.errors.including(errors))


class _Registrar:
    """Stands in for the server while generated code registers a servicer, to take hold of its handlers."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again, in a form that does not show them."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.services[service] = handlers


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        # A second process on the same port would silently share its calls.
        ("grpc.so_reuseport", 0),
        # Whoever connects anew looks up again who there is, so that a replica that was added gets its share, and uses the
        # certificates of then.
        ("grpc.max_connection_age_ms", int(limits.connection_age_s * 1000)),
        # Pings of peers.py, which a server takes for an attack when they come more often than it expects.
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.peer_ping_s * 1000) // 2),
        ("grpc.keepalive_permit_without_calls", 1),
    )


def _check_permissions(service: str, methods: set[str], named: set[str]) -> None:
    if missing := sorted(methods - named):
        raise PermissionMissing(
            f"{service}: no permission for {', '.join(missing)}; name one per method in add_rpc, or '' for a public one"
        )
    if unknown := sorted(named - methods):
        raise PermissionMissing(f"{service} has no method {', '.join(unknown)}; its permissions name one")


def _causation(text: str | None) -> UUID | None:
    if not text:
        return None
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidArgument(CAUSATION, text, "must be the UUID of an event") from error
