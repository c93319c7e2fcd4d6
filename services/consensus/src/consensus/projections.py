"""What can be asked: proposals and variables in lists, and which deadlines are next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from eventlog.records import StoredEvent
from eventlog.table_view import Key, TableView, begins, on
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from synod.consensus.events import (
    ProposalDecided,
    ProposalOpened,
    ProposalUndecided,
    VariableDeclared,
    VariableSet,
)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ProposalRow:
    id: str
    tenant: str
    state: str
    run_id: str
    deadline: datetime
    opened_at: datetime
    decided_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class VariableRow:
    tenant: str
    name: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class OpenProposals:
    """Those of all tenants that wait for votes: how many, how many past their deadline, since when the oldest."""

    count: int
    overdue: int
    oldest: datetime | None


class ProposalsView(TableView[ProposalRow]):
    """One row a proposal; ballots and tallies stay in the stream."""

    name, version, row = "proposals", 2, ProposalRow
    indexes = ("(tenant, id desc)", "(deadline) where state = 'open'", "(run_id) where run_id <> ''")

    @begins
    def opened(self, event: ProposalOpened, stored: StoredEvent) -> ProposalRow:
        return ProposalRow(stored.stream.id, stored.tenant, "open", event.run_id, event.deadline, stored.occurred_at)

    @on
    def ended(self, row: ProposalRow, event: ProposalDecided | ProposalUndecided, stored: StoredEvent) -> ProposalRow:
        state = "decided" if isinstance(event, ProposalDecided) else "undecided"
        return replace(row, state=state, decided_at=stored.occurred_at)


class VariablesView(TableView[VariableRow]):
    """One row a variable: the names of a tenant, and when each changed last."""

    name, version, row = "variables", 2, VariableRow
    key = ("tenant", "name")

    def key_of(self, event: VariableDeclared | VariableSet, stored: StoredEvent) -> Key:
        return (stored.tenant, event.name)

    @begins
    def changed(self, event: VariableDeclared | VariableSet, stored: StoredEvent) -> VariableRow:
        return VariableRow(stored.tenant, event.name, stored.occurred_at)


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
        sql = "select * from view_variables.variables where tenant = %s and name > %s order by name limit %s"
        return await self._rows(VariableRow, sql, (tenant, after, limit))

    async def _rows(self, kind: type[Row], sql: str, values: Sequence[object]) -> list[Row]:
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            await cursor.execute(sql, values)
            return await cursor.fetchall()
