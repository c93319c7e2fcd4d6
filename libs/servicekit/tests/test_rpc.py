"""What a call passes on its way into and out of a handler."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servicekit.auth import Principal
from servicekit.context import current_call, current_principal
from servicekit.errors import (
    DeadlineExceeded,
    ErrorMap,
    Internal,
    NotFound,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from servicekit.limits import Limits
from servicekit.rpc import PermissionMissing
from servicekit.telemetry import Tracing, traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
WAIT_S = 30
CLOCKS_S = 0.01
"""What is lost between Python's clock and gRPC's, which counts milliseconds of another."""


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            [response async for response in call]
        else:
            await call
    return from_rpc_error(caught.value)


def text(value: str) -> StringValue:
    return StringValue(value=value)


async def test_all_four_kinds_of_calls_reach_their_handlers(serve_echo: Any) -> None:
    async def words() -> Any:
        yield text("a")
        yield text("b")

    async with serve_echo() as echo:
        metadata = echo.metadata()
        assert (await echo.stub.Unary(text("a b"), metadata=metadata)).value == "a b"
        assert [item.value async for item in echo.stub.Download(text("a b"), metadata=metadata)] == ["a", "b"]
        assert (await echo.stub.Upload(words(), metadata=metadata)).value == "a b"
        assert [item.value async for item in echo.stub.Chat(words(), metadata=metadata)] == ["a", "b"]


async def test_a_handler_that_writes_to_its_context_streams_too(serve_echo: Any, echo_type: Any) -> None:
    class Writer(echo_type):
        async def Download(self, request: StringValue, context: Any) -> None:
            await context.write(request)
            await context.write(request)

    async with serve_echo(Writer()) as echo:
        received = [item.value async for item in echo.stub.Download(text("x"), metadata=echo.metadata())]
    assert received == ["x", "x"]


@pytest.mark.parametrize("method", ["Unary", "Download"])
async def test_a_call_without_a_token_is_told_where_to_get_one(serve_echo: Any, method: str) -> None:
    async with serve_echo() as echo:
        error = await refusal(getattr(echo.stub, method)(text("x")))
    assert isinstance(error, Unauthenticated)
    assert error.reason == "TOKEN_MISSING"
    assert "Authenticate" in error.message


async def test_an_expired_token_is_told_when_it_expired_and_what_to_do(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        error = await refusal(echo.stub.Unary(text("x"), metadata=echo.metadata(ttl_s=-90)))
    assert isinstance(error, Unauthenticated)
    assert error.reason == "TOKEN_EXPIRED"
    assert f"the token of usr_ada expired at {error.metadata['expired_at']} (0:01:3" in error.message
    assert "authenticate again" in error.message


@pytest.mark.parametrize("method", ["Unary", "Download"])
async def test_a_caller_without_the_permission_is_told_its_name(serve_echo: Any, method: str) -> None:
    async with serve_echo() as echo:
        error = await refusal(getattr(echo.stub, method)(text("x"), metadata=echo.metadata("other.*")))
    assert isinstance(error, PermissionDenied)
    assert error.permission == f"echo.{method.lower()}"
    assert f"usr_ada lacks the permission echo.{method.lower()}" in error.message


async def test_a_pattern_grants_the_permissions_it_matches(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        answer = await echo.stub.Unary(text("x"), metadata=echo.metadata("echo.*"))
    assert answer.value == "x"


async def test_a_caller_of_one_tenant_may_not_name_another(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        metadata = (*echo.metadata(), ("synod-tenant", "rival"))
        error = await refusal(echo.stub.Unary(text("x"), metadata=metadata))
    assert isinstance(error, PermissionDenied)
    assert error.reason == "TENANT_DENIED"
    assert "belongs to tenant local and may not act in tenant rival" in error.message


async def test_a_service_acts_for_the_tenant_and_actor_it_names(serve_echo: Any, echo_type: Any) -> None:
    seen: list[Principal] = []

    class Witness(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            seen.append(current_principal())
            return request

    async with serve_echo(Witness()) as echo:
        service = echo.metadata(tenant="*", kind="service")
        await echo.stub.Unary(text("x"), metadata=(*service, ("synod-tenant", "acme"), ("synod-actor", "usr_bo")))
    assert (seen[0].tenant, seen[0].actor, seen[0].id) == ("acme", "usr_bo", "usr_ada")


async def test_a_public_method_needs_no_token(serve_echo: Any) -> None:
    others = ("Download", "Upload", "Chat", "WatchWords")
    public = {"Unary": ""} | {name: f"echo.{name.lower()}" for name in others}
    async with serve_echo(permissions=public) as echo:
        assert (await echo.stub.Unary(text("x"))).value == "x"


async def test_a_method_without_a_permission_fails_the_start(serve_echo: Any) -> None:
    with pytest.raises(PermissionMissing, match=r"test\.Echo: no permission for Chat, Upload, WatchWords"):
        async with serve_echo(permissions={"Unary": "", "Download": ""}):
            pass


async def test_a_permission_without_a_method_fails_the_start(serve_echo: Any) -> None:
    every = dict.fromkeys(("Unary", "Download", "Upload", "Chat", "WatchWords", "Unari"), "")
    with pytest.raises(PermissionMissing, match=r"test\.Echo has no method Unari"):
        async with serve_echo(permissions=every):
            pass


@pytest.mark.parametrize("method", ["Unary", "Download"])
async def test_an_unknown_exception_becomes_internal_with_an_id_that_is_in_the_log(
    serve_echo: Any, echo_type: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            raise ZeroDivisionError("secret")

        async def Download(self, request: StringValue, context: Any) -> Any:
            yield request
            raise ZeroDivisionError("secret")

    async with serve_echo(Broken()) as echo:
        with caplog.at_level(logging.ERROR, logger="synod.echo"):
            error = await refusal(getattr(echo.stub, method)(text("x"), metadata=echo.metadata()))
    assert isinstance(error, Internal)
    assert error.error_id in error.message
    assert "secret" not in error.message
    (record,) = caplog.records
    assert record.fields["error_id"] == error.error_id  # type: ignore[attr-defined]
    assert record.exc_info is not None


async def test_a_domain_error_is_what_the_error_map_says(serve_echo: Any, echo_type: Any) -> None:
    class Missing(Exception):
        """A domain's own error."""

    class Finder(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            raise Missing(request.value)

    errors = ErrorMap().add(Missing, lambda error: NotFound("budget", str(error)))
    async with serve_echo(Finder(), errors=errors) as echo:
        error = await refusal(echo.stub.Unary(text("bdg_1"), metadata=echo.metadata()))
    assert isinstance(error, NotFound)
    assert (error.resource, error.id, error.domain) == ("budget", "bdg_1", "synod.echo")


async def test_a_handler_that_aborts_by_itself_keeps_its_status(serve_echo: Any, echo_type: Any) -> None:
    class Aborting(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "no more")
            return request

    async with serve_echo(Aborting()) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.stub.Unary(text("x"), metadata=echo.metadata())
        # The status is on its way before the handler has ended and the call is counted.
        await counted(echo, {"method": "/test.Echo/Unary", "code": "OUT_OF_RANGE"}, 1)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "no more")


async def counted(echo: Any, labels: dict[str, str], calls: int) -> None:
    """Waits until so many calls are counted."""
    async with asyncio.timeout(WAIT_S):
        while echo.guard.metrics.registry.get_sample_value("rpc_requests_total", labels) != calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Slow:
    """Never answers, and tells when it was started and cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
def slow_echo(echo_type: Any) -> Any:
    class SlowEcho(echo_type, Slow):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            await self.wait()
            return request

        async def Download(self, request: StringValue, context: Any) -> Any:
            yield request
            await self.wait()

    return SlowEcho()


@pytest.mark.parametrize(("limits", "timeout_s"), [(Limits(rpc_default_s=0.05), None), (Limits(rpc_max_s=0.05), 20)])
async def test_a_unary_call_is_ended_at_the_servers_own_deadline(
    serve_echo: Any, slow_echo: Any, limits: Limits, timeout_s: float | None
) -> None:
    async with serve_echo(slow_echo, limits=limits) as echo:
        error = await refusal(echo.stub.Unary(text("x"), metadata=echo.metadata(), timeout=timeout_s))
    assert isinstance(error, DeadlineExceeded)
    assert error.reason == "SERVER_DEADLINE"
    assert "/test.Echo/Unary took longer than the 0.05 s this server allows" in error.message
    assert slow_echo.cancelled.is_set()


async def test_a_timeout_inside_a_handler_is_not_taken_for_the_deadline(serve_echo: Any, echo_type: Any) -> None:
    class TimesOut(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            raise TimeoutError("of something else")

    async with serve_echo(TimesOut()) as echo:
        error = await refusal(echo.stub.Unary(text("x"), metadata=echo.metadata()))
    assert isinstance(error, Internal)


async def test_a_call_that_arrives_past_its_deadline_is_refused_before_its_handler(
    serve_echo: Any, slow_echo: Any
) -> None:
    class LateContext:
        """A context whose deadline passed while the call waited for this process; a real client has hung up by then."""

        refused: tuple[grpc.StatusCode, str] | None = None

        def invocation_metadata(self) -> Any:
            return ()

        def time_remaining(self) -> float:
            return 0.0

        async def abort(self, code: grpc.StatusCode, details: str, trailers: Any) -> None:
            self.refused = (code, details)
            raise grpc.aio.AbortError

    async with serve_echo() as echo:
        handler = grpc.unary_unary_rpc_method_handler(slow_echo.Unary)
        guarded = echo.guard.wrap("/test.Echo/Unary", "", handler)
        context = LateContext()
        with pytest.raises(grpc.aio.AbortError):
            await guarded.unary_unary(text("x"), context)
    assert context.refused is not None
    assert context.refused[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "had passed when it arrived; nothing was done, repeat it with a longer deadline" in context.refused[1]
    assert not slow_echo.started.is_set()


async def test_a_clients_deadline_ends_the_handler_and_reads_as_deadline_exceeded(
    serve_echo: Any, slow_echo: Any
) -> None:
    async with serve_echo(slow_echo) as echo:
        # On a slow machine the first deadline may pass before the call has come to its handler.
        for timeout_s in (0.1, 1, 10):
            error = await refusal(echo.stub.Unary(text("x"), metadata=echo.metadata(), timeout=timeout_s))
            if slow_echo.started.is_set():
                break
        await asyncio.wait_for(slow_echo.cancelled.wait(), WAIT_S)
    assert isinstance(error, DeadlineExceeded)
    assert "repeat with a longer one" in error.message


async def test_a_client_that_leaves_a_stream_ends_its_handler(serve_echo: Any, slow_echo: Any) -> None:
    async with serve_echo(slow_echo) as echo:
        call = echo.stub.Download(text("x"), metadata=echo.metadata())
        await call.read()
        await asyncio.wait_for(slow_echo.started.wait(), WAIT_S)
        call.cancel()
        await asyncio.wait_for(slow_echo.cancelled.wait(), WAIT_S)
    assert slow_echo.cancelled.is_set()


async def test_a_server_that_stops_ends_those_who_only_follow_and_lets_the_others_finish(
    serve_echo: Any, echo_type: Any
) -> None:
    in_hand, release = asyncio.Event(), asyncio.Event()

    class Patient(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            in_hand.set()
            await release.wait()
            return request

    async with serve_echo(Patient()) as echo:
        follower = aiter(echo.stub.WatchWords(text("x"), metadata=echo.metadata()))
        await anext(follower)
        call = asyncio.ensure_future(echo.stub.Unary(text("kept"), metadata=echo.metadata()))
        await asyncio.wait_for(in_hand.wait(), WAIT_S)
        stopping = asyncio.create_task(echo.server.stop(20))
        ended = await asyncio.wait_for(refusal(anext(follower)), WAIT_S)
        release.set()
        kept = await call
        await asyncio.wait_for(stopping, WAIT_S)
    assert kept.value == "kept"
    assert isinstance(ended, Unavailable)
    assert (ended.reason, ended.retry_after_s) == ("STOPPING", 1.0)


async def test_a_server_that_stops_tells_those_who_watch_its_health_and_does_not_wait_for_them(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        watching = aiter(health_pb2_grpc.HealthStub(echo.channel).Watch(health_pb2.HealthCheckRequest()))
        before = await anext(watching)
        await echo.server.set_serving(False)
        after = await anext(watching)
        await asyncio.wait_for(echo.server.stop(WAIT_S * 10), WAIT_S)
    response = health_pb2.HealthCheckResponse
    assert (before.status, after.status) == (response.SERVING, response.NOT_SERVING)


async def test_a_handler_sees_the_deadline_and_the_correlation_of_its_call(serve_echo: Any, echo_type: Any) -> None:
    seen = []

    class Witness(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            seen.append(current_call())
            return request

    async with serve_echo(Witness()) as echo:
        metadata, clock = (*echo.metadata(), ("synod-correlation", "run_1")), echo.guard.clock
        asked_at = clock.monotonic()
        await echo.stub.Unary(text("x"), metadata=metadata, timeout=20)
        answered_at = clock.monotonic()
    # gRPC sends the time that is left and the server counts it from its arrival. From 10 to 100 s it is sent in tenths of a
    # second, rounded up; and where a connection has sent a time up to 3 % longer before, that one again: this one has not.
    assert asked_at + 20 - CLOCKS_S < seen[0].deadline < answered_at + 20 + 0.1 + CLOCKS_S
    assert seen[0].correlation == "run_1"


async def test_a_malformed_causation_is_refused_by_name(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        error = await refusal(echo.stub.Unary(text("x"), metadata=(*echo.metadata(), ("synod-causation", "run"))))
    assert "synod-causation = 'run': must be the UUID of an event" in error.message


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_handler_continues_the_callers_trace(serve_echo: Any, echo_type: Any, recorded: bool) -> None:
    seen: list[str] = []

    class Witness(echo_type):
        async def Download(self, request: StringValue, context: Any) -> Any:
            seen.append(traceparent())
            yield request

    spans = InMemorySpanExporter()
    tracing = Tracing("echo", processors=(SimpleSpanProcessor(spans),) if recorded else ())
    async with serve_echo(Witness(), tracing=tracing) as echo:
        metadata = (*echo.metadata(), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"))
        [item async for item in echo.stub.Download(text("x"), metadata=metadata)]
    assert seen[0].split("-")[1] == TRACE
    assert seen[0].split("-")[2] != "00f067aa0ba902b7"
    assert [span.name for span in spans.get_finished_spans()] == (["/test.Echo/Download"] if recorded else [])


async def test_calls_are_counted_by_method_and_code(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        await echo.stub.Unary(text("x"), metadata=echo.metadata())
        await refusal(echo.stub.Unary(text("x")))
        registry = echo.guard.metrics.registry
        label = {"method": "/test.Echo/Unary"}
        counts = [
            registry.get_sample_value("rpc_requests_total", label | {"code": code})
            for code in ("OK", "UNAUTHENTICATED")
        ]
        timed = registry.get_sample_value("rpc_seconds_count", label)
        still_open = registry.get_sample_value("rpc_open")
    assert (counts, timed, still_open) == ([1, 1], 2, 0)


async def test_reflection_lists_every_service(serve_echo: Any) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serve_echo() as echo:
        stub = reflection_pb2_grpc.ServerReflectionStub(echo.channel)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {"test.Echo", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_the_next_call_is_waited_for_once_and_not_for_each_method(serve_echo: Any) -> None:
    async with serve_echo():
        names = [str(getattr(task.get_coro(), "__qualname__", "")) for task in asyncio.all_tasks()]
    assert [name for name in names if "._request" in name] == ["AioServer._request_call"]


async def test_health_follows_whether_the_server_serves(serve_echo: Any) -> None:
    async with serve_echo() as echo:
        stub = health_pb2_grpc.HealthStub(echo.channel)
        request = health_pb2.HealthCheckRequest(service="test.Echo")
        serving = (await stub.Check(request)).status
        await echo.server.set_serving(False)
        stopped = (await stub.Check(request)).status
    response = health_pb2.HealthCheckResponse
    assert (serving, stopped) == (response.SERVING, response.NOT_SERVING)
