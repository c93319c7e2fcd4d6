"""What can be asked about model calls: one row each, and which were left running."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final

import orjson
from eventlog.codec import Codec, UnknownEvent
from eventlog.records import Context, StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.llm_gateway.events import (
    EVENTS,
    ModelCallAccepted,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallFailed,
    ModelCallServedFromCache,
)

from llm_gateway.application import ACTOR

Connection = AsyncConnection[Any]

_CODEC: Final[Codec[Event]] = Codec(EVENTS)


@dataclass(frozen=True, slots=True)
class ModelCallRow:
    """`model` is the one asked for until an attempt ran, then the one that ran last. Tokens are zero until known."""

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
    saved_tokens: int
    accepted_at: datetime
    ended_at: datetime | None


class ModelCallsView:
    """One row a call; no content, which the log does not have either."""

    name: ClassVar[str] = "model_calls"
    version: ClassVar[int] = 2
    types: ClassVar[frozenset[str] | None] = None
    tables: ClassVar[str] = """
        create table model_calls (
            id text primary key, tenant text not null, request_id text not null, run_id text not null,
            agent text not null, state text not null, model text not null, attempts int not null default 0,
            input_tokens bigint not null default 0, output_tokens bigint not null default 0,
            duration_ms bigint not null default 0, saved_tokens bigint not null default 0,
            accepted_at timestamptz not null, ended_at timestamptz
        );
        create index on model_calls (tenant, accepted_at);
        create index on model_calls (id) where state = 'running';
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        accepted: list[_Row] = []
        changed: list[_Row] = []
        rows: dict[str, _Row] = {}
        for stored in events:
            event, id = _CODEC.decode(stored), stored.stream.id
            if isinstance(event, ModelCallAccepted):
                rows[id] = _accepted(stored, event)
                accepted.append(rows[id])
                continue
            if id not in rows:
                rows[id] = {"id": id}
                changed.append(rows[id])
            rows[id].update(_changes(event, stored.occurred_at))
        # Each row costs in a statement of its own what all of them cost in one.
        if accepted:
            await connection.execute(_INSERT, [_json(accepted)])
        if changed:
            await connection.execute(_UPDATE, [_json(changed)])


_Row = dict[str, str | int | datetime | None]
"""Of a new row all columns; of one that stands, the id and what changes."""

_INSERT: Final = """
    insert into model_calls select * from json_populate_recordset(null::model_calls, %s::json)
"""
_UPDATE: Final = """
    update model_calls as call set
        state = coalesce(changed.state, call.state), model = coalesce(changed.model, call.model),
        attempts = coalesce(changed.attempts, call.attempts),
        input_tokens = coalesce(changed.input_tokens, call.input_tokens),
        output_tokens = coalesce(changed.output_tokens, call.output_tokens),
        duration_ms = coalesce(changed.duration_ms, call.duration_ms),
        saved_tokens = coalesce(changed.saved_tokens, call.saved_tokens),
        ended_at = coalesce(changed.ended_at, call.ended_at)
    from json_populate_recordset(null::model_calls, %s::json) as changed
    where call.id = changed.id
"""


def _json(rows: list[_Row]) -> str:
    """Rows as one parameter, made and sent in one step: as arrays of columns psycopg would look at every value."""
    return orjson.dumps(rows).decode()


def _accepted(stored: StoredEvent, accepted: ModelCallAccepted) -> _Row:
    return {
        "id": stored.stream.id,
        "tenant": stored.tenant,
        "request_id": accepted.request_id,
        "run_id": accepted.attribution.run_id,
        "agent": accepted.attribution.agent,
        "state": "waiting",
        "model": accepted.model,
        "attempts": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "duration_ms": 0,
        "saved_tokens": 0,
        "accepted_at": stored.occurred_at,
        "ended_at": None,
    }


def _changes(event: Event | UnknownEvent, at: datetime) -> _Row:
    match event:
        case ModelCallAttemptStarted():
            return {"state": "running", "model": event.model, "attempts": event.attempt}
        case ModelCallAttemptFailed():
            return {"state": "waiting"}
        case ModelCallCompleted():
            return {
                "state": "completed",
                "model": event.model,
                "input_tokens": event.input_tokens,
                "output_tokens": event.output_tokens,
                "duration_ms": event.duration_ms,
                "ended_at": at,
            }
        case ModelCallServedFromCache():
            saved = event.input_tokens + event.output_tokens
            return {"state": "cached", "model": event.model, "saved_tokens": saved, "ended_at": at}
        case ModelCallFailed():
            return {"state": "failed", "ended_at": at}
        case ModelCallCancelled():
            return {"state": "cancelled", "ended_at": at}
        case _:
            return {}


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
