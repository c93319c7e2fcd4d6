"""What can be asked of many runs at once: lists, and which runs are past their deadline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import ClassVar, Final, TypeVar

from eventlog.records import StoredEvent
from eventlog.table_view import TableView, begins, on
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from synod.agent_runtime.events import ConversationStarted, TurnEnded, TurnStarted

from agent_runtime.domain import parse_definition

Row = TypeVar("Row")
Data = dict[str, object]

ENDINGS: Final = {"RunCompleted": "completed", "RunFailed": "failed", "RunCancelled": "cancelled"}


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as lists show it. `open_members` counts what it waits for: runs below it, and decisions."""

    id: str
    tenant: str
    state: str
    definition_name: str
    definition_digest: str
    input: str
    parent_run_id: str
    root_run_id: str
    step: str
    conversation_id: str
    started_at: datetime
    deadline_at: datetime
    ended_at: datetime | None = None
    output: str = ""
    result_sha256: str = ""
    failure_reason: str = ""
    failure_message: str = ""
    epoch: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    open_members: int = 0
    child_run_ids: list[str] = field(default_factory=list)
    proposal_ids: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


class RunsView:
    """One row a run. A batch is folded in memory and written once per run, so that a rebuild is fast."""

    name: ClassVar[str] = "runs"
    version: ClassVar[int] = 2
    personal: ClassVar[bool] = True
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "RunStarted",
            "RunClaimed",
            "ModelCallRequested",
            "ToolCallIntended",
            "StepStarted",
            "MemberEnded",
            "StepEnded",
            "VoteOpened",
            "VoteDecided",
            *ENDINGS,
        }
    )
    tables: ClassVar[str] = """
        create table runs (
            id text primary key, tenant text not null, state text not null, definition_name text not null,
            definition_digest text not null, input text not null, parent_run_id text not null,
            root_run_id text not null, step text not null, conversation_id text not null,
            started_at timestamptz not null, deadline_at timestamptz not null, ended_at timestamptz,
            output text not null, result_sha256 text not null, failure_reason text not null,
            failure_message text not null, epoch bigint not null, model_calls int not null, tool_calls int not null,
            open_members int not null, child_run_ids text[] not null, proposal_ids text[] not null,
            tags jsonb not null
        );
        create index on runs (tenant, started_at desc, id desc);
        create index on runs (tenant, started_at desc, id desc) where parent_run_id = '';
        create index on runs (deadline_at) where ended_at is null;
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        ids = sorted({event.stream.id for event in events})
        async with connection.cursor(row_factory=class_row(RunRow)) as cursor:
            await cursor.execute("select * from runs where id = any(%s)", (ids,))
            rows = {row.id: row for row in await cursor.fetchall()}
        for event in events:
            rows[event.stream.id] = fold_run(rows.get(event.stream.id), event)
        async with connection.cursor() as writer:
            await writer.executemany(_UPSERT, [_values(row) for row in rows.values()])


def fold_run(row: RunRow | None, event: StoredEvent) -> RunRow:
    """The row after one more event; KeyError for a stream that does not begin with RunStarted."""
    data: Data = json.loads(event.data)
    if row is None:
        return _started(event, data)
    match event.type:
        case "RunClaimed":
            return replace(row, epoch=int(str(data["epoch"])), state="running" if row.epoch == 0 else row.state)
        case "ModelCallRequested":
            return replace(row, model_calls=row.model_calls + 1)
        case "ToolCallIntended":
            return replace(row, tool_calls=row.tool_calls + 1)
        case "StepStarted":
            children = [str(child) for child in _list(data["child_run_ids"])]
            return _waiting(replace(row, child_run_ids=[*row.child_run_ids, *children]), len(children))
        case "MemberEnded" | "VoteDecided":
            return _waiting(row, -1)
        case "VoteOpened":
            return _waiting(replace(row, proposal_ids=[*row.proposal_ids, str(data["proposal_id"])]), 1)
        case "StepEnded":
            # A member's success is told by StepEnded alone, everything else by an event before it.
            by_member = data["outcome"] == "completed" and not data["proposal_id"]
            return _waiting(row, -1) if by_member else row
        case _:
            return _ended(row, event, data)


def _started(event: StoredEvent, data: Data) -> RunRow:
    timeout_s = parse_definition(str(data["spec_json"])).spec.timeout_s
    return RunRow(
        id=event.stream.id,
        tenant=event.tenant,
        state="queued",
        definition_name=str(data["definition_name"]),
        definition_digest=str(data["definition_digest"]),
        input=str(data["input"]),
        parent_run_id=str(data["parent_run_id"]),
        root_run_id=str(data["root_run_id"]),
        step=str(data["step"]),
        conversation_id=str(data["conversation_id"]),
        started_at=event.occurred_at,
        deadline_at=event.occurred_at + timedelta(seconds=timeout_s),
        tags=_tags(data),
    )


def _tags(data: Data) -> dict[str, str]:
    """None in events of the time before runs had tags."""
    given = [tag for tag in _list(data.get("tags")) if isinstance(tag, dict)]
    return {str(tag["name"]): str(tag["value"]) for tag in given}


def _waiting(row: RunRow, more: int) -> RunRow:
    open_members = row.open_members + more
    return replace(row, open_members=open_members, state="waiting" if open_members > 0 else "running")


def _ended(row: RunRow, event: StoredEvent, data: Data) -> RunRow:
    failure = data.get("failure")
    failure = failure if isinstance(failure, dict) else {}
    cancelled = event.type == "RunCancelled"
    return replace(
        row,
        state=ENDINGS[event.type],
        ended_at=event.occurred_at,
        output=str(data.get("output", "")),
        result_sha256=str(data.get("result_sha256", "")),
        failure_reason="CANCELLED" if cancelled else str(failure.get("reason", "")),
        failure_message=str(data["reason"]) if cancelled else str(failure.get("message", "")),
    )


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


_COLUMNS: Final = tuple(column.name for column in fields(RunRow))
_fields: Final = attrgetter(*_COLUMNS)
_UPSERT: Final = (
    f"insert into runs ({', '.join(_COLUMNS)}) values ({', '.join('%s' for _ in _COLUMNS)})"
    f" on conflict (id) do update set {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[1:])}"
)


def _values(row: RunRow) -> list[object]:
    return [Jsonb(value) if isinstance(value, dict) else value for value in _fields(row)]


@dataclass(frozen=True, slots=True)
class ConversationRow:
    id: str
    tenant: str
    definition_name: str
    started_at: datetime
    changed_at: datetime
    turns: int = 0
    active_run_id: str = ""


class ConversationsView(TableView[ConversationRow]):
    """One row a conversation: with whom, how long, and whether a turn is being answered."""

    name, version, row = "conversations", 2, ConversationRow
    indexes = ("(tenant, changed_at desc)",)

    @begins
    def started(self, event: ConversationStarted, stored: StoredEvent) -> ConversationRow:
        at = stored.occurred_at
        return ConversationRow(stored.stream.id, stored.tenant, event.definition_name, at, at)

    @on
    def turn_started(self, row: ConversationRow, event: TurnStarted, stored: StoredEvent) -> ConversationRow:
        return replace(row, turns=row.turns + 1, active_run_id=event.run_id, changed_at=stored.occurred_at)

    @on
    def turn_ended(self, row: ConversationRow, event: TurnEnded, stored: StoredEvent) -> ConversationRow:
        return replace(row, active_run_id="", changed_at=stored.occurred_at)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A run that is past its deadline and has not ended."""

    id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class OpenRuns:
    """Runs of all tenants that are in a state and have not ended: how many, past their deadline, since when the oldest."""

    state: str
    count: int
    overdue: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def runs(self, tenant: str, state: str, roots_only: bool, before: str, limit: int) -> list[RunRow]:
        """Newest first; `before` is the key (see page_key) after which the page goes on."""
        at, _, run_id = before.partition(" ")
        sql = (
            "select * from view_runs.runs where tenant = %s and (%s = '' or state = %s)"
            " and (not %s or parent_run_id = '')"
            " and (%s = '' or (started_at, id) < (%s::timestamptz, %s))"
            " order by started_at desc, id desc limit %s"
        )
        return await self._rows(RunRow, sql, (tenant, state, state, roots_only, at, at or None, run_id, limit))

    async def overdue(self, now: datetime, limit: int) -> list[Overdue]:
        """The longest overdue first."""
        sql = (
            "select id, tenant from view_runs.runs where ended_at is null and deadline_at <= %s"
            " order by deadline_at limit %s"
        )
        return await self._rows(Overdue, sql, (now, limit))

    async def open_runs(self, now: datetime) -> list[OpenRuns]:
        sql = (
            "select state, count(*) as count, count(*) filter (where deadline_at <= %s) as overdue,"
            " min(started_at) as oldest from view_runs.runs where ended_at is null group by state"
        )
        return await self._rows(OpenRuns, sql, (now,))

    async def _rows(self, kind: type[Row], sql: str, values: Sequence[object]) -> list[Row]:
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            await cursor.execute(sql, values)
            return await cursor.fetchall()


def page_key(row: RunRow) -> str:
    """Where the next page begins."""
    return f"{row.started_at.isoformat()} {row.id}"
