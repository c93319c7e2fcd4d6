"""The event log of a service in its process: opened, relayed to JetStream, projected into views, served, drained."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from eventlog.at_rest import EncryptedLog
from eventlog.checkpoints import Attestation, Checkpoints
from eventlog.data_keys import DataKeys, has_data_keys
from eventlog.erasures import PendingErasure
from eventlog.errors import (
    ArchiveDamaged,
    ArchiveMissing,
    EventMissing,
    EventTooLarge,
    HistoryRewritten,
    KeyUnusable,
    LogClosed,
    LogUnavailable,
    NameInvalid,
    NotParked,
    QueueFull,
    RebuildRunning,
    StreamMissing,
    SubjectLocked,
    UnknownView,
    VersionConflict,
)
from eventlog.folding import ProjectorLimits, View
from eventlog.limits import Limits as LogLimits
from eventlog.log import EventLog
from eventlog.master_keys import FileMasterKey, MasterKey, former_master_keys
from eventlog.observer import GroupCommitted
from eventlog.past_server import PastServer
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import StoredEvent, StreamId
from eventlog.relay import Relay, RelayConfig
from eventlog.rpc import Context, EventLogServicer
from eventlog.side_table import SideTable
from eventlog.signing import Checkpoint, SigningKey, TrustedKeys
from eventlog.sources import LogSource, Source
from eventlog.vault import Vault
from eventlog.view_tables import Parked
from nats.aio.client import Client
from prometheus_client import Gauge
from psycopg_pool import AsyncConnectionPool
from synod.common.subjects import checkpoint_subject
from synod.eventlog.v1 import eventlog_pb2 as pb
from synod.eventlog.v1.eventlog_pb2_grpc import add_EventLogServicer_to_server
from typing_extensions import override

from servicekit.auth import ANY_TENANT
from servicekit.clock import Clock
from servicekit.context import current_principal
from servicekit.errors import (
    Aborted,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from servicekit.health import Health
from servicekit.rpc import RpcServer
from servicekit.tasks import Tasks
from servicekit.telemetry import Logger, Metrics

R = TypeVar("R", pb.ReadRequest, pb.SubscribeRequest)

LOG_ERRORS = (
    ErrorMap()
    .add(
        VersionConflict,
        lambda error: Aborted(
            f"{error.stream} was changed meanwhile (now at version {error.actual}); read it again and repeat",
            reason="VERSION_CONFLICT",
            metadata={"stream": str(error.stream), "actual": str(error.actual)},
        ),
    )
    .add(QueueFull, lambda error: ResourceExhausted(str(error), 1.0, reason="LOG_QUEUE_FULL"))
    .add(EventTooLarge, lambda error: InvalidArgument("data", error.size, str(error), reason="EVENT_TOO_LARGE"))
    .add(NameInvalid, lambda error: InvalidArgument(error.name, error.value, error.problem))
    .add(LogUnavailable, lambda error: Unavailable(str(error), 1.0, reason="LOG_UNAVAILABLE"))
    .add(LogClosed, lambda error: Unavailable("the service is stopping; repeat the call", 1.0, reason="STOPPING"))
    .add(UnknownView, lambda error: NotFound("view", error.name, reason="VIEW_NOT_FOUND"))
    .add(NotParked, lambda error: NotFound("parked event", str(error), reason="NOT_PARKED"))
    .add(SubjectLocked, lambda error: FailedPrecondition(str(error), reason="PERSONAL_DATA_LOCKED"))
    .add(KeyUnusable, lambda error: FailedPrecondition(str(error), reason="KEY_UNUSABLE"))
    .add(ArchiveMissing, lambda error: FailedPrecondition(str(error), reason="ARCHIVE_MISSING"))
    .add(ArchiveDamaged, lambda error: FailedPrecondition(str(error), reason="ARCHIVE_DAMAGED"))
    .add(RebuildRunning, lambda error: FailedPrecondition(str(error), reason="REBUILD_RUNNING"))
)
"""How the errors of the event log look to the callers of a service."""

MEASURE_S = 5.0
ERASURES_S = 10.0
"""How often a service looks for erasures that somebody began and left."""
EVENTLOG_PERMISSIONS = {
    "Read": "events.read",
    "Subscribe": "events.read",
    "Verify": "events.verify",
    "VerifyStream": "events.verify",
    "ListCheckpoints": "events.read",
    "GetInclusionProof": "events.read",
    "ExportStream": "events.read",
    "EraseSubject": "events.erase",
    "ListErasures": "events.erase",
    "RotateDataKey": "events.rotate",
    "ListViews": "views.read",
    "RebuildView": "views.rebuild",
    "RollbackView": "views.rebuild",
    "VerifyView": "views.read",
    "ListParkedEvents": "views.read",
    "RedriveParkedEvent": "views.rebuild",
}


class TenantEventLog(EventLogServicer):
    """The EventLog contract, in which a caller of one tenant sees the events of that tenant only.

    `broken` is set when a verification finds the log broken, and cleared when one of the whole log finds it whole.
    Views and the key of payloads are everybody's: only who is of the `operator_tenant`, or of any, may swap them.
    """

    def __init__(
        self,
        log: EventLog,
        projectors: Iterable[Projector],
        *,
        operator_tenant: str,
        service: str,
        broken: Gauge,
        checkpoints: Checkpoints | None,
        vault: Vault | None,
    ) -> None:
        super().__init__(log, projectors, service=service, checkpoints=checkpoints, vault=vault)
        self._operator_tenant = operator_tenant
        self._broken = broken

    @override
    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        verified = await super().Verify(request, context)
        # What a caller says to have witnessed may be forged; it is no finding about the log.
        if not verified.ok and not request.witnessed:
            self._broken.set(1)
        elif verified.ok and not request.first_position and not request.last_position:
            self._broken.set(0)
        return verified

    @override
    async def VerifyStream(self, request: pb.VerifyStreamRequest, context: Context) -> pb.VerifyStreamResponse:
        verified = await super().VerifyStream(request, context)
        if not verified.ok:
            self._broken.set(1)
        return verified

    @override
    async def Read(self, request: pb.ReadRequest, context: Context) -> pb.ReadResponse:
        return await super().Read(_within_tenant(request), context)

    @override
    async def Subscribe(self, request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.Event]:
        # Declared as an iterator, it is a generator, which must be closed when the caller leaves.
        following = cast("AsyncGenerator[pb.Event, None]", super().Subscribe(_within_tenant(request), context))
        async with aclosing(following) as events:
            async for event in events:
                yield event

    @override
    async def prove(self, position: int) -> Attestation:
        attestation = await super().prove(position)
        if current_principal().tenant not in (ANY_TENANT, attestation.event.tenant):
            raise EventMissing(position)  # for this caller
        return attestation

    @override
    async def exported(self, stream: StreamId, after: int, limit: int) -> list[StoredEvent]:
        events = await super().exported(stream, after, limit)
        tenant = current_principal().tenant
        if any(tenant not in (ANY_TENANT, event.tenant) for event in events):
            raise StreamMissing(stream)  # for this caller
        return events

    @override
    async def parked(self, projector: Projector) -> list[Parked]:
        tenant = current_principal().tenant
        return [parked for parked in await super().parked(projector) if tenant in (ANY_TENANT, parked.event.tenant)]

    @override
    async def RebuildView(self, request: pb.RebuildViewRequest, context: Context) -> pb.RebuildViewResponse:
        self._require_operator("rebuild a view")
        return await super().RebuildView(request, context)

    @override
    async def RollbackView(self, request: pb.RollbackViewRequest, context: Context) -> pb.RollbackViewResponse:
        self._require_operator("roll a view back")
        return await super().RollbackView(request, context)

    @override
    async def RotateDataKey(self, request: pb.RotateDataKeyRequest, context: Context) -> pb.RotateDataKeyResponse:
        self._require_operator("rotate the data key")
        return await super().RotateDataKey(request, context)

    def _require_operator(self, deed: str) -> None:
        principal = current_principal()
        if principal.tenant not in (ANY_TENANT, self._operator_tenant):
            raise PermissionDenied(
                f"tenant:{self._operator_tenant}",
                principal.id,
                message=f"{principal.id} belongs to tenant {principal.tenant} and may not {deed}, which every tenant shares;"
                f" ask whoever operates this system, in tenant {self._operator_tenant}",
                reason="OPERATOR_ONLY",
            )

    @override
    async def EraseSubject(self, request: pb.EraseSubjectRequest, context: Context) -> pb.EraseSubjectResponse:
        request.tenant = _own_tenant(request.tenant, "erase persons")
        return await super().EraseSubject(request, context)

    @override
    async def erase(self, request: pb.EraseSubjectRequest, actor: str) -> pb.EraseSubjectResponse:
        return await super().erase(request, current_principal().actor)

    @override
    async def erasures(self) -> list[PendingErasure]:
        tenant = current_principal().tenant
        return [each for each in await super().erasures() if tenant in (ANY_TENANT, each.tenant)]


@dataclass(frozen=True, slots=True)
class CommitMetrics:
    """Counts what the log's writer commits."""

    metrics: Metrics

    def committed(self, group: GroupCommitted) -> None:
        self.metrics.eventlog_group_events.observe(group.events)
        self.metrics.eventlog_commit_seconds.observe(group.seconds)
        for kind, events in group.types.items():
            self.metrics.eventlog_events.labels(kind).inc(events)


@dataclass(slots=True)
class History:
    """One log, its relay and its views. The relay outlives all that appends, so that a stop leaves nothing unsent."""

    service: str
    dsn: str
    pool: AsyncConnectionPool[Any]
    client: Client
    clock: Clock
    metrics: Metrics
    health: Health
    log_: Logger
    relaying: Tasks
    grace_s: float
    checkpoint_key_file: Path | None = None
    former_checkpoint_key_files: tuple[Path, ...] = ()
    master_key_file: Path | None = None
    require_sealing: bool = False
    former_master_key_files: tuple[Path, ...] = ()
    encrypt_at_rest: bool = False
    archive_directory: Path | None = None
    make_streams: bool = False
    operator_tenant: str = "local"
    log: EventLog | None = None
    """What the service appends to and reads from."""
    stored: PostgresEventLog | None = None
    """The same with its payloads as they are stored: what is hashed and signed."""
    checkpoints: Checkpoints | None = None
    vault: Vault | None = None
    relay: Relay | None = None
    limits: LogLimits = field(default_factory=LogLimits)
    """Of a log that is opened with no others."""
    projectors: list[Projector] = field(default_factory=list)
    servicer: TenantEventLog | None = None
    measurements: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    """Of the service itself, taken together with those of its log."""

    async def open(
        self, limits: LogLimits | None = None, relay_pace_s: float = 0.0, side_table: SideTable | None = None
    ) -> EventLog:
        """The log, opened by the first call, its relay started, and what its keys allow: checkpoints and a vault.

        Raises KeyUnusable for a key that is not the one that this log was signed, or its data encrypted, with, and without
        a master key where one is required.
        """
        if self.log is None:
            self._check_keys()
            observer = CommitMetrics(self.metrics)
            stored = await PostgresEventLog.open(
                self.dsn,
                limits=limits or self.limits,
                clock=self.clock,
                observer=observer,
                archive=self.archive_directory,
                side_table=side_table,
            )
            self.metrics.eventlog_queue_events.set_function(lambda: stored.backlog_events)
            self.metrics.eventlog_queue_limit.set((limits or self.limits).queue_events_max)
            self.stored = stored
            self.log = log = await self._encrypted(stored)
            await self._open_vault(log)
            await self._open_checkpoints(stored)
            config = RelayConfig(makes_stream=self.make_streams, pace_s=relay_pace_s)
            self.relay = Relay(log, self.client, self.service, config)
            self.relaying.start("relay", self.relay.run)
            self.relaying.start("past", PastServer(log, self.client, self.service).run)
        return self.log

    def _check_keys(self) -> None:
        if self.require_sealing and self.master_key_file is None:
            raise KeyUnusable("require_sealing", "there is no master key: set master_key_file")

    async def _encrypted(self, stored: PostgresEventLog) -> EventLog:
        """The log with its payloads in the clear. Also with the switch off, if any were encrypted before."""
        if not (self.encrypt_at_rest or await has_data_keys(self.pool)):
            return stored
        if self.master_key_file is None:
            raise KeyUnusable("encrypt_at_rest", "payloads of this log are encrypted: set master_key_file")
        master, former = self._master_keys(self.master_key_file)
        keys = DataKeys(self.pool, master, retired=former, clock=self.clock)
        log = EncryptedLog(stored, keys, encrypting=self.encrypt_at_rest)
        await log.prepare()
        if former:
            self.log_.info("keys_rewrapped", kind="data keys", keys=await keys.rewrap())
        return log

    async def _open_vault(self, log: EventLog) -> None:
        if self.master_key_file is not None:
            master, former = self._master_keys(self.master_key_file)
            self.vault = Vault(self.pool, log, master, retired=former, clock=self.clock)
            await self.vault.prepare()
            if former:
                self.log_.info("keys_rewrapped", kind="keys of persons", keys=await self.vault.rewrap())

    def _master_keys(self, file: Path) -> tuple[MasterKey, tuple[MasterKey, ...]]:
        former = (former_master_keys(each) for each in self.former_master_key_files)
        return FileMasterKey(file), tuple(chain.from_iterable(former))

    async def _open_checkpoints(self, log: PostgresEventLog) -> None:
        if self.checkpoint_key_file is not None:
            key = SigningKey.load(self.checkpoint_key_file)
            former = TrustedKeys.load(*self.former_checkpoint_key_files)
            self.checkpoints = Checkpoints(
                self.pool, log, self.service, key, trusted=former, clock=self.clock, publish=self._publish_checkpoint
            )
            await self.checkpoints.prepare()
            self.relaying.start("checkpoints", self._make_checkpoints)

    async def _make_checkpoints(self) -> None:
        assert self.checkpoints is not None
        try:
            await self.checkpoints.run()
        except HistoryRewritten:
            self.metrics.eventlog_broken.set(1)
            raise

    async def _publish_checkpoint(self, checkpoint: Checkpoint) -> None:
        await self.client.publish(checkpoint_subject(self.service), checkpoint.to_json().encode())

    async def drain(self) -> None:
        """Wait until all that was appended is published, at most `grace_s`; then stop the relay and close the log.

        What is not published by then is not lost: the relay goes on where its stream ends at the next start.
        """
        if self.stored is None:
            return
        if self.relay is not None:
            await self._await_relay(await self.stored.head(), self.relay)
        await self.relaying.stop(self.grace_s)
        await self.stored.close()

    async def _await_relay(self, head: int, relay: Relay) -> None:
        published = await relay.wait_for(head, self.grace_s)
        if published < head:
            self.log_.warning("relay_behind", head=head, published=published)

    def add_view(self, view: View, source: Source | None, limits: ProjectorLimits | None = None) -> Projector:
        """Raises ValueError without a source when the log was not opened."""
        if source is None:
            if self.log is None:
                raise ValueError(f"view {view.name!r} has no source; open the log first, or name a StreamSource")
            source = LogSource(self.log, self.service)
        projector = Projector(self.pool, view, source, limits)
        self.projectors.append(projector)
        return projector

    async def prepare_views(self) -> None:
        """Create the tables of every view, and bring those over the service's own log up to its head."""
        for projector in self.projectors:
            if projector.source.name == self.service:
                await projector.catch_up()
            else:
                await projector.prepare()

    def serve(self, server: RpcServer) -> None:
        """Add the EventLog contract over the log and its views."""
        if self.log:
            self.servicer = TenantEventLog(
                self.log,
                self.projectors,
                operator_tenant=self.operator_tenant,
                service=self.service,
                broken=self.metrics.eventlog_broken,
                checkpoints=self.checkpoints,
                vault=self.vault,
            )
            server.add(add_EventLogServicer_to_server, self.servicer, EVENTLOG_PERMISSIONS, LOG_ERRORS)

    async def end_erasures(self) -> None:
        """End, for ever, the erasures that a process of this service began and left."""
        assert self.servicer is not None
        while True:
            for erasure in await self.servicer.resume_erasures():
                self.log_.info("erasure_ended", position=erasure.position)
            await asyncio.sleep(ERASURES_S)

    async def measure(self) -> None:
        """Keep the gauges of log, relay and views current, for ever."""
        while True:
            await self.measure_once()
            await asyncio.sleep(MEASURE_S)

    def _report(self, relay: Relay) -> None:
        """Appends go on without a stream, so this degrades the service and does not stop it."""
        if relay.problem:
            self.health.degrade("relay", relay.problem)
        else:
            self.health.recover("relay")

    async def measure_once(self) -> None:
        if self.log and self.relay:
            head = await self.log.head()
            self.metrics.eventlog_head.set(head)
            self.metrics.relay_lag.set(max(0, head - self.relay.position))
            self._report(self.relay)
        if self.vault:
            self.metrics.eventlog_erasures.set(len(await self.vault.pending()))
        for projector in self.projectors:
            self.metrics.view_position.labels(projector.view.name).set(await projector.position())
            self.metrics.view_lag.labels(projector.view.name).set(await projector.lag())
            self.metrics.view_parked.labels(projector.view.name).set(await projector.parked_count())
        for measurement in self.measurements:
            await measurement()


def _within_tenant(request: R) -> R:
    """The request, restricted to the caller's tenant. Raises PermissionDenied when it asks for another's events."""
    request.filter.tenant = _own_tenant(request.filter.tenant, "read the events")
    return request


def _own_tenant(asked: str, deed: str) -> str:
    """The caller's tenant, or the one asked for by a caller of any. Raises PermissionDenied for another's."""
    principal = current_principal()
    if principal.tenant == ANY_TENANT:
        return asked
    if asked not in ("", principal.tenant):
        raise PermissionDenied(
            f"tenant:{asked}",
            principal.id,
            message=f"{principal.id} belongs to tenant {principal.tenant} and may not {deed} of {asked}",
            reason="TENANT_DENIED",
        )
    return principal.tenant
