"""Tasks for agents outside and their answers: two JetStream streams, and nothing else between asker and agent.

The administrator of NATS makes the streams (synod.common.streams); an agent's queue is made when it first serves.

    asker ── task ──▶ CMD_AGENTS  synod.<tenant>.cmd.agents.<agent>   work queue: a task leaves it when it is acknowledged
    asker ◀─ answer ─ ANS_AGENTS  synod.<tenant>.ans.agents.<task id> the first answer to a task stays, for a day

What is guaranteed
- A task that was accepted is worked on at least once, whatever restarts: agent, NATS or asker. It waits for its agent for
  seven days at most.
- A task is acknowledged only after its answer is stored. Between the two a crash means a second delivery, which finds the
  stored answer and is acknowledged unworked; before, it means that the handler runs again with the same task id. An
  effect that must not happen twice takes the task id as its idempotency key.
- There is one answer: of rival ones the first is kept, and every asker with this task id gets that.
- Processes that serve the same agent share its queue; a task is with one of them at a time. One that says nothing for 30 s
  (the library says it every 10 s) loses the task to another.
- A handler that raises is not tried again: its failure is the answer. A task that was delivered five times and killed
  its process each time is answered with the failure DELIVERIES_EXHAUSTED.

Payloads are JSON, Task and Answer below. A task's Nats-Msg-Id is its id, so that asking twice stores it once.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.client import JetStreamContext
from pydantic import AwareDatetime, ValidationError
from synod.common.event import Value
from synod.common.streams import AGENT_ANSWERS, AGENT_TASKS, AGENTS
from synod.common.subjects import command_subject
from synod.common.values import Failure

from synod_client.bus import REQUEST_TIMEOUT_S, cancellations, whole
from synod_client.errors import InvalidInput, TaskFailed, TryAgain

TASKS: Final = AGENT_TASKS.name
ANSWERS: Final = AGENT_ANSWERS.name
TEXT_BYTES_MAX: Final = 512 * 1024
ACK_WAIT_S: Final = 30.0
DELIVERIES_MAX: Final = 5
LOOK_EVERY_S: Final = 2.0
"""How often an asker looks at the stored answers, beside being told: a message can be lost while reconnecting."""
_FIRST_ONLY: Final = {"Nats-Expected-Last-Subject-Sequence": "0"}
_WRONG_LAST_SEQUENCE: Final = 10071


class Task(Value):
    """What an agent outside is asked. ``id`` is the same in every delivery: the idempotency key of what it causes."""

    id: str
    text: str
    asked_by: str
    asked_at: AwareDatetime
    delivery: int = 1
    """1, 2, ...: above 1 a process had this task before and did not finish it."""


class Answer(Value):
    """What became of a task: an output, or a failure."""

    task_id: str
    output: str = ""
    failure: Failure | None = None
    answered_by: str = ""
    """The agent and its incarnation, such as "translator#3"."""
    answered_at: AwareDatetime

    def result(self) -> str:
        """The output. Raises TaskFailed."""
        if self.failure is not None:
            raise TaskFailed(self.failure.message, self.failure.reason)
        return self.output


@dataclass(frozen=True, slots=True)
class Delivery:
    """A task in the hands of this process. It is the process's own until ``done``, ``given_back`` or silence."""

    task: Task
    message: Msg

    async def done(self) -> None:
        await whole(self.message.ack_sync())

    async def given_back(self) -> None:
        """Another process, or this one, gets it now; while NATS is away, when it has been silent for long enough."""
        with suppress(nats.errors.Error):
            await self.message.nak()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Says, while the block runs, that the task is being worked on."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(ACK_WAIT_S / 3)
                await self.message.in_progress()

        heart = asyncio.create_task(beat())
        try:
            yield
        finally:
            heart.cancel()


class Queue:
    """The tasks of one agent, shared by all processes that serve it."""

    def __init__(self, subscription: JetStreamContext.PullSubscription) -> None:
        self._subscription = subscription

    async def take(self, timeout_s: float) -> Delivery | None:
        """The next task, or None if there is none within the time. Raises nats.errors.Error when NATS is away."""
        before = cancellations()
        try:
            (message,) = await self._subscription.fetch(1, timeout=timeout_s)
        except (nats.errors.TimeoutError, TimeoutError):
            return None
        if cancellations() > before:
            await message.nak()
            raise asyncio.CancelledError
        try:
            task = Task.model_validate_json(message.data)
        except ValidationError:
            # Nobody can ever read it, and nobody waits for an answer under an id that it does not have.
            await message.term()
            return None
        return Delivery(task.model_copy(update={"delivery": message.metadata.num_delivered}), message)

    async def close(self) -> None:
        await self._subscription.unsubscribe()


class Tasks:
    """Tasks and answers of one tenant. Owns no connection."""

    def __init__(self, client: Client, tenant: str) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._tenant = tenant

    async def ask(self, agent: str, text: str, task_id: str, asked_by: str, timeout_s: float) -> Answer:
        """Puts a task into the agent's queue, unless it is answered already, and waits for the answer.

        Raises InvalidInput for a text that is too long, TryAgain: ANSWER_LATE, or NATS_UNAVAILABLE when the task was not
        accepted.
        """
        _check_size(text)
        subscription = await self._client.subscribe(self._answer_subject(task_id))
        try:
            async with asyncio.timeout(timeout_s):
                answered = await self.answer_to(task_id)
                if answered is None:
                    await self._put(agent, Task(id=task_id, text=text, asked_by=asked_by, asked_at=_now()))
                return answered or await self._answered(task_id, subscription)
        except TimeoutError as error:
            raise TryAgain(
                f"agent '{agent}' has not answered within {timeout_s:g} s; its task {task_id} stays in the queue, "
                "ask again with this task_id to wait on",
                "ANSWER_LATE",
                details={"task_id": task_id},
            ) from error
        except nats.errors.Error as error:
            text = f"NATS did not take task {task_id} ({error}); ask again with this task_id"
            raise TryAgain(text, "NATS_UNAVAILABLE", details={"task_id": task_id}) from error
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def queue(self, agent: str) -> Queue:
        """The agent's queue; made if it is new. Raises nats.errors.Error or TimeoutError while NATS is away."""
        durable = f"{AGENTS}-{self._tenant}-{agent}"
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=self._task_subject(agent),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            # The server would drop a task that killed its process; we count ourselves, and answer.
            max_deliver=-1,
        )
        await whole(self._jetstream.add_consumer(TASKS, config))
        return Queue(await self._jetstream.pull_subscribe_bind(durable=durable, stream=TASKS))

    async def answer_to(self, task_id: str) -> Answer | None:
        """The stored answer."""
        try:
            found = await whole(self._jetstream.get_last_msg(ANSWERS, self._answer_subject(task_id), direct=True))
        except nats.js.errors.NotFoundError:
            return None
        return Answer.model_validate_json(found.data or b"")

    async def answer(self, answer: Answer) -> None:
        """Stores the answer, unless there is one. Raises nats.errors.Error or TimeoutError if that is not certain."""
        subject, payload = self._answer_subject(answer.task_id), answer.model_dump_json().encode()
        try:
            await whole(self._jetstream.publish(subject, payload, stream=ANSWERS, headers=dict(_FIRST_ONLY)))
        except nats.js.errors.APIError as error:
            if error.err_code != _WRONG_LAST_SEQUENCE:
                raise

    async def _put(self, agent: str, task: Task) -> None:
        headers = {"Nats-Msg-Id": task.id}
        payload = task.model_dump_json(exclude={"delivery"}).encode()
        await whole(self._jetstream.publish(self._task_subject(agent), payload, stream=TASKS, headers=headers))

    async def _answered(self, task_id: str, subscription: Subscription) -> Answer:
        while True:
            try:
                return Answer.model_validate_json((await subscription.next_msg(LOOK_EVERY_S)).data)
            except nats.errors.TimeoutError:
                if (answer := await self._looked_up(task_id)) is not None:
                    return answer

    async def _looked_up(self, task_id: str) -> Answer | None:
        try:
            return await self.answer_to(task_id)
        except (nats.errors.Error, nats.errors.TimeoutError):
            return None  # NATS is away; the task is in its queue all the same

    def _task_subject(self, agent: str) -> str:
        return command_subject(self._tenant, AGENTS, agent)

    def _answer_subject(self, task_id: str) -> str:
        return f"synod.{self._tenant}.ans.{AGENTS}.{task_id}"


def answer_now(task: Task, by: str, output: str = "", failure: Failure | None = None) -> Answer:
    """An answer with the time of now."""
    return Answer(task_id=task.id, output=output, failure=failure, answered_by=by, answered_at=_now())


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def _check_size(text: str) -> None:
    size = len(text.encode())
    if size > TEXT_BYTES_MAX:
        raise InvalidInput(f"the task is {size} bytes long; at most {TEXT_BYTES_MAX} are taken", "TASK_TOO_LARGE")
