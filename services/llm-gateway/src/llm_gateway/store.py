"""The service's own database: connections to it, and one error when it cannot be reached."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from llm_gateway.errors import StoreUnavailable


@asynccontextmanager
async def connected(
    pool: AsyncConnectionPool[AsyncConnection[Any]], trouble: str
) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection in a transaction. Raises StoreUnavailable, whose text begins with `trouble`."""
    try:
        async with pool.connection() as connection:
            yield connection
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise StoreUnavailable(f"{trouble}: {error}") from error
