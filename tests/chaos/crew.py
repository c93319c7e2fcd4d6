"""The processes of one round: starts them, kills them, replaces them, and keeps what they said."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pickle import UnpicklingError
from time import monotonic

from .checker import Kind, Violation
from .history import FORBIDDEN, POISON, Acked, Entry, Request, Told, Unknown
from .journal import Abandoned, Archived, Begun, Ended, Failed, Idle, Order, Reached, Seen
from .worker import Job, main

CALLER_LEFT = "the caller went away"
MESSAGES_AT_ONCE = 200
DEADLINE_S = 60.0


@dataclass(eq=False, slots=True)
class Member:
    """One process. `position` is how far a tail, follower or projector has come."""

    job: Job
    process: BaseProcess
    pipe: Pipe
    position: int
    killed: bool = False
    idle: bool = False
    acked_begun_s: float = 0.0
    """When the latest of its acknowledged requests was begun."""
    on_the_way: dict[str, Request] = field(default_factory=dict)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Crew:
    """All that is said is in `told` and `tails`; `step` is the fault that answers are counted to."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.tails: dict[str, list[Entry]] = {}
        self.violations: list[Violation] = []
        self.step = 0
        self.head = 0
        """The highest position that was acknowledged."""
        self.acked = 0
        """How many requests were."""
        self.unavailable = 0
        """How often a log could not answer."""
        self.archivings = 0
        """How often an archiver was done."""
        self.hostile = {POISON: 0, FORBIDDEN: 0}
        """How many requests with such events were answered."""
        self._members: dict[str, Member] = {}
        self._changed = asyncio.Event()
        self._closing = False
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["chaos.worker"])

    def start(self, job: Job) -> None:
        """Start the process of a job. If it ends by itself, that is recorded and it is started again."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=main, args=(job, theirs), name=job.name, daemon=True)
        process.start()
        theirs.close()
        member = Member(job, process, ours, job.after)
        self._members[job.name] = member
        if job.role in ("tail", "follower"):
            self.tails.setdefault(job.name, [])
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear, member)

    def names(self, *roles: str) -> list[str]:
        return [name for name, member in self._members.items() if member.job.role in roles]

    def pid(self, name: str) -> int:
        pid = self._members[name].process.pid
        assert pid is not None
        return pid

    def order(self, order: Order, *roles: str) -> None:
        for name in self.names(*roles):
            self.order_one(order, name)

    def order_one(self, order: Order, name: str) -> None:
        self._members[name].pipe.send(order)

    async def replace(self, name: str) -> None:
        """kill -9, and another in its place, who knows what the dead was asked and did not answer."""
        member = self._members[name]
        await self._kill(member)
        self.start(self._successor(member))

    async def dismiss(self) -> None:
        """kill -9 all."""
        self._closing = True
        for member in list(self._members.values()):
            await self._kill(member)
        self._members.clear()

    async def recovered(self) -> None:
        """Until every writer has an answer to a new request, and everyone who follows has got to there.

        TimeoutError, which names who has not, after DEADLINE_S.
        """
        since_s = monotonic()
        await self.until(lambda: all(member.acked_begun_s > since_s for member in self._of("writer")), "writers")
        await self.caught_up(self.head, DEADLINE_S)

    async def has_acknowledged(self, requests: int) -> None:
        """Until the writers have been told of so many requests that they are stored. TimeoutError after DEADLINE_S."""
        await self.until(lambda: self.acked >= requests, f"{requests} acknowledgements")

    async def caught_up(self, position: int, deadline_s: float) -> None:
        """Until tails, follower and projector are at `position`."""
        followers = ("tail", "follower", "projector")
        await self.until(
            lambda: all(member.position >= position for member in self._of(*followers)), "followers", deadline_s
        )

    async def idle(self) -> None:
        """Until every writer has finished."""
        await self.until(lambda: all(member.idle for member in self._of("writer")), "writers to finish")

    async def until(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            standing = {name: member.position for name, member in self._members.items()}
            raise TimeoutError(f"waited {deadline_s} s for {what}; head {self.head}, {standing}") from None

    async def heard(self) -> None:
        """Until anybody says anything."""
        self._changed.clear()
        await self._changed.wait()

    def _of(self, *roles: str) -> Iterable[Member]:
        return [self._members[name] for name in self.names(*roles)]

    def _hear(self, member: Member) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                self._take(member, member.pipe.recv())
                if not member.pipe.poll():
                    break
        except (EOFError, OSError, UnpicklingError):
            self._lose(member)
        self._changed.set()

    def _take(self, member: Member, message: object) -> None:
        match message:
            case Begun(request, at_s):
                self._begin(member, request, at_s)
            case Ended(key):
                self._end(member, message)
            case Abandoned(key):
                member.on_the_way.pop(key, None)
            case Seen(entries):
                self.tails[member.job.name].extend(entries)
                member.position = entries[-1].position
            case Reached(position):
                member.position = position
            case Archived():
                self.archivings += 1
            case Idle():
                member.idle = True
            case Failed(error):
                self.violations.append(Violation(Kind.DIED, f"{member.job.name}: {error}", self.step))
            case _:
                raise TypeError(f"{member.job.name} says {message!r}")

    def _begin(self, member: Member, request: Request, at_s: float) -> None:
        told = self.told.setdefault(request.key, Told(request, at_s, step=self.step))
        told.attempt()
        member.on_the_way[request.key] = request

    def _end(self, member: Member, ended: Ended) -> None:
        told = self.told[ended.key]
        told.told(ended.answer, ended.at_s, self.step)
        if isinstance(ended.answer, Unknown):
            self.unavailable += ended.answer.reason != CALLER_LEFT
            return
        member.on_the_way.pop(ended.key, None)
        for write in told.request.writes:
            if write.type in self.hostile:
                self.hostile[write.type] += 1
        if isinstance(ended.answer, Acked):
            self.acked += 1
            self.head = max(self.head, ended.answer.position)
            member.acked_begun_s = max(member.acked_begun_s, told.begun_s)

    def _lose(self, member: Member) -> None:
        """The process is gone, and all it said is heard."""
        asyncio.get_running_loop().remove_reader(member.pipe.fileno())
        member.pipe.close()
        member.gone.set()
        if not (member.killed or member.idle or self._closing):
            self.start(self._successor(member))

    def _successor(self, member: Member) -> Job:
        return replace(
            member.job,
            incarnation=member.job.incarnation + 1,
            after=member.position,
            unanswered=tuple(member.on_the_way.values()),
        )

    async def _kill(self, member: Member) -> None:
        member.killed = True
        assert member.process.pid is not None
        with suppress(ProcessLookupError):  # it ended by itself just now
            os.kill(member.process.pid, signal.SIGKILL)
        await member.gone.wait()
        member.process.join()
