"""The Merkle tree over a log's event hashes, and its proofs: RFC 6962 section 2.1, verified as in RFC 9162 section 2.1.

A leaf is SHA-256(0x00 ‖ data), an inner node SHA-256(0x01 ‖ left ‖ right); leaf i stands for the event at position
i + 1. Everything here is a function of hashes: who stores the tree is not known. A node (level, number) is the root
of the perfect subtree over the leaves number·2^level up to, but not including, (number + 1)·2^level; it never changes once
its leaves are there, so a log that grows needs to keep one root for each binary digit of its size (`CompactRange`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

EMPTY_ROOT: Final = sha256(b"").digest()
"""The root of a tree without leaves."""


class Node(NamedTuple):
    """The name of a perfect subtree."""

    level: int
    number: int


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That the event at `position` is one of the first `size`: the hashes of the siblings, leaf to root."""

    position: int
    size: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """That the first `old` of `new` events are the ones that were there when there were only `old`."""

    old: int
    new: int
    path: tuple[bytes, ...]


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A tree that only grows at its end, kept as the roots of its perfect subtrees, the largest first."""

    def __init__(self, size: int = 0, roots: Iterable[bytes] = ()) -> None:
        self.size = size
        self._roots = list(roots)

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """Add a leaf's hash. The inner nodes that it completes, lowest first."""
        return self.push(0, leaf)

    def push(self, level: int, node: bytes) -> list[tuple[Node, bytes]]:
        """Add 2^level leaves at once by the root over them. The nodes above that they complete, lowest first.

        ValueError unless the size is a multiple of their number.
        """
        number, rest = divmod(self.size, 1 << level)
        if rest:
            raise ValueError(f"a subtree of level {level} cannot follow {self.size} leaves")
        self.size += 1 << level
        completed = []
        while number & 1:
            node = node_hash(self._roots.pop(), node)
            number >>= 1
            level += 1
            completed.append((Node(level, number), node))
        self._roots.append(node)
        return completed

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves."""
        return folded(self._roots)


def folded(roots: Sequence[bytes]) -> bytes:
    """The root over adjacent perfect subtrees, the largest first."""
    if not roots:
        return EMPTY_ROOT
    *others, node = roots
    for left in reversed(others):
        node = node_hash(left, node)
    return node


def perfect_nodes(start: int, end: int) -> list[Node]:
    """The perfect subtrees that make up the leaves `start` to `end` (exclusive), where `start` is a multiple of the
    largest power of two not above their number: then they are the binary digits of the number.
    """
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append(Node(level, start >> level))
        start += 1 << level
    return nodes


def inclusion_nodes(index: int, size: int) -> list[list[Node]]:
    """What an inclusion proof is made of: each hash of its path as the perfect subtrees it folds."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(perfect_nodes(middle, end))
            end = middle
        else:
            path.append(perfect_nodes(start, middle))
            start = middle
    return path[::-1]


def consistency_nodes(old: int, new: int) -> list[list[Node]]:
    """What a consistency proof is made of, in the same form."""
    if not 0 < old <= new:
        raise ValueError(f"a tree of {new} cannot be the continuation of one of {old}")
    path = []
    start, end = 0, new
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(perfect_nodes(middle, end))
            end = middle
        else:
            path.append(perfect_nodes(start, middle))
            start = middle
    if start:
        path.append(perfect_nodes(start, end))
    return path[::-1]


def proof_path(wanted: Iterable[Sequence[Node]], hashes: Mapping[Node, bytes]) -> tuple[bytes, ...]:
    """The hashes of a proof, from the hashes of the nodes that it wants."""
    return tuple(folded([hashes[node] for node in nodes]) for nodes in wanted)


def subtree(leaves: Sequence[bytes]) -> bytes:
    """The root over 2^n leaves' hashes, level by level: the fast path of a growing tree."""
    while len(leaves) > 1:
        leaves = [
            sha256(b"\x01" + left + right).digest() for left, right in zip(leaves[::2], leaves[1::2], strict=True)
        ]
    return leaves[0]


def verify_inclusion(data: bytes, proof: InclusionProof, root: bytes) -> bool:
    """Whether `data` is the leaf of `proof.position` in the tree of this root (RFC 9162, 2.1.3.2)."""
    index, last = proof.position - 1, proof.size - 1
    if not 0 <= index <= last:
        return False
    node = leaf_hash(data)
    for sibling in proof.path:
        if last == 0:
            return False
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(proof: ConsistencyProof, old_root: bytes, new_root: bytes) -> bool:
    """Whether the tree of `new_root` continues the tree of `old_root` (RFC 9162, 2.1.4.2)."""
    if proof.old == proof.new:
        return not proof.path and old_root == new_root
    if not 0 < proof.old < proof.new:
        return False
    path = list(proof.path)
    if proof.old & (proof.old - 1) == 0:
        path.insert(0, old_root)  # the old tree is itself a node of the new one
    if not path:
        return False
    return _climb(proof.old - 1, proof.new - 1, path) == (old_root, new_root)


def _climb(index: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Both roots that a consistency path leads to; None if it is too long or too short."""
    while index & 1:
        index, last = index >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if index & 1 or index == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        index, last = index >> 1, last >> 1
    return (old, new) if last == 0 else None


def _split(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1
