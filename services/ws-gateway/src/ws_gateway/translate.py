"""Between protobuf, stored events and what the edge shows: the only file that knows all of them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

import orjson
from eventlog.records import StoredEvent
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from servicekit.errors import ErrorMap, FailedPrecondition, InvalidArgument, NotFound
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.ws_gateway.v1 import ws_gateway_pb2 as pb

from ws_gateway import errors
from ws_gateway.projections import SessionRow
from ws_gateway.resources import LoggedEvent, Resource, Scope

R = TypeVar("R", bound=Resource)
N = TypeVar("N", bound=int)

ERRORS = (
    ErrorMap()
    .add(errors.SessionUnknown, lambda error: NotFound("session", error.session_id, remedy="see ListSessions"))
    .add(errors.ChannelRefused, lambda error: InvalidArgument(error.field, "", error.message, reason=error.code))
    .add(errors.HistoryLost, lambda error: FailedPrecondition(error.message, reason="HISTORY_LOST"))
)

RUN_STATES = {name.removeprefix("RUN_STATE_").lower(): value for name, value in runtime_pb.RunState.items()}
PROPOSAL_STATES = {
    name.removeprefix("PROPOSAL_STATE_").lower(): value for name, value in consensus_pb.ProposalState.items()
}


def to_resource(kind: type[R], message: Message, **more: object) -> R:
    """The resource that a protobuf message describes; field names are the same on both sides."""
    # Protobuf's JSON form writes 64-bit integers as text and times as RFC 3339; the models read both.
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return kind.model_validate(fields | more)


def from_logged(event: log_pb.Event) -> LoggedEvent:
    return LoggedEvent(
        position=event.position,
        stream=event.stream,
        version=event.version,
        id=event.id,
        type=event.type,
        type_version=event.type_version,
        occurred_at=event.occurred_at.ToDatetime(UTC),
        recorded_at=event.recorded_at.ToDatetime(UTC),
        causation_id=event.causation_id,
        correlation_id=event.correlation_id,
        actor=event.actor,
        data=orjson.loads(event.data),
        hash=event.hash.hex(),
    )


def from_stored(event: StoredEvent) -> LoggedEvent:
    return LoggedEvent(
        position=event.position,
        stream=str(event.stream),
        version=event.version,
        id=str(event.id),
        type=event.type,
        type_version=event.type_version,
        occurred_at=event.occurred_at,
        recorded_at=event.recorded_at,
        causation_id=str(event.causation or ""),
        correlation_id=event.correlation,
        actor=event.actor,
        data=orjson.loads(event.data),
        hash=event.hash.hex(),
    )


def to_attribution(scope: Scope, tags: Mapping[str, str] | None = None) -> ledger_pb.Attribution:
    return ledger_pb.Attribution(**scope.model_dump(), tags=tags)


def to_state(field: str, name: str, known: Mapping[str, N]) -> N:
    """The number of a state's word; "" for any. Raises InvalidArgument naming the words there are."""
    if name and name not in known:
        words = ", ".join(word for word in known if word != "unspecified")
        raise InvalidArgument(field, name, f"must be one of {words}")
    return known[name or "unspecified"]


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def from_session(row: SessionRow, channels: tuple[str, ...], frames_sent: int, frames_dropped: int) -> pb.Session:
    return pb.Session(
        id=row.id,
        tenant_id=row.tenant,
        principal_id=row.principal_id,
        transport=row.transport,
        channels=channels,
        frames_sent=frames_sent,
        frames_dropped=frames_dropped,
        connected_at=to_timestamp(row.connected_at),
        closed_at=to_timestamp(row.closed_at),
    )
