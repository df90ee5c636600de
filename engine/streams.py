"""Files as streams, through aiofiles: images that are imported or exported, and control files.

``StreamFile`` is one open file, read and written at any offset by several coroutines at once: it keeps a few handles,
each with a position of its own, and gives a caller the one that stands at its offset already, so that a run of reads
costs one hop to a thread each. Data files of the store are ``engine.files``' business.

A call that is cancelled ends with its CancelledError only when the thread is done: nobody takes its buffer or closes
its file under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import aiofiles
import aiofiles.os

from engine.errors import InvalidArgument, NotFound
from engine.files import translate
from engine.stores import Extent, ExtentState
from engine.units import SECTOR_SIZE, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from aiofiles.threadpool.binary import AsyncFileIO

T = TypeVar("T")
Mode: TypeAlias = Literal["rb", "r+b", "x+b"]
Opener: TypeAlias = "Callable[[str, int], int]"

HANDLES_MAX = 8
"""Of one file: more readers than this wait."""

_fsync = aiofiles.os.wrap(os.fsync)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; cancelled, wait for its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # taken, so that asyncio does not report it as forgotten
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """OSError about ``path`` as the engine's error."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("file", str(path)) from None
    except OSError as error:
        raise translate(error, str(path)) from error


def _opener(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO would otherwise keep a thread until somebody comes to its other end.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


async def remove(path: Path) -> None:
    """Raises NotFound, PermissionDenied."""
    with translated(path):
        await aiofiles.os.unlink(path)


async def sync_directory(path: Path) -> None:
    """Names made or removed in a folder are durable afterwards. Raises MediumError."""

    def call() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    with translated(path):
        await aiofiles.os.wrap(call)()


class StreamFile:
    """See the module. Made by ``open`` and ``create``; ended by ``close``."""

    def __init__(self, path: Path, mode: Mode, first: AsyncFileIO) -> None:
        self.path = path
        self._mode = mode
        self._descriptor: int = first.fileno()  # the first handle's, which stays open until ``close``
        self._idle: list[tuple[int, AsyncFileIO]] = [(0, first)]
        self._slots = asyncio.Semaphore(HANDLES_MAX)
        self._knows_holes = True

    @classmethod
    async def open(cls, path: Path, *, writable: bool = False) -> StreamFile:
        """An existing file or block device. Raises NotFound, PermissionDenied, InvalidArgument (a folder, a FIFO)."""
        mode: Mode = "r+b" if writable else "rb"
        return await cls._open(path, mode, mode)

    @classmethod
    async def create(cls, path: Path, size_bytes: int, *, private: bool = False) -> StreamFile:
        """A new file, all hole, durably empty; one of that name is gone. Raises OutOfSpace, PermissionDenied.

        ``private``: for its owner only.
        """
        with contextlib.suppress(NotFound):
            await remove(path)
        file = await cls._open(path, "x+b", "r+b", _private_opener if private else _opener)
        try:
            await file.truncate(size_bytes)
            await file.sync()
        except BaseException:
            await file.close()
            raise
        return file

    @classmethod
    async def _open(cls, path: Path, first_mode: Mode, mode: Mode, opener: Opener | None = None) -> StreamFile:
        file = cls(path, mode, await to_its_end(_handle(path, first_mode, opener or _opener)))
        try:
            kind = (await file.stat()).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise InvalidArgument(f"{path} is neither a file nor a block device")
        except BaseException:
            await file.close()
            raise
        return file

    async def close(self) -> None:
        """No call is under way."""
        idle, self._idle = self._idle, []
        for _, handle in idle:
            await to_its_end(handle.close())

    async def stat(self) -> os.stat_result:
        """As of the open file, whatever its name says now."""
        with translated(self.path):
            return await aiofiles.os.stat(self._descriptor)

    async def size(self) -> int:
        """In bytes; of a block device its capacity."""

        async def call(handle: AsyncFileIO) -> int:
            return await handle.seek(0, os.SEEK_END)

        return await self._with_handle(0, call)

    async def identity(self) -> str:
        """Changes whenever the file is another one, or was written to."""
        found = await self.stat()
        return f"{self.path} {found.st_dev}:{found.st_ino} {found.st_size} {found.st_mtime_ns}"

    async def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; what is beyond the end of the file is zero. Raises MediumError."""

        async def call(handle: AsyncFileIO) -> int:
            done = 0
            while done < len(view):
                count = await handle.readinto(view[done:])
                if not count:
                    view[done:] = bytes(len(view) - done)
                    break
                done += count
            return offset + done

        await self._with_handle(offset, call)

    async def read(self, offset: int, length: int) -> bytes:
        """As ``read_into``, into new bytes. The caller has bounded ``length``."""
        data = bytearray(length)
        await self.read_into(offset, memoryview(data))
        return bytes(data)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of it. Raises OutOfSpace, MediumError."""
        view = memoryview(data)

        async def call(handle: AsyncFileIO) -> int:
            done = 0
            while done < len(view):
                done += await handle.write(view[done:])
            return offset + done

        await self._with_handle(offset, call)

    async def truncate(self, size_bytes: int) -> None:
        async def call(handle: AsyncFileIO) -> int:
            await handle.truncate(size_bytes)
            return -1

        await self._with_handle(0, call)

    async def sync(self) -> None:
        """Everything written is durable when it returns."""

        async def call(handle: AsyncFileIO) -> int:
            await _fsync(handle.fileno())
            return -1

        await self._with_handle(0, call)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Which parts of a range the host's file system holds, in whole sectors, merged, in order, without gaps."""
        found: list[Extent] = []

        async def call(handle: AsyncFileIO) -> int:
            at, end = offset, offset + length
            while at < end:
                data = await self._next(handle, at, end, os.SEEK_DATA)
                data = max(at, align_down(data, SECTOR_SIZE))
                if data > at:
                    found.append(Extent(at, data - at, ExtentState.HOLE))
                if data >= end:
                    break
                hole = await self._next(handle, data, end, os.SEEK_HOLE)
                hole = min(align_up(max(hole, data + 1), SECTOR_SIZE), end)
                found.append(Extent(data, hole - data))
                at = hole
            return -1

        await self._with_handle(offset, call)
        return found

    async def _next(self, handle: AsyncFileIO, at: int, end: int, whence: int) -> int:
        """Where data or a hole begins, at most ``end``. A file without holes, such as a device, is all data."""
        if self._knows_holes:
            try:
                return min(await handle.seek(at, whence), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole follows
                    return end
                self._knows_holes = False
        return end if whence == os.SEEK_HOLE else at

    async def _with_handle(self, offset: int, call: Callable[[AsyncFileIO], Coroutine[Any, Any, int]]) -> int:
        """Run ``call`` with a handle that stands at ``offset``; it returns the position where it leaves it."""

        async def run() -> int:
            async with self._slots:
                at, handle = await self._take(offset)
                position = -1  # nowhere, should this fail
                try:
                    if at != offset:
                        await handle.seek(offset)
                    position = await call(handle)
                    return position
                finally:
                    self._idle.append((position, handle))

        with translated(self.path):
            return await to_its_end(run())

    async def _take(self, offset: int) -> tuple[int, AsyncFileIO]:
        for index, (at, _) in enumerate(self._idle):
            if at == offset:
                return self._idle.pop(index)
        if self._idle:
            return self._idle.pop()
        # By its descriptor: the name may be another file's by now.
        return 0, await _handle(Path(f"/proc/self/fd/{self._descriptor}"), self._mode)


async def _handle(path: Path, mode: Mode, opener: Opener | None = None) -> AsyncFileIO:
    with translated(path):
        try:
            return await aiofiles.open(path, mode, buffering=0, opener=opener or _opener)
        except IsADirectoryError:
            raise InvalidArgument(f"{path} is a folder") from None
