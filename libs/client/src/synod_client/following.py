"""The events of a service over NATS, in order and without gap, also over broken connections.

Position equals sequence in the JetStream stream, so that a gap shows: whatever the connection lost is asked for again. The
position of the last event seen is the cursor to go on from, in another process too.
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final
from urllib.parse import unquote

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext
from pydantic import ValidationError
from synod.common.event import Event
from synod.common.ids import new_id
from synod.common.subjects import event_stream

from synod_client.bus import REQUEST_TIMEOUT_S, whole
from synod_client.connection import Connection
from synod_client.errors import Refused

PAGE: Final = 200
WAIT_S: Final = 2.0
INACTIVE_S: Final = 60.0
PAUSE_S: Final = 0.2
_Subscription = JetStreamContext.PullSubscription


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place in the log. ``event`` is None for a type or version that this package does not know."""

    position: int
    id: str
    stream: str
    """"<aggregate>/<id>"."""
    version: int
    type: str
    tenant: str
    actor: str
    correlation: str
    """The id of the run it belongs to."""
    occurred_at: datetime
    data: bytes
    """The payload, JSON, byte for byte as stored."""
    event: Event | None


async def follow(
    connection: Connection, service: str, after: int = 0, types: frozenset[str] = frozenset()
) -> AsyncGenerator[Recorded, None]:
    """Events of ``service`` with a greater position than ``after``, then every new one; only those of ``types`` if given.

    Waits while NATS is away or the service has not yet written anything. Raises InvalidInput for an unknown service,
    NotAllowed for a login that NATS refuses, and Refused (POSITION_AGED_OUT) if the stream no longer holds what follows
    ``after``; Synod.read still has it.
    """
    connection.endpoints.address(service)
    client = await connection.nats("observer")
    reader = _Reader(client, event_stream(service), after)
    try:
        while True:
            for message in await whole(reader.read()):
                recorded = decode(service, message)
                if not types or recorded.type in types:
                    yield recorded
    finally:
        await reader.close()


def decode(service: str, message: Msg) -> Recorded:
    """The event in a message of a service's stream. Raises KeyError or ValueError for a message of another kind."""
    headers = message.headers or {}
    type_name = headers["ce-type"].rpartition(".")[2]
    return Recorded(
        position=message.metadata.sequence.stream,
        id=headers["ce-id"],
        stream=headers["ce-subject"],
        version=int(headers["synod-version"]),
        type=type_name,
        tenant=headers["synod-tenant"],
        actor=unquote(headers.get("synod-actor", "")),
        correlation=unquote(headers.get("synod-correlation", "")),
        occurred_at=datetime.fromisoformat(headers["ce-time"]),
        data=message.data,
        event=_event(service, type_name, int(headers["synod-type-version"]), message.data),
    )


class _Reader:
    """One pass over a stream, through an ephemeral consumer that is given up for a new one whenever something is amiss."""

    def __init__(self, client: Client, stream: str, position: int) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._stream = stream
        self._position = position
        self._subscription: _Subscription | None = None

    async def read(self) -> list[Msg]:
        """The next messages; none if there is nothing new for a while."""
        try:
            subscription = self._subscription or await self._open()
            return await self._in_sequence(await subscription.fetch(PAGE, timeout=WAIT_S))
        except (nats.errors.TimeoutError, TimeoutError):
            await self._check_nothing_lost()
        except nats.errors.Error:
            await self._give_up()
        return []

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._client.is_closed:
            await subscription.unsubscribe()

    async def _open(self) -> _Subscription:
        state = (await self._jetstream.stream_info(self._stream)).state
        if state.first_seq > self._position + 1:
            raise Refused(
                f"{self._stream} begins at {state.first_seq}, what follows position {self._position} is no longer in it; "
                "read up to there with Synod.read, then follow",
                "POSITION_AGED_OUT",
            )
        name = new_id("follow")
        config = ConsumerConfig(
            name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._position + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        await self._jetstream.add_consumer(self._stream, config)
        self._subscription = await self._jetstream.pull_subscribe_bind(name=name, stream=self._stream)
        return self._subscription

    async def _in_sequence(self, messages: list[Msg]) -> list[Msg]:
        """Those that follow the position without a gap, which they move. After a gap the consumer is given up."""
        following = []
        for message in messages:
            sequence = message.metadata.sequence.stream
            if sequence == self._position + 1:
                self._position = sequence
                following.append(message)
            elif sequence > self._position:
                await self.close()
                break
        return following

    async def _check_nothing_lost(self) -> None:
        """Silence may mean that the server delivered into a connection that broke."""
        if self._subscription is None:
            return
        try:
            delivered = (await self._subscription.consumer_info()).delivered
        except (nats.errors.Error, TimeoutError):
            await self._give_up()
            return
        if delivered is not None and delivered.stream_seq > self._position:
            await self.close()

    async def _give_up(self) -> None:
        await self.close()
        await asyncio.sleep(PAUSE_S)


@cache
def _classes(service: str) -> Mapping[tuple[str, int], type[Event]]:
    module = importlib.import_module(f"synod.{service.replace('-', '_')}.events")
    return {(kind.type_name(), kind.VERSION): kind for kind in module.EVENTS}


def _event(service: str, type_name: str, version: int, data: bytes) -> Event | None:
    kind = _classes(service).get((type_name, version))
    try:
        return kind.model_validate_json(data) if kind else None
    except ValidationError:
        return None
