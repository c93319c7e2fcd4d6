"""Orders between services: JetStream work queues consumed through FastStream, at least once, none lost.

A command waits in the stream CMD_<SERVICE> until a handler has finished it. A handler that raises gets it again, after
a growing pause with full jitter; after `max_deliver` deliveries, or at once if it can never succeed, it moves to the
dead letters (subject synod.<tenant>.dlq.<service>, stream DLQ_<SERVICE>) together with the error, and can be redriven.

Deliveries are counted here and not by the consumer's own max_deliver, which is pinned to unlimited: the server would
drop a command whose worker died in its last delivery, and say so only to whoever is listening at that moment.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, Literal, TypeVar, get_args
from uuid import UUID

from faststream import AckPolicy
from faststream.exceptions import NackMessage
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from faststream.nats.message import NatsMessage as RawMessage
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RawStreamMsg, StreamConfig
from nats.js.errors import NoStreamResponseError, NotFoundError
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, ValidationError
from synod.common import streams, subjects
from synod.common.ids import new_id

from servicekit.auth import ACTOR, Principal
from servicekit.clock import Clock
from servicekit.context import Call, current_call, enter_call
from servicekit.dependencies import Missing
from servicekit.errors import DeadlineExceeded, ErrorMap, InvalidArgument, NotFound, Unavailable
from servicekit.limits import Limits
from servicekit.retry import Backoff
from servicekit.rpc import CAUSATION, CORRELATION
from servicekit.telemetry import TRACEPARENT, Logger, Metrics, Tracing, traceparent

C = TypeVar("C", bound=BaseModel)
Handler = Callable[[C], Awaitable[object]]
Outcome = Literal["ok", "retried", "dead"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

MSG_ID = "Nats-Msg-Id"
DEADLINE = "synod-deadline"
DEAD_SUBJECT = "synod-dead-subject"
DEAD_REASON = "synod-dead-reason"
DEAD_ERROR = "synod-dead-error"
DEAD_DELIVERIES = "synod-dead-deliveries"
DEAD_AT = "synod-dead-at"
PUBLISH_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 30.0
REDELIVERY = Backoff(initial_s=0.5, factor=3, max_s=60)


@dataclass(frozen=True, slots=True)
class CommandSpec(Generic[C]):
    """One kind of command a service takes. `ack_wait_s` is how soon a command is given to another worker after its
    worker died; a worker that lives keeps it by a heartbeat, however long it works."""

    verb: str
    handler: Handler[C]
    model: type[C]
    ack_wait_s: float = 30.0
    max_deliver: int = 5
    concurrency: int = 1
    backoff: Backoff = REDELIVERY
    errors: ErrorMap = field(default_factory=ErrorMap)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A command that was given up, as it lies in the dead letters under `sequence`."""

    sequence: int
    tenant: str
    subject: str
    reason: str
    error: str
    deliveries: int
    at: datetime
    payload: bytes
    headers: Mapping[str, str]


class Queue:
    """The sending side: anyone with a NATS connection may send commands it has the permission to publish."""

    def __init__(self, jetstream: JetStreamContext) -> None:
        self._jetstream = jetstream

    async def send(
        self,
        service: str,
        verb: str,
        command: BaseModel,
        *,
        tenant: str = "",
        id: str = "",
        deadline: datetime | None = None,
    ) -> str:
        """Store a command in the queue of `service`; answers its id. Stored when this returns.

        `tenant` defaults to the current call's. The same `id` within two minutes is stored once. After `deadline`
        (aware) the command is not begun but refused. Raises Unavailable, and InvalidArgument without a tenant.
        """
        call = current_call()
        tenant = tenant or call.principal.tenant
        if tenant in ("", "*"):
            raise InvalidArgument("tenant", tenant, "a command belongs to one tenant; name it")
        id = id or new_id("cmd")
        headers = {
            MSG_ID: id,
            TRACEPARENT: traceparent(),
            ACTOR: call.principal.actor,
            CORRELATION: call.correlation,
            CAUSATION: str(call.causation or ""),
            DEADLINE: deadline.isoformat() if deadline else "",
        }
        subject = subjects.command_subject(tenant, service, verb)
        await self.publish(subject, command.model_dump_json().encode(), headers, subjects.command_stream(service))
        return id

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str], stream: str) -> None:
        """Publish and wait until the stream has it. Raises Unavailable."""
        present = {key: value for key, value in headers.items() if value}
        try:
            await self._jetstream.publish(subject, payload, timeout=PUBLISH_TIMEOUT_S, stream=stream, headers=present)
        except NoStreamResponseError as error:
            raise Unavailable(
                f"stream {stream} does not exist; an administrator makes it: `synod nats apply`", 1.0
            ) from error
        except NatsError as error:
            raise Unavailable(f"NATS did not store a message for {subject}: {error}", 1.0) from error


class DeadLetters:
    """What a service gave up: look at it, repair the cause, redrive it."""

    def __init__(self, service: str, jetstream: JetStreamContext, queue: Queue, clock: Clock) -> None:
        self._service = service
        self._stream = subjects.dead_letter_stream(service)
        self._jetstream = jetstream
        self._queue = queue
        self._clock = clock

    async def bury(self, message: Msg, reason: str, error: str) -> None:
        """Store a command with why it was given up. Raises Unavailable, and the command stays in its queue."""
        metadata = message.metadata
        headers = {key: value for key, value in (message.headers or {}).items() if not key.startswith("Nats-")}
        headers |= {
            # A command that is buried but not acknowledged before a crash is buried again under the same id.
            MSG_ID: f"{metadata.stream}:{metadata.sequence.stream}",
            DEAD_SUBJECT: message.subject,
            DEAD_REASON: reason,
            DEAD_ERROR: " ".join(error.split())[:512],
            DEAD_DELIVERIES: str(metadata.num_delivered),
            DEAD_AT: self._clock.now().isoformat(),
        }
        subject = subjects.dead_letter_subject(_tenant(message.subject), self._service)
        await self._queue.publish(subject, message.data, headers, self._stream)

    async def list(self, *, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """At most `limit` letters with a sequence above `after`, oldest first."""
        letters: list[DeadLetter] = []
        sequence = after
        while len(letters) < limit:
            try:
                raw = await self._jetstream.get_msg(self._stream, seq=sequence + 1, subject=">", next=True)
            except NotFoundError:
                break
            letters.append(_letter(raw))
            sequence = letters[-1].sequence
        return letters

    async def redrive(self, sequence: int) -> None:
        """Put a dead letter back into its queue with all deliveries before it. Raises NotFound, Unavailable."""
        try:
            letter = _letter(await self._jetstream.get_msg(self._stream, seq=sequence))
        except NotFoundError as error:
            raise NotFound("dead letter", str(sequence), remedy=f"list the letters of {self._service} first") from error
        headers = {key: value for key, value in letter.headers.items() if not key.startswith(("synod-dead-", "Nats-"))}
        headers[MSG_ID] = f"{self._stream}:{sequence}"
        await self._queue.publish(letter.subject, letter.payload, headers, subjects.command_stream(self._service))
        await self._jetstream.delete_msg(self._stream, sequence)


class Commands:
    """The commands one service takes."""

    def __init__(
        self,
        service: str,
        broker: NatsBroker,
        jetstream: JetStreamContext,
        *,
        clock: Clock,
        limits: Limits,
        tracing: Tracing,
        metrics: Metrics,
        log: Logger,
        make_streams: bool = False,
    ) -> None:
        self._service = service
        self._make_streams = make_streams
        self._stream = subjects.command_stream(service)
        self._broker = broker
        self._jetstream = jetstream
        self._clock = clock
        self._limits = limits
        self._tracing = tracing
        self._metrics = metrics
        self._log = log
        self._specs: dict[str, CommandSpec[BaseModel]] = {}
        self.queue = Queue(jetstream)
        self.dead_letters = DeadLetters(service, jetstream, self.queue, clock)

    def add(self, spec: CommandSpec[C]) -> None:
        """Handle `spec.verb`. Each of its `concurrency` loops holds one command at a time, so that none waits fetched
        behind a slow one. Raises ValueError for a verb that has a handler."""
        if spec.verb in self._specs:
            raise ValueError(f"the command {spec.verb!r} has a handler already")
        self._specs[spec.verb] = spec  # type: ignore[assignment]
        for outcome in OUTCOMES:  # from 0 on, so that the first dead letter is seen to be an increase
            self._metrics.commands.labels(spec.verb, outcome)

        async def consume(message: NatsMessage) -> None:
            await self._consume(spec, message.raw_message)

        for number in range(spec.concurrency):
            self._broker.subscriber(
                subjects.command_subject("*", self._service, spec.verb),
                stream=JStream(self._stream, declare=False),
                durable=self._durable(spec.verb),
                pull_sub=PullSub(batch_size=1, timeout=FETCH_TIMEOUT_S),
                ack_policy=AckPolicy.NACK_ON_ERROR,
                decoder=_undecoded,
                no_reply=True,
                title=spec.verb,
                include_in_schema=number == 0,
            )(consume)

    async def prepare(self) -> None:
        """Make the streams and consumers if that is this service's part, else look for them. Raises Missing."""
        if self._specs and self._make_streams:
            await self._declare()
        await self.probe()

    async def probe(self) -> None:
        """Raises Missing for a stream or consumer that an administrator has yet to make, and while NATS is away."""
        if not self._specs:
            return
        try:
            for spec in self._specs.values():
                await self._jetstream.consumer_info(self._stream, self._durable(spec.verb))
            await self._jetstream.stream_info(subjects.dead_letter_stream(self._service))
        except NotFoundError as error:
            raise Missing(
                f"NATS lacks a stream or consumer of the commands for {self._service} ({error.description}); "
                "an administrator makes them: `synod nats apply`"
            ) from error
        except (NatsError, TimeoutError) as error:
            raise Missing(f"NATS does not answer about the commands for {self._service} ({error!r})") from error

    async def start(self) -> None:
        """Take commands. Their streams must be there; see `probe`."""
        if self._specs:
            await self._broker.start()

    async def stop(self) -> None:
        """Take no more commands; wait for those being handled as long as the broker's graceful_timeout says."""
        await asyncio.gather(*(subscriber.stop() for subscriber in self._broker.subscribers))

    async def _declare(self) -> None:
        await ensure_stream(
            self._jetstream,
            streams.commands_of(self._service, max_msg_size=self._limits.command_bytes_max),
        )
        await ensure_stream(
            self._jetstream,
            streams.dead_letters_of(self._service, max_msgs=self._limits.dead_letters_max),
        )
        for spec in self._specs.values():
            await self._jetstream.add_consumer(self._stream, self._consumer(spec))

    def _consumer(self, spec: CommandSpec[BaseModel]) -> ConsumerConfig:
        consumer = streams.CommandConsumer(self._service, spec.verb, spec.ack_wait_s)
        config: ConsumerConfig = ConsumerConfig.from_response(dict(consumer.config()))
        return config

    def _durable(self, verb: str) -> str:
        return streams.CommandConsumer(self._service, verb).name

    async def _consume(self, spec: CommandSpec[C], message: Msg) -> None:
        """Handle one delivery; FastStream acknowledges when this returns and gives back when it raises NackMessage."""
        delivery = message.metadata.num_delivered
        headers = message.headers or {}
        span = self._tracing.start(f"command {spec.verb}", SpanKind.CONSUMER, headers.get(TRACEPARENT, ""))
        try:
            if delivery > spec.max_deliver:
                await self._bury(spec, message, RuntimeError("the worker died while it handled the last delivery"))
                return
            with self._metrics.command_seconds.labels(spec.verb).time():
                await self._handle(spec, message, delivery)
            self._count(spec, "ok")
        except asyncio.CancelledError:
            # Stopping: another worker may have it now and not only after ack_wait_s.
            await message.nak()
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a command: recorded, then given back or buried
            await self._failed(spec, message, error)
        finally:
            span.end()

    async def _handle(self, spec: CommandSpec[C], message: Msg, delivery: int) -> None:
        headers = message.headers or {}
        enter_call(_call_of(message.subject, headers, delivery))
        self._refuse_late(headers.get(DEADLINE, ""), message.subject)
        command = spec.model.model_validate_json(message.data)
        async with _kept(message, spec.ack_wait_s / 3):
            await spec.handler(command)

    def _refuse_late(self, deadline: str, subject: str) -> None:
        if deadline and self._clock.now() > datetime.fromisoformat(deadline):
            raise DeadlineExceeded(f"the command {subject} was to be begun by {deadline}", reason="DEADLINE_PASSED")

    async def _failed(self, spec: CommandSpec[C], message: Msg, error: Exception) -> None:
        delivery = message.metadata.num_delivered
        if delivery >= spec.max_deliver or self._hopeless(spec, error):
            await self._bury(spec, message, error)
            return
        self._count(spec, "retried")
        self._log.error("command_failed", error=error, verb=spec.verb, delivery=delivery, of=spec.max_deliver)
        raise NackMessage(delay=spec.backoff.delay_s(delivery - 1)) from error

    def _hopeless(self, spec: CommandSpec[C], error: Exception) -> bool:
        known = spec.errors.translate(error)
        late = known is not None and known.reason == "DEADLINE_PASSED"
        return late or isinstance(error, ValidationError) or isinstance(known, InvalidArgument)

    async def _bury(self, spec: CommandSpec[C], message: Msg, error: Exception) -> None:
        known = spec.errors.translate(error)
        reason = known.reason if known else type(error).__name__
        try:
            await self.dead_letters.bury(message, reason, str(error))
        except Unavailable as unavailable:
            self._log.error("dead_letter_refused", error=unavailable, verb=spec.verb)
            raise NackMessage(delay=spec.backoff.max_s) from unavailable
        self._count(spec, "dead")
        self._log.error("command_dead", error=error, verb=spec.verb, reason=reason, subject=message.subject)

    def _count(self, spec: CommandSpec[C], outcome: Outcome) -> None:
        self._metrics.commands.labels(spec.verb, outcome).inc()


async def ensure_stream(jetstream: JetStreamContext, stream: streams.Stream) -> None:
    """Create the stream, or bring the one of this name to its configuration."""
    config: StreamConfig = StreamConfig.from_response(dict(stream.config()))
    try:
        await jetstream.stream_info(stream.name)
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(config)


@asynccontextmanager
async def _kept(message: Msg, every_s: float) -> AsyncIterator[None]:
    """Tell the server, while the block runs, that the command is being worked on."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            await message.in_progress()

    heart = asyncio.create_task(beat())
    try:
        yield
    finally:
        heart.cancel()


async def _undecoded(message: RawMessage) -> bytes:
    # FastStream would parse JSON into dictionaries; the command's model parses the bytes itself, five times faster.
    return message.body if isinstance(message.body, bytes) else b""


def _call_of(subject: str, headers: Mapping[str, str], delivery: int) -> Call:
    # Who may publish a command is decided by NATS permissions; the actor in its header is who it is done for.
    actor = headers.get(ACTOR, "")
    principal = Principal(id=actor or "command", tenant=_tenant(subject), kind="service")
    causation = headers.get(CAUSATION, "")
    return Call(
        principal,
        correlation=headers.get(CORRELATION, ""),
        causation=UUID(causation) if causation else None,
        delivery=delivery,
    )


def _tenant(subject: str) -> str:
    return subject.split(".")[1]


def _letter(raw: RawStreamMsg) -> DeadLetter:
    headers = raw.headers or {}
    return DeadLetter(
        sequence=raw.seq or 0,
        tenant=_tenant(raw.subject or ""),
        subject=headers.get(DEAD_SUBJECT, ""),
        reason=headers.get(DEAD_REASON, ""),
        error=headers.get(DEAD_ERROR, ""),
        deliveries=int(headers.get(DEAD_DELIVERIES, "0")),
        at=datetime.fromisoformat(headers[DEAD_AT]),
        payload=raw.data or b"",
        headers=headers,
    )
