"""How long PostgreSQL is waited for: to connect, for a sign of life from its machine, and for the answer to a statement.

A server whose machine is gone is noticed by TCP (SILENCE). One that is frozen is not: its kernel goes on acknowledging
what is sent, while the process behind it stands still with a stopped disk or a paused container. Only the caller's own
clock tells, so every connection of ours has one. What it gives up ends with the connection; whether a statement had
reached the server then is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import _WaitTimeout
from psycopg.rows import TupleRow

CONNECT_TIMEOUT_S: Final = 5
ANSWER_TIMEOUT_S: Final = 20.0
"""Longer than a writer may hold up the others (ten seconds), shorter than the deadline of a call (thirty)."""
SILENCE: Final = {
    "tcp_user_timeout": 30_000,  # ms
    "keepalives_idle": 10,  # s, as the next
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
"""A server that is gone without a word, with its machine or the way to it, is given up after half a minute. The system
would wait for a quarter of an hour, or two hours if nothing is on its way to it: so long would every append hang.
"""
NOTICE_THAT_WE_LEFT: Final = b"set client_connection_check_interval = 5000"
"""Has the server look, while a statement runs or waits for a lock, whether somebody still wants its answer (ms)."""
_LOOK_EVERY_S: Final = 0.1

_Result = TypeVar("_Result")


class NoAnswer(psycopg.OperationalError):
    """The server took a statement and did not answer for `timeout_s`. Its connection is closed."""

    def __init__(self, where: str, timeout_s: float) -> None:
        super().__init__(
            f"PostgreSQL at {where} has not answered for {timeout_s:g} s, its limit for one statement: "
            "it is frozen or far too busy"
        )
        self.timeout_s = timeout_s


class ImpatientConnection(AsyncConnection[TupleRow]):
    """A connection of psycopg each of whose statements is answered within `answer_timeout_s`, or ends it by NoAnswer.

    It is connected within CONNECT_TIMEOUT_S, and has the limits of SILENCE. `unhurried` lifts the limit for statements
    that may take long.
    """

    answer_timeout_s: float | None = ANSWER_TIMEOUT_S

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> ImpatientConnection:
        """As psycopg's, which also takes an `answer_timeout_s`.

        A pool gives each attempt as many seconds as it has left to reconnect: minutes, for an address that hangs.
        """
        answer_timeout_s = options.pop("answer_timeout_s", ANSWER_TIMEOUT_S)
        timeout_s = min(int(options.pop("connect_timeout", CONNECT_TIMEOUT_S)), CONNECT_TIMEOUT_S)
        connection = await super().connect(impatient(conninfo), connect_timeout=timeout_s, **options)
        connection.answer_timeout_s = answer_timeout_s
        return connection

    async def wait(self, gen: PQGen[_Result], interval: float = _LOOK_EVERY_S, timeout: float | None = None) -> _Result:
        """Of psycopg: all that waits for the server comes through here."""
        limit_s = self.answer_timeout_s if timeout is None else timeout
        try:
            return await super().wait(gen, interval, limit_s)
        except _WaitTimeout as error:
            if timeout is not None:
                raise
            where = postgres_address(self.info.dsn)
            self.pgconn.finish()
            raise NoAnswer(where, limit_s or 0) from error


@contextmanager
def unhurried(connection: AsyncConnection[Any]) -> Iterator[None]:
    """What is asked of the connection within it takes as long as it takes: the change of a table, a wait for a turn."""
    if not isinstance(connection, ImpatientConnection):
        yield
        return
    limit_s, connection.answer_timeout_s = connection.answer_timeout_s, None
    try:
        yield
    finally:
        connection.answer_timeout_s = limit_s


def impatient(dsn: str) -> str:
    """The DSN with the limits of SILENCE, unless it has its own. Raises psycopg.ProgrammingError for one that is none."""
    return make_conninfo("", **{**SILENCE, **conninfo_to_dict(dsn)})


def postgres_address(dsn: str) -> str:
    """host:port/database of a DSN, for people: without its password."""
    parts = conninfo_to_dict(dsn)
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
