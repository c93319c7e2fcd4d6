"""Questions to the views: spend by any attribution, budgets as they stand, reservations of all times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection, sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from cost_ledger.book import Budget, Reservation
from cost_ledger.charges import equals
from cost_ledger.naming import OTHER_TOOL, TOOL
from cost_ledger.ports import BudgetStatus, Due, Standing
from cost_ledger.projections import BIGINT_MAX, BUDGET, OWNERS, RESERVATION

Connection = AsyncConnection[Any]

PERIODS: Final[dict[str, LiteralString]] = {
    "hour": 'YYYY-MM-DD"T"HH24"Z"',
    "day": "YYYY-MM-DD",
    "week": 'IYYY-"W"IW',
    "month": "YYYY-MM",
}
"""Stretches of time in UTC that spend can be grouped by, with how PostgreSQL names one."""

GROUPS: Final = (*OWNERS, *PERIODS)
"""What spend can be grouped by; by the attributions it can also be filtered."""

BY_TAG: Final = "tag:"
"""Before the name of a tag, by whose values spend is grouped; costs without it are one group, the empty value."""

GROUPS_MAX: Final = 10_000
"""Rows of one answer; whoever needs more asks for parts."""
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)

_BILLED_AS: Final = (
    "coalesce(nullif(document ->> 'model', ''), nullif(document #>> '{attribution,model}', ''),"
    f" '{TOOL}/' || coalesce(nullif(document #>> '{{attribution,tool}}', ''), '{OTHER_TOOL}'))"
)
"""What naming.billed_as says of a reservation."""


@dataclass(frozen=True, slots=True)
class SpendQuery:
    """`group_by` names of GROUPS or tags (BY_TAG); `where` attributions and `tags` that must be equal (models in any
    case); the time half open, None without end.
    """

    group_by: tuple[str, ...] = ()
    where: Mapping[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    tags: Mapping[str, str] | None = None


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
        """At most `limit` budgets with ids above `after`, ascending, with the amounts of the windows at `now`.

        Of a budget of which every share has the limit for itself, it is the limit that is told, not who has used what.
        """
        statement = """
            select document from view_budgets.budget where tenant = %s and budget_id > %s order by budget_id limit %s
        """
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, (tenant, after, limit))
            budgets = [BUDGET.validate_python(document) for (document,) in await cursor.fetchall()]
            accounts = [name for budget in budgets for name in _accounts(budget, now)]
            statement = "select account, amount from view_budgets.balance where tenant = %s and account = any(%s)"
            cursor = await connection.execute(statement, (tenant, accounts))
            balances = {account: int(amount) for account, amount in await cursor.fetchall()}
        return [_budget_status(budget, now, balances) for budget in budgets]

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
        return None if row is None else RESERVATION.validate_python(row[0])

    async def due(self, at: datetime, limit: int) -> Sequence[Due]:
        statement = """
            select tenant, id from view_reservations.reservation
            where state = 'held' and expires_at <= %s order by expires_at limit %s
        """
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, (at, limit))
            return [Due(tenant, id) for tenant, id in await cursor.fetchall()]

    async def standing(self, at: datetime) -> Standing:
        statement = """
            select count(*), count(*) filter (where expires_at <= %s)
            from view_reservations.reservation where state = 'held'
        """
        async with self.pool.connection() as connection:
            held, overdue = await (await connection.execute(statement, (at,))).fetchone() or (0, 0)
        return Standing(held, overdue)

    async def in_suspense(
        self, tenant: str, prefix: str, since: datetime, until: datetime, after: str, limit: int
    ) -> Sequence[Reservation]:
        statement = f"""
            select document from view_reservations.reservation
            where tenant = %s and state = 'suspense' and starts_with(lower({_BILLED_AS}), lower(%s))
            and ((document ->> 'reserved_at')::timestamptz, id) > (%s, %s)
            and (document ->> 'reserved_at')::timestamptz < %s
            order by (document ->> 'reserved_at')::timestamptz, id limit %s
        """
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), (tenant, prefix, since, after, until, limit))
            return [RESERVATION.validate_python(document) for (document,) in await cursor.fetchall()]


_KINDS: Final = ("spent", "pending", "suspense")


def _accounts(budget: Budget, now: datetime) -> Iterable[str]:
    hold = budget.share_at(now, "")
    return (name for kind in _KINDS for name in budget.accounts(kind, hold))


def _budget_status(budget: Budget, now: datetime, balances: Mapping[str, int]) -> BudgetStatus:
    hold = budget.share_at(now, "")
    spent, pending, suspense = (sum(balances.get(name, 0) for name in budget.accounts(kind, hold)) for kind in _KINDS)
    return BudgetStatus(budget, hold.window_start, spent, pending + suspense, suspense)


def _spend_statement(tenant: str, query: SpendQuery) -> tuple[sql.Composed, dict[str, object]]:
    group = [_group(name) for name in query.group_by]
    values: dict[str, object] = {"tenant": tenant, "since": query.since, "until": query.until}
    conditions: list[sql.Composable] = [sql.SQL("tenant = %(tenant)s")]
    for name, value in (query.where or {}).items():
        conditions.append(equals(name))
        values[f"where_{name}"] = value
    if query.tags:
        conditions.append(sql.SQL("tags @> %(tags)s"))
        values["tags"] = Jsonb(dict(query.tags))
    if query.since is not None:
        conditions.append(sql.SQL("incurred_at >= %(since)s"))
    if query.until is not None:
        conditions.append(sql.SQL("incurred_at < %(until)s"))
    statement = sql.SQL(
        # A sum has no bound, and what tells of it has: beyond it stands the largest that it can tell.
        'select array[{group}]::text[] as "group", least(coalesce(sum(cost), 0), {most})::bigint as cost,'
        " least(coalesce(sum(pending), 0), {most})::bigint as pending,"
        " least(coalesce(sum(input_tokens), 0), {most})::bigint as input_tokens,"
        " least(coalesce(sum(output_tokens), 0), {most})::bigint as output_tokens,"
        " coalesce(sum(calls), 0)::bigint as calls"
        " from view_spend.charge where {where} group by {grouping} having count(*) > 0"
        " order by 2 desc, 3 desc, 1 limit {limit}"
    )
    return (
        statement.format(
            group=sql.SQL(", ").join(group),
            where=sql.SQL(" and ").join(conditions),
            grouping=sql.SQL(", ").join(group) if group else sql.SQL("()"),
            limit=sql.Literal(GROUPS_MAX + 1),
            most=sql.Literal(BIGINT_MAX),
        ),
        values,
    )


def _group(name: str) -> sql.Composable:
    if name.startswith(BY_TAG):
        return sql.SQL("coalesce(tags ->> {}, '')").format(sql.Literal(name.removeprefix(BY_TAG)))
    if name not in PERIODS:
        return sql.Identifier(name)
    return sql.SQL("to_char(incurred_at at time zone 'UTC', {})").format(sql.Literal(PERIODS[name]))
