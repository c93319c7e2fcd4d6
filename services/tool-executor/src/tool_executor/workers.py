"""Which workers are alive. A worker holds a lock in the database for as long as its process lives; PostgreSQL gives it
up when the process is gone, however it went.

A worker that loses its connection counts as dead until it has a new one. Nothing is done twice by that: a pure or
idempotent call may be, and of an at-most-once call the outcome is recorded as unknown.
"""

import asyncio
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from eventlog.patience import ImpatientConnection
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

CHECK_S: Final = 5.0


class Workers(Protocol):
    """Knows which workers' processes live."""

    async def alive(self, worker: str) -> bool: ...


@dataclass(slots=True)
class PostgresWorkers:
    """Workers of one database. ``enter`` before the first call, then ``stay`` for as long as the process lives."""

    dsn: str
    pool: AsyncConnectionPool
    worker: str
    _connection: AsyncConnection | None = field(default=None)

    async def enter(self) -> None:
        connection = await ImpatientConnection.connect(self.dsn, autocommit=True)
        await connection.execute("select pg_advisory_lock(%s)", (_key(self.worker),))
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
        ask = "select pg_try_advisory_xact_lock_shared(%s)"
        async with self.pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(ask, (_key(worker),))).fetchone()
        assert row is not None
        return not row[0]


async def private_directory(root: Path, worker: str, workers: Workers) -> Path:
    """A directory for this worker alone. Those of dead workers, with what their calls have left, are removed."""
    own = root / worker
    own.mkdir(mode=0o700, parents=True)
    for found in root.iterdir():
        if found != own and not await workers.alive(found.name):
            shutil.rmtree(found, ignore_errors=True)
    return own


def _key(worker: str) -> int:
    """The lock of a worker: 64 bits, signed as PostgreSQL wants them."""
    return int.from_bytes(hashlib.sha256(worker.encode()).digest()[:8], "big", signed=True)
