"""Writing a VHDX file, fixed or dynamic: as a target of the copy loop.

    1 MiB log (empty) | 1 MiB metadata | BAT | payload blocks in the order of the disk

The layout follows from size, form and the source's extents alone (``Layout.of``), so an interrupted export goes on in
the same places. Payload comes first; ``finish`` writes the structures around it, the file type identifier last, so that
an unfinished file is no VHDX file. Files are left with an empty log: readers without replay see everything.

Only the states 0 and 6 are written. A block of the disk that holds data is allocated as a whole; what of it is not
written stays a hole of the host's file, in fixed files too.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import IntegrityError, NotSupported
from engine.image_device import ImageDevice
from engine.stores import Extent, ExtentState
from engine.units import KIB, MIB
from engine.vhdx.image import VhdxFile
from engine.vhdx.layout import (
    BAT_ENTRY_BYTES,
    BAT_REGION,
    HEADER_OFFSETS,
    MAX_VIRTUAL_BYTES,
    METADATA_REGION,
    NO_GUID,
    REGION_TABLE_OFFSETS,
    TIB,
    BlockState,
    Disk,
    Geometry,
    Header,
    Region,
    serialize_identifier,
    serialize_metadata,
    serialize_region_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from engine.stores import BlockDevice
    from engine.streams import StreamFile

LOG_AT, LOG_BYTES = 1 * MIB, 1 * MIB
METADATA_AT, METADATA_BYTES = 2 * MIB, 1 * MIB
BAT_AT = 3 * MIB
BLOCK_BYTES = 2 * MIB
LARGE_BLOCK_BYTES = 32 * MIB
"""Above 1 TiB: the BAT stays small."""
BAT_PIECE = 64 * KIB
"""What of the BAT is all zero stays a hole, in pieces of this size."""
CREATOR = "twinvol"
PLAN_WINDOW_BYTES = 1 << 30
"""How much of the source is asked for its extents at a time."""
_ABSENT = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of a file goes. ``places``: for each block its offset in the file, in bytes, or ``_ABSENT``."""

    disk: Disk
    places: npt.NDArray[np.uint64]
    file_bytes: int

    @classmethod
    async def of(cls, source: BlockDevice, *, fixed: bool) -> Layout:
        """For what a frozen device holds. ``fixed``: all blocks are allocated, and said to be.

        Raises NotSupported: no VHDX disk is as large.
        """
        size_bytes = source.size_bytes
        if size_bytes > MAX_VIRTUAL_BYTES:
            raise NotSupported(f"a VHDX disk has at most 64 TiB; this has {size_bytes} bytes")
        block_bytes = BLOCK_BYTES if size_bytes <= TIB else LARGE_BLOCK_BYTES
        disk = Disk(block_bytes, size_bytes, uuid.uuid4(), leave_allocated=fixed)
        geometry = Geometry.of(disk)
        present = np.full(geometry.blocks, fixed, np.bool_)
        for offset in range(0, 0 if fixed else size_bytes, PLAN_WINDOW_BYTES):
            for extent in await source.extents(offset, min(PLAN_WINDOW_BYTES, size_bytes - offset)):
                if extent.state is ExtentState.DATA:
                    present[extent.offset // block_bytes : -(-extent.end // block_bytes)] = True
        start = BAT_AT + geometry.bat_bytes
        numbers = np.cumsum(present, dtype=np.uint64) - np.uint64(1)
        places = np.where(present, numbers * np.uint64(block_bytes) + np.uint64(start), _ABSENT)
        return cls(disk, places, start + int(np.count_nonzero(present)) * block_bytes)

    def digest(self) -> str:
        """Of where the payload goes: the same for the same source."""
        return hashlib.sha256(self.places.tobytes()).hexdigest()[:32]

    def place(self, offset: int) -> int | None:
        """Where in the file a byte of the disk is; None: nowhere, it reads zero."""
        block, within = divmod(offset, self.disk.block_bytes)
        place = int(self.places[block])
        return None if place == _ABSENT else place + within

    def bat(self) -> bytes:
        """The BAT region."""
        geometry = Geometry.of(self.disk)
        blocks = np.arange(geometry.blocks)
        table = np.zeros(geometry.bat_bytes // BAT_ENTRY_BYTES, "<u8")
        present = self.places != _ABSENT
        entries = np.where(present, self.places | np.uint64(BlockState.FULLY_PRESENT), np.uint64(0))
        table[blocks + blocks // geometry.chunk_ratio] = entries
        return table.tobytes()


def structures(layout: Layout) -> Iterator[tuple[int, bytes]]:
    """What goes around the payload: (offset, bytes), in the order in which to write it. GUIDs are new ones."""
    yield METADATA_AT, serialize_metadata(layout.disk)
    bat = layout.bat()
    for at in range(0, len(bat), BAT_PIECE):
        if any(piece := bat[at : at + BAT_PIECE]):
            yield BAT_AT + at, piece
    regions = [Region(BAT_REGION, BAT_AT, len(bat)), Region(METADATA_REGION, METADATA_AT, METADATA_BYTES)]
    for at in REGION_TABLE_OFFSETS:
        yield at, serialize_region_table(regions)
    written, content = uuid.uuid4(), uuid.uuid4()
    for sequence, at in enumerate(HEADER_OFFSETS):
        yield at, Header(sequence, written, content, NO_GUID, LOG_AT, LOG_BYTES).serialize()
    yield 0, serialize_identifier(CREATOR)


class VhdxTarget(ImageDevice):
    """The payload of a file that is being written. ``finish`` makes it a VHDX file."""

    def __init__(self, file: StreamFile, layout: Layout) -> None:
        super().__init__(str(file.path), layout.disk.size_bytes, read_only=False)
        self.layout = layout
        self._file = file

    async def read(self, offset: int, view: memoryview, /) -> None:
        self.check(offset, len(view))
        for start, end, place in self._runs(offset, len(view)):
            part = view[start - offset : end - offset]
            if place is None:
                part[:] = bytes(len(part))
            else:
                await self._file.read_into(place, part)

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        """Only where the layout has a block: the copy loop writes where the source had data."""
        self.check(offset, len(data), writing=True)
        for start, end, place in self._runs(offset, len(data)):
            assert place is not None
            await self._file.write(place, data[start - offset : end - offset])

    async def flush(self) -> None:
        await self._file.sync()

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        self.check(offset, length)
        return [Extent(offset, length)]

    async def finish(self) -> None:
        """Write the structures, durably, and have the reader verify them. The payload is durable and verified.

        Raises IntegrityError: what the file says now is not what was meant.
        """
        for at, data in structures(self.layout):
            if not at:
                await self._file.sync()  # before the identifier, which says that all is there
            await self._file.write(at, data)
        await self._file.sync()
        made = await VhdxFile.open(self._file.path)
        try:
            bat = self.layout.bat()
            if made.disk != self.layout.disk or await made.read(BAT_AT, len(bat)) != bat:
                raise IntegrityError(self.name, BAT_AT, len(bat), "of what was written", "another one")
        finally:
            await made.close()

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int | None]]:
        """The parts of a range that lie together in the file, each with its place."""
        block, at, end = self.layout.disk.block_bytes, offset, offset + length
        while at < end:
            stop = min(end, at - at % block + block)
            yield at, stop, self.layout.place(at)
            at = stop
