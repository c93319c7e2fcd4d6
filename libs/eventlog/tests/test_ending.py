"""A task is ended for certain, also when it loses a cancellation."""

import asyncio
from contextlib import suppress

from eventlog.ending import end


async def test_a_task_that_lost_a_cancellation_is_cancelled_again() -> None:
    started, lost = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    async with asyncio.timeout(30):
        await end(task, again_s=0.01)
    assert (lost.is_set(), task.cancelled()) == (True, True)


async def test_what_a_task_raises_is_its_own() -> None:
    async def fail() -> None:
        raise ValueError("of its own")

    failed, endless = asyncio.create_task(fail()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.wait([failed])
    await end(failed, endless)
    assert (isinstance(failed.exception(), ValueError), endless.cancelled()) == (True, True)


async def test_who_waits_is_cancelled_himself() -> None:
    async def stubborn() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await release.wait()
                return

    release = asyncio.Event()
    task = asyncio.create_task(stubborn())
    waiting = asyncio.create_task(end(task))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    release.set()
    await task
    assert waiting.cancelled()
