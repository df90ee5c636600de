"""Reading chunks for anybody but the scrub: one that is marked bad answers ``MediumError``, whoever asks.

While no chunk of the file is bad, ``read_now`` is the file's own method: devices bind it, and nothing is looked up for
a read. The first mark rebinds them (``NativeStore``), and from then on each read costs the look-up of its chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import MediumError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.files import BlockFile


class Payload:
    """The chunks of a file. ``bad``: the set that ``Digests`` keeps; workers only look into it."""

    def __init__(self, file: BlockFile, bad: set[int], chunk_bytes: int) -> None:
        self._file = file
        self._bad = bad
        self._shift = chunk_bytes.bit_length() - 1

    @property
    def read_now(self) -> Callable[[memoryview, int], bool]:
        """``BlockFile.read_now``, or one that declines bad chunks; to be asked for again when a chunk becomes bad."""
        return self._read_now_unless_bad if self._bad else self._file.read_now

    def _read_now_unless_bad(self, view: memoryview, position: int, /) -> bool:
        return self._first_bad(position, len(view)) is None and self._file.read_now(view, position)

    def read_into(self, buffers: Sequence[memoryview], position: int, /) -> None:
        """As ``BlockFile.read_into``. Raises MediumError for a bad chunk."""
        if self._bad:
            self._require_good(position, sum(map(len, buffers)))
        self._file.read_into(buffers, position)

    def require_good(self, segments: list[tuple[int, int, int]]) -> None:
        """Raises MediumError when one of (start, bytes, position or -1) is in a bad chunk."""
        if self._bad:
            for _, length, position in segments:
                if position >= 0:
                    self._require_good(position, length)

    def _require_good(self, position: int, length: int) -> None:
        chunk = self._first_bad(position, length)
        if chunk is not None:
            raise MediumError(f"chunk {chunk} of {self._file.path} is marked bad: its data has rotted")

    def _first_bad(self, position: int, length: int) -> int | None:
        first, last = position >> self._shift, (position + max(length, 1) - 1) >> self._shift
        return next((chunk for chunk in range(first, last + 1) if chunk in self._bad), None)
