"""The keys of a service's log: checkpoints are signed and published, persons are erased, each within its tenant."""

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import aiohttp
import grpc
import psycopg
import pytest
from aiohttp import ClientSession
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventlog.codec import Codec
from eventlog.past import read_past
from eventlog.personal_log import PersonalLog
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, Append, Context, StoredEvent, StreamId
from eventlog.signing import Checkpoint, SigningKey
from eventlog.sources import LogSource
from eventlog.table_view import TableView, begins
from eventlog.testing import an_event
from prometheus_client import Gauge
from servicekit import history
from servicekit.app import StartFailed, running
from servicekit.errors import InvalidArgument, NotFound, PermissionDenied, from_rpc_error
from servicekit.host import Host
from servicekit.nats_admin import StreamPlan, administrator
from servicekit.settings import ServiceSettings
from servicekit.testing import serve_in_process, settings_for, write_public_key
from synod.common.event import Event
from synod.common.personal import Personal
from synod.common.streams import events_of
from synod.common.subjects import checkpoint_subject
from synod.eventlog.v1 import eventlog_pb2 as pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub


class Settings(ServiceSettings):
    service: str = "guest-book"


async def compose(host: Host[Settings]) -> None:
    await host.open_log()


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def files(tmp_path: Path, key: SigningKey) -> dict[str, Path]:
    checkpoint_key, master_key = tmp_path / "checkpoints.pem", tmp_path / "master.key"
    key.save(checkpoint_key)
    master_key.write_text(b64encode(b"m" * 32).decode())
    return {"checkpoint_key_file": checkpoint_key, "master_key_file": master_key}


async def append(host: Host[Settings], tenant: str, data_subject: str | None = None) -> None:
    event = replace(an_event(), data_subject=data_subject)
    await host.history.log.append(Append(StreamId("guest", "1"), ANY, (event,), Context(tenant, "tester")))


async def test_a_checkpoint_is_published_and_proves_an_event_to_its_tenant_only(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path], key: SigningKey
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        host = service.host
        published = await host.nats.subscribe(checkpoint_subject("guest-book"))
        await host.nats.flush()
        await append(host, "local")
        await host.history.checkpoints.make()
        message = await published.next_msg(30)
        own: Any = EventLogStub(service.channel)
        other: Any = EventLogStub(service.connect(service.token(tenant="rival")))
        proven = await own.GetInclusionProof(pb.GetInclusionProofRequest(position=1))
        verified = await own.Verify(pb.VerifyRequest())
        with pytest.raises(grpc.aio.AioRpcError) as hidden:
            await other.GetInclusionProof(pb.GetInclusionProofRequest(position=1))
        whole = await own.VerifyStream(pb.VerifyStreamRequest(stream="guest/1"))
        exported = await own.ExportStream(pb.ExportStreamRequest(stream="guest/1"))
        for method, request in (
            (other.VerifyStream, pb.VerifyStreamRequest(stream="guest/1")),
            (other.ExportStream, pb.ExportStreamRequest(stream="guest/1")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as not_theirs:
                await method(request)
            assert isinstance(from_rpc_error(not_theirs.value), NotFound)
    checkpoint = Checkpoint.from_json(message.data)
    assert key.trusted.problem(checkpoint, "guest-book") == ""
    assert (proven.event.tenant, proven.checkpoint.signature) == ("local", checkpoint.signature)
    assert (verified.ok, verified.checkpoints) == (True, 1)
    assert isinstance(from_rpc_error(hidden.value), NotFound)
    assert (whole.ok, whole.events, whole.attested) == (True, 1, True)
    assert [event.hash for event in exported.events] == [proven.event.hash]


async def metric(service: Any, name: str) -> float:
    """What /metrics says now."""
    await service.host.history.measure_once()
    async with ClientSession() as session, session.get(f"{service.http_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


async def until(service: Any, name: str, value: float) -> None:
    async with asyncio.timeout(60):
        while await metric(service, name) != value:
            await service.host.history.relay.wait_for(1_000_000, 0.05)


async def test_appends_go_on_without_nats_and_the_lag_is_a_metric(postgres_dsn: str, fresh_nats: Any) -> None:
    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        await append(service.host, "local")
        await until(service, "relay_lag_events", 0)
        fresh_nats.stop()
        async with asyncio.timeout(10):
            for _ in range(20):
                await append(service.host, "local")
        assert await metric(service, "relay_lag_events") == 20
        fresh_nats.start()
        await until(service, "relay_lag_events", 0)
        assert await metric(service, "eventlog_head") == 21


async def test_a_missing_stream_degrades_the_service_until_an_administrator_makes_it(
    postgres_dsn: str, fresh_nats: Any
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, make_streams=False)
    async with serve_in_process(compose, settings) as service:
        await append(service.host, "local")
        async with asyncio.timeout(30):
            while "relay" not in service.host.health.problems:
                await service.host.history.relay.wait_for(1, 0.05)
                await service.host.history.measure_once()
        assert "NATS has no stream EVT_GUEST_BOOK" in service.host.health.problems["relay"]
        async with administrator(fresh_nats.url) as admin:
            await admin.apply([StreamPlan(events_of("guest-book").config(), None)])
        await until(service, "relay_lag_events", 0)
        assert "relay" not in service.host.health.problems


async def test_a_person_is_erased_by_who_may_and_in_the_own_tenant_only(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        vault = service.host.vault
        assert vault is not None
        await vault.key("local", "person-1")
        own: Any = EventLogStub(service.channel)
        reader: Any = EventLogStub(service.connect(service.token(["events.read"])))
        rival: Any = EventLogStub(service.connect(service.token(tenant="rival")))
        erase = pb.EraseSubjectRequest(data_subject="person-1", reason="asked")
        with pytest.raises(grpc.aio.AioRpcError) as forbidden:
            await reader.EraseSubject(erase)
        with pytest.raises(grpc.aio.AioRpcError) as foreign:
            await rival.EraseSubject(pb.EraseSubjectRequest(tenant="local", data_subject="person-1"))
        elsewhere = await rival.EraseSubject(erase)
        erased = await own.EraseSubject(erase)
        records = await service.host.history.log.read()
    assert isinstance(from_rpc_error(forbidden.value), PermissionDenied)
    assert "may not erase persons of local" in from_rpc_error(foreign.value).message
    assert (elsewhere.key_destroyed, erased.key_destroyed) == (False, True)
    assert [(record.tenant, record.actor) for record in records] == [("rival", "usr_test"), ("local", "usr_test")]


class Said(Event):
    AGGREGATE: ClassVar[str] = "guest"
    words: Annotated[str, Personal()]


@dataclass(frozen=True)
class Word:
    id: str
    words: str


class WordsView(TableView[Word]):
    """What guests said; cannot be rebuilt as long as it is `broken`."""

    name, version, row, personal = "words", 1, Word, True
    broken: ClassVar[bool] = False

    @begins
    def said(self, event: Said, stored: StoredEvent) -> Word:
        if self.broken:
            raise psycopg.OperationalError("the disk of the view is full")
        return Word(stored.stream.id, event.words)


async def compose_personal(host: Host[Settings]) -> None:
    log = await host.open_personal_log([Said])
    host.add_view(WordsView(), LogSource(log, "guest-book"))


async def test_an_erasure_that_failed_half_way_is_listed_and_ended_by_the_service_itself(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    monkeypatch.setattr(history, "ERASURES_S", 0.05)
    async with serve_in_process(compose_personal, settings) as service:
        log = PersonalLog(service.host.history.log, service.host.vault, [Said])
        said = Codec([Said], sealed_below=True).encode(Said(words="my sister is ill"), at=service.clock.now())
        await log.append(Append(StreamId("guest", "1"), ANY, (said,), Context("local", "person-1")))
        own: Any = EventLogStub(service.channel)
        rival: Any = EventLogStub(service.connect(service.token(tenant="rival")))
        monkeypatch.setattr(WordsView, "broken", True)
        with pytest.raises(grpc.aio.AioRpcError):
            await own.EraseSubject(pb.EraseSubjectRequest(data_subject="person-1", reason="asked"))
        (pending,) = (await own.ListErasures(pb.ListErasuresRequest())).erasures
        assert not (await rival.ListErasures(pb.ListErasuresRequest())).erasures
        assert (pending.data_subject, pending.actor, pending.reason) == ("person-1", "usr_test", "asked")
        assert await metric(service, "eventlog_erasures_pending") == 1
        monkeypatch.setattr(WordsView, "broken", False)
        await until(service, "eventlog_erasures_pending", 0)
        async with service.host.pool.connection() as connection:
            rows = await connection.execute("select words from view_words.words")
            assert await rows.fetchall() == [("[erased]",)]


async def test_without_a_master_key_health_says_that_nothing_is_sealed(postgres_dsn: str, fresh_nats: Any) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with serve_in_process(compose_personal, settings) as service:
        assert "in the clear" in service.host.health.problems["sealing"]
        assert service.host.health.ready
    with pytest.raises(StartFailed, match="there is no master key: set master_key_file"):
        async with serve_in_process(compose_personal, settings.model_copy(update={"require_sealing": True})):
            pass


async def test_checkpoints_are_made_by_themselves(postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        host = service.host
        await append_many(host, 10_000)
        async with asyncio.timeout(30):
            while (made := await host.history.checkpoints.latest()) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert made.position >= 10_000


async def append_many(host: Host[Settings], count: int) -> None:
    for _ in range(count // 1000):
        events = tuple(an_event() for _ in range(1000))
        await host.history.log.append(Append(StreamId("guest", "1"), ANY, events, Context("local", "tester")))


async def test_commits_and_the_queue_of_the_log_are_measured(postgres_dsn: str, fresh_nats: Any) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with serve_in_process(compose, settings) as service, aiohttp.ClientSession(service.http_url) as client:
        await append(service.host, "local")
        async with client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    assert {"eventlog_queue_events 0.0", "eventlog_queue_limit_events 20000.0"} <= set(lines)
    assert f'eventlog_events_total{{type="{an_event().type}"}} 1.0' in lines
    assert {"eventlog_group_events_sum 1.0", "eventlog_group_events_count 1.0"} <= set(lines)
    (seconds,) = [line for line in lines if line.startswith("eventlog_commit_seconds_sum")]
    assert float(seconds.split()[1]) > 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [("checkpoint_key_file", "was signed by another key"), ("master_key_file", "another master key")],
)
async def test_a_service_does_not_start_with_the_key_of_another_log(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path], tmp_path: Path, setting: str, said: str
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        await append(service.host, "local")
        await service.host.history.checkpoints.make()
        await service.host.vault.key("local", "person-1")
    other = tmp_path / "other"
    SigningKey.generate().save(other)
    if setting == "master_key_file":
        other.write_text(b64encode(b"n" * 32).decode())
    with pytest.raises(StartFailed, match=said):
        async with serve_in_process(compose, settings.model_copy(update={setting: other})):
            pass


async def test_a_service_starts_with_a_new_key_beside_the_public_half_of_the_former(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path], key: SigningKey, tmp_path: Path
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        await append(service.host, "local")
        await service.host.history.checkpoints.make()
    former, new = tmp_path / "former.pub.pem", tmp_path / "new.pem"
    former.write_bytes(key.public_pem)
    SigningKey.generate().save(new)
    changed = {"checkpoint_key_file": new, "former_checkpoint_key_files": (former,)}
    async with serve_in_process(compose, settings.model_copy(update=changed)) as service:
        await append(service.host, "local")
        await service.host.history.checkpoints.make()
        verified = await EventLogStub(service.channel).Verify(pb.VerifyRequest())
    assert (verified.ok, verified.checkpoints) == (True, 2)


SECRET = b'{"text":"the secret of the house"}'


async def stored_payloads(dsn: str) -> list[bytes]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await (await connection.execute("select data from eventlog.events order by position")).fetchall()
    return [bytes(data) for (data,) in rows]


async def test_a_service_reads_on_what_was_archived_while_it_was_up_and_after_a_restart(
    postgres_dsn: str, fresh_nats: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "archive"
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, archive_directory=directory)
    async with serve_in_process(compose, settings) as service:
        for _ in range(4):
            await append(service.host, "local")
        async with await PostgresEventLog.open(postgres_dsn, archive=directory) as operator:
            await operator.archive(keep_events=2, segment_events=2)
        assert await positions_read(service.channel) == [1, 2, 3, 4]
    async with serve_in_process(compose, settings) as service:
        assert await positions_read(service.channel) == [1, 2, 3, 4]
        await append(service.host, "local")
    with pytest.raises(StartFailed, match="events of the log are archived"):
        async with serve_in_process(compose, settings.model_copy(update={"archive_directory": None})):
            pass


async def positions_read(channel: grpc.aio.Channel) -> list[int]:
    stub: Any = EventLogStub(channel)
    return [event.position for event in (await stub.Read(pb.ReadRequest())).events]


async def tell_secret(host: Host[Settings]) -> None:
    event = replace(an_event(), data=SECRET)
    await host.history.log.append(Append(StreamId("guest", "1"), ANY, (event,), Context("local", "tester")))


async def test_payloads_are_encrypted_at_rest_and_in_the_clear_for_who_may_read(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files, encrypt_at_rest=True)
    async with serve_in_process(compose, settings) as service:
        stub: Any = EventLogStub(service.channel)
        await tell_secret(service.host)
        rotated = await stub.RotateDataKey(pb.RotateDataKeyRequest())
        await tell_secret(service.host)
        await service.host.history.checkpoints.make()
        read = await stub.Read(pb.ReadRequest())
        proven = await stub.GetInclusionProof(pb.GetInclusionProofRequest(position=1))
        exported = await stub.ExportStream(pb.ExportStreamRequest(stream="guest/1"))
        verified = await stub.Verify(pb.VerifyRequest())
        await service.host.history.relay.wait_for(2, 10)
        copy = await (await service.host.nats.jetstream().pull_subscribe("synod.*.evt.guest-book.>")).fetch(1)
    assert not any(b"secret" in data for data in await stored_payloads(postgres_dsn))
    assert [event.data for event in read.events] == [SECRET, SECRET]
    assert copy[0].data == SECRET  # JetStream encrypts for itself
    assert (rotated.key_number, verified.ok, verified.attested_position) == (2, True, 2)
    assert b"secret" not in proven.event.data
    assert exported.events[0] == proven.event


async def test_a_service_tells_its_past_to_who_follows_it(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files, encrypt_at_rest=True)
    async with serve_in_process(compose, settings) as service:
        await tell_secret(service.host)
        past = await read_past(service.host.nats, "guest-book", 0, 10, 10)
        assert past == await service.host.history.log.read()
    assert [event.data for event in past] == [SECRET]


async def test_what_was_encrypted_is_read_with_the_switch_off_and_needs_the_key(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files, encrypt_at_rest=True)
    async with serve_in_process(compose, settings) as service:
        await tell_secret(service.host)
    async with serve_in_process(compose, settings.model_copy(update={"encrypt_at_rest": False})) as service:
        await tell_secret(service.host)
        stub: Any = EventLogStub(service.channel)
        assert [event.data for event in (await stub.Read(pb.ReadRequest())).events] == [SECRET, SECRET]
        with pytest.raises(grpc.aio.AioRpcError) as off:
            await stub.RotateDataKey(pb.RotateDataKeyRequest())
    assert from_rpc_error(off.value).reason == "NOT_CONFIGURED"
    assert [b"secret" in data for data in await stored_payloads(postgres_dsn)] == [False, True]
    with pytest.raises(StartFailed, match="payloads of this log are encrypted: set master_key_file"):
        async with serve_in_process(compose, settings.model_copy(update={"master_key_file": None})):
            pass


async def test_a_new_master_key_takes_over_at_the_start_and_the_former_can_go(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files, encrypt_at_rest=True)
    async with serve_in_process(compose, settings) as service:
        await tell_secret(service.host)
        await service.host.vault.key("local", "person-1")
    new = tmp_path / "new.key"
    new.write_text(b64encode(b"n" * 32).decode())
    changed = {"master_key_file": new, "former_master_key_files": (files["master_key_file"],)}
    async with serve_in_process(compose, settings.model_copy(update=changed)):
        pass
    async with serve_in_process(compose, settings.model_copy(update={"master_key_file": new})) as service:
        stub: Any = EventLogStub(service.channel)
        assert [event.data for event in (await stub.Read(pb.ReadRequest())).events] == [SECRET]
        erased = await stub.EraseSubject(pb.EraseSubjectRequest(data_subject="person-1", reason="asked"))
    assert erased.key_destroyed


class Guests:
    """Names each guest; cannot fold any."""

    name = "guests"
    version = 1
    types = None
    tables = "create table guests (id text primary key)"

    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        raise ValueError("no")


async def test_parked_events_of_another_tenant_are_neither_seen_nor_redriven(
    postgres_dsn: str, fresh_nats: Any
) -> None:
    async def compose_view(host: Host[Settings]) -> None:
        await host.open_log()
        host.add_view(Guests())

    async with serve_in_process(compose_view, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        await append(service.host, "local")
        await append(service.host, "rival")
        (projector,) = service.host.history.projectors
        await projector.wait_for(2, 30)
        own: Any = EventLogStub(service.channel)
        seen = await own.ListParkedEvents(pb.ListParkedEventsRequest())
        assert [parked.position for parked in seen.parked] == [1]
        with pytest.raises(grpc.aio.AioRpcError) as hidden:
            await own.RedriveParkedEvent(pb.RedriveParkedEventRequest(view="guests", position=2, skip=True))
        assert isinstance(from_rpc_error(hidden.value), NotFound)
        await own.RedriveParkedEvent(pb.RedriveParkedEventRequest(view="guests", position=1, skip=True))
        assert [parked.event.position for parked in await projector.parked()] == [2]


class Arrivals(Guests):
    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            await connection.execute("insert into guests values (%s)", [str(event.id)])


async def test_a_service_says_how_often_its_events_are_relayed_at_most(postgres_dsn: str, fresh_nats: Any) -> None:
    async def compose_paced(host: Host[Settings]) -> None:
        await host.open_log(relay_pace_s=3_600)

    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, shutdown_grace_s=0.5)
    async with serve_in_process(compose_paced, settings) as service:
        relay = service.host.history.relay
        await append(service.host, "local")
        assert await relay.wait_for(1, timeout_s=30) == 1
        await append(service.host, "local")
        assert await relay.wait_for(2, timeout_s=0.2) == 1


async def test_a_service_that_only_prepares_folds_its_views_to_the_head_of_its_log(
    postgres_dsn: str, fresh_nats: Any, tmp_path: Path
) -> None:
    async def compose_view(host: Host[Settings]) -> None:
        await host.open_log()
        host.add_view(Arrivals())

    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with serve_in_process(compose, settings) as service:
        await append(service.host, "local")
    key_file = write_public_key(Ed25519PrivateKey.generate(), tmp_path)
    prepares = settings.model_copy(update={"prepare_only": True, "auth_public_key_file": key_file})
    async with running(prepares, compose_view) as host:
        (projector,) = host.history.projectors
        assert (await projector.position(), host.grpc_port, host.health.ready) == (1, 0, False)


async def test_only_the_operators_tenant_swaps_what_all_tenants_share(postgres_dsn: str, fresh_nats: Any) -> None:
    async def compose_view(host: Host[Settings]) -> None:
        await host.open_log()
        host.add_view(Guests())

    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, operator_tenant="home")
    async with serve_in_process(compose_view, settings) as service:
        owner, operator = (EventLogStub(service.connect(service.token(tenant=t))) for t in ("rival", "home"))
        for call in (
            owner.RebuildView(pb.RebuildViewRequest(name="guests")),
            owner.RollbackView(pb.RollbackViewRequest(name="guests")),
            owner.RotateDataKey(pb.RotateDataKeyRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            error = from_rpc_error(refused.value)
            assert isinstance(error, PermissionDenied)
            assert error.reason == "OPERATOR_ONLY"
            assert "ask whoever operates this system, in tenant home" in str(error)
        await operator.RebuildView(pb.RebuildViewRequest(name="guests"))
        await operator.RollbackView(pb.RollbackViewRequest(name="guests"))


async def test_only_an_operator_swaps_views(postgres_dsn: str, fresh_nats: Any) -> None:
    async def compose_view(host: Host[Settings]) -> None:
        await host.open_log()
        host.add_view(Guests())

    async with serve_in_process(compose_view, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        reader: Any = EventLogStub(service.connect(service.token(permissions=("views.read", "events.*"))))
        calls = [
            reader.RebuildView(pb.RebuildViewRequest(name="guests")),
            reader.RollbackView(pb.RollbackViewRequest(name="guests")),
            reader.RedriveParkedEvent(pb.RedriveParkedEventRequest(view="guests", position=1)),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert isinstance(from_rpc_error(refused.value), PermissionDenied)


async def test_a_log_that_a_verification_finds_broken_is_a_metric_until_it_is_found_whole(
    postgres_dsn: str, fresh_nats: Any
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url)
    async with serve_in_process(compose, settings) as service:
        own: Any = EventLogStub(service.channel)
        await append_many(service.host, 1000)
        found = []
        for data in (b"[]", b"{}"):
            await run_sql(postgres_dsn, "update eventlog.events set data = %s where position = 7", data)
            await own.Verify(pb.VerifyRequest())
            await own.Verify(pb.VerifyRequest(first_position=8))
            found.append(await metric(service, "eventlog_broken"))
    assert found == [1, 0]


async def test_a_history_that_was_rewritten_since_it_was_signed_is_a_metric(
    postgres_dsn: str, fresh_nats: Any, files: dict[str, Path]
) -> None:
    settings = settings_for(Settings, postgres_dsn, fresh_nats.url, **files)
    async with serve_in_process(compose, settings) as service:
        await append(service.host, "local")
        await service.host.history.checkpoints.make()
        await run_sql(postgres_dsn, "update eventlog.events set hash = %s where position = 1", b"0" * 32)
        await append_many(service.host, 10_000)
        async with asyncio.timeout(60):
            while not await metric(service, "eventlog_broken"):
                await service.host.history.relay.wait_for(1_000_000, 0.05)
        assert "checkpoints" in service.host.health.problems


async def run_sql(dsn: str, statement: str, *values: object) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(statement.encode(), values)


async def test_what_a_service_measures_itself_is_measured_with_its_log(postgres_dsn: str, fresh_nats: Any) -> None:
    async def composed(host: Host[Settings]) -> None:
        await host.open_log()
        guests = Gauge("guests", "Guests in the house", registry=host.metrics.registry)

        async def count() -> None:
            guests.set(3)

        host.add_measurement(count)

    async with serve_in_process(composed, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        assert await metric(service, "guests") == 3


async def test_parked_events_are_a_metric(postgres_dsn: str, fresh_nats: Any) -> None:
    async def composed(host: Host[Settings]) -> None:
        await host.open_log()
        host.add_view(Picky())

    async with serve_in_process(composed, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        await append(service.host, "local")
        async with asyncio.timeout(60):
            while not await metric(service, 'view_parked_events{view="picky"}'):
                await service.host.history.relay.wait_for(1_000_000, 0.05)


class Picky:
    """A view that can fold nothing."""

    name, version, types = "picky", 1, None
    tables = "create table taken (position bigint)"

    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        raise ValueError("not to my taste")


def test_an_id_that_no_stream_can_have_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="must be 1 to 128 characters") as raised:
        StreamId("run", "a b\0")
    answered = history.LOG_ERRORS.translate(raised.value)
    assert isinstance(answered, InvalidArgument)
    assert answered.message == "id = 'a b\\x00': must be 1 to 128 characters out of A-Z a-z 0-9 _ -"
