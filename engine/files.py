"""What the engine needs from the machine: files, worker threads and time, as protocols with their real ones.

The only module that calls ``os`` on data files, and the only place where ``OSError`` becomes an engine error.
Simulated implementations live in ``tests/support``; everything else in the engine gets these by constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")


class BlockFile(Protocol):
    """One open data file. Methods block unless said otherwise; ``fd``-level order is the caller's business."""

    path: Path

    def size(self) -> int: ...
    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Fill all buffers; what lies beyond the end of the file, or in a hole, is zero."""
        ...

    def read_now(self, buffers: Sequence[memoryview], offset: int, /) -> bool:
        """Like ``read_into`` from the page cache only: False when that would block or came short."""
        ...

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Write all of it. Raises OutOfSpace, MediumError."""
        ...

    def sync_data(self) -> None:
        """fdatasync. Raises MediumError; the caller makes that sticky."""
        ...

    def punch(self, offset: int, length: int, /) -> None: ...
    def allocate(self, offset: int, length: int, /) -> None:
        """Reserve space so that a later write there cannot meet OutOfSpace."""
        ...

    def truncate(self, size: int, /) -> None: ...
    def close(self) -> None: ...


class FileSystem(Protocol):
    """Makes and opens data files."""

    def create(self, path: Path, /) -> BlockFile:
        """A new empty file, locked for this process. Raises AlreadyExists."""
        ...

    def open(self, path: Path, /, *, writable: bool) -> BlockFile:
        """Raises NotFound, InUse (another process has it for writing), PermissionDenied."""
        ...

    def remove(self, path: Path, /) -> None: ...
    def sync_directory(self, path: Path, /) -> None: ...
    def boot_id(self) -> str:
        """Identity of this boot: the page cache of an earlier process survives only within it."""
        ...


class Workers(Protocol):
    """A bounded pool of threads for calls that release the GIL."""

    async def run(self, call: Callable[[], T], /) -> T: ...


class Clock(Protocol):
    """Time, injected so that tests need no sleep."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float:
        """CLOCK_BOOTTIME: goes on through a suspend."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...
