"""A peer may have replicas: calls go to those that serve, and one that dies or is replaced costs no call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.auth import StaticToken
from servicekit.clock import SystemClock
from servicekit.limits import Limits
from servicekit.peers import CallTerms, PeerChannel
from servicekit.retry import Backoff

WAIT_S = 20.0
PUBLIC = dict.fromkeys(("Unary", "Download", "Upload", "Chat", "WatchWords"), "")
ORDER = StringValue(value="an order, which is not repeated")


def terms(**limits: Any) -> CallTerms:
    return CallTerms(StaticToken(""), SystemClock(), Limits(**limits), Backoff(initial_s=0.001, max_s=0.001))


@dataclass(frozen=True, slots=True)
class Replicas:
    echoes: Sequence[Any]
    asked: list[int]
    """For every call, which replica was asked."""
    channel: PeerChannel
    stub: Any

    async def shares(self, calls: int) -> set[int]:
        """Which replicas were asked when so many calls were made."""
        self.asked.clear()
        for _ in range(calls):
            await self.stub.Unary(ORDER)
        assert len(self.asked) == calls
        return set(self.asked)

    async def shared_by(self, *replicas: int) -> None:
        """Wait until it is exactly these that are asked."""
        async with asyncio.timeout(WAIT_S):
            while await self.shares(4) != set(replicas):
                pass


@pytest.fixture
async def replicas(serve_echo: Any, echo_type: Any, echo_stub: Any) -> AsyncIterator[Replicas]:
    asked: list[int] = []

    class Numbered(echo_type):
        def __init__(self, number: int) -> None:
            self.number = number

        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            asked.append(self.number)
            return request

    async with AsyncExitStack() as stack:
        echoes = [await stack.enter_async_context(serve_echo(Numbered(each), permissions=PUBLIC)) for each in (0, 1)]
        address = "ipv4:" + ",".join(echo.address for echo in echoes)
        channel = await stack.enter_async_context(PeerChannel(address, terms()))
        yield Replicas(echoes, asked, channel, echo_stub(channel))


async def test_calls_go_to_all_replicas(replicas: Replicas) -> None:
    await replicas.shared_by(0, 1)
    assert await replicas.shares(20) == {0, 1}
    assert replicas.asked.count(0) == replicas.asked.count(1)


async def test_a_replica_that_says_it_does_not_serve_is_left_out_and_loses_no_call(replicas: Replicas) -> None:
    await replicas.shared_by(0, 1)
    await replicas.echoes[0].server.set_serving(False)
    await replicas.shared_by(1)
    await replicas.echoes[0].server.set_serving(True)
    await replicas.shared_by(0, 1)


async def test_a_replica_that_stops_once_it_was_left_loses_no_call(replicas: Replicas) -> None:
    await replicas.shared_by(0, 1)
    await replicas.echoes[0].server.set_serving(False)
    await replicas.shared_by(1)
    stopping = asyncio.create_task(replicas.echoes[0].server.stop(WAIT_S))
    assert await replicas.shares(20) == {1}
    await stopping


@asynccontextmanager
async def one_that_is_away(serve_echo: Any, echo_stub: Any, **limits: Any) -> AsyncIterator[tuple[int, Any]]:
    """The port of a peer that served and stopped, and a stub of a channel that was connected to it."""
    async with serve_echo(permissions=PUBLIC) as echo, PeerChannel(echo.address, terms(**limits)) as channel:
        stub = echo_stub(channel)
        await stub.Unary(ORDER)
        await echo.server.stop(0)
        yield int(echo.address.rpartition(":")[2]), stub


async def test_an_order_waits_for_a_peer_that_is_replaced(serve_echo: Any, echo_stub: Any) -> None:
    async with one_that_is_away(serve_echo, echo_stub, peer_connect_s=WAIT_S, peer_deadline_s=2 * WAIT_S) as (
        port,
        stub,
    ):
        waiting = asyncio.create_task(stub.Unary(ORDER))
        async with serve_echo(permissions=PUBLIC, port=port):
            assert (await waiting).value == ORDER.value


async def test_a_stream_waits_for_a_peer_that_is_replaced(serve_echo: Any, echo_stub: Any) -> None:
    async def downloaded(stub: Any) -> list[str]:
        return [item.value async for item in stub.Download(StringValue(value="a b"))]

    async with one_that_is_away(serve_echo, echo_stub, peer_connect_s=WAIT_S) as (port, stub):
        waiting = asyncio.create_task(downloaded(stub))
        async with serve_echo(permissions=PUBLIC, port=port):
            assert await waiting == ["a", "b"]


async def test_a_peer_that_stays_away_is_unavailable_before_the_deadline(serve_echo: Any, echo_stub: Any) -> None:
    async with one_that_is_away(serve_echo, echo_stub, peer_connect_s=0.05, peer_deadline_s=WAIT_S) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(ORDER)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_silent_connection_is_kept_by_pings_that_its_server_expects(serve_echo: Any, echo_stub: Any) -> None:
    quick = Limits(peer_ping_s=0.05)
    async with (
        serve_echo(permissions=PUBLIC, limits=quick) as echo,
        PeerChannel(echo.address, terms(peer_ping_s=0.05)) as channel,
    ):
        await echo_stub(channel).Unary(ORDER)
        lost = asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
        done, _ = await asyncio.wait([lost], timeout=0.5)
        lost.cancel()
    assert not done
