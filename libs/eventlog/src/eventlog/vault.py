"""The keys of the people that events are about: made when first needed, destroyed when somebody is to be forgotten.

A log never forgets, a person may demand it: so each person's data is sealed with a key of its own (sealing.py) before
it is hashed and stored. `erase` destroys the key. Every copy of the data, in the log, in JetStream, in a backup of
either, becomes unreadable with it, and the hash chain, which is over the ciphertext, still holds.

Keys lie wrapped in the log's own database; the master key that unwraps them comes from a provider and never does.
"""

from __future__ import annotations

import os
from base64 import b64decode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg.sql import SQL, Identifier
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event

from eventlog.clock import Clock, SystemClock
from eventlog.codec import Codec
from eventlog.errors import KeyUnusable
from eventlog.hash_tree import Connection
from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, StoredEvent, StreamId, require_text
from eventlog.sealing import KEY_BYTES, Keyring, SubjectKey, is_sealed

_KEYS_KEPT_MAX: Final = 4_096
_NONCE_BYTES: Final = 12

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


class MasterKey(Protocol):
    """Wraps data keys. The seam to a key management service, which owns the key; both calls may fail as KeyUnusable.

    `context` names what the key is for, and must be the same to unwrap.
    """

    @property
    def key_id(self) -> str:
        """The key's name, stored with what it wrapped."""
        ...

    async def wrap(self, key: bytes, context: bytes) -> bytes: ...
    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes: ...


class LocalMasterKey:
    """A master key of 32 bytes in this process's memory: AES-256-GCM under a random nonce. `source` says whence."""

    def __init__(self, key: bytes, source: str) -> None:
        if len(key) != KEY_BYTES:
            raise KeyUnusable(source, f"a master key of {KEY_BYTES} bytes in base64 is needed, this has {len(key)}")
        self._cipher = AESGCM(key)
        self._source = source
        self.key_id = sha256(b"synod.eventlog.master." + key).hexdigest()[:16]

    async def wrap(self, key: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise KeyUnusable(self._source, "it does not unwrap a key of this database") from error


class FileMasterKey(LocalMasterKey):
    """A master key in a file: base64 of 32 random bytes, for example from `openssl rand -base64 32`."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text()
        except OSError as error:
            raise KeyUnusable(str(path), f"the master key cannot be read: {error}") from error
        super().__init__(_decoded(text, str(path)), str(path))


class EnvironmentMasterKey(LocalMasterKey):
    """A master key in a variable of the environment, in the same form."""

    def __init__(self, variable: str) -> None:
        super().__init__(_decoded(os.environ.get(variable, ""), variable), variable)


class SubjectErased(Event):
    """The key of a person was destroyed: from here on, what was sealed with it reads as ERASED."""

    AGGREGATE = "data-subject"

    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was done: the position of SubjectErased, whether there was a key, and how many snapshots were dropped."""

    position: int
    key_destroyed: bool
    snapshots_dropped: int


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
        self._sql = _Statements(schema)

    async def prepare(self) -> None:
        """Create the tables if there are none. KeyUnusable if another master key wrapped what is in them."""
        async with self._transaction() as connection:
            await connection.execute("set local client_min_messages = warning")
            await connection.execute(self._sql.lock)
            await connection.execute(self._sql.create)
            foreign = await (await connection.execute(self._sql.foreign, [list(self._masters)])).fetchone()
        if foreign is not None:
            raise KeyUnusable(
                f"master key {self._master.key_id}",
                f"keys of persons in this database are wrapped by another master key, {foreign[0]}; give that key back, "
                f"or name it among the former keys",
            )

    async def key(self, tenant: str, subject: str) -> SubjectKey:
        """The key that seals the data of a person, made now if there is none."""
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

    async def keys(self, events: Iterable[StoredEvent]) -> Keyring:
        """The keys that are needed to read `events`, as far as they still exist."""
        wanted = {(event.tenant, event.data_subject or "") for event in events if is_sealed(event)}
        rows = await self._rows(wanted) if wanted else []
        return Keyring({(row[0], row[1]): await self._unwrap(*row) for row in rows})

    async def erase(self, tenant: str, subject: str, *, actor: str, reason: str) -> Erasure:
        """Destroy the key of a person, drop the snapshots of every stream that names them, and record it in the log.

        Safe to repeat, and to be repeated after a crash. Who comes back gets a new key; the past stays erased.
        Views that copied personal data are the caller's to rebuild, as EventLogServicer does.
        """
        context = Context(tenant, actor)
        async with self._transaction() as connection:
            # Overwritten first, so that not even the newest row version on disk holds the key.
            await connection.execute(self._sql.overwrite, [os.urandom(KEY_BYTES), tenant, subject])
            destroyed = (await connection.execute(self._sql.delete, [tenant, subject])).rowcount
        # In a second transaction: whoever saved a snapshot while the key was there has saved it before this one starts.
        async with self._transaction() as connection:
            dropped = (await connection.execute(self._sql.drop_snapshots, [tenant, subject])).rowcount
        stream = StreamId(SubjectErased.AGGREGATE, sha256(_context(tenant, subject)).hexdigest()[:32])
        event = SubjectErased(subject=subject, reason=reason)
        record = self._codec.encode(event, at=self._clock.now(), data_subject=subject)
        appended = await self._log.append(Append(stream, ANY, (record,), context))
        return Erasure(appended.position, destroyed > 0, dropped)

    async def _rows(self, wanted: set[tuple[str, str]]) -> list[tuple[str, str, bytes, str]]:
        tenants, subjects = zip(*wanted, strict=True)
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.select, [list(tenants), list(subjects)])).fetchall()
        return [(tenant, subject, bytes(wrapped), master) for tenant, subject, wrapped, master in rows]

    async def _unwrap(self, tenant: str, subject: str, wrapped: bytes, master_key_id: str) -> SubjectKey:
        key = self._unwrapped.get(wrapped)
        if key is None:
            master = self._masters.get(master_key_id)
            if master is None:
                raise KeyUnusable(
                    master_key_id, f"the key of {subject} is wrapped by this master key, which is not here"
                )
            key = SubjectKey(tenant, subject, await master.unwrap(wrapped, _context(tenant, subject)))
            self._unwrapped[wrapped] = key
            while len(self._unwrapped) > _KEYS_KEPT_MAX:
                self._unwrapped.popitem(last=False)
        return key

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
        self.insert = render(
            "insert into {schema}.subject_keys (tenant, subject, wrapped, master_key_id, created_at)"
            " values (%s, %s, %s, %s, %s) on conflict do nothing"
        )
        self.foreign = render(
            "select master_key_id from {schema}.subject_keys where master_key_id <> all(%s::text[]) limit 1"
        )
        self.overwrite = render("update {schema}.subject_keys set wrapped = %s where tenant = %s and subject = %s")
        self.delete = render("delete from {schema}.subject_keys where tenant = %s and subject = %s")
        self.drop_snapshots = render(
            "delete from {schema}.snapshots where stream in"
            " (select stream from {schema}.events where tenant = %s and data_subject = %s)"
        )


def _context(tenant: str, subject: str) -> bytes:
    return f"{tenant}\n{subject}".encode()


def _decoded(text: str, source: str) -> bytes:
    try:
        return b64decode(text.strip(), validate=True)
    except (Base64Error, ValueError) as error:
        raise KeyUnusable(source, f"a master key of {KEY_BYTES} bytes in base64 is needed: {error}") from error
