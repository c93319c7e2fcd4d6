"""Background work of a service, supervised: a crash is logged, counted and answered by a restart after a pause."""

import asyncio
from collections.abc import Awaitable, Callable

from servicekit.clock import Clock
from servicekit.health import Health
from servicekit.retry import Backoff
from servicekit.telemetry import Logger, Metrics

Work = Callable[[], Awaitable[object]]

STEADY_S = 30.0
"""A task that ran this long before it crashed is restarted as if for the first time."""

CANCEL_AGAIN_S = 1.0
"""A cancellation may get lost: asyncio.wait_for of Python 3.11, which the connection pool waits with, swallows one that
comes together with its result."""


class Tasks:
    """Runs each task until it returns or `stop` cancels it. A task that returns is done and not started again."""

    def __init__(self, clock: Clock, health: Health, metrics: Metrics, log: Logger, backoff: Backoff) -> None:
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._log = log
        self._backoff = backoff
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Work) -> None:
        """Raises ValueError when a task of this name runs already."""
        if name in self._running and not self._running[name].done():
            raise ValueError(f"a task named {name!r} runs already")
        self._metrics.task_restarts.labels(name)  # from 0 on, so that the first crash is seen to be an increase
        self._running[name] = asyncio.create_task(self._supervise(name, work), name=name)

    async def stop(self, grace_s: float) -> None:
        """Cancel all tasks and wait until they have put down what they hold, at most `grace_s`."""
        tasks = {task for task in self._running.values() if not task.done()}
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + grace_s
        while tasks and (left_s := give_up_at - loop.time()) > 0:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=min(CANCEL_AGAIN_S, left_s))
        for task in tasks:
            self._log.warning("task_abandoned", task=task.get_name(), grace_s=grace_s)
        self._running.clear()

    async def _supervise(self, name: str, work: Work) -> None:
        crashes = 0
        while True:
            started = self._clock.monotonic()
            watch = asyncio.create_task(self._recover_when_steady(name))
            try:
                await work()
                self._health.recover(name)
                return
            except Exception as error:  # noqa: BLE001 - the edge of a task: recorded, counted and retried
                crashes = 0 if self._clock.monotonic() - started > STEADY_S else crashes
                self._record(name, error, crashes)
            finally:
                watch.cancel()
            await asyncio.sleep(self._backoff.delay_s(crashes))
            crashes += 1

    async def _recover_when_steady(self, name: str) -> None:
        await asyncio.sleep(STEADY_S)
        self._health.recover(name)

    def _record(self, name: str, error: Exception, crashes: int) -> None:
        self._health.degrade(name, f"crashed: {error!r}")
        self._metrics.task_restarts.labels(name).inc()
        self._log.error("task_crashed", error=error, task=name, crashes=crashes + 1)
