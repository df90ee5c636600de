"""Reading one VHDX file: every structure is verified when it is opened, the log replayed in memory.

Invariants of an open ``VhdxFile``:

* No two of log, regions, payload blocks and bitmap blocks share a byte of the file, and all lie within it.
* Every BAT entry has a state that its kind of file may have, and no reserved bit; a partially present block has its
  bitmap block.
* The BAT is in memory, four bytes for each block: 4 MiB per TiB at blocks of 1 MiB, and less the larger they are.

Not checked: payload, which has no checksum in this format.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import NotSupported, StoreCorrupt
from engine.streams import StreamFile
from engine.units import KIB, MIB
from engine.vhdx import layout
from engine.vhdx.layout import (
    BAT_REGION,
    BITMAP_BYTES,
    METADATA_REGION,
    NO_GUID,
    BlockState,
    Disk,
    Geometry,
    Header,
    ParentLocator,
    Region,
)
from engine.vhdx.log import MAX_LOG_BYTES, Replay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TypeAlias

    import numpy.typing as npt

    U64s: TypeAlias = npt.NDArray[np.uint64]
    U32s: TypeAlias = npt.NDArray[np.uint32]

ZERO, PARENT = -1, -2
"""In place of a file offset: the run reads zero; what it holds is in the parent."""

_BAT_PIECE = 8 * KIB
"""Entries that are looked at at a time."""
_STATE_BITS = 3
"""Of an entry in memory, which has its offset in MiB above them."""
_ALONE = [BlockState.NOT_PRESENT, BlockState.UNDEFINED, BlockState.ZERO, BlockState.UNMAPPED, BlockState.FULLY_PRESENT]
_WITH_PARENT = [*_ALONE, BlockState.PARTIALLY_PRESENT]


@dataclass(frozen=True, slots=True)
class Run:
    """A range of the virtual disk: ``at`` is its offset in the file, ``ZERO`` or ``PARENT``."""

    offset: int
    length: int
    at: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@contextlib.contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Name the file in what is found wrong with it."""
    try:
        yield
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{path}: {error.where}", error.reason) from None
    except NotSupported as error:
        raise NotSupported(f"{path}: {error}") from None


class VhdxFile:
    """See the module. Made by ``open``; ended by ``close``."""

    def __init__(self, file: StreamFile) -> None:
        self.file = file
        self.path = file.path
        self.replay = Replay()
        self.header: Header
        self.disk: Disk
        self.geometry: Geometry
        self.locator: ParentLocator | None = None
        self._file_bytes = 0
        self._blocks: U32s
        self._bitmaps: U32s

    @classmethod
    async def open(cls, path: Path) -> VhdxFile:
        """Read and verify all structures of a file.

        Raises:
            NotFound, PermissionDenied, InvalidArgument: the file cannot be opened.
            StoreCorrupt: it breaks the format, which its text names.
            NotSupported: it needs something that is not known here.
        """
        one = cls(await StreamFile.open(path))
        try:
            with damage_of(path):
                await one._load()
        except BaseException:
            await one.close()
            raise
        return one

    async def close(self) -> None:
        await self.file.close()

    async def read_into(self, at: int, view: memoryview) -> None:
        """Fill ``view`` from offset ``at`` of the file, as it is after the replay."""
        await self.file.read_into(at, view)
        self.replay.apply(at, view)

    async def read(self, at: int, length: int) -> bytes:
        """As ``read_into``, into new bytes. The caller has bounded ``length``."""
        data = bytearray(length)
        await self.read_into(at, memoryview(data))
        return bytes(data)

    async def runs(self, offset: int, length: int) -> list[Run]:
        """Where a range of the disk is, in order, without gaps, merged."""
        runs: list[Run] = []
        block_bytes = self.disk.block_bytes
        at, end = offset, offset + length
        while at < end:
            block, within = divmod(at, block_bytes)
            stop = min(end, (block + 1) * block_bytes)
            entry = int(self._blocks[block])
            state, place = entry & layout.STATE_BITS, (entry >> _STATE_BITS) * MIB + within
            if state == BlockState.FULLY_PRESENT:
                _append(runs, Run(at, stop - at, place))
            elif state == BlockState.PARTIALLY_PRESENT:
                for run in await self._partial(block, at, stop, place):
                    _append(runs, run)
            else:
                parent = state == BlockState.NOT_PRESENT and self.disk.has_parent
                _append(runs, Run(at, stop - at, PARENT if parent else ZERO))
            at = stop
        return runs

    async def _partial(self, block: int, start: int, end: int, place: int) -> list[Run]:
        """The sectors of a partially present block by its bitmap: bit 1 is here, 0 in the parent."""
        sector = self.disk.logical_sector_bytes
        chunk = block // self.geometry.chunk_ratio
        chunk_start = chunk * self.geometry.chunk_ratio * self.disk.block_bytes
        first, last = (start - chunk_start) // sector, -(-(end - chunk_start) // sector)
        raw = bytearray(-(-last // 8) - first // 8)
        bitmap_at = (int(self._bitmaps[chunk]) >> _STATE_BITS) * MIB
        await self.read_into(bitmap_at + first // 8, memoryview(raw))
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[first % 8 :][: last - first]
        edges = np.flatnonzero(np.diff(bits)) + 1
        bounds = [0, *edges.tolist(), len(bits)]
        runs = []
        for low, high in pairwise(bounds):
            at = max(start, chunk_start + (first + low) * sector)
            stop = min(end, chunk_start + (first + high) * sector)
            runs.append(Run(at, stop - at, place + at - start if bits[low] else PARENT))
        return runs

    # --- opening ----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        file = self.file
        self._file_bytes = await file.size()
        if await file.read(0, len(layout.SIGNATURE)) != layout.SIGNATURE:
            raise StoreCorrupt("file type identifier", "is not that of a VHDX file")
        if self._file_bytes > layout.MAX_FILE_BYTES:
            raise StoreCorrupt("file", f"has {self._file_bytes} bytes, more than any disk needs")
        first, second = [await file.read(at, layout.HEADER_BYTES) for at in layout.HEADER_OFFSETS]
        self.header = layout.current_header((first, second))
        await self._replay()
        regions = await self._regions()
        claims = self._claim(regions)
        by_guid = {region.guid: region for region in regions}
        await self._metadata(by_guid[METADATA_REGION])
        await self._bat(by_guid[BAT_REGION], claims)

    async def _replay(self) -> None:
        header = self.header
        self.replay = Replay(file_bytes=self._file_bytes)
        if header.log_offset + header.log_length > self._file_bytes:
            raise StoreCorrupt("header", "has a log that ends beyond the end of the file")
        if header.log_guid == NO_GUID:
            return
        if header.log_length > MAX_LOG_BYTES:
            raise NotSupported(f"a log of {header.log_length} bytes that is to be replayed")
        if not header.log_length:
            raise StoreCorrupt("log", "is marked as in use and has no room")
        log = await self.file.read(header.log_offset, header.log_length)
        self.replay = Replay.of(log, header, self._file_bytes)
        self._file_bytes = self.replay.file_bytes

    async def _regions(self) -> list[Region]:
        copies = [await self.read(at, layout.REGION_TABLE_BYTES) for at in layout.REGION_TABLE_OFFSETS]
        tables, reasons = [], []
        for copy in copies:
            try:
                tables.append(layout.parse_region_table(copy))
            except StoreCorrupt as error:
                reasons.append(error.reason)
        if not tables:
            raise StoreCorrupt("region table", f"no copy is valid: the first {reasons[0]}, the second {reasons[1]}")
        if len(tables) == 2 and copies[0] != copies[1]:
            raise StoreCorrupt("region table", "has two valid copies that say different things")
        return tables[0]

    def _claim(self, regions: list[Region]) -> Claims:
        claims = Claims(self._file_bytes)
        claims.take("the headers", np.array([0], np.int64), MIB)
        claims.take("the log", np.array([self.header.log_offset // MIB], np.int64), self.header.log_length)
        for region in regions:
            claims.take(f"region {region.guid}", np.array([region.offset // MIB], np.int64), region.length)
        return claims

    async def _metadata(self, region: Region) -> None:
        table = await self.read(region.offset, layout.METADATA_TABLE_BYTES)
        items = layout.parse_metadata_table(table, region.length)
        values = {
            guid: await self.read(region.offset + item.offset, item.length)
            for guid, item in items.items()
            if item.length and (item.length <= layout.MAX_ITEM_BYTES)
        }
        self.disk = Disk.parse(values)
        self.geometry = Geometry.of(self.disk)
        if self.disk.has_parent:
            if layout.PARENT_LOCATOR not in values:
                raise StoreCorrupt("metadata", "say that there is a parent and do not locate it")
            self.locator = ParentLocator.parse(values[layout.PARENT_LOCATOR])

    async def _bat(self, region: Region, claims: Claims) -> None:
        geometry = self.geometry
        if geometry.entries * layout.BAT_ENTRY_BYTES > region.length:
            raise StoreCorrupt(
                "BAT", f"has {geometry.entries} entries, more than its region of {region.length} bytes holds"
            )
        self._blocks = np.zeros(geometry.blocks, np.uint32)
        self._bitmaps = np.zeros(-(-geometry.blocks // geometry.chunk_ratio), np.uint32)
        for start in range(0, geometry.entries, _BAT_PIECE):
            count = min(_BAT_PIECE, geometry.entries - start)
            raw = await self.read(region.offset + start * layout.BAT_ENTRY_BYTES, count * layout.BAT_ENTRY_BYTES)
            if any(raw):  # what is all zero stays untouched, and so takes no memory
                self._take_entries(start, np.frombuffer(raw, "<u8").astype(np.uint64), claims)
        partial = np.flatnonzero(self._blocks & layout.STATE_BITS == BlockState.PARTIALLY_PRESENT)
        lost = partial[self._bitmaps[partial // geometry.chunk_ratio] == 0]
        if lost.size:
            raise StoreCorrupt("BAT", f"has block {lost[0]} partially present, without a sector bitmap block")

    def _take_entries(self, start: int, entries: U64s, claims: Claims) -> None:
        period = self.geometry.chunk_ratio + 1
        index = np.arange(start, start + len(entries), dtype=np.int64)
        if np.any(entries & np.uint64(layout.RESERVED_BITS)):
            wrong = index[np.flatnonzero(entries & np.uint64(layout.RESERVED_BITS))[0]]
            raise StoreCorrupt("BAT", f"has reserved bits set in entry {wrong}")
        if np.any(entries >> np.uint64(20) > layout.MAX_FILE_BYTES // MIB):
            raise StoreCorrupt("BAT", "has an offset beyond any file")
        places = entries >> np.uint64(20) << np.uint64(_STATE_BITS)
        packed = (places | (entries & np.uint64(layout.STATE_BITS))).astype(np.uint32)
        is_bitmap = index % period == period - 1
        self._take_bitmaps(index[is_bitmap] // period, packed[is_bitmap], claims)
        blocks, packed = (index - index // period)[~is_bitmap], packed[~is_bitmap]
        padding = (
            blocks >= self.geometry.blocks
        )  # a differencing file's last chunk has entries for blocks beyond the end
        if np.any(packed[padding] & layout.STATE_BITS >= BlockState.FULLY_PRESENT):
            raise StoreCorrupt("BAT", "has a block beyond the end of the disk")
        blocks, packed = blocks[~padding], packed[~padding]
        states = packed & layout.STATE_BITS
        wrong_states = blocks[~np.isin(states, _WITH_PARENT if self.disk.has_parent else _ALONE)]
        if wrong_states.size:
            raise StoreCorrupt("BAT", f"has block {wrong_states[0]} in a state that it cannot have")
        present = states >= BlockState.FULLY_PRESENT
        self._claim_blocks(blocks[present], (packed[present] >> _STATE_BITS).astype(np.int64), claims)
        self._blocks[blocks] = packed

    def _take_bitmaps(self, chunks: npt.NDArray[np.int64], packed: U32s, claims: Claims) -> None:
        states = packed & layout.STATE_BITS
        allowed = (
            [BlockState.NOT_PRESENT, BlockState.FULLY_PRESENT] if self.disk.has_parent else [BlockState.NOT_PRESENT]
        )
        wrong = chunks[~np.isin(states, allowed)]
        if wrong.size:
            raise StoreCorrupt("BAT", f"has sector bitmap block {wrong[0]} in a state that it cannot have")
        present = states == BlockState.FULLY_PRESENT
        claims.take("a sector bitmap block", (packed[present] >> _STATE_BITS).astype(np.int64), BITMAP_BYTES)
        self._bitmaps[chunks[present]] = packed[present]

    def _claim_blocks(self, blocks: npt.NDArray[np.int64], places: npt.NDArray[np.int64], claims: Claims) -> None:
        # Of the last block no more need be there than the disk has.
        last = blocks == self.geometry.blocks - 1
        needed = self.disk.size_bytes - (self.geometry.blocks - 1) * self.disk.block_bytes
        claims.take("a payload block", places[~last], self.disk.block_bytes)
        claims.take("the last payload block", places[last], needed)


class Claims:
    """Which MiB of the file belong to somebody: each to one."""

    def __init__(self, file_bytes: int) -> None:
        self._file_bytes = file_bytes
        self._taken = np.zeros(-(-file_bytes // MIB), np.bool_)  # a page of it takes memory when something is set there

    def take(self, what: str, places: npt.NDArray[np.int64], length: int) -> None:
        """Claim ``length`` bytes at each of ``places`` (MiB). Raises StoreCorrupt: beyond the end, or taken."""
        if not places.size or not length:
            return
        beyond = places[places * MIB + length > self._file_bytes]
        if beyond.size:
            raise StoreCorrupt("file", f"ends before {what} at {int(beyond[0]) * MIB}+{length}")
        units = np.arange(-(-length // MIB), dtype=np.int64)
        step = max(1, (1 << 20) // len(units))
        for first in range(0, len(places), step):
            claimed = (places[first : first + step, None] + units).ravel()
            taken = self._taken[claimed]
            if np.any(taken) or np.unique(claimed).size != claimed.size:
                place = int(claimed[taken][0]) if np.any(taken) else _repeated(claimed)
                raise StoreCorrupt("file", f"has {what} at {place * MIB}, which something else has, too")
            self._taken[claimed] = True


def _repeated(values: npt.NDArray[np.int64]) -> int:
    ordered = np.sort(values)
    return int(ordered[np.flatnonzero(ordered[1:] == ordered[:-1])[0]])


def _append(runs: list[Run], run: Run) -> None:
    """Add a run, as part of the last one where it goes on."""
    if runs:
        last = runs[-1]
        if run.at == last.at if last.at < 0 else run.at == last.at + last.length:
            runs[-1] = Run(last.offset, last.length + run.length, last.at)
            return
    runs.append(run)
