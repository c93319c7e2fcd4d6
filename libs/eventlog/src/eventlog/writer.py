"""The one writer of a process: commits whatever waits as one transaction, again and again (group commit).

As long as no other process writes, a transaction is one statement that stores what was decided on what the writer
remembers (tail.py), unless the head has moved. Otherwise it is two round trips: lock the head and read what the decision
needs; store and commit. The lock makes writers of several processes take turns, and each statement after it sees all that
the others committed. Rows of a side table (side_table.py) are stored by the statement that stores their events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import random
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg.pq.abc import PGresult

from eventlog.admission import (
    NEW_STREAM,
    Admission,
    Head,
    Known,
    Outcome,
    Request,
    Size,
    Stored,
    StreamHead,
    check_request,
    check_side_table,
    rows_beside,
    streams_of,
)
from eventlog.arrays import texts, uuids
from eventlog.backlog import Backlog
from eventlog.binary import to_int, to_time, to_uuid
from eventlog.clock import Clock
from eventlog.errors import AppendRefused, ArchiveMissing, EventLogError, LogClosed, LogUnavailable
from eventlog.limits import Limits
from eventlog.observer import GroupCommitted, Observer, Unobserved
from eventlog.patience import NOTICE_THAT_WE_LEFT
from eventlog.prepared import Parameters, PreparedConnection, rows
from eventlog.records import Appended, StoredEvent, StreamId, parse_stream
from eventlog.side_table import SideRow
from eventlog.sql import Statements, storing
from eventlog.tail import Tail

_RECONNECT_PAUSE_S = 0.05
_RECONNECT_PAUSE_MAX_S = 2.0
_LOCK_HOLDER_IDLE_MAX_MS = 10_000

_BEGIN = b"begin"
_COMMIT = b"commit"
# Statistics of a young table must never talk the planner out of the indexes, and a frozen process must not hold the head
# for ever. A role or database that is set not to flush would lose what was answered.
_SETUP = (
    b"set timezone = 'UTC'; set enable_seqscan = off; set plan_cache_mode = force_generic_plan;"
    b" set idle_in_transaction_session_timeout = %d;"
    b" %s;"
    b" select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
) % (_LOCK_HOLDER_IDLE_MAX_MS, NOTICE_THAT_WE_LEFT)

_ENDED_BY_CONNECTING_ANEW = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # Of statements that were prepared: a pooler discarded them; a table was altered under them.
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.FeatureNotSupported,
)

_log = logging.getLogger(__name__)


async def _no_archive(*_: object) -> StoredEvent:
    raise ArchiveMissing


@dataclass(frozen=True, slots=True)
class ArchivedReads:
    """How a writer reads archived events: the one at a position, and the one of a stream by its version."""

    at: Callable[[int], Awaitable[StoredEvent]] = _no_archive
    of_stream: Callable[[StreamId, int], Awaitable[StoredEvent]] = _no_archive


_Step = tuple[bytes, Parameters]
OnCommit = Callable[[int, Sequence[StoredEvent], Callable[[], None]], None]


class _Committed(NamedTuple):
    """What a group came to: an outcome for each request, what was stored, and the head after it; None if not known."""

    outcomes: list[Outcome]
    stored: Sequence[StoredEvent] = ()
    head: int | None = None


@dataclass(eq=False, slots=True)
class _Waiting:
    request: Request
    size: Size
    answer: asyncio.Future[Appended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class GroupWriter:
    """Owns one connection and one task.

    `on_commit` is told the new head, what was stored, and how to tell the observer of it, after each commit. Before that
    the callers are answered, so that they go on first; but none of them has gone on yet.
    """

    def __init__(
        self,
        dsn: str,
        statements: Statements,
        limits: Limits,
        clock: Clock,
        on_commit: OnCommit,
        observer: Observer | None = None,
        archived: ArchivedReads | None = None,
    ) -> None:
        self._dsn = dsn
        self._sql = statements
        self._limits = limits
        self._clock = clock
        self._on_commit = on_commit
        self._observer = observer or Unobserved()
        self._archived = archived or ArchivedReads()
        self._backlog: Backlog[_Waiting] = Backlog(limits.queue_events_max)
        self._tail = Tail(limits.streams_remembered_max)
        self._decided: list[Outcome] = []
        self._connection: PreparedConnection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def backlog_events(self) -> int:
        """How many events wait to be committed."""
        return self._backlog.weight

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="eventlog-writer")

    async def submit(self, request: Request) -> Appended:
        """Queue a request and wait for its commit. Raises as EventLog.append."""
        size = check_request(request, self._limits)
        check_side_table(size, opened=self._sql.side_table is not None)
        if self._task is None or self._task.done():
            raise LogClosed
        waiting = _Waiting(request, size)
        await self._backlog.put(waiting, size.events, self._limits.queue_timeout_s)
        return await waiting.answer

    async def close(self) -> None:
        """Commit all that waits, then end."""
        self._backlog.close()
        if self._task is not None:
            await self._task
        self._disconnect()

    async def _run(self) -> None:
        while await self._backlog.filled():
            taken = self._backlog.take(self._limits.group_events_max)
            for group in _split_by_bytes((w for w in taken if not w.answer.done()), self._limits.group_bytes_max):
                await self._settle_or_fail(group)
            # Those just answered go first: what they append next joins the next group instead of waiting it out.
            await asyncio.sleep(0)

    async def _settle_or_fail(self, group: list[_Waiting]) -> None:
        try:
            await self._settle(group)
        except Exception as error:  # noqa: BLE001  # the edge: without a writer every later caller would hang
            _log.exception("the writer failed")
            self._disconnect()
            for waiting in group:
                _answer(waiting.answer, _caused(AppendRefused(f"the writer failed: {error!r}"), error))

    async def _settle(self, group: list[_Waiting]) -> None:
        """Answer every request of the group; one that the database refuses is found by trying each alone."""
        begun = time.perf_counter()
        try:
            committed = await self._commit_when_connected([waiting.request for waiting in group])
        except LogUnavailable as error:
            committed = _Committed([error] * len(group))
        except psycopg.Error as error:
            if len(group) > 1:
                _log.warning("group of %d requests failed, retrying one by one: %s", len(group), error)
                for waiting in group:
                    await self._settle([waiting])
                return
            committed = _Committed([_caused(AppendRefused(f"the database refused the append: {error}"), error)])
        for waiting, outcome in zip(group, committed.outcomes, strict=True):
            _answer(waiting.answer, outcome)
        if committed.head is not None:
            observe = partial(self._observe, group, committed.outcomes, time.perf_counter() - begun)
            self._on_commit(committed.head, committed.stored, observe)

    def _observe(self, group: Sequence[_Waiting], outcomes: Sequence[Outcome], seconds: float) -> None:
        events = sum(waiting.size.events for waiting in group)
        self._observer.committed(GroupCommitted(len(group), events, seconds, _stored_types(group, outcomes)))

    async def _commit_when_connected(self, requests: list[Request]) -> _Committed:
        """Commit, reconnecting as often as the time allows.

        A connection lost after COMMIT leaves the outcome unknown; committing again is safe because of the event ids. What
        is found stored then just as an attempt of this call would have stored it is no duplicate to the caller.
        """
        attempts: list[list[Outcome]] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.reconnect_timeout_s
        pause_s = _RECONNECT_PAUSE_S
        while True:
            self._decided = []
            try:
                committed = await self._commit(await self._connected(), requests)
                return committed._replace(outcomes=_own(committed.outcomes, attempts))
            except psycopg.errors.ProgramLimitExceeded:
                # An OperationalError to psycopg, and still no trouble of the server's: what is too large stays so.
                self._disconnect()
                raise
            except _ENDED_BY_CONNECTING_ANEW as error:
                self._disconnect()
                attempts.append(self._decided)
                if loop.time() >= deadline:
                    raise LogUnavailable(f"the database cannot be reached: {error}") from error
            except psycopg.Error:
                self._disconnect()  # whatever state the transaction is in ends with its connection
                raise
            await asyncio.sleep(pause_s * (0.5 + random() / 2))
            pause_s = min(2 * pause_s, _RECONNECT_PAUSE_MAX_S)

    async def _commit(self, connection: PreparedConnection, requests: list[Request]) -> _Committed:
        committed = await self._commit_from_memory(connection, requests)
        return committed or await self._commit_under_lock(connection, requests)

    async def _commit_from_memory(self, connection: PreparedConnection, requests: list[Request]) -> _Committed | None:
        """Decide on what is remembered, and store if it still holds: one round trip. None if nothing was stored.

        Only a group of which nothing is refused: a refusal would have to be certain, and a repeated id be looked up.
        """
        basis = self._tail.basis(requests)
        if basis is None:
            return None
        head, streams = basis
        admission = Admission(head, streams, {}, self._clock.now())
        try:
            outcomes: list[Outcome] = [admission.admit(request) for request in requests]
            self._decided = outcomes
            store = await self._storing(connection, head, admission.accepted, rows_beside(requests, outcomes))
            stored = await connection.run(*store)
        except (EventLogError, psycopg.errors.UniqueViolation):
            return None
        if stored.command_tuples == 0:
            self._tail.overtaken()
            return None
        self._tail.confirm(admission.head, admission.streams)
        return _Committed(outcomes, admission.accepted, admission.head.position)

    async def _commit_under_lock(self, connection: PreparedConnection, requests: list[Request]) -> _Committed:
        """Lock the head and read what the decision needs; store and commit: two round trips."""
        ids = uuids(_ids(requests))
        _, locked, ends, known, known_archived = await connection.run_all(
            (_BEGIN, ()),
            (self._sql.lock_head, ()),
            (self._sql.ends, [texts(_streams(requests))]),
            (self._sql.known, [ids]),
            (self._sql.known_archived, [ids]),
        )
        head = _head(locked)
        admission = Admission(head, await self._ends(ends), await self._known(known, known_archived), self._clock.now())
        outcomes = self._decided = [_decide(admission, request) for request in requests]
        await self._store_and_commit(connection, head, admission.accepted, rows_beside(requests, outcomes))
        self._tail.learn(head, admission.head, admission.streams)
        return _Committed(outcomes, admission.accepted, admission.head.position)

    async def _store_and_commit(
        self, connection: PreparedConnection, head: Head, accepted: Sequence[StoredEvent], beside: Sequence[SideRow]
    ) -> None:
        if not accepted:
            await connection.run(_COMMIT)
            return
        store = await self._storing(connection, head, accepted, beside)
        stored, _ = await connection.run_all(store, (_COMMIT, ()))
        if stored.command_tuples != len(accepted):
            raise AppendRefused(f"{stored.command_tuples} of {len(accepted)} events were stored under the lock")

    async def _storing(
        self, connection: PreparedConnection, head: Head, accepted: Sequence[StoredEvent], beside: Sequence[SideRow]
    ) -> _Step:
        """What stores events and the rows beside them behind `head`.

        What takes rows is prepared when some first come: without their table those who have none append all the same.
        """
        if beside:
            await connection.prepare(*self._sql.storing_beside)
        return storing(self._sql, head, accepted, beside)

    async def _ends(self, found: PGresult) -> dict[StreamId, StreamHead]:
        ends = {
            parse_stream(stream.decode()): StreamHead(to_int(version), last) for stream, version, last in rows(found)
        }
        for stream, end in ends.items():
            if end.version == 0:
                ends[stream] = NEW_STREAM
            elif end.hash is None:  # archived by a former release, which noted the version alone
                ends[stream] = StreamHead(end.version, await self._archived_hash(stream, end.version))
        return ends

    async def _archived_hash(self, stream: StreamId, version: int) -> bytes | None:
        """None where a file is damaged: that is for a verification to tell, and no reason to refuse an append."""
        try:
            return (await self._archived.of_stream(stream, version)).hash
        except EventLogError as error:
            _log.warning("the next event of %s will not name version %d: %s", stream, version, error)
            return None

    async def _known(self, found: PGresult, archived: PGresult) -> dict[UUID, Stored]:
        """What is stored under the ids of a group. An archived event is read from its file: repeats so late are rare."""
        known: dict[UUID, Stored] = {to_uuid(event_id): _known(*values) for event_id, *values in rows(found)}
        for event_id, position in rows(archived):
            known[to_uuid(event_id)] = await self._known_archived(to_int(position))
        return known

    async def _known_archived(self, position: int) -> Stored:
        """An error is what its own repeat is answered; the others of the group have no part in it."""
        try:
            return await self._archived.at(position)
        except EventLogError as error:
            return error

    async def _connected(self) -> PreparedConnection:
        if self._connection is not None and self._connection.ended:
            self._disconnect()
        if self._connection is None:
            self._connection = await PreparedConnection.open(
                self._dsn, _SETUP, self._statements(), answer_timeout_s=self._limits.answer_timeout_s
            )
        return self._connection

    def _statements(self) -> tuple[bytes, ...]:
        sql = self._sql
        return (_BEGIN, sql.lock_head, sql.ends, sql.known, sql.known_archived, sql.store, *sql.store_few, _COMMIT)

    def _disconnect(self) -> None:
        self._tail.forget()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _decide(admission: Admission, request: Request) -> Outcome:
    try:
        return admission.admit(request)
    except EventLogError as error:
        return error


def _own(outcomes: list[Outcome], attempts: list[list[Outcome]]) -> list[Outcome]:
    """The outcomes, those that an attempt brought about whose answer was lost as that attempt decided them."""
    for decided in attempts:
        for index, first in enumerate(decided):
            if isinstance(first, Appended) and outcomes[index] == replace(first, duplicate=True):
                outcomes[index] = first
    return outcomes


def _stored_types(group: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many events of each type were stored now: not those refused, nor those stored before."""
    stored = [
        waiting.request
        for waiting, outcome in zip(group, outcomes, strict=True)
        if isinstance(outcome, Appended) and not outcome.duplicate
    ]
    types: dict[str, int] = {}
    for event in [event for request in stored for append in request for event in append.events]:
        types[event.type] = types.get(event.type, 0) + 1
    return types


def _answer(answer: asyncio.Future[Appended], outcome: Outcome) -> None:
    if answer.done():
        return  # the caller was cancelled while it waited
    if isinstance(outcome, EventLogError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _caused(error: EventLogError, cause: Exception) -> EventLogError:
    error.__cause__ = cause
    return error


def _split_by_bytes(waiting: Iterable[_Waiting], bytes_max: int) -> list[list[_Waiting]]:
    groups: list[list[_Waiting]] = []
    room = 0
    for each in waiting:
        if not groups or each.size.bytes > room:
            groups.append([])
            room = bytes_max
        groups[-1].append(each)
        room -= each.size.bytes
    return groups


def _streams(requests: list[Request]) -> set[str]:
    return {str(stream) for request in requests for stream in streams_of(request)}


def _ids(requests: list[Request]) -> list[UUID]:
    return [event.id for request in requests for append in request for event in append.events]


def _head(locked: PGresult) -> Head:
    for position, last, archived_to, recorded_at in rows(locked):
        return Head(to_int(position), last, to_int(archived_to), to_time(recorded_at))
    raise LogUnavailable("the log has lost its head row: restore it from a backup")


def _known(position: bytes, stream: bytes, version: bytes, kind: bytes, kind_version: bytes, data: bytes) -> Known:
    return Known(
        to_int(position), parse_stream(stream.decode()), to_int(version), kind.decode(), to_int(kind_version), data
    )
