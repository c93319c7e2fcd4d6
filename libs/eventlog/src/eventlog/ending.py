"""Ending tasks for certain.

Before Python 3.12 asyncio.wait_for loses a cancellation that arrives together with what it waits for, and nats-py and the
connection pool wait with it. Who cancels such a task once and waits for its end may wait for ever.
"""

import asyncio
from typing import Final

CANCEL_AGAIN_S: Final = 1.0


async def end(*tasks: asyncio.Task[object], again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel tasks until all have ended. A task that needs longer than `again_s` to put down what it holds is disturbed.

    What they raise is not raised here.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, so that nobody is told that it never was
