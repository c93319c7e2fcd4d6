"""Settings of ws-gateway, read once from the environment."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from servicekit.settings import ServiceSettings

KIB, MIB = 1024, 1024 * 1024


class EdgeLimits(BaseModel):
    """Every limit of the edge, named with its unit. Override one by SYNOD_EDGE__<NAME>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes_max: PositiveInt = MIB
    """The largest body of an HTTP request."""
    model_body_bytes_max: PositiveInt = 16 * MIB
    """The largest body under /v1, where a conversation may hold images and files; no more fits into a gRPC message."""
    model_call_s: PositiveFloat = 600
    """How long a call of a model under /v1 may take; the SDKs wait as long."""
    connections_max: PositiveInt = 10_000
    """WebSocket connections at once; a further one is closed with 4429."""
    frame_bytes_max: PositiveInt = 64 * KIB
    """The largest frame that is read; a larger one is answered with an error."""
    frame_bytes_fatal: PositiveInt = MIB
    """A frame larger than this is not even received: the connection is closed with 1009."""
    violations_max: PositiveInt = 10
    """Frames that break the protocol before the connection is closed with 4400."""
    auth_wait_s: PositiveFloat = 10
    """How long a connection may wait before it says who it is; then it is closed with 4401."""
    heartbeat_s: PositiveFloat = 10
    pong_wait_s: PositiveFloat = 20
    """How long a client may leave a ping of the WebSocket protocol itself unanswered; then it is taken for dead."""
    monitoring_s: PositiveFloat = 3
    """Between two updates of the channel monitoring."""
    channels_max: PositiveInt = 64
    """Channels a connection may follow at once."""
    chats_max: PositiveInt = 8
    """Turns a connection may have running at once."""
    outbox_frames_max: PositiveInt = 2_000
    outbox_bytes_max: PositiveInt = 8 * MIB
    """What may wait for a client that reads slowly."""
    recovery_positions_max: PositiveInt = 20_000
    """How far behind a subscription may be and still be brought up to date; further back, read the log by REST."""
    recovery_events_max: PositiveInt = 1_000
    recovery_bytes_max: PositiveInt = 4 * MIB
    """What a subscription is given at once when it comes back; it must fit into the outbox."""
    keys_cached_max: PositiveInt = 4_096
    sse_keepalive_s: PositiveFloat = 15


class Settings(ServiceSettings):
    service: str = "ws-gateway"
    grpc_port: int = 7107
    http_port: int = 7207
    edge_host: str = "127.0.0.1"
    edge_port: int = Field(default=8080, ge=0, le=65535)
    edge_tls_certificate_file: Path | None = None
    """Certificate chain (PEM) that the edge shows; with the key below the edge speaks TLS, without both HTTP."""
    edge_tls_key_file: Path | None = None
    edge_origins: tuple[str, ...] = ()
    """Origins of pages that may open a WebSocket, besides those of this machine, such as https://synod.example.org."""
    edge: EdgeLimits = EdgeLimits()
