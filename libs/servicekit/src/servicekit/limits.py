"""Every limit of a service process, named with its unit. Override one by SYNOD_LIMITS__<NAME>."""

from eventlog.patience import ANSWER_TIMEOUT_S
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    startup_s: PositiveFloat = 60
    """How long a start waits for PostgreSQL and for NATS before it gives up and says what is missing."""
    peers_wait_s: PositiveFloat = 10
    """How long a start waits for its peers before it goes on without them, degraded."""
    probe_s: PositiveFloat = 3
    """How long one attempt to reach one of them may take."""

    rpc_default_s: PositiveFloat = 30
    """Deadline of a unary call whose client sent none."""
    rpc_max_s: PositiveFloat = 300
    """The longest deadline a unary call may have. Streams end by their client."""
    rpc_concurrent_max: PositiveInt = 10_000
    """Calls and open streams at once; further ones are refused with RESOURCE_EXHAUSTED."""
    connection_age_s: PositiveFloat = 120
    """A connection to this server is renewed when it is so old, a tenth more or less. No call is ended by that."""
    message_bytes_max: PositiveInt = 16 * 1024 * 1024 + 64 * 1024
    """The largest gRPC message, in and out: a file of 16 MiB and what is said about it."""
    tokens_cached_max: PositiveInt = 4096
    """Verified bearer tokens kept, so that a signature is checked once and not per call."""

    peer_deadline_s: PositiveFloat = 10
    """Deadline of a call to a peer when neither the caller nor the current call sets a shorter one."""
    peer_attempts_max: PositiveInt = 4
    """Attempts of an idempotent call to a peer that answers UNAVAILABLE."""
    peer_connect_s: PositiveFloat = 2
    """How long a call waits for a peer of which no replica can be reached, before it fails; one may be on its way."""
    peer_ping_s: PositiveFloat = 10
    """A connection to a peer that is silent for so long is asked for a sign of life; half of it is what a server allows."""
    peer_pong_s: PositiveFloat = 3
    """How long the sign of life may take, and how long what was sent may go unacknowledged; then the replica is left out."""
    peer_lookup_s: PositiveFloat = 1
    """The shortest time between two look-ups of a peer's addresses."""

    postgres_connections_max: PositiveInt = 10
    postgres_answer_s: PositiveFloat = ANSWER_TIMEOUT_S
    """How long PostgreSQL may take for one statement, of the event log too, before the connection is given up and the call
    fails with UNAVAILABLE. What may take longer (rebuilding and comparing views, archiving, changing tables) has no
    limit."""
    http_body_bytes_max: PositiveInt = 16 * 1024 * 1024
    command_bytes_max: PositiveInt = 1024 * 1024
    """The largest command; NATS itself refuses more than its max_payload (1 MiB by default)."""
    dead_letters_max: PositiveInt = 100_000
    """Dead letters kept per service; at the limit new ones are refused and their commands keep being retried."""
