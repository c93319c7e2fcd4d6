"""Views of the ledger's own log: spend by any attribution, every account's balance, reservations of all times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from pydantic import TypeAdapter
from rpds import HashTrieMap
from servicekit.tags import values_of
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetCommitmentReached,
    BudgetResumed,
    BudgetSet,
    BudgetSuspended,
    BudgetThresholdReached,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    Quantity,
    ReservationReleased,
    Unit,
)

from cost_ledger.book import Book, Budget, Reservation
from cost_ledger.books import decoded
from cost_ledger.folding import budget_of, entries, fold
from cost_ledger.rates import UNPRICED
from cost_ledger.rows import Row, insert_or, write
from cost_ledger.rows import replace as replace_rows

Connection = AsyncConnection[Any]

OWNERS: Final = (
    "agent",
    "run_id",
    "root_run_id",
    "model",
    "tool",
    "user_id",
    "conversation_id",
    "project_id",
)
"""The attributions that a cost is kept with."""

BIGINT_MAX: Final = 2**63 - 1
"""What a column holds of a sum that is larger."""

USAGE: Final = TypeAdapter(tuple[UsageLine, ...])
HOLDS: Final = TypeAdapter(tuple[Hold, ...])
BUDGET: Final = TypeAdapter(Budget)
RESERVATION: Final = TypeAdapter(Reservation)


# --- spend ---


class SpendView:
    """One row for each reservation, from hold to settlement, and for each charge, with all attributions.

    A correction changes the cost of its row; what it was before is in the log.
    """

    name: ClassVar[str] = "spend"
    version: ClassVar[int] = 3
    types: ClassVar[frozenset[str] | None] = frozenset(
        {"CostReserved", "CostSettled", "ReservationReleased", "CostCharged", "ChargeRerated"}
    )
    tables: ClassVar[str] = """
        create table charge (
            tenant text not null, kind text not null, id text not null,
            agent text not null, run_id text not null, root_run_id text not null, model text not null,
            tool text not null, user_id text not null, conversation_id text not null, project_id text not null,
            tags jsonb not null, incurred_at timestamptz not null, price_source text not null,
            price_version text not null, price_context text not null, usage_source text not null,
            cost bigint not null, pending bigint not null,
            input_tokens bigint not null, output_tokens bigint not null, calls bigint not null,
            tool_ms bigint not null, cpu_ms bigint not null,
            usage jsonb not null, holds jsonb not null, revision integer not null default 0,
            primary key (tenant, kind, id)
        );
        create index on charge (tenant, incurred_at);
        create index on charge (root_run_id) where root_run_id <> '';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        last: dict[ChargeKey, Event] = {}
        corrections: list[tuple[object, ...]] = []
        for stored in events:
            event = decoded(stored)
            if isinstance(event, ChargeRerated):
                corrections.append(_correction(stored.tenant, event))
            else:
                # Every other event brings its whole row, so within a batch only the last of each counts.
                last[_charge_key(stored.tenant, event)] = event
        gone = [key for key, event in last.items() if isinstance(event, ReservationReleased)]
        rows = [_charge_row(key, event) for key, event in last.items() if not isinstance(event, ReservationReleased)]
        await write(connection, _REPLACE_CHARGES, rows)
        if gone or corrections:
            async with connection.cursor() as cursor:
                await cursor.executemany(_DELETE_CHARGE, gone)
                # After all rows: nothing follows a correction but another.
                await cursor.executemany(_CORRECT_CHARGE, corrections)


ChargeKey = tuple[str, str, str]
"""Tenant, kind and id of a row."""

_UNUSED: Final[Row] = {
    "pending": 0,
    "price_version": "",
    "price_context": "",
    "usage_source": "",
    "input_tokens": 0,
    "output_tokens": 0,
    "calls": 0,
    "tool_ms": 0,
    "cpu_ms": 0,
    "usage": (),
}
"""What is not said of every row."""

_CHARGE_COLUMNS: Final = (
    "tenant",
    "kind",
    "id",
    "agent",
    "run_id",
    "root_run_id",
    "model",
    "tool",
    "user_id",
    "conversation_id",
    "project_id",
    "tags",
    "incurred_at",
    "price_source",
    "cost",
    "pending",
    "price_version",
    "price_context",
    "usage_source",
    "input_tokens",
    "output_tokens",
    "calls",
    "tool_ms",
    "cpu_ms",
    "usage",
    "holds",
)
_DELETE_CHARGE: Final = "delete from charge where tenant = %s and kind = %s and id = %s"
_REPLACE_CHARGES: Final = replace_rows("charge", ("tenant", "kind", "id"), _CHARGE_COLUMNS)
_CORRECT_CHARGE: Final = """
    update charge set cost = %s, price_source = %s, price_version = %s, revision = %s
    where tenant = %s and kind = 'reservation' and id = %s
"""


def _correction(tenant: str, event: ChargeRerated) -> tuple[object, ...]:
    price = (event.after_nano_usd, event.price_source, event.price_version, event.revision)
    return (*price, tenant, event.reservation_id)


def _charge_key(tenant: str, event: Event) -> ChargeKey:
    match event:
        case CostReserved() | CostSettled() | ReservationReleased():
            return tenant, "reservation", event.reservation_id
        case CostCharged():
            return tenant, "charge", event.charge_id
        case _:
            raise TypeError(f"{event.type_name()} makes no row of spend")


def _charge_row(key: ChargeKey, event: Event) -> Row:
    tenant, kind, id = key
    return {**_UNUSED, "tenant": tenant, "kind": kind, "id": id, **_content(event)}


def _content(event: Event) -> Row:
    match event:
        case CostReserved():
            return _held(event)
        case CostSettled():
            return _settled(event)
        case CostCharged():
            return _charged(event)
        case _:
            raise TypeError(f"{event.type_name()} leaves no row of spend")


def _held(event: CostReserved) -> Row:
    return {
        **_owners(event.attribution),
        "incurred_at": event.reserved_at,
        "price_source": event.price_source,
        "cost": 0,
        "pending": event.amount_nano_usd,
        "price_version": event.price_version,
        "price_context": event.price_context,
        "holds": event.holds,
    }


def _settled(event: CostSettled) -> Row:
    return {
        **_owners(event.attribution),
        "incurred_at": event.incurred_at,
        "price_source": event.price_source,
        "cost": event.amount_nano_usd,
        "input_tokens": _tokens(event.usage, "input"),
        "output_tokens": _tokens(event.usage, "output"),
        "calls": 1,
        "tool_ms": _quantity(event.quantities, "tool_ms"),
        "cpu_ms": _quantity(event.quantities, "cpu_ms"),
        "price_version": event.price_version,
        "price_context": event.price_context,
        "usage_source": event.usage_source,
        "usage": event.usage,
        "holds": event.holds,
    }


def _charged(event: CostCharged) -> Row:
    return {
        **_owners(event.attribution),
        "incurred_at": event.incurred_at,
        "price_source": "fixed",
        "cost": event.amount_nano_usd,
        "calls": 1,
        "tool_ms": _quantity(event.quantities, "tool_ms"),
        "cpu_ms": _quantity(event.quantities, "cpu_ms"),
        "holds": event.holds,
    }


def _owners(attribution: Attribution) -> Row:
    owners: Row = {name: getattr(attribution, name) for name in OWNERS}
    return {**owners, "tags": values_of(attribution.tags)}


def _tokens(usage: Iterable[UsageLine], direction: str) -> int:
    return sum([line.quantity for line in usage if line.direction == direction and line.unit == "tokens"])


def _quantity(quantities: Iterable[Quantity], unit: Unit) -> int:
    return sum([each.quantity for each in quantities if each.unit == unit])


# --- budgets ---


class BudgetsView:
    """Budgets, the balance of every account of every window, and the thresholds that were reached."""

    name: ClassVar[str] = "budgets"
    version: ClassVar[int] = 3
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "BudgetSet",
            "BudgetSuspended",
            "BudgetResumed",
            "CostReserved",
            "CostSettled",
            "ReservationReleased",
            "ReservationExpired",
            "CostCharged",
            "ChargeRerated",
            "ReconciliationDifferenceFound",
            "BudgetThresholdReached",
            "BudgetCommitmentReached",
        }
    )
    tables: ClassVar[str] = """
        create table budget (
            tenant text not null, budget_id text not null, document jsonb not null, primary key (tenant, budget_id)
        );
        create table balance (
            tenant text not null, account text not null, amount numeric not null, primary key (tenant, account)
        );
        create table threshold (
            tenant text not null, budget_id text not null, window_start text not null, share text not null,
            basis text not null, percent integer not null, posted bigint not null, pending bigint not null,
            reached_at timestamptz not null,
            primary key (tenant, budget_id, window_start, share, basis, percent)
        );
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        moved: dict[tuple[str, str], int] = {}
        for stored in events:
            match decoded(stored):
                case BudgetSet() as event:
                    await connection.execute(_UPSERT_BUDGET, _budget_values(stored.tenant, event))
                case BudgetSuspended() as event:
                    await connection.execute(_SET_SUSPENSION, (event.reason, stored.tenant, event.budget_id))
                case BudgetResumed() as event:
                    await connection.execute(_SET_SUSPENSION, ("", stored.tenant, event.budget_id))
                case BudgetThresholdReached() | BudgetCommitmentReached() as event:
                    await connection.execute(_INSERT_THRESHOLD, _threshold_values(stored, event))
                case event:
                    _add_entries(moved, stored.tenant, event)
        changes = sorted(moved.items())
        rows = ({"tenant": tenant, "account": account, "amount": amount} for (tenant, account), amount in changes)
        await write(connection, _ADD_TO_BALANCES, rows)


_UPSERT_BUDGET: Final = """
    insert into budget values (%s, %s, %s)
    on conflict (tenant, budget_id) do update set document = budget.document || excluded.document
"""
_SET_SUSPENSION: Final = """
    update budget set document = document || jsonb_build_object('suspended_for', %s::text)
    where tenant = %s and budget_id = %s
"""
_INSERT_THRESHOLD: Final = "insert into threshold values (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
_ADD_TO_BALANCES: Final = insert_or(
    "balance",
    ("tenant", "account"),
    ("tenant", "account", "amount"),
    "update set amount = balance.amount + excluded.amount",
)


def _budget_values(tenant: str, event: BudgetSet) -> tuple[object, ...]:
    # Whether it is suspended is told by other events, and stays as it was.
    document = BUDGET.dump_json(budget_of(event), exclude={"suspended_for"})
    return (tenant, event.budget_id, document.decode())


def _threshold_values(
    stored: StoredEvent, event: BudgetThresholdReached | BudgetCommitmentReached
) -> tuple[object, ...]:
    window = (stored.tenant, event.budget_id, event.window_start, event.share)
    if isinstance(event, BudgetCommitmentReached):
        amounts = (min(event.posted, BIGINT_MAX), min(event.pending, BIGINT_MAX))
        return (*window, "committed", event.threshold_percent, *amounts, stored.occurred_at)
    # One of the two is 0, whichever unit the budget is in.
    posted = event.posted_nano_usd + event.posted_quantity
    pending = event.pending_nano_usd + event.pending_quantity
    amounts = (min(posted, BIGINT_MAX), min(pending, BIGINT_MAX))
    return (*window, "posted", event.threshold_percent, *amounts, stored.occurred_at)


def _add_entries(moved: dict[tuple[str, str], int], tenant: str, event: Event) -> None:
    for account, amount in entries(event):
        moved[tenant, account] = moved.get((tenant, account), 0) + amount


# --- reservations ---


class ReservationsView:
    """Every reservation ever, folded by the same evolve as the book, so that the two cannot differ."""

    name: ClassVar[str] = "reservations"
    version: ClassVar[int] = 3
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "CostReserved",
            "ReservationRenewed",
            "CostSettled",
            "ReservationReleased",
            "ReservationExpired",
            "ChargeRerated",
        }
    )
    tables: ClassVar[str] = """
        create table reservation (
            tenant text not null, id text not null, state text not null, expires_at timestamptz not null,
            document jsonb not null, primary key (tenant, id)
        );
        create index on reservation (expires_at) where state = 'held';
        create index on reservation (tenant) where state = 'suspense';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        by_tenant: dict[str, list[Event]] = {}
        for stored in events:
            by_tenant.setdefault(stored.tenant, []).append(decoded(stored))
        for tenant, changes in by_tenant.items():
            await self._apply(connection, tenant, changes)

    async def _apply(self, connection: Connection, tenant: str, changes: Sequence[Event]) -> None:
        first = {id: event for event in reversed(changes) if (id := getattr(event, "reservation_id", ""))}
        known = await _load(connection, tenant, [id for id, event in first.items() if not _begins(event)])
        book = fold(Book(open=HashTrieMap(known)), changes)
        touched = (found for id in first if (found := book.reservation(id)) is not None)
        await write(connection, _REPLACE_RESERVATIONS, [_reservation_row(tenant, each) for each in touched])


def _begins(event: Event) -> bool:
    """Whether the reservation after it is what the event says, whatever it was."""
    return isinstance(event, CostReserved)


async def _load(connection: Connection, tenant: str, ids: list[str]) -> dict[str, Reservation]:
    if not ids:
        return {}
    cursor = await connection.execute(_LOAD_RESERVATIONS, (tenant, ids))
    return {id: RESERVATION.validate_python(document) for id, document in await cursor.fetchall()}


_LOAD_RESERVATIONS: Final = "select id, document from reservation where tenant = %s and id = any(%s)"
_REPLACE_RESERVATIONS: Final = replace_rows(
    "reservation", ("tenant", "id"), ("tenant", "id", "state", "expires_at", "document")
)


def _reservation_row(tenant: str, reservation: Reservation) -> Row:
    return {
        "tenant": tenant,
        "id": reservation.reservation_id,
        "state": reservation.state,
        "expires_at": reservation.expires_at,
        "document": replace(reservation, rates=UNPRICED),
    }
