"""Agents in the user's own process: asked over real NATS, with the permissions that `synod up` gives."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import nats
import pytest
from eventlog.ending import end
from synod.agent_registry.v1 import agent_registry_pb2 as pb
from synod.common.ids import new_id
from synod_client import Endpoints, InvalidInput, Limits, NotAllowed, NotFound, Refused, Replaced, Synod, TaskFailed
from synod_client.agent import Agent, Handler
from synod_client.errors import TryAgain
from synod_client.tasks import DELIVERIES_MAX, TEXT_BYTES_MAX, Answer, Task, Tasks, answer_now
from synod_client.testing import FakeSystem, Fault

QUICK = Limits(attempts=2, backoff_first_s=0.001, backoff_max_s=0.01)
Until = Callable[..., Awaitable[Any]]
WAIT_S = 30


class Registry:
    """Who is registered, as the fake tells it: heartbeats of the present incarnation are welcome, others stale."""

    def __init__(self, fakes: FakeSystem) -> None:
        self.incarnations: dict[str, int] = {}
        self.requests: dict[str, str] = {}
        self.state = pb.AGENT_STATE_IDLE
        fakes.answer("agent-registry", "RegisterExternalAgent", self._register)
        fakes.answer("agent-registry", "Heartbeat", self._beat)
        fakes.answer("agent-registry", "GetAgent", self._get)

    def _register(self, request: pb.RegisterExternalAgentRequest) -> pb.Agent:
        if self.requests.get(request.name) != request.request_id:
            self.requests[request.name] = request.request_id
            self.incarnations[request.name] = self.incarnations.get(request.name, 0) + 1
        return self._agent(request.name)

    def _beat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse | Fault:
        if self.incarnations[request.agent_id.removeprefix("agt_")] != request.incarnation:
            return Fault(grpc.StatusCode.FAILED_PRECONDITION, "a zombie", "STALE_INCARNATION")
        return pb.HeartbeatResponse(interval_ms=20, state=self.state)

    def _get(self, request: pb.GetAgentRequest) -> pb.Agent | Fault:
        if request.agent == "insider":
            return pb.Agent(id="agt_insider", name="insider")
        if request.agent not in self.incarnations:
            return Fault(grpc.StatusCode.NOT_FOUND, f"no agent '{request.agent}'", "NOT_FOUND")
        return self._agent(request.agent)

    def _agent(self, name: str) -> pb.Agent:
        return pb.Agent(id=f"agt_{name}", name=name, incarnation=self.incarnations[name], external=True)


@pytest.fixture
def registry(fakes: FakeSystem) -> Registry:
    return Registry(fakes)


@pytest.fixture
def endpoints(fakes: FakeSystem, bus: Any, registry: Registry) -> Endpoints:
    found: Endpoints = bus.endpoints(fakes)
    return found


@pytest.fixture
async def synod(endpoints: Endpoints) -> AsyncIterator[Synod]:
    async with Synod.connect(endpoints, QUICK) as connected:
        yield connected


@pytest.fixture
def name() -> str:
    """An agent's name that no other test has."""
    return new_id("agent").replace("_", "-")


@asynccontextmanager
async def serving(synod: Synod, name: str, handler: Handler, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The agent serves in the background as long as the block runs."""
    async with Agent.register(synod, name, ["test"], group=options.pop("group", "")) as agent:
        task = asyncio.create_task(agent.serve(handler, **options))
        try:
            yield task
        finally:
            await end(task)


async def upper(task: Task) -> str:
    return task.text.upper()


async def tasks_of(synod: Synod) -> Tasks:
    await synod.connection.metadata()
    return Tasks(await synod.connection.nats("client"), synod.connection.tenant)


async def test_an_agent_answers_what_it_is_asked(synod: Synod, name: str) -> None:
    async with serving(synod, name, upper):
        assert await synod.ask(name, "good day") == "GOOD DAY"


async def test_the_handler_is_told_who_asks_what_and_under_which_id(synod: Synod, name: str) -> None:
    async def describe(task: Task) -> str:
        return json.dumps([task.id, task.asked_by, task.delivery, task.asked_at.utcoffset() is not None])

    async with serving(synod, name, describe):
        assert json.loads(await synod.ask(name, "who?", task_id="tsk_7")) == ["tsk_7", "usr_test", 1, True]


async def test_a_task_waits_for_its_agent_also_when_the_asker_has_gone(
    synod: Synod, name: str, registry: Registry
) -> None:
    registry.incarnations[name] = 1
    task_id = new_id("tsk")
    with pytest.raises(
        TryAgain, match=rf"has not answered within 0\.05 s; its task {task_id} stays in the queue"
    ) as late:
        await synod.ask(name, "patience", timeout_s=0.05, task_id=task_id)
    assert (late.value.reason, late.value.details) == ("ANSWER_LATE", {"task_id": task_id})
    async with serving(synod, name, upper):
        assert await synod.ask(name, "patience", task_id=task_id) == "PATIENCE"


async def test_asking_again_with_the_same_id_gives_the_same_answer_and_no_second_work(synod: Synod, name: str) -> None:
    worked: list[str] = []

    async def count(task: Task) -> str:
        worked.append(task.id)
        return str(len(worked))

    async with serving(synod, name, count):
        assert [await synod.ask(name, "count", task_id=f"tsk_{name}") for _ in range(3)] == ["1", "1", "1"]


async def test_what_the_handler_refuses_reaches_the_asker_with_its_reason(synod: Synod, name: str) -> None:
    async def refuse(task: Task) -> str:
        raise TaskFailed(f"no dictionary for {task.text}", "UNKNOWN_LANGUAGE")

    async with serving(synod, name, refuse):
        with pytest.raises(TaskFailed, match="no dictionary for Elvish") as failed:
            await synod.ask(name, "Elvish")
    assert failed.value.reason == "UNKNOWN_LANGUAGE"


async def test_a_handler_that_crashes_is_a_failure_and_the_agent_goes_on(synod: Synod, name: str) -> None:
    async def divide(task: Task) -> str:
        return str(10 // int(task.text))

    async with serving(synod, name, divide):
        with pytest.raises(TaskFailed, match="raised ZeroDivisionError") as failed:
            await synod.ask(name, "0")
        assert await synod.ask(name, "5") == "2"
    assert failed.value.reason == "HANDLER_FAILED"


async def test_texts_that_are_too_long_are_refused_on_both_sides(synod: Synod, name: str) -> None:
    async def flood(task: Task) -> str:
        return "x" * (TEXT_BYTES_MAX + 1)

    async with serving(synod, name, flood):
        with pytest.raises(TaskFailed, match="the answer is 524289 bytes long; at most 524288"):
            await synod.ask(name, "go on")
        with pytest.raises(InvalidInput, match="the task is 524289 bytes long; at most 524288"):
            await synod.ask(name, "x" * (TEXT_BYTES_MAX + 1))


async def test_asking_whom_there_is_not_or_who_lives_inside_says_so(synod: Synod) -> None:
    with pytest.raises(NotFound, match="no agent 'nobody'"):
        await synod.ask("nobody", "hello")
    with pytest.raises(Refused, match="'insider' runs inside Synod; start a run"):
        await synod.ask("insider", "hello")


async def test_as_many_tasks_are_in_hand_as_allowed_and_the_registry_hears_of_it(
    synod: Synod, name: str, fakes: FakeSystem, until: Until
) -> None:
    release = asyncio.Event()

    async def hold(task: Task) -> str:
        await release.wait()
        return task.text

    async def loads() -> set[int]:
        return {request.busy for request in fakes.requests("Heartbeat")}

    async with serving(synod, name, hold, concurrency=2):
        answers = [asyncio.create_task(synod.ask(name, str(number))) for number in range(3)]
        assert max(await until(loads, lambda seen: 2 in seen)) == 2
        release.set()
        assert await asyncio.gather(*answers) == ["0", "1", "2"]


async def test_processes_of_one_group_share_the_queue(synod: Synod, endpoints: Endpoints, name: str) -> None:
    both = asyncio.Barrier(2)

    def meeting(process: str) -> Handler:
        async def meet(task: Task) -> str:
            await both.wait()
            return process

        return meet

    async with (
        Synod.connect(endpoints, QUICK) as second,
        serving(synod, name, meeting("first"), group="fleet") as one,
        serving(second, name, meeting("second"), group="fleet") as two,
    ):
        answers = await asyncio.gather(synod.ask(name, "a"), synod.ask(name, "b"))
        assert sorted(answers) == ["first", "second"]
        assert not one.done()
        assert not two.done()


async def test_a_replaced_incarnation_stops_with_a_clear_error_and_gives_its_task_back(
    synod: Synod, endpoints: Endpoints, name: str
) -> None:
    begun = asyncio.Event()

    async def hang(task: Task) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    async with Synod.connect(endpoints, QUICK) as second, serving(synod, name, hang) as old:
        asked = asyncio.create_task(synod.ask(name, "whose?"))
        await begun.wait()
        async with serving(second, name, upper):
            with pytest.raises(
                Replaced, match=f"agent '{name}' was registered by another process .*incarnation 1 takes"
            ):
                await old
            assert await asked == "WHOSE?"


async def test_a_suspended_agent_takes_no_task_until_it_is_resumed(
    synod: Synod, name: str, registry: Registry, fakes: FakeSystem, until: Until
) -> None:
    registry.state = pb.AGENT_STATE_SUSPENDED
    async with serving(synod, name, upper):
        asked = asyncio.create_task(synod.ask(name, "later"))
        await until(_count(fakes, "Heartbeat"), lambda beats: beats > 5)
        assert not asked.done()
        registry.state = pb.AGENT_STATE_IDLE
        assert await asked == "LATER"


def _count(fakes: FakeSystem, method: str) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return len(fakes.requests(method))

    return count


async def test_a_registry_that_is_away_does_not_stop_the_agent(
    synod: Synod, name: str, fakes: FakeSystem, until: Until
) -> None:
    async with serving(synod, name, upper) as agent:
        assert await synod.ask(name, "before") == "BEFORE"
        fakes.answer("agent-registry", "Heartbeat", Fault(grpc.StatusCode.UNAVAILABLE, "restarting", "UNAVAILABLE"))
        so_far = len(fakes.requests("Heartbeat"))
        await until(_count(fakes, "Heartbeat"), lambda beats: beats > so_far + 4)
        assert await synod.ask(name, "during") == "DURING"
        assert not agent.done()


async def test_a_task_is_acknowledged_only_after_its_answer_is_stored(synod: Synod, name: str) -> None:
    """An agent that dies between answering and acknowledging: the next delivery finds the answer and works no more."""
    tasks = await tasks_of(synod)
    queue = await tasks.queue(name)
    asked = asyncio.create_task(tasks.ask(name, "once", f"tsk_{name}", "usr_test", WAIT_S))
    delivery = await queue.take(WAIT_S)
    assert delivery is not None
    await tasks.answer(answer_now(delivery.task, "dying", output="done by the dead"))
    assert (await asked).result() == "done by the dead"
    await delivery.given_back()
    await queue.close()

    worked: list[str] = []

    async def work(task: Task) -> str:
        worked.append(task.text)
        return task.text

    async with serving(synod, name, work):
        assert await synod.ask(name, "another") == "another"
        assert await synod.ask(name, "once", task_id=f"tsk_{name}") == "done by the dead"
    assert worked == ["another"]


async def test_of_two_answers_the_first_is_kept(synod: Synod, name: str) -> None:
    tasks = await tasks_of(synod)
    queue = await tasks.queue(name)
    asked = asyncio.create_task(tasks.ask(name, "race", f"tsk_{name}", "usr_test", WAIT_S))
    delivery = await queue.take(WAIT_S)
    assert delivery is not None
    for output in ("first", "second"):
        await tasks.answer(answer_now(delivery.task, "racer", output=output))
    assert (await asked).output == "first"
    kept = await tasks.answer_to(f"tsk_{name}")
    assert isinstance(kept, Answer)
    assert kept.output == "first"
    await delivery.done()
    await queue.close()


async def test_a_task_that_kills_every_process_is_answered_at_last(synod: Synod, name: str) -> None:
    tasks = await tasks_of(synod)
    asked = asyncio.create_task(tasks.ask(name, "poison", f"tsk_{name}", "usr_test", WAIT_S))
    queue = await tasks.queue(name)
    for number in range(1, DELIVERIES_MAX + 1):
        delivery = await queue.take(WAIT_S)
        assert delivery is not None
        assert delivery.task.delivery == number
        await delivery.given_back()
    await queue.close()
    async with serving(synod, name, upper):
        with pytest.raises(
            TaskFailed, match=f"{DELIVERIES_MAX} processes died or fell silent over task tsk_"
        ) as failed:
            (await asked).result()
    assert failed.value.reason == "DELIVERIES_EXHAUSTED"


async def test_what_is_no_task_is_thrown_away_and_the_next_is_taken(synod: Synod, name: str) -> None:
    async with serving(synod, name, upper):
        client = await synod.connection.nats("client")
        assert await synod.ask(name, "one") == "ONE"
        await client.jetstream().publish(f"synod.local.cmd.agents.{name}", b"not a task")
        assert await synod.ask(name, "two") == "TWO"


async def test_asker_and_agent_survive_a_restart_of_nats(synod: Synod, name: str, bus: Any) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(task: Task) -> str:
        begun.set()
        await release.wait()
        return task.text.upper()

    async with serving(synod, name, hold):
        asked = asyncio.create_task(synod.ask(name, "still there?"))
        await begun.wait()
        bus.running.kill()
        release.set()
        # On this thread: a child dies with the thread that started it.
        bus.running.start()
        assert await asked == "STILL THERE?"
        assert await synod.ask(name, "and now?") == "AND NOW?"


async def test_the_clients_login_reaches_tasks_and_answers_and_nothing_else(bus: Any) -> None:
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        refused.put_nowait(str(error))

    client = await nats.connect(bus.url("client"), error_cb=note, inbox_prefix="_INBOX_client")
    for subject in ("synod.local.evt.cost-ledger.x", "synod.local.cmd.agent-runtime.run", "SYNOD.API.STREAM.DELETE.X"):
        await client.publish(subject, b"{}")
        assert f'violation for publish to "{subject}"' in (
            await asyncio.wait_for(refused.get(), WAIT_S)
        ).lower().replace(subject.lower(), subject)
    await client.subscribe("synod.local.evt.>")
    assert (
        'violation for subscription to "synod.local.evt.>"' in (await asyncio.wait_for(refused.get(), WAIT_S)).lower()
    )
    await client.close()


async def test_a_login_that_nats_refuses_is_named_with_what_to_do(fakes: FakeSystem, bus: Any) -> None:
    endpoints = Endpoints(fakes.addresses, bus.running.url, "", "syn_key")
    async with Synod.connect(endpoints) as synod:
        with pytest.raises(NotAllowed, match=r"refuses the login of 'client'; set SYNOD_NATS_URL"):
            await synod.connection.nats("client")


async def test_nats_that_is_not_there_is_named_with_what_to_do(synod: Synod, fakes: FakeSystem) -> None:
    async with Synod.connect(Endpoints(fakes.addresses, "nats://127.0.0.1:1", "", "syn_key")) as absent:
        with pytest.raises(TryAgain, match=r"NATS at 127\.0\.0\.1:1 does not answer .*`synod up`"):
            await absent.connection.nats("observer")
