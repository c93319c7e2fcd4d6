"""A gRPC channel that outlives its certificate."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from servicekit.tls import Material, Tls


class RenewedChannel(grpc.aio.Channel):
    """Each call goes by the newest certificate; one in flight stays on the connection that it began on.

    The credentials of a channel cannot be changed, so new ones mean a new channel. The former is closed when its last call
    has ended, however long that follows something: to end it would cancel whoever reads.
    """

    def __init__(self, tls: Tls, open_channel: Callable[[Material], grpc.aio.Channel]) -> None:
        self._tls = tls
        self._open_channel = open_channel
        self._material = tls.current
        self._channel = open_channel(self._material)
        self._calls: Counter[grpc.aio.Channel] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_stream", args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        self._is_closed = True
        for channel in {self._channel, *self._calls}:
            await channel.close(grace)
        if self._closing:
            await asyncio.wait(self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest().channel_ready()

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _method(self, kind: str, args: Any, kwargs: Any) -> Callable[..., Any]:
        channel = self._channel
        invoke = getattr(channel, kind)(*args, **kwargs)

        def call(*request: Any, **options: Any) -> Any:
            nonlocal channel, invoke
            if channel is not (newest := self._newest()):
                channel, invoke = newest, getattr(newest, kind)(*args, **kwargs)
            return self._counted(channel, invoke(*request, **options))

        return call

    def _newest(self) -> grpc.aio.Channel:
        if self._tls.current is not self._material:
            former, self._material = self._channel, self._tls.current
            self._channel = self._open_channel(self._material)
            self._close_if_idle(former)
        return self._channel

    def _counted(self, channel: grpc.aio.Channel, call: Any) -> Any:
        def ended(_call: object) -> None:
            self._calls[channel] -= 1
            if channel is not self._channel:
                self._close_if_idle(channel)

        self._calls[channel] += 1
        call.add_done_callback(ended)
        return call

    def _close_if_idle(self, former: grpc.aio.Channel) -> None:
        if not self._is_closed and self._calls[former] == 0:
            del self._calls[former]
            closing = asyncio.ensure_future(former.close(None))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
