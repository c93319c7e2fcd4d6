"""The keys that encrypt whole payloads of one log, numbered 1, 2, 3, ...; wrapped by the master key, in its database."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from psycopg.sql import SQL, Identifier
from psycopg_pool import AsyncConnectionPool

from eventlog.clock import Clock, SystemClock
from eventlog.errors import KeyUnusable
from eventlog.hash_tree import Connection
from eventlog.master_keys import MasterKey
from eventlog.sealing import KEY_BYTES

_TABLE = """
create table if not exists {schema}.data_keys (
    number integer primary key,
    wrapped bytea not null,
    master_key_id text not null,
    created_at timestamptz not null
)
"""


class DataKeys:
    """The data keys of the log in one schema. The pool stays the caller's; `retired` are former master keys."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        master: MasterKey,
        *,
        retired: Iterable[MasterKey] = (),
        schema: str = "eventlog",
        clock: Clock | None = None,
    ) -> None:
        self._pool = pool
        self._master = master
        self._masters = {key.key_id: key for key in (*retired, master)}
        self._clock = clock or SystemClock()
        self._sql = _Statements(schema)

    async def prepare(self) -> None:
        """Create the table if there is none, and the first key."""
        async with self._locked() as connection:
            await connection.execute("set local client_min_messages = warning")
            await connection.execute(self._sql.create)
            if await self._newest(connection) == 0:
                await self._insert(connection, 1)

    async def all(self) -> Mapping[int, bytes]:
        """Every key by its number. KeyUnusable if a master key that wrapped one is not here."""
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(self._sql.select)).fetchall()
        return {number: await self._unwrap(number, bytes(wrapped), master) for number, wrapped, master in rows}

    async def newest(self) -> int:
        """The number of the newest key; 0 if there is none."""
        async with self._pool.connection() as connection:
            return await self._newest(connection)

    async def add(self) -> int:
        """Make the next key; its number."""
        async with self._locked() as connection:
            number = await self._newest(connection) + 1
            await self._insert(connection, number)
        return number

    async def rewrap(self) -> int:
        """Wrap with the present master key what former ones wrapped; how many keys that were."""
        async with self._locked() as connection:
            rows = await (await connection.execute(self._sql.foreign, [self._master.key_id])).fetchall()
            for number, wrapped, master in rows:
                key = await self._unwrap(number, bytes(wrapped), master)
                renewed = await self._master.wrap(key, _context(number))
                await connection.execute(self._sql.update, [renewed, self._master.key_id, number])
        return len(rows)

    async def _newest(self, connection: Connection) -> int:
        row = await (await connection.execute(self._sql.newest)).fetchone()
        return 0 if row is None else int(row[0])

    async def _insert(self, connection: Connection, number: int) -> None:
        wrapped = await self._master.wrap(os.urandom(KEY_BYTES), _context(number))
        await connection.execute(self._sql.insert, [number, wrapped, self._master.key_id, self._clock.now()])

    async def _unwrap(self, number: int, wrapped: bytes, master_key_id: str) -> bytes:
        master = self._masters.get(master_key_id)
        if master is None:
            raise KeyUnusable(
                f"master key {self._master.key_id}",
                f"data key {number} of this database is wrapped by another master key, {master_key_id}; give that key "
                f"back, or name it among the former keys",
            )
        return await master.unwrap(wrapped, _context(number))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(self._sql.lock)
            yield connection


async def has_data_keys(pool: AsyncConnectionPool[Connection], schema: str = "eventlog") -> bool:
    """Whether payloads of the log in this schema were ever encrypted."""
    async with pool.connection() as connection:
        row = await (await connection.execute("select to_regclass(%s) is not null", [f"{schema}.data_keys"])).fetchone()
    return row is not None and bool(row[0])


class _Statements:
    """The statements of a log's data keys."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            return SQL(text).format(schema=Identifier(schema), lock=f"eventlog:{schema}:data-keys").as_bytes(None)

        self.create = render(_TABLE)
        self.lock = render("select pg_advisory_xact_lock(hashtextextended({lock}, 0))")
        self.newest = render("select coalesce(max(number), 0) from {schema}.data_keys")
        self.select = render("select number, wrapped, master_key_id from {schema}.data_keys order by number")
        self.foreign = render(
            "select number, wrapped, master_key_id from {schema}.data_keys where master_key_id <> %s order by number"
        )
        self.insert = render(
            "insert into {schema}.data_keys (number, wrapped, master_key_id, created_at) values (%s, %s, %s, %s)"
        )
        self.update = render("update {schema}.data_keys set wrapped = %s, master_key_id = %s where number = %s")


def _context(number: int) -> bytes:
    return f"data key\n{number}".encode()
