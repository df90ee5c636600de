"""A ``BlockDevice`` straight over one plain file: the fastest honest backend, for measuring the transport alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import OutOfRange
from engine.stores import Extent
from engine.units import SECTOR_SIZE

if TYPE_CHECKING:
    from engine.files import BlockFile, Workers

MAX_WRITE_NOW = 256 * 1024


class FileDevice:
    """Reads and writes go to the page cache in the loop where they can; everything else to workers."""

    def __init__(self, file: BlockFile, workers: Workers) -> None:
        self._file = file
        self._workers = workers
        self.size_bytes = file.size()
        self.read_only = False

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        return self._file.read_now(view, offset)

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        if len(data) > MAX_WRITE_NOW:
            return False
        self._file.write((data,), offset)
        return True

    def end_pass(self) -> None:
        return

    async def read(self, offset: int, view: memoryview, /) -> None:
        self._check(offset, len(view))
        await self._workers.run(lambda: self._file.read_into((view,), offset))

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        self._check(offset, len(data))
        await self._workers.run(lambda: self._file.write((data,), offset))
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        await self.write(offset, memoryview(bytes(length)), fua=fua)

    async def discard(self, offset: int, length: int, /) -> None:
        self._check(offset, length)
        await self._workers.run(lambda: self._file.punch(offset, length))

    async def flush(self) -> None:
        await self._workers.run(self._file.sync_data)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        return [Extent(offset, length)]

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset % SECTOR_SIZE or length % SECTOR_SIZE or offset + length > self.size_bytes:
            raise OutOfRange(offset, length, self.size_bytes)
