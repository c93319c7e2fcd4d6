"""Events of llm-gateway. Every accepted call has exactly one terminal event; there are no events per token."""

from typing import ClassVar, Literal

from synod.common.event import Event, Value
from synod.common.values import Attribution, Failure, UsageLine

UsageSource = Literal["provider_final", "provider_partial", "gateway_counted", "reserved_upper_bound", "gateway_cache"]


class ConsideredModel(Value):
    """A model at a deployment that could have answered, and what became of it: "eligible", or why it was left out."""

    model: str
    deployment: str = ""
    verdict: str


class Acceptance(Value):
    """What a call asks for, once it is found valid; where an attempt says so its upper bound is reserved. Content is not in
    the log, its hash is.

    `model` is as the caller names it. `considered` explains the choice where there was one.
    """

    model: str
    request_sha256: str
    input_tokens_max: int
    output_tokens_max: int
    operation: Literal["chat", "embeddings"] = "chat"
    considered: tuple[ConsideredModel, ...] = ()


class ModelCallAccepted(Event):
    """What Acceptance says, as an event of its own. Not written any more: nothing could come between it and the first
    attempt, and it was a third of what is written of a call here.
    """

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    model: str
    attribution: Attribution
    request_sha256: str
    input_tokens_max: int
    output_tokens_max: int
    operation: Literal["chat", "embeddings"] = "chat"
    considered: tuple[ConsideredModel, ...] = ()


class ModelCallAttemptStarted(Event):
    """Appended before the provider is called, so that a crash after it is an unknown outcome, not a free call.

    `worker` is the process that carries the attempt out; empty in events from before there were several. `deployment` is
    the endpoint and key that it goes to, empty for the only one. `accepted` is with the first attempt, and not in events
    from before: those have a ModelCallAccepted before them.
    """

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    attempt: int
    model: str
    provider: str
    reservation_id: str
    attribution: Attribution
    worker: str = ""
    deployment: str = ""
    region: str = ""
    accepted: Acceptance | None = None


class ModelCallAttemptFailed(Event):
    """billed: no = release the reservation; unknown = it stays held until settled or expired."""

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    attempt: int
    model: str
    reservation_id: str
    failure: Failure
    billed: Literal["no", "unknown"]


class ModelCallCompleted(Event):
    """cost-ledger settles the reservation from this event, exactly once.

    `service_tier` is the one to bill where it is not the standard one; a provider may serve another than was asked for.
    """

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    attempt: int
    model: str
    provider: str
    reservation_id: str
    attribution: Attribution
    input_tokens: int
    output_tokens: int
    usage: tuple[UsageLine, ...]
    usage_source: UsageSource
    finish_reason: str
    response_sha256: str
    provider_response_id: str = ""
    duration_ms: int
    first_content_ms: int = 0
    simulated: bool = False
    service_tier: str = ""


class ModelCallServedFromCache(Event):
    """Terminal: answered with what an equal call got before. Nothing was reserved and nothing is charged.

    `source_reservation_id` is the reservation of the call that was paid for: what its settlement came to is what this
    call saves. Tokens and usage are of that call. `accepted` is with a call that was not tried
    before, but for events from before, as with the first attempt.
    """

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    model: str
    attribution: Attribution
    source_reservation_id: str
    input_tokens: int
    output_tokens: int
    usage: tuple[UsageLine, ...]
    finish_reason: str
    response_sha256: str
    # How much alike the two requests are, of 10,000; less only for an answer to a similar request.
    likeness_of_10000: int = 10_000
    simulated: bool = False
    accepted: Acceptance | None = None


class ModelCallFailed(Event):
    """Terminal: no attempt answered."""

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    failure: Failure


class ModelCallCancelled(Event):
    """Terminal: the caller cancelled. What was delivered until then is charged as estimated."""

    AGGREGATE: ClassVar[str] = "model-call"

    request_id: str
    attempt: int
    reservation_id: str
    usage: tuple[UsageLine, ...]
    usage_source: UsageSource


class CircuitOpened(Event):
    """A model at a deployment failed too often, and is left alone by this process for a while.

    `key_id` tells the deployment's key from others and nothing about it; `worker` is the process.
    """

    AGGREGATE: ClassVar[str] = "circuit"

    model: str
    deployment: str = ""
    key_id: str = ""
    worker: str
    open_ms: int


class CircuitHalfOpened(Event):
    """The while is over: one call tries whether it works again."""

    AGGREGATE: ClassVar[str] = "circuit"

    model: str
    deployment: str = ""
    key_id: str = ""
    worker: str


class CircuitClosed(Event):
    """It works again."""

    AGGREGATE: ClassVar[str] = "circuit"

    model: str
    deployment: str = ""
    key_id: str = ""
    worker: str


class RateLimitAdjusted(Event):
    """A provider's headers say that its limit is nearly used up, recovers, or is another one: calls pass at another rate."""

    AGGREGATE: ClassVar[str] = "circuit"

    model: str
    deployment: str = ""
    key_id: str = ""
    worker: str
    meter: Literal["requests", "tokens", "input_tokens", "output_tokens"]
    from_per_min: int
    to_per_min: int
    remaining: int


class ReservationStockOpened(Event):
    """A process is about to reserve for calls to come. `holder` is what it calls itself to cost-ledger."""

    AGGREGATE: ClassVar[str] = "reservation-stock"

    holder: str


class ReservationsReturned(Event):
    """No call has used these in time, and none will: cost-ledger releases them."""

    AGGREGATE: ClassVar[str] = "reservation-stock"

    holder: str
    reservation_ids: tuple[str, ...]


class ReservationStockClosed(Event):
    """The holder has stopped or died, and what its calls used has been told before: cost-ledger releases all else of it."""

    AGGREGATE: ClassVar[str] = "reservation-stock"

    holder: str


EVENTS: tuple[type[Event], ...] = (
    ModelCallAccepted,
    ModelCallAttemptStarted,
    ModelCallAttemptFailed,
    ModelCallCompleted,
    ModelCallServedFromCache,
    ModelCallFailed,
    ModelCallCancelled,
    CircuitOpened,
    CircuitHalfOpened,
    CircuitClosed,
    RateLimitAdjusted,
    ReservationStockOpened,
    ReservationsReturned,
    ReservationStockClosed,
)
