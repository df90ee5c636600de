"""The steps of the copy loop for one strip: read, digest, write, read back, digest, compare.

Two ways with one result. Where both devices can lease extents, all steps of a strip happen in one worker call, and the
loop only plans and publishes; a hop to a worker costs more than copying 256 KiB. Everywhere else each read and write is
a coroutine of its device.

Nothing here decides what a difference means or what becomes of zeroes: ``Moved`` tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import IntegrityError
from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES, ZERO_LEAF, ZERO_LEAF_DIGEST, leaf_digests
from engine.stores import BulkSource, BulkTarget, Extent, ExtentState
from engine.units import KIB, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.files import Workers
    from engine.stores import BlockDevice, ReadLease, WriteLease

PIECE_BYTES = 256 * KIB
"""Largest read and write: bigger ones disturb the foreground and gain nothing (PERFORMANCE section 2)."""


@dataclass(slots=True)
class Moved:
    """What became of a strip: the digests of its leaves, and the ranges that are zero and were not written."""

    digests: bytes = b""
    zeroes: list[Extent] = field(default_factory=list)
    written: list[Extent] = field(default_factory=list)
    equal_bytes: int = 0

    @property
    def written_bytes(self) -> int:
        return sum(extent.length for extent in self.written)

    def add(self, other: Moved) -> None:
        self.digests += other.digests
        self.zeroes += other.zeroes
        self.written += other.written
        self.equal_bytes += other.equal_bytes


class Steps:
    """See the module. ``workers`` None: by coroutines only."""

    def __init__(
        self, source: BlockDevice, target: BlockDevice, *, compare_first: bool, workers: Workers | None
    ) -> None:
        self._source = source
        self._target = target
        self._compare_first = compare_first
        self._workers = workers
        self._bulk = workers is not None and isinstance(source, BulkSource) and isinstance(target, BulkTarget)

    async def move(self, strip: Extent, data: memoryview, back: memoryview) -> Moved:
        """Bring a strip over and verify it.

        Args:
            data, back: buffers of ``PIECE_BYTES``, the caller's own until this returns.

        Raises:
            IntegrityError: the target returned other bytes. EngineError: whatever the stores raise.
        """
        if self._bulk:
            moved = await self._move_in_one_call(strip, data, back)
            if moved is not None:
                return moved
        moved = Moved()
        for piece in _pieces(strip):
            moved.add(await self._move_piece(piece, data[: piece.length], back[: piece.length]))
        return moved

    async def _move_piece(self, piece: Extent, data: memoryview, back: memoryview) -> Moved:
        await self._source.read(piece.offset, data)
        digests = leaf_digests(data)
        if self._compare_first:
            await self._target.read(piece.offset, back)
            if leaf_digests(back) == digests:
                return Moved(digests, equal_bytes=piece.length)
        moved = Moved(digests)
        for run in runs_of(piece, data, digests, LEAF_BYTES):
            if run.state is not ExtentState.DATA:
                moved.zeroes.append(run)
                continue
            within, length = run.offset - piece.offset, run.length
            await self._target.write(run.offset, data[within : within + length])
            await self._target.read(run.offset, back[:length])
            _compare(run, piece, digests, back[:length])
            moved.written.append(run)
        return moved

    async def _move_in_one_call(self, strip: Extent, data: memoryview, back: memoryview) -> Moved | None:
        """All steps in one worker call. None: the target wants single writes here."""
        assert self._workers is not None
        assert isinstance(self._source, BulkSource)
        assert isinstance(self._target, BulkTarget)
        present = self._present()
        to = await self._target.lease_write(strip.offset, strip.length)
        if to is None:
            return None
        leases: list[ReadLease | WriteLease] = [to]
        try:
            source = self._source.lease_read(strip.offset, strip.length)
            leases.append(source)
            target = None
            if present is not None:
                target = present.lease_read(strip.offset, strip.length)
                leases.append(target)
            moved = await self._workers.run(_all_steps(strip, source, target, to, data, back))
            await to.publish([(run.offset - strip.offset, run.length) for run in moved.written])
            return moved
        finally:
            for lease in leases:
                lease.release()

    def _present(self) -> BulkSource | None:
        """The target as something to compare with before writing."""
        return self._target if self._compare_first and isinstance(self._target, BulkSource) else None


def _all_steps(
    strip: Extent,
    source: ReadLease,
    target: ReadLease | None,
    to: WriteLease,
    data: memoryview,
    back: memoryview,
) -> Callable[[], Moved]:
    """The call for the worker. ``target``: what is there already, if it is to be compared first."""

    def call() -> Moved:
        moved = Moved()
        for piece in _pieces(strip):
            at, view = piece.offset - strip.offset, data[: piece.length]
            source.read(at, view)
            digests = leaf_digests(view)
            moved.digests += digests
            if target is not None:
                target.read(at, back[: piece.length])
                if leaf_digests(back[: piece.length]) == digests:
                    moved.equal_bytes += piece.length
                    continue
            for run in runs_of(piece, view, digests, to.unit_bytes):
                if run.state is not ExtentState.DATA:
                    moved.zeroes.append(run)
                    continue
                within, length = run.offset - piece.offset, run.length
                to.write(run.offset - strip.offset, view[within : within + length])
                to.read(run.offset - strip.offset, back[:length])
                _compare(run, piece, digests, back[:length])
                moved.written.append(run)
        return moved

    return call


def _pieces(strip: Extent) -> Iterator[Extent]:
    for offset in range(strip.offset, strip.end, PIECE_BYTES):
        yield Extent(offset, min(PIECE_BYTES, strip.end - offset))


def runs_of(piece: Extent, data: memoryview, digests: bytes, unit: int) -> list[Extent]:
    """The piece divided into what holds data and what is zero, in whole units (of the target, at least a leaf).

    The digest says that a leaf is zero, and the bytes confirm it.
    """
    if ZERO_LEAF_DIGEST not in digests:
        return [piece]
    unit = max(unit, LEAF_BYTES)
    runs: list[Extent] = []
    start = piece.offset
    while start < piece.end:
        end = min(align_down(start, unit) + unit, piece.end)
        zero = all(
            bytes(leaf) == ZERO_LEAF[: len(leaf)]
            for leaf in (
                data[at : at + LEAF_BYTES] for at in range(start - piece.offset, end - piece.offset, LEAF_BYTES)
            )
        )
        state = ExtentState.ZERO if zero else ExtentState.DATA
        if runs and runs[-1].state is state:
            runs[-1] = Extent(runs[-1].offset, end - runs[-1].offset, state)
        else:
            runs.append(Extent(start, end - start, state))
        start = end
    return runs


def zero_digests(extent: Extent) -> bytes:
    """The digests of a leaf-aligned range of zeroes; its end may be the device's."""
    whole, tail = divmod(extent.length, LEAF_BYTES)
    return ZERO_LEAF_DIGEST * whole + (leaf_digests(memoryview(bytes(tail))) if tail else b"")


def _compare(run: Extent, piece: Extent, digests: bytes, back: memoryview) -> None:
    first = (run.offset - piece.offset) // LEAF_BYTES
    count = align_up(run.length, LEAF_BYTES) // LEAF_BYTES
    expected = digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]
    actual = leaf_digests(back)
    if actual != expected:
        raise mismatch(run, expected, actual)


def mismatch(extent: Extent, expected: bytes, actual: bytes) -> IntegrityError:
    """The error for the first leaf of an extent whose digests differ."""
    for at in range(0, len(expected), DIGEST_BYTES):
        want, got = expected[at : at + DIGEST_BYTES], actual[at : at + DIGEST_BYTES]
        if want != got:
            offset = extent.offset + at // DIGEST_BYTES * LEAF_BYTES
            length = min(LEAF_BYTES, extent.end - offset)
            return IntegrityError("copy target", offset, length, want.hex(), got.hex())
    raise AssertionError("no difference to report")
