"""Protocol v1: every message either side may send, typed. The AsyncAPI document is generated from these classes.

A frame is one JSON object in a text frame. Every frame has `type` and `id`; an answer names the frame it answers in
`ref`. Publications carry channel, offset and epoch: who comes back with the last offset and epoch misses nothing.
"""

import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from ws_gateway.errors import FrameRefused
from ws_gateway.resources import AgentMetrics, LoggedEvent, SystemMetrics

FrameId = Annotated[
    str, Field(min_length=1, max_length=128, description="chosen by the client; answers name it in ref")
]
Text = Annotated[str, Field(min_length=1, max_length=32_768)]


class Incoming(BaseModel):
    """Unknown fields are refused: a misspelt word must not be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: FrameId


class Auth(Incoming):
    """The first message, unless the handshake carried a header Authorization or X-API-Key."""

    type: Literal["auth"]
    token: str = Field(min_length=1, max_length=8_192, description="an API key or a token; never in a query string")


class CreateStream(Incoming):
    """Opens a conversation with an agent."""

    type: Literal["create_stream"]
    agent: str = Field(min_length=1, max_length=200, description="name, name@version or digest of a definition")


class StreamChat(Incoming):
    """A turn of a conversation; its answer comes as tokens."""

    type: Literal["stream_chat"]
    stream_id: str = Field(min_length=1, max_length=128)
    message: Text


class Subscribe(Incoming):
    """Follow a channel: events:<service>, run:<run id> or monitoring. With offset: from there on, without gap."""

    type: Literal["subscribe"]
    channel: str = Field(min_length=1, max_length=200)
    offset: int | None = Field(default=None, ge=0, description="last offset seen; 0 for all that is kept")
    epoch: str = Field(default="", max_length=200, description="epoch that the offset belongs to")


class Unsubscribe(Incoming):
    type: Literal["unsubscribe"]
    channel: str = Field(min_length=1, max_length=200)


class SubscribeMonitoring(Incoming):
    """The same as subscribe with channel monitoring."""

    type: Literal["subscribe_monitoring"]


class GetSystemMetrics(Incoming):
    type: Literal["get_system_metrics"]


class GetAgentMetrics(Incoming):
    type: Literal["get_agent_metrics"]


class ClientLog(Incoming):
    """A line for the log of the gateway."""

    type: Literal["client_log"]
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str = Field(min_length=1, max_length=2_000)


class ButtonClick(Incoming):
    """Counted by name, for the people who improve the page."""

    type: Literal["button_click"]
    button: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")


class LogError(Incoming):
    """An error that happened in the page; kept as an event ClientErrorReported."""

    type: Literal["log_error"]
    message: str = Field(min_length=1, max_length=2_000)
    detail: str = Field(default="", max_length=16_000)


class Ping(Incoming):
    type: Literal["ping"]


class Pong(Incoming):
    """Answers the gateway's ping."""

    type: Literal["pong"]
    ref: str = Field(default="", max_length=128)


INCOMING: Final[tuple[type[Incoming], ...]] = (
    Auth,
    CreateStream,
    StreamChat,
    Subscribe,
    Unsubscribe,
    SubscribeMonitoring,
    GetSystemMetrics,
    GetAgentMetrics,
    ClientLog,
    ButtonClick,
    LogError,
    Ping,
    Pong,
)
AnyIncoming = Annotated[
    Auth
    | CreateStream
    | StreamChat
    | Subscribe
    | Unsubscribe
    | SubscribeMonitoring
    | GetSystemMetrics
    | GetAgentMetrics
    | ClientLog
    | ButtonClick
    | LogError
    | Ping
    | Pong,
    Field(discriminator="type"),
]


class Outgoing(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str = Field(description="unique within the connection; of publications: channel and offset")
    ref: str = Field(default="", description="id of the frame that this one answers; empty for none")


class Authenticated(Outgoing):
    type: Literal["authenticated"] = "authenticated"
    session_id: str
    principal_id: str
    tenant_id: str
    heartbeat_s: float


class StreamCreated(Outgoing):
    type: Literal["stream_created"] = "stream_created"
    stream_id: str
    agent: str


class ChatResponseStart(Outgoing):
    type: Literal["chat_response_start"] = "chat_response_start"
    stream_id: str
    run_id: str


class ChatResponseToken(Outgoing):
    """A piece of the answer as it is produced. Pieces may be missing; chat_response_complete has the whole."""

    type: Literal["chat_response_token"] = "chat_response_token"
    stream_id: str
    run_id: str
    sequence: int
    text: str


class ChatResponseComplete(Outgoing):
    type: Literal["chat_response_complete"] = "chat_response_complete"
    stream_id: str
    run_id: str
    text: str
    model_calls: int
    tool_calls: int


class StreamError(Outgoing):
    """A turn that came to no answer."""

    type: Literal["stream_error"] = "stream_error"
    stream_id: str
    run_id: str = ""
    code: str
    message: str


class Publication(Outgoing):
    """An event of a service's log. offset is its position."""

    type: Literal["publication"] = "publication"
    channel: str
    offset: int
    epoch: str
    event: LoggedEvent


class AgentEvent(Outgoing):
    """Something that happened in a run that is followed, or in a run below it."""

    type: Literal["agent_event"] = "agent_event"
    channel: str
    offset: int
    epoch: str
    run_id: str
    agent: str
    event: str
    summary: str
    at: datetime | None
    data: dict[str, JsonValue]


class RunToken(Outgoing):
    """A token of a run that is followed; it has no offset and is not repeated."""

    type: Literal["run_token"] = "run_token"
    channel: str
    run_id: str
    agent: str
    sequence: int
    text: str


class Subscribed(Outgoing):
    """recovered: all after the offset that was asked for is in publications or follows. If false, reload by REST."""

    type: Literal["subscribed"] = "subscribed"
    channel: str
    recovered: bool
    offset: int
    epoch: str
    publications: tuple[Publication, ...] = ()


class Unsubscribed(Outgoing):
    """code is UNSUBSCRIBED when the client asked, RUN_ENDED, HISTORY_LOST or the reason of a refusal otherwise."""

    type: Literal["unsubscribed"] = "unsubscribed"
    channel: str
    code: str
    message: str = ""


class SystemMetricsFrame(Outgoing):
    type: Literal["system_metrics"] = "system_metrics"
    metrics: SystemMetrics


class AgentMetricsFrame(Outgoing):
    type: Literal["agent_metrics"] = "agent_metrics"
    metrics: AgentMetrics


class MonitoringUpdate(Outgoing):
    type: Literal["monitoring_update"] = "monitoring_update"
    channel: Literal["monitoring"] = "monitoring"
    metrics: SystemMetrics


class Acknowledged(Outgoing):
    type: Literal["acknowledged"] = "acknowledged"


class ServerPing(Outgoing):
    """Every heartbeat; who has heard nothing for three heartbeats should connect anew."""

    type: Literal["ping"] = "ping"


class ServerPong(Outgoing):
    type: Literal["pong"] = "pong"


class ErrorFrame(Outgoing):
    """What was wrong with the frame named in ref, in which field, and what to do."""

    type: Literal["system_error"] = "system_error"
    code: str
    message: str
    field: str = ""


OUTGOING: Final[tuple[type[Outgoing], ...]] = (
    Authenticated,
    StreamCreated,
    ChatResponseStart,
    ChatResponseToken,
    ChatResponseComplete,
    StreamError,
    Publication,
    AgentEvent,
    RunToken,
    Subscribed,
    Unsubscribed,
    SystemMetricsFrame,
    AgentMetricsFrame,
    MonitoringUpdate,
    Acknowledged,
    ServerPing,
    ServerPong,
    ErrorFrame,
)

_INCOMING: Final[TypeAdapter[AnyIncoming]] = TypeAdapter(AnyIncoming)
TYPES: Final = tuple(str(model.model_fields["type"].annotation.__args__[0]) for model in INCOMING)  # type: ignore[union-attr]


def read(frame: str | bytes, bytes_max: int) -> AnyIncoming:
    """The message in a frame. Raises FrameRefused saying what is wrong and what would be right."""
    raw = _bytes(frame, bytes_max)
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise FrameRefused(
            "MALFORMED_JSON", f"the frame is not JSON ({error}); send one JSON object per text frame"
        ) from None
    if not isinstance(document, dict):
        raise FrameRefused("NOT_AN_OBJECT", 'the frame is JSON but no object; send {"type": ..., "id": ...}')
    return _validated(document)


def write(message: Outgoing) -> bytes:
    return message.model_dump_json().encode()


def _bytes(frame: str | bytes, bytes_max: int) -> bytes:
    if isinstance(frame, bytes):
        raise FrameRefused("NOT_TEXT", "the frame is binary; send JSON in a text frame")
    raw = frame.encode("utf-8", "surrogatepass")
    if len(raw) > bytes_max:
        raise FrameRefused(
            "FRAME_TOO_LARGE", f"the frame has {len(raw)} bytes, at most {bytes_max} are read; send less in one frame"
        )
    return raw


def _validated(document: dict[str, JsonValue]) -> AnyIncoming:
    ref = document["id"][:128] if isinstance(document.get("id"), str) else ""  # type: ignore[index]
    kind = document.get("type")
    if kind not in TYPES:
        raise FrameRefused("UNKNOWN_TYPE", _unknown_type(kind), "type", str(ref))
    try:
        return _INCOMING.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        text = f"field '{field}' of {kind}: {first['msg'].lower()}; see {kind} in /asyncapi.json"
        raise FrameRefused("INVALID_FIELD", text, field, str(ref)) from None


def _unknown_type(kind: JsonValue) -> str:
    if not isinstance(kind, str):
        return f"field 'type' is missing or no text; it must be one of {', '.join(TYPES)}"
    near: Sequence[str] = difflib.get_close_matches(kind, TYPES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it must be one of {', '.join(TYPES)}"
    return f"type '{kind[:80]}' is unknown; {hint}"
