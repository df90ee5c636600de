"""A clone's own copies of what it inherits from the volume that it was cloned from, and how it leaves that volume.

*Inherited* is every claim of the clone's tree (``adoption.py``: the clone, its snapshots, clones of them) that was born
up to the generation of the snapshot it was cloned from: the nearest node above that is another volume's. All of it is
in the map of the topmost node of the tree. ``Inherited`` shows those ranges as source and target of one copy: what is
read is what the topmost node inherits, what is published are new chunks, for all nodes of the tree at once (ADOPT). The
map says what is done, so it is resumed by asking again, and needs no ledger.

Rules kept here:

* **Heads are in use meanwhile.** A copy holds no place in the order of writes. It counts at its publication, in one
  step: only where the topmost node still inherits (a chunk of a head's own is written in place under an entry that
  stays; so is one that was inherited until a node above was merged away), and no write of a head below that inherits
  there is under way (which was planned by the old entry), nor is that head shut. Else the chunk goes back; a later pass
  copies it, or finds it redirected. What is inherited at an index never changes, it only ends: of a partial chunk and
  its base the base may be left. So a copy of more than that stands for it, too.
* What was found zero becomes ZERO, but a chunk of zeroes where it is the base of a partial chunk. What was written is
  published after it was verified, by the copy loop.
* **A node leaves its parent only when it inherits nothing** (SEPARATE): then no node below does either, and its own
  deadlist names what the parent's side alone holds. The parent's chunks need not wait for it any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import InvalidState, NotSupported, OutOfRange
from engine.stores import Extent, ExtentState
from engine.stores.place import Place
from engine.tvol import layout
from engine.tvol.adoption import distinct, tree_of, views
from engine.tvol.bulk import NativeReadLease, segments_of
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT
from engine.tvol.device import ZEROES, NativeDevice, add_extent, runs_of
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, PARTIAL, ZERO, NodeKind, RecordType
from engine.tvol.nodes import node_pages
from engine.tvol.pages import MARGIN, WRITE_STEP
from engine.tvol.partials import CHUNK_MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from engine.stores import ReadLease
    from engine.tvol.adoption import View
    from engine.tvol.core import Core
    from engine.tvol.head import NativeHead
    from engine.tvol.housekeeping import Housekeeper
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

    Words = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]
    HeadOf = Callable[[int], NativeHead | None]

LEAVES_A_TURN = 16
"""Leaves of a map that are looked at in one turn of the loop: some 0.3 ms."""
PUBLISH_STEP = 64
"""Indexes that one record is about at most, done in one turn of the loop."""


def origin_of(node: Node) -> Node | None:
    """The nearest node above that is another volume's: what a clone was cloned from."""
    above = node.parent
    while above is not None and above.volume_id == node.volume_id:
        above = above.parent
    return above


def top_of(node: Node) -> Node | None:
    """The topmost node of a clone's tree; None: it is no clone."""
    while node.parent is not None:
        if node.parent.volume_id != node.volume_id:
            return node
        node = node.parent
    return None


def inherits(family: Family, entries: Words, generation: int) -> Flags:
    """Which entries have a claim that was born up to ``generation``."""
    found = np.zeros(len(entries), bool)
    places = np.flatnonzero(entries >= FIRST_CHUNK_ENTRY)
    claims = family.claims.of_entries(entries[places])
    places = np.concatenate([places, places[entries[places] >= PARTIAL]])  # the bases come last
    found[places[family.claims.births_of(claims) <= generation]] = True
    return found


async def find_inherited(core: Core, head: NativeHead, head_of: HeadOf) -> Inherited | None:
    """What a clone's tree inherits from another volume now; None when that is nothing."""
    top = top_of(head.node)
    if top is None:
        return None
    plan: dict[int, npt.NDArray[np.uint8]] = {}
    floor, count = top.floor, 0
    for number in range(top.map.count):
        leaf = await core.maps.resident_leaf(top, number)
        found = inherits(core.family, leaf.array, floor)
        if found.any():
            plan[number] = np.packbits(found)
            count += int(np.count_nonzero(found))
        if not number % LEAVES_A_TURN:
            await asyncio.sleep(0)
    return Inherited(core, head, head_of, plan, top.size_bytes, count) if plan else None


class Inherited:
    """A device that has as data what a clone's tree inherited when this was made, to be copied onto itself
    (``engine.stores.BulkSource`` and ``BulkTarget``), as a blank target."""

    read_only = False

    def __init__(
        self,
        core: Core,
        head: NativeHead,
        head_of: HeadOf,
        plan: dict[int, npt.NDArray[np.uint8]],
        size_bytes: int,
        count: int,
    ) -> None:
        self.size_bytes = size_bytes
        self.inherited_bytes: int = count * core.chunk_bytes
        self._core = core
        self._head = head
        self._head_of = head_of
        self._plan = plan
        """Of each leaf a bit for each entry."""

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        """The states of a range as planned; whole chunks, but for the device's end."""
        found: list[Extent] = []
        shift, end = self._core.chunk_shift, offset + length
        nothing = np.zeros(LEAF_ENTRIES // 8, np.uint8)
        at = offset >> shift
        while at << shift < end:
            number = at >> LEAF_SHIFT
            stop = min(-(-end >> shift), (number + 1) << LEAF_SHIFT)
            bits = np.unpackbits(self._plan.get(number, nothing))[at & LEAF_MASK :][: stop - at]
            for start, count, data in runs_of(bits.astype(np.uint32)):
                begin = max(offset, (at + start) << shift)
                state = ExtentState.DATA if data else ExtentState.HOLE
                add_extent(found, begin, min(end, (at + start + count) << shift), state)
            at = stop
        return found

    async def _top(self, first: int, count: int) -> Node:
        """The topmost node, in a step in which its map may be looked at. Raises OutOfRange: the volume has become
        smaller; InvalidState: it is no clone any more."""
        maps = self._core.maps
        while True:
            self._core.check()
            top = top_of(self._head.node)
            if top is None:
                raise InvalidState(f"volume {self._head.name!r}", "a volume of its own", "a linked clone")
            if (first + count - 1) << self._core.chunk_shift >= top.size_bytes:
                raise OutOfRange(first << self._core.chunk_shift, count << self._core.chunk_shift, top.size_bytes)
            if maps.ready(top, first, first + count - 1):
                return top
            await maps.fetch(top, first, first + count - 1)

    async def lease_read(self, offset: int, length: int, /) -> ReadLease:
        """What the topmost node inherits; where it inherits nothing any more, nothing will be published."""
        unit = self._core.chunk_bytes
        first, count = offset // unit, -(-length // unit)
        return NativeReadLease(self._core, self._segments(await self._top(first, count), offset, length))

    def _segments(self, top: Node, offset: int, length: int) -> list[tuple[int, int, int]]:
        core, unit = self._core, self._core.chunk_bytes
        reader = NativeDevice(core, top)
        found: list[tuple[int, int, int]] = []
        for at in range(0, length, unit):
            size = min(unit, length - at)
            entry = top.map.lookup((offset + at) // unit)
            chunk = entry & CHUNK_MASK
            if entry & 0xFFFF_FFFF >= PARTIAL and core.family.births.born[chunk] > top.floor:
                found.append((at, size, core.family.claims.base_of(chunk) * unit))  # the tree's own, over its base
            else:
                here = reader.segments(top.map.leaves, offset + at, size)
                found += [(at + start, part, position) for start, part, position in here]
        return found

    async def lease_write(self, offset: int, length: int, /) -> _Lease:
        """New chunks for an extent. Raises OutOfRange (the volume has become smaller), OutOfSpace, StoreFailed."""
        core, unit = self._core, self._core.chunk_bytes
        assert offset % unit == 0
        first, count = offset // unit, -(-length // unit)
        top = await self._top(first, count)
        if offset + length > top.size_bytes:
            raise OutOfRange(offset, length, top.size_bytes)
        lease = _Lease(core, self._head, self._head_of, first, count)
        try:
            for number in range(count):
                whole = (number + 1) * unit <= length
                chunk, blank = core.allocator.take(whole=whole)
                lease.chunks.append(chunk)
                reads_zero = blank and core.allocator.holes_read_zero
                if not whole and not reads_zero:  # what is behind the device's end reads zero when it grows
                    await zero_chunk(core, chunk)
            lease.place_chunks()
        except BaseException:
            lease.release()
            raise
        return lease

    async def read(self, offset: int, view: memoryview, /) -> None:
        lease = await self.lease_read(offset, len(view))
        try:
            await self._core.env.workers.run(lambda: lease.read(0, view))
        finally:
            lease.release()

    async def flush(self) -> None:
        await self._core.flush()

    # What a copy from leases onto a blank target has no use for.

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        return False

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        return False

    def end_pass(self) -> None:
        """Nothing is written by passes."""

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        raise NotSupported("inherited data is copied, not written")

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        raise NotSupported("inherited data is copied, not written")

    async def discard(self, offset: int, length: int, /) -> None:
        raise NotSupported("inherited data is copied, not written")


async def zero_chunk(core: Core, chunk: int) -> None:
    zeroes = memoryview(ZEROES)[: core.chunk_bytes]
    await core.env.workers.run(lambda: core.data.write((zeroes,), chunk << core.chunk_shift))


class _Lease:
    """``engine.stores.WriteLease`` of new chunks for indexes that inherit."""

    def __init__(self, core: Core, head: NativeHead, head_of: HeadOf, first: int, count: int) -> None:
        self.unit_bytes = core.chunk_bytes
        self.chunks: list[int] = []
        self.place = Place(core.data, [])
        self.read = self.place.read
        self.write = self.place.write
        self._core = core
        self._head = head
        self._head_of = head_of
        self._first = first
        self._has_data = np.zeros(count, bool)
        self._operation = core.begin_operation()  # what the entries name stays while it is read

    def place_chunks(self) -> None:
        self.place.segments = segments_of(self.chunks, self.unit_bytes)

    async def publish(self, written: Sequence[tuple[int, int]], /) -> None:
        """What was written becomes the tree's, and ZERO what was not, since that was found zero; where it may still."""
        for at, length in written:
            self._has_data[at // self.unit_bytes : -(-(at + length) // self.unit_bytes)] = True
        start = 0
        while start < len(self._has_data):
            in_leaf = LEAF_ENTRIES - (self._first + start & LEAF_MASK)
            stop = min(len(self._has_data), start + PUBLISH_STEP, start + in_leaf)
            await self._publish_some(start, stop)
            start = stop
            await asyncio.sleep(0)

    async def _publish_some(self, start: int, stop: int) -> None:
        """Indexes of one leaf, in one record."""
        core, number = self._core, self._first + start >> LEAF_SHIFT
        while True:
            core.check()
            top = top_of(self._head.node)
            if top is None or number >= top.map.count:
                return
            pages = _pages_for(core.family, top)
            if not core.maps.ready_below(top, number):
                await core.maps.fetch_below(top, number)
                continue
            if not core.ready_for_tree_record(pages + MARGIN):  # what gives space back may need that
                await core.make_room(pages=pages)
                continue
            core.end_pass()
            places = np.arange(start, stop)
            looked = views(core.family, top, number, (self._first + places & LEAF_MASK).astype(np.intp))
            good = _is_inherited(looked[0]) & self._is_still(looked, places)
            bases = np.logical_or.reduce([view.base for view in distinct(looked)])
            zeroes = places[good & bases & ~self._has_data[start:stop]]
            if not len(zeroes):
                break
            for at in zeroes.tolist():
                await zero_chunk(core, self.chunks[at])
            self._has_data[zeroes] = True
        items = self._items(places[good].tolist())
        if items:
            core.log(RecordType.ADOPT, layout.pack_map(top.id, items))
            for at in places[good & self._has_data[start:stop]].tolist():
                self.chunks[at] = 0

    def _is_still(self, looked: list[View], places: npt.NDArray[np.intp]) -> Flags:
        """Where nobody goes by an old entry."""
        still = np.ones(len(places), bool)
        for view in looked:
            if view.node.kind is NodeKind.HEAD:
                head = self._head_of(view.node.id)
                for at in np.flatnonzero(view.holds).tolist():
                    still[at] &= head is None or head.may_redirect(self._first + int(places[at]))
        return still

    def _items(self, places: list[int]) -> bytes:
        """Those of an ADOPT record."""
        found: list[list[int]] = []
        for at in places:
            index, entry = self._first + at, self.chunks[at] if self._has_data[at] else ZERO
            if found and sum(found[-1][:2]) == index and self._goes_on(found[-1], entry):
                found[-1][1] += 1
            else:
                found.append([index, 1, entry])
        return b"".join(layout.MAP_ITEM.pack(*item) for item in found)

    def _goes_on(self, item: list[int], entry: int) -> bool:
        _, count, first = item
        return entry == first if first == ZERO else entry == first + count

    def release(self) -> None:
        self._core.allocator.give_back(sorted(chunk for chunk in self.chunks if chunk))
        self._core.end_operation(self._operation)


def _is_inherited(view: View) -> Flags:
    """Where the topmost node inherits."""
    return view.holds


def _pages_for(family: Family, top: Node) -> int:
    """More pages than an ADOPT of one leaf adds to the next checkpoint."""
    pages = WRITE_STEP
    for node in tree_of(top):
        pages += 1  # its leaf
        if node.id not in family.touched:
            pages += node_pages(node) + family.table.largest_pages
    return pages


async def separate(core: Core, head: NativeHead, keeper: Housekeeper) -> bool:
    """Have a volume leave the one that it was cloned from, durably, if it may. Whether it depends on none any more.

    A deleted snapshot may be left with one child then. That merge waits for the record as for a DELETE: the child may
    write in place to what the volume would inherit again after a power loss. False: its tree still inherits something.
    """
    while (top := top_of(head.node)) is not None:
        generation, origin = core.family.generation, top.parent
        if not await _inherits_nothing(core, top):
            return False
        await core.make_room(reserved=True)
        if core.family.generation == generation and top.parent is origin:
            _log_separation(core, keeper, top)
            core.maps.unload_below(top)
            keeper.wake()
    await core.flush()
    return True


def _log_separation(core: Core, keeper: Housekeeper, node: Node) -> None:
    keeper.deleted_seq = core.log(RecordType.SEPARATE, layout.NODE_ID.pack(node.id))


async def _inherits_nothing(core: Core, node: Node) -> bool:
    for number in range(node.map.count):
        if inherits(core.family, (await core.maps.resident_leaf(node, number)).array, node.floor).any():
            return False
        if not number % LEAVES_A_TURN:
            await asyncio.sleep(0)
    return True
