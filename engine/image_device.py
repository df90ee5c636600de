"""What the images of every format have in common as devices of the copy loop, and the raw one.

A source is read only, and does not change while it is copied: ``identity`` says afterwards whether that was so. A
target is new, reads zero wherever nothing was written, and is written by nobody else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from engine.errors import InvalidArgument, OutOfRange, WriteProtected
from engine.stores import BlockDevice
from engine.units import SECTOR_SIZE, align_up

if TYPE_CHECKING:
    from pathlib import Path

    from engine.stores import Extent
    from engine.streams import StreamFile


class SourceImage(BlockDevice, Protocol):
    """What is imported. ``name``: for people. ``logical_sector_bytes``: of the disk that it holds."""

    name: str

    @property
    def logical_sector_bytes(self) -> int: ...
    async def identity(self) -> str:
        """Changes whenever this is another image, or was written to."""
        ...

    async def close(self) -> None: ...


class ImageDevice(ABC):
    """A ``BlockDevice`` with nothing to do in the loop; see the module.

    ``size_bytes``: of the disk in the image, in whole sectors.
    """

    def __init__(self, name: str, size_bytes: int, *, read_only: bool) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.read_only = read_only

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        return False

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        return False

    def end_pass(self) -> None:
        """Nothing is ever written in the loop."""

    @abstractmethod
    async def read(self, offset: int, view: memoryview, /) -> None: ...

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        raise WriteProtected(f"{self.name} is open for reading")

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        """Only the copy loop writes to a target, and what reads zero there it never touches."""
        self.check(offset, length, writing=True)

    async def discard(self, offset: int, length: int, /) -> None:
        """As ``write_zeroes``."""
        self.check(offset, length, writing=True)

    async def flush(self) -> None:
        """Of a source there is nothing to flush."""

    @abstractmethod
    async def extents(self, offset: int, length: int, /) -> list[Extent]: ...

    def check(self, offset: int, length: int, *, writing: bool = False) -> None:
        """Raises OutOfRange, WriteProtected."""
        if writing and self.read_only:
            raise WriteProtected(f"{self.name} is open for reading")
        if offset < 0 or offset + length > self.size_bytes:
            raise OutOfRange(offset, length, self.size_bytes)


class RawImage(ImageDevice):
    """A plain file whose byte n is the disk's byte n. Made by ``open`` and ``create``; ended by ``close``.

    A file whose length is not whole sectors reads as if zeroes followed. Holes stay holes, both ways.
    """

    logical_sector_bytes = SECTOR_SIZE

    def __init__(self, file: StreamFile, size_bytes: int, *, read_only: bool) -> None:
        super().__init__(str(file.path), size_bytes, read_only=read_only)
        self._file = file

    @classmethod
    async def open(cls, path: Path) -> RawImage:
        """An existing file or block device, for reading. Raises NotFound, PermissionDenied, InvalidArgument."""
        from engine.streams import StreamFile  # aiofiles: a mirror to a disk does without

        file = await StreamFile.open(path)
        try:
            size = await file.size()
            if not size:
                raise InvalidArgument(f"{path} is empty: a volume has at least one sector")
        except BaseException:
            await file.close()
            raise
        return cls(file, align_up(size, SECTOR_SIZE), read_only=True)

    async def close(self) -> None:
        await self._file.close()

    async def identity(self) -> str:
        return await self._file.identity()

    async def read(self, offset: int, view: memoryview, /) -> None:
        self.check(offset, len(view))
        await self._file.read_into(offset, view)

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        self.check(offset, len(data), writing=True)
        await self._file.write(offset, data)

    async def flush(self) -> None:
        await self._file.sync()

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        self.check(offset, length)
        return await self._file.extents(offset, length)
