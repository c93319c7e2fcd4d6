"""Signed checkpoints of a log: made beside the writer, kept in a table that only grows, compared by `verify`.

A hash chain alone protects against whoever cannot recompute it. A checkpoint fixes the chain's head and the Merkle root
of all events at one position under a key that the database does not hold; published, it also protects against whoever
deletes checkpoints. A new one is signed only if the log still is the one signed before, and costs the hashing of what
came since, on no path of an append.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from eventlog.audit import Audit
from eventlog.chain import GENESIS
from eventlog.clock import Clock, SystemClock
from eventlog.errors import CheckpointMissing, EventMissing, HistoryRewritten, KeyUnusable
from eventlog.hash_tree import Connection, HashTree, TreeDamaged
from eventlog.log import EventLog
from eventlog.merkle import (
    CompactRange,
    ConsistencyProof,
    InclusionProof,
    Node,
    consistency_nodes,
    inclusion_nodes,
    proof_path,
    verify_consistency,
    verify_inclusion,
)
from eventlog.records import StoredEvent, StreamEnd, StreamId, Verified, VerifiedStream
from eventlog.signing import Checkpoint, SigningKey, TrustedKeys

Publish = Callable[[Checkpoint], Awaitable[object]]
"""Makes a checkpoint known outside, where whoever can write the database cannot take it back."""

_TABLES = """
create table if not exists {schema}.checkpoints (
    position bigint primary key,
    log text not null,
    head_hash bytea not null,
    root_hash bytea not null,
    signed_at timestamptz not null,
    key_id text not null,
    signature bytea not null
);
create or replace function {schema}.refuse_change() returns trigger language plpgsql as
    $$ begin raise exception 'checkpoints are never changed or deleted'; end $$;
create or replace trigger append_only before update or delete or truncate on {schema}.checkpoints
    execute function {schema}.refuse_change();
"""

_COLUMNS = "log, position, head_hash, root_hash, signed_at, key_id, signature"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointLimits:
    """When checkpoints are made."""

    every_events: int = 10_000
    every_s: float = 60.0
    """A log that grows without rest gets a checkpoint this long after the one before, or sooner by `every_events`."""
    rest_s: float = 2.0
    """A log that grew and then rests for so long gets one at once: little is ever unsigned."""
    retry_pause_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Attestation:
    """All that a third party needs, beside the public key, to see that `event` is in the log: verify_inclusion.py."""

    event: StoredEvent
    proof: InclusionProof
    checkpoint: Checkpoint


class Checkpoints:
    """The checkpoints of `log`, which is called `name` in them. Pool and log stay the caller's.

    `key` signs and is trusted; `trusted` are the public keys of before a rotation. Any number of processes may make
    checkpoints of one log: they take turns.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        log: EventLog,
        name: str,
        key: SigningKey,
        *,
        trusted: TrustedKeys | None = None,
        schema: str = "eventlog",
        limits: CheckpointLimits | None = None,
        clock: Clock | None = None,
        publish: Publish | None = None,
    ) -> None:
        self._pool = pool
        self._log = log
        self._name = name
        self._key = key
        self._trusted = key.trusted if trusted is None else key.trusted.including(trusted)
        self._limits = limits or CheckpointLimits()
        self._clock = clock or SystemClock()
        self._publish = publish
        self._tree = HashTree(schema)
        self._sql = _Statements(schema)
        self._signed_to = 0

    async def prepare(self) -> None:
        """Create the tables if there are none. KeyUnusable if an unknown key signed last: this one is another log's, or
        the trusted keys lack a former one.
        """
        async with self._transaction() as connection:
            await connection.execute("set local client_min_messages = warning")
            await connection.execute(self._sql.lock)
            await connection.execute(self._sql.create)
            await connection.execute(self._tree.tables)
            last = await self._latest(connection)
        if last is not None and last.key_id not in self._trusted:
            raise KeyUnusable(
                f"checkpoint key {self._key.key_id}",
                f"the log {self._name} was signed by another key, {last.key_id}, at position {last.position}; "
                f"give that key back, or name its public half among the former keys",
            )

    async def run(self) -> None:
        """Make checkpoints for ever. HistoryRewritten if the log is no longer the one signed before."""
        await self.prepare()
        while True:
            try:
                await self._due(_position(await self.latest()))
                await self.make()
            except (psycopg.OperationalError, PoolTimeout) as error:
                _log.warning("checkpoints of %s wait for the database: %s", self._name, error)
                await asyncio.sleep(self._limits.retry_pause_s)

    async def _due(self, signed: int) -> None:
        """Wait until a checkpoint after position `signed` is worth making."""
        limits, waited_s = self._limits, 0.0
        rest_s = min(limits.rest_s, limits.every_s)
        head = await self._log.wait_for(signed + 1, limits.every_s)
        while signed < head < signed + limits.every_events and waited_s < limits.every_s:
            before, head = head, await self._log.wait_for(signed + limits.every_events, rest_s)
            waited_s += rest_s
            if head == before:
                return

    async def make(self) -> Checkpoint | None:
        """Sign the log as it is now, keep the checkpoint, publish it; None if nothing was appended since the last.

        HistoryRewritten if the log does not continue what the last checkpoint attests to: then nothing is signed.
        """
        async with self._transaction() as connection:
            await connection.execute(self._sql.lock)
            last = self._believed(await self._latest(connection))
            head, head_hash = await self._head(connection)
            if head == _position(last):
                return None
            root = await self._root(connection, last, head)
            checkpoint = self._key.sign(self._name, head, head_hash, root, self._clock.now())
            await connection.execute(self._sql.insert, _row(checkpoint))
        self._signed_to = checkpoint.position
        if self._publish is not None:
            await self._publish(checkpoint)
        return checkpoint

    async def latest(self) -> Checkpoint | None:
        async with self._transaction() as connection:
            return await self._latest(connection)

    async def page(self, after: int = 0, *, limit: int = 1000) -> list[Checkpoint]:
        """At most `limit` checkpoints with a position above `after`, ascending."""
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.page, [after, limit])).fetchall()
        return [_checkpoint(row) for row in rows]

    async def export(self, after: int = 0) -> AsyncIterator[str]:
        """Every checkpoint above `after` as one line of JSON, to be kept by somebody else."""
        while page := await self.page(after):
            for checkpoint in page:
                yield checkpoint.to_json()
            after = page[-1].position

    async def covering(self, position: int) -> Checkpoint:
        """The first checkpoint that attests to the event at `position`. CheckpointMissing before it was made."""
        found = await self.page(position - 1, limit=1)
        if not found:
            raise CheckpointMissing(position)
        return found[0]

    async def prove(self, position: int) -> Attestation:
        """The event at a position with the proof that it is in the log. EventMissing, CheckpointMissing or, if the
        event or the tree is not what was signed, HistoryRewritten.
        """
        events = await self._log.read(position - 1, limit=1) if position > 0 else []
        if not events or events[0].position != position:
            raise EventMissing(position)
        checkpoint = await self.covering(position)
        proof = await self.inclusion_proof(position, checkpoint)
        if not verify_inclusion(events[0].hash, proof, checkpoint.root_hash):
            raise HistoryRewritten(checkpoint.position, f"the event at {position} is not under its root")
        return Attestation(events[0], proof, checkpoint)

    async def inclusion_proof(self, position: int, checkpoint: Checkpoint) -> InclusionProof:
        """That the event at `position` is one of those the checkpoint attests to. ValueError if it lies beyond."""
        wanted = inclusion_nodes(position - 1, checkpoint.position)
        return InclusionProof(position, checkpoint.position, await self._path(wanted, checkpoint))

    async def consistency_proof(self, old: Checkpoint, new: Checkpoint) -> ConsistencyProof:
        """That what `new` attests to begins with what `old` does. HistoryRewritten if it does not; ValueError if `old`
        is the newer one.
        """
        wanted = consistency_nodes(old.position, new.position)
        proof = ConsistencyProof(old.position, new.position, await self._path(wanted, new))
        if not verify_consistency(proof, old.root_hash, new.root_hash):
            raise HistoryRewritten(old.position, f"the checkpoint at {new.position} attests to another history")
        return proof

    async def verify(
        self, first: int = 1, last: int | None = None, *, witnessed: Iterable[Checkpoint] = ()
    ) -> Verified:
        """Whether positions `first` to `last` (default: all) hold by their hash chain and by every checkpoint over them.

        `witnessed` are checkpoints that were kept elsewhere; with them, deleting those in the database hides nothing.
        A range that starts later takes the tree before it from the last checkpoint; where that cannot be had, something
        before the range does not hold, and the finding is about the log from its start.
        """
        async with self._transaction() as connection:
            rows = await (await connection.execute(self._sql.page, [first - 1, None])).fetchall()
            checkpoints = dict.fromkeys([*map(_checkpoint, rows), *witnessed])
            head, head_hash = await self._head(connection)  # after the checkpoints, so that none is ahead of it
            anchor = await self._anchor(connection, first)
            tree = await self._tree_before(connection, first)
        if tree is None:
            return await self.verify(1, last, witnessed=witnessed)
        forged = self._forged(checkpoints)
        audit = Audit(first, head if last is None else last, anchor, tree, checkpoints.keys() - forged.keys(), head)
        await self._log.audit(audit)
        found = audit.finding(head_hash if last in (None, head) else None)
        return _first_broken(found, forged)

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        """Whether the events of a stream hold by their own chain, and are those that the newest checkpoint attests to.

        Newer ones than that are held by the chain alone; `attested` once it covers the last of them.
        """
        found, checkpoint = await self._log.verify_stream(stream), await self.latest()
        if checkpoint is None or not found.ok or not found.ends:
            return found
        covered = await self._covered_ends(found, checkpoint)
        if covered and (problem := self._trusted.problem(checkpoint, self._name)):
            return replace(found, broken_at=found.events, reason=f"the checkpoint over it is forged: {problem}")
        for end in covered:
            proof = await self.inclusion_proof(end.position, checkpoint)
            if not verify_inclusion(end.hash, proof, checkpoint.root_hash):
                at = checkpoint.signed_at.isoformat()
                return replace(found, broken_at=end.version, reason=f"the event is not the one signed at {at}")
        return replace(found, attested=found.ends[-1].position <= checkpoint.position)

    async def _covered_ends(self, found: VerifiedStream, checkpoint: Checkpoint) -> list[StreamEnd]:
        """The ends that a checkpoint covers; also the last event that it covers, if only newer ones name that."""
        covered = [end for end in found.ends if end.position <= checkpoint.position]
        low, high = covered[-1].version if covered else 0, found.events
        newest = None
        while len(covered) < len(found.ends) and low < high:  # positions rise with versions
            middle = (low + high + 1) // 2
            (event,) = await self._log.read_stream(found.stream, after=middle - 1, limit=1)
            if event.position <= checkpoint.position:
                low, newest = middle, StreamEnd(event.version, event.position, event.hash)
            else:
                high = middle - 1
        return [*covered, newest] if newest else covered

    def _forged(self, checkpoints: Iterable[Checkpoint]) -> dict[Checkpoint, str]:
        problems = {checkpoint: self._trusted.problem(checkpoint, self._name) for checkpoint in checkpoints}
        return {checkpoint: problem for checkpoint, problem in problems.items() if problem}

    def _believed(self, last: Checkpoint | None) -> Checkpoint | None:
        """The last checkpoint, if it may be continued."""
        if _position(last) < self._signed_to:
            raise HistoryRewritten(self._signed_to, "its checkpoint was deleted")
        if last is not None and (problem := self._trusted.problem(last, self._name)):
            raise HistoryRewritten(last.position, f"its checkpoint was forged: {problem}")
        return last

    async def _root(self, connection: Connection, last: Checkpoint | None, head: int) -> bytes:
        if head < _position(last):
            raise HistoryRewritten(_position(last), f"it ends at {head}")
        try:
            tree = await self._continued(connection, last)
            await self._tree.store(connection, await self._tree.grow(connection, tree, head))
        except TreeDamaged as error:
            raise HistoryRewritten(_position(last), str(error)) from error
        return tree.root()

    async def _continued(self, connection: Connection, last: Checkpoint | None) -> CompactRange:
        """The tree that `last` attests to, recomputed from the events if the stored nodes do not lead to its root."""
        tree = await self._stored_tree(connection, last)
        if tree is None and last is not None:
            _log.warning("the stored tree of %s is damaged, computing it anew from the events", self._name)
            tree = CompactRange()
            await self._tree.store(connection, await self._tree.grow(connection, tree, last.position))
            if tree.root() != last.root_hash:
                raise HistoryRewritten(last.position, "its events have another root")
        return tree or CompactRange()

    async def _stored_tree(self, connection: Connection, checkpoint: Checkpoint | None) -> CompactRange | None:
        """The tree that a checkpoint attests to, from the stored nodes; None if they do not lead to its root."""
        if checkpoint is None:
            return CompactRange()
        try:
            tree = await self._tree.at(connection, checkpoint.position)
        except TreeDamaged:
            return None
        return tree if tree.root() == checkpoint.root_hash else None

    async def _tree_before(self, connection: Connection, first: int) -> CompactRange | None:
        """The tree over all events before `first`, from the last checkpoint before it on; None if it is damaged."""
        row = await (await connection.execute(self._sql.last_before, [first - 1])).fetchone()
        tree = await self._stored_tree(connection, None if row is None else _checkpoint(row))
        if tree is not None:
            try:
                await self._tree.grow(connection, tree, first - 1)
            except TreeDamaged:
                return None
        return tree

    async def _path(self, wanted: list[list[Node]], checkpoint: Checkpoint) -> tuple[bytes, ...]:
        try:
            async with self._transaction() as connection:
                hashes = await self._tree.hashes(connection, (node for nodes in wanted for node in nodes))
        except TreeDamaged as error:
            raise HistoryRewritten(checkpoint.position, str(error)) from error
        return proof_path(wanted, hashes)

    async def _latest(self, connection: Connection) -> Checkpoint | None:
        row = await (await connection.execute(self._sql.latest)).fetchone()
        return None if row is None else _checkpoint(row)

    async def _head(self, connection: Connection) -> tuple[int, bytes]:
        row = await (await connection.execute(self._sql.head)).fetchone()
        if row is None:
            raise HistoryRewritten(self._signed_to, "it has lost its head row")
        return int(row[0]), bytes(row[1])

    async def _anchor(self, connection: Connection, first: int) -> bytes:
        row = await (await connection.execute(self._sql.hash_at, [first - 1])).fetchone()
        return GENESIS if row is None else bytes(row[0])

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection, connection.transaction():
            yield connection


class _Statements:
    """The statements of a log's checkpoints."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            return SQL(text).format(schema=Identifier(schema), lock=f"eventlog:{schema}:checkpoints").as_bytes(None)

        select = f"select {_COLUMNS} from {{schema}}.checkpoints"
        self.create = render(_TABLES)
        # Statistics of a young table must not talk the planner out of the order that the index has.
        self.lock = render(
            "select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),"
            " pg_advisory_xact_lock(hashtextextended({lock}, 0))"
        )
        self.head = render("select position, hash from {schema}.head")
        self.hash_at = render("select hash from {schema}.hashes where position = %s")
        self.latest = render(f"{select} order by position desc limit 1")
        self.page = render(f"{select} where position > %s order by position limit %s")
        self.last_before = render(f"{select} where position between 1 and %s order by position desc limit 1")
        self.insert = render(f"insert into {{schema}}.checkpoints ({_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s)")


def _position(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.position


def _checkpoint(row: TupleRow) -> Checkpoint:
    log, position, head_hash, root_hash, signed_at, key_id, signature = row
    return Checkpoint(
        log, position, bytes(head_hash), bytes(root_hash), signed_at.astimezone(UTC), key_id, bytes(signature)
    )


def _row(checkpoint: Checkpoint) -> list[Any]:
    c = checkpoint
    return [c.log, c.position, c.head_hash, c.root_hash, c.signed_at, c.key_id, c.signature]


def _first_broken(found: Verified, forged: dict[Checkpoint, str]) -> Verified:
    """The finding, or the forged checkpoint if that stands before what else is broken."""
    for checkpoint, problem in sorted(forged.items(), key=lambda item: item[0].position):
        if found.broken_at is None or checkpoint.position < found.broken_at:
            reason = f"the checkpoint is forged: {problem}"
            return replace(found, ok=False, broken_at=checkpoint.position, reason=reason)
    return found
