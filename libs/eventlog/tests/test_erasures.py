"""Turns to erase a person: one at a time over all processes, and none that is taken and never given back."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from eventlog.erasures import Erasures
from psycopg import AsyncConnection

ERASURES = Erasures("eventlog")
WAIT_S = 30


@pytest.fixture
async def waiting(postgres_dsn: str) -> AsyncIterator[AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


async def wait_for_turn(connection: AsyncConnection) -> bool:
    async with ERASURES.turn(connection, "acme", "ada", wait=True) as mine:
        return mine


async def until_it_waits(observer: AsyncConnection, pid: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            asked = await observer.execute("select 1 from pg_locks where pid = %s and not granted", [pid])
            if await asked.fetchone():
                return


async def test_who_gives_up_while_waiting_for_a_turn_keeps_no_part_of_it(
    postgres_dsn: str, waiting: AsyncConnection
) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as other:
        async with ERASURES.turn(other, "acme", "ada", wait=True):
            task = asyncio.create_task(wait_for_turn(waiting))
            await until_it_waits(other, waiting.info.backend_pid)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert waiting.closed  # whatever it got at the last moment ended with it
        async with ERASURES.turn(other, "acme", "ada", wait=False) as mine:
            assert mine
