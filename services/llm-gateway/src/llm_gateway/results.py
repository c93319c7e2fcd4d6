"""Recorded answers in the service's own database. They are not facts: the log has their hash, they expire."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import psycopg
from eventlog import arrays
from eventlog.prepared import PreparedConnection
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from servicekit.clock import Clock

from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Kept
from llm_gateway.store import connected

PURGE_EVERY_S: Final = 600.0

_TABLE: Final = """
    create table if not exists model_call_results (
        call_id text primary key, answer bytea not null, completed bytea not null, expires_at timestamptz not null
    );
    alter table model_call_results add column if not exists attempt int not null default 1;
    create index if not exists model_call_results_expiry on model_call_results (expires_at);
"""
_KEEP: Final = b"""
    insert into model_call_results as known (call_id, answer, completed, attempt, expires_at)
    select * from unnest($1::text[], $2::bytea[], $3::bytea[], $4::bigint[], $5::timestamptz[])
    on conflict (call_id) do update
    set answer = excluded.answer, completed = excluded.completed, attempt = excluded.attempt,
        expires_at = excluded.expires_at
    where known.attempt <= excluded.attempt
"""
_UNHURRIED: Final = b"set synchronous_commit to off"
"""The event that promises the answer is committed after it, and flushes both to disk: the log's order is one order."""
_FIND: Final = "select answer, completed, attempt from model_call_results where call_id = %s and expires_at > %s"
_PURGE: Final = "delete from model_call_results where expires_at <= %s"


_Row: TypeAlias = tuple[str, bytes, bytes, int, datetime]


@dataclass(slots=True)
class PostgresResults:
    """Answers that come while others are being written are written together: a transaction costs more than a row."""

    dsn: str
    pool: AsyncConnectionPool
    clock: Clock
    kept_s: float
    _writer: PreparedConnection | None = None
    _waiting: list[tuple[_Row, asyncio.Future[None]]] = field(default_factory=list)
    _writing: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self._connection() as connection:
            await connection.execute(_TABLE)

    async def keep(self, call_id: str, kept: Kept) -> None:
        expires_at = self.clock.now() + timedelta(seconds=self.kept_s)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((call_id, kept.answer, kept.completed, kept.attempt, expires_at), written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="model call results")
        await written

    async def find(self, call_id: str) -> Kept | None:
        async with self._connection() as connection:
            row = await (await connection.execute(_FIND, (call_id, self.clock.now()))).fetchone()
        return Kept(bytes(row[0]), bytes(row[1]), row[2]) if row else None

    async def close(self) -> None:
        """Give up the connection that answers are written on; the next answer opens another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    async def purge(self) -> None:
        async with self._connection() as connection:
            await connection.execute(_PURGE, (self.clock.now(),))

    async def purge_forever(self) -> None:
        while True:
            await self.purge()
            await asyncio.sleep(PURGE_EVERY_S)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._write([row for row, _ in batch], [written for _, written in batch])
        finally:
            self._writing = None

    async def _write(self, rows: Sequence[_Row], written: Sequence["asyncio.Future[None]"]) -> None:
        # One statement may not meet a row twice; of two answers to a call the later attempt's stays.
        newest = {row[0]: row for row in sorted(rows, key=lambda row: row[3])}
        try:
            connection = await self._writing_connection()
            await connection.run(_KEEP, _columns(newest.values()))
        except psycopg.Error as error:  # whichever: those who wait for the next batch must not wait for ever
            await self.close()
            unavailable = StoreUnavailable(f"answers cannot be recorded: {error}")
            unavailable.__cause__ = error
            _end(written, unavailable)
        except BaseException:
            await self.close()
            late, self._waiting = self._waiting, []
            _end([*written, *(waiting for _, waiting in late)], StoreUnavailable("the store is closing"))
            raise
        else:
            _end(written, None)

    async def _writing_connection(self) -> PreparedConnection:
        """A connection of its own whose statements are transactions: it writes for each call."""
        if self._writer is None or self._writer.ended:
            self._writer = await PreparedConnection.open(self.dsn, _UNHURRIED, [_KEEP])
        return self._writer

    def _connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        return connected(self.pool, "recorded answers cannot be reached")


def _columns(rows: Iterable[_Row]) -> tuple[bytes, ...]:
    ids, answers, completed, attempts, expire_at = zip(*rows, strict=True)
    return (
        arrays.texts(ids),
        arrays.byteas(answers),
        arrays.byteas(completed),
        arrays.bigints(attempts),
        arrays.times(expire_at),
    )


def _end(written: Sequence["asyncio.Future[None]"], error: StoreUnavailable | None) -> None:
    """Whoever was cancelled while it waited has left its answer all the same."""
    for future in written:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
