"""Hash tree. Expected: 64 KiB leaves at several GiB/s; the root of a 1 GiB tree in under a millisecond or two."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.hash_tree import LEAF_BYTES, HashTree, leaf_digests
from engine.units import GIB, MIB

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def filled(size_bytes: int, changed: int | None = None) -> HashTree:
    """A tree with a digest in every leaf; ``changed`` names a leaf that differs."""
    tree = HashTree(size_bytes)
    rng = random.Random(1)
    for index in range(tree.leaves):
        digest = rng.randbytes(16)
        tree.put(index * LEAF_BYTES, bytes(16) if index == changed else digest)
    return tree


def test_digest_one_mebibyte(benchmark: BenchmarkFixture) -> None:
    data = memoryview(random.Random(2).randbytes(MIB))
    assert len(benchmark(leaf_digests, data)) == 16 * 16


def test_root_of_a_full_gibibyte(benchmark: BenchmarkFixture) -> None:
    tree = filled(GIB)
    assert len(benchmark(tree.root)) > 0


def test_find_one_changed_leaf_in_a_gibibyte(benchmark: BenchmarkFixture) -> None:
    ours, theirs = filled(GIB), filled(GIB, changed=12345)
    (extent,) = benchmark(ours.differing, theirs)
    assert (extent.offset, extent.length) == (12345 * LEAF_BYTES, LEAF_BYTES)
