"""Limits that the processes of the service share: slices fetched in the background, the books in PostgreSQL.

The database is the owner of every limit: the row lock decides who is served first. Nothing has to be elected, and no
process can fail in a way that lets the others pass more. Without the database nobody is handed a slice, and no call could
be begun either, because its intent goes into a log in the same place.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic import TypeAdapter

from llm_gateway.admission import Admission
from llm_gateway.errors import StoreUnavailable
from llm_gateway.limits import LimitRule, Need, Ticket
from llm_gateway.ports import Books
from llm_gateway.slices import NOTHING, PAUSE_S, Book, Grant, SlicedMeters, SliceTerms, Want, hand_out

KEYS_MAX: Final = 500
"""Limits in one exchange."""
FAILED_PAUSE_S: Final = 0.25
LOCK_MS: Final = 1000
"""How long a process that stands still may hold up the others, and how long one waits for a book."""
FORGOTTEN: Final = "10 minutes"
FORGET_EVERY_S: Final = 300.0

_TABLE: Final = """
    create table if not exists rate_limit_books (
        key text primary key, book jsonb not null, at timestamptz not null default now()
    );
"""
_BOUND: Final = """
    select set_config('lock_timeout', %(ms)s, true), set_config('idle_in_transaction_session_timeout', %(ms)s, true)
"""
_OPEN: Final = """
    insert into rate_limit_books (key, book) select key, '{}' from unnest(%s::text[]) as new (key) on conflict do nothing
"""
# In one order for all, so that two never wait for each other.
_READ: Final = """
    select key, book::text, extract(epoch from clock_timestamp())::float8
    from rate_limit_books where key = any(%s) order by key for update
"""
_WRITE: Final = """
    update rate_limit_books as known set book = new.book, at = now()
    from unnest(%s::text[], %s::jsonb[]) as new (key, book) where known.key = new.key
"""
_FORGET: Final = f"delete from rate_limit_books where at < now() - interval '{FORGOTTEN}'"

_BOOKS: Final = TypeAdapter(Book)


@dataclass(slots=True)
class PostgresBooks:
    """Implements Books, one transaction an exchange."""

    pool: AsyncConnectionPool[AsyncConnection[Any]]
    terms: SliceTerms

    async def prepare(self) -> None:
        """Create the table when there is none."""
        async with self.pool.connection() as connection:
            await connection.execute(_TABLE)

    async def exchange(self, member: str, wants: Mapping[str, tuple[LimitRule, Want]]) -> Mapping[str, Grant]:
        try:
            async with self.pool.connection() as connection, connection.transaction():
                return await self._exchanged(connection, member, wants)
        # A process that stood still is told so by an InternalError.
        except (psycopg.OperationalError, psycopg.InternalError, PoolTimeout) as error:
            raise StoreUnavailable(f"the books of the rate limits cannot be reached: {error}") from error

    async def forget(self) -> None:
        """Removes books that nobody has used for so long that they say nothing any more."""
        with suppress(psycopg.OperationalError, PoolTimeout):
            async with self.pool.connection() as connection:
                await connection.execute(_FORGET)

    async def forget_forever(self) -> None:
        while True:
            await self.forget()
            await asyncio.sleep(FORGET_EVERY_S)

    async def _exchanged(
        self, connection: AsyncConnection[Any], member: str, wants: Mapping[str, tuple[LimitRule, Want]]
    ) -> Mapping[str, Grant]:
        await connection.execute(_BOUND, {"ms": str(LOCK_MS)})
        keys = sorted(wants)
        rows = await (await connection.execute(_READ, (keys,))).fetchall()
        if len(rows) < len(keys):
            await connection.execute(_OPEN, (keys,))
            rows = await (await connection.execute(_READ, (keys,))).fetchall()
        grants, books = {}, {}
        for key, book, now in rows:
            rule, want = wants[key]
            changed, grants[key] = hand_out(_BOOKS.validate_json(book), rule, member, want, now, self.terms)
            books[key] = _BOOKS.dump_json(changed).decode()
        await connection.execute(_WRITE, (list(books), list(books.values())))
        return grants


@dataclass(slots=True)
class SharedLimits:
    """Keeps the meters of one process in slices. `meters` makes them, ``run`` serves them, ``close`` gives all back."""

    member: str
    books: Books
    terms: SliceTerms
    _meters: dict[str, SlicedMeters] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def meters(self, rule: LimitRule, key: tuple[str, ...]) -> SlicedMeters:
        return self._meters.setdefault(book_key(rule, key), SlicedMeters(rule, self.terms))

    def wake(self) -> None:
        """Calls wait for more than is at hand."""
        self._woken.set()

    async def run(self, admission: Admission) -> None:
        """Fetches slices for as long as the process lives."""
        while True:
            self._woken.clear()
            waiting = _waiting(admission.line.in_order(_now()))
            due, next_at = self._due(waiting)
            for batch in _batches(due):
                await self._exchange(batch, waiting)
                admission.move()
            if not due:
                await asyncio.sleep(min(PAUSE_S, max(0.0, next_at - _now())))
                await self._sleep(next_at)

    async def close(self) -> None:
        """What is at hand goes back, and others need not wait until it is lost."""
        now = _now()
        used = {key: meters for key, meters in self._meters.items() if meters.due(now, ()) < math.inf}
        wants = {key: (one.rule, replace(one.want(now, ()), most=NOTHING, slots=0)) for key, one in used.items()}
        with suppress(StoreUnavailable):
            for batch in _batches(list(wants)):
                await self.books.exchange(self.member, {key: wants[key] for key in batch})

    def _due(self, waiting: Mapping[SlicedMeters, Sequence[Need]]) -> tuple[list[str], float]:
        now, next_at, due = _now(), math.inf, []
        for key, meters in self._meters.items():
            at = meters.due(now, waiting.get(meters, ()))
            if at <= now:
                due.append(key)
            next_at = min(next_at, at)
        return due, next_at

    async def _exchange(self, keys: Sequence[str], waiting: Mapping[SlicedMeters, Sequence[Need]]) -> None:
        asked_at, chosen = _now(), {key: self._meters[key] for key in keys}
        wants = {key: (one.rule, one.want(asked_at, waiting.get(one, ()))) for key, one in chosen.items()}
        try:
            grants = await self.books.exchange(self.member, wants)
        except StoreUnavailable:
            for meters in chosen.values():
                meters.failed(_now(), FAILED_PAUSE_S)
            return
        for key, meters in chosen.items():
            meters.receive(grants[key], asked_at, _now())

    async def _sleep(self, until: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == math.inf else until):
                await self._woken.wait()


def book_key(rule: LimitRule, key: tuple[str, ...]) -> str:
    """The same in all processes. Numbers are left out, so that a limit that is changed keeps its book."""
    limits = (rule.requests_per_min, rule.input_tokens_per_min, rule.output_tokens_per_min, rule.concurrent)
    kinds = "".join(letter for letter, limit in zip("rioc", limits, strict=True) if limit)
    return "|".join((rule.per, rule.models, kinds, *key))


def _waiting(tickets: Sequence[Ticket]) -> Mapping[SlicedMeters, Sequence[Need]]:
    waiting: dict[SlicedMeters, list[Need]] = {}
    for ticket in tickets:
        for meters in ticket.meters:
            if isinstance(meters, SlicedMeters):
                waiting.setdefault(meters, []).append(ticket.need)
    return waiting


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + KEYS_MAX] for start in range(0, len(keys), KEYS_MAX))


def _now() -> float:
    return asyncio.get_running_loop().time()
