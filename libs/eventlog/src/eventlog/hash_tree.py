"""The stored part of a log's Merkle tree: roots of perfect subtrees over 256 leaves and more.

What is below is computed from the hashes in the log itself, at most 256 of them at a time; so the tree costs one row
for 128 events, and proofs read a few rows. It is a cache: nothing in it is believed that does not lead to a root that
was signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from eventlog.merkle import CompactRange, Node, leaf_hash, perfect_nodes, subtree

Connection = AsyncConnection[Any]

STORED_LEVEL: Final = 8
PAGE_HASHES: Final = 1_024
HASH_BYTES: Final = 32

_TABLE = """
create table if not exists {schema}.tree (
    level integer not null,
    number bigint not null,
    hash bytea not null,
    primary key (level, number)
)
"""


class TreeDamaged(Exception):
    """A stored node, or an event under the tree, is not there."""


class HashTree:
    """The tree of the log in one schema; every method works on a connection of the caller's."""

    def __init__(self, schema: str) -> None:
        def render(text: str) -> bytes:
            return SQL(text).format(schema=Identifier(schema)).as_bytes(None)

        self.tables = render(_TABLE)
        self._hashes = render(
            "select count(*), string_agg(hash, ''::bytea order by position) from {schema}.hashes"
            " where position > %s and position <= %s"
        )
        self._nodes = render(
            "select level, number, hash from {schema}.tree"
            " where (level, number) in (select * from unnest(%s::integer[], %s::bigint[]))"
        )
        self._store = render(
            "insert into {schema}.tree (level, number, hash)"
            " select * from unnest(%s::integer[], %s::bigint[], %s::bytea[])"
            " on conflict (level, number) do update set hash = excluded.hash"
        )

    async def at(self, connection: Connection, size: int) -> CompactRange:
        """The tree over the first `size` events, which stored nodes must cover. TreeDamaged if they do not."""
        nodes = perfect_nodes(0, size)
        hashes = await self.hashes(connection, nodes)
        return CompactRange(size, [hashes[node] for node in nodes])

    async def grow(self, connection: Connection, tree: CompactRange, size: int) -> list[tuple[Node, bytes]]:
        """Extend `tree` to the first `size` events; the nodes completed that are worth storing. TreeDamaged if an event
        is missing.
        """
        completed: list[tuple[Node, bytes]] = []
        while tree.size < size:
            upto = min(size, (tree.size // PAGE_HASHES + 1) * PAGE_HASHES)
            completed += _grown(tree, await self._event_hashes(connection, tree.size, upto))
            await asyncio.sleep(0)  # appends go first
        return completed

    async def store(self, connection: Connection, nodes: Sequence[tuple[Node, bytes]]) -> None:
        """Keep completed nodes; what was kept of the same name is replaced."""
        if nodes:
            levels, numbers = zip(*(node for node, _ in nodes), strict=True)
            hashes = [node_hash for _, node_hash in nodes]
            await connection.execute(self._store, [list(levels), list(numbers), hashes])

    async def hashes(self, connection: Connection, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """The hashes of some nodes. TreeDamaged if one cannot be had."""
        wanted = set(nodes)
        high = {node for node in wanted if node.level >= STORED_LEVEL}
        found = await self._stored(connection, high)
        blocks = {(node.number << node.level) >> STORED_LEVEL for node in wanted - high}
        leaves = {block: await self._leaves(connection, block) for block in blocks}
        for node in wanted - high:
            found[node] = _within(leaves[(node.number << node.level) >> STORED_LEVEL], node)
        return found

    async def _stored(self, connection: Connection, nodes: set[Node]) -> dict[Node, bytes]:
        if not nodes:
            return {}
        levels, numbers = [node.level for node in nodes], [node.number for node in nodes]
        rows = await (await connection.execute(self._nodes, [levels, numbers])).fetchall()
        found = {Node(level, number): bytes(node_hash) for level, number, node_hash in rows}
        if len(found) < len(nodes):
            raise TreeDamaged(f"nodes {sorted(nodes - found.keys())} of the tree are missing")
        return found

    async def _leaves(self, connection: Connection, block: int) -> list[bytes]:
        start = block << STORED_LEVEL
        rows = await self._page(connection, start, start + (1 << STORED_LEVEL))
        return [leaf_hash(event_hash) for event_hash in rows]

    async def _event_hashes(self, connection: Connection, after: int, upto: int) -> list[bytes]:
        hashes = await self._page(connection, after, upto)
        if len(hashes) != upto - after:
            raise TreeDamaged(f"of the events {after + 1} to {upto} only {len(hashes)} are there")
        return hashes

    async def _page(self, connection: Connection, after: int, upto: int) -> list[bytes]:
        row = await (await connection.execute(self._hashes, [after, upto], binary=True)).fetchone()
        count, joined = (0, b"") if row is None else (row[0], row[1] or b"")
        if len(joined) != count * HASH_BYTES:
            raise TreeDamaged(f"an event of {after + 1} to {upto} has no hash of {HASH_BYTES} bytes")
        return [joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES)]


def _grown(tree: CompactRange, event_hashes: Sequence[bytes]) -> list[tuple[Node, bytes]]:
    """Add some events' hashes, whole blocks at once; the nodes completed from the stored level on."""
    leaves = [leaf_hash(event_hash) for event_hash in event_hashes]
    block = 1 << STORED_LEVEL
    completed: list[tuple[Node, bytes]] = []
    start = 0
    while start < len(leaves):
        if tree.size % block == 0 and start + block <= len(leaves):
            node, root = Node(STORED_LEVEL, tree.size >> STORED_LEVEL), subtree(leaves[start : start + block])
            completed += [(node, root), *tree.push(STORED_LEVEL, root)]
            start += block
        else:
            completed += [node for node in tree.append(leaves[start]) if node[0].level >= STORED_LEVEL]
            start += 1
    return completed


def _within(leaves: list[bytes], node: Node) -> bytes:
    """A low node, from the leaves of its block."""
    start = (node.number << node.level) % (1 << STORED_LEVEL)
    covered = leaves[start : start + (1 << node.level)]
    if len(covered) != 1 << node.level:
        raise TreeDamaged(f"events under node {node} of the tree are missing")
    return subtree(covered)
