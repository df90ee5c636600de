"""What is done with the bytes of one strip: read, digest, write, read back, digest, compare.

Pure of loops, threads and stores: it runs in worker threads and in the copying process (``engine.copy_worker``) alike.
Nothing here decides what a difference means or what becomes of zeroes: ``Moved`` tells.

Rule: **a unit of the target is judged, and written, as a whole.** It lies in one part. Where a part ended inside of it,
one half could be written and the other not (zero, or equal to what is there): of a new chunk of the target that half
would be what somebody else left there, or the written half be published by nobody.
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

LARGE_PART_BYTES, SMALL_PART_BYTES = 512 * KIB, 128 * KIB
"""What is read and digested before it is written: most of it in one go where a copy is alone, less beside others. The
copying process hands over to the thread that writes for it once for each part, and who shares a core with that thread
waits so long: longest 1 % of 4 KiB reads beside a full clone, one core for both, with parts of 512 KiB 1.6 ms, 256 KiB
0.95, 128 KiB 0.55, alone 0.2. Copies alone: 1.6 GiB/s with 512 KiB, 1.05 with 128."""


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
    """Memory for one strip at a time: a part to be written, a piece that is read back."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(LARGE_PART_BYTES))
        self.back = memoryview(bytearray(PIECE_BYTES))


def move_strip(
    strip: Extent,
    source: Source,
    present: Source | None,
    to: Target,
    buffers: Buffers,
    part_bytes: int = SMALL_PART_BYTES,
) -> Moved:
    """Bring a strip over and verify it.

    Args:
        strip: begins with a unit of the target.
        part_bytes: whole leaves, ``LARGE_PART_BYTES`` at most; a part has a unit of the target at least.
        present: what is at the target already, if it is to be compared first and left where it is equal.

    Raises:
        IntegrityError: the target returned other bytes. And what the three extents raise.
    """
    moved = Moved()
    for part in pieces(strip, _whole_units(part_bytes, to.unit_bytes)):
        at, data = part.offset - strip.offset, buffers.data[: part.length]
        digests = _read(source, at, data)
        there = b"" if present is None else _digests(present, at, part.length, buffers.back)
        runs = runs_of(part, data, digests, to.unit_bytes, there)
        moved.digests += digests
        moved.equal_bytes += part.length - sum(run.length for run in runs)
        for run in runs:
            if run.state is not ExtentState.DATA:
                moved.zeroes.append(run)
                continue
            within = run.offset - part.offset
            to.write(run.offset - strip.offset, data[within : within + run.length])
            for piece in pieces(run):
                back = buffers.back[: piece.length]
                to.read(piece.offset - strip.offset, back)
                compare(piece, part, digests, back)
            moved.written.append(run)
    return moved


def _whole_units(part_bytes: int, unit: int) -> int:
    """Both are powers of two."""
    return max(part_bytes, unit)


def _read(source: Source, at: int, data: memoryview) -> bytes:
    """Fill ``data`` in pieces; the digests of its leaves."""
    digests = []
    for piece in pieces(Extent(0, len(data))):
        view = data[piece.offset : piece.end]
        source.read(at + piece.offset, view)
        digests.append(leaf_digests(view))
    return b"".join(digests)


def digest_strip(length: int, source: Source, buffers: Buffers) -> bytes:
    """The digests of the leaves of an extent of ``length`` bytes that begins with a leaf."""
    return _digests(source, 0, length, buffers.back)


def _digests(source: Source, at: int, length: int, buffer: memoryview) -> bytes:
    digests = []
    for piece in pieces(Extent(at, length)):
        view = buffer[: piece.length]
        source.read(piece.offset, view)
        digests.append(leaf_digests(view))
    return b"".join(digests)


def pieces(strip: Extent, longest: int = PIECE_BYTES) -> Iterator[Extent]:
    """The strip, divided."""
    for offset in range(strip.offset, strip.end, longest):
        yield Extent(offset, min(longest, strip.end - offset))


def runs_of(part: Extent, data: memoryview, digests: bytes, unit: int, there: bytes = b"") -> list[Extent]:
    """The part divided into what holds data and what is zero, in whole units (of the target, at least a leaf).

    The digest says that a leaf is zero, and the bytes confirm it. ``there``: the digests of what the target has; units
    that are equal are left out.
    """
    if ZERO_LEAF_DIGEST not in digests and not there:
        return [part]
    unit = max(unit, LEAF_BYTES)
    runs: list[Extent] = []
    start = part.offset
    while start < part.end:
        end = min(align_down(start, unit) + unit, part.end)
        first, last = start - part.offset, end - part.offset
        cells = slice(first // LEAF_BYTES * DIGEST_BYTES, align_up(last, LEAF_BYTES) // LEAF_BYTES * DIGEST_BYTES)
        if not there or there[cells] != digests[cells]:
            leaves = (data[at : min(at + LEAF_BYTES, last)] for at in range(first, last, LEAF_BYTES))
            zero = all(bytes(leaf) == ZERO_LEAF[: len(leaf)] for leaf in leaves)
            state = ExtentState.ZERO if zero else ExtentState.DATA
            if runs and runs[-1].state is state and runs[-1].end == start:
                runs[-1] = Extent(runs[-1].offset, end - runs[-1].offset, state)
            else:
                runs.append(Extent(start, end - start, state))
        start = end
    return runs


def zero_digests(extent: Extent) -> bytes:
    """The digests of a leaf-aligned range of zeroes; its end may be the device's."""
    whole, tail = divmod(extent.length, LEAF_BYTES)
    return ZERO_LEAF_DIGEST * whole + (leaf_digests(memoryview(bytes(tail))) if tail else b"")


def compare(run: Extent, part: Extent, digests: bytes, back: memoryview) -> None:
    """Raises IntegrityError when what was read ``back`` of a run has other digests than it has in its part."""
    first = (run.offset - part.offset) // LEAF_BYTES
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
