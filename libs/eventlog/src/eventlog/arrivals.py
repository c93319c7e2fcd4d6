"""What came in over a subscription and nobody has taken."""

from __future__ import annotations

import asyncio
from collections import deque

from nats.aio.msg import Msg

from eventlog.signal import settle, settled


class Arrivals:
    """Many messages are worth one wake-up, not two tasks each as nats-py makes for whoever asks for the next one."""

    def __init__(self) -> None:
        self.messages: deque[Msg] = deque()
        self._awaited: asyncio.Future[bool] | None = None

    async def put(self, message: Msg) -> None:
        self.messages.append(message)
        if self._awaited is not None:
            settle(self._awaited)

    async def wait(self, timeout_s: float) -> bool:
        """Whether there are messages, at once or before the time is over."""
        if not self.messages:
            self._awaited = asyncio.get_running_loop().create_future()
            await settled(self._awaited, timeout_s)
        return bool(self.messages)
