"""The map of one node: from chunk index to chunk, in leaves of 4096 entries that nodes share until they change.

A leaf may be changed in place only by the map whose ``token`` it carries as ``owner``. A flip and a checkpoint give
the map a new token: from then on its leaves are frozen (they belong to a snapshot, or are being written to disk), and
the first change copies the leaf (16 KiB, 1.5 us). So a captured leaf never changes, and a snapshot costs one copy of
the list.

Scalars go through ``view`` (a memoryview of int32: 0.04 us an entry); ``array`` is the same memory for numpy, uint32,
for ranges. So an entry with ``SLOT_BIT`` is a negative scalar (``claims.py``).

All leaves of all nodes are in memory: 16 KiB for each 256 MiB that was mapped at 64 KiB chunks (64 MiB per TiB), and
once more for each such range that a later snapshot holds in another version.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, PageRef

if TYPE_CHECKING:
    import numpy.typing as npt

if sys.byteorder != "little":
    raise ImportError("the volume file's arrays are used as they are on disk: little-endian hosts only")

LEAF_SHIFT = 12
LEAF_MASK = LEAF_ENTRIES - 1
assert 1 << LEAF_SHIFT == LEAF_ENTRIES

_tokens = itertools.count(1)


class Leaf:
    """4096 map entries. ``page`` is 0 until a checkpoint has given it a place."""

    __slots__ = ("array", "birth", "checksum", "owner", "page", "view")

    def __init__(self, array: npt.NDArray[np.uint32], owner: int, birth: int, page: int = 0, checksum: int = 0) -> None:
        self.array = array
        self.view = array.view(np.int32).data
        self.owner = owner
        self.birth = birth
        self.page = page
        self.checksum = checksum

    def chunks(self, first: int = 0, end: int = LEAF_ENTRIES) -> npt.NDArray[np.uint32]:
        """The claims (chunks and slots) among the entries of a range."""
        part = self.array[first:end]
        return part[part >= FIRST_CHUNK_ENTRY]


_NO_ENTRIES = np.zeros(LEAF_ENTRIES, np.uint32)
_NO_ENTRIES.setflags(write=False)
ABSENT_LEAF = Leaf(_NO_ENTRIES, owner=-1, birth=0)
"""Stands for every leaf that has no entry; nobody owns it, so the first change copies it."""


class ChunkMap:
    """The leaves of one node and where its top pages are."""

    __slots__ = ("dirty", "leaf_pages", "leaves", "pages", "token")

    def __init__(self, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        self.token = next(_tokens)
        self.dirty = True
        """Changed since a checkpoint captured it."""
        self.pages: tuple[PageRef, ...] = ()
        """Top pages of the last checkpoint; of no meaning while dirty."""
        self.leaf_pages: tuple[int, ...] = ()
        """The leaves' pages in that checkpoint."""

    @classmethod
    def empty(cls, chunk_count: int) -> ChunkMap:
        return cls([ABSENT_LEAF] * leaf_count(chunk_count))

    def copy(self) -> ChunkMap:
        """A map that shares all leaves; neither may change one in place afterwards."""
        self.freeze()
        return ChunkMap(list(self.leaves))

    def freeze(self) -> None:
        """From now on every leaf is copied before it changes."""
        self.token = next(_tokens)

    def own(self, number: int, birth: int) -> Leaf:
        """The leaf as one that this map may change; the caller has seen that it may not yet."""
        leaf = self.leaves[number] = Leaf(self.leaves[number].array.copy(), self.token, birth)
        self.dirty = True
        return leaf

    def drop(self, number: int) -> None:
        self.leaves[number] = ABSENT_LEAF
        self.dirty = True

    def lookup(self, index: int) -> int:
        return self.leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]


def leaf_count(chunk_count: int) -> int:
    return -(-chunk_count // LEAF_ENTRIES)
