"""Views: tables folded from events, which can be rebuilt at any time.

A view is folded in batches; its tables and its position change in one transaction, so an event counts exactly once
whatever crashes. An event that a view cannot fold is parked with its error and the view goes on. A rebuild folds a copy
beside the live tables and swaps it in by renaming.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from psycopg_pool import AsyncConnectionPool

from eventlog.errors import FoldFailed, NoOldView, NotParked, RebuildRunning, ViewSuperseded
from eventlog.folding import AWAY, Folder, ProjectorLimits, View, is_away
from eventlog.patience import unhurried
from eventlog.records import StoredEvent
from eventlog.signal import HeadSignal
from eventlog.sources import Source
from eventlog.view_tables import Connection, Parked, Standing, ViewTables

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ViewVerified:
    """Whether the live view equals one folded anew up to `position`; `checksum` (hex) is over the latter."""

    name: str
    position: int
    equal: bool
    differing_tables: tuple[str, ...]
    checksum: str


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """A view at one moment; `lag` is in events of the source."""

    name: str
    version: int
    source: str
    position: int
    lag: int
    parked: int


class Projector:
    """Keeps one view. The pool needs two free connections during a rebuild; it and the source stay the caller's.

    Several processes may run the same view: they take turns, and no event counts twice.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        view: View,
        source: Source,
        limits: ProjectorLimits | None = None,
    ) -> None:
        if _NAME.fullmatch(view.name) is None:
            raise ValueError(f"view name {view.name!r} must be 1 to 40 characters out of a-z 0-9 _, letter first")
        self.view = view
        self.source = source
        self._pool = pool
        self._limits = limits or ProjectorLimits()
        self._live = ViewTables(f"view_{view.name}")
        self._old = ViewTables(f"{self._live.schema}__old")
        self._signal = HeadSignal()
        self._awaited = asyncio.Event()
        self._was_live = False
        self._aside = asyncio.Lock()

    async def prepare(self) -> None:
        """Create the view's tables, or rebuild them if they are of another version. Of several processes one does it, the
        others wait.

        ViewSuperseded if the view was this process's before: a release that has been replaced does not take it back as
        long as the other one folds, or the two would go on replacing each other. Started anew, it does.
        """
        while not await self._is_prepared():
            if self._was_live:
                raise ViewSuperseded(self.view.name, self.view.version, await self._version())
            try:
                await self._take_over()
                break
            except RebuildRunning:
                await asyncio.sleep(self._limits.poll_interval_s)
        self._was_live = True

    async def run(self) -> None:
        """Fold for ever. ViewSuperseded when another release takes the view over. Called again, it waits until that one
        folds no more, or has gone back.
        """
        if self._was_live:
            await self._stand_by()
        await self.prepare()
        async with self._folder(self._live) as folder:
            pause_s = self._limits.retry_pause_s
            while True:
                try:
                    self._awaited.clear()
                    folded = await folder.step()
                    self._signal.advance(folder.position)
                    pause_s = self._limits.retry_pause_s
                    if not folded:
                        await folder.reader.wait(folder.position, self._limits.idle_wait_s)
                    elif folded < self._limits.batch_events and not folder.has_more:
                        await self._rest()
                except AWAY as error:
                    _log.warning("view %s waits for its source or its database: %r", self.view.name, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, self._limits.retry_pause_max_s)

    async def catch_up(self, position: int | None = None) -> int:
        """Fold up to a position of the source, by default its head now; the position reached."""
        goal = await self.source.head() if position is None else position
        await self.prepare()
        async with self._folder(self._live) as folder:
            await folder.fold_to(goal)
            self._signal.advance(folder.position)
            return folder.position

    async def position(self) -> int:
        """How far the live view is folded; 0 before it exists."""
        async with self._transaction() as connection:
            standing = await self._live.standing(connection)
        return 0 if standing is None else standing.position

    async def lag(self) -> int:
        """How many events of the source the live view has not folded."""
        return max(0, await self.source.head() - await self.position())

    async def status(self) -> ViewStatus:
        position, parked, head = await self.position(), await self.parked(), await self.source.head()
        return ViewStatus(
            self.view.name, self.view.version, self.source.name, position, max(0, head - position), len(parked)
        )

    async def wait_for(self, position: int, timeout_s: float) -> int:
        """The view's position, once it is at `position` or beyond or the time is over: read your own writes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            if self._signal.head < position:
                self._awaited.set()
            slice_s = min(self._limits.poll_interval_s, deadline - loop.time())
            reached = await self._signal.wait_for(position, slice_s)
            if reached >= position or slice_s <= 0:
                return reached
            self._signal.advance(await self.position())

    async def rebuild(self) -> int:
        """Fold the view anew beside the live one, then swap; how many positions were folded.

        Queries go on meanwhile; the live view stands still for the last few events only. What was live is kept as
        view_<name>__old until the next rebuild. RebuildRunning if one runs already, in whatever process.
        """
        async with self._turn() as turn:
            return await self._rebuild(turn)

    async def rollback(self) -> int:
        """Go back to the copy that the last rebuild replaced, and keep what is live in its place; the position reached.

        The old copy is folded up to the live one first, then they are swapped as by a rebuild. NoOldView if there is none
        of this version; RebuildRunning.
        """
        async with self._turn() as turn:
            if not await self._has_old():
                raise NoOldView(self.view.name, self.view.version)
            return await self._rollback(turn)

    async def forget(self) -> int:
        """Rebuild without keeping what was live before: nothing erased since stays in any table of the view."""
        folded = await self.rebuild()
        async with self._transaction() as connection:
            await self._old.drop(connection)
        # What a verification left that was killed. One that runs now drops its copy itself.
        with suppress(RebuildRunning):
            async with self._turn() as turn, turn.transaction():
                await ViewTables(f"{self._live.schema}__verify").drop(turn)
        return folded

    async def verify(self) -> ViewVerified:
        """Fold the view anew aside, compare it with the live one at the same position, and drop it. RebuildRunning."""
        async with (
            self._turn() as turn,
            self._copy("verify") as copy,
            self._copy_folder(copy) as folder,
        ):
            await self._come_near(folder)
            async with turn.transaction():
                live = await self._lock_live(turn)
                await folder.fold_to(live.position)
                found = await self._live.checksum(turn)
                expected = await copy.checksum(turn)
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        return ViewVerified(self.view.name, live.position, not differing, tuple(differing), _combined(expected))

    async def checksum(self) -> dict[str, str]:
        """A digest of each table of the live view."""
        async with self._transaction() as connection:
            with unhurried(connection):
                return await self._live.checksum(connection)

    async def parked(self) -> list[Parked]:
        """The events that could not be folded."""
        async with self._transaction() as connection:
            if await self._live.standing(connection) is None:
                return []
            return await self._live.parked(connection)

    async def parked_count(self) -> int:
        """How many events could not be folded."""
        async with self._transaction() as connection:
            return await self._live.parked_count(connection)

    async def redrive(self, position: int, *, skip: bool = False) -> None:
        """Fold a parked event again, or drop it from the list with `skip`.

        NotParked if there is none at the position; FoldFailed if `apply` raises again, then the event stays parked.
        """
        async with self._transaction() as connection:
            await self._lock_live(connection)
            event = await self._live.unpark(connection, position)
            if event is None:
                raise NotParked(self.view.name, position)
            if not skip:
                await self._refold(connection, event)

    async def _rest(self) -> None:
        """Let events gather for one transaction, unless somebody waits for one of them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.pace_s):
                await self._awaited.wait()

    async def _refold(self, connection: Connection, event: StoredEvent) -> None:
        try:
            await self.view.apply(connection, [event])
        except Exception as error:
            if is_away(error):
                raise
            raise FoldFailed(self.view.name, event.position, error) from error

    async def _is_prepared(self) -> bool:
        """Whether the live tables are of this version of the view; they are made if there are none."""
        async with self._transaction() as connection:
            with unhurried(connection):  # a verification of another process holds it for as long as it compares
                await self._live.lock(connection)
            standing = await self._live.standing(connection)
            if standing is None:
                await self._live.create(connection, self.view.tables, self.view.version)
        return standing is None or standing.version == self.view.version

    async def _stand_by(self) -> None:
        """Until the view is of this version, or nobody folds it though there is something to fold."""
        loop = asyncio.get_running_loop()
        position, since = await self.position(), loop.time()
        while await self._version() not in (0, self.view.version):
            await asyncio.sleep(self._limits.poll_interval_s)
            now = await self.position()
            if now != position or now >= await self.source.head():
                position, since = now, loop.time()
            elif loop.time() - since > self._limits.abandoned_after_s:
                self._was_live = False
                return

    async def _version(self) -> int:
        async with self._transaction() as connection:
            standing = await self._live.standing(connection)
        return 0 if standing is None else standing.version

    async def _take_over(self) -> None:
        """From another version of the view: to the copy of this one that was kept, or to a new one."""
        async with self._turn() as turn:
            if await self._is_prepared():
                return  # by another process, before it was this one's turn
            _log.info("view %s: going to version %d", self.view.name, self.view.version)
            if await self._has_old():
                await self._rollback(turn)
            else:
                await self._rebuild(turn)

    async def _rebuild(self, turn: Connection) -> int:
        async with self._copy("next") as copy, self._copy_folder(copy) as folder:
            await folder.fold_to(await self.source.head())
            async with turn.transaction():
                await self._old.drop(turn)
            return await self._swap_in(turn, copy, folder)

    async def _rollback(self, turn: Connection) -> int:
        async with self._copy_folder(self._old) as folder:
            return await self._swap_in(turn, self._old, folder)

    async def _has_old(self) -> bool:
        async with self._transaction() as connection:
            old = await self._old.standing(connection)
        return old is not None and old.version == self.view.version

    async def _swap_in(self, turn: Connection, copy: ViewTables, folder: Folder) -> int:
        """Bring the copy to where the live view stands, and let them change places with nobody folding meanwhile."""
        await self._come_near(folder)
        spare = ViewTables(f"{self._live.schema}__spare")
        async with turn.transaction():
            live = await self._lock_live(turn)
            await folder.fold_to(live.position)
            await self._live.rename(turn, spare.schema)
            await copy.rename(turn, self._live.schema)
            await spare.rename(turn, self._old.schema)
        self._signal.advance(folder.position)
        return folder.position

    async def _come_near(self, folder: Folder) -> None:
        """Follow the live view until one batch would do, so that it stands still only briefly for the rest."""
        for _ in range(self._limits.chases_max):
            live = await self.position()
            if live - folder.position <= self._limits.batch_events:
                return
            await folder.fold_to(live)

    async def _lock_live(self, connection: Connection) -> Standing:
        standing = await self._live.take(connection)
        if standing is None:
            raise ViewSuperseded(self.view.name, self.view.version, 0)
        return standing

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Connection]:
        """Be the only one, of all processes, that makes or swaps copies of the view; RebuildRunning if somebody else is."""
        if self._aside.locked():
            raise RebuildRunning(self.view.name)
        async with self._aside, self._pool.connection() as connection:
            if not await self._live.claim(connection):
                raise RebuildRunning(self.view.name)
            try:
                with unhurried(connection):  # digests of whole tables, and a swap waits for who reads them
                    yield connection
            finally:
                await self._live.release(connection)

    @asynccontextmanager
    async def _folder(
        self, tables: ViewTables, limits: ProjectorLimits | None = None, *, unhurried: bool = False
    ) -> AsyncIterator[Folder]:
        reader = self.source.reader(self.view.types)
        try:
            yield Folder(self._pool, self.view, tables, reader, limits or self._limits, unhurried=unhurried)
        finally:
            await reader.close()

    def _copy_folder(self, copy: ViewTables) -> AbstractAsyncContextManager[Folder]:
        """For tables that nobody reads yet."""
        return self._folder(copy, replace(self._limits, batch_events=self._limits.copy_events), unhurried=True)

    @asynccontextmanager
    async def _copy(self, purpose: str) -> AsyncIterator[ViewTables]:
        """An empty copy of the view's tables, dropped at the end unless it was renamed."""
        copy = ViewTables(f"{self._live.schema}__{purpose}")
        async with self._transaction() as connection:
            await copy.drop(connection)
            await copy.create(connection, self.view.tables, self.view.version)
        try:
            yield copy
        finally:
            async with self._transaction() as connection:
                await copy.drop(connection)


def _combined(digests: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return sha256(lines.encode()).hexdigest()
