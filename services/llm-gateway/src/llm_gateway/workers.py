"""Which processes of this service live. Each holds a lock in the database for as long as it does; PostgreSQL gives the
lock up when the process is gone, however it went.

A process that loses its connection counts as dead until it has a new one. Its calls may then be carried out a second
time; the log decides which answer counts, and the other one's reservation stays held as unknown.
"""

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from eventlog.patience import ImpatientConnection
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from llm_gateway.store import connected

CHECK_S: Final = 5.0
_ASK: Final = "select pg_try_advisory_xact_lock_shared(%s)"


@dataclass(slots=True)
class PostgresWorkers:
    """Implements Workers. ``enter`` before the first call, then ``stay`` for as long as the process lives."""

    dsn: str
    pool: AsyncConnectionPool[AsyncConnection[Any]]
    own: str
    _connection: AsyncConnection[Any] | None = field(default=None)

    async def enter(self) -> None:
        connection = await ImpatientConnection.connect(self.dsn, autocommit=True)
        await connection.execute("select pg_advisory_lock(%s)", (_key(self.own),))
        self._connection = connection

    async def stay(self) -> None:
        """Raises psycopg.OperationalError when the connection is lost; started again, it makes a new one."""
        if self._connection is None:
            await self.enter()
        assert self._connection is not None
        try:
            while True:
                await self._connection.execute("select 1")
                await asyncio.sleep(CHECK_S)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def alive(self, worker: str) -> bool:
        # Shared, so that two who ask do not take each other for the worker.
        async with (
            connected(self.pool, f"whether {worker} lives cannot be asked") as connection,
            connection.transaction(),
        ):
            row = await (await connection.execute(_ASK, (_key(worker),))).fetchone()
        assert row is not None
        return not row[0]


def _key(worker: str) -> int:
    """The lock of a worker: 64 bits, signed as PostgreSQL wants them."""
    return int.from_bytes(hashlib.sha256(worker.encode()).digest()[:8], "big", signed=True)
