"""What can be asked about model calls: one row each, and which were left running."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from eventlog.records import Context, StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from llm_gateway.application import ACTOR

Connection = AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class ModelCallRow:
    """`model` is the one asked for until an attempt ran, then the one that ran last. Times of tokens are zero until known."""

    id: str
    tenant: str
    request_id: str
    run_id: str
    agent: str
    state: str
    model: str
    attempts: int
    input_tokens: int
    output_tokens: int
    duration_ms: int
    accepted_at: datetime
    ended_at: datetime | None


class ModelCallsView:
    """One row a call; no content, which the log does not have either."""

    name: ClassVar[str] = "model_calls"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = None
    tables: ClassVar[str] = """
        create table model_calls (
            id text primary key, tenant text not null, request_id text not null, run_id text not null,
            agent text not null, state text not null, model text not null, attempts int not null default 0,
            input_tokens bigint not null default 0, output_tokens bigint not null default 0,
            duration_ms bigint not null default 0, accepted_at timestamptz not null, ended_at timestamptz
        );
        create index on model_calls (tenant, accepted_at);
        create index on model_calls (id) where state = 'running';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            await self._apply(connection, event)

    async def _apply(self, connection: Connection, event: StoredEvent) -> None:
        match event.type:
            case "ModelCallAccepted":
                await _accepted(connection, event)
            case "ModelCallAttemptStarted":
                data = json.loads(event.data)
                sql = "update model_calls set state = 'running', attempts = %s, model = %s where id = %s"
                await connection.execute(sql, (data["attempt"], data["model"], event.stream.id))
            case "ModelCallAttemptFailed":
                await connection.execute("update model_calls set state = 'waiting' where id = %s", (event.stream.id,))
            case "ModelCallCompleted":
                await _completed(connection, event)
            case "ModelCallFailed" | "ModelCallCancelled":
                state = "failed" if event.type == "ModelCallFailed" else "cancelled"
                sql = "update model_calls set state = %s, ended_at = %s where id = %s"
                await connection.execute(sql, (state, event.occurred_at, event.stream.id))
            case _:
                return


async def _accepted(connection: Connection, event: StoredEvent) -> None:
    data = json.loads(event.data)
    attribution = data["attribution"]
    await connection.execute(
        "insert into model_calls (id, tenant, request_id, run_id, agent, state, model, accepted_at)"
        " values (%s, %s, %s, %s, %s, 'waiting', %s, %s)",
        (
            event.stream.id,
            event.tenant,
            data["request_id"],
            attribution["run_id"],
            attribution["agent"],
            data["model"],
            event.occurred_at,
        ),
    )


async def _completed(connection: Connection, event: StoredEvent) -> None:
    data = json.loads(event.data)
    await connection.execute(
        "update model_calls set state = 'completed', model = %s, input_tokens = %s, output_tokens = %s,"
        " duration_ms = %s, ended_at = %s where id = %s",
        (
            data["model"],
            data["input_tokens"],
            data["output_tokens"],
            data["duration_ms"],
            event.occurred_at,
            event.stream.id,
        ),
    )


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def running(self) -> list[tuple[str, Context]]:
        """Calls with an attempt that has no outcome yet, with the context to record one under."""
        sql = "select * from view_model_calls.model_calls where state = 'running' order by id"
        async with (
            self.pool.connection() as connection,
            connection.cursor(row_factory=class_row(ModelCallRow)) as cursor,
        ):
            await cursor.execute(sql)
            rows = await cursor.fetchall()
        return [(row.id, Context(row.tenant, ACTOR, row.run_id)) for row in rows]
