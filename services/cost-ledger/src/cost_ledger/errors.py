"""What the ledger refuses, and what the caller does about it.

LedgerError
├── BudgetExceeded        wait for the next window or raise the budget
├── BudgetSuspended       ask whoever suspended the budget to resume it
├── NothingToSpare        reserve when the call comes, without a holder
├── ModelUnpriced         set a price for the model, or make the budget soft
├── ReservationConflict   the id stands for another request: use a new one
├── ReservationNotFound   nothing was reserved under this id
├── ReservationSettled    it was spent: it cannot be released
├── ReservationClosed     it was settled or released: it cannot be renewed
├── SettlementNotPriced   give an amount: tokens cannot be priced under this reservation
├── BudgetNotFound        create it, or correct the name
├── BudgetFixed           scope and window of a budget do not change: create another
├── InvoiceConflict       the id stands for an invoice with other content: use a new one
├── InvoiceOverlaps       another invoice bills the same: declare which one this replaces
├── InvoiceOvertaken      a hold that the invoice clears was settled meanwhile: repeat
├── TooMuchAtOnce         ask for a shorter time or for fewer attributions, or as the message says
├── ViewIncomplete        wait for the view, or mend it: nothing is posted by what it lacks
├── RequestInvalid        correct the field
├── AlreadyRecorded       the same fact is in the log: nothing is left to do
├── BookContended         other writers were always faster: retry
└── BookBusy              too much waits for the book: retry later
"""

import shlex

from synod.cost_ledger.events import Unit


class LedgerError(Exception):
    """The base of every error of this service."""


class BudgetExceeded(LedgerError):
    """A hard budget does not cover the upper bound. Amounts are in `unit`; `share` is whose limit it is."""

    def __init__(self, budget_id: str, available: int, required: int, unit: Unit = "nano_usd", share: str = "") -> None:
        whose = f" for {share}" if share else ""
        super().__init__(f"budget {budget_id}{whose} has {available} {unit} left and the request needs {required}")
        self.budget_id = budget_id
        self.available = available
        self.required = required
        self.unit = unit
        self.share = share


class BudgetSuspended(LedgerError):
    """A budget that the request matches was suspended for `reason`, so that it refuses whatever it is asked."""

    def __init__(self, budget_id: str, reason: str) -> None:
        super().__init__(f"budget {budget_id} is suspended: {reason}")
        self.budget_id = budget_id
        self.reason = reason


class NothingToSpare(LedgerError):
    """A hard budget has less left than the `needed` for reserving `required` ahead of a call. Amounts are in `unit`."""

    def __init__(
        self, budget_id: str, available: int, required: int, needed: int, unit: Unit = "nano_usd", share: str = ""
    ) -> None:
        whose = f" for {share}" if share else ""
        super().__init__(
            f"budget {budget_id}{whose} has {available} {unit} left, and {needed} must be left for {required} to be "
            "reserved ahead of a call; reserve when the call comes, without holder"
        )
        self.budget_id = budget_id
        self.available = available
        self.required = required
        self.needed = needed
        self.unit = unit
        self.share = share


class ModelUnpriced(LedgerError):
    """No price is known for `model`, and `budget_id` is hard, so what it would cost cannot be bounded."""

    def __init__(self, model: str, budget_id: str, near: tuple[str, ...] = (), context: str = "") -> None:
        hint = f"; priced is: {', '.join(near)}" if near else ""
        terms = f" for {context}" if context else ""
        super().__init__(f"model {model!r} has no price{terms} and budget {budget_id!r} is hard; {remedy(model)}{hint}")
        self.model = model
        self.budget_id = budget_id
        self.near = near


def remedy(model: str) -> str:
    """What people do about a model without a price, at whichever edge they are told of it."""
    name = shlex.quote(model) if "/" in model else "PROVIDER/MODEL"
    return f"set a price, in dollars per million tokens: synod prices set {name} IN OUT (SetPrice)"


class ReservationConflict(LedgerError):
    """The id is taken by a request with other content."""

    def __init__(self, reservation_id: str) -> None:
        super().__init__(f"reservation {reservation_id} exists with other content")
        self.reservation_id = reservation_id


class ReservationNotFound(LedgerError):
    """No reservation has this id in this tenant."""

    def __init__(self, reservation_id: str) -> None:
        super().__init__(f"no reservation {reservation_id}")
        self.reservation_id = reservation_id


class ReservationSettled(LedgerError):
    """The reservation was settled before, with `settled` nano-USD."""

    def __init__(self, reservation_id: str, settled: int) -> None:
        super().__init__(f"reservation {reservation_id} is settled with {settled} nano-USD and cannot be released")
        self.reservation_id = reservation_id
        self.settled = settled


class ReservationClosed(LedgerError):
    """The reservation is settled or released."""

    def __init__(self, reservation_id: str, state: str) -> None:
        super().__init__(f"reservation {reservation_id} is {state} and cannot be renewed; reserve under a new id")
        self.reservation_id = reservation_id
        self.state = state


class SettlementNotPriced(LedgerError):
    """The reservation is of a fixed amount and pins no rates, so tokens have no price."""

    def __init__(self, reservation_id: str) -> None:
        super().__init__(f"reservation {reservation_id} holds a fixed amount; settle it with amount_nano_usd")
        self.reservation_id = reservation_id


class BudgetNotFound(LedgerError):
    """No budget has this id; `near` are ids that look like it."""

    def __init__(self, budget_id: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(f"no budget {budget_id}" + (f"; similar: {', '.join(near)}" if near else ""))
        self.budget_id = budget_id
        self.near = near


class BudgetFixed(LedgerError):
    """`field` of an existing budget was to change."""

    def __init__(self, budget_id: str, field: str) -> None:
        super().__init__(f"the {field} of budget {budget_id!r} cannot change; create a budget with another id")
        self.budget_id = budget_id
        self.field = field


class InvoiceConflict(LedgerError):
    """The id is taken by an invoice with other content."""

    def __init__(self, invoice_id: str) -> None:
        super().__init__(f"invoice {invoice_id} was imported with other content")
        self.invoice_id = invoice_id


class InvoiceOverlaps(LedgerError):
    """`line` bills what `other_id`, an invoice in force, bills already."""

    def __init__(self, invoice_id: str, line: str, other_id: str) -> None:
        super().__init__(
            f"invoice {invoice_id} bills {line}, and invoice {other_id} bills some of that already; "
            f"if this one corrects it, say that it replaces {other_id}"
        )
        self.invoice_id = invoice_id
        self.other_id = other_id


class InvoiceOvertaken(LedgerError):
    """A hold that was in suspense when the invoice was compared is not any more."""

    def __init__(self, invoice_id: str, reservation_id: str) -> None:
        super().__init__(f"reservation {reservation_id} changed while invoice {invoice_id} was compared")
        self.invoice_id = invoice_id
        self.reservation_id = reservation_id


class TooMuchAtOnce(LedgerError):
    """More than `maximum` of what `of_what` says, which ends with what to do about it."""

    def __init__(self, maximum: int, of_what: str = "costs match; give a shorter time or a filter") -> None:
        super().__init__(f"more than {maximum:,} {of_what}")
        self.maximum = maximum


class ViewIncomplete(LedgerError):
    """`view` lacks events, so what is posted by it would be posted wrongly and stay so. `remedy` says what to do."""

    def __init__(self, view: str, lacks: str, remedy: str) -> None:
        super().__init__(f"the view {view} {lacks}, so nothing is posted by what it has; {remedy}")
        self.view = view


class RequestInvalid(LedgerError):
    """A value that can never be right."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field} = {value!r}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


class BookContended(LedgerError):
    """Other processes appended to the book of `tenant` before every one of `attempts` attempts."""

    def __init__(self, tenant: str, attempts: int) -> None:
        super().__init__(f"the book of tenant {tenant} changed under {attempts} attempts")
        self.tenant = tenant
        self.attempts = attempts


class AlreadyRecorded(LedgerError):
    """The log holds this fact, older than what the book of `tenant` remembers."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"the log of tenant {tenant} holds this fact already")
        self.tenant = tenant


class BookBusy(LedgerError):
    """`waiting` commands are before this one, which is the limit."""

    def __init__(self, tenant: str, waiting: int) -> None:
        super().__init__(f"{waiting} commands wait for the book of tenant {tenant}")
        self.tenant = tenant
        self.waiting = waiting
