"""Costs one by one, from the view `spend`: for corrections, exports, comparisons and forecasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import AsyncConnection, sql
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from synod.common.values import Attribution, Tag, UsageLine
from synod.cost_ledger.events import Hold, PriceSource, Unit

from cost_ledger.naming import OTHER_TOOL, TOOL, pattern_of
from cost_ledger.projections import HOLDS, OWNERS, USAGE

Connection = AsyncConnection[Any]

PAGE_CHARGES: Final = 1_000
_UNIT_COLUMNS: Final[dict[Unit, sql.SQL]] = {
    "nano_usd": sql.SQL("cost"),
    "calls": sql.SQL("calls"),
    "tokens": sql.SQL("input_tokens + output_tokens"),
    "input_tokens": sql.SQL("input_tokens"),
    "output_tokens": sql.SQL("output_tokens"),
    "tool_ms": sql.SQL("tool_ms"),
    "cpu_ms": sql.SQL("cpu_ms"),
}


_BILLED_AS: Final = f"coalesce(nullif(model, ''), '{TOOL}/' || coalesce(nullif(tool, ''), '{OTHER_TOOL}'))"
"""What naming.billed_as says of a row."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Costs with these attributions and tags, of a time half open; None is without end.

    `model_scope` is that of a budget: also snapshots of a model by their dates, or all models of a provider.
    """

    where: Mapping[str, str]
    since: datetime | None = None
    until: datetime | None = None
    model_scope: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SettledCharge:
    """A cost as the ledger has it now, corrections included. Nano-USD."""

    id: str
    kind: str
    attribution: Attribution
    incurred_at: datetime
    cost: int
    input_tokens: int
    output_tokens: int
    price_source: PriceSource
    price_version: str
    price_context: str
    usage_source: str
    usage: tuple[UsageLine, ...]
    holds: tuple[Hold, ...]
    revision: int

    @property
    def model(self) -> str:
        return self.attribution.model


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What the attempts at a model came to. Latencies are of those that were completed, 0 without any.

    `served` calls got an answer that another was charged for; `saved_cost` is what these others cost, in nano-USD.
    """

    model: str
    completed: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    latency_p50_ms: int
    latency_p95_ms: int
    first_content_p50_ms: int
    served: int
    saved_cost: int


@dataclass(frozen=True, slots=True)
class Charges:
    """Each answer is as old as its view. Raises psycopg.Error."""

    pool: AsyncConnectionPool[Connection]

    async def settled(self, tenant: str, selection: Selection) -> AsyncIterator[SettledCharge]:
        """Everything but open holds, the oldest first; read in pages, so that no transaction stays open."""
        after: tuple[datetime, str, str] | None = None
        while page := await self._page(tenant, selection, after):
            for charge in page:
                yield charge
            after = (page[-1].incurred_at, page[-1].kind, page[-1].id)

    async def hours(self, tenant: str, unit: Unit, selection: Selection) -> Mapping[datetime, int]:
        """What each hour (UTC) of the selection came to, in the unit; hours without a cost are left out."""
        statement = sql.SQL(
            "select date_trunc('hour', incurred_at, 'UTC') as hour, sum({})::bigint as amount"
            " from view_spend.charge where {} group by 1"
        ).format(_UNIT_COLUMNS[unit], _conditions(selection))
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, _values(tenant, selection))
            return dict(await cursor.fetchall())

    async def total(self, tenant: str, prefix: str, since: datetime, until: datetime) -> int:
        """The cost of all that is billed by names that begin so, in any case."""
        statement = f"""
            select coalesce(sum(cost), 0)::bigint from view_spend.charge
            where tenant = %s and starts_with(lower({_BILLED_AS}), lower(%s)) and incurred_at >= %s and incurred_at < %s
        """
        return await self._number(statement, (tenant, prefix, since, until))

    async def billed_names(self, tenant: str, prefix: str, since: datetime, until: datetime) -> list[str]:
        """The names that begin so, in any case, by which something of the time is billed."""
        statement = f"""
            select distinct {_BILLED_AS} from view_spend.charge
            where tenant = %s and starts_with(lower({_BILLED_AS}), lower(%s)) and incurred_at >= %s and incurred_at < %s
            order by 1
        """
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), (tenant, prefix, since, until))
            return [name for (name,) in await cursor.fetchall()]

    async def billed_by(self, tenant: str, name: str, since: datetime, until: datetime) -> int:
        """The cost of what is billed by just this name."""
        statement = f"""
            select coalesce(sum(cost), 0)::bigint from view_spend.charge
            where tenant = %s and {_BILLED_AS} = %s and incurred_at >= %s and incurred_at < %s
        """
        return await self._number(statement, (tenant, name, since, until))

    async def providers(self, tenant: str) -> set[str]:
        """All by whom anything is billed, or will be, in lower case."""
        statement = f"select distinct lower(split_part({_BILLED_AS}, '/', 1)) from view_spend.charge where tenant = %s"
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), (tenant,))
            return {provider for (provider,) in await cursor.fetchall()}

    async def models(self, tenant: str, since: datetime | None, until: datetime | None) -> list[ModelFigures]:
        """For each model that was asked; of attempts that began in the time."""
        async with (
            self.pool.connection() as connection,
            connection.cursor(row_factory=class_row(ModelFigures)) as cursor,
        ):
            await cursor.execute(_MODELS, {"tenant": tenant, "since": since, "until": until})
            return await cursor.fetchall()

    async def tenants_with_budgets(self) -> list[str]:
        async with self.pool.connection() as connection:
            cursor = await connection.execute("select distinct tenant from view_budgets.budget order by 1")
            return [tenant for (tenant,) in await cursor.fetchall()]

    async def _number(self, statement: str, values: tuple[object, ...]) -> int:
        async with self.pool.connection() as connection:
            row = await (await connection.execute(statement.encode(), values)).fetchone()
        return int(row[0]) if row else 0

    async def _page(
        self, tenant: str, selection: Selection, after: tuple[datetime, str, str] | None
    ) -> list[SettledCharge]:
        conditions = _conditions(selection)
        values = _values(tenant, selection)
        if after is not None:
            conditions += sql.SQL(" and (incurred_at, kind, id) > (%(after_at)s, %(after_kind)s, %(after_id)s)")
            values |= {"after_at": after[0], "after_kind": after[1], "after_id": after[2]}
        statement = sql.SQL(
            "select * from view_spend.charge where {} and calls > 0 order by incurred_at, kind, id limit {}"
        ).format(conditions, sql.Literal(PAGE_CHARGES))
        async with self.pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement, values)
            return [_charge(tenant, row) for row in await cursor.fetchall()]


_MODELS: Final = """
    with attempts as (
    select model,
        count(*) filter (where outcome = 'completed') as completed,
        count(*) filter (where outcome = 'failed') as failed,
        count(*) filter (where outcome = 'cancelled') as cancelled,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(cached_tokens), 0)::bigint as cached_tokens,
        coalesce(percentile_disc(0.5) within group (order by duration_ms)
            filter (where outcome = 'completed'), 0) as latency_p50_ms,
        coalesce(percentile_disc(0.95) within group (order by duration_ms)
            filter (where outcome = 'completed'), 0) as latency_p95_ms,
        coalesce(percentile_disc(0.5) within group (order by first_content_ms)
            filter (where outcome = 'completed' and first_content_ms > 0), 0) as first_content_p50_ms
    from view_model_calls.attempt
    where tenant = %(tenant)s and model <> ''
        and (%(since)s::timestamptz is null or at >= %(since)s)
        and (%(until)s::timestamptz is null or at < %(until)s)
    group by model
    ), hits as (
    select served.model, count(*) as served, coalesce(sum(charge.cost), 0)::bigint as saved_cost
    from view_model_calls.served
    left join view_spend.charge on charge.tenant = served.tenant and charge.kind = 'reservation'
        and charge.id = served.source_reservation_id
    where served.tenant = %(tenant)s
        and (%(since)s::timestamptz is null or served.at >= %(since)s)
        and (%(until)s::timestamptz is null or served.at < %(until)s)
    group by served.model
    )
    select model,
        coalesce(completed, 0) as completed, coalesce(failed, 0) as failed, coalesce(cancelled, 0) as cancelled,
        coalesce(input_tokens, 0) as input_tokens, coalesce(output_tokens, 0) as output_tokens,
        coalesce(cached_tokens, 0) as cached_tokens, coalesce(latency_p50_ms, 0) as latency_p50_ms,
        coalesce(latency_p95_ms, 0) as latency_p95_ms, coalesce(first_content_p50_ms, 0) as first_content_p50_ms,
        coalesce(served, 0) as served, coalesce(saved_cost, 0) as saved_cost
    from attempts full join hits using (model) order by model
"""


def whole_hours(amounts: Mapping[datetime, int], since: datetime, until: datetime) -> tuple[int, ...]:
    """One number for each hour from `since` to `until`, both at the beginning of an hour."""
    number = int((until - since) / timedelta(hours=1))
    return tuple(amounts.get(since + timedelta(hours=hour), 0) for hour in range(number))


def equals(name: str) -> sql.Composed:
    """That a column has the value `where_<name>`; names of models are compared without their case."""
    compared = sql.SQL("lower({}) = lower({})" if name == "model" else "{} = {}")
    return compared.format(sql.Identifier(name), sql.Placeholder(f"where_{name}"))


def _conditions(selection: Selection) -> sql.Composed:
    conditions: list[sql.Composable] = [sql.SQL("tenant = %(tenant)s")]
    conditions += [equals(name) for name in selection.where]
    if selection.model_scope:
        conditions.append(sql.SQL("model ~ %(model_scope)s"))
    if selection.tags:
        conditions.append(sql.SQL("tags @> %(tags)s"))
    if selection.since is not None:
        conditions.append(sql.SQL("incurred_at >= %(since)s"))
    if selection.until is not None:
        conditions.append(sql.SQL("incurred_at < %(until)s"))
    return sql.SQL(" and ").join(conditions)


def _values(tenant: str, selection: Selection) -> dict[str, object]:
    wanted = {f"where_{name}": value for name, value in selection.where.items()}
    pattern = pattern_of(selection.model_scope)
    times = {"since": selection.since, "until": selection.until}
    return {"tenant": tenant, **times, "model_scope": pattern, "tags": Jsonb(dict(selection.tags)), **wanted}


def _charge(tenant: str, row: dict[str, Any]) -> SettledCharge:
    return SettledCharge(
        id=row["id"],
        kind=row["kind"],
        attribution=_attribution(tenant, row),
        incurred_at=row["incurred_at"],
        cost=row["cost"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        price_source=row["price_source"],
        price_version=row["price_version"],
        price_context=row["price_context"],
        usage_source=row["usage_source"],
        usage=USAGE.validate_python(row["usage"]),
        holds=HOLDS.validate_python(row["holds"]),
        revision=row["revision"],
    )


def _attribution(tenant: str, row: Mapping[str, Any]) -> Attribution:
    tags = tuple(Tag(name=name, value=value) for name, value in sorted(row["tags"].items()))
    return Attribution(tenant_id=tenant, **{name: row[name] for name in OWNERS}, tags=tags)
