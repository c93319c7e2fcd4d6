"""What the book may be asked to do. Values only; whatever time or price a decision needs comes with the command."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Hold, PriceSource, Quantity, Unit, Window

from cost_ledger.rates import RateCard

if TYPE_CHECKING:
    from cost_ledger.book import Reservation  # a book names commands

OVERRIDE: Final = "override"
"""Source and version of a price that the tenant set: it is in the log, not in a price book."""

BY_INVOICE: Final = "invoice"
"""Source of a usage that only the provider's invoice tells."""


CLEARING_EVENTS_MAX: Final = 256
"""What one command may say of holds in suspense, thresholds included, unless a single hold has more to it."""

COST_NANO_MAX: Final = 10**15
"""What one call, tool or charge may come to: a million US dollars. Whatever is above is a mistake, in a price or a count."""

QUANTITY_MAX: Final = 10**15
"""So much of a quota's unit one call may use."""

STOCK_MAX: Final = 400
"""Reservations that one command about a stock frees: a batch that it ends is still one request to the log."""


@dataclass(frozen=True, slots=True)
class Price:
    """What the price book says of a model at a moment; `source` is unpriced when it knows none, with names `near`.

    Of source book_fuzzy, `near` is the model whose price it is.
    """

    rates: RateCard
    version: str
    source: PriceSource
    near: tuple[str, ...] = ()
    is_apart: bool = False
    """Whether the book lists this dated snapshot by its very name, and not at the rates of its model."""


@dataclass(frozen=True, slots=True)
class SetBudget:
    budget_id: str
    scope: Attribution
    limit: int
    hard: bool
    window: Window
    at: datetime
    time_zone: str = "UTC"
    rolling_s: int = 0
    per: str = ""
    unit: Unit = "nano_usd"


@dataclass(frozen=True, slots=True)
class SuspendBudget:
    """Refuse what matches the budget from now on; `reason` is told to whoever is refused."""

    budget_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ResumeBudget:
    """Let the budget decide by its limit again."""

    budget_id: str


@dataclass(frozen=True, slots=True)
class SetPrice:
    """Pico-USD per token."""

    provider: str
    model: str
    input_pico: int
    output_pico: int
    cache_read_pico: int
    cache_write_pico: int
    more: RateCard = ()
    """Of other units, and of context tiers."""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SetPriceFactor:
    """Without a model: of all models of the provider that have none of their own."""

    provider: str
    model: str
    factor_ppm: int
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reserve:
    """At most so many tokens of `model`, priced by `book_price` unless the tenant has its own; or at most `fixed`.

    Without a model only a fixed amount can be held, and only an amount can settle it.
    """

    reservation_id: str
    request_sha256: str
    attribution: Attribution
    model: str
    input_tokens_max: int
    output_tokens_max: int
    fixed: int | None
    book_price: Price
    at: datetime
    expires_at: datetime
    quantities: tuple[Quantity, ...] = ()
    """Upper bounds of what quotas limit; tokens and the call itself are added."""
    price_context: str = ""
    modalities: frozenset[str] = frozenset()
    """What it may contain besides text."""
    holder: str = ""
    """Who asks for it ahead of the call that will use it; empty when that call does."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Let a hold live until `expires_at`, if it would not anyway."""

    reservation_id: str
    at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Unreserved:
    """What is needed to record a use that this book never admitted."""

    attribution: Attribution
    model: str
    book_price: Price
    used_at: datetime


@dataclass(frozen=True, slots=True)
class Settle:
    """What was used: `usage`, or `amount` if it is not None. With `unreserved` it is recorded even without a hold."""

    reservation_id: str
    usage: tuple[UsageLine, ...]
    amount: int | None
    usage_source: str
    at: datetime
    source_position: int = 0
    unreserved: Unreserved | None = None
    quantities: tuple[Quantity, ...] = ()
    """What was used of what quotas limit; a unit that neither they nor the usage tell is taken as reserved."""
    billed: Price | None = None
    """The rates of the terms that were billed, where those differ from the reserved ones; not for a tenant's own price."""
    price_context: str | None = None
    """The terms that were billed; None if as reserved."""
    forgotten: Reservation | None = None
    """What was released so long ago that the book may know it no more."""


@dataclass(frozen=True, slots=True)
class Release:
    reservation_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Move a hold whose time is over to suspense."""

    reservation_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Doubt:
    """Move a hold to suspense before its time is over: its holder says that nobody knows the outcome."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class ReturnStock:
    """Free what `holder` reserved ahead and no call has used: of the ids, at most STOCK_MAX, those that are its own."""

    holder: str
    reservation_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseStock:
    """Free what `holder` reserved ahead and still holds, STOCK_MAX of it at a time: repeat it until it has no events.

    What is in suspense stays there: of that an attempt has told, with an outcome that nobody knows.
    """

    holder: str


@dataclass(frozen=True, slots=True)
class Charge:
    """A cost without a reservation, or what settles the reservation of the same id. `charge_id` is its idempotency key."""

    charge_id: str
    attribution: Attribution
    amount: int
    incurred_at: datetime
    source_position: int
    quantities: tuple[Quantity, ...] = ()
    at: datetime | None = None
    """When it is recorded, if that is not when it was incurred."""


@dataclass(frozen=True, slots=True)
class Rerate:
    """Price a settled cost anew. `revision` counts its corrections; of two with the same one the log takes the first."""

    reservation_id: str
    revision: int
    attribution: Attribution
    model: str
    before: int
    after_pico: int
    price: Price
    holds: tuple[Hold, ...]
    incurred_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What a provider wants for a time, half open, and what the ledger has for it. Nano-USD. No model: all of them.

    A negative amount is a credit: it is compared with nothing, so `ledger` is 0.
    """

    model: str
    since: datetime
    until: datetime
    invoiced: int
    ledger: int
    adjusted: int = 0
    """What the replaced invoice had posted for the same model and time."""

    @property
    def is_credit(self) -> bool:
        return self.invoiced < 0

    @property
    def difference(self) -> int:
        """What is to be posted."""
        return self.invoiced - self.ledger - self.adjusted


@dataclass(frozen=True, slots=True)
class Cleared:
    """What an invoice says of a hold in suspense: `amount` nano-USD were billed for it, 0 for nothing."""

    reservation_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class ImportInvoice:
    """`replaces` is the invoice that it corrects, empty for none."""

    invoice_id: str
    provider: str
    content_sha256: str
    lines: tuple[InvoiceLine, ...]
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class ClearSuspense:
    """What `invoice` shows of holds in suspense, before it is imported itself.

    As many of them, the first ones, as CLEARING_EVENTS_MAX has room for: repeat it with the others. None if the invoice is
    imported by now.
    """

    invoice: ImportInvoice
    cleared: tuple[Cleared, ...]


@dataclass(frozen=True, slots=True)
class TellForecast:
    """Say whether a budget runs out in its window, if that is not what was said last."""

    budget_id: str
    window_start: str
    runs_out: bool
    exhausted_p50: datetime | None
    exhausted_p10: datetime | None
    posted: int
    limit: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """Changes nothing; whoever sends it wants the newest state."""


Command = (
    SetBudget
    | SuspendBudget
    | ResumeBudget
    | SetPrice
    | SetPriceFactor
    | Reserve
    | Renew
    | Settle
    | Release
    | Expire
    | Doubt
    | ReturnStock
    | CloseStock
    | Charge
    | Rerate
    | ClearSuspense
    | ImportInvoice
    | TellForecast
    | Look
)
