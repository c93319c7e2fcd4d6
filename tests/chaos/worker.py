"""The processes that are killed. Each is forked by the crew, speaks through one pipe, and dies with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import monotonic
from typing import TypeVar

import nats
import nats.errors
from eventlog.folding import ProjectorLimits
from eventlog.projections import Projector
from eventlog.relay import Relay, RelayConfig
from eventlog.sources import LogSource, StreamSource
from nats.aio.client import Client
from psycopg_pool import AsyncConnectionPool

from . import view
from .history import Answer, Request, Unknown
from .journal import (
    Abandoned,
    Archive,
    Archived,
    Ask,
    Begun,
    Ended,
    Failed,
    Idle,
    Message,
    Order,
    Reached,
    Rebuild,
    Seen,
    SetClock,
    Stop,
)
from .plants import PLANTS
from .target import Target
from .target_eventlog import PAGE_EVENTS, EventLogTarget, WrongClock, found, open_eventlog
from .targets import TARGETS
from .workload import Workload

Opened = TypeVar("Opened")
PR_SET_PDEATHSIG = 1
RETRY_PAUSE_S = 0.02
OPEN_DEADLINE_S = 30.0
KEPT_EVENTS = 50
SEGMENT_EVENTS = 100
AWAY = (nats.errors.Error, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is to do. `service` names the round's stream, `after` where a tail goes on."""

    name: str
    role: str
    target: str
    dsn: str
    files: Path
    nats_url: str = ""
    service: str = ""
    seed: str = ""
    after: int = 0
    incarnation: int = 0
    """How many processes had this name before."""
    callers: int = 4
    pace_s: float = 0.05
    unanswered: tuple[Request, ...] = ()
    plant: str = ""
    """The defect that is to be found, if any."""


def main(job: Job, pipe: Pipe) -> None:
    """The entry point of every process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["PGAPPNAME"] = job.name  # by this name a nemesis finds the backends of a process
    logging.disable()  # what a log writes about lost connections is not what clients are told
    link = Link(pipe)
    if job.plant:
        PLANTS[job.plant].take_effect()
    try:
        asyncio.run(_work(job, link))
    except Exception as error:  # noqa: BLE001  # the edge of the process: the crew records why it ended
        link.say(Failed(f"{type(error).__name__}: {error}"))


async def _work(job: Job, link: Link) -> None:
    link.on_order(lambda _: None)
    await ROLES[job.role](job, link)


class Link:
    """Our end of the pipe: messages go out whole and at once, orders come in."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def say(self, message: Message) -> None:
        self._pipe.send(message)

    def on_order(self, handle: Callable[[Order], None]) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._hear, handle)

    def _hear(self, handle: Callable[[Order], None]) -> None:
        try:
            order = self._pipe.recv()
        except (EOFError, OSError):
            os._exit(1)  # whoever gives orders is gone: the parent that our death is bound to is only the fork server
        handle(order)


async def opened(opening: Callable[[], Awaitable[Opened]]) -> Opened:
    """What is opened; a database that is just coming back is waited for, as a supervisor of processes would."""
    deadline = monotonic() + OPEN_DEADLINE_S
    while True:
        try:
            return await opening()
        except Exception:  # each log has its own errors for a database that is away
            if monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_PAUSE_S)


async def write(job: Job, link: Link) -> None:
    clock = WrongClock()
    workload = Workload(f"{job.name}i{job.incarnation}", job.seed, TARGETS[job.target].mix)
    target = await opened(lambda: TARGETS[job.target].open(job.dsn, clock, job.files))
    writer = Writer(job, link, workload, target)

    def handle(order: Order) -> None:
        if isinstance(order, SetClock):
            clock.offset_s = order.offset_s
        elif isinstance(order, Ask):
            workload.order(order.event_type)
        elif isinstance(order, Stop):
            writer.stopping = True

    link.on_order(handle)
    await writer.run()


class Writer:
    """Some callers of one log. What their predecessors in the office left unanswered they ask again first."""

    def __init__(self, job: Job, link: Link, workload: Workload, target: Target) -> None:
        self.stopping = False
        self._job = job
        self._link = link
        self._workload = workload
        self._target = target
        self._inherited = list(job.unanswered)

    async def run(self) -> None:
        await asyncio.gather(*(self._call_repeatedly() for _ in range(self._job.callers)))
        await self._target.close()
        self._link.say(Idle())

    async def _call_repeatedly(self) -> None:
        while not self.stopping or self._inherited:
            if self._inherited:
                await self._settle(self._inherited.pop(), again=True)
            else:
                await self._settle(self._workload.next(), again=False)
            await asyncio.sleep(self._workload.pause_s(self._job.pace_s))

    async def _settle(self, request: Request, again: bool) -> None:
        """Ask until there is an answer, or the caller gives up; unanswered requests are repeated with the same ids."""
        while isinstance(answer := await self._attempt(request, again), Unknown):
            if self._workload.gives_up():
                self._link.say(Abandoned(request.key))
                break
            again = True
            await asyncio.sleep(RETRY_PAUSE_S)
        self._workload.learn(request, answer)

    async def _attempt(self, request: Request, again: bool) -> Answer:
        self._link.say(Begun(request, monotonic()))
        try:
            async with asyncio.timeout(self._workload.impatience_s()):
                answer = await self._target.append(request, again)
        except TimeoutError:
            answer = Unknown("the caller went away")
        self._link.say(Ended(request.key, answer, monotonic()))
        return answer


async def tail(job: Job, link: Link) -> None:
    target = await opened(lambda: TARGETS[job.target].open(job.dsn, WrongClock(), job.files))
    async for entries in target.tail(job.after):
        link.say(Seen(list(entries)))


async def follow(job: Job, link: Link) -> None:
    """A tail of the stream instead of the log: another service's view of it."""
    async with connected(job) as client:
        reader = StreamSource(client, job.service).reader(None)
        position = job.after
        while True:
            try:
                page = await reader.read(position, PAGE_EVENTS)
                if not page.events:
                    await reader.wait(position, 1.0)
            except AWAY:
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            if page.events:
                position = page.position
                link.say(Seen([found(event) for event in page.events]))


@asynccontextmanager
async def projecting(dsn: str, files: Path) -> AsyncIterator[tuple[Projector, EventLogTarget]]:
    """The round's view over the log."""
    target = await opened(lambda: open_eventlog(dsn, WrongClock(), files))
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        limits = ProjectorLimits(retry_pause_s=0.01, retry_pause_max_s=0.5)
        yield Projector(pool, view.VIEW(), LogSource(target.log), limits), target
    await target.close()


async def project(job: Job, link: Link) -> None:
    async with projecting(job.dsn, job.files) as (projector, _):
        rebuilds: set[asyncio.Task[object]] = set()

        def handle(order: Order) -> None:
            if isinstance(order, Rebuild):
                rebuilds.add(asyncio.create_task(until_done(projector.rebuild)))

        link.on_order(handle)
        await opened(projector.prepare)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(projector.run())
            tasks.create_task(report_position(projector, link, job.after))


async def until_done(work: Callable[[], Awaitable[object]]) -> object:
    """Repeat what a fault may interrupt."""
    while True:
        try:
            return await work()
        except Exception:  # noqa: BLE001  # any fault of the database; the checker compares the view in the end
            await asyncio.sleep(RETRY_PAUSE_S)


async def report_position(projector: Projector, link: Link, position: int) -> None:
    while True:
        try:
            reached = await projector.wait_for(position + 1, 1.0)
        except Exception:  # noqa: BLE001  # any fault of the database: the projector itself goes on, or ends us
            await asyncio.sleep(RETRY_PAUSE_S)
            continue
        if reached > position:
            position = reached
            link.say(Reached(position))


async def relay(job: Job, link: Link) -> None:
    target = await opened(lambda: open_eventlog(job.dsn, WrongClock(), job.files))
    async with connected(job) as client:
        # The stream is compared with the log from the first event on.
        config = RelayConfig(ack_timeout_s=1.0, idle_check_s=0.5, retry_pause_max_s=0.5, max_msgs=-1)
        await Relay(target.log, client, job.service, config).run()


async def archive(job: Job, link: Link) -> None:
    """Small segments, so that what an archiver does happens often, and most of the log is read from files."""
    ordered = asyncio.Event()
    link.on_order(lambda order: ordered.set() if isinstance(order, Archive) else None)
    target = await opened(lambda: open_eventlog(job.dsn, WrongClock(), job.files))
    while await ordered.wait():
        ordered.clear()
        await until_done(lambda: target.log.archive(keep_events=KEPT_EVENTS, segment_events=SEGMENT_EVENTS))
        link.say(Archived())


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[Client]:
    """A connection that comes back as often as the server does."""

    async def be_silent(_: Exception) -> None:
        """Lost connections are what this is about."""

    client = await nats.connect(
        job.nats_url,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,
        error_cb=be_silent,
    )
    try:
        yield client
    finally:
        await client.close()


ROLES: dict[str, Callable[[Job, Link], Awaitable[None]]] = {
    "writer": write,
    "tail": tail,
    "follower": follow,
    "projector": project,
    "relay": relay,
    "archiver": archive,
}
