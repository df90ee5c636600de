"""The structures of a VHDX file from literal bytes and back, cut off and spoilt variants beside each.

The bytes are written out by hand from MS-VHDX v2; CRC-32C is computed here bit by bit, not by the library.
"""

from __future__ import annotations

import struct
import uuid

import pytest

from engine.errors import NotSupported, StoreCorrupt
from engine.units import KIB, MIB
from engine.vhdx import layout
from engine.vhdx.layout import Disk, Geometry, Header, ParentLocator, Region
from engine.vhdx.log import LogEntry, Page, Replay, Zeroes, active_sequence

GUIDS = [uuid.UUID(bytes_le=bytes([number] * 16)) for number in (1, 2, 3)]


def crc32c(data: bytes) -> int:
    """Bit by bit: reflected polynomial 0x82F63B78."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sealed(data: bytes) -> bytes:
    """With the checksum that stands at 4."""
    assert data[4:8] == bytes(4)
    return data[:4] + crc32c(data).to_bytes(4, "little") + data[8:]


def test_the_checksum_is_crc32c():
    assert crc32c(b"123456789") == layout.crc32c(b"123456789") == 0xE3069283


# --- headers ------------------------------------------------------------------------------------------------------

HEADER = sealed(
    (
        b"head" + bytes(4) + bytes.fromhex("0807060504030201") + b"\x01" * 16 + b"\x02" * 16 + b"\x03" * 16
        + bytes.fromhex("0000 0100 00001000 0000200000000000")
    ).ljust(4096, b"\0")
)  # fmt: skip


def test_header():
    header = Header(0x0102030405060708, *GUIDS, log_offset=2 * MIB, log_length=MIB)
    assert Header.parse(HEADER) == header
    assert header.serialize() == HEADER


@pytest.mark.parametrize(
    "spoilt",
    [HEADER[:4095], b"Head" + HEADER[4:], HEADER[:4] + b"\0\0\0\0" + HEADER[8:], HEADER[:-1] + b"\1", b""],
    ids=["cut off", "signature", "checksum", "reserved byte", "empty"],
)
def test_a_spoilt_header_is_refused(spoilt: bytes):
    with pytest.raises(StoreCorrupt):
        Header.parse(spoilt)


def test_a_header_of_another_version_is_refused():
    version_2 = sealed(HEADER[:4] + bytes(4) + HEADER[8:66] + b"\2\0" + HEADER[68:])
    with pytest.raises(StoreCorrupt, match="version 2"):
        Header.parse(version_2)


def header(sequence: int, **changes: object) -> bytes:
    fields: dict[str, object] = {"log_offset": MIB, "log_length": MIB, **changes}
    return Header(sequence, *GUIDS, **fields).serialize()  # type: ignore[arg-type]


def test_the_valid_header_with_the_larger_number_counts():
    assert layout.current_header((header(4), header(5))).sequence == 5
    assert layout.current_header((header(6), header(5))).sequence == 6
    assert layout.current_header((bytes(4096), header(5))).sequence == 5
    assert layout.current_header((header(6), b"x" * 4096)).sequence == 6
    assert layout.current_header((header(6), header(6))).sequence == 6, "two identical ones are one"


def test_headers_that_decide_nothing_are_refused():
    with pytest.raises(StoreCorrupt, match="neither"):
        layout.current_header((bytes(4096), bytes(4096)))
    with pytest.raises(StoreCorrupt, match="different"):
        layout.current_header((header(6), header(6, log_length=2 * MIB)))


@pytest.mark.parametrize(
    "changes", [{"log_offset": 0}, {"log_offset": MIB + 4096}, {"log_length": 4096}, {"log_offset": 1 << 62}]
)
def test_a_log_in_no_place_for_one_is_refused(changes: dict[str, int]):
    with pytest.raises(StoreCorrupt):
        layout.current_header((header(1, **changes), header(0)))


def test_a_log_of_another_version_is_refused_when_it_is_in_use():
    with pytest.raises(NotSupported):
        layout.current_header((header(1, log_version=1), header(0)))


# --- region table -------------------------------------------------------------------------------------------------

BAT_ENTRY = bytes.fromhex("6677c22d 23f6 0042 9d64 115e9bfd4a08  0000300000000000 00001000 01000000")
METADATA_ENTRY = bytes.fromhex("06a27c8b 9047 9a4b b8fe 575f050f886e  0000200000000000 00001000 01000000")


def region_table(*entries: bytes, count: int | None = None) -> bytes:
    number = len(entries) if count is None else count
    return sealed((b"regi" + bytes(4) + struct.pack("<II", number, 0) + b"".join(entries)).ljust(65536, b"\0"))


def test_region_table():
    table = region_table(BAT_ENTRY, METADATA_ENTRY)
    regions = [Region(layout.BAT_REGION, 3 * MIB, MIB), Region(layout.METADATA_REGION, 2 * MIB, MIB)]
    assert layout.parse_region_table(table) == regions
    assert layout.serialize_region_table(regions) == table


def test_an_unknown_region_is_carried_unless_it_is_required():
    unknown = b"\x09" * 16 + bytes.fromhex("0000400000000000 00001000")
    regions = layout.parse_region_table(region_table(BAT_ENTRY, METADATA_ENTRY, unknown + bytes(4)))
    assert regions[2] == Region(uuid.UUID(bytes_le=b"\x09" * 16), 4 * MIB, MIB, required=False)
    with pytest.raises(NotSupported):
        layout.parse_region_table(region_table(BAT_ENTRY, METADATA_ENTRY, unknown + b"\1\0\0\0"))


def test_qemu_does_not_flag_its_regions_required():
    table = region_table(BAT_ENTRY[:28] + bytes(4), METADATA_ENTRY[:28] + bytes(4))
    assert [region.required for region in layout.parse_region_table(table)] == [False, False]


@pytest.mark.parametrize(
    "table",
    [
        region_table(BAT_ENTRY, METADATA_ENTRY)[:65535],
        b"Regi" + region_table(BAT_ENTRY, METADATA_ENTRY)[4:],
        region_table(BAT_ENTRY, METADATA_ENTRY)[:-1] + b"\1",
        region_table(BAT_ENTRY, METADATA_ENTRY, count=2048),
        region_table(BAT_ENTRY),
        region_table(METADATA_ENTRY),
        region_table(BAT_ENTRY, METADATA_ENTRY, BAT_ENTRY),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + BAT_ENTRY[16:]),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + bytes.fromhex("0000000000000000 00001000 01000000")),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + bytes.fromhex("0010200000000000 00001000 01000000")),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + bytes.fromhex("0000200000000000 00100000 01000000")),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + bytes.fromhex("0000200000000000 00000000 01000000")),
        region_table(BAT_ENTRY, METADATA_ENTRY[:16] + bytes.fromhex("000020000000ff00 00001000 01000000")),
    ],
    ids=["cut off", "signature", "checksum", "count", "no metadata", "no BAT", "BAT twice", "overlap", "at 0",
         "unaligned", "odd length", "empty", "far away"],
)  # fmt: skip
def test_a_region_table_that_cannot_be_is_refused(table: bytes):
    with pytest.raises(StoreCorrupt):
        layout.parse_region_table(table)


# --- metadata -----------------------------------------------------------------------------------------------------

ITEMS = [
    (layout.FILE_PARAMETERS, "3767a1ca 36fa 434d b3b6 33f0aa44e76b", "0000200000000000", 4),
    (layout.VIRTUAL_DISK_SIZE, "2442a52f 1bcd 7648 b211 5dbed83bf4b8", "0000001000000000", 6),
    (layout.VIRTUAL_DISK_ID, "ab12cabe e6b2 2345 93ef c309e000c746", "03" * 16, 6),
    (layout.LOGICAL_SECTOR_SIZE, "1dbf4181 6fa9 0947 ba47 f233a8faab5f", "00020000", 6),
    (layout.PHYSICAL_SECTOR_SIZE, "c748a3cd 5d44 7144 9cc9 e9885251c556", "00100000", 6),
]
DISK = Disk(2 * MIB, 256 * MIB, GUIDS[2])


def metadata(items: list[tuple[object, str, str, int]], *, at: int = 65536, count: int | None = None) -> bytes:
    table, values = bytearray(b"metadata" + bytes(2)), b""
    table += struct.pack("<H", len(items) if count is None else count) + bytes(20)
    for _, guid, value, flags in items:
        raw = bytes.fromhex(value)
        table += bytes.fromhex(guid) + struct.pack("<IIII", at + len(values), len(raw), flags, 0)
        values += raw
    return bytes(table).ljust(65536, b"\0") + values


def test_metadata():
    raw = metadata(ITEMS)
    items = layout.parse_metadata_table(raw, MIB)
    assert list(items) == [guid for guid, *_ in ITEMS]
    values = {guid: raw[item.offset : item.offset + item.length] for guid, item in items.items()}
    assert Disk.parse(values) == DISK
    assert layout.serialize_metadata(DISK) == raw


UNKNOWN = "09" * 16


@pytest.mark.parametrize(
    "raw",
    [
        metadata(ITEMS)[:65535],
        b"Metadata" + metadata(ITEMS)[8:],
        metadata(ITEMS, count=2048),
        metadata(ITEMS[:-1]),
        metadata([*ITEMS[:-1], (None, ITEMS[-1][1], "0010", 6)]),
        metadata([*ITEMS, ITEMS[0]]),
        metadata(ITEMS, at=65535),
        metadata(ITEMS, at=MIB),
        metadata([*ITEMS, (None, UNKNOWN, "00" * (MIB + 1), 2)])[:65536],
    ],
    ids=["cut off", "signature", "count", "one missing", "length", "twice", "in the table", "beyond", "too long"],
)
def test_a_metadata_table_that_cannot_be_is_refused(raw: bytes):
    with pytest.raises(StoreCorrupt):
        layout.parse_metadata_table(raw, MIB)


def test_items_that_overlap_are_refused():
    raw = bytearray(metadata(ITEMS))
    raw[32 + 32 + 16 : 32 + 32 + 20] = (65536 + 4).to_bytes(4, "little")
    with pytest.raises(StoreCorrupt, match="overlap"):
        layout.parse_metadata_table(bytes(raw), MIB)


def test_an_unknown_item_is_left_alone_unless_it_is_required():
    assert len(layout.parse_metadata_table(metadata([*ITEMS, (None, UNKNOWN, "ff", 1)]), MIB)) == 5
    assert len(layout.parse_metadata_table(metadata([*ITEMS, (None, UNKNOWN, "ff", 0)]), MIB)) == 6
    for flags in (4, 5, 6):
        with pytest.raises(NotSupported):
            layout.parse_metadata_table(metadata([*ITEMS, (None, UNKNOWN, "ff", flags)]), MIB)


@pytest.mark.parametrize(
    ("guid", "value"),
    [
        (layout.FILE_PARAMETERS, "0000080000000000"),  # 512 KiB
        (layout.FILE_PARAMETERS, "0000300000000000"),  # 3 MiB
        (layout.FILE_PARAMETERS, "0000002000000000"),  # 512 MiB
        (layout.FILE_PARAMETERS, "0000200004000000"),  # a reserved flag
        (layout.VIRTUAL_DISK_SIZE, "0000000000000000"),
        (layout.VIRTUAL_DISK_SIZE, "0100000000000000"),
        (layout.VIRTUAL_DISK_SIZE, "0002000000400000"),  # 64 TiB and a sector
        (layout.LOGICAL_SECTOR_SIZE, "00040000"),
        (layout.PHYSICAL_SECTOR_SIZE, "00000000"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(guid: uuid.UUID, value: str):
    values = {item: bytes.fromhex(usual) for item, _, usual, _ in ITEMS}
    with pytest.raises(StoreCorrupt):
        Disk.parse({**values, guid: bytes.fromhex(value)})  # type: ignore[dict-item]


# --- parent locator -----------------------------------------------------------------------------------------------

LINKAGE = "{04030201-0605-0807-090a-0b0c0d0e0f10}"


def locator(*pairs: tuple[str, str], count: int | None = None) -> bytes:
    head = bytes.fromhex("b7ef4ab0 9ed1 814a b789 25b8e9445913")
    strings, entries = b"", b""
    start = 20 + 12 * len(pairs)
    for key, value in pairs:
        name, text = key.encode("utf-16-le"), value.encode("utf-16-le")
        at = start + len(strings)
        entries += struct.pack("<IIHH", at, at + len(name), len(name), len(text))
        strings += name + text
    return head + struct.pack("<HH", 0, len(pairs) if count is None else count) + entries + strings


PATH = ("relative_path", ".\\parent.vhdx")


def test_parent_locator():
    raw = locator(("parent_linkage", LINKAGE), PATH)
    found = ParentLocator.parse(raw)
    assert found.pairs == {"parent_linkage": LINKAGE, "relative_path": ".\\parent.vhdx"}
    assert [each.bytes_le for each in found.linkages()] == [bytes(range(1, 17))]
    assert found.serialize() == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        locator(("parent_linkage", LINKAGE), PATH)[:-1],
        locator(("parent_linkage", LINKAGE), PATH, count=65),
        locator(("parent_linkage", LINKAGE), PATH, count=40),
        locator(PATH),
        locator(("parent_linkage", LINKAGE)),
        locator(("parent_linkage", "{no}"), PATH),
        locator(("parent_linkage", LINKAGE), PATH, PATH),
        locator(("parent_linkage", LINKAGE), ("relative_path", "a\0b")),
        locator(("parent_linkage", LINKAGE), PATH)[:-2] + b"\x00\xd8",
    ],
    ids=[
        "empty",
        "cut off",
        "count",
        "more than there is",
        "no linkage",
        "no path",
        "no GUID",
        "twice",
        "NUL",
        "UTF-16",
    ],
)
def test_a_parent_locator_that_cannot_be_is_refused(raw: bytes):
    with pytest.raises(StoreCorrupt):
        ParentLocator.parse(raw)


def test_a_parent_of_another_format_is_refused():
    with pytest.raises(NotSupported):
        ParentLocator.parse(b"\1" + locator(("parent_linkage", LINKAGE), PATH)[1:])


# --- block allocation table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "block", "sector", "parent", "ratio", "blocks", "entries"),
    [
        (1 << 40, 1 * MIB, 512, False, 4096, 1 << 20, (1 << 20) + 255),
        (1 << 40, 2 * MIB, 512, False, 2048, 1 << 19, (1 << 19) + 255),
        (1 << 40, 32 * MIB, 512, False, 128, 1 << 15, (1 << 15) + 255),
        (1 << 40, 256 * MIB, 512, False, 16, 1 << 12, (1 << 12) + 255),
        (1 << 40, 1 * MIB, 4096, False, 32768, 1 << 20, (1 << 20) + 31),
        (10 * MIB + 512, 1 * MIB, 512, False, 4096, 11, 11),
        (10 * MIB + 512, 1 * MIB, 512, True, 4096, 11, 4097),
        (512, 1 * MIB, 512, False, 4096, 1, 1),
        (4 << 30, 1 * MIB, 512, False, 4096, 4096, 4096),
        ((4 << 30) + 512, 1 * MIB, 512, False, 4096, 4097, 4098),
    ],
)
def test_the_table_of_blocks(size, block, sector, parent, ratio, blocks, entries):
    geometry = Geometry(size, block, sector, parent)
    assert (geometry.chunk_ratio, geometry.blocks, geometry.entries) == (ratio, blocks, entries)


def test_where_a_block_is_in_the_table():
    geometry = Geometry(64 << 40, 1 * MIB, 512)
    assert [geometry.payload_index(block) for block in (0, 4095, 4096, 8192)] == [0, 4095, 4097, 8194]
    assert [geometry.bitmap_index(block) for block in (0, 4095, 4096)] == [4096, 4096, 8193]
    assert geometry.bat_bytes == 513 * MIB


# --- log ----------------------------------------------------------------------------------------------------------

LOG_GUID = GUIDS[2]
PAGE = bytes(range(256)) * 16
ENTRY = sealed(
    (
        b"loge" + bytes(4)
        + bytes.fromhex("00200000 00000000 0500000001000000 02000000 00000000") + b"\3" * 16
        + bytes.fromhex("0000400000000000 0000500000000000")
        + b"desc" + bytes.fromhex("fcfdfeff 0001020304050607 0000300000000000 0500000001000000")
        + b"zero" + bytes.fromhex("00000000 0020000000000000 0000380000000000 0500000001000000")
    ).ljust(4096, b"\0")
    + b"data" + bytes.fromhex("01000000") + PAGE[8:4092] + bytes.fromhex("05000000")
)  # fmt: skip


def test_log_entry():
    entry = LogEntry(
        0x100000005, 0, LOG_GUID, 4 * MIB, 5 * MIB, (Page(3 * MIB, PAGE), Zeroes(3 * MIB + 512 * KIB, 8192))
    )
    assert entry.serialize() == ENTRY
    assert entry.length == len(ENTRY) == 8192
    assert active_sequence(ENTRY.ljust(MIB, b"\0"), LOG_GUID) == [entry]


@pytest.mark.parametrize("at", [0, 8, 20, 35, 50, 63, 64, 70, 90, 100, 4000, 4096, 4100, 5000, 8191])
def test_an_entry_with_a_flipped_bit_is_none(at: int):
    spoilt = bytearray(ENTRY)
    spoilt[at] ^= 4
    with pytest.raises(StoreCorrupt):
        active_sequence(bytes(spoilt).ljust(MIB, b"\0"), LOG_GUID)


def resealed(raw: bytes, at: int, new: bytes) -> bytes:
    return sealed(raw[:4] + bytes(4) + raw[8:at] + new + raw[at + len(new) :])


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (8, b"\0\x10\0\0"),  # shorter than what it has
        (8, b"\0\0\x20\0"),  # longer than the log
        (12, b"\0\x08\0\0"),  # a tail within a sector
        (16, bytes(8)),  # no sequence number
        (24, b"\3\0\0\0"),  # more descriptors
        (24, b"\xff\xff\xff\xff"),
        (64, b"Desc"),
        (80, b"\1"),  # an unaligned page
        (88, b"\6"),  # another entry's descriptor
        (4096, b"Data"),
        (4100, b"\2"),  # another entry's page
        (8188, b"\6"),
    ],
)
def test_an_entry_that_contradicts_itself_is_none(at: int, new: bytes):
    with pytest.raises(StoreCorrupt):
        active_sequence(resealed(ENTRY, at, new).ljust(MIB, b"\0"), LOG_GUID)


def in_use(log_offset: int = MIB) -> Header:
    return Header(1, GUIDS[0], GUIDS[1], LOG_GUID, log_offset, MIB)


def entries(*numbers: int, tail: int = 0) -> list[LogEntry]:
    """Each marks page ``number`` of the second MiB with its number."""
    return [
        LogEntry(n, tail, LOG_GUID, 8 * MIB, 8 * MIB, (Page(2 * MIB + n * 4096, bytes([n]) * 4096),)) for n in numbers
    ]


def placed(log: bytearray, at: int, entry: LogEntry) -> int:
    """Write an entry into the circle; where the next one goes."""
    for index, byte in enumerate(memoryview(entry.serialize())):
        log[(at + index) % len(log)] = byte
    return (at + entry.length) % len(log)


def test_entries_are_replayed_from_the_last_ones_tail():
    log = bytearray(MIB)
    at = 0
    for entry in entries(5, 6) + entries(7, tail=8192):
        at = placed(log, at, entry)
    assert [entry.sequence for entry in active_sequence(log, LOG_GUID)] == [6, 7]


def test_a_torn_entry_ends_the_sequence():
    log = bytearray(MIB)
    at = 0
    for entry in entries(5, 6, 7):
        at = placed(log, at, entry)
    log[2 * 8192 + 5000] ^= 1
    assert [entry.sequence for entry in active_sequence(log, LOG_GUID)] == [5, 6]


def test_entries_that_wrap_round_the_end_are_found():
    log = bytearray(MIB)
    at = start = MIB - 4096
    for entry in entries(5, 6, tail=start):
        at = placed(log, at, entry)
    assert [entry.sequence for entry in active_sequence(log, LOG_GUID)] == [5, 6]


def test_of_several_sequences_the_newest_counts_and_stale_ones_do_not():
    log = bytearray(MIB)
    placed(log, 0, entries(9, tail=0)[0])
    placed(log, 512 * KIB, entries(4, tail=512 * KIB)[0])
    stale = LogEntry(50, 256 * KIB, GUIDS[0], 0, 0)
    placed(log, 256 * KIB, stale)
    assert [entry.sequence for entry in active_sequence(log, LOG_GUID)] == [9]


def test_a_sequence_whose_tail_is_gone_is_of_no_use():
    log = bytearray(MIB)
    placed(log, 64 * KIB, entries(5, tail=0)[0])
    with pytest.raises(StoreCorrupt):
        active_sequence(log, LOG_GUID)


def test_replay_lays_the_newest_over_what_was_read():
    base, other = 4 * MIB, bytes([7]) * 4096
    first = LogEntry(
        1, 0, LOG_GUID, 8 * MIB, 8 * MIB, (Page(base, PAGE), Page(base + 4096, PAGE), Page(base + 16384, PAGE))
    )
    second = LogEntry(2, 0, LOG_GUID, 8 * MIB, 9 * MIB, (Zeroes(base + 4096, 8192), Page(base + 8192, other)))
    log = bytearray(MIB)
    placed(log, placed(log, 0, first), second)
    replay = Replay.of(log, in_use(), 8 * MIB)
    assert replay.file_bytes == 9 * MIB
    view = bytearray(b"\xee" * 24576)
    replay.apply(base - 4096, memoryview(view))
    assert view == b"\xee" * 4096 + PAGE + bytes(4096) + other + b"\xee" * 4096 + PAGE
    inner = bytearray(b"\xee" * 1000)
    replay.apply(base + 3900, memoryview(inner))
    assert inner == PAGE[3900:] + bytes(804)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (LogEntry(1, 0, LOG_GUID, 8 * MIB + 1, 8 * MIB), "cut off"),
        (LogEntry(1, 0, LOG_GUID, 0, 1 << 60), "bytes long"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Page(64 * KIB, PAGE),)), "header"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Page(MIB + 4096, PAGE),)), "itself"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Zeroes(512 * KIB, MIB),)), "itself"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Page(8 * MIB, PAGE),)), "beyond"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Zeroes(4 * MIB, (1 << 64) - 4096),)), "beyond"),
        (LogEntry(1, 0, LOG_GUID, 0, 0, (Zeroes(4 * MIB, 100),)), "part of a page"),
    ],
)
def test_a_log_that_writes_where_it_may_not_is_refused(entry: LogEntry, what: str):
    log = bytearray(MIB)
    placed(log, 0, entry)
    with pytest.raises(StoreCorrupt, match=what):
        Replay.of(log, in_use(), 8 * MIB)


def test_entries_laid_over_each_other_cost_a_bounded_amount():
    """Every sector claims to begin an entry as long as the log: checksumming them all would be quadratic."""
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, MIB, 0, 1, 0, 0, LOG_GUID.bytes_le, 0, 0).ljust(4096, b"\0")
    with pytest.raises(StoreCorrupt, match="overlap"):
        active_sequence(head * 256, LOG_GUID)
