"""Folds a source into one copy of a view: in batches, exactly once, past events that cannot be folded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import nats.errors
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from eventlog import patience
from eventlog.errors import LogUnavailable, ViewSuperseded
from eventlog.records import Page, StoredEvent
from eventlog.sources import Reader
from eventlog.view_tables import Connection, Standing, ViewTables

AWAY: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    LogUnavailable,
    nats.errors.Error,
    TimeoutError,
    OSError,
)
"""Errors that the infrastructure raises. Of psycopg's, not all speak of it: `is_away` tells."""

_AWAY_SQLSTATES: Final = (
    "08",  # the connection
    "40",  # a deadlock or a serialization failure: the same again may succeed
    "53100",  # the disk is full
    "53300",  # too many connections
    "55P03",  # somebody else holds a lock
    "57P",  # the server stops, crashed or starts
    "58",  # the system below the server
)

_log = logging.getLogger(__name__)


def is_away(error: Exception) -> bool:
    """Whether the infrastructure is at fault, not the event: try again, park nothing.

    psycopg calls many answers of a living server an OperationalError too: that a value is too long for its index, or that
    a statement took too long, is about this event and would be so for ever.
    """
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(_AWAY_SQLSTATES)
    return isinstance(error, AWAY)


class View(Protocol):
    """What is asked of the events, as tables.

    `name` is lower case with underscores; `version` grows whenever `tables` or `apply` change, which rebuilds the
    view; `types` are the events it wants (None: all); `tables` is DDL with unqualified names. `apply` folds one batch
    into the tables, which unqualified names mean, inside the transaction that moves the position. It must depend on
    nothing but the events and the tables, and write nowhere else. What it raises parks an event.

    A view that copies what a Vault opened says so by an attribute `personal = True` (PersonalView): an erasure then
    rebuilds it.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def types(self) -> frozenset[str] | None: ...
    @property
    def tables(self) -> str: ...

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None: ...


@runtime_checkable
class PersonalView(View, Protocol):
    """A view whose tables may hold personal data in the clear."""

    @property
    def personal(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ProjectorLimits:
    """Limits of one view."""

    batch_events: int = 1_000
    copy_events: int = 5_000
    """A batch of a copy that nobody reads yet: large ones fold faster, and make nobody wait."""
    attempts_max: int = 3
    """How often an event is tried alone before it is parked."""
    chases_max: int = 10
    """How often a copy runs after a live view that moves on, before it holds it."""
    pace_s: float = 0.1
    """Under steady load a view is folded this often at most: what comes meanwhile shares one transaction. The first event
    after a rest is folded at once, and so is one that somebody waits for."""
    abandoned_after_s: float = 30.0
    """A view of another release that has not moved for so long, though it lags, is taken back."""
    idle_wait_s: float = 1.0
    retry_pause_s: float = 0.05
    retry_pause_max_s: float = 2.0
    poll_interval_s: float = 0.25
    """How often a waiter looks whether another process has moved the view."""


class Folder:
    """One pass of `reader` into the copy `tables`. Processes that fold the same copy take turns.

    Unless it is `unhurried` a statement has the limit of its connection, and the batch is tried again.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        view: View,
        tables: ViewTables,
        reader: Reader,
        limits: ProjectorLimits,
        *,
        unhurried: bool = False,
    ) -> None:
        self.reader = reader
        self.position = -1
        self.has_more = False
        """Whether the source had more, when a page was last read."""
        self._pool = pool
        self._view = view
        self._tables = tables
        self._limits = limits
        self._patience = patience.unhurried if unhurried else nullcontext

    async def fold_to(self, position: int) -> None:
        """Fold until the copy is at `position`, and no further."""
        await self._learn()
        while self.position < position:
            if not await self.step(upto=position):
                await self.reader.wait(self.position, self._limits.idle_wait_s)

    async def step(self, upto: int | None = None) -> int:
        """Fold the next page, cut at `upto`; how many positions of the source that was, 0 if there is none.

        Raises what AWAY lists while source or database are away, ViewSuperseded if the copy is no longer this view's. What
        an event is at fault for is parked.
        """
        await self._learn()
        page = await self.reader.read(self.position, self._limits.batch_events)
        self.has_more = page.more
        if upto is not None:
            page = page.upto(upto)
        before = self.position
        if page.position <= before:
            return 0
        try:
            await self._fold(page)
        except Exception as error:  # a view may fail in any way: the event at fault is found and parked
            if is_away(error) or isinstance(error, ViewSuperseded):
                raise
            _log.warning("view %s: a batch failed, folding one by one: %r", self._view.name, error)
            await self._fold_one_by_one(page)
        return page.position - before

    async def _fold_one_by_one(self, page: Page) -> None:
        for event in page.events:
            if event.position > self.position:  # else another process was faster
                await self._fold_or_park(event)
        if self.position < page.position:
            await self._fold(Page((), page.position))

    async def _fold_or_park(self, event: StoredEvent) -> None:
        for attempt in range(1, self._limits.attempts_max + 1):
            try:
                return await self._fold(Page([event], event.position))
            except Exception as error:  # recorded with the event, after some attempts
                if is_away(error) or isinstance(error, ViewSuperseded):
                    raise
                if attempt == self._limits.attempts_max:
                    return await self._fold(Page([event], event.position), parked_for=error)
            await asyncio.sleep(self._limits.retry_pause_s * attempt)
        return None

    async def _fold(self, page: Page, parked_for: Exception | None = None) -> None:
        """Apply (or park) the page's events and move the position, unless another process moved it first."""
        async with self._transaction() as connection:
            standing = await self._take(connection)
            if standing.position == self.position:
                if parked_for is not None:
                    await self._park(connection, page.events[0], parked_for)
                elif page.events:
                    await self._view.apply(connection, page.events)
                await self._tables.move(connection, page.position)
        self.position = page.position if standing.position == self.position else standing.position

    async def _park(self, connection: Connection, event: StoredEvent, error: Exception) -> None:
        _log.error("view %s parks event %d (%s): %r", self._view.name, event.position, event.type, error)
        await self._tables.park(connection, event, f"{type(error).__name__}: {error}")

    async def _learn(self) -> None:
        if self.position < 0:
            async with self._transaction() as connection:
                self.position = (await self._take(connection)).position

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection:
            with self._patience(connection):
                async with connection.transaction():
                    yield connection

    async def _take(self, connection: Connection) -> Standing:
        standing = await self._tables.take(connection)
        if standing is None or standing.version != self._view.version:
            raise ViewSuperseded(self._view.name, self._view.version, standing.version if standing else 0)
        return standing
