"""What can be asked: proposals and variables in lists, and which deadlines are next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, TypeVar

from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ProposalRow:
    id: str
    tenant: str
    state: str
    run_id: str
    deadline: datetime
    opened_at: datetime
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class VariableRow:
    name: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class OpenProposals:
    """Those of all tenants that wait for votes: how many, how many past their deadline, since when the oldest."""

    count: int
    overdue: int
    oldest: datetime | None


class ProposalsView:
    """One row a proposal; ballots and tallies stay in the stream."""

    name: ClassVar[str] = "proposals"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({"ProposalOpened", "ProposalDecided", "ProposalUndecided"})
    tables: ClassVar[str] = """
        create table proposals (
            id text primary key, tenant text not null, state text not null, run_id text not null,
            deadline timestamptz not null, opened_at timestamptz not null, decided_at timestamptz
        );
        create index on proposals (tenant, id desc);
        create index on proposals (deadline) where state = 'open';
        create index on proposals (run_id) where run_id <> '';
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            if event.type == "ProposalOpened":
                await self._opened(connection, event)
            else:
                state = "decided" if event.type == "ProposalDecided" else "undecided"
                await connection.execute(
                    "update proposals set state = %s, decided_at = %s where id = %s",
                    (state, event.occurred_at, event.stream.id),
                )

    async def _opened(self, connection: AsyncConnection, event: StoredEvent) -> None:
        data = json.loads(event.data)
        row = (event.stream.id, event.tenant, "open", data["run_id"], data["deadline"], event.occurred_at)
        await connection.execute(
            "insert into proposals (id, tenant, state, run_id, deadline, opened_at) values (%s, %s, %s, %s, %s, %s)",
            row,
        )


class VariablesView:
    """One row a variable: the names of a tenant, and when each changed last."""

    name: ClassVar[str] = "variables"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({"VariableDeclared", "VariableSet"})
    tables: ClassVar[str] = """
        create table variables (
            tenant text not null, name text not null, changed_at timestamptz not null, primary key (tenant, name)
        );
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            await connection.execute(
                "insert into variables values (%s, %s, %s)"
                " on conflict (tenant, name) do update set changed_at = excluded.changed_at",
                (event.tenant, json.loads(event.data)["name"], event.occurred_at),
            )


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def proposals(self, tenant: str, state: str, run_id: str, before: str, limit: int) -> list[ProposalRow]:
        """Newest first; ``before`` is the id after which the page goes on."""
        return await self._rows(
            ProposalRow,
            "select * from view_proposals.proposals where tenant = %s and (%s = '' or state = %s)"
            " and (%s = '' or run_id = %s) and (%s = '' or id < %s) order by id desc limit %s",
            (tenant, state, state, run_id, run_id, before, before, limit),
        )

    async def proposal(self, id: str) -> ProposalRow | None:
        found = await self._rows(ProposalRow, "select * from view_proposals.proposals where id = %s", (id,))
        return found[0] if found else None

    async def next_deadlines(self, limit: int) -> list[ProposalRow]:
        """Open proposals, the nearest deadline first."""
        sql = "select * from view_proposals.proposals where state = 'open' order by deadline limit %s"
        return await self._rows(ProposalRow, sql, (limit,))

    async def open_proposals(self, now: datetime) -> OpenProposals:
        sql = (
            "select count(*) as count, count(*) filter (where deadline <= %s) as overdue, min(opened_at) as oldest"
            " from view_proposals.proposals where state = 'open'"
        )
        (found,) = await self._rows(OpenProposals, sql, (now,))
        return found

    async def variables(self, tenant: str, after: str, limit: int) -> list[VariableRow]:
        sql = "select name, changed_at from view_variables.variables where tenant = %s and name > %s order by name limit %s"
        return await self._rows(VariableRow, sql, (tenant, after, limit))

    async def _rows(self, kind: type[Row], sql: str, values: Sequence[object]) -> list[Row]:
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            await cursor.execute(sql, values)
            return await cursor.fetchall()
