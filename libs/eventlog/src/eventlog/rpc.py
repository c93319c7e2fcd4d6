"""synod.eventlog.v1.EventLog over a log and its views."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from synod.eventlog.v1 import eventlog_pb2 as pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogServicer as _Servicer

from eventlog.at_rest import EncryptedLog
from eventlog.checkpoints import Attestation, Checkpoints
from eventlog.erasures import PendingErasure
from eventlog.errors import (
    ArchiveDamaged,
    ArchiveMissing,
    CheckpointMissing,
    EventLogError,
    EventMissing,
    FoldFailed,
    HistoryRewritten,
    KeyUnusable,
    LogClosed,
    LogUnavailable,
    NoOldView,
    NotConfigured,
    NotParked,
    PayloadUnreadable,
    RebuildRunning,
    StreamMissing,
    UnknownView,
)
from eventlog.folding import PersonalView
from eventlog.log import EventLog
from eventlog.projections import Projector, ViewStatus
from eventlog.records import Filter, StoredEvent, StreamEnd, StreamId, Verified, require_text, require_token
from eventlog.signing import Checkpoint
from eventlog.sources import read_page
from eventlog.vault import Erasure, Vault
from eventlog.view_tables import Parked

PAGE_EVENTS_DEFAULT = 100
PAGE_EVENTS_MAX = 1_000
PAGE_BYTES = 2 * 1024 * 1024
"""Data after which a page ends. With the event that reaches it, and all else that events carry, a page stays below the
4 MiB that gRPC clients take by default."""
WITNESSED_MAX = 1_000
IDLE_WAIT_S = 5.0
OPERATOR = "operator"
"""Who acts where the server knows no callers."""

Context = grpc.aio.ServicerContext[Any, Any]

_STATUS: tuple[tuple[type[EventLogError], grpc.StatusCode, str], ...] = (
    (UnknownView, grpc.StatusCode.NOT_FOUND, "VIEW_NOT_FOUND"),
    (NotParked, grpc.StatusCode.NOT_FOUND, "PARKED_EVENT_NOT_FOUND"),
    (FoldFailed, grpc.StatusCode.FAILED_PRECONDITION, "FOLD_FAILED"),
    (NoOldView, grpc.StatusCode.FAILED_PRECONDITION, "NO_OLD_VIEW"),
    (RebuildRunning, grpc.StatusCode.FAILED_PRECONDITION, "REBUILD_RUNNING"),
    (NotConfigured, grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED"),
    (EventMissing, grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND"),
    (StreamMissing, grpc.StatusCode.NOT_FOUND, "STREAM_NOT_FOUND"),
    (CheckpointMissing, grpc.StatusCode.UNAVAILABLE, "CHECKPOINT_MISSING"),
    (HistoryRewritten, grpc.StatusCode.DATA_LOSS, "HISTORY_REWRITTEN"),
    (PayloadUnreadable, grpc.StatusCode.DATA_LOSS, "PAYLOAD_UNREADABLE"),
    (ArchiveDamaged, grpc.StatusCode.DATA_LOSS, "ARCHIVE_DAMAGED"),
    (ArchiveMissing, grpc.StatusCode.FAILED_PRECONDITION, "ARCHIVE_MISSING"),
    (KeyUnusable, grpc.StatusCode.FAILED_PRECONDITION, "KEY_UNUSABLE"),
    (LogUnavailable, grpc.StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE"),
    (LogClosed, grpc.StatusCode.UNAVAILABLE, "LOG_CLOSED"),
)


class InvalidField(EventLogError):
    """A field of a request does not hold what it must."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class EventLogServicer(_Servicer):
    """Serves `log` and the views of `projectors`, which may still grow. `service` is the domain in error details.

    With `checkpoints`, Verify compares with them and events are proven by them; with a `vault`, persons are erased.
    Authorisation is the server's: every method names its permission in the contract.
    """

    def __init__(
        self,
        log: EventLog,
        projectors: Iterable[Projector],
        *,
        service: str = "eventlog",
        checkpoints: Checkpoints | None = None,
        vault: Vault | None = None,
    ) -> None:
        self._log = log
        self._projectors = projectors
        self._checkpoints = checkpoints
        self._vault = vault
        self._domain = f"synod.{service}"

    async def Read(self, request: pb.ReadRequest, context: Context) -> pb.ReadResponse:
        async with self._errors(context):
            limit, after, where = _page_size(request.page_size), _after(request.after_position), _filter(request.filter)
            head = await self._head_as_of(request)
            page = (await read_page(self._log, after, limit, where, PAGE_BYTES)).upto(head)
            return pb.ReadResponse(
                events=map(to_event, page.events),
                head_position=head,
                next_after_position=max(page.position, after),
            )

    async def _head_as_of(self, request: pb.ReadRequest) -> int:
        if not request.HasField("as_of"):
            return await self._log.head()
        return await self._log.position_at(_moment("as_of", request.as_of))

    async def Subscribe(self, request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.Event]:
        async with self._errors(context):
            after, where = _after(request.after_position), _filter(request.filter)
            while True:
                page = await self._log.next_page(after, limit=PAGE_EVENTS_MAX, where=where)
                for event in page.events:
                    yield to_event(event)
                after = page.position
                if not page.more:
                    await self._log.wait_for(after + 1, IDLE_WAIT_S)

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        async with self._errors(context):
            first, last = request.first_position or 1, request.last_position or None
            if first < 1:
                raise InvalidField("first_position", f"must be 0 or more, got {first}")
            if last is not None and last < first:
                raise InvalidField("last_position", f"must be 0 or at least first_position {first}, got {last}")
            if len(request.witnessed) > WITNESSED_MAX:
                raise InvalidField("witnessed", f"at most {WITNESSED_MAX} are compared, got {len(request.witnessed)}")
            verified = await self._verify(first, last, [from_checkpoint(kept) for kept in request.witnessed])
            return pb.VerifyResponse(
                ok=verified.ok,
                first_position=verified.first,
                last_position=verified.last,
                events=verified.events,
                broken_position=verified.broken_at or 0,
                reason=verified.reason,
                head_hash=verified.head_hash,
                checkpoints=verified.checkpoints,
                attested_position=verified.attested_to,
            )

    async def VerifyStream(self, request: pb.VerifyStreamRequest, context: Context) -> pb.VerifyStreamResponse:
        async with self._errors(context):
            stream = _stream("stream", request.stream)
            await self.exported(stream, 0, 1)
            found = await (self._checkpoints or self._log).verify_stream(stream)
            head = found.ends[-1] if found.ends else StreamEnd(0, 0, b"")
            return pb.VerifyStreamResponse(
                ok=found.ok,
                events=found.events,
                broken_version=found.broken_at or 0,
                reason=found.reason,
                head_position=head.position,
                head_hash=head.hash,
                attested=found.attested,
            )

    async def ExportStream(self, request: pb.ExportStreamRequest, context: Context) -> pb.ExportStreamResponse:
        async with self._errors(context):
            after = _after(request.after_version, "after_version")
            events = await self.exported(_stream("stream", request.stream), after, PAGE_EVENTS_DEFAULT)
            return pb.ExportStreamResponse(events=map(to_event, _within(PAGE_BYTES, events)))

    async def exported(self, stream: StreamId, after: int, limit: int) -> list[StoredEvent]:
        """Events of a stream as they are stored; whoever restricts callers looks here whose they are. StreamMissing."""
        stored = self._log.stored if isinstance(self._log, EncryptedLog) else self._log
        events = await stored.read_stream(stream, after=after, limit=limit)
        if not events and after == 0:
            raise StreamMissing(stream)
        return events

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        async with self._errors(context):
            limit, after = _page_size(request.page_size), _after(request.after_position)
            page = await self._signed().page(after, limit=limit)
            return pb.ListCheckpointsResponse(checkpoints=map(to_checkpoint, page))

    async def GetInclusionProof(
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        async with self._errors(context):
            return to_attestation(await self.prove(request.position))

    async def prove(self, position: int) -> Attestation:
        """The event at a position with its proof; whoever restricts callers looks here which tenant's it is."""
        return await self._signed().prove(position)

    async def EraseSubject(self, request: pb.EraseSubjectRequest, context: Context) -> pb.EraseSubjectResponse:
        async with self._errors(context):
            _check("tenant", request.tenant, require_token)
            _check("data_subject", request.data_subject, require_text)
            _check("reason", request.reason or "-", require_text)
            return await self.erase(request, OPERATOR)

    async def erase(self, request: pb.EraseSubjectRequest, actor: str) -> pb.EraseSubjectResponse:
        """Erase a person in the name of `actor`, and rebuild the views that may hold their data in the clear."""
        if self._vault is None:
            raise NotConfigured("keys of persons", "start the service with a master key")
        rebuilt: list[str] = []

        async def forget_views() -> None:
            rebuilt.extend(await self._forget_views())

        erasure = await self._vault.erase(
            request.tenant, request.data_subject, actor=actor, reason=request.reason, views=forget_views
        )
        return pb.EraseSubjectResponse(
            position=erasure.position,
            key_destroyed=erasure.key_destroyed,
            snapshots_dropped=erasure.snapshots_dropped,
            views_rebuilt=rebuilt,
        )

    async def resume_erasures(self) -> list[Erasure]:
        """End, as `erase` would, what processes began that are gone. Nothing without a vault."""
        return await self._vault.resume(self._forget_views) if self._vault else []

    async def _forget_views(self) -> list[str]:
        """Rebuild the views that may hold personal data; their names."""
        holding = [projector for projector in self._projectors if await _may_hold_personal_data(projector)]
        for projector in holding:
            await projector.forget()
        return [projector.view.name for projector in holding]

    async def ListErasures(self, request: pb.ListErasuresRequest, context: Context) -> pb.ListErasuresResponse:
        async with self._errors(context):
            return pb.ListErasuresResponse(erasures=map(to_erasure, await self.erasures()))

    async def erasures(self) -> list[PendingErasure]:
        """What was begun and has not ended; whoever restricts callers leaves out what is other tenants'."""
        return await self._vault.pending() if self._vault else []

    async def RotateDataKey(self, request: pb.RotateDataKeyRequest, context: Context) -> pb.RotateDataKeyResponse:
        async with self._errors(context):
            if not (isinstance(self._log, EncryptedLog) and self._log.encrypting):
                raise NotConfigured("data keys", "start the service with encryption at rest")
            return pb.RotateDataKeyResponse(key_number=await self._log.rotate())

    async def ListViews(self, request: pb.ListViewsRequest, context: Context) -> pb.ListViewsResponse:
        async with self._errors(context):
            statuses = [await projector.status() for projector in self._projectors]
            return pb.ListViewsResponse(views=map(to_view, statuses))

    async def RebuildView(self, request: pb.RebuildViewRequest, context: Context) -> pb.RebuildViewResponse:
        async with self._errors(context):
            projector = self._projector(request.name)
            start = asyncio.get_running_loop().time()
            folded = await projector.rebuild()
            took = Duration()
            took.FromMilliseconds(round(1000 * (asyncio.get_running_loop().time() - start)))
            return pb.RebuildViewResponse(view=to_view(await projector.status()), events_folded=folded, took=took)

    async def RollbackView(self, request: pb.RollbackViewRequest, context: Context) -> pb.RollbackViewResponse:
        async with self._errors(context):
            projector = self._projector(request.name)
            await projector.rollback()
            return pb.RollbackViewResponse(view=to_view(await projector.status()))

    async def VerifyView(self, request: pb.VerifyViewRequest, context: Context) -> pb.VerifyViewResponse:
        async with self._errors(context):
            verified = await self._projector(request.name).verify()
            return pb.VerifyViewResponse(
                name=verified.name,
                position=verified.position,
                equal=verified.equal,
                differing_tables=verified.differing_tables,
                checksum=verified.checksum,
            )

    async def ListParkedEvents(
        self, request: pb.ListParkedEventsRequest, context: Context
    ) -> pb.ListParkedEventsResponse:
        async with self._errors(context):
            projectors = [self._projector(request.view)] if request.view else self._projectors
            return pb.ListParkedEventsResponse(
                parked=[to_parked(p.view.name, parked) for p in projectors for parked in await self.parked(p)]
            )

    async def RedriveParkedEvent(
        self, request: pb.RedriveParkedEventRequest, context: Context
    ) -> pb.RedriveParkedEventResponse:
        async with self._errors(context):
            projector = self._projector(request.view)
            if request.position not in {parked.event.position for parked in await self.parked(projector)}:
                raise NotParked(request.view, request.position)
            await projector.redrive(request.position, skip=request.skip)
            return pb.RedriveParkedEventResponse()

    async def parked(self, projector: Projector) -> list[Parked]:
        """What the caller may see of a view's parked events; whoever restricts callers leaves out the rest."""
        return await projector.parked()

    async def _verify(self, first: int, last: int | None, witnessed: list[Checkpoint]) -> Verified:
        if self._checkpoints is None and not witnessed:
            found = await self._log.verify(first, last)
        else:
            found = await self._signed().verify(first, last, witnessed=witnessed)
        keyless = await self._vault.unrecorded(first, last) if self._vault and found.ok else None
        if keyless is None:
            return found
        reason = "the key of the personal data in it is gone, and no erasure is on record"
        return replace(found, ok=False, broken_at=keyless, reason=reason)

    def _signed(self) -> Checkpoints:
        if self._checkpoints is None:
            raise NotConfigured("checkpoints", "start the service with a signing key")
        return self._checkpoints

    def _projector(self, name: str) -> Projector:
        for projector in self._projectors:
            if projector.view.name == name:
                return projector
        raise UnknownView(name)

    @asynccontextmanager
    async def _errors(self, context: Context) -> AsyncIterator[None]:
        try:
            yield
        except InvalidField as error:
            violation = BadRequest.FieldViolation(field=error.field, description=error.problem)
            detail = BadRequest(field_violations=[violation])
            await self._abort(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", str(error), detail)
        except EventLogError as error:
            code, reason = _status(error)
            await self._abort(context, code, reason, str(error))

    async def _abort(
        self, context: Context, code: grpc.StatusCode, reason: str, message: str, *details: Message
    ) -> NoReturn:
        status = Status(code=code.value[0], message=message)
        for detail in (ErrorInfo(reason=reason, domain=self._domain), *details):
            status.details.add().Pack(detail)
        await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def to_event(event: StoredEvent) -> pb.Event:
    return pb.Event(
        position=event.position,
        stream=str(event.stream),
        version=event.version,
        id=str(event.id),
        type=event.type,
        type_version=event.type_version,
        tenant=event.tenant,
        occurred_at=_timestamp(event.occurred_at),
        recorded_at=_timestamp(event.recorded_at),
        causation_id="" if event.causation is None else str(event.causation),
        correlation_id=event.correlation,
        actor=event.actor,
        traceparent=event.traceparent,
        data=event.data,
        hash=event.hash,
        previous_hash=event.previous_hash,
        data_subject=event.data_subject,
        stream_previous_hash=event.stream_previous_hash,
    )


def to_erasure(pending: PendingErasure) -> pb.Erasure:
    return pb.Erasure(
        tenant=pending.tenant,
        data_subject=pending.subject,
        actor=pending.actor,
        reason=pending.reason,
        began_at=_timestamp(pending.begun_at),
    )


def to_checkpoint(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        log=checkpoint.log,
        position=checkpoint.position,
        head_hash=checkpoint.head_hash,
        root_hash=checkpoint.root_hash,
        signed_at=_timestamp(checkpoint.signed_at),
        key_id=checkpoint.key_id,
        signature=checkpoint.signature,
    )


def from_checkpoint(checkpoint: pb.Checkpoint) -> Checkpoint:
    return Checkpoint(
        log=checkpoint.log,
        position=checkpoint.position,
        head_hash=checkpoint.head_hash,
        root_hash=checkpoint.root_hash,
        signed_at=checkpoint.signed_at.ToDatetime(UTC),
        key_id=checkpoint.key_id,
        signature=checkpoint.signature,
    )


def to_attestation(attestation: Attestation) -> pb.GetInclusionProofResponse:
    proof = attestation.proof
    return pb.GetInclusionProofResponse(
        event=to_event(attestation.event),
        proof=pb.InclusionProof(position=proof.position, size=proof.size, path=proof.path),
        checkpoint=to_checkpoint(attestation.checkpoint),
    )


def to_view(status: ViewStatus) -> pb.View:
    return pb.View(
        name=status.name,
        version=status.version,
        source=status.source,
        position=status.position,
        lag_events=status.lag,
        parked_events=status.parked,
    )


def to_parked(view: str, parked: Parked) -> pb.ParkedEvent:
    return pb.ParkedEvent(
        view=view,
        position=parked.event.position,
        type=parked.event.type,
        error=parked.error,
        parked_at=_timestamp(parked.parked_at),
    )


async def _may_hold_personal_data(projector: Projector) -> bool:
    """A view that copies it, and any that has set an event aside: it keeps that as it read it."""
    personal = isinstance(projector.view, PersonalView) and projector.view.personal
    return personal or await projector.parked_count() > 0


def _timestamp(at: Any) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def _page_size(requested: int) -> int:
    if not 0 <= requested <= PAGE_EVENTS_MAX:
        raise InvalidField("page_size", f"must be 0 to {PAGE_EVENTS_MAX}, got {requested}")
    return requested or PAGE_EVENTS_DEFAULT


def _check(field: str, value: str, require: Callable[[str, str], None]) -> None:
    try:
        require(field, value)
    except ValueError as error:
        raise InvalidField(field, str(error)) from error
    if not value:
        raise InvalidField(field, "must not be empty")


def _after(position: int, field: str = "after_position") -> int:
    if position < 0:
        raise InvalidField(field, f"must be 0 or more, got {position}")
    return position


def _within(bytes_max: int, events: Iterable[StoredEvent]) -> Iterator[StoredEvent]:
    """The first events, until they hold so much data; at least one."""
    for event in events:
        yield event
        bytes_max -= len(event.data)
        if bytes_max <= 0:
            return


def _filter(requested: pb.EventFilter) -> Filter:
    for type_name in requested.types:
        _check("filter.types", type_name, require_token)
    _check("filter.tenant", requested.tenant or "-", require_token)
    _check("filter.aggregate", requested.aggregate or "-", require_token)
    _check("filter.correlation_id", requested.correlation_id or "-", require_text)
    since = _moment("filter.since", requested.since) if requested.HasField("since") else None
    until = _moment("filter.until", requested.until) if requested.HasField("until") else None
    if since is not None and until is not None and since >= until:
        raise InvalidField("filter.until", f"must be after filter.since {since.isoformat()}, got {until.isoformat()}")
    return Filter(
        types=frozenset(requested.types) or None,
        tenant=requested.tenant or None,
        aggregate=requested.aggregate or None,
        correlation=requested.correlation_id or None,
        stream=_stream("filter.stream", requested.stream) if requested.stream else None,
        since=since,
        until=until,
    )


def _moment(field: str, requested: Timestamp) -> datetime:
    try:
        return requested.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidField(field, f"must be a moment between the years 1 and 9999: {error}") from error


def _stream(field: str, text: str) -> StreamId:
    try:
        return StreamId.parse(text)
    except ValueError as error:
        raise InvalidField(field, f"must be <aggregate>/<id>: {error}") from error


def _status(error: EventLogError) -> tuple[grpc.StatusCode, str]:
    for kind, code, reason in _STATUS:
        if isinstance(error, kind):
            return code, reason
    return grpc.StatusCode.INTERNAL, "INTERNAL"
