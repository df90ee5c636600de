"""The steps of the copy loop for one strip, with its places at both ends: read, digest, write, read back, compare.

Three ways with one result. A target behind a wire brings the strip over itself (``engine.stores.StripTarget``). Where
both devices can lease extents, a ``Mover`` does all steps of a strip in one go, and the loop only plans and publishes;
a hop to a worker costs more than copying 256 KiB. Everywhere else each read and write is a coroutine of its device.
What is done with the bytes is in ``engine.strips``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.hash_tree import LEAF_BYTES, leaf_digests
from engine.stores import BulkSource, BulkTarget, Extent, ExtentState, StripTarget
from engine.strips import Buffers, Moved, compare, pieces, runs_of

if TYPE_CHECKING:
    from engine.movers import Mover
    from engine.stores import BlockDevice, ReadLease, WriteLease


class Steps:
    """See the module. ``mover`` None: by coroutines only."""

    def __init__(self, source: BlockDevice, target: BlockDevice, *, compare_first: bool, mover: Mover | None) -> None:
        self._source = source
        self._target = target
        self._compare_first = compare_first
        self._idle: list[Buffers] = []
        self._bulk: tuple[Mover, BulkSource, BulkTarget, BulkSource | None] | None = None
        """What moves strips in one go: mover, source, target, and the target as something to compare with first."""
        if mover is not None and isinstance(source, BulkSource) and isinstance(target, BulkTarget):
            present = target if compare_first and isinstance(target, BulkSource) else None
            self._bulk = mover, source, target, present

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
        moved, buffers = Moved(), self._idle.pop() if self._idle else Buffers()
        for piece in pieces(strip):
            moved.add(await self._move_piece(piece, buffers.data[: piece.length], buffers.back[: piece.length]))
        self._idle.append(buffers)
        return moved

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
        self, strip: Extent, mover: Mover, source: BulkSource, target: BulkTarget, present: BulkSource | None
    ) -> Moved | None:
        """All steps by the mover. None: the target wants single writes here."""
        to = await target.lease_write(strip.offset, strip.length)
        if to is None:
            return None
        leases: list[ReadLease | WriteLease] = [to]
        try:
            leases.append(read := await source.lease_read(strip.offset, strip.length))
            before = None
            if present is not None:
                leases.append(before := await present.lease_read(strip.offset, strip.length))
            moved = await mover.move(strip, read, before, to)
            await to.publish([(run.offset - strip.offset, run.length) for run in moved.written])
            return moved
        finally:
            for lease in leases:
                lease.release()
