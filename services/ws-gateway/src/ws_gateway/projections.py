"""What can be asked: sessions, open and closed."""

from dataclasses import dataclass, replace
from datetime import datetime

from eventlog.records import StoredEvent
from eventlog.table_view import TableView, begins, on
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from synod.ws_gateway.events import SessionClosed, SessionOpened


@dataclass(frozen=True, slots=True)
class SessionRow:
    id: str
    tenant: str
    principal_id: str
    transport: str
    connected_at: datetime
    closed_at: datetime | None = None
    frames_sent: int = 0
    frames_dropped: int = 0


class SessionsView(TableView[SessionRow]):
    """One row a session."""

    name, version, row = "sessions", 2, SessionRow
    indexes = ("(tenant, id desc)",)

    @begins
    def opened(self, event: SessionOpened, stored: StoredEvent) -> SessionRow:
        return SessionRow(stored.stream.id, stored.tenant, event.principal_id, event.transport, stored.occurred_at)

    @on
    def closed(self, row: SessionRow, event: SessionClosed, stored: StoredEvent) -> SessionRow:
        sent, dropped = event.frames_sent, event.frames_dropped
        return replace(row, closed_at=stored.occurred_at, frames_sent=sent, frames_dropped=dropped)


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
