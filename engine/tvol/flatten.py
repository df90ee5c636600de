"""A clone's own copies of what it inherits from the volume that it was cloned from, and how it leaves that volume.

*Inherited* is every claim of a head that was born up to the generation of the snapshot it was cloned from: the nearest
node above it that is another volume's. ``Inherited`` shows those ranges as source and target of one copy: what is read
is the head's content, what is published are new chunks of its own. The map says what is done, so it is resumed by
asking again, and needs no ledger.

Rules kept here:

* **The head is in use meanwhile.** A copy holds no place in the order of writes. It counts at its publication, in one
  step: only where the entry is the one that was read and still inherits (a chunk of the head's own, which a write has
  put there since the pass was planned, is written in place under an entry that stays), nothing was frozen or rolled
  back since, no node above was merged away (then what was inherited may be the head's own, and written in place), no
  write is under way (which was planned by the old entry) and the head is not shut. Else the chunk goes back; a later
  pass copies it, or finds it redirected.
* The entry of a partial chunk says nothing of when its pages were written. One that is the volume's own over a base
  that it inherits is no part of a copy, but is filled, in the order of writes (``NativeHead.settle``).
* What was found zero becomes ZERO. What was written is published after it was verified, by the copy loop.
* **A node leaves its parent only when it inherits nothing** (SEPARATE): then no node below does either, and its own
  deadlist names what the parent's side alone holds. The parent's chunks need not wait for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import NotSupported, OutOfRange
from engine.stores import Extent, ExtentState
from engine.stores.place import Place
from engine.tvol import layout
from engine.tvol.bulk import PUBLISH_STEP, PUBLISH_TURN, segments_of
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT
from engine.tvol.device import ZEROES, add_extent, runs_of
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, PARTIAL, ZERO, RecordType

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from engine.stores import ReadLease
    from engine.tvol.core import Core
    from engine.tvol.head import NativeHead
    from engine.tvol.housekeeping import Housekeeper
    from engine.tvol.tree import Family, Node

    Words = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]

LEAVES_A_TURN = 16
"""Leaves of a map that are looked at in one turn of the loop: some 0.3 ms."""


def origin_of(node: Node) -> Node | None:
    """The nearest node above that is another volume's: what a clone was cloned from."""
    above = node.parent
    while above is not None and above.volume_id == node.volume_id:
        above = above.parent
    return above


def inherits(family: Family, entries: Words, generation: int) -> Flags:
    """Which entries have a claim that was born up to ``generation``."""
    found = np.zeros(len(entries), bool)
    places = np.flatnonzero(entries >= FIRST_CHUNK_ENTRY)
    claims = family.claims.of_entries(entries[places])
    places = np.concatenate([places, places[entries[places] >= PARTIAL]])  # the bases come last
    found[places[family.claims.births_of(claims) <= generation]] = True
    return found


def _is_inherited(family: Family, entry: int, generation: int) -> bool:
    """Whether nothing of what an entry names is written in place."""
    entries = np.array([entry]).astype(np.uint32)
    return bool((inherits(family, entries, generation) & ~_own_partials(family, entries, generation)).all())


def _own_partials(family: Family, entries: Words, generation: int) -> Flags:
    """Which entries are partial chunks that were born after ``generation``."""
    found = entries >= PARTIAL
    found[found] = family.births.of(entries[found] - np.uint32(PARTIAL)) > generation
    return found


async def find_inherited(core: Core, head: NativeHead) -> Inherited | None:
    """What a head inherits from another volume now; None when that is nothing."""
    origin = origin_of(head.node)
    if origin is None:
        return None
    plan: dict[int, npt.NDArray[np.uint8]] = {}
    for number in range(head.node.map.count):
        leaf = await core.maps.resident_leaf(head.node, number)
        found = inherits(core.family, leaf.array, origin.generation)
        partial = found & _own_partials(core.family, leaf.array, origin.generation)
        for at in np.flatnonzero(partial).tolist():
            await _settle(head, (number << LEAF_SHIFT) + at)
        found &= ~partial
        if found.any():
            plan[number] = np.packbits(found)
        if not number % LEAVES_A_TURN:
            await asyncio.sleep(0)
    return Inherited(core, head, plan, origin.generation) if plan else None


async def _settle(head: NativeHead, index: int) -> None:
    with contextlib.suppress(OutOfRange):  # the volume has become smaller
        await head.settle(index)


class Inherited:
    """A device that has as data what a head inherited when this was made, to be copied onto itself
    (``engine.stores.BulkSource`` and ``BulkTarget``), as a blank target."""

    read_only = False

    def __init__(self, core: Core, head: NativeHead, plan: dict[int, npt.NDArray[np.uint8]], generation: int) -> None:
        self.size_bytes = head.size_bytes
        self._generation = generation
        """Of the snapshot that the head was cloned from."""
        self._core = core
        self._head = head
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

    async def lease_read(self, offset: int, length: int, /) -> ReadLease:
        """The head's content: where it is not what ``lease_write`` saw, nothing will be published."""
        return await self._head.lease_read(offset, length)

    async def lease_write(self, offset: int, length: int, /) -> _Lease:
        """New chunks for an extent. Raises OutOfRange (the volume has become smaller), OutOfSpace, StoreFailed."""
        core, unit = self._core, self._core.chunk_bytes
        core.check()
        if offset + length > self._head.size_bytes:
            raise OutOfRange(offset, length, self._head.size_bytes)
        assert offset % unit == 0
        first, count = offset // unit, -(-length // unit)
        while not core.maps.ready(self._head.node, first, first + count - 1):
            await core.maps.fetch(self._head.node, first, first + count - 1)
        lookup = self._head.node.map.lookup
        entries = [lookup(first + number) for number in range(count)]
        lease = _Lease(core, self._head, first, entries, self._generation)
        try:
            for number in range(count):
                whole = (number + 1) * unit <= length
                chunk, reads_zero = core.allocator.take(whole=whole)
                lease.chunks.append(chunk)
                if not whole and not reads_zero:  # what is behind the device's end reads zero when it grows
                    await self._zero(chunk)
            lease.place_chunks()
        except BaseException:
            lease.release()
            raise
        return lease

    async def _zero(self, chunk: int) -> None:
        core = self._core
        zeroes = memoryview(ZEROES)[: core.chunk_bytes]
        await core.env.workers.run(lambda: core.data.write((zeroes,), chunk << core.chunk_shift))

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._head.read(offset, view)

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


class _Lease:
    """``engine.stores.WriteLease`` of new chunks for indexes that inherit."""

    def __init__(self, core: Core, head: NativeHead, first: int, entries: list[int], origin: int) -> None:
        self.unit_bytes = core.chunk_bytes
        self.chunks: list[int] = []
        self.place = Place(core.data, [])
        self.read = self.place.read
        self.write = self.place.write
        self._core = core
        self._head = head
        self._first = first
        self._entries = entries
        self._origin = origin
        self._generation = core.family.generation
        self._floor = head.node.floor
        self._operation = core.begin_operation()  # what the entries name stays while it is read

    def place_chunks(self) -> None:
        self.place.segments = segments_of(self.chunks, self.unit_bytes)

    async def publish(self, written: Sequence[tuple[int, int]], /) -> None:
        """What was written becomes the head's, and ZERO what was not, since that was found zero; where it may still."""
        core, unit = self._core, self.unit_bytes
        is_written = {number for at, length in written for number in range(at // unit, -(-(at + length) // unit))}
        for number in range(len(self._entries)):
            if number % PUBLISH_STEP == 0:
                core.end_pass()
                if not core.ready_for_change():
                    await core.make_room()
                core.check()
            if not self._is_as_read(number):
                continue
            if number in is_written:
                core.publish(self._head.node, self._first + number, self.chunks[number])
                self.chunks[number] = 0
            else:
                core.publish(self._head.node, self._first + number, ZERO)
            if number % PUBLISH_TURN == PUBLISH_TURN - 1:
                core.end_pass()
                await asyncio.sleep(0)
        core.end_pass()

    def _is_as_read(self, number: int) -> bool:
        """Whether the copy still stands for what the head has there, and nobody goes by the old entry."""
        head, index = self._head, self._first + number
        return (
            _is_inherited(self._core.family, self._entries[number], self._origin)
            and self._core.family.generation == self._generation
            and head.node.floor == self._floor
            and head.may_redirect(index)
            and head.node.map.lookup(index) == self._entries[number]
        )

    def release(self) -> None:
        self._core.allocator.give_back(sorted(chunk for chunk in self.chunks if chunk))
        self._core.end_operation(self._operation)


async def separate(core: Core, head: NativeHead, keeper: Housekeeper) -> bool:
    """Have a volume leave the one that it was cloned from, durably, if it may. Whether it depends on none any more.

    A deleted snapshot may be left with one child then. That merge waits for the record as for a DELETE: the child may
    write in place to what the volume would inherit again after a power loss. False: its snapshots, or it itself, still
    inherit something.
    """
    while (origin := origin_of(head.node)) is not None:
        generation, node = core.family.generation, head.node
        while node.parent is not origin:
            assert node.parent is not None
            node = node.parent
        if not await _inherits_nothing(core, node):
            return False
        await core.make_room(reserved=True)
        if core.family.generation == generation and node.parent is origin:
            _log_separation(core, keeper, node)
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
