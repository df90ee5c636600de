"""The map of one node: from chunk index to chunk, in leaves of 4096 entries that nodes share until they change.

A leaf may be changed in place only by the map whose ``token`` it carries as ``owner``. A flip and a checkpoint give
the map a new token: from then on its leaves are frozen (they belong to a snapshot, or are being written to disk), and
the first change copies the leaf (16 KiB, 1.5 us). So a captured leaf never changes, and a snapshot costs one copy of
the list.

Scalars go through ``view`` (a memoryview of int32: 0.04 us an entry); ``array`` is the same memory for numpy, uint32,
for ranges. So an entry that names a slot or a partial chunk is a negative scalar (``claims.py``, ``partials.py``).

What of it is in memory (``docs/decisions/0014-maps-paged-from-the-file.md``; ``map_reader.py`` reads the rest):

* A map is *loaded* when its list of leaves is there, else only where its top pages are. Heads, snapshots that a
  checkpoint has not written yet and nodes that are being reclaimed are loaded when they are first used; a snapshot that
  is sealed and written is unloaded, and reading it goes through a bounded cache.
* A leaf of a loaded map is *resident* when its entries are there. In a loaded map it stays so: whoever waits between
  planning a change and publishing it finds what he has planned with. A leaf that is not resident is as the file has it.

Looking at entries that are not there raises AttributeError (a leaf), IndexError or KeyError (a list): ``NOT_THERE``.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, TOP_ENTRIES, TOP_ENTRY, PageRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

if sys.byteorder != "little":
    raise ImportError("the volume file's arrays are used as they are on disk: little-endian hosts only")

LEAF_SHIFT = 12
LEAF_MASK = LEAF_ENTRIES - 1
assert 1 << LEAF_SHIFT == LEAF_ENTRIES
TOP_SHIFT = 10
assert 1 << TOP_SHIFT == TOP_ENTRIES

NOT_THERE = (AttributeError, LookupError)
NO_PAGE = PageRef(0, 0)

_tokens = itertools.count(1)


class Leaf:
    """4096 map entries. ``page`` is 0 until a checkpoint has given it a place; without ``array`` it is not resident."""

    __slots__ = ("array", "birth", "checksum", "owner", "page", "view")

    array: npt.NDArray[np.uint32]
    view: memoryview

    def __init__(
        self, array: npt.NDArray[np.uint32] | None, owner: int, birth: int, page: int = 0, checksum: int = 0
    ) -> None:
        self.owner = owner
        self.birth = birth
        self.page = page
        self.checksum = checksum
        if array is not None:
            self.hold(array)

    def hold(self, array: npt.NDArray[np.uint32]) -> None:
        """Become resident."""
        self.array = array
        self.view = array.view(np.int32).data

    @property
    def resident(self) -> bool:
        return hasattr(self, "view")

    def chunks(self, first: int = 0, end: int = LEAF_ENTRIES) -> npt.NDArray[np.uint32]:
        """Those of a range's entries that name a chunk, a slot or a partial chunk: see ``Claims.of_entries``."""
        part = self.array[first:end]
        return part[part >= FIRST_CHUNK_ENTRY]


_NO_ENTRIES = np.zeros(LEAF_ENTRIES, np.uint32)
_NO_ENTRIES.setflags(write=False)
ABSENT_LEAF = Leaf(_NO_ENTRIES, owner=-1, birth=0)
"""Stands for every leaf that has no entry; nobody owns it, so the first change copies it."""


class ChunkMap:
    """The leaves of one node and where its top pages are."""

    __slots__ = ("count", "dirty", "leaves", "loaded", "token", "tops", "version", "writing")

    def __init__(self, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        """Empty while the map is not loaded."""
        self.loaded = True
        self.count = len(leaves)
        """Leaves, absent ones included."""
        self.token = next(_tokens)
        self.version = 0
        """Grows when entries of a sealed snapshot are replaced (``adoption.py``)."""
        self.tops: list[PageRef] = [NO_PAGE] * top_count(self.count)
        """Where each top page is in the last checkpoint."""
        self.dirty: set[int] = set(range(len(self.tops)))
        """Tops that changed since a checkpoint captured them; only a loaded map has any."""
        self.writing: frozenset[int] = frozenset()
        """Tops that the running checkpoint has captured: ``tops`` does not say yet where they are."""

    @classmethod
    def empty(cls, chunk_count: int) -> ChunkMap:
        return cls([ABSENT_LEAF] * leaf_count(chunk_count))

    @classmethod
    def stored(cls, tops: tuple[PageRef, ...], count: int) -> ChunkMap:
        """A map as a checkpoint has it, not loaded."""
        found = cls([])
        found.loaded, found.count, found.tops = False, count, list(tops)
        return found

    def copy(self) -> ChunkMap:
        """A map that shares all leaves; neither may change one in place afterwards."""
        found = ChunkMap([])
        found.become(self)
        return found

    def become(self, other: ChunkMap) -> None:
        """Share all leaves of another map; neither may change one in place afterwards.

        The list stays the same object, since the node's device keeps it.
        """
        self.freeze()
        other.freeze()
        self.leaves[:] = other.leaves
        self.loaded, self.count = other.loaded, other.count
        self.tops = other.tops.copy()
        self.dirty = other.dirty | other.writing
        self.writing = frozenset()

    def load(self, leaves: list[Leaf]) -> None:
        """Take the list of leaves that the top pages describe."""
        assert len(leaves) == self.count
        self.leaves[:] = leaves
        self.loaded = True

    def unload(self) -> None:
        """Forget the leaves, all of which a checkpoint has written. Their entries go with whoever else has them."""
        assert not self.dirty
        assert not self.writing
        self.leaves.clear()
        self.loaded = False

    def freeze(self) -> None:
        """From now on every leaf is copied before it changes."""
        self.token = next(_tokens)

    def own(self, number: int, birth: int) -> Leaf:
        """The leaf as one that this map may change; the caller has seen that it may not yet."""
        leaf = Leaf(self.leaves[number].array.copy(), self.token, birth)
        self.put(number, leaf)
        return leaf

    def put(self, number: int, leaf: Leaf) -> None:
        """Another leaf at this place."""
        self.leaves[number] = leaf
        self.dirty.add(number >> TOP_SHIFT)

    def drop(self, number: int) -> None:
        self.put(number, ABSENT_LEAF)

    def resize(self, count: int) -> None:
        """Have so many leaves; new ones are absent."""
        before, self.count = self.count, count
        del self.leaves[count:]
        self.leaves.extend([ABSENT_LEAF] * (count - before))
        tops = top_count(count)
        del self.tops[tops:]
        self.tops.extend([NO_PAGE] * (tops - len(self.tops)))
        changed = range(min(before, count) >> TOP_SHIFT, tops)
        self.dirty = {top for top in self.dirty if top < tops}.union(changed)

    def lookup(self, index: int) -> int:
        return self.leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]


def leaf_count(chunk_count: int) -> int:
    return -(-chunk_count // LEAF_ENTRIES)


def top_count(leaves: int) -> int:
    return -(-leaves // TOP_ENTRIES)


def pack_top(leaves: list[Leaf]) -> bytes:
    """The entries of a top page for leaves all of which have their pages."""
    return b"".join([TOP_ENTRY.pack(leaf.page, leaf.birth, leaf.checksum) for leaf in leaves])


def unpack_top(data: bytes | bytearray, count: int) -> Iterator[Leaf]:
    """The leaves that the first entries of a top page describe, none of them resident."""
    for page, birth, checksum in TOP_ENTRY.iter_unpack(data[: count * TOP_ENTRY.size]):
        yield Leaf(None, 0, birth, page, checksum) if page else ABSENT_LEAF
