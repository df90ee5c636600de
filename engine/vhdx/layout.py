"""The structures of a VHDX file as bytes (MS-VHDX v2, format version 1): pure, no I/O.

    0         file type identifier, 64 KiB
    64 KiB    header 1          128 KiB  header 2: the valid one with the larger sequence number counts
    192 KiB   region table 1    256 KiB  region table 2: the same twice
    1 MiB...  log, metadata region, BAT region, payload blocks, sector bitmap blocks: in any order, each at a multiple
              of 1 MiB, none over another

All integers are little-endian, GUIDs in the mixed-endian form (``uuid.UUID.bytes_le``). CRC-32C covers headers, region
tables and log entries (``log``); neither metadata nor BAT nor payload have a checksum, so every value of theirs is
checked by itself.

``parse`` raises ``StoreCorrupt`` for what the format forbids and ``NotSupported`` for what it allows and nobody here
understands (an unknown required region or metadata item). Every count and length has a limit, checked before use.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

import google_crc32c

from engine.errors import NotSupported, StoreCorrupt
from engine.units import KIB, MIB

TIB = 1 << 40

HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
REGION_TABLE_BYTES = 64 * KIB
HEADER_BYTES = 4 * KIB
METADATA_TABLE_BYTES = 64 * KIB
FIRST_OBJECT = 1 * MIB
"""Below it lie the structures with fixed places."""

MAX_VIRTUAL_BYTES = 64 * TIB
MAX_FILE_BYTES = 128 * TIB
"""No offset is above this: twice the largest disk has room for every BAT, log and bitmap block."""
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 1 * MIB, 256 * MIB
MAX_TABLE_ENTRIES = 2047
MAX_USER_ITEMS = 1024
MAX_ITEM_BYTES = 1 * MIB
MAX_LOCATOR_PAIRS = 64
"""Of a parent locator; five are defined."""
BITMAP_BYTES = 1 * MIB
"""Of every sector bitmap block: 2^23 sectors."""

NO_GUID = uuid.UUID(int=0)


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C (Castagnoli): of ``123456789`` 0xE3069283."""
    return int(google_crc32c.value(bytes(data)))


def _guid(data: bytes | memoryview, offset: int) -> uuid.UUID:
    return uuid.UUID(bytes_le=bytes(data[offset : offset + 16]))


# --- file type identifier -----------------------------------------------------------------------------------------

SIGNATURE = b"vhdxfile"
_CREATOR_BYTES = 512


def serialize_identifier(creator: str) -> bytes:
    """The file type identifier; ``creator`` is for people."""
    return (SIGNATURE + creator.encode("utf-16-le")[:_CREATOR_BYTES]).ljust(64 * KIB, b"\0")


# --- headers ------------------------------------------------------------------------------------------------------

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
assert _HEADER.size == 80


@dataclass(frozen=True, slots=True)
class Header:
    """One of the two headers. ``log_guid``: zero when the log is empty."""

    sequence: int
    file_write_guid: uuid.UUID
    data_write_guid: uuid.UUID
    log_guid: uuid.UUID
    log_offset: int
    log_length: int
    log_version: int = 0

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Header:
        """Raises StoreCorrupt: signature, checksum or version is wrong."""
        if len(data) < HEADER_BYTES:
            raise StoreCorrupt("header", "is cut off")
        raw = bytearray(data[:HEADER_BYTES])
        signature, checksum, sequence, file_guid, data_guid, log_guid, log_version, version, length, offset = (
            _HEADER.unpack_from(raw)
        )
        if signature != b"head":
            raise StoreCorrupt("header", "has no signature")
        raw[4:8] = bytes(4)
        if crc32c(raw) != checksum:
            raise StoreCorrupt("header", "has a wrong checksum")
        if version != 1:
            raise StoreCorrupt("header", f"has version {version}, which is not 1")
        written, content, log = (uuid.UUID(bytes_le=guid) for guid in (file_guid, data_guid, log_guid))
        return cls(sequence, written, content, log, offset, length, log_version)

    def serialize(self) -> bytes:
        guids = (self.file_write_guid.bytes_le, self.data_write_guid.bytes_le, self.log_guid.bytes_le)
        raw = bytearray(HEADER_BYTES)
        _HEADER.pack_into(
            raw, 0, b"head", 0, self.sequence, *guids, self.log_version, 1, self.log_length, self.log_offset
        )
        raw[4:8] = crc32c(raw).to_bytes(4, "little")
        return bytes(raw)

    def check(self) -> None:
        """Raises StoreCorrupt: the log cannot be where this says; NotSupported: it is of another version."""
        if self.log_offset % MIB or self.log_length % MIB or self.log_offset < FIRST_OBJECT:
            raise StoreCorrupt(
                "header", f"has a log at {self.log_offset}+{self.log_length}, not in whole MiB from 1 MiB"
            )
        if self.log_offset > MAX_FILE_BYTES:
            raise StoreCorrupt("header", f"has a log at {self.log_offset}, beyond any file")
        if self.log_guid != NO_GUID and self.log_version:
            raise NotSupported(f"a VHDX log of version {self.log_version}; only version 0 is known")


def current_header(copies: tuple[bytes, bytes]) -> Header:
    """The header that counts. Raises StoreCorrupt: none is valid, or both claim to be the newer one."""
    valid: list[tuple[Header, bytes]] = []
    reasons = []
    for copy in copies:
        try:
            valid.append((Header.parse(copy), copy[:HEADER_BYTES]))
        except StoreCorrupt as error:
            reasons.append(error.reason)
    if not valid:
        raise StoreCorrupt("header", f"neither copy is valid: the first {reasons[0]}, the second {reasons[1]}")
    if len(valid) == 2 and valid[0][0].sequence == valid[1][0].sequence and valid[0][1] != valid[1][1]:
        # Two identical ones are accepted: a Microsoft tool writes them, and QEMU reads them.
        raise StoreCorrupt("header", "both copies have one sequence number and say different things")
    header = max((each for each, _ in valid), key=lambda each: each.sequence)
    header.check()
    return header


# --- region table -------------------------------------------------------------------------------------------------

BAT_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
assert _REGION.size == 32
REQUIRED = 1


@dataclass(frozen=True, slots=True)
class Region:
    """Where a region lies, in bytes of the file."""

    guid: uuid.UUID
    offset: int
    length: int
    required: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.length


def parse_region_table(data: bytes | memoryview) -> list[Region]:
    """All regions of one copy, known or not.

    Raises StoreCorrupt: signature, checksum, a count or a place that cannot be, overlapping regions, no BAT or metadata
    region or two of one. NotSupported: a required region that is unknown here.
    """
    where = "region table"
    if len(data) < REGION_TABLE_BYTES:
        raise StoreCorrupt(where, "is cut off")
    raw = bytearray(data[:REGION_TABLE_BYTES])
    signature, checksum, count, _ = _TABLE.unpack_from(raw)
    if signature != b"regi":
        raise StoreCorrupt(where, "has no signature")
    raw[4:8] = bytes(4)
    if crc32c(raw) != checksum:
        raise StoreCorrupt(where, "has a wrong checksum")
    if count > MAX_TABLE_ENTRIES:
        raise StoreCorrupt(where, f"has {count} entries; {MAX_TABLE_ENTRIES} is the most")
    regions = []
    for index in range(count):
        guid, offset, length, flags = _REGION.unpack_from(raw, _TABLE.size + index * _REGION.size)
        region = Region(uuid.UUID(bytes_le=guid), offset, length, bool(flags & REQUIRED))
        if offset % MIB or length % MIB or offset < FIRST_OBJECT or not length or offset > MAX_FILE_BYTES:
            raise StoreCorrupt(where, f"has a region at {offset}+{length}, not in whole MiB from 1 MiB")
        if region.required and region.guid not in (BAT_REGION, METADATA_REGION):
            raise NotSupported(f"a VHDX with the required region {region.guid}, which is not known")
        regions.append(region)
    for guid, name in ((BAT_REGION, "BAT"), (METADATA_REGION, "metadata")):
        found = sum(region.guid == guid for region in regions)
        if found != 1:
            raise StoreCorrupt(where, f"names {found} {name} regions instead of one")
    ordered = sorted(regions, key=lambda region: region.offset)
    for before, after in pairwise(ordered):
        if before.end > after.offset:
            raise StoreCorrupt(where, f"has regions that overlap at {after.offset}")
    return regions


def serialize_region_table(regions: list[Region]) -> bytes:
    raw = bytearray(REGION_TABLE_BYTES)
    _TABLE.pack_into(raw, 0, b"regi", 0, len(regions), 0)
    for index, region in enumerate(regions):
        at = _TABLE.size + index * _REGION.size
        _REGION.pack_into(raw, at, region.guid.bytes_le, region.offset, region.length, REQUIRED * region.required)
    raw[4:8] = crc32c(raw).to_bytes(4, "little")
    return bytes(raw)


# --- metadata -----------------------------------------------------------------------------------------------------

FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_LENGTHS = {
    FILE_PARAMETERS: 8,
    VIRTUAL_DISK_SIZE: 8,
    VIRTUAL_DISK_ID: 16,
    LOGICAL_SECTOR_SIZE: 4,
    PHYSICAL_SECTOR_SIZE: 4,
}
"""The items that every file has, with their lengths."""

_METADATA = struct.Struct("<8sHH20s")
_ITEM = struct.Struct("<16sIIII")
assert _METADATA.size == _ITEM.size == 32
_USER, _VIRTUAL_DISK, _REQUIRED = 1, 2, 4
_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2


@dataclass(frozen=True, slots=True)
class Item:
    """A metadata item's place, relative to the region."""

    guid: uuid.UUID
    offset: int
    length: int
    flags: int


def parse_metadata_table(data: bytes | memoryview, region_length: int) -> dict[uuid.UUID, Item]:
    """The places of the items of the system (users' own are nobody's business here).

    Raises StoreCorrupt: signature, a count or a place that cannot be, an item twice, overlapping items, a mandatory one
    is missing. NotSupported: a required item that is unknown here.
    """
    where = "metadata table"
    if len(data) < METADATA_TABLE_BYTES:
        raise StoreCorrupt(where, "is cut off")
    signature, _, count, _ = _METADATA.unpack_from(data)
    if signature != b"metadata":
        raise StoreCorrupt(where, "has no signature")
    if count > MAX_TABLE_ENTRIES:
        raise StoreCorrupt(where, f"has {count} entries; {MAX_TABLE_ENTRIES} is the most")
    items: dict[tuple[bool, uuid.UUID], Item] = {}
    for index in range(count):
        raw, offset, length, flags, _ = _ITEM.unpack_from(data, _METADATA.size * (1 + index))
        item = Item(uuid.UUID(bytes_le=raw), offset, length, flags)
        key = (bool(flags & _USER), item.guid)
        if key in items:
            raise StoreCorrupt(where, f"has item {item.guid} twice")
        if length > MAX_ITEM_BYTES or offset + length > region_length or (length and offset < METADATA_TABLE_BYTES):
            raise StoreCorrupt(where, f"has item {item.guid} at {offset}+{length}, outside of its region's items")
        if flags & _REQUIRED and (flags & _USER or item.guid not in {*_LENGTHS, PARENT_LOCATOR}):
            raise NotSupported(f"a VHDX with the required metadata item {item.guid}, which is not known")
        items[key] = item
    if sum(user for user, _ in items) > MAX_USER_ITEMS:
        raise StoreCorrupt(where, f"has more than {MAX_USER_ITEMS} items of users")
    ordered = sorted((item for item in items.values() if item.length), key=lambda item: item.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.length > after.offset:
            raise StoreCorrupt(where, f"has items that overlap at {after.offset}")
    own = {guid: item for (user, guid), item in items.items() if not user}
    for guid, length in _LENGTHS.items():
        if guid not in own or own[guid].length != length:
            raise StoreCorrupt(where, f"has no item {guid} of {length} bytes")
    return own


@dataclass(frozen=True, slots=True)
class Disk:
    """What the metadata say of the virtual disk. ``leave_allocated``: a fixed file. ``disk_id``: SCSI page 83h."""

    block_bytes: int
    size_bytes: int
    disk_id: uuid.UUID
    logical_sector_bytes: int = 512
    physical_sector_bytes: int = 4096
    leave_allocated: bool = False
    has_parent: bool = False

    @classmethod
    def parse(cls, values: dict[uuid.UUID, bytes]) -> Disk:
        """From the bytes of the five mandatory items. Raises StoreCorrupt: a value that cannot be."""
        block_bytes, flags = struct.unpack("<II", values[FILE_PARAMETERS])
        (size_bytes,) = struct.unpack("<Q", values[VIRTUAL_DISK_SIZE])
        (logical,) = struct.unpack("<I", values[LOGICAL_SECTOR_SIZE])
        (physical,) = struct.unpack("<I", values[PHYSICAL_SECTOR_SIZE])
        if flags & ~(_LEAVE_ALLOCATED | _HAS_PARENT):
            raise StoreCorrupt("metadata", f"has file parameters {flags:#x}, of which some are reserved")
        disk_id = _guid(values[VIRTUAL_DISK_ID], 0)
        disk = cls(
            block_bytes,
            size_bytes,
            disk_id,
            logical,
            physical,
            bool(flags & _LEAVE_ALLOCATED),
            bool(flags & _HAS_PARENT),
        )
        disk.check()
        return disk

    def check(self) -> None:
        """Raises StoreCorrupt."""
        where, block = "metadata", self.block_bytes
        if not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES or block & (block - 1):
            raise StoreCorrupt(where, f"has blocks of {block} bytes, no power of two from 1 to 256 MiB")
        for sector in (self.logical_sector_bytes, self.physical_sector_bytes):
            if sector not in (512, 4096):
                raise StoreCorrupt(where, f"has sectors of {sector} bytes, neither 512 nor 4096")
        if not self.size_bytes or self.size_bytes > MAX_VIRTUAL_BYTES or self.size_bytes % self.logical_sector_bytes:
            raise StoreCorrupt(where, f"has a disk of {self.size_bytes} bytes, no whole sectors up to 64 TiB")


_LOCATOR_ITEM_OFFSET = METADATA_TABLE_BYTES + 4 * KIB


def serialize_metadata(disk: Disk, locator: bytes = b"") -> bytes:
    """The metadata region up to the end of its last item. ``locator``: of a differencing file's parent."""
    flags = _LEAVE_ALLOCATED * disk.leave_allocated | _HAS_PARENT * disk.has_parent
    values = [
        (FILE_PARAMETERS, _REQUIRED, struct.pack("<II", disk.block_bytes, flags)),
        (VIRTUAL_DISK_SIZE, _REQUIRED | _VIRTUAL_DISK, struct.pack("<Q", disk.size_bytes)),
        (VIRTUAL_DISK_ID, _REQUIRED | _VIRTUAL_DISK, disk.disk_id.bytes_le),
        (LOGICAL_SECTOR_SIZE, _REQUIRED | _VIRTUAL_DISK, struct.pack("<I", disk.logical_sector_bytes)),
        (PHYSICAL_SECTOR_SIZE, _REQUIRED | _VIRTUAL_DISK, struct.pack("<I", disk.physical_sector_bytes)),
    ]
    if locator:
        values.append((PARENT_LOCATOR, _REQUIRED, locator))
    table, items = bytearray(METADATA_TABLE_BYTES), bytearray()
    _METADATA.pack_into(table, 0, b"metadata", 0, len(values), bytes(20))
    for index, (guid, item_flags, value) in enumerate(values):
        at = METADATA_TABLE_BYTES + len(items)
        _ITEM.pack_into(table, _METADATA.size * (1 + index), guid.bytes_le, at, len(value), item_flags, 0)
        items += value
    return bytes(table + items)


# --- parent locator -----------------------------------------------------------------------------------------------

VHDX_PARENT = uuid.UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
_LOCATOR = struct.Struct("<16sHH")
_PAIR = struct.Struct("<IIHH")


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """Where a differencing file's parent is said to be. ``pairs``: as they stand in the file.

    ``linkages``: the data write GUIDs of which the parent must have one.
    """

    pairs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> ParentLocator:
        """Raises StoreCorrupt: cut off, a key twice, no linkage or no path. NotSupported: a parent that is no VHDX."""
        where = "parent locator"
        if len(data) < _LOCATOR.size:
            raise StoreCorrupt(where, "is cut off")
        kind, _, count = _LOCATOR.unpack_from(data)
        if uuid.UUID(bytes_le=kind) != VHDX_PARENT:
            raise NotSupported(f"a parent of type {uuid.UUID(bytes_le=kind)}, which is no VHDX")
        if count > MAX_LOCATOR_PAIRS or _LOCATOR.size + count * _PAIR.size > len(data):
            raise StoreCorrupt(where, f"says that it has {count} entries")
        pairs: dict[str, str] = {}
        for index in range(count):
            key_at, value_at, key_length, value_length = _PAIR.unpack_from(data, _LOCATOR.size + index * _PAIR.size)
            key, value = _text(data, key_at, key_length), _text(data, value_at, value_length)
            if key in pairs:
                raise StoreCorrupt(where, f"has the key {key!r} twice")
            pairs[key] = value
        locator = cls(pairs)
        if not locator.linkages():
            raise StoreCorrupt(where, "has no parent_linkage")
        if not any(key in pairs for key in ("relative_path", "volume_path", "absolute_win32_path")):
            raise StoreCorrupt(where, "names no path")
        return locator

    def linkages(self) -> list[uuid.UUID]:
        """Raises StoreCorrupt: one is no GUID."""
        try:
            return [uuid.UUID(self.pairs[key]) for key in ("parent_linkage", "parent_linkage2") if key in self.pairs]
        except ValueError:
            raise StoreCorrupt("parent locator", "has a parent_linkage that is no GUID") from None

    def serialize(self) -> bytes:
        head, strings = bytearray(_LOCATOR.pack(VHDX_PARENT.bytes_le, 0, len(self.pairs))), bytearray()
        start = _LOCATOR.size + _PAIR.size * len(self.pairs)
        for key, value in self.pairs.items():
            name, text = key.encode("utf-16-le"), value.encode("utf-16-le")
            at = start + len(strings)
            head += _PAIR.pack(at, at + len(name), len(name), len(text))
            strings += name + text
        return bytes(head + strings)


def _text(data: bytes, offset: int, length: int) -> str:
    if not length or length % 2 or offset + length > len(data):
        raise StoreCorrupt("parent locator", f"has a text at {offset}+{length}, outside of it")
    try:
        text = data[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise StoreCorrupt("parent locator", f"has a text at {offset}+{length} that is no UTF-16")
    return text


# --- block allocation table ---------------------------------------------------------------------------------------


class BlockState(IntEnum):
    """Of a BAT entry. 4 and 5 are none."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


STATE_BITS = 0b111
RESERVED_BITS = 0xFFFFF & ~STATE_BITS
OFFSET_BITS = ~0xFFFFF & (1 << 64) - 1
"""An entry with nothing but these is the byte offset of its block."""

BAT_ENTRY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the BAT of a disk is laid out: after each ``chunk_ratio`` payload entries one for a sector bitmap block."""

    size_bytes: int
    block_bytes: int
    logical_sector_bytes: int
    has_parent: bool = False

    @classmethod
    def of(cls, disk: Disk) -> Geometry:
        return cls(disk.size_bytes, disk.block_bytes, disk.logical_sector_bytes, disk.has_parent)

    @property
    def chunk_ratio(self) -> int:
        return (self.logical_sector_bytes << 23) // self.block_bytes

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // self.block_bytes)

    @property
    def entries(self) -> int:
        if self.has_parent:
            return -(-self.blocks // self.chunk_ratio) * (self.chunk_ratio + 1)
        return self.blocks + (self.blocks - 1) // self.chunk_ratio

    def payload_index(self, block: int) -> int:
        return block + block // self.chunk_ratio

    def bitmap_index(self, block: int) -> int:
        """Of the bitmap block that has the bits of ``block``."""
        chunk = block // self.chunk_ratio
        return (chunk + 1) * self.chunk_ratio + chunk

    @property
    def bat_bytes(self) -> int:
        """Of the region, in whole MiB."""
        return -(-self.entries * BAT_ENTRY_BYTES // MIB) * MIB
