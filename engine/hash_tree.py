"""Digest tree of a whole device: what it holds, in sixteen bytes, and where two devices differ.

A *leaf* is the xxh3_128 of 64 KiB (the last one of what is left). An inner node is the xxh3_128 of its children's
digests, 256 of them. The root also covers the size, so that a device and the same device with zeroes behind it
differ. Nothing else enters: neither the store's chunk size nor whether zeroes are stored, discarded or were never
written, so the copies of a volume have one root wherever they live.

Invariant: a leaf that was never put is a leaf of zeroes. A group of 256 zero leaves takes no memory, so a tree costs
1/4096 of the data that exists, and 1/2^20 of the size.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import xxhash

from engine.stores import Extent
from engine.units import KIB, align_up

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAF_BYTES = 64 * KIB
BLOCK_BYTES = 4 * KIB
"""What two differing leaves are compared in, where what differs has a way to go. No part of a tree."""
FAN_OUT = 256
DIGEST_BYTES = 16
HASH_NAME = "xxh3_128"

_GROUP_BYTES = FAN_OUT * DIGEST_BYTES
_ROOT = struct.Struct("<8sQ16s")
_ROOT_MAGIC = b"TVTREE01"

digest_of = xxhash.xxh3_128_digest
"""xxh3_128 of a buffer. Takes any contiguous buffer; releases the GIL from 100 kB up."""

ZERO_LEAF = bytes(LEAF_BYTES)
ZERO_LEAF_DIGEST = digest_of(ZERO_LEAF)


def leaf_digests(data: memoryview) -> bytes:
    """The digests of consecutive leaves, one behind the other. ``data`` starts at a leaf's start."""
    length = len(data)
    if length <= LEAF_BYTES:
        return digest_of(data)
    return b"".join([digest_of(data[at : at + LEAF_BYTES]) for at in range(0, length, LEAF_BYTES)])


def block_digests(leaf: memoryview) -> bytes:
    """The digests of a leaf's blocks, one behind the other."""
    return b"".join([digest_of(leaf[at : at + BLOCK_BYTES]) for at in range(0, len(leaf), BLOCK_BYTES)])


class HashTree:
    """The leaves of one device, and what follows from them."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.leaves = align_up(size_bytes, LEAF_BYTES) // LEAF_BYTES
        self._groups: dict[int, bytearray] = {}
        tail = size_bytes % LEAF_BYTES
        self._last_zero = digest_of(bytes(tail)) if tail else ZERO_LEAF_DIGEST
        self._zero_group = ZERO_LEAF_DIGEST * FAN_OUT

    def put(self, offset: int, digests: bytes | memoryview) -> None:
        """Set consecutive leaves.

        Args:
            offset: where the first of them starts, in bytes, a multiple of ``LEAF_BYTES``.
            digests: ``DIGEST_BYTES`` for each leaf.
        """
        assert offset % LEAF_BYTES == 0
        assert len(digests) % DIGEST_BYTES == 0
        index, position = offset // LEAF_BYTES, 0
        assert index + len(digests) // DIGEST_BYTES <= self.leaves
        while position < len(digests):
            group, within = divmod(index, FAN_OUT)
            part = min((FAN_OUT - within) * DIGEST_BYTES, len(digests) - position)
            cells = self._groups.get(group)
            if cells is None:
                cells = self._groups[group] = bytearray(self._blank(group))
            cells[within * DIGEST_BYTES : within * DIGEST_BYTES + part] = digests[position : position + part]
            index += part // DIGEST_BYTES
            position += part

    def put_zeroes(self, offset: int, length: int) -> None:
        """Set the leaves of a leaf-aligned range (its end may be the device's) to what zeroes give."""
        for index in range(offset // LEAF_BYTES, align_up(offset + length, LEAF_BYTES) // LEAF_BYTES):
            group, within = divmod(index, FAN_OUT)
            cells = self._groups.get(group)
            if cells is not None:
                blank = self._last_zero if index == self.leaves - 1 else ZERO_LEAF_DIGEST
                cells[within * DIGEST_BYTES : (within + 1) * DIGEST_BYTES] = blank

    def digests(self, offset: int, length: int) -> bytes:
        """The leaves of a leaf-aligned range, one behind the other."""
        first, end = offset // LEAF_BYTES, align_up(offset + length, LEAF_BYTES) // LEAF_BYTES
        return b"".join([self.leaf(index) for index in range(first, end)])

    def leaf(self, index: int) -> bytes:
        """The digest of leaf ``index``."""
        group, within = divmod(index, FAN_OUT)
        return bytes(self._group(group)[within * DIGEST_BYTES : (within + 1) * DIGEST_BYTES])

    def root(self) -> bytes:
        """Sixteen bytes that stand for size and content."""
        level = self._first_level()
        while len(level) > DIGEST_BYTES:
            level = b"".join([digest_of(level[at : at + _GROUP_BYTES]) for at in range(0, len(level), _GROUP_BYTES)])
        return digest_of(_ROOT.pack(_ROOT_MAGIC, self.size_bytes, level or bytes(DIGEST_BYTES)))

    def differing(self, other: HashTree) -> list[Extent]:
        """Where the two devices differ, in whole leaves, merged, in order; a longer device differs in its tail."""
        found: list[Extent] = []
        for index in self._differing_leaves(other):
            offset = index * LEAF_BYTES
            end = min(offset + LEAF_BYTES, max(self.size_bytes, other.size_bytes))
            if found and found[-1].end == offset:
                found[-1] = Extent(found[-1].offset, end - found[-1].offset)
            else:
                found.append(Extent(offset, end - offset))
        return found

    def _differing_leaves(self, other: HashTree) -> Iterator[int]:
        common = min(self.leaves, other.leaves)
        last_group = (common - 1) // FAN_OUT
        touched = self._groups.keys() | other._groups.keys() | {last_group}
        for group in sorted(g for g in touched if g <= last_group):
            mine, theirs = self._group(group), other._group(group)
            if mine == theirs:
                continue
            for within in range(min(FAN_OUT, common - group * FAN_OUT)):
                at = within * DIGEST_BYTES
                if mine[at : at + DIGEST_BYTES] != theirs[at : at + DIGEST_BYTES]:
                    yield group * FAN_OUT + within
        yield from range(common, max(self.leaves, other.leaves))

    def _first_level(self) -> bytes:
        groups = align_up(self.leaves, FAN_OUT) // FAN_OUT
        level = bytearray(digest_of(self._zero_group) * groups)
        for group in self._groups.keys() | ({groups - 1} if groups else set()):
            level[group * DIGEST_BYTES : (group + 1) * DIGEST_BYTES] = digest_of(self._group(group))
        return bytes(level)

    def _group(self, group: int) -> bytes | bytearray:
        cells = self._groups.get(group)
        return self._blank(group) if cells is None else cells

    def _blank(self, group: int) -> bytes:
        """A group of zero leaves; only the last one can be short."""
        if (group + 1) * FAN_OUT < self.leaves:
            return self._zero_group
        return ZERO_LEAF_DIGEST * (self.leaves - group * FAN_OUT - 1) + self._last_zero
