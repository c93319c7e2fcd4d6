"""Events of cost-ledger. Amounts are nano-USD; the postings of every event sum to zero."""

from datetime import date, datetime
from typing import ClassVar, Literal

from synod.common.event import Event, Value
from synod.common.values import Attribution, UsageLine

# Calendar windows are of the budget's time zone; "rolling" is the time just gone, `rolling_s` long.
Window = Literal["lifetime", "day", "month", "hour", "week", "year", "rolling"]

# What a budget limits. All but money are quotas: they refuse, alert and settle in the same way.
Unit = Literal["nano_usd", "calls", "tokens", "input_tokens", "output_tokens", "tool_ms", "cpu_ms"]

# Where a price came from. "book_fuzzy": the book knows the model only by a prefix or pattern, or has no price for the
# terms that were billed, so that those reserved count. "fixed": an amount was
# given, not tokens. "unpriced": nobody knows the price; tokens are recorded at 0 until it is re-rated.
PriceSource = Literal["book", "book_fuzzy", "override", "fixed", "unpriced"]


class Posting(Value):
    """One side of an entry: a debit is positive, a credit negative."""

    account: str
    amount_nano_usd: int


class UnitRate(Value):
    """Pico-USD for `per` of a unit: tokens such as "input", "cache_read" or "output_audio", or "web_searches" and others.

    It holds for calls with more input tokens than `above_input_tokens`, and then for all of their tokens (a cliff).
    """

    unit: str
    pico_usd: int
    above_input_tokens: int = 0
    # 1, but where a price for one would not be a whole number of pico-USD.
    per: int = 1


class Hold(Value):
    """A budget and the window of it, such as "2026-11" or "lifetime", that a cost counts against."""

    budget_id: str
    window_start: str
    # Whose part it is of a budget that gives each conversation, user or agent a limit of its own.
    share: str = ""


class Quantity(Value):
    """So much of what quotas limit."""

    unit: Unit
    quantity: int


class QuotaPosting(Value):
    """One side of an entry that is not money. Those of an event sum to zero for each unit."""

    account: str
    unit: Unit
    quantity: int


class BudgetSet(Event):
    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    scope: Attribution
    limit_nano_usd: int
    hard: bool
    window: Window
    # IANA name; hours, days, weeks, months and years begin by its clock.
    time_zone: str = "UTC"
    # Length of a rolling window, 0 for the others.
    rolling_s: int = 0
    # Name of an attribution of which every value has the whole limit for itself, such as "conversation_id".
    per: str = ""
    # A quota's limit is limit_quantity, and limit_nano_usd is 0.
    unit: Unit = "nano_usd"
    limit_quantity: int = 0


class BudgetSuspended(Event):
    """The budget refuses every new reservation from the event on, whatever its limit; what is held is not touched."""

    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    # Never empty.
    reason: str


class BudgetResumed(Event):
    """The budget decides by its limit again."""

    AGGREGATE: ClassVar[str] = "book"

    budget_id: str


class PriceSet(Event):
    """A tenant's price of a model, pico-USD per token, in force from the event on."""

    AGGREGATE: ClassVar[str] = "book"

    provider: str
    model: str
    input_pico_usd: int
    output_pico_usd: int
    cache_read_pico_usd: int
    cache_write_pico_usd: int
    # Of other units, and of context tiers.
    rates: tuple[UnitRate, ...] = ()
    # None where it was not recorded. A re-rating leaves costs from before as they are, but those without a sure price.
    set_at: datetime | None = None


class PriceFactorSet(Event):
    """A tenant pays so many millionths of the price book's rates, from the event on, for what it has no price of its own."""

    AGGREGATE: ClassVar[str] = "book"

    provider: str
    # Empty: all models of the provider that have no factor of their own.
    model: str
    # 900,000 with a discount of 10 %; 1,000,000 is the book's price again.
    factor_ppm: int
    # As that of PriceSet.
    set_at: datetime | None = None


class FuzzyPriceUsed(Event):
    """A model's cost is priced by a guess: the price book knows its name by a prefix or pattern only, or no such terms.

    Once for each model and price version.
    """

    AGGREGATE: ClassVar[str] = "book"

    # "provider/model", as it is billed.
    model: str
    price_version: str
    # The model of the price book whose price it is: itself, on other terms, if those billed have no price.
    priced_as: str


class PriceBookImported(Event):
    """A price book came into use. Reservations pin `price_version`, so that what they were priced by can be proved."""

    AGGREGATE: ClassVar[str] = "price-book"

    price_version: str
    source: str
    source_version: str
    # Of the rates as they are computed with: models, terms, effective dates.
    sha256: str
    models: int
    # The newest day (UTC) that one of its prices begins on, None if none has a day.
    newest_effective_from: date | None


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
    quantities: tuple[Quantity, ...] = ()
    quota_postings: tuple[QuotaPosting, ...] = ()
    # Such as "processing=batch": the terms that the rates are of.
    price_context: str = ""
    # Who asked for it ahead of the call that will use it; empty when that call did.
    holder: str = ""


class ReservationDenied(Event):
    """Recorded, so that a refusal can be explained later."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    attribution: Attribution
    model: str
    budget_id: str
    required_nano_usd: int
    available_nano_usd: int
    # Of a quota, in its unit; the amounts above are then 0.
    unit: Unit = "nano_usd"
    required_quantity: int = 0
    available_quantity: int = 0
    window_start: str = ""
    share: str = ""
    # Why the budget is suspended, if that is why it refused; whatever the amounts are.
    suspended_for: str = ""


class ReservationRenewed(Event):
    """Whoever holds it is still at work: it expires later."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    expires_at: datetime


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
    quantities: tuple[Quantity, ...] = ()
    quota_postings: tuple[QuotaPosting, ...] = ()
    price_context: str = ""
    # How far what was used exceeds what was held of a quota's unit.
    quota_overruns: tuple[Quantity, ...] = ()


class ReservationReleased(Event):
    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    reason: str
    postings: tuple[Posting, ...]
    quota_postings: tuple[QuotaPosting, ...] = ()


class ReservationExpired(Event):
    """The outcome is unknown: the amount moves to suspense and stays held."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    amount_nano_usd: int
    postings: tuple[Posting, ...]
    quota_postings: tuple[QuotaPosting, ...] = ()


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
    quantities: tuple[Quantity, ...] = ()
    quota_postings: tuple[QuotaPosting, ...] = ()


class ChargeRerated(Event):
    """A settled cost was priced anew. The correction is posted to the windows of the cost; nothing is rewritten."""

    AGGREGATE: ClassVar[str] = "book"

    reservation_id: str
    # 1 for the first correction of this cost, and so on.
    revision: int
    attribution: Attribution
    model: str
    before_nano_usd: int
    after_nano_usd: int
    # Before rounding.
    after_pico_usd: int
    price_version: str
    price_source: PriceSource
    holds: tuple[Hold, ...]
    incurred_at: datetime
    reason: str
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
    share: str = ""
    # Of a quota, in its unit; the amounts above are then 0.
    unit: Unit = "nano_usd"
    posted_quantity: int = 0
    pending_quantity: int = 0
    limit_quantity: int = 0


class BudgetCommitmentReached(Event):
    """What is posted and held together reached a share of the limit. Once for each budget, window, share and threshold."""

    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    window_start: str
    share: str
    threshold_percent: int
    unit: Unit
    # In the unit.
    posted: int
    pending: int
    limit: int


class BudgetForecastChanged(Event):
    """A budget that would have lasted will not, or the other way round. Amounts are nano-USD or the quota's unit."""

    AGGREGATE: ClassVar[str] = "book"

    budget_id: str
    window_start: str
    # 1 for the first in the window.
    revision: int
    runs_out: bool
    # When half of the courses of spending, and when one in ten, have used up the budget; None if not in the window.
    exhausted_p50: datetime | None
    exhausted_p10: datetime | None
    posted: int
    limit: int
    made_at: datetime


class InvoicedLine(Value):
    """What an invoice bills a model for a time, half open, and how much of it is posted as an adjustment.

    A negative amount is a credit: it is owed less, whatever else is billed for the time.
    """

    # Empty: all models of the provider.
    model: str
    since: datetime
    until: datetime
    invoiced_nano_usd: int
    adjusted_nano_usd: int


class ProviderInvoiceImported(Event):
    """What a provider says that a period cost, beside what the ledger has."""

    AGGREGATE: ClassVar[str] = "book"

    invoice_id: str
    provider: str
    content_sha256: str
    lines: int
    invoiced_nano_usd: int
    ledger_nano_usd: int
    # Empty where it was not recorded.
    billed: tuple[InvoicedLine, ...] = ()
    # The invoice that it corrects, which is no longer in force; empty for none.
    replaces: str = ""


class ReconciliationDifferenceFound(Event):
    """An invoice's line is not what the ledger has. The difference is posted, so that what is payable is the invoice's.

    A line that a correction leaves out has the number after its last, and nothing invoiced.
    """

    AGGREGATE: ClassVar[str] = "book"

    invoice_id: str
    line: int
    provider: str
    # Empty: of all models together.
    model: str
    # Half open.
    since: datetime
    until: datetime
    invoiced_nano_usd: int
    ledger_nano_usd: int
    postings: tuple[Posting, ...]
    # What the replaced invoice had posted for the same: the posting is what is invoiced less the ledger and less this.
    adjusted_nano_usd: int = 0


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
    ReservationRenewed,
    ChargeRerated,
    BudgetCommitmentReached,
    BudgetForecastChanged,
    ProviderInvoiceImported,
    ReconciliationDifferenceFound,
    PriceFactorSet,
    PriceBookImported,
    BudgetSuspended,
    BudgetResumed,
    FuzzyPriceUsed,
)
