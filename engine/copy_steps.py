"""The steps of the copy loop for one strip, with its places at both ends: read, digest, write, read back, compare.

Three ways with one result. A target behind a wire brings the strip over itself (``engine.stores.StripTarget``). Where
both devices can lease extents, a ``Mover`` does all steps of a strip in one go, and the loop only plans and publishes;
a hop to a worker costs more than copying 256 KiB. Where only the target can (an import), the strip is read whole, and
the mover does the rest. Everywhere else each read and write is a coroutine of its device. What is done with the bytes
is in ``engine.strips``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.hash_tree import LEAF_BYTES, leaf_digests
from engine.stores import BulkSource, BulkTarget, Extent, ExtentState, StripTarget
from engine.strips import Moved, compare, pieces, runs_of
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.movers import Mover
    from engine.stores import BlockDevice, ReadLease, WriteLease


READ_BYTES = MIB
"""What a device that cannot lease is asked for at once, and written at once: a hop to a thread for each."""


class _InMemory:
    """``ReadLease`` of what was read already. ``give_back``: the memory is free again."""

    place = None

    def __init__(self, data: memoryview, give_back: Callable[[], None]) -> None:
        self._data = data
        self.release = give_back

    def read(self, at: int, view: memoryview, /) -> None:
        view[:] = self._data[at : at + len(view)]


class Steps:
    """See the module. ``mover`` None: by coroutines only."""

    def __init__(self, source: BlockDevice, target: BlockDevice, *, compare_first: bool, mover: Mover | None) -> None:
        self._source = source
        self._target = target
        self._compare_first = compare_first
        self._idle: list[bytearray] = []
        """Memory for strips that are not in work."""
        self._bulk: tuple[Mover, BulkTarget, BulkSource | None] | None = None
        """What moves strips in one go: mover, target, and the target as something to compare with first."""
        if mover is not None and isinstance(target, BulkTarget):
            present = target if compare_first and isinstance(target, BulkSource) else None
            self._bulk = mover, target, present

    async def move(self, strip: Extent) -> Moved:
        """Bring a strip over and verify it.

        Raises IntegrityError (the target returned other bytes), and whatever the stores raise.
        """
        if isinstance(self._target, StripTarget) and isinstance(self._source, BulkSource):
            return await self._target.bring(strip, self._source, compare_first=self._compare_first)
        if self._bulk is not None:
            moved = await self._move_in_one_go(strip, *self._bulk)
            if moved is not None:
                return moved
        moved, memory = Moved(), self._memory(2 * READ_BYTES)
        data, back = memoryview(memory)[:READ_BYTES], memoryview(memory)[READ_BYTES : 2 * READ_BYTES]
        for piece in pieces(strip, READ_BYTES):
            moved.add(await self._move_piece(piece, data[: piece.length], back[: piece.length]))
        self._idle.append(memory)
        return moved

    def _memory(self, length: int) -> bytearray:
        memory = self._idle.pop() if self._idle else bytearray()
        return memory if len(memory) >= length else bytearray(length)

    async def _move_piece(self, piece: Extent, data: memoryview, back: memoryview) -> Moved:
        await self._source.read(piece.offset, data)
        digests, there = leaf_digests(data), b""
        if self._compare_first:
            await self._target.read(piece.offset, back)
            there = leaf_digests(back)
        runs = runs_of(piece, data, digests, LEAF_BYTES, there)
        moved = Moved(digests, equal_bytes=piece.length - sum(run.length for run in runs))
        for run in runs:
            if run.state is not ExtentState.DATA:
                moved.zeroes.append(run)
                continue
            within, length = run.offset - piece.offset, run.length
            await self._target.write(run.offset, data[within : within + length])
            await self._target.read(run.offset, back[:length])
            compare(run, piece, digests, back[:length])
            moved.written.append(run)
        return moved

    async def _move_in_one_go(
        self, strip: Extent, mover: Mover, target: BulkTarget, present: BulkSource | None
    ) -> Moved | None:
        """All steps by the mover. None: the target wants single writes here."""
        to = await target.lease_write(strip.offset, strip.length)
        if to is None:
            return None
        leases: list[ReadLease | WriteLease] = [to]
        try:
            leases.append(read := await self._lease(strip))
            before = None
            if present is not None:
                leases.append(before := await present.lease_read(strip.offset, strip.length))
            moved = await mover.move(strip, read, before, to)
            await to.publish([(run.offset - strip.offset, run.length) for run in moved.written])
            return moved
        finally:
            for lease in leases:
                lease.release()

    async def _lease(self, strip: Extent) -> ReadLease:
        if isinstance(self._source, BulkSource):
            return await self._source.lease_read(strip.offset, strip.length)
        memory = self._memory(strip.length)
        data = memoryview(memory)[: strip.length]
        for piece in pieces(Extent(0, strip.length), READ_BYTES):
            await self._source.read(strip.offset + piece.offset, data[piece.offset : piece.end])
        return _InMemory(data, lambda: self._idle.append(memory))
