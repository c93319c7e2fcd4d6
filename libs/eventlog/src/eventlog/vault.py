"""The keys of the people that events are about: made when first needed, destroyed when somebody is to be forgotten.

A log never forgets, a person may demand it: so each person's data is sealed with a key of its own (sealing.py) before
it is hashed and stored. `erase` destroys the key. Every copy of the data, in the log, in JetStream, in a backup of
either, becomes unreadable with it, and the hash chain, which is over the ciphertext, still holds.

Keys lie wrapped in the log's own database; the master key that unwraps them comes from a provider and never does.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from psycopg.sql import SQL, Identifier
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.common.ids import uuid7

from eventlog.clock import Clock, SystemClock
from eventlog.codec import Codec
from eventlog.erasures import Erasures, PendingErasure
from eventlog.errors import KeyUnusable, LogUnavailable, QueueFull
from eventlog.hash_tree import Connection
from eventlog.log import EventLog
from eventlog.master_keys import MasterKey
from eventlog.records import ANY, Append, Appended, Context, StoredEvent, StreamId, require_text
from eventlog.sealing import KEY_BYTES, Keyring, SubjectKey, is_sealed

Work = Callable[[], Awaitable[object]]

_KEYS_KEPT_MAX: Final = 4_096
_REWRAPPED_AT_ONCE: Final = 500
_KEYLESS_MAX: Final = 1_000
_ERASURE_S: Final = 1.0
_RECORD_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

_TABLES = """
create table if not exists {schema}.subject_keys (
    tenant text not null,
    subject text not null,
    wrapped bytea not null,
    master_key_id text not null,
    created_at timestamptz not null,
    primary key (tenant, subject)
);
create index if not exists events_data_subject on {schema}.events (tenant, data_subject)
    where data_subject is not null;
"""


class SubjectErased(Event):
    """The key of a person was destroyed: from here on, what was sealed with it reads as ERASED."""

    AGGREGATE = "data-subject"

    subject: str
    reason: str


def subject_stream(tenant: str, subject: str) -> StreamId:
    """Where the erasures of a person are recorded."""
    return StreamId(SubjectErased.AGGREGATE, sha256(_context(tenant, subject)).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was done: the position of SubjectErased, whether there was a key, and how many snapshots were dropped."""

    position: int
    key_destroyed: bool
    snapshots_dropped: int


async def _nothing() -> None:
    """No view holds personal data."""


class Vault:
    """The keys of one log. Pool and log stay the caller's.

    Whether a key still exists is asked of the database each time, so an erasure counts at once in every process; only
    the unwrapping is remembered. `retired` are master keys of before a rotation, for reading.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        log: EventLog,
        master: MasterKey,
        *,
        retired: Iterable[MasterKey] = (),
        schema: str = "eventlog",
        clock: Clock | None = None,
    ) -> None:
        self._pool = pool
        self._log = log
        self._master = master
        self._masters = {key.key_id: key for key in (*retired, master)}
        self._clock = clock or SystemClock()
        self._unwrapped: OrderedDict[bytes, SubjectKey] = OrderedDict()
        self._codec = Codec([SubjectErased])
        self._erasures = Erasures(schema)
        self._erasing = asyncio.Lock()
        """One at a time here: each holds a connection, and needs more of the pool."""
        self._sql = _Statements(schema)

    async def prepare(self) -> None:
        """Create the tables if there are none. KeyUnusable if another master key wrapped what is in them."""
        async with self._transaction() as connection:
            await connection.execute("set local client_min_messages = warning")
            await connection.execute(self._sql.lock)
            await connection.execute(self._sql.create)
            await connection.execute(self._erasures.create)
            foreign = await (await connection.execute(self._sql.foreign, [list(self._masters)])).fetchone()
        if foreign is not None:
            raise KeyUnusable(
                f"master key {self._master.key_id}",
                f"keys of persons in this database are wrapped by another master key, {foreign[0]}; give that key back, "
                f"or name it among the former keys",
            )

    async def rewrap(self) -> int:
        """Wrap with the present master key what former ones wrapped; how many keys that were. Safe to repeat."""
        count = 0
        while True:
            async with self._transaction() as connection:
                rows = await (await connection.execute(self._sql.former, [self._master.key_id])).fetchall()
                for tenant, subject, wrapped, master in rows:
                    key = await self._master_of(subject, master).unwrap(bytes(wrapped), _context(tenant, subject))
                    renewed = await self._master.wrap(key, _context(tenant, subject))
                    await connection.execute(self._sql.renew, [renewed, self._master.key_id, tenant, subject])
            if not rows:
                return count
            count += len(rows)

    async def key(self, tenant: str, subject: str) -> SubjectKey:
        """The key that seals the data of a person, made now if there is none. It may be destroyed at any moment: who
        appends uses `sealing`.
        """
        require_text("subject", subject)
        found = await self._rows({(tenant, subject)})
        if not found:
            wrapped = await self._master.wrap(os.urandom(KEY_BYTES), _context(tenant, subject))
            row = [tenant, subject, wrapped, self._master.key_id, self._clock.now()]
            async with self._transaction() as connection:
                await connection.execute(self._sql.insert, row)
            found = await self._rows({(tenant, subject)})  # another process may have been faster
        if not found:
            raise KeyUnusable(subject, "the key was destroyed while it was made, repeat")
        return await self._unwrap(*found[0])

    @asynccontextmanager
    async def sealing(self, tenant: str, subjects: Iterable[str]) -> AsyncIterator[dict[str, SubjectKey]]:
        """The keys that seal the data of some persons, made now where there is none; their erasure waits until the block
        ends. Append in it: what is sealed is then stored before its key is destroyed, or sealed with the next key.
        """
        wanted = sorted(set(subjects))
        if not wanted:
            yield {}
            return
        for subject in wanted:
            await self.key(tenant, subject)
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.hold, [tenant, wanted])).fetchall()
            if len(rows) < len(wanted):
                raise KeyUnusable(", ".join(wanted), "the key was destroyed while it was fetched, repeat")
            yield {row[1]: await self._unwrap(row[0], row[1], bytes(row[2]), row[3]) for row in rows}

    async def erasures(self, tenant: str, subject: str) -> int:
        """How often a person was erased: the version of `subject_stream`."""
        count = 0
        while page := await self._log.read_stream(subject_stream(tenant, subject), after=count):
            count = page[-1].version
        return count

    async def keys(self, events: Iterable[StoredEvent]) -> Keyring:
        """The keys that are needed to read `events`, as far as they still exist."""
        wanted = {(event.tenant, event.data_subject or "") for event in events if is_sealed(event)}
        rows = await self._rows(wanted) if wanted else []
        return Keyring({(row[0], row[1]): await self._unwrap(*row) for row in rows})

    async def erase(self, tenant: str, subject: str, *, actor: str, reason: str, views: Work = _nothing) -> Erasure:
        """Destroy the key of a person, drop the snapshots of every stream that names them, and record it in the log.

        Views that copied personal data are the caller's to rebuild, by `views`. What fails half-way stays in `pending`,
        to be ended by `resume`; it is safe to repeat. Who comes back gets a new key; the past stays erased. Needs one
        connection of the pool throughout.
        """
        async with self._erasing_alone(tenant, subject, wait=True) as connection:
            assert connection is not None
            begun = await self._begin(connection, tenant, subject, actor, reason)
            # What somebody began before and left ends with it, and stays on record in their name.
            ended = await self._finish(connection, await self._left(connection, begun), views)
        return replace(ended[-1], key_destroyed=any(each.key_destroyed for each in ended))

    async def pending(self, tenant: str | None = None) -> list[PendingErasure]:
        """The erasures that were begun and have not ended, of one tenant or all; the oldest first."""
        async with self._transaction() as connection:
            return await self._erasures.pending(connection, tenant)

    async def resume(self, views: Work = _nothing) -> list[Erasure]:
        """End the erasures that others began and left. What somebody is at is left to them."""
        ended = []
        for found in await self.pending():
            async with self._erasing_alone(found.tenant, found.subject, wait=False) as connection:
                if connection is not None:
                    ended += await self._finish(connection, await self._left(connection, found), views)
        return ended

    @asynccontextmanager
    async def _erasing_alone(self, tenant: str, subject: str, *, wait: bool) -> AsyncIterator[Connection | None]:
        """A connection on which nobody else erases this person; None if somebody does, unless they are waited for."""
        async with (
            self._erasing,
            self._pool.connection() as connection,
            self._erasures.turn(connection, tenant, subject, wait=wait) as mine,
        ):
            yield connection if mine else None

    async def _left(self, connection: Connection, found: PendingErasure) -> list[PendingErasure]:
        """The erasures of this person that have not ended, the oldest first."""
        async with connection.transaction():
            return await self._erasures.pending(connection, found.tenant, found.subject)

    async def _begin(
        self, connection: Connection, tenant: str, subject: str, actor: str, reason: str
    ) -> PendingErasure:
        async with connection.transaction():
            # Overwritten first, so that not even the newest row version on disk holds the key.
            await connection.execute(self._sql.overwrite, [os.urandom(KEY_BYTES), tenant, subject])
            destroyed = (await connection.execute(self._sql.delete, [tenant, subject])).rowcount > 0
            pending = PendingErasure(tenant, subject, uuid7(), actor, reason, destroyed, self._clock.now())
            await self._erasures.begin(connection, pending)
        return pending

    async def _finish(self, connection: Connection, left: Sequence[PendingErasure], views: Work) -> list[Erasure]:
        """All that follows when the key of a person is gone; to repeat it changes nothing."""
        ended = [await self._dropped(connection, pending) for pending in left]
        if ended:
            await views()
        async with connection.transaction():
            for pending in left:
                await self._erasures.end(connection, pending)
        return ended

    async def _dropped(self, connection: Connection, pending: PendingErasure) -> Erasure:
        # In a second transaction: whoever saved a snapshot while the key was there has saved it before this one starts.
        async with connection.transaction():
            named = [pending.tenant, pending.subject]
            dropped = (await connection.execute(self._sql.drop_snapshots, named)).rowcount
        self.forget()
        appended = await self._recorded(self._record(pending))
        return Erasure(appended.position, pending.key_destroyed, dropped)

    def _record(self, pending: PendingErasure) -> Append:
        event = SubjectErased(subject=pending.subject, reason=pending.reason)
        record = self._codec.encode(event, id=pending.id, at=pending.begun_at, data_subject=pending.subject)
        context = Context(pending.tenant, pending.actor)
        return Append(subject_stream(pending.tenant, pending.subject), ANY, (record,), context)

    def forget(self) -> None:
        """Keep no key in memory: one of them may be of somebody who was erased."""
        self._unwrapped.clear()

    async def _recorded(self, record: Append) -> Appended:
        """Patiently: until it is on record, others seal by the key that is gone what nobody will ever read."""
        for pause_s in _RECORD_PAUSES_S:
            try:
                return await self._log.append(record)
            except (LogUnavailable, QueueFull):
                await asyncio.sleep(pause_s)
        return await self._log.append(record)

    async def unrecorded(self, first: int = 1, last: int | None = None) -> int | None:
        """The first position in a range whose personal data cannot be opened though no erasure is on record: somebody
        else than `erase` took the key. None if there is none.
        """
        found = await self._unrecorded(first, last)
        if found is not None:
            await asyncio.sleep(_ERASURE_S)  # an erasure destroys the key before it is on record
            found = await self._unrecorded(first, last)
        return found

    async def _unrecorded(self, first: int, last: int | None) -> int | None:
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.keyless, [first, last, last])).fetchall()
        for (position,) in rows:
            if any(map(is_sealed, await self._log.read(position - 1, limit=1))):
                return int(position)
        return None

    async def _rows(self, wanted: set[tuple[str, str]]) -> list[tuple[str, str, bytes, str]]:
        tenants, subjects = zip(*wanted, strict=True)
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.select, [list(tenants), list(subjects)])).fetchall()
        return [(tenant, subject, bytes(wrapped), master) for tenant, subject, wrapped, master in rows]

    async def _unwrap(self, tenant: str, subject: str, wrapped: bytes, master_key_id: str) -> SubjectKey:
        key = self._unwrapped.get(wrapped)
        if key is None:
            master = self._master_of(subject, master_key_id)
            key = SubjectKey(tenant, subject, await master.unwrap(wrapped, _context(tenant, subject)))
            self._unwrapped[wrapped] = key
            while len(self._unwrapped) > _KEYS_KEPT_MAX:
                self._unwrapped.popitem(last=False)
        return key

    def _master_of(self, subject: str, master_key_id: str) -> MasterKey:
        master = self._masters.get(master_key_id)
        if master is None:
            raise KeyUnusable(master_key_id, f"the key of {subject} is wrapped by this master key, which is not here")
        return master

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection, connection.transaction():
            yield connection


class _Statements:
    """The statements of a vault."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            return SQL(text).format(schema=Identifier(schema), lock=f"eventlog:{schema}:vault").as_bytes(None)

        self.create = render(_TABLES)
        self.lock = render("select pg_advisory_xact_lock(hashtextextended({lock}, 0))")
        self.select = render(
            "select tenant, subject, wrapped, master_key_id from {schema}.subject_keys"
            " where (tenant, subject) in (select * from unnest(%s::text[], %s::text[]))"
        )
        self.hold = render(
            "select tenant, subject, wrapped, master_key_id from {schema}.subject_keys"
            " where tenant = %s and subject = any(%s::text[]) for share"
        )
        self.insert = render(
            "insert into {schema}.subject_keys (tenant, subject, wrapped, master_key_id, created_at)"
            " values (%s, %s, %s, %s, %s) on conflict do nothing"
        )
        self.foreign = render(
            "select master_key_id from {schema}.subject_keys where master_key_id <> all(%s::text[]) limit 1"
        )
        self.former = render(
            "select tenant, subject, wrapped, master_key_id from {schema}.subject_keys where master_key_id <> %s"
            f" limit {_REWRAPPED_AT_ONCE} for update"
        )
        self.renew = render(
            "update {schema}.subject_keys set wrapped = %s, master_key_id = %s where tenant = %s and subject = %s"
        )
        self.keyless = render(
            "select e.position from {schema}.subjects e where"
            " e.position >= %s and (%s::bigint is null or e.position <= %s) and not exists ("
            " select from {schema}.subject_keys k where (k.tenant, k.subject) = (e.tenant, e.data_subject)) and not exists ("
            " select from {schema}.subjects later where (later.tenant, later.data_subject) = (e.tenant, e.data_subject)"
            f" and later.type = '{SubjectErased.type_name()}' and later.position >= e.position)"
            f" order by e.position limit {_KEYLESS_MAX}"
        )
        self.overwrite = render("update {schema}.subject_keys set wrapped = %s where tenant = %s and subject = %s")
        self.delete = render("delete from {schema}.subject_keys where tenant = %s and subject = %s")
        self.drop_snapshots = render(
            "delete from {schema}.snapshots where stream in"
            " (select stream from {schema}.subjects where tenant = %s and data_subject = %s)"
        )


def _context(tenant: str, subject: str) -> bytes:
    return f"{tenant}\n{subject}".encode()
