"""Which processes of this service live. Each holds a lock in the database for as long as it does; PostgreSQL gives the
lock up when the process is gone, however it went.

A process that loses its connection counts as dead until it has a new one. Its calls may then be carried out a second
time; the log decides which answer counts, and the other one's reservation stays held as unknown.

What it has reserved ahead it may not go on with like that: others release it. So it reserves ahead under a second name,
its holder, which has a lock on the same connection and dies with it; with a new connection comes a new holder. What no
clock of the machine sees, such as a virtual machine that was stopped and goes on, is not noticed here: what such a process
still spends is settled all the same, and told as an overrun where a budget has not that much.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from eventlog.patience import ImpatientConnection
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from llm_gateway.store import connected

CHECK_S: Final = 5.0
FORMER_KEPT_S: Final = 60.0
"""How long it is known when a former holder was last confirmed. Nothing of it may be used for so long."""
_BOOT_TIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_TAKE: Final = "select pg_advisory_lock(%s)"
_ASK: Final = "select pg_try_advisory_xact_lock_shared(%s)"


def boot_time() -> float:
    """Seconds since the machine was started, those in which it slept included: others did not sleep."""
    return time.clock_gettime(_BOOT_TIME)


@dataclass(slots=True)
class PostgresWorkers:
    """Implements Workers. ``enter`` before the first call, then ``stay`` for as long as the process lives.

    `now` is the clock of `confirmed_at`.
    """

    dsn: str
    pool: AsyncConnectionPool[AsyncConnection[Any]]
    own: str
    check_s: float = CHECK_S
    now: Callable[[], float] = boot_time
    holder: str = field(init=False, default="")
    _holders: int = field(init=False, default=0)
    _confirmed: dict[str, float] = field(init=False, default_factory=dict)
    _connection: AsyncConnection[Any] | None = field(init=False, default=None)

    async def enter(self) -> None:
        # Counted before it is asked for: a lock whose answer was lost may be held for a while by a server that does not
        # know yet that nobody listens.
        self._holders += 1
        holder = f"{self.own}.{self._holders}"
        connection = await ImpatientConnection.connect(self.dsn, autocommit=True)
        asked_at = self.now()
        try:
            for name in (self.own, holder):
                await connection.execute(_TAKE, (_key(name),))
        except BaseException:
            await connection.close()
            raise
        self._connection, self.holder = connection, holder
        former = {name: at for name, at in self._confirmed.items() if asked_at - at < FORMER_KEPT_S}
        self._confirmed = {**former, holder: asked_at}

    async def stay(self) -> None:
        """Raises psycopg.OperationalError when the connection is lost; started again, it makes a new one."""
        if self._connection is None:
            await self.enter()
        assert self._connection is not None
        try:
            while True:
                asked_at = self.now()
                await self._connection.execute("select 1")
                self._confirmed[self.holder] = asked_at
                await asyncio.sleep(self.check_s)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def confirmed_at(self, holder: str) -> float:
        return self._confirmed.get(holder, -inf)

    async def alive(self, name: str) -> bool:
        # Shared, so that two who ask do not take each other for the worker.
        async with (
            connected(self.pool, f"whether {name} lives cannot be asked") as connection,
            connection.transaction(),
        ):
            row = await (await connection.execute(_ASK, (_key(name),))).fetchone()
        assert row is not None
        return not row[0]


def _key(name: str) -> int:
    """The lock of a worker or a holder: 64 bits, signed as PostgreSQL wants them."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
