"""The tree: against the vectors of Certificate Transparency, and for every size against its definition."""

from hashlib import sha256

import pytest
from eventlog.merkle import (
    EMPTY_ROOT,
    CompactRange,
    ConsistencyProof,
    InclusionProof,
    Node,
    consistency_nodes,
    folded,
    inclusion_nodes,
    leaf_hash,
    node_hash,
    perfect_nodes,
    proof_path,
    subtree,
    verify_consistency,
    verify_inclusion,
)
from hypothesis import given
from hypothesis import strategies as st

# The leaves and roots that the reference implementations of RFC 6962 test with.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it down, slow and plain."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = max(2**k for k in range(20) if 2**k < len(leaves))
    return node_hash(tree_hash(leaves[:split]), tree_hash(leaves[split:]))


def some_leaves(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def node_hashes(leaves: list[bytes], wanted: list[list[Node]]) -> dict[Node, bytes]:
    return {
        node: tree_hash(leaves[node.number << node.level : (node.number + 1) << node.level])
        for nodes in wanted
        for node in nodes
    }


def inclusion(leaves: list[bytes], position: int) -> InclusionProof:
    wanted = inclusion_nodes(position - 1, len(leaves))
    return InclusionProof(position, len(leaves), proof_path(wanted, node_hashes(leaves, wanted)))


def consistency(leaves: list[bytes], old: int) -> ConsistencyProof:
    wanted = consistency_nodes(old, len(leaves))
    return ConsistencyProof(old, len(leaves), proof_path(wanted, node_hashes(leaves, wanted)))


def root(leaves: list[bytes]) -> bytes:
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree.root()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_reference_vectors(size: int) -> None:
    assert root(LEAVES[:size]).hex() == ROOTS[size - 1]
    assert tree_hash(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_the_root_of_nothing_is_the_hash_of_nothing() -> None:
    assert CompactRange().root() == EMPTY_ROOT == folded([])


@pytest.mark.parametrize(
    ("position", "size", "path"),
    [
        (1, 1, []),
        (1, 8, [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]),
        (6, 8, [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]),
        (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    ],
)  # fmt: skip
def test_inclusion_paths_are_those_of_the_reference_vectors(position: int, size: int, path: list[str]) -> None:
    proof = inclusion(LEAVES[:size], position)
    assert [step.hex() for step in proof.path] == path
    assert verify_inclusion(LEAVES[position - 1], proof, bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (1, 1, []),
        (1, 8, [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]),
        (6, 8, [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]),
        (2, 5, [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ]),
    ],
)  # fmt: skip
def test_consistency_paths_are_those_of_the_reference_vectors(old: int, new: int, path: list[str]) -> None:
    proof = consistency(LEAVES[:new], old)
    assert [step.hex() for step in proof.path] == path
    assert verify_consistency(proof, bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1]))


@given(st.integers(0, 200))
def test_a_range_that_grew_leaf_by_leaf_has_the_root_of_the_definition(size: int) -> None:
    leaves = some_leaves(size)
    assert root(leaves) == tree_hash(leaves)


@given(st.integers(1, 100))
def test_every_node_is_told_once_when_its_last_leaf_comes(size: int) -> None:
    leaves, tree, told = some_leaves(size), CompactRange(), {}
    for leaf in leaves:
        completed = dict(tree.append(leaf_hash(leaf)))
        assert told.keys().isdisjoint(completed)
        told |= completed
    assert told == {
        node: tree_hash(leaves[node.number << node.level : (node.number + 1) << node.level]) for node in told
    }
    assert {node for node in perfect_nodes(0, size) if node.level > 0} <= told.keys()


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_whole_subtree_may_be_added_at_once(level: int, before: int) -> None:
    leaves = some_leaves((before + 1) << level)
    one_by_one, at_once = CompactRange(), CompactRange()
    for leaf in leaves[: before << level]:
        at_once.append(leaf_hash(leaf))
    told = [node for leaf in leaves for node in one_by_one.append(leaf_hash(leaf))]
    above = at_once.push(level, subtree([leaf_hash(leaf) for leaf in leaves[before << level :]]))
    assert (at_once.size, at_once.root()) == (one_by_one.size, tree_hash(leaves))
    assert above == told[len(told) - len(above) :]


def test_a_subtree_follows_only_a_multiple_of_its_size() -> None:
    tree = CompactRange()
    tree.append(b"x")
    with pytest.raises(ValueError, match="cannot follow 1 leaves"):
        tree.push(3, b"y")


@given(st.data())
def test_every_leaf_has_a_proof_that_holds(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    position = data.draw(st.integers(1, size))
    leaves = some_leaves(size)
    proof = inclusion(leaves, position)
    assert verify_inclusion(leaves[position - 1], proof, tree_hash(leaves))


@given(st.data())
def test_no_proof_holds_for_another_leaf_place_root_or_path(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 70))
    position = data.draw(st.integers(1, size))
    leaves = some_leaves(size)
    proof, expected = inclusion(leaves, position), tree_hash(leaves)
    leaf = leaves[position - 1]
    elsewhere = data.draw(st.integers(0, size + 1).filter(lambda other: other != position))
    step = data.draw(st.integers(0, len(proof.path) - 1))
    bent = (*proof.path[:step], sha256(proof.path[step]).digest(), *proof.path[step + 1 :])
    assert not verify_inclusion(b"another", proof, expected)
    assert not verify_inclusion(leaf, InclusionProof(elsewhere, size, proof.path), expected)
    assert not verify_inclusion(leaf, proof, sha256(expected).digest())
    assert not verify_inclusion(leaf, InclusionProof(position, size, bent), expected)
    assert not verify_inclusion(leaf, InclusionProof(position, size, proof.path[:-1]), expected)
    assert not verify_inclusion(leaf, InclusionProof(position, size, (*proof.path, expected)), expected)


@given(st.data())
def test_every_earlier_tree_has_a_proof_of_consistency(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 70))
    old = data.draw(st.integers(1, new))
    leaves = some_leaves(new)
    proof = consistency(leaves, old)
    assert verify_consistency(proof, tree_hash(leaves[:old]), tree_hash(leaves))


@given(st.data())
def test_a_tree_with_another_past_has_no_proof_of_consistency(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 70))
    old = data.draw(st.integers(1, new - 1))
    changed = data.draw(st.integers(0, old - 1))
    leaves = some_leaves(new)
    rewritten = [*leaves[:changed], b"rewritten", *leaves[changed + 1 :]]
    proof = consistency(rewritten, old)
    assert not verify_consistency(proof, tree_hash(leaves[:old]), tree_hash(rewritten))
    assert not verify_consistency(
        ConsistencyProof(old, new, proof.path[:-1]), tree_hash(rewritten[:old]), tree_hash(rewritten)
    )


def test_a_proof_about_what_is_not_there_is_not_made() -> None:
    with pytest.raises(ValueError, match="leaf 3 is not in a tree of 3"):
        inclusion_nodes(3, 3)
    with pytest.raises(ValueError, match="cannot be the continuation"):
        consistency_nodes(4, 3)


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3), (-1, 2)])
def test_a_claim_about_impossible_sizes_does_not_hold(old: int, new: int) -> None:
    assert not verify_consistency(ConsistencyProof(old, new, (b"x" * 32,)), b"a", b"b")


def test_an_empty_path_between_two_sizes_does_not_hold() -> None:
    assert not verify_consistency(ConsistencyProof(3, 5, ()), b"a", b"b")
