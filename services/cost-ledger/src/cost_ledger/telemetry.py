"""What the ledger tells of its books: counts of what it booked, and the holds that stand. Labels are names of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from synod.common.event import Event
from synod.cost_ledger.events import (
    BudgetThresholdReached,
    CostCharged,
    CostSettled,
    FuzzyPriceUsed,
    Posting,
    QuotaPosting,
    ReservationDenied,
    ReservationExpired,
    ReservationReleased,
)

from cost_ledger.alerts import THRESHOLDS_PERCENT
from cost_ledger.ports import Standing

_NANO: Final = 1e-9
_UNLISTED: Final = "other"
_TOOLS: Final = "tools"


class Telemetry:
    """Counts what this process appended, so that the sum over all replicas is what the books have.

    `listed` are the models ("provider/model") that get a label of their own; a model that a tenant named counts as "other".
    """

    def __init__(self, registry: CollectorRegistry, listed: Iterable[str]) -> None:
        self._listed = frozenset(listed)
        names = ("provider", "model")
        self._spent = Counter(
            "ledger_spent_usd_total",
            "Cost that was settled or charged, in USD; later corrections are not in it",
            names,
            registry=registry,
        )
        self._overruns = Counter("ledger_overruns_total", "Settlements above what was reserved", registry=registry)
        self._overrun = Counter("ledger_overrun_usd_total", "By how much, in USD", registry=registry)
        self._denied = Counter(
            "ledger_reservations_denied_total", "Reservations refused by a budget", registry=registry
        )
        self._suspended = Counter(
            "ledger_suspense_entered_total", "Holds on a budget whose outcome nobody knows", registry=registry
        )
        self._resolved = Counter(
            "ledger_suspense_left_total", "Of those, settled or released after all", registry=registry
        )
        self._thresholds = Counter(
            "ledger_budget_thresholds_total",
            "Budgets that reached a share of their limit",
            ("percent",),
            registry=registry,
        )
        for percent in THRESHOLDS_PERCENT:  # from 0 on, so that the first is seen to be an increase
            self._thresholds.labels(percent)
        self._guessed = Counter(
            "ledger_fuzzy_prices_total",
            "Models whose price is a guess, each once for a version of the price book",
            registry=registry,
        )
        self._held = Gauge("ledger_reservations_held", "Holds that wait for their settlement", registry=registry)
        self._overdue = Gauge(
            "ledger_reservations_overdue",
            "Holds whose time is over and that were not moved to suspense",
            registry=registry,
        )

    def booked(self, events: Iterable[Event]) -> None:
        """Count what was appended to a book."""
        for event in events:
            self._count(event)

    def standing(self, standing: Standing) -> None:
        self._held.set(standing.held)
        self._overdue.set(standing.overdue)

    def _count(self, event: Event) -> None:
        match event:
            case CostSettled():
                self._settled(event)
            case CostCharged(amount_nano_usd=amount):
                self._spent.labels(_TOOLS, "").inc(amount * _NANO)
            case ReservationDenied():
                self._denied.inc()
            case ReservationExpired() if event.postings or event.quota_postings:
                self._suspended.inc()
            case ReservationReleased() if _of_suspense((*event.postings, *event.quota_postings)):
                self._resolved.inc()
            case FuzzyPriceUsed():
                self._guessed.inc()
            case BudgetThresholdReached(threshold_percent=percent):
                self._thresholds.labels(percent).inc()

    def _settled(self, event: CostSettled) -> None:
        self._spent.labels(*self._labels(event.model)).inc(event.amount_nano_usd * _NANO)
        of_money = event.overrun_nano_usd and event.reserved_nano_usd
        if of_money or event.quota_overruns:
            self._overruns.inc()
        if of_money:
            self._overrun.inc(event.overrun_nano_usd * _NANO)
        if event.late and _of_suspense((*event.postings, *event.quota_postings)):
            self._resolved.inc()

    def _labels(self, model: str) -> tuple[str, str]:
        if not model:
            return _TOOLS, ""
        return (model.partition("/")[0], model) if model in self._listed else (_UNLISTED, _UNLISTED)


def _of_suspense(postings: Iterable[Posting | QuotaPosting]) -> bool:
    return any(posting.account.startswith("suspense") for posting in postings)
