"""What can be asked: sessions, open and closed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool


@dataclass(frozen=True, slots=True)
class SessionRow:
    id: str
    tenant: str
    principal_id: str
    transport: str
    connected_at: datetime
    closed_at: datetime | None
    frames_sent: int
    frames_dropped: int


class SessionsView:
    """One row a session."""

    name: ClassVar[str] = "sessions"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset({"SessionOpened", "SessionClosed"})
    tables: ClassVar[str] = """
        create table sessions (
            id text primary key, tenant text not null, principal_id text not null, transport text not null,
            connected_at timestamptz not null, closed_at timestamptz,
            frames_sent bigint not null default 0, frames_dropped bigint not null default 0
        );
        create index on sessions (tenant, id desc);
    """

    async def apply(self, connection: AsyncConnection, events: Sequence[StoredEvent]) -> None:
        for event in events:
            if event.type == "SessionOpened":
                await _opened(connection, event)
            else:
                await _closed(connection, event)


async def _opened(connection: AsyncConnection, event: StoredEvent) -> None:
    data = json.loads(event.data)
    await connection.execute(
        "insert into sessions (id, tenant, principal_id, transport, connected_at) values (%s, %s, %s, %s, %s)",
        (event.stream.id, event.tenant, data["principal_id"], data["transport"], event.occurred_at),
    )


async def _closed(connection: AsyncConnection, event: StoredEvent) -> None:
    data = json.loads(event.data)
    await connection.execute(
        "update sessions set closed_at = %s, frames_sent = %s, frames_dropped = %s where id = %s",
        (event.occurred_at, data["frames_sent"], data["frames_dropped"], event.stream.id),
    )


@dataclass(frozen=True, slots=True)
class Queries:
    pool: AsyncConnectionPool

    async def sessions(self, tenant: str, closed: bool, before: str, limit: int) -> list[SessionRow]:
        """Newest first; ``before`` is the id after which the page goes on."""
        sql = (
            "select * from view_sessions.sessions where tenant = %s and (closed_at is not null) = %s"
            " and (%s = '' or id < %s) order by id desc limit %s"
        )
        values = (tenant, closed, before, before, limit)
        async with self.pool.connection() as connection, connection.cursor(row_factory=class_row(SessionRow)) as cursor:
            await cursor.execute(sql, values)
            return await cursor.fetchall()
