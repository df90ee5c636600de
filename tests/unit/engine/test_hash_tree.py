import random

import pytest

from engine import proof
from engine.errors import InvalidArgument, NotFound
from engine.hash_tree import FAN_OUT, LEAF_BYTES, HashTree, leaf_digests
from engine.proof_files import read_proof, write_proof
from engine.stores import Extent


def tree_of_bytes(data: bytes, *, skip_zeroes: bool) -> HashTree:
    tree = HashTree(len(data))
    for at in range(0, len(data), LEAF_BYTES):
        leaf = data[at : at + LEAF_BYTES]
        if not skip_zeroes or any(leaf):
            tree.put(at, leaf_digests(memoryview(leaf)))
    return tree


@pytest.mark.parametrize("size", [512, LEAF_BYTES, LEAF_BYTES + 512, LEAF_BYTES * FAN_OUT, LEAF_BYTES * (FAN_OUT + 1)])
def test_zeroes_count_alike_whether_they_were_put_or_not(size):
    data = bytes(size)
    put, skipped = tree_of_bytes(data, skip_zeroes=False), tree_of_bytes(data, skip_zeroes=True)
    assert put.root() == skipped.root()
    assert put.differing(skipped) == []


def test_the_root_covers_the_size():
    assert HashTree(LEAF_BYTES).root() != HashTree(2 * LEAF_BYTES).root()
    assert HashTree(0).root() != HashTree(512).root()


def test_differences_are_found_in_whole_leaves_and_merged():
    rng = random.Random(1)
    size = LEAF_BYTES * 20 + 512
    data = bytearray(rng.randbytes(size))
    before = tree_of_bytes(bytes(data), skip_zeroes=True)
    data[3 * LEAF_BYTES + 7] ^= 1
    data[4 * LEAF_BYTES] ^= 1
    data[size - 1] ^= 1
    after = tree_of_bytes(bytes(data), skip_zeroes=True)
    assert before.differing(after) == [Extent(3 * LEAF_BYTES, 2 * LEAF_BYTES), Extent(20 * LEAF_BYTES, 512)]
    assert before.root() != after.root()


def test_a_longer_device_differs_in_its_tail():
    short, long = HashTree(LEAF_BYTES), HashTree(3 * LEAF_BYTES)
    assert short.differing(long) == long.differing(short) == [Extent(LEAF_BYTES, 2 * LEAF_BYTES)]


def test_putting_zeroes_takes_a_leaf_back():
    tree = HashTree(LEAF_BYTES * 300 + 512)
    tree.put(LEAF_BYTES * 299, leaf_digests(memoryview(bytes([1]) * (LEAF_BYTES + 512))))
    assert tree.root() != HashTree(tree.size_bytes).root()
    tree.put_zeroes(LEAF_BYTES * 299, LEAF_BYTES + 512)
    assert tree.root() == HashTree(tree.size_bytes).root()


def test_the_root_of_a_known_device_does_not_change_between_versions():
    """Proof documents of earlier versions must stay checkable."""
    data = bytes(range(256)) * 1024  # four leaves
    assert tree_of_bytes(data, skip_zeroes=True).root().hex() == "ab2d140263a2ae53560d6d25af75d41a"
    assert HashTree(0).root().hex() == "03db95c5228b200de7f6b72d6a5cae06"


async def test_a_proof_document_that_is_none_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("x" * (1 << 21))
    (tmp_path / "empty").touch()
    for name in ("binary", "long", "empty", "."):
        with pytest.raises(InvalidArgument):
            await read_proof(tmp_path / name)
    with pytest.raises(NotFound):
        await read_proof(tmp_path / "nothing")
    with pytest.raises(NotFound):
        await write_proof(tmp_path / "no" / "folder", "{}")


def test_a_proof_document_with_any_bit_flipped_is_refused():
    side = "v", "5f4dcc3b-5aa7-45d6-8d83-27deb882cf99", 1.5, HashTree(1 << 20)
    text = proof.compare("r", side, side, checked_at=2.25, software="twinvol 1")[0].serialize().encode()
    assert proof.Proof.parse(text.decode()).identical
    for at in range(len(text)):
        for bit in range(8):
            spoilt = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            with pytest.raises((InvalidArgument, UnicodeDecodeError)):
                proof.Proof.parse(spoilt.decode())
