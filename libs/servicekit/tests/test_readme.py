"""The service in the README runs as it stands there, and one trace goes through all of it."""

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import pytest
from eventlog.relay import from_message
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.errors import InvalidArgument, PermissionDenied, from_rpc_error
from servicekit.telemetry import Tracing, traceparent
from servicekit.testing import serve_in_process, settings_for
from synod.eventlog.v1 import eventlog_pb2
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub

README = Path(__file__).parents[1] / "README.md"
WAIT_S = 30


@pytest.fixture
def book() -> Any:
    """The code of the README as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    module = ModuleType("guest_book")
    exec(compile(code, str(README), "exec"), module.__dict__)
    return module


def guest_book(channel: Any) -> Any:
    strings = (StringValue.SerializeToString, StringValue.FromString)
    return SimpleNamespace(
        Sign=channel.unary_unary("/example.GuestBook/Sign", *strings),
        List=channel.unary_stream("/example.GuestBook/List", *strings),
    )


async def test_a_trace_travels_from_the_call_through_the_command_to_the_stored_and_the_published_event(
    book: Any, postgres_dsn: str, fresh_nats: Any
) -> None:
    async with serve_in_process(book.compose, settings_for(book.Settings, postgres_dsn, fresh_nats.url)) as service:
        stub = guest_book(service.channel)
        with Tracing("test").span("sign"):
            trace_id = traceparent().split("-")[1]
            await stub.Sign(StringValue(value="Ada"))
        (view,) = service.host.history.projectors
        assert await view.wait_for(1, WAIT_S) == 1
        (stored,) = await service.host.history.log.read()
        guests = [guest.value async for guest in stub.List(StringValue())]
        subscription = await service.host.nats.jetstream().subscribe("synod.local.evt.guest-book.>")
        published = from_message(await subscription.next_msg(WAIT_S))
    assert stored.traceparent.split("-")[1] == trace_id
    assert (stored.tenant, stored.actor, stored.type) == ("local", "usr_test", "GuestSigned")
    assert published == stored
    assert guests == ["Ada"]


async def test_the_guest_book_refuses_by_rule_and_by_permission(book: Any, postgres_dsn: str, fresh_nats: Any) -> None:
    async with serve_in_process(book.compose, settings_for(book.Settings, postgres_dsn, fresh_nats.url)) as service:
        with pytest.raises(grpc.aio.AioRpcError) as nameless:
            await guest_book(service.channel).Sign(StringValue(value=" "))
        reader = service.connect(service.token(["book.read"]))
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await guest_book(reader).Sign(StringValue(value="Bo"))
    invalid, refused = from_rpc_error(nameless.value), from_rpc_error(denied.value)
    assert isinstance(invalid, InvalidArgument)
    assert invalid.message == "name = ' ': must not be empty"
    assert isinstance(refused, PermissionDenied)
    assert refused.permission == "book.sign"


async def test_the_log_is_served_within_the_callers_tenant(book: Any, postgres_dsn: str, fresh_nats: Any) -> None:
    async with serve_in_process(book.compose, settings_for(book.Settings, postgres_dsn, fresh_nats.url)) as service:
        await guest_book(service.channel).Sign(StringValue(value="Ada"))
        await service.host.history.log.wait_for(1, WAIT_S)
        own = EventLogStub(service.channel)
        other = EventLogStub(service.connect(service.token(tenant="rival")))
        everyone = EventLogStub(service.connect(service.token(tenant="*", kind="service")))
        seen = [
            [event.type for event in (await stub.Read(eventlog_pb2.ReadRequest())).events]
            for stub in (own, other, everyone)
        ]
        followed = await anext(aiter(own.Subscribe(eventlog_pb2.SubscribeRequest())))
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await other.Read(eventlog_pb2.ReadRequest(filter=eventlog_pb2.EventFilter(tenant="local")))
        views = (await own.ListViews(eventlog_pb2.ListViewsRequest())).views
    assert seen == [["GuestSigned"], [], ["GuestSigned"]]
    assert followed.position == 1
    assert "belongs to tenant rival and may not read the events of local" in from_rpc_error(denied.value).message
    assert [view.name for view in views] == ["guests"]


async def test_a_stop_publishes_all_that_was_appended(book: Any, postgres_dsn: str, fresh_nats: Any) -> None:
    async with serve_in_process(book.compose, settings_for(book.Settings, postgres_dsn, fresh_nats.url)) as service:
        stub, history = guest_book(service.channel), service.host.history
        for number in range(20):
            await stub.Sign(StringValue(value=f"guest {number}"))
        appended = await history.log.wait_for(20, WAIT_S)
    assert (appended, history.relay.position) == (20, 20)


async def test_head_and_lag_are_measured(book: Any, postgres_dsn: str, fresh_nats: Any) -> None:
    async with serve_in_process(book.compose, settings_for(book.Settings, postgres_dsn, fresh_nats.url)) as service:
        host = service.host
        await guest_book(service.channel).Sign(StringValue(value="Ada"))
        assert await host.history.projectors[0].wait_for(1, WAIT_S) == 1
        await host.history.measure_once()
        values = [
            host.metrics.registry.get_sample_value(name, labels)
            for name, labels in (("eventlog_head", {}), ("view_lag", {"view": "guests"}))
        ]
    assert values == [1, 0]
