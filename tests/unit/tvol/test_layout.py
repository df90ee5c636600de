"""On-disk structures: literal bytes where they are fixed for ever, round trips and damage elsewhere."""

import struct

import pytest

from engine.tvol import layout
from engine.tvol.layout import FileRecord, LayoutError, NodeRecord, PageRef, RecordType, Superblock, WordsRecord

SUPERBLOCK = Superblock(
    family=bytes(range(16)),
    sequence=7,
    incarnation=3,
    clean=True,
    boot_id="b0071d00-0000-4000-8000-000000000001",
    chunk_bytes=65536,
    journal_chunks=64,
    journal_offset=640,
    journal_seq=99,
    journal_previous=0x1122334455667788,
    end_chunk=4711,
    root_length=12345,
    root_index=(PageRef(260, 0xAABBCCDD), PageRef(261, 2)),
)

NODE = NodeRecord(
    node=5,
    parent=4,
    generation=9,
    kind=2,
    flags=1,
    size_bytes=1 << 30,
    created_at=1.5,
    mapped=10,
    own=3,
    leaf_count=4,
    deadlist_words=6,
    deadlist_buckets=2,
    volume_id="volume",
    guid="guid",
    name="näme",
    top_pages=(PageRef(300, 1),),
    deadlist_pages=(PageRef(301, 2),),
)


def test_superblock_fields_are_where_the_format_says():
    data = SUPERBLOCK.serialize()
    assert len(data) == 4096
    assert data[:16] == b"TWINVOL\x01" + struct.pack("<II", 1, 4096)
    assert data[40:56] == bytes(range(16))
    assert struct.unpack_from("<QII", data, 56) == (7, 3, 1)
    assert data[72:108] == b"b0071d00-0000-4000-8000-000000000001"
    assert struct.unpack_from("<IIII", data, 120) == (65536, 16384, 1, 64)
    assert struct.unpack_from("<QQQ", data, 136) == (640, 99, 0x1122334455667788)
    assert struct.unpack_from("<II", data, 160) == (4711, 2)
    assert struct.unpack_from("<QIQIQ", data, 176) == (12345, 260, 0xAABBCCDD, 261, 2)
    assert Superblock.parse(data) == SUPERBLOCK


@pytest.mark.parametrize("at", [0, 9, 60, 150, 190, 2000, 4095])
def test_a_changed_byte_of_a_superblock_is_noticed(at):
    data = bytearray(SUPERBLOCK.serialize())
    data[at] ^= 1
    with pytest.raises(LayoutError):
        Superblock.parse(bytes(data))


def test_a_later_format_version_is_refused_by_name():
    data = bytearray(SUPERBLOCK.serialize())
    data[8] = 2
    data[-8:] = layout.checksum64(bytes(data[:-8])).to_bytes(8, "little")
    with pytest.raises(LayoutError, match="version 2"):
        Superblock.parse(bytes(data))


def test_root_records_round_trip():
    words = WordsRecord(5000, (PageRef(1, 2), PageRef(3, 4)))
    file = FileRecord(12, 34, 2)
    stream = b"".join(
        layout.pack_root_record(kind, record.serialize()) for kind, record in ((1, file), (2, words), (3, NODE))
    )
    found = [payload for _, _, payload in layout.iter_root_records(stream)]
    assert FileRecord.parse(found[0]) == file
    assert WordsRecord.parse(found[1]) == words
    assert NodeRecord.parse(found[2]) == NODE


@pytest.mark.parametrize("length", [0, 10, 71, 73, 80, 95, 110])
def test_a_truncated_node_record_is_refused(length):
    with pytest.raises(LayoutError):
        NodeRecord.parse(NODE.serialize()[:length])


def test_a_root_stream_that_ends_early_is_refused():
    stream = layout.pack_root_record(3, NODE.serialize())
    with pytest.raises(LayoutError):
        list(layout.iter_root_records(stream[:-24]))
    with pytest.raises(LayoutError):
        list(layout.iter_root_records(stream + b"\1\0\0"))


def test_journal_record_literal_header_and_chain():
    record, checksum = layout.pack_record(RecordType.COMMIT, 42, 3, 0x55, layout.COMMIT.pack(41), 512)
    assert len(record) == 512
    assert record[:8] == checksum.to_bytes(8, "little")
    assert struct.unpack_from("<IHHIIQIIQQ", record, 8) == (0x4A565754, 2, 0, 512, 8, 42, 3, 0, 0x55, 41)
    found = layout.parse_record(memoryview(record), 0, 42, 3, 0x55)
    assert found is not None
    assert (found.seq, found.checksum, found.payload) == (42, checksum, layout.COMMIT.pack(41))


@pytest.mark.parametrize("expected", [(43, 3, 0x55), (42, 4, 0x55), (42, 3, 0x56)])
def test_a_record_that_is_not_the_expected_one_ends_the_journal(expected):
    record, _ = layout.pack_record(RecordType.COMMIT, 42, 3, 0x55, layout.COMMIT.pack(41), 512)
    assert layout.parse_record(memoryview(record), 0, *expected) is None


@pytest.mark.parametrize("at", [0, 8, 16, 20, 24, 50, 500])
def test_a_damaged_record_ends_the_journal(at):
    record, _ = layout.pack_record(RecordType.COMMIT, 42, 3, 0x55, layout.COMMIT.pack(41), 512)
    damaged = bytearray(record)
    damaged[at] ^= 0x80
    assert layout.parse_record(memoryview(damaged), 0, 42, 3, 0x55) is None


def test_map_payloads_round_trip_and_check_their_count():
    items = [(1, 1, 70), (4096, 3, 80), (9, 100, 0)]
    payload = layout.pack_map(6, b"".join(layout.MAP_ITEM.pack(*item) for item in items))
    assert layout.unpack_map(payload) == (6, items)
    with pytest.raises(LayoutError):
        layout.unpack_map(payload[:-1])


def test_text_is_bounded_and_utf8():
    payload = layout.pack_text("guid", "ein Name")
    assert layout.unpack_text(payload, 0, 2) == (["guid", "ein Name"], len(payload))
    with pytest.raises(LayoutError):
        layout.pack_text("x" * 1025)
    with pytest.raises(LayoutError):
        layout.unpack_text(payload[:-1], 0, 2)
    with pytest.raises(LayoutError):
        layout.unpack_text(b"\x01\x00\xff", 0, 1)
