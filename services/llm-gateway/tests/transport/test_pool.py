"""Connections that are kept: how many, how long, and who gets the next."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohappyeyeballs import AddrInfoType
from llm_gateway.errors import DeadlineExceeded, ProviderUnreachable
from llm_gateway.providers.pool import ConnectionPool, Origin, PoolLimits
from llm_gateway.providers.transport import Transport

from .wire import Peer, Server, always, serving, soon

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LIMITS = PoolLimits()


@asynccontextmanager
async def pooled(limits: PoolLimits) -> AsyncIterator[Transport]:
    pool = ConnectionPool(limits)
    try:
        yield Transport(pool)
    finally:
        await pool.close()


async def call(transport: Transport, server: Server, deadline: float | None = None) -> bytes:
    async with transport.post(server.origin, {}, b"", deadline or soon()) as reply:
        return await reply.body()


class Held:
    """A server that answers when it is told to, and knows how many wait for that."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.may_answer = asyncio.Semaphore(0)

    async def serve(self, peer: Peer) -> None:
        while await peer.request():
            self.asked.release()
            await self.may_answer.acquire()
            await peer.say(HI)


async def test_calls_at_once_have_a_connection_each_and_leave_them_to_the_next() -> None:
    held = Held()
    async with pooled(LIMITS) as transport, serving(held.serve) as server:
        for _ in range(2):
            calls = [asyncio.create_task(call(transport, server)) for _ in range(3)]
            for _ in calls:
                await held.asked.acquire()
            for _ in calls:
                held.may_answer.release()
            assert await asyncio.gather(*calls) == [b"hi"] * 3
        assert server.connections == 3


async def test_no_more_connections_are_in_use_than_are_allowed_and_who_waits_longest_is_next() -> None:
    held, ended = Held(), list[int]()

    async def numbered(number: int) -> None:
        await call(transport, server)
        ended.append(number)

    async with pooled(replace(LIMITS, connections_max=1)) as transport, serving(held.serve) as server:
        calls = [asyncio.create_task(numbered(number)) for number in range(4)]
        for _ in calls:
            await held.asked.acquire()
            assert held.asked.locked()
            held.may_answer.release()
        await asyncio.gather(*calls)
        assert ended == [0, 1, 2, 3]
        assert server.connections == 1


async def test_waiting_for_a_place_ends_with_the_deadline_or_the_caller_and_passes_the_place_on() -> None:
    held = Held()
    async with pooled(replace(LIMITS, connections_max=1)) as transport, serving(held.serve) as server:
        first = asyncio.create_task(call(transport, server))
        await held.asked.acquire()
        with pytest.raises(DeadlineExceeded):
            await call(transport, server, asyncio.get_running_loop().time() + 0.02)
        gone, last = (asyncio.create_task(call(transport, server)) for _ in range(2))
        first.cancel()
        gone.cancel()
        for task in (first, gone):
            with pytest.raises(asyncio.CancelledError):
                await task
        held.may_answer.release()
        held.may_answer.release()
        assert await last == b"hi"


async def test_a_place_is_free_again_after_a_connection_that_failed() -> None:
    async with pooled(replace(LIMITS, connections_max=1)) as transport, serving(always(HI)) as server:
        for _ in range(3):
            with pytest.raises(ProviderUnreachable):
                await call(transport, Server("http://127.0.0.1:9"))
        assert await call(transport, server) == b"hi"


async def test_a_connection_that_lies_unused_is_closed() -> None:
    left = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(HI)
        await peer.gone()
        left.set()

    async with pooled(replace(LIMITS, unused_s=0.02)) as transport, serving(serve) as server:
        await call(transport, server)
        async with asyncio.timeout_at(soon()):
            await left.wait()
        assert await call(transport, server) == b"hi"
        assert server.connections == 2


async def test_a_connection_is_replaced_when_it_is_old_so_that_a_name_may_move() -> None:
    async with pooled(replace(LIMITS, age_s=0.0)) as transport, serving(always(HI)) as server:
        for _ in range(2):
            await call(transport, server)
        assert server.connections == 2


async def test_closing_ends_what_lies_unused_and_what_is_in_use() -> None:
    held = Held()
    async with serving(always(HI)) as idle, serving(held.serve) as busy:
        async with pooled(LIMITS) as transport:
            await call(transport, idle)
            under_way = asyncio.create_task(call(transport, busy))
            await held.asked.acquire()
        with pytest.raises(ProviderUnreachable, match="closed before an answer"):
            await under_way
        async with asyncio.timeout_at(soon()):
            await idle.left.wait()


async def test_a_connection_that_is_made_while_the_pool_closes_is_of_no_use() -> None:
    async with serving(always(HI)) as server:
        async with pooled(LIMITS) as transport:
            pass
        with pytest.raises(ProviderUnreachable, match="stopping"):
            await call(transport, server)
        assert not server.requests


class CountingPool(ConnectionPool):
    looked_up = 0

    async def _looked_up(self, origin: Origin) -> Sequence[AddrInfoType]:
        self.looked_up += 1
        return await super()._looked_up(origin)


async def test_a_name_is_looked_up_once_for_all_who_connect_at_once() -> None:
    held, pool = Held(), CountingPool()
    async with serving(held.serve) as server:
        calls = [asyncio.create_task(call(Transport(pool), server)) for _ in range(5)]
        for _ in calls:
            await held.asked.acquire()
            held.may_answer.release()
        assert await asyncio.gather(*calls) == [b"hi"] * 5
        await pool.close()
    assert (pool.looked_up, server.connections) == (1, 5)
