"""VHDX files as other programs may make them: every block state, differencing files, dirty logs, and damage.

``MadeVhdx`` is a file in the making; ``content`` is what its disk has to read as, computed from what was put in and
never from the file.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.units import MIB
from engine.vhdx import layout
from engine.vhdx.layout import BlockState, Disk, Geometry, Header, ParentLocator, Region

if TYPE_CHECKING:
    from pathlib import Path

    from engine.vhdx.log import LogEntry

LOG_AT, METADATA_AT, BAT_AT = MIB, 2 * MIB, 3 * MIB


@dataclass
class Block:
    """``data``: of the whole block. ``sectors``: which of them are here, for a partially present one."""

    state: BlockState
    data: bytes = b""
    sectors: frozenset[int] = frozenset()


@dataclass
class MadeVhdx:
    """One file. ``entries``: BAT entries that are written instead of the right ones; ``places``: where blocks went."""

    size_bytes: int
    block_bytes: int = MIB
    sector_bytes: int = 512
    parent: MadeVhdx | None = None
    pairs: dict[str, str] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)
    log_guid: uuid.UUID = layout.NO_GUID
    data_write_guid: uuid.UUID = field(default_factory=uuid.uuid4)
    places: dict[int, int] = field(default_factory=dict)
    file_bytes: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.size_bytes, self.block_bytes, self.sector_bytes, self.parent is not None)

    @property
    def disk(self) -> Disk:
        has_parent = self.parent is not None
        return Disk(self.block_bytes, self.size_bytes, uuid.UUID(int=7), self.sector_bytes, 4096, has_parent=has_parent)

    def content(self) -> bytes:
        """What the disk reads as."""
        below = self.parent.content() if self.parent is not None else bytes(self.size_bytes)
        made = bytearray()
        for number in range(self.geometry.blocks):
            start = number * self.block_bytes
            under = below[start : start + self.block_bytes]
            block = self.blocks.get(number, Block(BlockState.NOT_PRESENT))
            if block.state == BlockState.NOT_PRESENT:
                made += under
            elif block.state == BlockState.FULLY_PRESENT:
                made += block.data[: len(under)]
            elif block.state == BlockState.PARTIALLY_PRESENT:
                size = self.sector_bytes
                for sector in range(len(under) // size):
                    from_here = sector in block.sectors
                    made += (block.data if from_here else under)[sector * size : (sector + 1) * size]
            else:
                made += bytes(len(under))
        return bytes(made)

    def write(self, path: Path) -> Path:
        """Write the file; ``places`` then has where its blocks are."""
        geometry = self.geometry
        table = [0] * geometry.entries
        at = BAT_AT + geometry.bat_bytes
        pieces: list[tuple[int, bytes]] = []
        bitmaps: dict[int, bytearray] = {}
        for number, block in self.blocks.items():
            index = geometry.payload_index(number)
            table[index] = int(block.state)
            if block.state >= BlockState.FULLY_PRESENT:
                table[index] |= at
                self.places[number] = at
                pieces.append((at, block.data))
                at += self.block_bytes
            if block.state == BlockState.PARTIALLY_PRESENT:
                self._mark(bitmaps, number, block)
        for chunk, bits in bitmaps.items():
            table[(chunk + 1) * geometry.chunk_ratio + chunk] = at | BlockState.FULLY_PRESENT
            pieces.append((at, bytes(bits)))
            at += MIB
        for index, entry in self.entries.items():
            table[index] = entry
        self.file_bytes = at
        pieces += self._structures(b"".join(entry.to_bytes(8, "little") for entry in table))
        with path.open("wb") as file:
            file.truncate(at)
            for place, data in pieces:
                file.seek(place)
                file.write(data)
        return path

    def _mark(self, bitmaps: dict[int, bytearray], number: int, block: Block) -> None:
        ratio = self.geometry.chunk_ratio
        bits = bitmaps.setdefault(number // ratio, bytearray(MIB))
        first = number % ratio * (self.block_bytes // self.sector_bytes)
        for sector in block.sectors:
            bits[(first + sector) // 8] |= 1 << (first + sector) % 8

    def _structures(self, bat: bytes) -> list[tuple[int, bytes]]:
        locator = b""
        if self.parent is not None:
            linkage = {"parent_linkage": f"{{{self.parent.data_write_guid}}}"}
            locator = ParentLocator({**linkage, **self.pairs}).serialize()
        regions = layout.serialize_region_table(
            [
                Region(layout.BAT_REGION, BAT_AT, self.geometry.bat_bytes),
                Region(layout.METADATA_REGION, METADATA_AT, MIB),
            ]
        )
        guids = (uuid.UUID(int=1), self.data_write_guid, self.log_guid)
        headers = [Header(number, *guids, LOG_AT, MIB).serialize() for number in (3, 4)]
        pieces = [(0, layout.serialize_identifier("tests")), (BAT_AT, bat)]
        pieces += [(METADATA_AT, layout.serialize_metadata(self.disk, locator))]
        pieces += list(zip(layout.HEADER_OFFSETS, headers, strict=True))
        pieces += [(at, regions) for at in layout.REGION_TABLE_OFFSETS]
        place = LOG_AT
        for entry in self.log:
            pieces.append((place, entry.serialize()))
            place += entry.length
        return pieces


def spoil(path: Path, at: int, data: bytes) -> None:
    """Overwrite a few bytes."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
