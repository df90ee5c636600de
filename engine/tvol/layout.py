"""On-disk structures of the volume file: pure structs, no meaning, no I/O. ``docs/on-disk-format.md`` follows it.

All integers are little-endian. Checksums are xxh3_64; who holds the checksum of what:

* a superblock slot: its own last 8 bytes, over the rest of the 4 KiB;
* a metadata page: the reference to it (page number, checksum) in its parent, up to the superblock;
* a journal record: its own first 8 bytes, over the rest of the record, padding included.

``parse_*`` checks structure only (lengths, magic, checksum) and raises ``LayoutError`` with what is wrong.
"""

from __future__ import annotations

import enum
import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest as checksum64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT_VERSION = 1
SUPERBLOCK_MAGIC = b"TWINVOL\x01"
SUPERBLOCK_SIZE = 4096
SUPERBLOCK_OFFSETS = (0, 4096)
"""Both slots lie in chunk 0 and hold the same state; a checkpoint writes and syncs the first, then the second."""

PAGE_SIZE = 16 * 1024
"""Unit of metadata. Page ``n`` is at byte ``n * PAGE_SIZE`` of the file, inside a metadata chunk."""

JOURNAL_FIRST_CHUNK = 1
MIN_JOURNAL_BYTES = 64 * 1024
DEFAULT_JOURNAL_BYTES = 4 * 1024 * 1024
MAX_JOURNAL_BYTES = 1024 * 1024 * 1024

EMPTY = 0
"""Map entry: never written, or discarded."""
ZERO = 1
"""Map entry: zeroes were written."""
FIRST_CHUNK_ENTRY = 2
"""Map entries from here on are chunk numbers; chunks 0 and 1 never hold payload."""
SLOT_BIT = 0x8000_0000
"""An entry with it, and below ``PARTIAL``, names a slot of the table of shared chunks by its other bits."""
PARTIAL = 0xC000_0000
"""An entry from here on names a partial chunk: the chunk's number is the other bits."""
MAX_CHUNKS = 1 << 30
"""64 TiB of 64 KiB chunks, so that a partial chunk's entry can hold the number of any."""
MAX_SLOTS = 1 << 28
"""Of a file; 16 TiB of shared ranges at 64 KiB."""
MAX_VOLUME_CHUNKS = 1 << 30
"""64 TiB of 64 KiB chunks. The host's limit for one file (ext4: 16 TiB) bounds what can be mapped."""

BIRTH_FREE = 0
BIRTH_METADATA = 0xFFFF_FFFF
BIRTH_SHARED = 0xFFFF_FFFE
"""Of a chunk that no map names by its number any more, only slots do."""
MAX_GENERATION = 0x7FFF_FFF0

PAGES_OF_CHUNK = 16
"""A partial chunk is divided into so many pages: of 4 KiB in a chunk of 64 KiB, of 16 KiB in one of 256 KiB."""
FULL_MASK = (1 << PAGES_OF_CHUNK) - 1

LEAF_ENTRIES = PAGE_SIZE // 4
BIRTHS_PER_PAGE = PAGE_SIZE // 4
WORDS_PER_PAGE = PAGE_SIZE // 4
TOP_ENTRIES = PAGE_SIZE // 16

DIGEST_BYTES = 16
"""xxh3_128."""
DIGESTS_PER_PAGE = PAGE_SIZE // DIGEST_BYTES
MAX_BAD_CHUNKS = 65536
"""4 GiB of chunks marked bad: a medium that is worse is not repaired chunk by chunk. They are in one root record."""

MAX_NAME_BYTES = 1024
"""Longest identifier (name, volume id, guid) as UTF-8."""


class LayoutError(ValueError):
    """Bytes that are not the structure they should be."""


class Feature(enum.IntFlag):
    """Incompatible features: a reader that does not know a set bit refuses the file."""

    PARTIAL_CHUNKS = 1
    ENCRYPTION = 2
    SHARED_CHUNKS = 4


KNOWN_FEATURES = Feature.PARTIAL_CHUNKS | Feature.SHARED_CHUNKS | Feature.ENCRYPTION


class ReadOnlyFeature(enum.IntFlag):
    """Read-only-compatible features: who does not know a set bit may read the file, but not write it."""

    DIGESTS = 1
    """Some chunks are immutable although no snapshot sees them."""


KNOWN_READ_ONLY_FEATURES = ReadOnlyFeature.DIGESTS


# --- superblock -------------------------------------------------------------------------------------------------

_SUPERBLOCK = struct.Struct("<8sII QQQ 16s QII 48s IIII QQQ III I Q")
"""magic, version, size; incompat, ro_compat, compat; family; sequence, incarnation, flags; boot_id; chunk_bytes,
page_bytes, journal first chunk, journal chunks; journal offset, seq, previous; end chunk, root index pages,
reserved, reserved; root length."""
assert _SUPERBLOCK.size == 184

PAGE_REF = struct.Struct("<IQ")
"""(page, checksum); page 0 means none."""
assert PAGE_REF.size == 12

REFS_PER_INDEX_PAGE = PAGE_SIZE // PAGE_REF.size
MAX_ROOT_INDEX_PAGES = (SUPERBLOCK_SIZE - _SUPERBLOCK.size - 8) // PAGE_REF.size
SUPERBLOCK_CLEAN = 1


@dataclass(frozen=True, slots=True)
class PageRef:
    """Where a page is and what its bytes hash to."""

    page: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """One state of the file: where its root stream is and from where the journal is to be replayed."""

    family: bytes
    sequence: int
    incarnation: int
    clean: bool
    boot_id: str
    chunk_bytes: int
    journal_chunks: int
    journal_offset: int
    """Byte in the ring of the first record to replay."""
    journal_seq: int
    """Sequence number of that record; everything below is in the root stream."""
    journal_previous: int
    """Checksum of its predecessor."""
    end_chunk: int
    """Durable end: no chunk from here on holds anything."""
    root_length: int
    """Bytes of the root stream."""
    root_index: tuple[PageRef, ...]
    """Index pages, each ``REFS_PER_INDEX_PAGE`` references to pages of the root stream."""
    incompatible: int = 0
    read_only_compatible: int = 0
    compatible: int = 0

    def serialize(self) -> bytes:
        head = _SUPERBLOCK.pack(
            SUPERBLOCK_MAGIC,
            FORMAT_VERSION,
            SUPERBLOCK_SIZE,
            self.incompatible,
            self.read_only_compatible,
            self.compatible,
            self.family,
            self.sequence,
            self.incarnation,
            SUPERBLOCK_CLEAN if self.clean else 0,
            self.boot_id.encode()[:48],
            self.chunk_bytes,
            PAGE_SIZE,
            JOURNAL_FIRST_CHUNK,
            self.journal_chunks,
            self.journal_offset,
            self.journal_seq,
            self.journal_previous,
            self.end_chunk,
            len(self.root_index),
            0,
            0,
            self.root_length,
        )
        body = (head + pack_refs(self.root_index)).ljust(SUPERBLOCK_SIZE - 8, b"\0")
        return body + checksum64(body).to_bytes(8, "little")

    @classmethod
    def parse(cls, data: bytes) -> Superblock:
        if len(data) != SUPERBLOCK_SIZE or data[:8] != SUPERBLOCK_MAGIC:
            raise LayoutError("not a superblock (no magic)")
        if int.from_bytes(data[-8:], "little") != checksum64(data[:-8]):
            raise LayoutError("wrong checksum")
        fields = _SUPERBLOCK.unpack_from(data)
        (_, version, size, incompatible, ro_compatible, compatible, family, sequence, incarnation, flags) = fields[:10]
        (boot_id, chunk_bytes, page_bytes, first, chunks, offset, seq, previous, end, count, _, _, length) = fields[10:]
        if version != FORMAT_VERSION or size != SUPERBLOCK_SIZE:
            raise LayoutError(f"format version {version} is not supported (this program knows {FORMAT_VERSION})")
        if page_bytes != PAGE_SIZE or first != JOURNAL_FIRST_CHUNK:
            raise LayoutError("page size or journal position is not that of version 1")
        if count > MAX_ROOT_INDEX_PAGES:
            raise LayoutError(f"{count} root index pages")
        refs = tuple(unpack_refs(data, _SUPERBLOCK.size, count))
        return cls(
            family=family,
            sequence=sequence,
            incarnation=incarnation,
            clean=bool(flags & SUPERBLOCK_CLEAN),
            boot_id=boot_id.rstrip(b"\0").decode(errors="replace"),
            chunk_bytes=chunk_bytes,
            journal_chunks=chunks,
            journal_offset=offset,
            journal_seq=seq,
            journal_previous=previous,
            end_chunk=end,
            root_length=length,
            root_index=refs,
            incompatible=incompatible,
            read_only_compatible=ro_compatible,
            compatible=compatible,
        )


def pack_refs(refs: Iterable[PageRef]) -> bytes:
    return b"".join(PAGE_REF.pack(ref.page, ref.checksum) for ref in refs)


def unpack_refs(data: bytes | memoryview, offset: int, count: int) -> Iterator[PageRef]:
    if offset + count * PAGE_REF.size > len(data):
        raise LayoutError(f"{count} page references do not fit")
    for page, checksum in PAGE_REF.iter_unpack(data[offset : offset + count * PAGE_REF.size]):
        yield PageRef(page, checksum)


# --- root stream ------------------------------------------------------------------------------------------------

ROOT_RECORD = struct.Struct("<HHI")
"""type, flags, payload length; payloads are padded to 8 bytes."""
assert ROOT_RECORD.size == 8
ROOT_OPTIONAL = 1
"""Record flag: a reader that does not know the type may skip it; without it the file is refused."""


class RootType(enum.IntEnum):
    """Types of root stream records. QUOTAS is a reserved name, not written by version 1."""

    FILE = 1
    BIRTHS = 2
    NODE = 3
    RECLAIM = 4
    SLOTS = 5
    NODES = 6
    """A group of NODE records that has pages of its own."""
    PARTIALS = 7
    DIGESTS = 16
    ENCRYPTION = 17
    HOLDS = 18
    QUOTAS = 19
    DESCRIPTIONS = 20


def pack_root_record(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return ROOT_RECORD.pack(kind, flags, len(payload)) + payload + bytes(-len(payload) % 8)


def iter_root_records(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, payload) of each record. Raises LayoutError when a record runs over the end."""
    at = 0
    while at < len(stream):
        if at + ROOT_RECORD.size > len(stream):
            raise LayoutError("root stream ends inside a record header")
        kind, flags, length = ROOT_RECORD.unpack_from(stream, at)
        at += ROOT_RECORD.size
        if at + length > len(stream):
            raise LayoutError("root stream ends inside a record")
        yield kind, flags, stream[at : at + length]
        at += length + (-length % 8)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Scalars of the family. ``generation`` is that of the next snapshot and of chunks born now."""

    generation: int
    next_node: int
    node_count: int

    FORMAT = struct.Struct("<IIII")

    def serialize(self) -> bytes:
        return self.FORMAT.pack(self.generation, self.next_node, self.node_count, 0)

    @classmethod
    def parse(cls, data: bytes) -> FileRecord:
        generation, next_node, count, _ = _unpack(cls.FORMAT, data)
        return cls(generation, next_node, count)


@dataclass(frozen=True, slots=True)
class WordsRecord:
    """A list of uint32 in pages: births (``RootType.BIRTHS``), what is to be reclaimed (``RootType.RECLAIM``), or the
    slots (``RootType.SLOTS``: chunk and birth of each, birth 0 for a free one)."""

    count: int
    pages: tuple[PageRef, ...]

    FORMAT = struct.Struct("<QII")

    def serialize(self) -> bytes:
        return self.FORMAT.pack(self.count, len(self.pages), 0) + pack_refs(self.pages)

    @classmethod
    def parse(cls, data: bytes) -> WordsRecord:
        count, pages, _ = _unpack(cls.FORMAT, data)
        if pages != -(-count // WORDS_PER_PAGE):
            raise LayoutError(f"{count} words cannot be in {pages} pages")
        return cls(count, tuple(unpack_refs(data, cls.FORMAT.size, pages)))


@dataclass(frozen=True, slots=True)
class DigestsRecord:
    """Digests and marks (``RootType.DIGESTS``).

    ``bits``: pages of one bit for each chunk, the lowest of a byte first: whether it has a digest. ``index``: pages of
    ``ref_count`` references to the pages of digests, ``DIGESTS_PER_PAGE`` each; page 0 for one that there never was.
    """

    ref_count: int
    bits: tuple[PageRef, ...]
    index: tuple[PageRef, ...]
    bad: tuple[int, ...]
    """Chunks marked bad, ascending."""

    FORMAT = struct.Struct("<IIII")

    def serialize(self) -> bytes:
        head = self.FORMAT.pack(self.ref_count, len(self.bits), len(self.index), len(self.bad))
        return head + pack_refs(self.bits) + pack_refs(self.index) + struct.pack(f"<{len(self.bad)}I", *self.bad)

    @classmethod
    def parse(cls, data: bytes) -> DigestsRecord:
        refs, bits, index, bad = _unpack(cls.FORMAT, data)
        if bits > -(-MAX_CHUNKS // (8 * PAGE_SIZE)) or index != -(-refs * PAGE_REF.size // PAGE_SIZE):
            raise LayoutError(f"{bits} pages of bits, {index} pages for {refs} references to digests")
        at = cls.FORMAT.size
        bits_refs = tuple(unpack_refs(data, at, bits))
        index_refs = tuple(unpack_refs(data, at + bits * PAGE_REF.size, index))
        at += (bits + index) * PAGE_REF.size
        if bad > MAX_BAD_CHUNKS or at + 4 * bad != len(data):
            raise LayoutError(f"{bad} bad chunks in {len(data) - at} bytes")
        return cls(refs, bits_refs, index_refs, struct.unpack_from(f"<{bad}I", data, at))


@dataclass(frozen=True, slots=True)
class NodeGroupRecord:
    """Where a stream of NODE records is (framed as in the root stream)."""

    length: int
    pages: tuple[PageRef, ...]

    FORMAT = struct.Struct("<QII")

    def serialize(self) -> bytes:
        return self.FORMAT.pack(self.length, len(self.pages), 0) + pack_refs(self.pages)

    @classmethod
    def parse(cls, data: bytes) -> NodeGroupRecord:
        length, pages, _ = _unpack(cls.FORMAT, data)
        if not length or pages != -(-length // PAGE_SIZE):
            raise LayoutError(f"a group of nodes of {length} bytes cannot be in {pages} pages")
        return cls(length, tuple(unpack_refs(data, cls.FORMAT.size, pages)))


PARTIALS_PER_PAGE = PAGE_SIZE // 8
"""Rows (base, mask) of the table of partial chunks that one page holds."""


@dataclass(frozen=True, slots=True)
class PartialsRecord:
    """Where the pages of the table of partial chunks are that have a row (``RootType.PARTIALS``).

    Row n is about chunk n: (base u32, mask u32), with mask 0 where the chunk is not a partial one.
    """

    pages: tuple[tuple[int, PageRef], ...]
    """(number of the page in the table, reference), ascending."""

    FORMAT = struct.Struct("<II")
    ENTRY = struct.Struct("<IIQ")

    def serialize(self) -> bytes:
        entries = (self.ENTRY.pack(number, ref.page, ref.checksum) for number, ref in self.pages)
        return self.FORMAT.pack(len(self.pages), 0) + b"".join(entries)

    @classmethod
    def parse(cls, data: bytes) -> PartialsRecord:
        count, _ = _unpack(cls.FORMAT, data)
        if len(data) != cls.FORMAT.size + count * cls.ENTRY.size:
            raise LayoutError(f"{count} pages of partial chunks in {len(data)} bytes")
        entries = cls.ENTRY.iter_unpack(data[cls.FORMAT.size :])
        pages = tuple((number, PageRef(page, checksum)) for number, page, checksum in entries)
        numbers = [number for number, _ in pages]
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= MAX_CHUNKS // PARTIALS_PER_PAGE):
            raise LayoutError("the pages of partial chunks are not in order")
        return cls(pages)


assert PartialsRecord.FORMAT.size == 8
assert PartialsRecord.ENTRY.size == 16


class NodeKind(enum.IntEnum):
    HEAD = 1
    SNAPSHOT = 2


class NodeFlag(enum.IntFlag):
    HIDDEN = 1
    """The engine's own: not listed among a volume's recovery points."""
    STAGING = 2
    UNSEALED = 4
    """A snapshot whose epoch may still have writes in flight; dropped at open."""
    DELETED = 8
    """Invisible; merged away once it has at most one child."""
    RECLAIMING = 16
    """Out of the tree; its map's chunks born after ``generation`` are being freed, leaf by leaf."""
    SCHEDULED = 32
    """A snapshot that a schedule made: retention may delete it."""
    PREPARED = 64
    """A snapshot whose epoch has ended and that is kept, until the pool says whether its group snapshot exists."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node of the family tree as the root stream has it."""

    node: int
    parent: int
    """Node id; 0 for none."""
    generation: int
    """Of a snapshot; of a RECLAIMING node the generation above which chunks are its own; else 0."""
    kind: int
    flags: int
    size_bytes: int
    created_at: float
    mapped: int
    """Entries of the map that name a chunk."""
    own: int
    """Those of them born after the parent's generation."""
    leaf_count: int
    """Leaves of the map, absent ones included; top pages hold ``TOP_ENTRY`` for each."""
    deadlist_words: int
    deadlist_buckets: int
    volume_id: str
    guid: str
    name: str
    top_pages: tuple[PageRef, ...]
    deadlist_pages: tuple[PageRef, ...]
    """Stream of uint32: (birth, count) of each bucket, then the entries bucket by bucket."""

    FORMAT = struct.Struct("<III HH QdQQ II QII")

    def serialize(self) -> bytes:
        head = self.FORMAT.pack(
            self.node,
            self.parent,
            self.generation,
            self.kind,
            self.flags,
            self.size_bytes,
            self.created_at,
            self.mapped,
            self.own,
            self.leaf_count,
            self.deadlist_buckets,
            self.deadlist_words,
            len(self.top_pages),
            len(self.deadlist_pages),
        )
        names = pack_text(self.volume_id, self.guid, self.name)
        return head + names + pack_refs(self.top_pages) + pack_refs(self.deadlist_pages)

    @classmethod
    def parse(cls, data: bytes) -> NodeRecord:
        (node, parent, generation, kind, flags, size, created, mapped, own, leaves, buckets, words, tops, dead) = (
            _unpack(cls.FORMAT, data)
        )
        (volume_id, guid, name), at = unpack_text(data, cls.FORMAT.size, 3)
        if tops != -(-leaves // TOP_ENTRIES) or dead != -(-words // WORDS_PER_PAGE):
            raise LayoutError(f"node {node} has {tops} top pages for {leaves} leaves, {dead} for {words} dead words")
        top_pages = tuple(unpack_refs(data, at, tops))
        dead_pages = tuple(unpack_refs(data, at + tops * PAGE_REF.size, dead))
        return cls(
            node=node,
            parent=parent,
            generation=generation,
            kind=kind,
            flags=flags,
            size_bytes=size,
            created_at=created,
            mapped=mapped,
            own=own,
            leaf_count=leaves,
            deadlist_words=words,
            deadlist_buckets=buckets,
            volume_id=volume_id,
            guid=guid,
            name=name,
            top_pages=top_pages,
            deadlist_pages=dead_pages,
        )


assert NodeRecord.FORMAT.size == 72

TOP_ENTRY = struct.Struct("<IIQ")
"""(leaf page, birth of the leaf, checksum of the leaf); page 0: the leaf is absent, all its entries EMPTY."""
assert TOP_ENTRY.size == 16


# --- journal ----------------------------------------------------------------------------------------------------

RECORD_UNIT = 64
"""Records begin at multiples of it in the ring, so that a PAD record always fits."""
RECORD_MAGIC = 0x4A56_5754  # "TWVJ"
RECORD_HEADER = struct.Struct("<QIHHIIQIIQ")
"""checksum, magic, type, flags, length (whole record, a multiple of ``RECORD_UNIT``), payload length, seq,
incarnation, reserved, checksum of the predecessor."""
assert RECORD_HEADER.size == 48
MAX_RECORD_BYTES = 32 * 1024
COMMIT_ALIGNMENT = 512
"""A COMMIT ends with its sector, so that no later write touches one that a flush made durable."""


class RecordType(enum.IntEnum):
    """Journal records. HOLD, RELEASE and DESCRIBE have their payloads in ``layout_notes.py``."""

    PAD = 1
    COMMIT = 2
    MAP = 3
    SNAPSHOT_BEGIN = 4
    SNAPSHOT_SEAL = 5
    CLONE = 6
    ROLLBACK = 7
    DELETE = 8
    MERGE = 9
    RECLAIM = 10
    RESIZE = 11
    RENAME = 12
    STAGING_BEGIN = 13
    STAGING_COMMIT = 14
    METADATA = 15
    FAILED = 16
    SHARE = 17
    PARTIAL = 18
    HOLD = 24
    RELEASE = 25
    DESCRIBE = 26
    MARK = 40
    GROUP_PREPARE = 32
    SEPARATE = 44
    ADOPT = 45


@dataclass(frozen=True, slots=True)
class Record:
    """One parsed journal record."""

    type: int
    seq: int
    checksum: int
    length: int
    payload: bytes


def pack_record(
    kind: int, seq: int, incarnation: int, previous: int, payload: bytes, length: int
) -> tuple[memoryview, int]:
    """The bytes of a record of ``length`` bytes in all, and its checksum."""
    record = memoryview(bytearray(length))
    RECORD_HEADER.pack_into(record, 0, 0, RECORD_MAGIC, kind, 0, length, len(payload), seq, incarnation, 0, previous)
    record[RECORD_HEADER.size : RECORD_HEADER.size + len(payload)] = payload
    checksum = checksum64(record[8:])
    record[:8] = checksum.to_bytes(8, "little")
    return record, checksum


def record_length(payload_length: int) -> int:
    return -(-(RECORD_HEADER.size + payload_length) // RECORD_UNIT) * RECORD_UNIT


def parse_record(ring: memoryview, offset: int, seq: int, incarnation: int, previous: int) -> Record | None:
    """The record at ``offset`` of the ring if it is valid and the expected one, else None: the journal ends there."""
    if offset + RECORD_HEADER.size > len(ring):
        return None
    checksum, magic, kind, _, length, size, found_seq, found_incarnation, _, found_previous = RECORD_HEADER.unpack_from(
        ring, offset
    )
    if (magic, found_seq, found_incarnation, found_previous) != (RECORD_MAGIC, seq, incarnation, previous):
        return None
    if length % RECORD_UNIT or not record_length(size) <= length <= len(ring) - offset:
        return None
    if checksum64(ring[offset + 8 : offset + length]) != checksum:
        return None
    start = offset + RECORD_HEADER.size
    return Record(kind, seq, checksum, length, bytes(ring[start : start + size]))


def is_rotten(ring: memoryview, offset: int, seq: int, incarnation: int, previous: int) -> bool:
    """Whether the expected record stood at ``offset`` of what one page cache has, and has changed since, where
    ``parse_record`` finds none: a process that ends leaves of what lies within one sector all or nothing.

    Either it says that it is the expected one, and lies within one sector or is not as long as its payload wants. Or it
    would verify if it said so, or said that it is a COMMIT. After a power loss this says nothing: hosts read a page for
    the medium while a program appends to it, and may have taken any part of a record.
    """
    if offset + RECORD_HEADER.size > len(ring):
        return False
    checksum, magic, kind, flags, length, size, found_seq, found_incarnation, reserved, found_previous = (
        RECORD_HEADER.unpack_from(ring, offset)
    )
    if (magic, found_seq, found_incarnation, found_previous) == (RECORD_MAGIC, seq, incarnation, previous):
        within_sector = 0 < length <= COMMIT_ALIGNMENT - offset % COMMIT_ALIGNMENT
        if kind == RecordType.COMMIT or within_sector or (kind != RecordType.PAD and length != record_length(size)):
            return True
        kind = RecordType.COMMIT
    if not RECORD_HEADER.size <= length <= MAX_RECORD_BYTES:
        return False
    record = bytearray(ring[offset : offset + length])
    expected = (checksum, RECORD_MAGIC, kind, flags, length, size, seq, incarnation, reserved, previous)
    RECORD_HEADER.pack_into(record, 0, *expected)
    return parse_record(memoryview(record), 0, seq, incarnation, previous) is not None


MAP_HEADER = struct.Struct("<II")
"""node, number of items."""
MAP_ITEM = struct.Struct("<III")
"""(first index, count, entry): ``count`` indexes that become EMPTY or ZERO, or the chunks entry, entry + 1, ..."""
assert MAP_ITEM.size == 12
MAX_MAP_ITEMS = (MAX_RECORD_BYTES - RECORD_HEADER.size - MAP_HEADER.size) // MAP_ITEM.size


def pack_map(node: int, items: bytes) -> bytes:
    return MAP_HEADER.pack(node, len(items) // MAP_ITEM.size) + items


def unpack_map(payload: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    node, count = _unpack(MAP_HEADER, payload)
    if len(payload) != MAP_HEADER.size + count * MAP_ITEM.size:
        raise LayoutError(f"MAP record of {count} items in {len(payload)} bytes")
    return node, list(MAP_ITEM.iter_unpack(payload[MAP_HEADER.size :]))


SHARE_HEADER = struct.Struct("<II")
"""node, number of items."""
SHARE_ITEM = struct.Struct("<IIII")
"""(first index, count, first slot, first chunk): ``count`` indexes that become the slots from the first on, new ones
that name the chunks from the first on; or, with slot 0 and "chunk" EMPTY or ZERO, that."""
MAX_SHARE_ITEMS = 252
"""What fits in a record of 4 KiB."""
assert RECORD_HEADER.size + SHARE_HEADER.size + MAX_SHARE_ITEMS * SHARE_ITEM.size <= 4096


def pack_share(node: int, items: bytes) -> bytes:
    return SHARE_HEADER.pack(node, len(items) // SHARE_ITEM.size) + items


def unpack_share(payload: bytes) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Node and items, (index, count, slot, chunk) each. Raises LayoutError for items that no state of a file allows:
    they do not ascend, or two of them make one slot."""
    node, count = _unpack(SHARE_HEADER, payload)
    if not count or len(payload) != SHARE_HEADER.size + count * SHARE_ITEM.size:
        raise LayoutError(f"SHARE record of {count} items in {len(payload)} bytes")
    items = list(SHARE_ITEM.iter_unpack(payload[SHARE_HEADER.size :]))
    slots: list[tuple[int, int]] = []
    end = 0
    for index, length, slot, chunk in items:
        good = 0 < length <= LEAF_ENTRIES and end <= index and index + length <= MAX_VOLUME_CHUNKS
        end = index + length
        if chunk >= FIRST_CHUNK_ENTRY:
            slots.append((slot, slot + length))
            good = good and slot + length <= MAX_SLOTS and chunk + length <= MAX_CHUNKS
        if not good or (chunk < FIRST_CHUNK_ENTRY and slot):
            raise LayoutError(f"SHARE record: indexes {index}+{length} as slots {slot} of chunks {chunk}")
    slots.sort()
    if any(behind[0] < before[1] for before, behind in itertools.pairwise(slots)):
        raise LayoutError("SHARE record that makes a slot twice")
    return node, items


PARTIAL_HEADER = struct.Struct("<II")
"""node, number of items."""
PARTIAL_ITEM = struct.Struct("<IIII")
"""(index, chunk, base, mask): the index becomes the partial chunk, whose pages in the mask are its own while the rest
is the base's (a claim); or, with base 0 and the full mask, the chunk."""
assert PARTIAL_ITEM.size == 16
MAX_PARTIAL_ITEMS = (MAX_RECORD_BYTES - RECORD_HEADER.size - PARTIAL_HEADER.size) // PARTIAL_ITEM.size


def pack_partial(node: int, items: bytes) -> bytes:
    return PARTIAL_HEADER.pack(node, len(items) // PARTIAL_ITEM.size) + items


def unpack_partial(payload: bytes) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Node and items, (index, chunk, base, mask) each. Raises LayoutError for what no state of a file allows."""
    node, count = _unpack(PARTIAL_HEADER, payload)
    if not count or len(payload) != PARTIAL_HEADER.size + count * PARTIAL_ITEM.size:
        raise LayoutError(f"PARTIAL record of {count} items in {len(payload)} bytes")
    items = list(PARTIAL_ITEM.iter_unpack(payload[PARTIAL_HEADER.size :]))
    for index, chunk, base, mask in items:
        whole = base == EMPTY and mask == FULL_MASK
        good = 0 < mask <= FULL_MASK and FIRST_CHUNK_ENTRY <= base < PARTIAL and base != chunk
        if not (good or whole) or not FIRST_CHUNK_ENTRY <= chunk < MAX_CHUNKS or index >= MAX_VOLUME_CHUNKS:
            raise LayoutError(f"PARTIAL record: index {index} as pages {mask:#x} of chunk {chunk} over {base}")
    return node, items


COMMIT = struct.Struct("<Q")
"""covers: the sequence number up to which everything is committed."""
SNAPSHOT_BEGIN = struct.Struct("<IIId")
"""head, new node, flags of the node, creation time; text: guid, name."""
CLONE = struct.Struct("<IId")
"""snapshot, new head, creation time; text: volume id, name."""
ROLLBACK = struct.Struct("<II")
"""head, snapshot that it becomes."""
NODE_ID = struct.Struct("<I")
"""SNAPSHOT_SEAL, MERGE: the node. RENAME: the node; text: name. DELETE, GROUP_PREPARE: any number of nodes."""
RECLAIM = struct.Struct("<I")
"""Steps of the reclaim queue that were taken."""
RESIZE = struct.Struct("<IQ")
"""head, size in bytes."""
STAGING_BEGIN = struct.Struct("<IIId")
"""head of the volume, base snapshot or 0, new node, creation time."""
STAGING_COMMIT = struct.Struct("<IIId")
"""staging node (becomes a snapshot), head of the volume (becomes its child), id of the node that takes over the
head's old content and is deleted, creation time; text: guid, name."""
MARK = struct.Struct("<II")
"""chunk, 1: it is bad, 0: it has been repaired. Any number of them."""
METADATA = struct.Struct("<II")
"""first chunk, count: free chunks that became metadata chunks."""


def pack_text(*values: str) -> bytes:
    parts = []
    for value in values:
        raw = value.encode()
        if len(raw) > MAX_NAME_BYTES:
            raise LayoutError(f"text of {len(raw)} bytes is longer than {MAX_NAME_BYTES}")
        parts.append(len(raw).to_bytes(2, "little") + raw)
    return b"".join(parts)


def unpack_text(data: bytes, at: int, count: int) -> tuple[list[str], int]:
    """``count`` texts from ``at``, and where they end."""
    values = []
    for _ in range(count):
        length = int.from_bytes(data[at : at + 2], "little")
        raw = data[at + 2 : at + 2 + length]
        if len(raw) != length or length > MAX_NAME_BYTES or at + 2 > len(data):
            raise LayoutError("text runs over its record")
        try:
            values.append(raw.decode())
        except UnicodeDecodeError:
            raise LayoutError("text is not UTF-8") from None
        at += 2 + length
    return values, at


def unpack_fields(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """The fixed part of a journal payload."""
    return _unpack(layout, payload)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) < layout.size:
        raise LayoutError(f"{len(data)} bytes are too short for {layout.size}")
    return layout.unpack_from(data)
