"""Offloaded copies: ranges copied from device to device inside the engine because a host asked for it.

Unlike the copy loop of clones and mirrors (``copy_job.py``), the source may be live, the target is in use, ranges begin
and end anywhere, and nothing is read back: these are a host's own reads and writes, only done here.

Inside one volume family no data moves: where a store can share chunks (``VolumeStore.share``), whole chunks of the
target are made to refer to the source's, and only the edges are copied. For that the source has to be frozen; of a live
volume a hidden snapshot is taken for the time of the copy, if the range is worth its syncs.

Invariants:

* Data moves in pieces of at most ``PIECE_BYTES``, and at most ``MAX_PIECES`` of them are in hand, however many copies
  run. After each piece the loop serves others.
* A piece is an ordinary write of its target: ordered, journaled and mirrored like any other.
* Ranges of one device may overlap: the target receives what the source held before the copy.
* What reads zero is not moved: the target gets a hole, or zeroes where the source has them written.
* Whatever changes the target happens inside the caller's ``hold`` of that range, and nothing else does: an error inside
  it is the target's, any other the source's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import EngineError, NotFound
from engine.names import OFFLOAD_PREFIX
from engine.stores import Extent, ExtentState
from engine.units import KIB, MIB, align_down, align_up
from engine.volume import Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from engine.stores import BlockDevice, Frozen, VolumeStore

    Hold = Callable[[int, int], AbstractAsyncContextManager[None]]
    Progress = Callable[[int], None]

log = logging.getLogger(__name__)

PIECE_BYTES = 512 * KIB
"""More than the native store writes in the loop: its workers write a piece, in calls of 256 KiB. (Pieces of 256 KiB,
written in the loop, made 4 KiB reads beside a copy wait three times as long; larger ones gain nothing.)"""

MAX_PIECES = 8
"""In hand at once in the whole process: 4 MiB of buffers, two cores and the disk kept busy."""

WINDOW_BYTES = 64 * MIB
"""How far ahead the source is asked for its extents; also the longest range that is zeroed in one step."""


SHARE_LIVE_BYTES = 4 * MIB
"""From here on a live volume is frozen to share its chunks: copying less takes no longer than the snapshot's syncs."""


class Offload:
    """The copies of one process, which share its buffers."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MAX_PIECES)

    async def copy(
        self,
        source: BlockDevice,
        start: int,
        target: BlockDevice,
        at: int,
        length: int,
        *,
        hold: Hold,
        progress: Progress,
    ) -> None:
        """Copy ``length`` bytes from ``start`` of the source to ``at`` of the target, all whole sectors.

        Args:
            hold: entered with (offset, length) around every change of the target; may raise to refuse it.
            progress: told after each piece how many bytes from the beginning of the range are in place, without gaps;
                may raise to end the copy there.

        Raises:
            EngineError: whatever a device raises. Pieces before it are in place.
        """
        shared = _shareable(target, at, length, at - start)
        if shared.length and isinstance(target, Volume):
            async with _frozen(source, target, shared.length) as frozen:
                if frozen is not None:
                    job = _Move(frozen, target, at - start, hold, progress, at)
                    await self._move(job, Extent(at, shared.offset - at))
                    end = await _share(job, frozen, target, shared)
                    await self._move(job, Extent(end, at + length - end))
                    return
        await self._move(_Move(source, target, at - start, hold, progress, at), Extent(at, length))

    async def _move(self, job: _Move, extent: Extent) -> None:
        """Copy an extent of the target piece by piece."""
        start = extent.offset - job.shift
        backwards = job.source is job.target and start < extent.offset < start + extent.length
        done = 0
        for window in _windows(extent.length, backwards=backwards):
            extents = await job.source.extents(start + window.offset, window.length)
            for piece in _pieces(extents, job.shift, backwards=backwards):
                async with self._room:
                    await _move_piece(job, piece)
                done += piece.length
                if done == extent.length or not backwards:
                    job.progress(extent.offset + done - job.at)
                else:
                    job.progress(0)
                await asyncio.sleep(0)

    async def zero(self, target: BlockDevice, at: int, length: int, *, hold: Hold, progress: Progress) -> None:
        """Make a range of the target read zero by giving its space back. As ``copy``."""
        for window in _windows(length, backwards=False):
            async with hold(at + window.offset, window.length):
                await target.discard(at + window.offset, window.length)
            progress(window.end)
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Move:
    """A copy: ``shift`` is from an offset of the source to that of the target, which begins at ``at``."""

    source: BlockDevice
    target: BlockDevice
    shift: int
    hold: Hold
    progress: Progress
    at: int


async def _move_piece(job: _Move, piece: Extent) -> None:
    data = memoryview(b"")
    if piece.state is ExtentState.DATA:
        data = memoryview(bytearray(piece.length))
        await job.source.read(piece.offset, data)
    to = piece.offset + job.shift
    async with job.hold(to, piece.length):
        if piece.state is ExtentState.DATA:
            await job.target.write(to, data)
        elif piece.state is ExtentState.ZERO:
            await job.target.write_zeroes(to, piece.length)
        else:
            await job.target.discard(to, piece.length)


# --- sharing --------------------------------------------------------------------------------------------------------


def _shareable(target: BlockDevice, at: int, length: int, shift: int) -> Extent:
    """The part of a range of the target that whole chunks cover, if source and target have them in step."""
    unit = target.head.store.capabilities.share_unit if isinstance(target, Volume) else 0
    if not unit or shift % unit:
        return Extent(at, 0)
    first, end = align_up(at, unit), align_down(at + length, unit)
    return Extent(first, max(0, end - first))


@contextlib.asynccontextmanager
async def _frozen(source: BlockDevice, target: Volume, length: int) -> AsyncIterator[Frozen | None]:
    """The source as something that the target can share chunks of; None: data has to move."""
    store = target.head.store
    if not isinstance(source, Volume):
        known = (snapshot for snapshot in store.snapshots() if snapshot is source)
        yield None if target.taps else next(known, None)
    elif source.head.store is not store or length < SHARE_LIVE_BYTES or target.taps:
        yield None
    else:
        snapshot = await _snapshot(store, source)
        try:
            yield snapshot
        finally:
            if snapshot is not None:
                await _delete(store, snapshot)


async def _snapshot(store: VolumeStore, volume: Volume) -> Frozen | None:
    try:
        return await store.snapshot(volume.head, f"{OFFLOAD_PREFIX}{uuid.uuid4()}", hidden=True)
    except EngineError as error:
        log.info("%s is copied by moving its data: %s", volume.name, error)
        return None


async def _delete(store: VolumeStore, snapshot: Frozen) -> None:
    try:
        await store.delete_snapshot(snapshot)
    except EngineError as error:  # it stays until the pool is opened the next time
        log.warning("snapshot %s of a copy: %s", snapshot.name, error)


async def _share(job: _Move, source: Frozen, target: Volume, extent: Extent) -> int:
    """Returns the offset up to which the extent is shared: its end, unless the store has no room for more, or the
    source is gone (which whoever reads it is told)."""
    at = extent.offset
    while at < extent.end:
        step = min(WINDOW_BYTES, extent.end - at)
        async with job.hold(at, step):
            try:
                shared = await target.share(source, at - job.shift, at, step)
            except NotFound:
                break
        at += shared
        job.progress(at - job.at)
        if shared < step:
            break
        await asyncio.sleep(0)
    return at


def _windows(length: int, *, backwards: bool) -> Iterator[Extent]:
    starts = range(0, length, WINDOW_BYTES)
    for offset in reversed(starts) if backwards else starts:
        yield Extent(offset, min(WINDOW_BYTES, length - offset))


def _pieces(extents: list[Extent], shift: int, *, backwards: bool) -> Iterator[Extent]:
    """What is moved in one step each. Data ends at multiples of ``PIECE_BYTES`` of the target, which is ``shift``
    away, so that whole chunks are written there."""
    for extent in reversed(extents) if backwards else extents:
        if extent.state is not ExtentState.DATA:
            yield extent
            continue
        edge = align_down(extent.offset + shift, PIECE_BYTES) - shift
        cuts = [extent.offset, *range(edge + PIECE_BYTES, extent.end, PIECE_BYTES), extent.end]
        pieces = [Extent(low, high - low) for low, high in itertools.pairwise(cuts)]
        yield from reversed(pieces) if backwards else pieces
