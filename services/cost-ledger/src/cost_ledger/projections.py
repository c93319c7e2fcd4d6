"""What can be asked: spend by any attribution, budgets with every account's balance, reservations of all times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final, LiteralString

from eventlog.records import StoredEvent
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from pydantic import TypeAdapter
from rpds import HashTrieMap
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetSet,
    BudgetThresholdReached,
    CostCharged,
    CostReserved,
    CostSettled,
    ReservationExpired,
    ReservationReleased,
)

from cost_ledger.book import Book, Budget, Reservation
from cost_ledger.books import CODEC, known_event
from cost_ledger.folding import fold
from cost_ledger.ports import BudgetStatus, Due
from cost_ledger.rates import UNPRICED
from cost_ledger.windows import window_start

Connection = AsyncConnection[Any]

GROUPS: Final = (
    "agent",
    "run_id",
    "root_run_id",
    "model",
    "tool",
    "user_id",
    "conversation_id",
    "project_id",
    "day",
)
"""What spend can be grouped by; all but the day can also be filtered by."""

GROUPS_MAX: Final = 10_000
"""Rows of one answer; whoever needs more asks for parts."""

_RESERVATION: Final = TypeAdapter(Reservation)


# --- spend ---


class SpendView:
    """One row for each reservation, from hold to settlement, and for each charge, with all attributions."""

    name: ClassVar[str] = "spend"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        {"CostReserved", "CostSettled", "ReservationReleased", "CostCharged"}
    )
    tables: ClassVar[str] = """
        create table charge (
            tenant text not null, kind text not null, id text not null,
            agent text not null, run_id text not null, root_run_id text not null, model text not null,
            tool text not null, user_id text not null, conversation_id text not null, project_id text not null,
            day text not null, incurred_at timestamptz not null, price_source text not null,
            cost bigint not null, pending bigint not null,
            input_tokens bigint not null, output_tokens bigint not null, calls bigint not null,
            primary key (tenant, kind, id)
        );
        create index on charge (tenant, incurred_at);
        create index on charge (root_run_id) where root_run_id <> '';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        rows: dict[tuple[str, str, str], ChargeRow | None] = {}
        for stored in events:
            # Every event brings its whole row, so within a batch only the last of each counts.
            kind, id, row = _charge_row(stored.tenant, known_event(CODEC.decode(stored)))
            rows[stored.tenant, kind, id] = row
        async with connection.cursor() as cursor:
            await cursor.executemany(_DELETE_CHARGE, list(rows))
            await cursor.executemany(_INSERT_CHARGE, [row.values() for row in rows.values() if row is not None])


@dataclass(frozen=True, slots=True)
class ChargeRow:
    """A cost and whom it belongs to. Amounts are nano-USD."""

    tenant: str
    kind: str
    id: str
    attribution: Attribution
    incurred_at: datetime
    price_source: str
    cost: int
    pending: int
    input_tokens: int
    output_tokens: int
    calls: int

    def values(self) -> dict[str, object]:
        owner = {name: getattr(self.attribution, name) for name in GROUPS if name != "day"}
        own = {name: getattr(self, name) for name in ChargeRow.__slots__ if name != "attribution"}
        return owner | own | {"day": window_start("day", self.incurred_at)}


_CHARGE_COLUMNS: Final[tuple[LiteralString, ...]] = (
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
    "day",
    "incurred_at",
    "price_source",
    "cost",
    "pending",
    "input_tokens",
    "output_tokens",
    "calls",
)
_DELETE_CHARGE: Final = "delete from charge where tenant = %s and kind = %s and id = %s"
_INSERT_CHARGE: Final = sql.SQL("insert into charge ({}) values ({})").format(
    sql.SQL(", ").join(map(sql.Identifier, _CHARGE_COLUMNS)),
    sql.SQL(", ").join(map(sql.Placeholder, _CHARGE_COLUMNS)),
)


def _charge_row(tenant: str, event: Event) -> tuple[str, str, ChargeRow | None]:
    """The kind and id of a row, and the row; None where nothing is left of it."""
    match event:
        case CostReserved():
            return "reservation", event.reservation_id, _held_row(tenant, event)
        case CostSettled():
            return "reservation", event.reservation_id, _settled_row(tenant, event)
        case ReservationReleased():
            return "reservation", event.reservation_id, None
        case CostCharged():
            return "charge", event.charge_id, _charged_row(tenant, event)
        case _:
            raise TypeError(f"{event.type_name()} makes no row of spend")


def _held_row(tenant: str, event: CostReserved) -> ChargeRow:
    return ChargeRow(
        tenant=tenant,
        kind="reservation",
        id=event.reservation_id,
        attribution=event.attribution,
        incurred_at=event.reserved_at,
        price_source=event.price_source,
        cost=0,
        pending=event.amount_nano_usd,
        input_tokens=0,
        output_tokens=0,
        calls=0,
    )


def _settled_row(tenant: str, event: CostSettled) -> ChargeRow:
    return ChargeRow(
        tenant=tenant,
        kind="reservation",
        id=event.reservation_id,
        attribution=event.attribution,
        incurred_at=event.incurred_at,
        price_source=event.price_source,
        cost=event.amount_nano_usd,
        pending=0,
        input_tokens=_tokens(event.usage, "input"),
        output_tokens=_tokens(event.usage, "output"),
        calls=1,
    )


def _charged_row(tenant: str, event: CostCharged) -> ChargeRow:
    return ChargeRow(
        tenant=tenant,
        kind="charge",
        id=event.charge_id,
        attribution=event.attribution,
        incurred_at=event.incurred_at,
        price_source="fixed",
        cost=event.amount_nano_usd,
        pending=0,
        input_tokens=0,
        output_tokens=0,
        calls=1,
    )


def _tokens(usage: Iterable[UsageLine], direction: str) -> int:
    return sum(line.quantity for line in usage if line.direction == direction)


# --- budgets ---


class BudgetsView:
    """Budgets, the balance of every account of every window, and the thresholds that were reached."""

    name: ClassVar[str] = "budgets"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "BudgetSet",
            "CostReserved",
            "CostSettled",
            "ReservationReleased",
            "ReservationExpired",
            "CostCharged",
            "BudgetThresholdReached",
        }
    )
    tables: ClassVar[str] = """
        create table budget (
            tenant text not null, budget_id text not null, scope jsonb not null, "limit" bigint not null,
            hard boolean not null, "window" text not null, primary key (tenant, budget_id)
        );
        create table balance (
            tenant text not null, account text not null, amount numeric not null, primary key (tenant, account)
        );
        create table threshold (
            tenant text not null, budget_id text not null, window_start text not null, percent integer not null,
            posted bigint not null, reached_at timestamptz not null,
            primary key (tenant, budget_id, window_start, percent)
        );
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        moved: dict[tuple[str, str], int] = {}
        for stored in events:
            match known_event(CODEC.decode(stored)):
                case BudgetSet() as event:
                    await connection.execute(_UPSERT_BUDGET, _budget_values(stored.tenant, event))
                case BudgetThresholdReached() as event:
                    await connection.execute(_INSERT_THRESHOLD, _threshold_values(stored, event))
                case event:
                    _add_postings(moved, stored.tenant, event)
        async with connection.cursor() as cursor:
            changes = [(tenant, account, amount) for (tenant, account), amount in sorted(moved.items())]
            await cursor.executemany(_ADD_TO_BALANCE, changes)


_UPSERT_BUDGET: Final = """
    insert into budget values (%s, %s, %s, %s, %s, %s)
    on conflict (tenant, budget_id) do update set "limit" = excluded."limit", hard = excluded.hard
"""
_INSERT_THRESHOLD: Final = "insert into threshold values (%s, %s, %s, %s, %s, %s)"
_ADD_TO_BALANCE: Final = """
    insert into balance values (%s, %s, %s)
    on conflict (tenant, account) do update set amount = balance.amount + excluded.amount
"""


def _budget_values(tenant: str, event: BudgetSet) -> tuple[object, ...]:
    scope = event.scope.model_dump_json()
    return (tenant, event.budget_id, scope, event.limit_nano_usd, event.hard, event.window)


def _threshold_values(stored: StoredEvent, event: BudgetThresholdReached) -> tuple[object, ...]:
    window = (event.budget_id, event.window_start, event.threshold_percent)
    return (stored.tenant, *window, event.posted_nano_usd, stored.occurred_at)


def _add_postings(moved: dict[tuple[str, str], int], tenant: str, event: Event) -> None:
    if not isinstance(event, CostReserved | CostSettled | ReservationReleased | ReservationExpired | CostCharged):
        return
    for posting in event.postings:
        key = (tenant, posting.account)
        moved[key] = moved.get(key, 0) + posting.amount_nano_usd


# --- reservations ---


class ReservationsView:
    """Every reservation ever, folded by the same evolve as the book, so that the two cannot differ."""

    name: ClassVar[str] = "reservations"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        {"CostReserved", "CostSettled", "ReservationReleased", "ReservationExpired"}
    )
    tables: ClassVar[str] = """
        create table reservation (
            tenant text not null, id text not null, state text not null, expires_at timestamptz not null,
            document jsonb not null, primary key (tenant, id)
        );
        create index on reservation (expires_at) where state = 'held';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        by_tenant: dict[str, list[Event]] = {}
        for stored in events:
            by_tenant.setdefault(stored.tenant, []).append(known_event(CODEC.decode(stored)))
        for tenant, changes in by_tenant.items():
            await self._apply(connection, tenant, changes)

    async def _apply(self, connection: Connection, tenant: str, changes: Sequence[Event]) -> None:
        ids = list(dict.fromkeys(name for event in changes if (name := getattr(event, "reservation_id", ""))))
        cursor = await connection.execute(_LOAD_RESERVATIONS, (tenant, ids))
        known = {id: _RESERVATION.validate_python(document) for id, document in await cursor.fetchall()}
        book = fold(Book(open=HashTrieMap(known)), changes)
        touched = [found for id in ids if (found := book.reservation(id)) is not None]
        async with connection.cursor() as cursor:
            await cursor.executemany(_UPSERT_RESERVATION, [_reservation_values(tenant, each) for each in touched])


_LOAD_RESERVATIONS: Final = "select id, document from reservation where tenant = %s and id = any(%s)"
_UPSERT_RESERVATION: Final = """
    insert into reservation values (%s, %s, %s, %s, %s)
    on conflict (tenant, id) do update set state = excluded.state, document = excluded.document
"""


def _reservation_values(tenant: str, reservation: Reservation) -> tuple[object, ...]:
    document = _RESERVATION.dump_json(replace(reservation, rates=UNPRICED)).decode()
    return (tenant, reservation.reservation_id, reservation.state, reservation.expires_at, document)


# --- queries ---


@dataclass(frozen=True, slots=True)
class SpendQuery:
    """`group_by` names of GROUPS; `where` attributions that must be equal; the time half open, None without end."""

    group_by: tuple[str, ...] = ()
    where: Mapping[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Sums of one group. Amounts are nano-USD."""

    group: list[str]
    cost: int
    pending: int
    input_tokens: int
    output_tokens: int
    calls: int


@dataclass(frozen=True, slots=True)
class Queries:
    """Reads the views; each answer is as old as its view. Raises psycopg.Error."""

    pool: AsyncConnectionPool[Connection]

    async def spend(self, tenant: str, query: SpendQuery) -> list[SpendRow]:
        """Groups with their sums, the dearest first; at most GROUPS_MAX + 1 of them."""
        statement, values = _spend_statement(tenant, query)
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(SpendRow)) as cursor:
            await cursor.execute(statement, values)
            return await cursor.fetchall()

    async def budgets(self, tenant: str, after: str, limit: int, now: datetime) -> list[BudgetStatus]:
        """At most `limit` budgets with ids above `after`, ascending, with the amounts of the windows at `now`."""
        windows = [window_start(name, now) for name in ("day", "month")]
        async with self.pool.connection() as connection:
            cursor = await connection.execute(_SELECT_BUDGETS, (*windows, tenant, after, limit))
            return [_budget_status(row) for row in await cursor.fetchall()]

    async def balances(self, tenant: str) -> dict[str, int]:
        """Every account that is not at zero."""
        statement = "select account, amount from view_budgets.balance where tenant = %s and amount <> 0"
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, (tenant,))
            return {account: int(amount) for account, amount in await cursor.fetchall()}

    async def find(self, tenant: str, reservation_id: str) -> Reservation | None:
        statement = "select document from view_reservations.reservation where tenant = %s and id = %s"
        async with self.pool.connection() as connection:
            row = await (await connection.execute(statement, (tenant, reservation_id))).fetchone()
        return None if row is None else _RESERVATION.validate_python(row[0])

    async def due(self, at: datetime, limit: int) -> Sequence[Due]:
        statement = """
            select tenant, id from view_reservations.reservation
            where state = 'held' and expires_at <= %s order by expires_at limit %s
        """
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, (at, limit))
            return [Due(tenant, id) for tenant, id in await cursor.fetchall()]


_SELECT_BUDGETS: Final = """
    with current as (
        select *, case "window" when 'day' then %s when 'month' then %s else 'lifetime' end as start
        from view_budgets.budget where tenant = %s and budget_id > %s order by budget_id limit %s
    )
    select c.budget_id, c.scope, c."limit", c.hard, c."window", c.start, coalesce(s.amount, 0),
        coalesce(p.amount, 0) + coalesce(d.amount, 0)
    from current c
    left join view_budgets.balance s on s.tenant = c.tenant and s.account = concat('spent:', c.budget_id, ':', c.start)
    left join view_budgets.balance p on p.tenant = c.tenant and p.account = concat('pending:', c.budget_id, ':', c.start)
    left join view_budgets.balance d on d.tenant = c.tenant and d.account = concat('suspense:', c.budget_id, ':', c.start)
    order by c.budget_id
"""


def _budget_status(row: tuple[Any, ...]) -> BudgetStatus:
    budget_id, scope, limit, hard, window, start, posted, pending = row
    budget = Budget(budget_id, Attribution.model_validate(scope), limit, hard, window)
    return BudgetStatus(budget, start, int(posted), int(pending))


def _spend_statement(tenant: str, query: SpendQuery) -> tuple[sql.Composed, dict[str, object]]:
    group = [sql.Identifier(name) for name in query.group_by]
    values: dict[str, object] = {"tenant": tenant, "since": query.since, "until": query.until}
    conditions: list[sql.Composable] = [sql.SQL("tenant = %(tenant)s")]
    for name, value in (query.where or {}).items():
        conditions.append(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(f"where_{name}")))
        values[f"where_{name}"] = value
    if query.since is not None:
        conditions.append(sql.SQL("incurred_at >= %(since)s"))
    if query.until is not None:
        conditions.append(sql.SQL("incurred_at < %(until)s"))
    statement = sql.SQL(
        'select array[{group}]::text[] as "group", coalesce(sum(cost), 0)::bigint as cost,'
        " coalesce(sum(pending), 0)::bigint as pending, coalesce(sum(input_tokens), 0)::bigint as input_tokens,"
        " coalesce(sum(output_tokens), 0)::bigint as output_tokens, coalesce(sum(calls), 0)::bigint as calls"
        " from view_spend.charge where {where} group by {grouping} having count(*) > 0"
        " order by 2 desc, 3 desc, 1 limit {limit}"
    )
    return (
        statement.format(
            group=sql.SQL(", ").join(group),
            where=sql.SQL(" and ").join(conditions),
            grouping=sql.SQL(", ").join(group) if group else sql.SQL("()"),
            limit=sql.Literal(GROUPS_MAX + 1),
        ),
        values,
    )
