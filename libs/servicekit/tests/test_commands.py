"""Commands on a JetStream work queue: at least once, none lost, the hopeless put aside."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from faststream.nats import NatsBroker
from nats.js.api import ConsumerConfig
from pydantic import BaseModel
from servicekit.auth import Principal
from servicekit.clock import SystemClock
from servicekit.commands import Commands, CommandSpec
from servicekit.context import acting_as, current_call
from servicekit.dependencies import Missing
from servicekit.errors import ErrorMap, InvalidArgument, NotFound, Unavailable
from servicekit.limits import Limits
from servicekit.nats_admin import StreamPlan, administrator
from servicekit.retry import Backoff
from servicekit.telemetry import Logger, Metrics, Tracing, traceparent
from synod.common import streams, subjects

QUICK = Backoff(initial_s=0.01, max_s=0.05)
ADA = Principal("usr_ada", "local", "user")
WAIT_S = 30


class Greet(BaseModel):
    name: str


@dataclass
class Recorder:
    """A handler that fails as often as it is told, and tells when it was called."""

    failures: int = 0
    error: Exception = field(default_factory=lambda: RuntimeError("no paper"))
    seen: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, command: Greet) -> None:
        async with self.changed:
            self.seen.append(command.name)
            self.calls.append((current_call(), traceparent()))
            self.changed.notify_all()
        if len(self.seen) <= self.failures:
            raise self.error

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: len(self.seen) >= count)


Serve = Callable[..., AbstractAsyncContextManager[Commands]]


@pytest.fixture
def serve(nats_url: str) -> Serve:
    @asynccontextmanager
    async def serve(
        handler: Callable[[Greet], Awaitable[object]], service: str = "", **terms: Any
    ) -> AsyncIterator[Commands]:
        service = service or f"greeter-{uuid4().hex[:8]}"
        broker = NatsBroker(nats_url, logger=None, graceful_timeout=5)
        client = await broker.connect()
        commands = Commands(
            service,
            broker,
            client.jetstream(),
            clock=SystemClock(),
            limits=Limits(),
            tracing=Tracing(service),
            metrics=Metrics(),
            log=Logger(service),
            make_streams=True,
        )
        commands.add(CommandSpec("greet", handler, Greet, **({"backoff": QUICK} | terms)))
        await commands.prepare()
        await commands.start()
        yield commands
        await commands.stop()
        await broker.stop()

    return serve


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What `condition` answers once it is true."""
    async with asyncio.timeout(WAIT_S):
        # The state of a NATS server has no event to wait for.
        while not (answer := await condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer


async def send(commands: Commands, name: str = "ada", **options: Any) -> str:
    return await commands.queue.send(commands._service, "greet", Greet(name=name), tenant="local", **options)


async def pending(commands: Commands) -> int:
    stream = subjects.command_stream(commands._service)
    return (await commands._jetstream.stream_info(stream)).state.messages


async def test_a_handled_command_leaves_the_queue(serve: Serve) -> None:
    handler = Recorder()
    async with serve(handler) as commands:
        await send(commands, "ada")
        await handler.until(1)
        await until(lambda: _is_empty(commands))
    assert handler.seen == ["ada"]


async def _is_empty(commands: Commands) -> bool:
    return await pending(commands) == 0


async def test_a_command_is_redelivered_after_its_handler_failed(serve: Serve) -> None:
    handler = Recorder(failures=2)
    async with serve(handler) as commands:
        await send(commands)
        await handler.until(3)
        await until(lambda: _is_empty(commands))
        letters = await commands.dead_letters.list()
    assert handler.seen == ["ada"] * 3
    assert [call.delivery for call, _ in handler.calls] == [1, 2, 3]
    assert letters == []


async def test_a_command_is_dead_lettered_with_its_error_after_max_deliver(serve: Serve) -> None:
    handler = Recorder(failures=99)
    async with serve(handler, max_deliver=3) as commands:
        await send(commands)
        (letter,) = await until(commands.dead_letters.list)
        left = await until(lambda: _is_empty(commands))
    assert left
    assert handler.seen == ["ada"] * 3
    assert (letter.tenant, letter.reason, letter.error, letter.deliveries) == ("local", "RuntimeError", "no paper", 3)
    assert letter.subject == f"synod.local.cmd.{commands._service}.greet"
    assert Greet.model_validate_json(letter.payload) == Greet(name="ada")


async def test_a_redriven_letter_is_handled_anew_and_leaves_the_dead_letters(serve: Serve) -> None:
    handler = Recorder(failures=2)
    async with serve(handler, max_deliver=2) as commands:
        with acting_as(ADA, correlation="run_1"):
            await send(commands)
        (letter,) = await until(commands.dead_letters.list)
        await commands.dead_letters.redrive(letter.sequence)
        await handler.until(3)
        letters = await commands.dead_letters.list()
    redriven, _ = handler.calls[2]
    assert (redriven.delivery, redriven.principal.actor, redriven.correlation) == (1, "usr_ada", "run_1")
    assert letters == []


async def test_redriving_what_is_not_there_says_so(serve: Serve) -> None:
    async with serve(Recorder()) as commands:
        with pytest.raises(NotFound, match="no dead letter '7'"):
            await commands.dead_letters.redrive(7)


async def test_a_command_that_can_never_succeed_is_dead_lettered_at_once(serve: Serve) -> None:
    handler = Recorder(failures=99, error=InvalidArgument("name", "ada", "is taken"))
    async with serve(handler) as commands:
        await send(commands)
        (letter,) = await until(commands.dead_letters.list)
    assert handler.seen == ["ada"]
    assert (letter.reason, letter.error) == ("INVALID_ARGUMENT", "name = 'ada': is taken")


async def test_a_payload_that_is_no_command_is_dead_lettered_without_its_handler(serve: Serve) -> None:
    handler = Recorder()
    async with serve(handler) as commands:
        subject = subjects.command_subject("local", commands._service, "greet")
        await commands.queue.publish(subject, b'{"nome": 1}', {}, subjects.command_stream(commands._service))
        (letter,) = await until(commands.dead_letters.list)
    assert handler.seen == []
    assert letter.reason == "ValidationError"
    assert "name Field required" in letter.error


async def test_a_command_past_its_deadline_is_refused_with_a_clear_message(serve: Serve) -> None:
    handler = Recorder()
    async with serve(handler) as commands:
        await send(commands, deadline=SystemClock().now() - timedelta(seconds=1))
        (letter,) = await until(commands.dead_letters.list)
    assert handler.seen == []
    assert letter.reason == "DEADLINE_PASSED"
    assert f"the command synod.local.cmd.{commands._service}.greet was to be begun by" in letter.error


async def test_the_same_id_is_stored_once(serve: Serve) -> None:
    handler = Recorder()
    async with serve(handler) as commands:
        await send(commands, "first", id="cmd_1")
        await send(commands, "first", id="cmd_1")
        await send(commands, "last")
        await handler.until(2)
    assert handler.seen == ["first", "last"]


async def test_a_handler_acts_for_the_sender_in_the_senders_trace(serve: Serve) -> None:
    handler, sender = Recorder(), Tracing("sender")
    cause = uuid4()
    async with serve(handler) as commands:
        with acting_as(ADA, correlation="run_1", causation=cause), sender.span("ask"):
            sent_in = traceparent()
            await send(commands)
        await handler.until(1)
    (call, handled_in) = handler.calls[0]
    assert (call.principal.tenant, call.principal.actor) == ("local", "usr_ada")
    assert (call.correlation, call.causation) == ("run_1", cause)
    assert handled_in.split("-")[1] == sent_in.split("-")[1]


async def test_a_heartbeat_keeps_a_command_longer_than_its_ack_wait(serve: Serve) -> None:
    started, release, deliveries = asyncio.Event(), asyncio.Event(), []

    async def work(command: Greet) -> None:
        deliveries.append(current_call().delivery)
        started.set()
        await release.wait()

    # Long enough that a busy machine does not keep a heartbeat, every third of it, from being in time.
    async with serve(work, ack_wait_s=1.5, concurrency=2) as commands:
        await send(commands)
        await asyncio.wait_for(started.wait(), WAIT_S)
        # Twice the ack wait, told by the redelivery of a command that nobody keeps.
        await _passes_through_ack_waits(commands, 2)
        release.set()
        await until(lambda: _is_empty(commands))
    assert deliveries == [1]


async def _passes_through_ack_waits(commands: Commands, count: int) -> None:
    stream, durable = subjects.command_stream(commands._service), f"{commands._service}-greet"
    jetstream = commands._jetstream
    other = subjects.command_subject("local", commands._service, "unkept")
    config = (await jetstream.consumer_info(stream, durable)).config
    await jetstream.publish(other, b"x")
    subscription = await jetstream.pull_subscribe(other, durable="unkept", stream=stream, config=_like(config, other))
    for _ in range(count + 1):
        (message,) = await subscription.fetch(1, timeout=WAIT_S)
    await message.ack_sync()
    await subscription.unsubscribe()


def _like(config: ConsumerConfig, subject: str) -> ConsumerConfig:
    return ConsumerConfig(ack_policy=config.ack_policy, ack_wait=config.ack_wait, filter_subject=subject)


async def test_a_command_whose_worker_died_in_its_last_delivery_is_dead_lettered(serve: Serve) -> None:
    handler, service = Recorder(), f"greeter-{uuid4().hex[:8]}"
    async with serve(handler, service, max_deliver=1, ack_wait_s=0.2) as commands:
        await commands.stop()
        stream, durable = subjects.command_stream(service), f"{service}-greet"
        await send(commands)
        dying = await commands._jetstream.pull_subscribe_bind(durable=durable, stream=stream)
        await dying.fetch(1, timeout=WAIT_S)
        await dying.unsubscribe()
        async with serve(handler, service, max_deliver=1, ack_wait_s=0.2) as survivors:
            (letter,) = await until(survivors.dead_letters.list)
    assert handler.seen == []
    assert "the worker died while it handled the last delivery" in letter.error


async def test_commands_are_handled_as_many_at_once_as_told(serve: Serve) -> None:
    together = asyncio.Barrier(3)

    async def meet(command: Greet) -> None:
        await together.wait()

    async with serve(meet, concurrency=3) as commands:
        for number in range(3):
            await send(commands, str(number))
        assert await until(lambda: _is_empty(commands))


async def test_stopping_waits_for_the_command_in_hand(serve: Serve) -> None:
    started, release, done = asyncio.Event(), asyncio.Event(), []

    async def work(command: Greet) -> None:
        started.set()
        await release.wait()
        done.append(command.name)

    async with serve(work) as commands:
        await send(commands)
        await asyncio.wait_for(started.wait(), WAIT_S)
        stopping = asyncio.create_task(commands.stop())
        release.set()
        await stopping
        assert await until(lambda: _is_empty(commands))
    assert done == ["ada"]


async def test_sending_to_a_service_that_never_ran_says_what_to_do(serve: Serve) -> None:
    async with serve(Recorder()) as commands:
        with pytest.raises(Unavailable, match="stream CMD_NOBODY does not exist; an administrator makes it"):
            await commands.queue.send("nobody", "greet", Greet(name="x"), tenant="local")


async def test_commands_wait_for_the_streams_that_an_administrator_makes(serve: Serve, nats_url: str) -> None:
    handler = Recorder()
    service = f"greeter-{uuid4().hex[:8]}"
    async with serve(Recorder(), service) as made:
        made._make_streams = False
        await made._jetstream.delete_stream(subjects.command_stream(service))
        with pytest.raises(Missing, match=f"the commands for {service} .*`synod nats apply`"):
            await made.prepare()
        plan = StreamPlan(streams.commands_of(service).config(), (streams.CommandConsumer(service, "greet").config(),))
        async with administrator(nats_url) as admin:
            await admin.apply([plan])
        await made.prepare()
    async with serve(handler, service) as commands:
        await send(commands)
        await handler.until(1)


async def test_a_command_without_a_tenant_is_refused(serve: Serve) -> None:
    async with serve(Recorder()) as commands:
        with pytest.raises(InvalidArgument, match="a command belongs to one tenant"):
            await commands.queue.send("nobody", "greet", Greet(name="x"))


async def test_a_verb_has_one_handler(serve: Serve) -> None:
    async with serve(Recorder()) as commands:
        with pytest.raises(ValueError, match="'greet' has a handler already"):
            commands.add(CommandSpec("greet", Recorder(), Greet, errors=ErrorMap()))
