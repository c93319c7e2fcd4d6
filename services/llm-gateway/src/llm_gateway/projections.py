"""What can be asked about model calls: one row each, which were left running, and which stocks of reservations are open."""

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
    ReservationStockClosed,
    ReservationStockOpened,
)

from llm_gateway.application import ACTOR
from llm_gateway.store import connected

Connection = AsyncConnection[Any]

_CODEC: Final[Codec[Event]] = Codec(EVENTS)


class ModelCallsView:
    """One row a call; no content, which the log does not have either.

    `model` is the one asked for until an attempt ran, then the one that ran last. Tokens are zero until known.
    """

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


_STARTED: Final = ModelCallAttemptStarted.type_name()
_LOST: Final = ModelCallAttemptFailed.type_name()
_ENDED: Final = frozenset(each.type_name() for each in (ModelCallCompleted, ModelCallFailed, ModelCallCancelled))
_STOCKS: Final = frozenset(each.type_name() for each in (ReservationStockOpened, ReservationStockClosed))


class ReservationsView:
    """Which reservations may still be used: the stocks that are open, and the attempts that run, each with its own.

    The row of a call does not tell these: of two attempts at once, it says "waiting" as soon as one has failed.
    """

    name: ClassVar[str] = "reservations"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({_STARTED, _LOST}) | _ENDED | _STOCKS
    tables: ClassVar[str] = """
        create table stocks (tenant text, holder text, primary key (tenant, holder));
        create table attempts (
            call_id text, attempt int, tenant text not null, run_id text not null, reservation_id text not null,
            primary key (call_id, attempt)
        );
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        started: dict[str, list[StoredEvent]] = {}
        lost: list[StoredEvent] = []
        ended: list[str] = []
        for stored in events:
            id = stored.stream.id
            if stored.type == _STARTED:
                started.setdefault(id, []).append(stored)
            elif stored.type == _LOST:
                lost.append(stored)
            elif stored.type in _ENDED:
                started.pop(id, None)
                ended.append(id)
            else:
                await _change_stock(connection, stored)
        # Most calls begin and end within a batch. Only what is left of it is decoded.
        gone = {(each.stream.id, _attempt(each)) for each in lost}
        left = [row for each in started.values() for row in map(_attempt_row, each)]
        new = [row for row in left if (row["call_id"], row["attempt"]) not in gone]
        if ended:
            await connection.execute("delete from attempts where call_id = any(%s)", [ended])
        for key in gone:
            await connection.execute("delete from attempts where call_id = %s and attempt = %s", key)
        if new:
            await connection.execute(_INSERT_ATTEMPTS, [_json(new)])


_INSERT_ATTEMPTS: Final = """
    insert into attempts select * from json_populate_recordset(null::attempts, %s::json)
"""


async def _change_stock(connection: Connection, stored: StoredEvent) -> None:
    match _CODEC.decode(stored):
        case ReservationStockOpened(holder=holder):
            sql = "insert into stocks (tenant, holder) values (%s, %s)"
        case ReservationStockClosed(holder=holder):
            sql = "delete from stocks where tenant = %s and holder = %s"
        case _:
            return
    await connection.execute(sql, (stored.tenant, holder))


def _attempt(stored: StoredEvent) -> int:
    event = _CODEC.decode(stored)
    assert isinstance(event, ModelCallAttemptFailed)
    return event.attempt


def _attempt_row(stored: StoredEvent) -> _Row:
    event = _CODEC.decode(stored)
    assert isinstance(event, ModelCallAttemptStarted)
    return {
        "call_id": stored.stream.id,
        "attempt": event.attempt,
        "tenant": stored.tenant,
        "run_id": event.attribution.run_id,
        "reservation_id": event.reservation_id,
    }


@dataclass(frozen=True, slots=True)
class Stock:
    """What one holder has reserved ahead for one tenant."""

    tenant: str
    holder: str


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def running(self) -> list[tuple[str, Context]]:
        """Calls with an attempt that has no outcome yet, with the context to record one under."""
        sql = "select distinct call_id, tenant, run_id from view_reservations.attempts order by call_id"
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(sql)).fetchall()
        return [(id, Context(tenant, ACTOR, run_id)) for id, tenant, run_id in rows]

    async def running_reservations(self) -> list[str]:
        """Those of attempts that have no outcome yet. Raises StoreUnavailable."""
        sql = "select reservation_id from view_reservations.attempts"
        async with connected(self.pool, "which attempts run cannot be read") as connection:
            rows = await (await connection.execute(sql)).fetchall()
        return [id for (id,) in rows]

    async def stocks(self) -> list[Stock]:
        """Those that are open. Raises StoreUnavailable."""
        sql = "select tenant, holder from view_reservations.stocks order by tenant, holder"
        async with (
            connected(self.pool, "which stocks are open cannot be read") as connection,
            connection.cursor(row_factory=class_row(Stock)) as cursor,
        ):
            await cursor.execute(sql)
            return await cursor.fetchall()
