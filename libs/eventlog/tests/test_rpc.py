"""The EventLog service, over a real channel."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import pytest
from eventlog.checkpoints import Checkpoints
from eventlog.codec import Codec
from eventlog.master_keys import LocalMasterKey
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import Context, StoredEvent, StreamId
from eventlog.rpc import EventLogServicer, to_checkpoint
from eventlog.segments import forget_read
from eventlog.signing import SigningKey
from eventlog.sources import LogSource
from eventlog.testing import NOON, a_stream, an_append, an_event
from eventlog.vault import Vault
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.common.personal import DataSubject, Personal
from synod.eventlog.v1 import eventlog_pb2 as pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub, add_EventLogServicer_to_server


class Types:
    """The types seen; chokes on Bad. Says that it may hold personal data."""

    personal = True

    name = "types"
    version = 4
    types = None
    tables = "create table types (type text primary key)"

    async def apply(self, connection: AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        for event in events:
            if event.type == "Bad":
                raise ValueError("no")
            await connection.execute("insert into types values (%s) on conflict do nothing", [event.type])


class Greeted(Event):
    AGGREGATE = "guest"
    who: Annotated[str, DataSubject()]
    name: Annotated[str, Personal()]


@dataclass
class Served:
    log: PostgresEventLog
    projector: Projector
    stub: Any
    checkpoints: Checkpoints
    vault: Vault


KEY = SigningKey.generate()


@pytest.fixture
async def served(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Served]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with (
        await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as log,
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        projector = Projector(pool, Types(), LogSource(log, "orders"))
        checkpoints, vault = Checkpoints(pool, log, "orders", KEY), Vault(pool, log, LocalMasterKey(b"m" * 32, "test"))
        await checkpoints.prepare()
        await vault.prepare()
        servicer = EventLogServicer(log, [projector], service="orders", checkpoints=checkpoints, vault=vault)
        add_EventLogServicer_to_server(servicer, server)
        await server.start()
        yield Served(log, projector, EventLogStub(channel), checkpoints, vault)
        await server.stop(0)


def reason(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    (info,) = details(error, ErrorInfo)
    assert info.domain == "synod.orders"
    return error.code(), info.reason


def details(error: grpc.aio.AioRpcError, kind: type) -> list[Any]:
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    found = []
    for detail in Status.FromString(packed).details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


async def test_read_returns_events_and_where_to_go_on(served: Served) -> None:
    context = Context("acme", "zoë", "run-1")
    await served.log.append(an_append(StreamId("order", "o1"), an_event("Placed", b"{}"), context=context))
    await served.log.append(an_append(a_stream(), *[an_event("Other") for _ in range(9)]))
    (stored,) = await served.log.read(limit=1)

    response = await served.stub.Read(pb.ReadRequest(page_size=4))
    assert [event.position for event in response.events] == [1, 2, 3, 4]
    assert (response.head_position, response.next_after_position) == (10, 4)

    event = response.events[0]
    assert (event.stream, event.version, event.type, event.tenant) == ("order/o1", 1, "Placed", "acme")
    assert (event.actor, event.correlation_id, event.data) == ("zoë", "run-1", b"{}")
    assert (event.id, event.hash) == (str(stored.id), stored.hash)
    assert event.recorded_at.ToDatetime(stored.recorded_at.tzinfo) == stored.recorded_at


async def test_a_page_of_large_events_ends_before_a_client_refuses_it(served: Served) -> None:
    data = b'"' + b"x" * 700_000 + b'"'
    await served.log.append(an_append(a_stream(), *[an_event("Large", data) for _ in range(8)]))
    after, pages = 0, []
    while after < 8:
        response = await served.stub.Read(pb.ReadRequest(after_position=after))
        pages.append([event.position for event in response.events])
        after = response.next_after_position
    assert pages == [[1, 2, 3], [4, 5, 6], [7, 8]]


async def test_a_filtered_read_goes_on_after_what_it_considered(served: Served) -> None:
    await served.log.append(an_append(a_stream(), *[an_event("Other") for _ in range(9)], an_event("Placed")))
    await served.log.append(an_append(a_stream(), an_event("Other")))
    response = await served.stub.Read(pb.ReadRequest(filter=pb.EventFilter(types=["Placed"])))
    assert [event.position for event in response.events] == [10]
    assert response.next_after_position == 11


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReadRequest(page_size=1001), "page_size"),
        (pb.ReadRequest(after_position=-1), "after_position"),
        (pb.ReadRequest(filter=pb.EventFilter(stream="no-slash")), "filter.stream"),
        (pb.ReadRequest(filter=pb.EventFilter(types=["Placed", "not a type"])), "filter.types"),
        (pb.ReadRequest(filter=pb.EventFilter(tenant="a.b")), "filter.tenant"),
        (pb.ReadRequest(filter=pb.EventFilter(aggregate="*")), "filter.aggregate"),
        (pb.ReadRequest(filter=pb.EventFilter(correlation_id="\n")), "filter.correlation_id"),
        (pb.ReadRequest(filter=pb.EventFilter(since=Timestamp(seconds=10**12))), "filter.since"),
        (pb.ReadRequest(filter=pb.EventFilter(since=Timestamp(seconds=5), until=Timestamp(seconds=5))), "filter.until"),
        (pb.ReadRequest(as_of=Timestamp(seconds=-(10**12))), "as_of"),
    ],
)
async def test_a_field_that_is_wrong_is_named(served: Served, request_: pb.ReadRequest, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.Read(request_)
    assert reason(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    (bad,) = details(refused.value, BadRequest)
    assert bad.field_violations[0].field == field


async def test_subscribe_yields_what_is_stored_and_then_what_comes(served: Served) -> None:
    await served.log.append(an_append(a_stream(), an_event("A"), an_event("B")))
    call = served.stub.Subscribe(pb.SubscribeRequest(after_position=1))
    assert (await call.read()).type == "B"
    waiting = asyncio.ensure_future(call.read())
    await served.log.append(an_append(a_stream(), an_event("C")))
    assert (await waiting).position == 3
    call.cancel()


async def test_verify_tells_the_range_and_the_head_hash(served: Served) -> None:
    await served.log.append(an_append(a_stream(), *[an_event() for _ in range(5)]))
    response = await served.stub.Verify(pb.VerifyRequest())
    assert (response.ok, response.first_position, response.last_position, response.events) == (True, 1, 5, 5)
    assert response.head_hash == (await served.log.read())[-1].hash
    missing = await served.stub.Verify(pb.VerifyRequest(last_position=7))
    assert (missing.ok, missing.broken_position, missing.reason) == (False, 6, "the event is missing")


async def test_verify_compares_with_the_signed_checkpoints(served: Served) -> None:
    for _ in range(2):
        await served.log.append(an_append(a_stream(), *[an_event() for _ in range(5)]))
        await served.checkpoints.make()
    await served.log.append(an_append(a_stream()))
    response = await served.stub.Verify(pb.VerifyRequest())
    assert (response.ok, response.checkpoints, response.attested_position) == (True, 2, 10)


async def test_verify_compares_with_checkpoints_that_were_kept_elsewhere(served: Served) -> None:
    await served.log.append(an_append(a_stream(), *[an_event() for _ in range(5)]))
    kept = to_checkpoint(KEY.sign("orders", 3, b"h" * 32, b"r" * 32, NOON))
    forged = to_checkpoint(SigningKey.generate().sign("orders", 2, b"h" * 32, b"r" * 32, NOON))
    rewritten = await served.stub.Verify(pb.VerifyRequest(witnessed=[kept]))
    foreign = await served.stub.Verify(pb.VerifyRequest(witnessed=[kept, forged]))
    assert (rewritten.ok, rewritten.broken_position) == (False, 3)
    assert "not the one signed" in rewritten.reason
    assert (foreign.ok, foreign.broken_position) == (False, 2)
    assert "the checkpoint is forged" in foreign.reason
    with pytest.raises(grpc.aio.AioRpcError) as many:
        await served.stub.Verify(pb.VerifyRequest(witnessed=[kept] * 1001))
    (bad,) = details(many.value, BadRequest)
    assert bad.field_violations[0].field == "witnessed"


async def test_verify_finds_personal_data_whose_key_was_taken_without_an_erasure(served: Served) -> None:
    await served.log.append(an_append(a_stream()))
    key = await served.vault.key("local", "person-1")
    event = Codec([Greeted]).encode(Greeted(who="person-1", name="Ada"), at=NOON, key=key)
    await served.log.append(an_append(a_stream(), event))
    assert (await served.stub.Verify(pb.VerifyRequest())).ok
    async with served.projector._pool.connection() as connection:
        await connection.execute("delete from eventlog.subject_keys")
    found = await served.stub.Verify(pb.VerifyRequest())
    assert (found.ok, found.broken_position) == (False, 2)
    assert found.reason == "the key of the personal data in it is gone, and no erasure is on record"


async def test_checkpoints_are_listed_as_they_were_signed(served: Served) -> None:
    for _ in range(3):
        await served.log.append(an_append(a_stream()))
        await served.checkpoints.make()
    page = (await served.stub.ListCheckpoints(pb.ListCheckpointsRequest(after_position=1, page_size=1))).checkpoints
    second = (await served.checkpoints.page())[1]
    assert [checkpoint.position for checkpoint in page] == [2]
    assert (page[0].log, page[0].signature, page[0].root_hash) == ("orders", second.signature, second.root_hash)


async def test_an_event_comes_with_its_proof(served: Served) -> None:
    await served.log.append(an_append(a_stream(), *[an_event() for _ in range(5)]))
    proof = pb.GetInclusionProofRequest(position=3)
    with pytest.raises(grpc.aio.AioRpcError) as early:
        await served.stub.GetInclusionProof(proof)
    await served.checkpoints.make()
    response = await served.stub.GetInclusionProof(proof)
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await served.stub.GetInclusionProof(pb.GetInclusionProofRequest(position=6))
    assert reason(early.value) == (grpc.StatusCode.UNAVAILABLE, "CHECKPOINT_MISSING")
    assert reason(missing.value) == (grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND")
    assert (response.event.position, response.proof.size, len(response.proof.path)) == (3, 5, 3)
    assert response.checkpoint.position == 5


async def test_erasing_a_person_destroys_the_key_and_rebuilds_the_views_that_hold_their_data(served: Served) -> None:
    await served.projector.catch_up()
    await served.vault.key("acme", "person-1")
    erase = pb.EraseSubjectRequest(tenant="acme", data_subject="person-1", reason="asked")
    erased = await served.stub.EraseSubject(erase)
    again = await served.stub.EraseSubject(erase)
    assert (erased.key_destroyed, erased.position, list(erased.views_rebuilt)) == (True, 1, ["types"])
    assert (again.key_destroyed, again.position) == (False, 2)
    (first, _) = await served.log.read()
    assert (first.type, first.tenant, first.data_subject) == ("SubjectErased", "acme", "person-1")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.EraseSubjectRequest(data_subject="person-1"), "tenant"),
        (pb.EraseSubjectRequest(tenant="acme"), "data_subject"),
        (pb.EraseSubjectRequest(tenant="two words", data_subject="person-1"), "tenant"),
        (pb.EraseSubjectRequest(tenant="acme", data_subject="a\nb"), "data_subject"),
    ],
)
async def test_nobody_in_particular_is_not_erased(served: Served, request_: pb.EraseSubjectRequest, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.EraseSubject(request_)
    assert reason(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert details(refused.value, BadRequest)[0].field_violations[0].field == field
    assert await served.log.head() == 0


async def test_a_stream_is_verified_and_exported_as_it_is_stored(served: Served) -> None:
    stream = StreamId("order", "o1")
    await served.log.append(an_append(stream, *[an_event() for _ in range(150)]), an_append(a_stream()))
    early = await served.stub.VerifyStream(pb.VerifyStreamRequest(stream="order/o1"))
    await served.checkpoints.make()
    verified = await served.stub.VerifyStream(pb.VerifyStreamRequest(stream="order/o1"))
    pages = [
        (await served.stub.ExportStream(pb.ExportStreamRequest(stream="order/o1", after_version=after))).events
        for after in (0, 100, 150)
    ]
    stored = await served.log.read_stream(stream)
    assert [len(page) for page in pages] == [100, 50, 0]
    assert [event.hash for page in pages for event in page] == [event.hash for event in stored]
    assert [event.stream_previous_hash for event in pages[0]][:2] == [bytes(32), stored[0].hash]
    assert (early.ok, early.attested, verified.ok, verified.attested) == (True, False, True, True)
    assert (verified.events, verified.head_position, verified.head_hash) == (150, 150, stored[-1].hash)


async def test_a_page_of_an_exported_stream_ends_when_it_is_large(served: Served) -> None:
    large = [an_event(data=b"x" * 700_000) for _ in range(5)]
    for event in large:
        await served.log.append(an_append(StreamId("order", "o1"), event))
    page = (await served.stub.ExportStream(pb.ExportStreamRequest(stream="order/o1"))).events
    assert [event.version for event in page] == [1, 2, 3]


async def test_a_tampered_stream_is_told_with_the_version(served: Served) -> None:
    await served.log.append(an_append(StreamId("order", "o1"), *[an_event() for _ in range(3)]))
    async with served.projector._pool.connection() as connection:
        await connection.execute("update eventlog.events set data = '[]' where position = 2")
    found = await served.stub.VerifyStream(pb.VerifyStreamRequest(stream="order/o1"))
    assert (found.ok, found.events, found.broken_version) == (False, 1, 2)
    assert found.reason == "the event differs from what was hashed"


async def test_a_stream_that_is_not_there_or_is_no_stream_is_refused(served: Served) -> None:
    for method, request in (
        (served.stub.VerifyStream, pb.VerifyStreamRequest),
        (served.stub.ExportStream, pb.ExportStreamRequest),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await method(request(stream="order/unknown"))
        assert reason(missing.value) == (grpc.StatusCode.NOT_FOUND, "STREAM_NOT_FOUND")
        with pytest.raises(grpc.aio.AioRpcError) as malformed:
            await method(request(stream="order"))
        (bad,) = details(malformed.value, BadRequest)
        assert bad.field_violations[0].field == "stream"


async def test_what_needs_a_key_says_so_without_one(postgres_dsn: str) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with (
        await PostgresEventLog.open(postgres_dsn) as log,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        add_EventLogServicer_to_server(EventLogServicer(log, [], service="orders"), server)
        await server.start()
        stub: Any = EventLogStub(channel)
        for method, request in (
            (stub.ListCheckpoints, pb.ListCheckpointsRequest()),
            (stub.GetInclusionProof, pb.GetInclusionProofRequest(position=1)),
            (stub.EraseSubject, pb.EraseSubjectRequest(tenant="acme", data_subject="p")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(request)
            assert reason(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED")
        assert (await stub.Verify(pb.VerifyRequest())).ok
        await server.stop(0)


async def test_a_range_that_ends_before_it_starts_is_refused(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="last_position"):
        await served.stub.Verify(pb.VerifyRequest(first_position=5, last_position=4))


async def test_views_are_listed_rebuilt_and_verified(served: Served) -> None:
    await served.log.append(an_append(a_stream(), an_event("A"), an_event("B")))
    await served.projector.catch_up()
    await served.log.append(an_append(a_stream()))

    (view,) = (await served.stub.ListViews(pb.ListViewsRequest())).views
    assert (view.name, view.version, view.source) == ("types", 4, "orders")
    assert (view.position, view.lag_events, view.parked_events) == (2, 1, 0)

    rebuilt = await served.stub.RebuildView(pb.RebuildViewRequest(name="types"))
    assert (rebuilt.events_folded, rebuilt.view.position, rebuilt.view.lag_events) == (3, 3, 0)
    verified = await served.stub.VerifyView(pb.VerifyViewRequest(name="types"))
    assert (verified.equal, verified.position, len(verified.checksum)) == (True, 3, 64)


async def test_an_unknown_view_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.RebuildView(pb.RebuildViewRequest(name="nope"))
    assert reason(refused.value) == (grpc.StatusCode.NOT_FOUND, "VIEW_NOT_FOUND")
    assert "'nope'" in (refused.value.details() or "")


async def test_parked_events_are_listed_and_redriven(served: Served) -> None:
    await served.log.append(an_append(a_stream(), an_event("Bad")))
    await served.projector.catch_up()

    (parked,) = (await served.stub.ListParkedEvents(pb.ListParkedEventsRequest())).parked
    assert (parked.view, parked.position, parked.type, parked.error) == ("types", 1, "Bad", "ValueError: no")

    redrive = pb.RedriveParkedEventRequest(view="types", position=1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.RedriveParkedEvent(redrive)
    assert reason(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "FOLD_FAILED")

    await served.stub.RedriveParkedEvent(pb.RedriveParkedEventRequest(view="types", position=1, skip=True))
    assert not (await served.stub.ListParkedEvents(pb.ListParkedEventsRequest(view="types"))).parked
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.RedriveParkedEvent(redrive)
    assert reason(refused.value) == (grpc.StatusCode.NOT_FOUND, "PARKED_EVENT_NOT_FOUND")


async def test_a_damaged_archive_is_a_finding_of_verify_and_data_loss_to_who_reads(
    served: Served, tmp_path: Path
) -> None:
    await served.log.append(*[an_append(a_stream()) for _ in range(4)])
    _, second = await served.log.archive(keep_events=0, segment_events=2)
    (tmp_path / second.file).unlink()
    forget_read()
    verified = await served.stub.Verify(pb.VerifyRequest())
    assert (verified.ok, verified.broken_position) == (False, 3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.Read(pb.ReadRequest())
    assert reason(refused.value) == (grpc.StatusCode.DATA_LOSS, "ARCHIVE_DAMAGED")


async def test_what_was_archived_cannot_be_read_by_who_has_no_archive(
    served: Served, postgres_dsn: str, tmp_path: Path
) -> None:
    await served.log.append(*[an_append(a_stream()) for _ in range(4)])
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with (
        await PostgresEventLog.open(postgres_dsn) as without,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await served.log.archive(keep_events=0, segment_events=2)
        add_EventLogServicer_to_server(EventLogServicer(without, [], service="orders"), server)
        await server.start()
        stub: Any = EventLogStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Read(pb.ReadRequest())
        await server.stop(0)
    assert reason(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "ARCHIVE_MISSING")


async def test_a_closed_log_is_unavailable(served: Served) -> None:
    await served.log.close()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.Read(pb.ReadRequest())
    assert reason(refused.value) == (grpc.StatusCode.UNAVAILABLE, "LOG_CLOSED")


async def test_a_view_is_rolled_back_to_what_its_rebuild_replaced(served: Served) -> None:
    await served.log.append(an_append(a_stream(), an_event("Placed")))
    await served.projector.catch_up()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.RollbackView(pb.RollbackViewRequest(name="types"))
    assert reason(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_OLD_VIEW")
    await served.stub.RebuildView(pb.RebuildViewRequest(name="types"))
    await served.log.append(an_append(a_stream(), an_event("Paid")))
    rolled_back = await served.stub.RollbackView(pb.RollbackViewRequest(name="types"))
    assert (rolled_back.view.name, rolled_back.view.position) == ("types", 1)


def moment(at: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


async def test_events_are_read_by_time_and_as_of_a_moment(served: Served) -> None:
    for name in ("First", "Second", "Third"):
        await served.log.append(an_append(a_stream(), an_event(name)))
    _, second, third = await served.log.read()

    async def read(**fields: Any) -> tuple[list[str], int, int]:
        response = await served.stub.Read(pb.ReadRequest(**fields))
        return [event.type for event in response.events], response.head_position, response.next_after_position

    since, until = moment(second.recorded_at), moment(third.recorded_at)
    assert await read(filter=pb.EventFilter(since=since)) == (["Second", "Third"], 3, 3)
    assert await read(filter=pb.EventFilter(since=since, until=until)) == (["Second"], 3, 3)
    assert await read(as_of=since) == (["First", "Second"], 2, 2)
    assert await read(as_of=since, after_position=2) == ([], 2, 2)


async def test_a_subscription_goes_on_where_it_was_cut_off(served: Served) -> None:
    """The client names the last position it has seen; nothing is missed, nothing comes twice."""
    where = pb.EventFilter(types=["Placed"])
    seen: list[int] = []
    for _ in range(4):
        await served.log.append(an_append(a_stream(), an_event("Placed"), an_event("Other"), an_event("Placed")))
        request = pb.SubscribeRequest(after_position=seen[-1] if seen else 0, filter=where)
        following = served.stub.Subscribe(request)
        seen += [(await following.read()).position, (await following.read()).position]
        following.cancel()
    assert seen == [1, 3, 4, 6, 7, 9, 10, 12]
