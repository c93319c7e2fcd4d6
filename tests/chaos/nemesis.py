"""The faults. Each returns when it is inflicted (and what it broke is running again); the round then waits for recovery."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from .crew import DEADLINE_S, Crew
from .history import FORBIDDEN, POISON
from .journal import Archive, Ask, Rebuild, SetClock
from .servers import Servers
from .target import TargetKind

if TYPE_CHECKING:
    from lossy_proxy import LossyProxy

IN_TRANSACTION = "state = 'idle in transaction'"
WAITING = "wait_event_type = 'Lock'"
HOUR_S = 3600.0
FREEZES_MAX = 300
LOOKS = 20
MESSAGES_MAX = 4


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault may touch. One writer, `proxied`, reaches the database through `proxy`."""

    kind: TargetKind
    servers: Servers
    crew: Crew
    proxy: LossyProxy
    random: Random
    service: str
    dsn: str
    files: Path
    proxied: str = "writer-0"


Act = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Nemesis:
    """`weight` is its share among the kills of a long run, 0 for what is no kill: that comes once a round."""

    name: str
    act: Act
    weight: int = 0
    whole_only: bool = False
    """Only for a log with relay, stream and view, or one that does not wait for ever."""
    needs_transaction: bool = False
    """Only for a log whose appends are transactions that can be watched from outside."""
    needs_rivals: bool = False
    """Only in a round with several writers."""
    slow: bool = False
    """Takes ten seconds: not in every round."""


async def kill_writer(scene: Scene) -> None:
    await scene.crew.replace(scene.random.choice(scene.crew.names("writer")))


async def kill_unheard_writer(scene: Scene) -> None:
    """What it has the database store is lost on the way, and then it is killed: nothing of that is stored.

    Whoever is told so nevertheless, while the database answers others, was told too early.
    """
    scene.proxy.withheld.clear()
    scene.proxy.withhold = scene.kind.content
    # The crew may have nothing more to say: everybody waits for what is withheld.
    async with asyncio.timeout(DEADLINE_S):
        await scene.proxy.withheld.wait()
    for _ in range(LOOKS):
        await scene.servers.administer("select 1")
    scene.proxy.withhold = None
    await scene.crew.replace(scene.proxied)


async def kill_tail(scene: Scene) -> None:
    await scene.crew.replace(scene.random.choice(scene.crew.names("tail", "follower")))


async def kill_projector(scene: Scene) -> None:
    await scene.crew.replace(scene.random.choice(scene.crew.names("projector")))


async def kill_relay(scene: Scene) -> None:
    await scene.crew.replace(scene.random.choice(scene.crew.names("relay")))


async def kill_archiver(scene: Scene) -> None:
    """While a segment is written, made known, or taken out of the database; the next archiver goes on from there."""
    (archiver,) = scene.crew.names("archiver")
    scene.crew.order_one(Archive(), archiver)
    for _ in range(scene.random.randrange(MESSAGES_MAX)):
        await scene.crew.heard()
    await scene.crew.replace(archiver)
    before = scene.crew.archivings
    scene.crew.order_one(Archive(), archiver)
    await scene.crew.until(lambda: scene.crew.archivings > before, "the archiver")


async def kill_nats(scene: Scene) -> None:
    await scene.servers.kill_nats()
    await scene.servers.start_nats()


async def kill_postmaster(scene: Scene) -> None:
    await scene.servers.kill_postmaster()
    await scene.servers.start_postgres()


async def kill_backend(scene: Scene) -> None:
    """One backend of a writer; PostgreSQL then ends all others too and recovers."""
    writer = scene.random.choice(scene.crew.names("writer"))
    for pid in (await scene.servers.backends(writer))[:1]:
        os.kill(pid, signal.SIGKILL)


async def cut_connection(scene: Scene) -> None:
    """The server closes every connection of one process, and lives."""
    name = scene.random.choice(scene.crew.names("writer", "tail", "projector", "relay"))
    await scene.servers.administer(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [name]
    )


async def lose_commit(scene: Scene) -> None:
    """The database commits; the answer is lost with the connection."""
    scene.proxy.lose_commits += 1
    await scene.crew.until(lambda: scene.proxy.lose_commits == 0, "a commit to lose")


async def freeze_writer(scene: Scene) -> None:
    """SIGSTOP a writer that holds the lock, until another waits for it."""
    name = await _freeze_in_transaction(scene)
    others = [other for other in scene.crew.names("writer") if other != name]
    for _ in range(FREEZES_MAX):
        if any([await scene.servers.backends(other, WAITING) for other in others]):
            break
    os.kill(scene.crew.pid(name), signal.SIGCONT)


async def freeze_lock_holder(scene: Scene) -> None:
    """SIGSTOP a writer that holds the lock, until the others have got past it."""
    name = await _freeze_in_transaction(scene)
    before = scene.crew.head
    try:
        await scene.crew.until(lambda: scene.crew.head > before + 10, "the others to get past a frozen writer")
    finally:
        os.kill(scene.crew.pid(name), signal.SIGCONT)


async def _freeze_in_transaction(scene: Scene) -> str:
    """Stop a writer again and again until it stands within a transaction: with the lock, waited for by the database."""
    writers = scene.crew.names("writer")
    name = scene.random.choice(writers)
    for _ in range(FREEZES_MAX):
        os.kill(scene.crew.pid(name), signal.SIGSTOP)
        if await scene.servers.backends(name, IN_TRANSACTION):
            return name
        os.kill(scene.crew.pid(name), signal.SIGCONT)
        await scene.crew.heard()
    os.kill(scene.crew.pid(name), signal.SIGSTOP)
    return name


async def freeze_backend(scene: Scene) -> None:
    """SIGSTOP what serves a writer, perhaps with locks of the whole server, until the crew is past it or was told so.

    The kernel goes on acknowledging what the writer sends. What the backend was told it does afterwards, unasked.
    """
    backend = scene.random.choice(await scene.servers.backends(scene.random.choice(scene.crew.names("writer"))))
    head, unavailable = scene.crew.head, scene.crew.unavailable
    os.kill(backend, signal.SIGSTOP)
    try:
        await scene.crew.until(
            lambda: scene.crew.head > head + 10 or scene.crew.unavailable > unavailable,
            "the crew to get past a frozen backend",
        )
    finally:
        os.kill(backend, signal.SIGCONT)


async def fill_disk(scene: Scene) -> None:
    """No byte is left until a caller was told so."""
    disk = scene.servers.disk
    assert disk is not None
    before = scene.crew.unavailable
    disk.fill()
    try:
        await scene.crew.until(lambda: scene.crew.unavailable > before, "the full disk to be noticed")
    finally:
        disk.free()


async def jump_clock(scene: Scene) -> None:
    """Every writer's clock goes back or forward an hour, the first one's back."""
    writers = scene.crew.names("writer")
    scene.crew.order_one(SetClock(-HOUR_S), writers[0])
    for writer in writers[1:]:
        scene.crew.order_one(SetClock(scene.random.choice((-HOUR_S, HOUR_S))), writer)


async def poison(scene: Scene) -> None:
    """An event that the view cannot fold."""
    await _ask(scene, POISON)


async def forbidden(scene: Scene) -> None:
    """A request that the database refuses, in the same transaction as others that it takes."""
    await _ask(scene, FORBIDDEN)


async def _ask(scene: Scene, event_type: str) -> None:
    before = scene.crew.hostile[event_type]
    scene.crew.order_one(Ask(event_type), scene.random.choice(scene.crew.names("writer")))
    await scene.crew.until(lambda: scene.crew.hostile[event_type] > before, f"a request with {event_type}")


async def delete_stream(scene: Scene) -> None:
    await scene.servers.delete_stream(scene.service)


async def cut_stream(scene: Scene) -> None:
    """JetStream loses the end of what it had acknowledged."""
    await scene.servers.kill_nats()
    scene.servers.cut_stream(scene.service)
    await scene.servers.start_nats()


async def rebuild_view(scene: Scene) -> None:
    scene.crew.order(Rebuild(), "projector")


async def archive(scene: Scene) -> None:
    """The oldest events move to files, also while the next fault is inflicted."""
    scene.crew.order(Archive(), "archiver")


NEMESES: tuple[Nemesis, ...] = (
    Nemesis("kill writer", kill_writer, weight=24),
    Nemesis("kill unheard writer", kill_unheard_writer, weight=6),
    Nemesis("kill tail", kill_tail, weight=10),
    Nemesis("kill projector", kill_projector, weight=12, whole_only=True),
    Nemesis("kill relay", kill_relay, weight=18, whole_only=True),
    Nemesis("kill archiver", kill_archiver, weight=8, whole_only=True),
    Nemesis("kill NATS", kill_nats, weight=10, whole_only=True),
    Nemesis("kill postmaster", kill_postmaster, weight=10),
    Nemesis("kill backend", kill_backend, weight=10),
    Nemesis("cut connection", cut_connection),
    Nemesis("lose commit", lose_commit, needs_transaction=True),
    Nemesis("freeze writer", freeze_writer, needs_transaction=True, needs_rivals=True),
    Nemesis("freeze lock holder", freeze_lock_holder, needs_transaction=True, needs_rivals=True, slow=True),
    Nemesis("freeze backend", freeze_backend, whole_only=True),
    Nemesis("fill disk", fill_disk),
    Nemesis("jump clock", jump_clock),
    Nemesis("poison event", poison, whole_only=True),
    Nemesis("forbidden event", forbidden),
    Nemesis("cut stream", cut_stream, whole_only=True),
    Nemesis("delete stream", delete_stream, whole_only=True),
    Nemesis("archive", archive, whole_only=True),
    Nemesis("rebuild view", rebuild_view, whole_only=True),
)
