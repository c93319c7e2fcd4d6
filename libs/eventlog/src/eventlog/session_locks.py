"""Advisory locks that a connection holds over many transactions: taken and given back so that none stays behind.

Connections come from pools. A lock that is not given back for sure ends with its connection, which is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import Composed


async def take(
    connection: AsyncConnection[Any], statement: bytes | Composed, parameters: Sequence[object] = ()
) -> bool:
    """Whether the lock is this connection's now. Who is cancelled meanwhile has none."""
    try:
        async with connection.transaction():
            asked = await connection.execute(statement, parameters)
            (taken,) = await asked.fetchone() or (False,)
    except asyncio.CancelledError:
        await connection.close()  # the lock may have come meanwhile
        raise
    return bool(taken)


async def give_back(
    connection: AsyncConnection[Any], statement: bytes | Composed, parameters: Sequence[object] = ()
) -> None:
    """Raises psycopg.Error if that fails; the connection is closed then, which does the same."""
    try:
        async with connection.transaction():
            await connection.execute(statement, parameters)
    except (psycopg.Error, asyncio.CancelledError):
        await connection.close()
        raise
