"""Agents that live in the user's own process: registered, known to be alive, asked by name.

>>> async def translate(task: Task) -> str:
...     return task.text.upper()
>>> async with Agent.register(synod, name="translator", capabilities=["translate"]) as agent:
...     await agent.serve(translate)

What is guaranteed of tasks and answers stands in synod_client.tasks: at least once, with the task id as idempotency key.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import nats.errors
from synod.agent_registry.v1.agent_registry_pb2 import AGENT_STATE_SUSPENDED
from synod.common.values import Failure

from synod_client.client import Synod
from synod_client.errors import Broken, Replaced, SynodError, TaskFailed, TryAgain
from synod_client.tasks import DELIVERIES_MAX, TEXT_BYTES_MAX, Answer, Delivery, Queue, Task, Tasks, answer_now

Handler = Callable[[Task], Awaitable[str]]
TAKE_WAIT_S: Final = 5.0
PAUSE_MAX_S: Final = 5.0
ANSWER_ATTEMPTS_MAX: Final = 20
HEARTBEAT_AT: Final = 0.8
"""Of the interval that the registry names."""
FIRST_HEARTBEAT_PAUSE_S: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Agent:
    """One incarnation of an agent in this process (or, with a group, in several)."""

    synod: Synod
    id: str
    name: str
    incarnation: int
    _busy: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def register(
        cls, synod: Synod, name: str, capabilities: Iterable[str] = (), *, group: str = ""
    ) -> AsyncIterator["Agent"]:
        """Registers a new incarnation; any process that had registered this name before stops with Replaced.

        Processes that give the same ``group`` are one incarnation and share the queue; the load that the registry knows is
        then what the last of them said. On leaving, nothing is undone: without heartbeats the agent goes suspect, then
        offline, and its tasks wait. Raises Refused (NAME_TAKEN) when an agent inside Synod has the name.
        """
        found = await synod.register(name, capabilities, request_id=group and f"group:{name}:{group}")
        yield cls(synod, found.id, found.name, found.incarnation)

    async def serve(self, handler: Handler, *, concurrency: int = 1) -> None:
        """Takes tasks, ``concurrency`` at a time, until cancelled; a suspended agent takes none.

        Raises Replaced when another process took the name or the agent was terminated; tasks in hand are given back.
        What the handler raises becomes the task's failure: TaskFailed as it is, anything else as HANDLER_FAILED.
        """
        tasks = Tasks(await self.synod.connection.nats("client"), self.synod.connection.tenant)
        parts = [self._keep_alive(), *(self._work(tasks, handler) for _ in range(concurrency))]
        running = [asyncio.create_task(part) for part in parts]
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in running:
                part.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for part in ended:
            part.result()

    async def _keep_alive(self) -> None:
        pause_s = FIRST_HEARTBEAT_PAUSE_S
        while True:
            try:
                answer = await self.synod.beat(self.id, self.incarnation, self._busy)
            except (TryAgain, Broken) as error:
                _log.warning("agent '%s' could not say that it is alive: %s", self.name, error)
            except SynodError as error:
                raise self._explained(error) from error
            else:
                pause_s = HEARTBEAT_AT * answer.interval_ms / 1000
                self._open.clear() if answer.state == AGENT_STATE_SUSPENDED else self._open.set()
            await asyncio.sleep(pause_s)

    def _explained(self, error: SynodError) -> SynodError:
        if error.reason != "STALE_INCARNATION":
            return error
        return Replaced(
            f"agent '{self.name}' was registered by another process or terminated; incarnation {self.incarnation} takes no "
            "more tasks. Processes that are to share the tasks register with the same group",
            error.reason,
            error.code,
            error.details,
        )

    async def _work(self, tasks: Tasks, handler: Handler) -> None:
        failures = 0
        while True:
            try:
                queue = await tasks.queue(self.name)
                try:
                    failures = 0
                    await self._drain(tasks, queue, handler)
                finally:
                    await queue.close()
            except (nats.errors.Error, TimeoutError) as error:
                failures += 1
                _log.warning("agent '%s' cannot reach its queue: %r", self.name, error)
                await asyncio.sleep(min(PAUSE_MAX_S, self.synod.connection.pause_s(failures)))

    async def _drain(self, tasks: Tasks, queue: Queue, handler: Handler) -> None:
        while True:
            await self._open.wait()
            delivery = await queue.take(TAKE_WAIT_S)
            if delivery is not None:
                await self._carry_out(tasks, delivery, handler)

    async def _carry_out(self, tasks: Tasks, delivery: Delivery, handler: Handler) -> None:
        """Acknowledges after the answer is stored, never before."""
        self._busy += 1
        try:
            async with delivery.kept():
                if await tasks.answer_to(delivery.task.id) is None:
                    await self._store(tasks, await self._answer(delivery.task, handler))
            await delivery.done()
        except asyncio.CancelledError:
            await delivery.given_back()
            raise
        finally:
            self._busy -= 1

    async def _answer(self, task: Task, handler: Handler) -> Answer:
        by = f"{self.name}#{self.incarnation}"
        if task.delivery > DELIVERIES_MAX:
            text = f"{DELIVERIES_MAX} processes died or fell silent over task {task.id}"
            return answer_now(task, by, failure=Failure(reason="DELIVERIES_EXHAUSTED", message=text))
        try:
            return answer_now(task, by, output=_checked(await handler(task)))
        except TaskFailed as failed:
            return answer_now(task, by, failure=Failure(reason=failed.reason or "TASK_FAILED", message=failed.message))
        except Exception as error:  # noqa: BLE001 - the edge to the user's code: recorded as the task's outcome
            _log.exception("the handler of agent '%s' failed on task %s", self.name, task.id)
            message = f"the handler of agent '{self.name}' raised {type(error).__name__}: {error}"
            return answer_now(task, by, failure=Failure(reason="HANDLER_FAILED", message=message))

    async def _store(self, tasks: Tasks, answer: Answer) -> None:
        """Tries for a while: to give the task back would be to do its work again."""
        for attempt in range(1, ANSWER_ATTEMPTS_MAX + 1):
            try:
                await tasks.answer(answer)
            except (nats.errors.Error, TimeoutError):
                if attempt == ANSWER_ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(self.synod.connection.pause_s(attempt))
            else:
                return


def _checked(output: str) -> str:
    size = len(output.encode())
    if size > TEXT_BYTES_MAX:
        raise TaskFailed(f"the answer is {size} bytes long; at most {TEXT_BYTES_MAX} can be sent", "ANSWER_TOO_LARGE")
    return output
