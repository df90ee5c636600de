"""Where the bytes of a leased extent are, for whoever has no maps: a worker thread, or the copying process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from engine.units import KIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    Segment = tuple[int, int, int]
    """Start within the extent, bytes, byte position in the file; a negative position: these bytes are zero."""

PIECE_BYTES = 256 * KIB
"""What one write call writes: larger ones delay the loop's own writes to the same file (STORE section 6)."""


class ReadWrite(Protocol):
    """The part of a data file that a place uses."""

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None: ...
    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None: ...


F = TypeVar("F", bound=ReadWrite)


class Place(Generic[F]):
    """An extent as segments of one file, without gaps. ``at`` counts from the extent's start.

    To be read in the order given: a later segment may lie over a part of an earlier one. What is written has none such.
    """

    __slots__ = ("file", "segments")

    def __init__(self, file: F, segments: Sequence[Segment]) -> None:
        self.file = file
        self.segments = segments

    def read(self, at: int, view: memoryview, /) -> None:
        """In any thread: fill ``view``."""
        end = at + len(view)
        for start, size, position in self.segments:
            first, last = max(at, start), min(end, start + size)
            if first >= last:
                continue
            part = view[first - at : last - at]
            if position < 0:
                part[:] = bytes(last - first)
            else:
                self.file.read_into((part,), position + first - start)

    def write(self, at: int, data: memoryview, /) -> None:
        """In any thread: write ``data``, in pieces. No segment of it is zero."""
        end = at + len(data)
        for start, size, position in self.segments:
            first, last = max(at, start), min(end, start + size)
            assert position >= 0
            for begin in range(first, last, PIECE_BYTES):
                stop = min(last, begin + PIECE_BYTES)
                self.file.write((data[begin - at : stop - at],), position + begin - start)
