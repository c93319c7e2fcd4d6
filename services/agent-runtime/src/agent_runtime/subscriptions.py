"""NATS in: work items from the queue to the worker, events into work items, tokens to watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final

from eventlog.clock import Clock
from eventlog.codec import Codec, UnknownEvent
from eventlog.errors import UnknownEventType
from eventlog.records import StoredEvent
from eventlog.sources import Source
from nats.aio.client import Client
from nats.aio.msg import Msg
from psycopg_pool import AsyncConnectionPool
from servicekit.auth import Principal
from servicekit.commands import Queue
from servicekit.context import acting_as, current_call
from servicekit.telemetry import Logger, continuing
from synod.common.event import Event
from synod.common.ids import derived_id, new_id
from synod.common.subjects import token_subject
from synod.common.values import Failure

from agent_runtime.errors import Superseded
from agent_runtime.projections import Queries
from agent_runtime.work.dispatch import VERB, WorkItem, work_item
from agent_runtime.work.store import Runs
from agent_runtime.work.watch import Inbox, Token
from agent_runtime.work.worker import Worker

SERVICE: Final = "agent-runtime"
ACK_WAIT_S: Final = 5.0
DELIVERIES_MAX: Final = 8
PAGE_EVENTS: Final = 500
IDLE_WAIT_S: Final = 5.0
SAVE_EVERY_S: Final = 0.2
"""How often a dispatcher saves how far it is: after a crash it sends so much again, which the queue drops."""
SWEEP_RUNS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class RunCommands:
    """Takes work items. One that fails comes again; after the last time its run fails too, so that nobody waits."""

    worker: Worker
    runs: Runs
    log: Logger

    async def work(self, item: WorkItem) -> None:
        loaded = await self.runs.load(item.run_id)
        actor = loaded.state.actor if loaded else ""
        root = loaded.state.started.root_run_id if loaded else item.run_id
        me = Principal(f"svc_{SERVICE}", item.tenant, "service", on_behalf_of=actor)
        with acting_as(me, correlation=root, causation=current_call().causation):
            await self._work(item, current_call().delivery)

    async def _work(self, item: WorkItem, delivery: int) -> None:
        try:
            await self.worker.work(item.run_id)
        except Superseded as error:
            self.log.info("run_superseded", run=item.run_id, epoch=error.epoch, newer=error.newer)
        except Exception as error:
            if delivery >= DELIVERIES_MAX:
                await self._give_up(item, error)
            raise

    async def _give_up(self, item: WorkItem, error: Exception) -> None:
        error_id = new_id("err")
        self.log.error("run_given_up", error=error, run=item.run_id, error_id=error_id)
        message = f"agent-runtime could not carry on after {DELIVERIES_MAX} attempts; its log has error id {error_id}"
        await self.worker.give_up(item.run_id, Failure(reason="INTERNAL", message=message))


class Positions:
    """How far each source has been turned into work items, in the service's own database."""

    TABLE: Final = "create table if not exists work_positions (source text primary key, position bigint not null)"

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def prepare(self) -> None:
        """Create the table if this database has none yet."""
        async with self._pool.connection() as connection:
            await connection.execute(self.TABLE)

    async def load(self, source: str) -> int:
        async with self._pool.connection() as connection:
            found = await connection.execute("select position from work_positions where source = %s", (source,))
            row = await found.fetchone()
        return int(row[0]) if row else 0

    async def save(self, source: str, position: int) -> None:
        """May be lost in a crash: an item that is sent twice does no harm, so this waits for no disk."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute("set local synchronous_commit = off")
            await connection.execute(
                "insert into work_positions values (%s, %s) on conflict (source)"
                " do update set position = greatest(work_positions.position, excluded.position)",
                (source, position),
            )


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Turns the events of one source into work items: its own log, or the log of consensus for decisions.

    The position moves after the items are stored, so none is lost; their ids derive from the events, so that the queue
    drops what two dispatchers, or one after a crash, send again.
    """

    source: Source
    types: frozenset[str]
    codec: Codec[Event]
    queue: Queue
    positions: Positions
    log: Logger

    async def run(self) -> None:
        """Runs for as long as the service does."""
        position = await self.positions.load(self.source.name)
        saved_at = monotonic()
        reader = self.source.reader(self.types)
        try:
            while True:
                page = await reader.read(position, PAGE_EVENTS)
                if page.position == position:
                    await reader.wait(position, IDLE_WAIT_S)
                    continue
                await asyncio.gather(*(self._dispatch(stored) for stored in page.events))
                position = page.position
                if monotonic() - saved_at > SAVE_EVERY_S:
                    await self.positions.save(self.source.name, position)
                    saved_at = monotonic()
        finally:
            await reader.close()

    async def _dispatch(self, stored: StoredEvent) -> None:
        try:
            event = self.codec.decode(stored)
        except UnknownEventType as error:
            # Of a release to come, whose own dispatchers know it. All other runs must not wait for ours to be replaced.
            self.log.error("event_not_dispatched", error=error, source=self.source.name, position=stored.position)
            return
        item = None if isinstance(event, UnknownEvent) else work_item(event, stored.tenant)
        if item is None:
            return
        cause = Principal(stored.actor, stored.tenant, "user")
        # What is done about the event belongs to the trace that it came from, though nobody waits for it.
        with acting_as(cause, correlation=stored.correlation, causation=stored.id), continuing(stored.traceparent):
            await self.queue.send(
                SERVICE, VERB, item, tenant=stored.tenant, id=derived_id("work", str(stored.id), item.run_id)
            )


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Wakes runs that are past their deadline; those that wait hold no process that could look at a clock."""

    queries: Queries
    queue: Queue
    clock: Clock
    every_s: float

    async def run(self) -> None:
        """Runs for as long as the service does."""
        while True:
            await self.sweep()
            await asyncio.sleep(self.every_s)

    async def sweep(self) -> int:
        """Send an item for every overdue run; answers how many."""
        overdue = await self.queries.overdue(self.clock.now(), SWEEP_RUNS_MAX)
        for run in overdue:
            item = WorkItem(run_id=run.id, tenant=run.tenant, reason="overdue")
            await self.queue.send(SERVICE, VERB, item, tenant=run.tenant, id=derived_id("work", "overdue", run.id))
        return len(overdue)


@dataclass(frozen=True, slots=True)
class NatsTokenListener:
    """Tokens from core NATS into a watcher's inbox."""

    nats: Client

    @asynccontextmanager
    async def listening(self, tenant: str, run_id: str, inbox: Inbox) -> AsyncIterator[None]:
        async def take(message: Msg) -> None:
            with suppress(asyncio.QueueFull):
                inbox.put_nowait(Token.model_validate_json(message.data))

        subscription = await self.nats.subscribe(token_subject(tenant, run_id), cb=take)
        # The server must know of the interest before the first token that is asked for.
        await self.nats.flush()
        try:
            yield
        finally:
            await subscription.unsubscribe()
