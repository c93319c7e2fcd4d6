"""Erasures that were begun: in a table from the moment the key is destroyed until nothing is left to do.

An erasure is more than one transaction can hold: snapshots, the record in the log, views. Whoever dies between them leaves
a row here, and any process goes on from it. One erasure of a person is carried out by one process at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier

from eventlog import session_locks
from eventlog.hash_tree import Connection
from eventlog.patience import unhurried

_TABLE: Final = """
create table if not exists {schema}.erasures_pending (
    tenant text not null,
    subject text not null,
    id uuid not null,
    actor text not null,
    reason text not null,
    key_destroyed boolean not null,
    begun_at timestamptz not null,
    primary key (tenant, subject, id)
);
"""


@dataclass(frozen=True, slots=True)
class PendingErasure:
    """The key of `subject` is destroyed; snapshots, the record or views may be left to do. `id` is the record's."""

    tenant: str
    subject: str
    id: UUID
    actor: str
    reason: str
    key_destroyed: bool
    begun_at: datetime


class Erasures:
    """The table of pending erasures in one schema. Connections and transactions are the caller's."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            return SQL(text).format(schema=Identifier(schema), lock=f"eventlog:{schema}:erasure").as_bytes(None)

        self.create = render(_TABLE)
        self._insert = render("insert into {schema}.erasures_pending values (%s, %s, %s, %s, %s, %s, %s)")
        self._delete = render("delete from {schema}.erasures_pending where tenant = %s and subject = %s and id = %s")
        self._select = render(
            "select tenant, subject, id, actor, reason, key_destroyed, begun_at from {schema}.erasures_pending"
            " where (%s::text is null or tenant = %s) and (%s::text is null or subject = %s) order by begun_at, id"
        )
        name = "hashtextextended({lock} || %s || chr(10) || %s, 0)"
        self._wait = render(f"select pg_advisory_lock({name}) is not null")
        self._try = render(f"select pg_try_advisory_lock({name})")
        self._unlock = render(f"select pg_advisory_unlock({name})")

    async def begin(self, connection: Connection, pending: PendingErasure) -> None:
        """Note an erasure in the transaction that destroys the key."""
        row = [pending.tenant, pending.subject, pending.id, pending.actor, pending.reason]
        await connection.execute(self._insert, [*row, pending.key_destroyed, pending.begun_at])

    async def end(self, connection: Connection, pending: PendingErasure) -> None:
        await connection.execute(self._delete, [pending.tenant, pending.subject, pending.id])

    async def pending(
        self, connection: Connection, tenant: str | None = None, subject: str | None = None
    ) -> list[PendingErasure]:
        """What was begun, of all tenants and persons or of those named; the oldest first."""
        async with connection.cursor(row_factory=class_row(PendingErasure)) as cursor:
            await cursor.execute(self._select, [tenant, tenant, subject, subject])
            return await cursor.fetchall()

    @asynccontextmanager
    async def turn(self, connection: Connection, tenant: str, subject: str, *, wait: bool) -> AsyncIterator[bool]:
        """Be the only process that erases this person. Where another one is, wait for it, or do without: False."""
        with unhurried(connection):  # an erasure rebuilds views
            claimed = await session_locks.take(connection, self._wait if wait else self._try, [tenant, subject])
        if not claimed:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(psycopg.Error):  # the turn has ended with the connection
                await session_locks.give_back(connection, self._unlock, [tenant, subject])
