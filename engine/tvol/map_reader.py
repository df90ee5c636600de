"""Reading of map pages: what of a node's map is not in memory comes from the file, and only when it is wanted.

``MapSource`` blocks and knows the file only: it is called in workers, and while a file is being opened. ``MapReader``
is the loop's side. Rules (``chunk_map.py`` says what *loaded* and *resident* mean):

* Every page is verified when it is read. One that is wrong is a MediumError for what it maps, for as long as it is
  wrong, and one message, however often a host asks; the rest of the volume goes on.
* A change is planned and published with resident leaves only: of its node, and of those that a late write is carried
  down to (``ready``). They stay resident, so waiting in between is allowed.
* A leaf of a sealed snapshot that was once read is good for as long as the snapshot exists and its map keeps its
  ``version``, whatever the cache does; nobody but the cache's views may find it later. What a replaced leaf named is
  there as long as an operation lasts that has seen it.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import MediumError
from engine.tvol.adoption import tree_of
from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_SHIFT, TOP_SHIFT, Leaf, unpack_top
from engine.tvol.layout import PAGE_SIZE, TOP_ENTRIES, TOP_ENTRY, LayoutError, NodeFlag, NodeKind, PageRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from engine.files import BlockFile, Workers
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

    Words = npt.NDArray[np.uint32]
    View = dict[int, Leaf]

_LOG = logging.getLogger(__name__)

CACHED_TOPS = 64
MAY_CHANGE = NodeFlag.UNSEALED | NodeFlag.DELETED | NodeFlag.RECLAIMING
"""Snapshots whose maps stay in memory: late writes of their epoch, or the reclaiming, may still need them."""
MAX_TOLD = 1024
"""Wrong pages of which it is remembered that they were told."""
READ_LEAVES = 64
"""At most so many pages (1 MiB) are read in one worker call."""


class MapSource:
    """Map pages of a file."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file

    def page(self, ref: PageRef, what: str) -> bytearray:
        """Raises MediumError: it cannot be read, or is not what was written."""
        data = bytearray(PAGE_SIZE)
        self._file.read_into((memoryview(data),), ref.page * PAGE_SIZE)
        if checksum64(data) != ref.checksum:
            raise MediumError(f"{self._file.path}: {what}, page {ref.page}, has a wrong checksum")
        return data

    def entries(self, leaf: Leaf) -> Words:
        return np.frombuffer(self.page(PageRef(leaf.page, leaf.checksum), "a leaf of a map"), np.uint32)

    def top(self, ref: PageRef) -> bytearray:
        return self.page(ref, "a top page of a map")

    def leaves(self, tops: Sequence[PageRef], count: int) -> list[Leaf]:
        """The leaves of a map, none of them resident."""
        found: list[Leaf] = []
        for ref in tops:
            found.extend(unpack_top(self.top(ref), min(TOP_ENTRIES, count - len(found))))
        return found


class MapReader:
    """What the devices and operations of an open file ask for map entries."""

    def __init__(self, source: MapSource, workers: Workers, family: Family, cached_leaves: int) -> None:
        self._source = source
        self._workers = workers
        self._family = family
        self._cached_leaves = cached_leaves
        self._seen: deque[tuple[View, int]] = deque()
        """What is in views of snapshots, oldest first."""
        self._tops: dict[PageRef, bytearray] = {}
        self._told_texts: set[str] = set()

    # --- heads, and whatever else is changed --------------------------------------------------------------------

    def ready(self, node: Node, first: int, last: int) -> bool:
        """Whether these indexes of a node may be looked at and changed, until the node goes."""
        for each in _chain(node):
            if not each.map.loaded:
                return False
            for leaf in each.map.leaves[first >> LEAF_SHIFT : (last >> LEAF_SHIFT) + 1]:
                if not leaf.resident:
                    return False
        return True

    async def fetch(self, node: Node, first: int, last: int) -> None:
        """Do something for it to be ``ready``: ask again afterwards. Raises MediumError."""
        for each in _chain(node):
            await self.load(each)
        numbers = range(first >> LEAF_SHIFT, (last >> LEAF_SHIFT) + 1)
        for each in _chain(node):
            if each.map.loaded:
                await self.make_resident(each, [at for at in numbers if at < each.map.count])

    async def load(self, node: Node) -> None:
        """Have the list of a node's leaves. Raises MediumError."""
        while not node.map.loaded:
            tops, count = tuple(node.map.tops), node.map.count
            read = functools.partial(self._source.leaves, tops, count)
            try:
                leaves = await self._workers.run(read)
            except MediumError as error:
                if not node.map.loaded and tuple(node.map.tops) == tops:
                    raise self._told(node, error) from error
                continue  # the pages were those of a state that has passed
            if not node.map.loaded and tuple(node.map.tops) == tops and node.map.count == count:
                node.map.load(leaves)

    async def make_resident(self, node: Node, numbers: list[int]) -> None:
        """Read leaves of a loaded map, a MiB of them at most. Raises MediumError."""
        wanted = [leaf for leaf in (node.map.leaves[at] for at in numbers) if not leaf.resident][:READ_LEAVES]
        if not wanted:
            return
        try:
            found = await self._workers.run(lambda: [self._source.entries(leaf) for leaf in wanted])
        except MediumError as error:
            if any(leaf in node.map.leaves for leaf in wanted):
                raise self._told(node, error) from error
            return  # the leaf was given up, and its page is used for something else
        for leaf, entries in zip(wanted, found, strict=True):
            if not leaf.resident:
                self._hold(node, leaf, entries)

    def _hold(self, node: Node, leaf: Leaf, entries: Words) -> None:
        try:
            self._family.claims.check_entries(entries)
        except LayoutError as error:
            raise self._told(node, MediumError(f"page {leaf.page}: {error}")) from error
        leaf.hold(entries)

    # --- the tree of a clone, to be changed at once ---------------------------------------------------------------

    def ready_below(self, top: Node, number: int) -> bool:
        """Whether a leaf of a node and of all below may be looked at and changed, in this step only."""
        return all(
            node.map.loaded and (number >= node.map.count or node.map.leaves[number].resident) for node in tree_of(top)
        )

    async def fetch_below(self, top: Node, number: int) -> None:
        """Do something for it to be ``ready_below``: ask again afterwards. Raises MediumError."""
        read: dict[int, Words] = {}
        for node in list(tree_of(top)):
            await self.load(node)
            leaf = node.map.leaves[number] if node.map.loaded and number < node.map.count else ABSENT_LEAF
            if not leaf.resident and leaf.page in read:
                leaf.hold(read[leaf.page])  # nobody changes entries in place that a page has
            elif not leaf.resident:
                await self.make_resident(node, [number])
            if leaf.resident and leaf.page:
                read[leaf.page] = leaf.array

    def unload_below(self, top: Node) -> None:
        """The maps of sealed snapshots that are in the file as they are need not be in memory."""
        for node in tree_of(top):
            chunk_map = node.map
            is_settled = not (node.flags & MAY_CHANGE or chunk_map.dirty or chunk_map.writing)
            if node.kind is NodeKind.SNAPSHOT and chunk_map.loaded and is_settled:
                chunk_map.unload()

    # --- any node, to be looked at only -------------------------------------------------------------------------

    async def leaf(self, node: Node, number: int) -> Leaf:
        """A leaf that may not be resident, but says where it is. Raises MediumError."""
        if node.kind is NodeKind.HEAD:  # its pages may go while they are being read
            await self.load(node)
        if number >= node.map.count:
            return ABSENT_LEAF
        if node.map.loaded:
            return node.map.leaves[number]
        ref = node.map.tops[number >> TOP_SHIFT]
        data = self._tops.get(ref)
        if data is None:
            version = node.map.version
            try:
                data = await self._workers.run(lambda: self._source.top(ref))
            except MediumError as error:
                if node.map.version != version:
                    return await self.leaf(node, number)  # the page was given up, and is used for something else
                raise self._told(node, error) from error
            while len(self._tops) >= CACHED_TOPS:
                del self._tops[next(iter(self._tops))]
            self._tops[ref] = data
        at = (number & (TOP_ENTRIES - 1)) * TOP_ENTRY.size
        return next(unpack_top(data[at : at + TOP_ENTRY.size], 1))

    async def resident_leaf(self, node: Node, number: int) -> Leaf:
        """A leaf with its entries. Raises MediumError."""
        leaf = await self.leaf(node, number)
        while not leaf.resident:
            if node.map.loaded:
                await self.make_resident(node, [number])
                leaf = await self.leaf(node, number)  # the map may have been unloaded meanwhile
                continue
            version = node.map.version
            read = functools.partial(self._source.entries, leaf)
            try:
                entries = await self._workers.run(read)
            except MediumError as error:
                if node.map.version != version:
                    leaf = await self.leaf(node, number)
                    continue
                raise self._told(node, error) from error
            if not leaf.resident:
                self._hold(node, leaf, entries)
        return leaf

    def _told(self, node: Node, error: MediumError) -> MediumError:
        text = str(error)
        # Else its pages have been given up while they were read, or it was told.
        if self._family.nodes.get(node.id) is node and text not in self._told_texts:
            if len(self._told_texts) >= MAX_TOLD:
                self._told_texts.clear()
            self._told_texts.add(text)
            _LOG.error("%s; what it maps cannot be used, the rest can; run a check", text)
        return MediumError(text)

    async def see(self, node: Node, first: int, last: int) -> View:
        """The leaves of these indexes of a sealed snapshot, resident; ``node.seen`` has them too, for as long as the
        cache lets it. Raises MediumError."""
        found: View = {}
        numbers = range(first >> LEAF_SHIFT, (last >> LEAF_SHIFT) + 1)
        version = -1
        while version != node.map.version:  # else what was read first was replaced meanwhile
            version = node.map.version
            for number in numbers:
                leaf = node.seen.get(number)
                if leaf is None:
                    leaf = await self.resident_leaf(node, number)
                    if version != node.map.version:
                        break
                    if number not in node.seen:
                        self._show(node.seen, number, leaf)
                found[number] = leaf
        return found

    def _show(self, view: View, number: int, leaf: Leaf) -> None:
        view[number] = leaf
        self._seen.append((view, number))
        while len(self._seen) > self._cached_leaves:
            oldest, at = self._seen.popleft()
            oldest.pop(at, None)


def _chain(node: Node) -> Iterator[Node]:
    """A node, and those that a change of it is carried down to."""
    yield node
    while node.kind is NodeKind.SNAPSHOT and node.children:
        node = node.children[0]
        yield node
