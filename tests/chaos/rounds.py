"""One round: a fresh database and stream, a crew at work, fault after fault, then everything stopped, read and judged."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import monotonic
from typing import TypeVar

import nats
import psycopg
from eventlog.sources import StreamSource
from lossy_proxy import lossy_proxy

from .checker import Kind, Violation, check
from .crew import Crew
from .history import Acked, Entry, Evidence, Unknown, ViewFound
from .journal import Stop
from .nemesis import Nemesis, Scene
from .outcome import Outcome, Step
from .plan import plan, possible, writers
from .plants import Plant
from .servers import Servers
from .target import TargetKind
from .target_eventlog import PAGE_EVENTS, WrongClock, found
from .worker import Job, projecting

Found = TypeVar("Found")
QUIET_DEADLINE_S = 15.0
READ_DEADLINE_S = 120.0
"""A batch with poison in it is folded event by event: on a busy machine that takes its time."""


@dataclass(slots=True)
class Round:
    """`on_step` is told after each fault."""

    number: int
    seed: str
    kind: TargetKind
    servers: Servers
    kills: int
    only: frozenset[str]
    """Names of faults; empty: all."""
    deadline_s: float
    on_step: Callable[[Nemesis, float, int], None]
    plant: Plant | None = None

    async def play(self) -> Outcome:
        name = f"chaos_{self.kind.name.replace('-', '_')}_{self.number}"
        dsn = await self.servers.create_database(name)
        files = self.servers.files / name
        await self._prepare(dsn, files)
        crew, outcome = Crew(), Outcome()
        try:
            async with lossy_proxy(dsn) as proxy:
                random = Random(f"{self.seed} {self.number}")
                service = f"chaos-{self.number}"
                scene = Scene(self.kind, self.servers, crew, proxy, random, service, dsn, files)
                self._start(scene)
                await self._inflict(scene, outcome)
                evidence = await self._stop_and_read(scene, outcome)
        finally:
            await crew.dismiss()
        await self.servers.drop_database(name)
        outcome.violations += [*crew.violations, *check(evidence)]
        self._count(evidence, outcome)
        return outcome

    async def _prepare(self, dsn: str, files: Path) -> None:
        """Let the log make its tables."""
        await (await self.kind.open(dsn, WrongClock(), files)).close()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            for statement in filter(None, (self.kind.forbid, self.plant and self.plant.sql)):
                await connection.execute(statement.encode())

    def _start(self, scene: Scene) -> None:
        names = {"writer": writers(self.number), "tail": 2}
        if self.kind.whole:
            names |= {"relay": 2, "follower": 1, "projector": 1, "archiver": 1}
        for role, count in names.items():
            for number in range(count):
                name = f"{role}-{number}"
                dsn = scene.proxy.dsn if name == scene.proxied else scene.dsn
                seed = f"{self.seed} {self.number}"
                job = Job(name, role, self.kind.name, dsn, scene.files, self.servers.nats_url, scene.service, seed)
                scene.crew.start(replace(job, plant=self.plant.name if self.plant else ""))

    async def _inflict(self, scene: Scene, outcome: Outcome) -> None:
        has_disk, rivals = self.servers.disk is not None, writers(self.number) > 1
        nemeses = possible(self.kind, disk=has_disk, rivals=rivals, only=self.only)
        await self._step(scene, outcome, Nemesis("start", _nothing))
        for nemesis in plan(scene.random, nemeses, self.kills, self.number):
            if monotonic() > self.deadline_s or not await self._step(scene, outcome, nemesis):
                return
        if self.plant is not None:
            await scene.crew.has_acknowledged(self.plant.requests)

    async def _step(self, scene: Scene, outcome: Outcome, nemesis: Nemesis) -> bool:
        """Whether everyone recovered."""
        scene.crew.step = len(outcome.steps)
        begun_s = monotonic()
        try:
            await nemesis.act(scene)
            await scene.crew.recovered()
        except TimeoutError as error:
            outcome.violations.append(Violation(Kind.STUCK, f"{nemesis.name}: {error}", scene.crew.step))
            print(outcome.violations[-1], file=sys.stderr)
        took_s = monotonic() - begun_s
        outcome.steps.append(Step(nemesis.name, took_s))
        self.on_step(nemesis, took_s, scene.crew.acked)
        return not any(violation.kind is Kind.STUCK for violation in outcome.violations)

    async def _stop_and_read(self, scene: Scene, outcome: Outcome) -> Evidence:
        """Let writers finish and followers catch up, as far as they do in time; then read it all."""
        scene.crew.order(Stop(), "writer")
        target = await self.kind.open(scene.dsn, WrongClock(), scene.files)
        try:
            await scene.crew.idle()
            log = tuple(await target.read())
            await scene.crew.caught_up(log[-1].position if log else 0, QUIET_DEADLINE_S)
        except TimeoutError as error:
            outcome.violations.append(Violation(Kind.STUCK, f"stop: {error}", scene.crew.step))
        await scene.crew.dismiss()
        log = tuple(await target.read())
        chain_ok = await target.verify()
        await target.close()
        return Evidence(
            told=tuple(scene.crew.told.values()),
            log=log,
            tails={name: tuple(seen) for name, seen in scene.crew.tails.items()},
            stream=await _in_time(_stream(scene), "the stream", outcome) if self.kind.whole else None,
            view=await _in_time(_view(scene), "the view", outcome) if self.kind.whole else None,
            chain_ok=chain_ok,
            versioned=self.kind.versioned,
        )

    def _count(self, evidence: Evidence, outcome: Outcome) -> None:
        outcome.events = len(evidence.log)
        outcome.acked.update(told.step for told in evidence.told if isinstance(told.answer, Acked))
        outcome.unknown.update(told.step for told in evidence.told if isinstance(told.answer, Unknown))


async def _nothing(_: Scene) -> None:
    """The beginning: everyone has to get to work."""


async def _in_time(reading: Awaitable[Found], what: str, outcome: Outcome) -> Found | None:
    """What is read, unless it cannot be read to its end: that is a finding too."""
    try:
        async with asyncio.timeout(READ_DEADLINE_S):
            return await reading
    except TimeoutError:
        outcome.violations.append(Violation(Kind.STUCK, f"{what} could not be read to its end"))
        return None


async def _stream(scene: Scene) -> tuple[Entry, ...]:
    """All that JetStream has, be it more or less than the log."""
    client = await nats.connect(scene.servers.nats_url)
    source = StreamSource(client, scene.service)
    reader = source.reader(None)
    entries: list[Entry] = []
    last = (await source.bounds())[1]
    while not entries or entries[-1].position < last:
        page = await reader.read(entries[-1].position if entries else 0, PAGE_EVENTS)
        entries.extend(found(event) for event in page.events)
    await reader.close()
    await client.jetstream().delete_stream(source.stream)
    await client.close()
    return tuple(entries)


async def _view(scene: Scene) -> ViewFound:
    async with projecting(scene.dsn, scene.files) as (projector, _):
        verified = await projector.verify()
        parked = await projector.parked()
        async with await psycopg.AsyncConnection.connect(scene.dsn) as connection:
            rows = await (await connection.execute("select stream, events from view_tallies.tallies")).fetchall()
    return ViewFound(dict(rows), tuple(each.event.position for each in parked), verified.equal)
