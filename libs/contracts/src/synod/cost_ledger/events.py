"""Events of cost-ledger. Amounts are nano-USD; the postings of every event sum to zero."""

from datetime import datetime
from typing import ClassVar, Literal

from synod.common.event import Event, Value
from synod.common.values import Attribution, UsageLine

Window = Literal["lifetime", "day", "month"]

# Where a price came from. "book_fuzzy": the book knows the model only by a prefix or pattern. "fixed": an amount was
# given, not tokens. "unpriced": nobody knows the price; tokens are recorded at 0 until it is re-rated.
PriceSource = Literal["book", "book_fuzzy", "override", "fixed", "unpriced"]


class Posting(Value):
    """One side of an entry: a debit is positive, a credit negative."""

    account: str
    amount_nano_usd: int


class UnitRate(Value):
    """Pico-USD for one token of a unit such as "input", "cache_read" or "output_audio".

    It holds for calls with more input tokens than `above_input_tokens`, and then for all of their tokens (a cliff).
    """

    unit: str
    pico_usd: int
    above_input_tokens: int = 0


class Hold(Value):
    """A budget and the window of it, such as "2026-11" or "lifetime", that a cost counts against."""

    budget_id: str
    window_start: str


class BudgetSet(Event):
    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    scope: Attribution
    limit_nano_usd: int
    hard: bool
    window: Window


class PriceSet(Event):
    """A tenant's price of a model, pico-USD per token, in force from the event on."""

    AGGREGATE: ClassVar[str] = "book"

    provider: str
    model: str
    input_pico_usd: int
    output_pico_usd: int
    cache_read_pico_usd: int
    cache_write_pico_usd: int


class CostReserved(Event):
    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    request_sha256: str
    attribution: Attribution
    model: str
    amount_nano_usd: int
    price_version: str
    price_source: PriceSource
    # Pinned at reservation, so that a settlement needs no price book of its day.
    rates: tuple[UnitRate, ...]
    holds: tuple[Hold, ...]
    reserved_at: datetime
    expires_at: datetime
    postings: tuple[Posting, ...]


class ReservationDenied(Event):
    """Recorded, so that a refusal can be explained later."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    attribution: Attribution
    model: str
    budget_id: str
    required_nano_usd: int
    available_nano_usd: int


class CostSettled(Event):
    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    attribution: Attribution
    model: str
    amount_nano_usd: int
    # Before rounding.
    amount_pico_usd: int
    reserved_nano_usd: int
    # How far the amount exceeds the reservation; what is spent is recorded all the same.
    overrun_nano_usd: int
    price_version: str
    price_source: PriceSource
    holds: tuple[Hold, ...]
    # When it was reserved, or used if nothing was: the cost belongs to the windows of this moment.
    incurred_at: datetime
    usage: tuple[UsageLine, ...]
    usage_source: str
    # True when it came after the hold had moved to suspense.
    late: bool = False
    # Position in the source's log when an event settled it, 0 when a call did.
    source_position: int = 0
    postings: tuple[Posting, ...]


class ReservationReleased(Event):
    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    reason: str
    postings: tuple[Posting, ...]


class ReservationExpired(Event):
    """The outcome is unknown: the amount moves to suspense and stays held."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    amount_nano_usd: int
    postings: tuple[Posting, ...]


class CostCharged(Event):
    """A cost without a reservation of its own, such as a tool's."""

    AGGREGATE: ClassVar[str] = "book"

    charge_id: str
    attribution: Attribution
    amount_nano_usd: int
    holds: tuple[Hold, ...]
    incurred_at: datetime
    # Position in the source's log of the event that brought the cost.
    source_position: int = 0
    postings: tuple[Posting, ...]


class BudgetThresholdReached(Event):
    """What is posted reached a share of the limit. Once for each budget, window and threshold."""

    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    window_start: str
    threshold_percent: int
    posted_nano_usd: int
    pending_nano_usd: int
    limit_nano_usd: int


EVENTS: tuple[type[Event], ...] = (
    BudgetSet,
    PriceSet,
    CostReserved,
    ReservationDenied,
    CostSettled,
    ReservationReleased,
    ReservationExpired,
    CostCharged,
    BudgetThresholdReached,
)
