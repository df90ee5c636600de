"""Offloaded copies: ranges copied from device to device inside the engine because a host asked for it.

Unlike the copy loop of clones and mirrors (``copy_job.py``), the source may be live, the target is in use, ranges begin
and end anywhere, and nothing is read back: these are a host's own reads and writes, only done here.

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
import itertools
from typing import TYPE_CHECKING

from engine.stores import Extent, ExtentState
from engine.units import KIB, MIB, align_down

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from engine.stores import BlockDevice

    Hold = Callable[[int, int], AbstractAsyncContextManager[None]]
    Progress = Callable[[int], None]

PIECE_BYTES = 256 * KIB
"""Larger pieces disturb the foreground and gain nothing (STORE section 6)."""

MAX_PIECES = 8
"""In hand at once in the whole process: 2 MiB of buffers, two cores and the disk kept busy."""

WINDOW_BYTES = 64 * MIB
"""How far ahead the source is asked for its extents; also the longest range that is zeroed in one step."""


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
        backwards = source is target and start < at < start + length
        done = 0
        for window in _windows(length, backwards=backwards):
            extents = await source.extents(start + window.offset, window.length)
            for piece in _pieces(extents, at - start, backwards=backwards):
                async with self._room:
                    await _move(piece, source, target, piece.offset - start + at, hold)
                done += piece.length
                progress(done if done == length or not backwards else 0)
                await asyncio.sleep(0)

    async def zero(self, target: BlockDevice, at: int, length: int, *, hold: Hold, progress: Progress) -> None:
        """Make a range of the target read zero by giving its space back. As ``copy``."""
        for window in _windows(length, backwards=False):
            async with hold(at + window.offset, window.length):
                await target.discard(at + window.offset, window.length)
            progress(window.end)
            await asyncio.sleep(0)


async def _move(piece: Extent, source: BlockDevice, target: BlockDevice, to: int, hold: Hold) -> None:
    data = memoryview(b"")
    if piece.state is ExtentState.DATA:
        data = memoryview(bytearray(piece.length))
        await source.read(piece.offset, data)
    async with hold(to, piece.length):
        if piece.state is ExtentState.DATA:
            await target.write(to, data)
        elif piece.state is ExtentState.ZERO:
            await target.write_zeroes(to, piece.length)
        else:
            await target.discard(to, piece.length)


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
