"""What can be asked about model calls: one row each, and which were left running."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from eventlog.codec import Codec
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
        accepted = [_accepted(event) for event in events if event.type == "ModelCallAccepted"]
        changes: dict[str, _Change] = {}
        for event in events:
            changes[event.stream.id] = _changed(changes.get(event.stream.id, _Change()), event)
        async with connection.cursor() as cursor:
            await cursor.executemany(_INSERT, accepted)
            await cursor.executemany(_UPDATE, [(*astuple(change), id) for id, change in changes.items()])


@dataclass(frozen=True, slots=True)
class _Change:
    """What a batch of events changes in one row, in the order of _UPDATE; None leaves a column as it is."""

    state: str | None = None
    model: str | None = None
    attempts: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    duration_ms: int | None = None
    saved_tokens: int | None = None
    ended_at: datetime | None = None


_INSERT: Final = """
    insert into model_calls (id, tenant, request_id, run_id, agent, state, model, accepted_at)
    values (%s, %s, %s, %s, %s, 'waiting', %s, %s)
"""
_UPDATE: Final = """
    update model_calls set
        state = coalesce(%s, state), model = coalesce(%s, model), attempts = coalesce(%s, attempts),
        input_tokens = coalesce(%s, input_tokens), output_tokens = coalesce(%s, output_tokens),
        duration_ms = coalesce(%s, duration_ms), saved_tokens = coalesce(%s, saved_tokens), ended_at = coalesce(%s, ended_at)
    where id = %s
"""


def _accepted(event: StoredEvent) -> tuple[object, ...]:
    accepted = ModelCallAccepted.model_validate_json(event.data)
    owner = accepted.attribution
    ids = (event.stream.id, event.tenant, accepted.request_id, owner.run_id, owner.agent)
    return (*ids, accepted.model, event.occurred_at)


def _changed(change: _Change, stored: StoredEvent) -> _Change:
    match _CODEC.decode(stored):
        case ModelCallAttemptStarted() as event:
            return replace(change, state="running", model=event.model, attempts=event.attempt)
        case ModelCallAttemptFailed():
            return replace(change, state="waiting")
        case ModelCallCompleted() as event:
            return replace(
                change,
                state="completed",
                model=event.model,
                input_tokens=event.input_tokens,
                output_tokens=event.output_tokens,
                duration_ms=event.duration_ms,
                ended_at=stored.occurred_at,
            )
        case ModelCallServedFromCache() as event:
            saved = event.input_tokens + event.output_tokens
            return replace(change, state="cached", model=event.model, saved_tokens=saved, ended_at=stored.occurred_at)
        case ModelCallFailed():
            return replace(change, state="failed", ended_at=stored.occurred_at)
        case ModelCallCancelled():
            return replace(change, state="cancelled", ended_at=stored.occurred_at)
        case _:
            return change


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
