"""What is done with the bytes of one strip: read, digest, write, read back, digest, compare.

Pure of loops, threads and stores: it runs in worker threads and in the copying process (``engine.copy_worker``) alike.
Nothing here decides what a difference means or what becomes of zeroes: ``Moved`` tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.errors import IntegrityError
from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES, ZERO_LEAF, ZERO_LEAF_DIGEST, leaf_digests
from engine.stores import Extent, ExtentState
from engine.units import KIB, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES = 256 * KIB
"""Largest read and write: bigger ones disturb the foreground and gain nothing (PERFORMANCE section 2)."""


class Source(Protocol):
    """An extent to read; ``at`` counts from its start."""

    def read(self, at: int, view: memoryview, /) -> None: ...


class Target(Source, Protocol):
    """An extent to write in whole units."""

    @property
    def unit_bytes(self) -> int: ...
    def write(self, at: int, data: memoryview, /) -> None: ...


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


class Buffers:
    """Two pieces of memory, for one strip at a time."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(PIECE_BYTES))
        self.back = memoryview(bytearray(PIECE_BYTES))


def move_strip(strip: Extent, source: Source, present: Source | None, to: Target, buffers: Buffers) -> Moved:
    """Bring a strip over and verify it.

    Args:
        present: what is at the target already, if it is to be compared first and left where it is equal.

    Raises:
        IntegrityError: the target returned other bytes. And what the three extents raise.
    """
    moved = Moved()
    for piece in pieces(strip):
        at, data, back = piece.offset - strip.offset, buffers.data[: piece.length], buffers.back
        source.read(at, data)
        digests = leaf_digests(data)
        moved.digests += digests
        if present is not None:
            present.read(at, back[: piece.length])
            if leaf_digests(back[: piece.length]) == digests:
                moved.equal_bytes += piece.length
                continue
        for run in runs_of(piece, data, digests, to.unit_bytes):
            if run.state is not ExtentState.DATA:
                moved.zeroes.append(run)
                continue
            within, length = run.offset - piece.offset, run.length
            to.write(run.offset - strip.offset, data[within : within + length])
            to.read(run.offset - strip.offset, back[:length])
            compare(run, piece, digests, back[:length])
            moved.written.append(run)
    return moved


def digest_strip(length: int, source: Source, buffers: Buffers) -> bytes:
    """The digests of the leaves of an extent of ``length`` bytes that begins with a leaf."""
    digests = b""
    for piece in pieces(Extent(0, length)):
        view = buffers.data[: piece.length]
        source.read(piece.offset, view)
        digests += leaf_digests(view)
    return digests


def pieces(strip: Extent) -> Iterator[Extent]:
    """The strip, divided."""
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


def compare(run: Extent, piece: Extent, digests: bytes, back: memoryview) -> None:
    """Raises IntegrityError when what was read ``back`` of a run has other digests than it has in its piece."""
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
