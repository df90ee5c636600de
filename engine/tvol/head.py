"""Writing of a head: the coroutines, and what the store asks of it. The calls that never wait are in ``fast_write.py``.

Who waits for whom, and which snapshot a write belongs to: ``epoch.py``. Where a write goes: ``plan.py``. A new chunk,
and a page that is new in a partial one, is published after its data was written. If writing fails, the new chunks go
back and nothing was published.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from engine.errors import InvalidArgument, OutOfSpace
from engine.tvol import layout
from engine.tvol.bulk import NativeWriteLease
from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_MASK, LEAF_SHIFT
from engine.tvol.claims import names_chunk
from engine.tvol.device import SECTOR_MASK, ZEROES
from engine.tvol.epoch import Admission, Epoch
from engine.tvol.fast_write import FastWriter
from engine.tvol.layout import (
    EMPTY,
    FIRST_CHUNK_ENTRY,
    LEAF_ENTRIES,
    MAX_MAP_ITEMS,
    MAX_VOLUME_CHUNKS,
    ZERO,
    NodeFlag,
    RecordType,
)
from engine.units import KIB, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.stores import VolumeStore, WriteLease
    from engine.tvol.core import Core
    from engine.tvol.nodes import Node
    from engine.tvol.plan import Plan

PIECE_BYTES = 256 * KIB
"""What one worker call writes: larger ones delay the loop's own writes to the same file."""

ATOMIC_WRITE_BYTES = PIECE_BYTES
"""Longest write of ``write_atomic``: one plan, one worker call, one map record."""
assert ATOMIC_WRITE_BYTES // (64 * KIB) + 1 <= MAX_MAP_ITEMS


class NativeHead(FastWriter):
    """A writable node."""

    read_only = False

    def __init__(self, core: Core, node: Node, store: VolumeStore) -> None:
        super().__init__(core, node)
        self._store = store
        self._epoch = Epoch(node)
        self._shut_by = 0
        """Operations that hold the head's writes; the gate opens when the last one has ended."""
        core.on_tree_change.append(self.refresh)
        core.on_failure.append(self.refresh)

    @property
    def store(self) -> VolumeStore:
        """The open file that this is a node of."""
        return self._store

    @property
    def staging(self) -> bool:
        """Whether this is the hidden staging area of its volume."""
        return bool(self._node.flags & NodeFlag.STAGING)

    @property
    def write_cache(self) -> bool:
        """False: every write is durable before it is acknowledged."""
        return self._write_cache

    @write_cache.setter
    def write_cache(self, on: bool) -> None:
        self._write_cache = on
        self.refresh()

    def retire(self, reason: str) -> None:
        super().retire(reason)
        if self._gate:
            self._gate.set()  # whoever waits finds the device gone
            self._gate = None
        self._core.on_tree_change.remove(self.refresh)
        self._core.on_failure.remove(self.refresh)
        self.refresh()

    # --- admission ----------------------------------------------------------------------------------------------

    async def _admitted(self, offset: int, length: int) -> None:
        """Wait while the head is shut for a rollback or a staging commit, then check the extent."""
        self._check_extent(offset, length)
        while self._gate:
            await self._gate.wait()
            self._check_extent(offset, length)
        self._core.check()

    async def _turn(self, first: int, last: int) -> Admission:
        """Take a place in the order for chunk indexes first..last, in this step of the loop, and wait until all earlier
        ones that overlap have ended. ``_leave`` must follow."""
        earlier = self._overlapping(first, last)
        admission = Admission(first, last, self._epoch, self._core.begin_operation())
        self._admissions.append(admission)
        self._epoch.writers += 1
        try:
            for other in earlier:
                await other.done.wait()
        except BaseException:
            self._leave(admission)
            raise
        return admission

    def _leave(self, admission: Admission) -> None:
        self._admissions.remove(admission)
        admission.done.set()
        admission.epoch.leave()
        self._core.end_operation(admission.operation)

    @asynccontextmanager
    async def holding(self, offset: int, length: int) -> AsyncIterator[Epoch]:
        """The place of a write to a range that is not empty, for another way of changing it. Yields what to publish
        in: the epoch's node, asked anew after each wait. What was changed is durable at the end without write cache.
        """
        await self._admitted(offset, length)
        admission = await self._turn(offset >> self._shift, (offset + length - 1) >> self._shift)
        try:
            yield admission.epoch
        finally:
            self._leave(admission)
        if not self._write_cache:
            await self._core.flush()

    # --- the coroutines -----------------------------------------------------------------------------------------

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        """Write whole sectors; acknowledged when it returns.

        Raises OutOfRange, OutOfSpace (nothing of the failing 256 KiB piece is visible), MediumError, StoreFailed.
        """
        await self._admitted(offset, len(data))
        if len(data):
            admission = await self._turn(offset >> self._shift, (offset + len(data) - 1) >> self._shift)
            try:
                await self._write_range(admission, offset, data)
            finally:
                self._leave(admission)
        if fua or not self._write_cache:
            await self._core.flush()

    async def _write_range(self, admission: Admission, offset: int, data: memoryview) -> None:
        at, length = 0, len(data)
        while at < length:
            stop = align_down(offset + at + PIECE_BYTES, self._mask + 1) - offset
            stop = min(length, stop if stop > at else at + PIECE_BYTES)
            await self._write_piece(admission, offset + at, data[at:stop])
            at = stop

    async def _write_piece(
        self, admission: Admission, offset: int, data: memoryview, *, redirect: bool = False
    ) -> None:
        """Write, then publish, then journal. Frees space and tries once more when the disk is full."""
        core = self._core
        try:
            plan = await self._write_plan(admission, offset, data, redirect=redirect)
        except OutOfSpace:
            await core.freed_soon()
            admission.operation = core.renewed(admission.operation)  # what it waits for need not wait for it
            if not await core.find_space():
                raise
            plan = await self._write_plan(admission, offset, data, redirect=redirect)
        await self._publish(plan, admission.epoch, together=redirect)

    async def _publish(self, plan: Plan, epoch: Epoch, *, together: bool) -> None:
        """Make what was written the content. ``together``: in one record, which has nothing else in it."""
        core = self._core
        if not plan.published:
            return
        try:
            if not core.ready_for_change():
                await core.make_room()
            core.check()
        except BaseException:
            core.allocator.give_back(plan.taken)
            raise
        if together:
            self._begin_record()
        # In the snapshot, if there was a flip while the data was being written.
        core.publish_planned(epoch.node, plan.published, together=together)
        core.end_pass()

    def _begin_record(self) -> None:
        """What is published next, up to ``end_pass``, shares its record with nothing else and so is in one record."""
        self._core.end_pass()

    async def _write_plan(self, admission: Admission, offset: int, data: memoryview, *, redirect: bool) -> Plan:
        core = self._core
        core.check()
        await self.ready(admission.epoch, offset, len(data))
        plan = self._planner.plan(admission.epoch.node, offset, data, redirect=redirect)
        await self._carry_out(plan)
        return plan

    async def _carry_out(self, plan: Plan) -> None:
        core = self._core
        try:
            await core.env.workers.run(lambda: plan.carry_out(core))
        except BaseException:
            core.allocator.give_back(plan.taken)
            raise

    async def ready(self, epoch: Epoch, offset: int, length: int) -> None:
        """Have what the map says of a range of the epoch's node in memory; it stays there. Raises MediumError."""
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        while not self._core.maps.ready(epoch.node, first, last):
            await self._core.maps.fetch(epoch.node, first, last)

    @property
    def atomic_write_bytes(self) -> int:
        """See ``engine.stores.AtomicTarget``."""
        return ATOMIC_WRITE_BYTES

    async def write_atomic(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        """Write all or nothing, whatever ends it: into new chunks, which one map record publishes. Raises as ``write``.

        The record is replayed or it is not; where it is not, the old chunks hold what they held. That costs a copy of
        the rest of the first and the last chunk.
        """
        assert len(data) <= ATOMIC_WRITE_BYTES
        await self._admitted(offset, len(data))
        if len(data):
            admission = await self._turn(offset >> self._shift, (offset + len(data) - 1) >> self._shift)
            try:
                await self._write_piece(admission, offset, data, redirect=True)
            finally:
                self._leave(admission)
        if fua or not self._write_cache:
            await self._core.flush()

    async def lease_write(self, offset: int, length: int, /) -> WriteLease | None:
        """See ``engine.stores.BulkTarget``. None where single writes do better: parts of chunks, a full disk."""
        if not length or (offset | length) & self._mask:
            return None
        await self._admitted(offset, length)
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        admission = await self._turn(first, last)
        try:
            self._core.check()
            await self.ready(admission.epoch, offset, length)
            chunks = self._take_whole(admission.epoch.node, first, last)
        except OutOfSpace:
            self._leave(admission)
            return None
        except BaseException:
            self._leave(admission)
            raise
        return NativeWriteLease(
            self._core,
            lambda: admission.epoch.node,
            first,
            chunks,
            lambda: self._leave(admission),
            write_through=not self._write_cache,
        )

    def _take_whole(self, node: Node, first: int, last: int) -> list[tuple[int, bool]]:
        """For each index the chunk to overwrite whole, and whether it is a new one. Raises OutOfSpace, taking none."""
        births, floor = self._births.view, node.floor
        entries = [node.map.lookup(index) for index in range(first, last + 1)]
        mine = [entry >= FIRST_CHUNK_ENTRY and births[entry] > floor for entry in entries]
        new = iter(self._core.allocator.take_whole(mine.count(False)))
        return [(entry, False) if own else (next(new), True) for entry, own in zip(entries, mine, strict=True)]

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        """The extent reads zero afterwards: whole chunks by map entries, the edges by writing. Raises as ``write``."""
        await self._clear_range(offset, length, ZERO)
        if fua or not self._write_cache:
            await self._core.flush()

    async def discard(self, offset: int, length: int, /) -> None:
        """The extent reads zero afterwards and its whole chunks are given back. Raises as write."""
        await self._clear_range(offset, length, EMPTY)
        if not self._write_cache:
            await self._core.flush()

    async def _clear_range(self, offset: int, length: int, value: int) -> None:
        await self._admitted(offset, length)
        if not length:
            return
        admission = await self._turn(offset >> self._shift, (offset + length - 1) >> self._shift)
        try:
            await self._clear(admission, offset, offset + length, value)
        finally:
            self._leave(admission)

    async def _clear(self, admission: Admission, offset: int, end: int, value: int) -> None:
        chunk_bytes = self._mask + 1
        size = admission.epoch.node.size_bytes
        whole = align_up(offset, chunk_bytes)
        stop = align_up(end, chunk_bytes) if end == size else align_down(end, chunk_bytes)
        if stop < whole:  # within one chunk
            await self._zero_part(admission, offset, end)
            return
        if offset < whole:
            await self._zero_part(admission, offset, min(whole, end))
        await self._fill(admission, whole >> self._shift, stop >> self._shift, value)
        if stop < end:
            await self._zero_part(admission, stop, end)

    async def _zero_part(self, admission: Admission, offset: int, end: int) -> None:
        """Zero a part of a chunk by writing, unless it reads zero already."""
        if offset >= end:
            return
        await self.ready(admission.epoch, offset, end - offset)
        if names_chunk(admission.epoch.node.map.lookup(offset >> self._shift)):
            await self._write_piece(admission, offset, memoryview(ZEROES)[: end - offset])

    async def _fill(self, admission: Admission, first: int, end: int, value: int) -> None:
        """Set the entries of whole chunks, a leaf at a time."""
        core = self._core
        while first < end:
            count = min(end - first, LEAF_ENTRIES - (first & LEAF_MASK))
            await self.ready(admission.epoch, first << self._shift, count << self._shift)
            node = admission.epoch.node
            if value != EMPTY or node.map.leaves[first >> LEAF_SHIFT] is not ABSENT_LEAF:
                await core.make_room(reserved=True)
                core.publish_fill(admission.epoch.node, first, count, value)
                core.end_pass()
                await asyncio.sleep(0)
            first += count

    async def flush(self) -> None:
        """Everything acknowledged before the call is durable when it returns. Raises StoreFailed."""
        self._check_extent(0, 0)
        await self._core.flush()

    async def resize(self, size_bytes: int, /) -> None:
        """Grow, or shrink and discard what lies beyond; durable when it returns.

        Raises InvalidArgument (not whole sectors, not above 0 or beyond the format's limit), OutOfSpace.
        """
        check_size(size_bytes, self._mask + 1)
        await self._admitted(0, 0)
        core = self._core
        self.shut()  # no write may wait behind this one and then find itself beyond the end
        try:
            admission = await self._turn(0, MAX_VOLUME_CHUNKS)
            try:
                if size_bytes < self._node.size_bytes:
                    await self._clear(admission, size_bytes, self._node.size_bytes, EMPTY)
                await self.ready(admission.epoch, size_bytes, 1)
                await core.make_room(reserved=True)
                core.log(RecordType.RESIZE, layout.RESIZE.pack(self._node.id, size_bytes))
            finally:
                self._leave(admission)
        finally:
            self.reopen()
        await core.flush()

    # --- for the store: flips, and shutting the head ------------------------------------------------------------

    def hand_over_epoch(self, snapshot: Node) -> Epoch:
        """The flip happened: what was admitted belongs to ``snapshot``. Returns the epoch to wait for."""
        epoch = self._epoch
        self._epoch = Epoch(self._node, before=epoch)
        epoch.node = snapshot
        return epoch

    async def earlier_epochs_drained(self) -> None:
        """Wait until no write is in flight that belongs to a snapshot."""
        if self._epoch.before:
            await self._epoch.before.drained()

    @property
    def is_shut(self) -> bool:
        return self._gate is not None

    def shut(self) -> None:
        """Hold all new writes until as many ``reopen``."""
        self._shut_by += 1
        self._gate = self._gate or asyncio.Event()
        self.refresh()

    def reopen(self) -> None:
        self._shut_by -= 1
        if self._gate and not self._shut_by:
            self._gate.set()
            self._gate = None
        self.refresh()

    async def still(self, first: int, last: int) -> bool:
        """When it returns, and in that step only, no write to chunk indexes first..last is in flight. False: the volume
        is not that large any more."""
        end = min((last + 1) << self._shift, self.size_bytes)
        if end <= first << self._shift:
            return False
        await self._admitted(first << self._shift, end - (first << self._shift))
        self._leave(await self._turn(first, last))
        return True

    def may_redirect(self, index: int) -> bool:
        """Whether an entry may get another chunk with the same content, in this step: nobody goes by the one it has."""
        shut = self._closed or self._gate
        return not shut and index << self._shift < self._node.size_bytes and not self._overlapping(index, index)

    async def drained(self) -> None:
        """Wait until no admitted write is left."""
        while self._admissions:
            await self._admissions[-1].done.wait()


def check_size(size_bytes: int, chunk_bytes: int) -> None:
    """Raises InvalidArgument unless a volume may have this size."""
    if size_bytes <= 0 or size_bytes & SECTOR_MASK:
        raise InvalidArgument(f"a volume's size is a positive number of 512-byte sectors, not {size_bytes} bytes")
    if size_bytes > MAX_VOLUME_CHUNKS * chunk_bytes:
        raise InvalidArgument(f"a volume may have {MAX_VOLUME_CHUNKS * chunk_bytes} bytes at most, not {size_bytes}")
