"""What the log says is still to be ended: attempts that run, and stocks of reservations that are open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson
from eventlog.codec import Codec
from eventlog.records import Context, StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.llm_gateway.events import (
    EVENTS,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallFailed,
    ReservationStockClosed,
    ReservationStockOpened,
)

from llm_gateway.application import ACTOR
from llm_gateway.store import connected

Connection = AsyncConnection[Any]

_CODEC: Final[Codec[Event]] = Codec(EVENTS)


_STARTED: Final = ModelCallAttemptStarted.type_name()
_LOST: Final = ModelCallAttemptFailed.type_name()
_ENDED: Final = frozenset(each.type_name() for each in (ModelCallCompleted, ModelCallFailed, ModelCallCancelled))
_STOCKS: Final = frozenset(each.type_name() for each in (ReservationStockOpened, ReservationStockClosed))


class ReservationsView:
    """Which reservations may still be used: the stocks that are open, and the attempts that run, each with its own."""

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
            await connection.execute(_INSERT_ATTEMPTS, [orjson.dumps(new).decode()])


_INSERT_ATTEMPTS: Final = "insert into attempts select * from json_populate_recordset(null::attempts, %s::json)"


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


def _attempt_row(stored: StoredEvent) -> dict[str, str | int]:
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
class OpenStock:
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

    async def stocks(self) -> list[OpenStock]:
        """Those that are open. Raises StoreUnavailable."""
        sql = "select tenant, holder from view_reservations.stocks order by tenant, holder"
        async with (
            connected(self.pool, "which stocks are open cannot be read") as connection,
            connection.cursor(row_factory=class_row(OpenStock)) as cursor,
        ):
            await cursor.execute(sql)
            return await cursor.fetchall()
