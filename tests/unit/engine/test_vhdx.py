"""Reading VHDX files: every block state, parents, a log in use, and everything that must be refused."""

from __future__ import annotations

import os
import random
import uuid
from pathlib import Path

import pytest

from engine.errors import InvalidArgument, NotFound, NotSupported, StoreCorrupt
from engine.stores import ExtentState
from engine.units import KIB, MIB
from engine.vhdx import layout
from engine.vhdx.chain import VhdxImage
from engine.vhdx.layout import BlockState, Header
from engine.vhdx.log import LogEntry, Page, Zeroes
from tests.support.vhdx_files import BAT_AT, LOG_AT, METADATA_AT, Block, MadeVhdx, spoil

FULL, PARTIAL = BlockState.FULLY_PRESENT, BlockState.PARTIALLY_PRESENT
RELATIVE = {"relative_path": ".\\parent.vhdx"}


def noise(seed: int, length: int = MIB) -> bytes:
    return random.Random(seed).randbytes(length)


async def content(path: Path, *, step: int = MIB + 512) -> bytes:
    """The disk in the file, read in pieces that lie across its blocks, and once as its extents say."""
    image = await VhdxImage.open(path)
    try:
        data = bytearray(image.size_bytes)
        view = memoryview(data)
        for at in range(0, len(data), step):
            await image.read(at, view[at : at + step])
        extents = await image.extents(0, image.size_bytes)
        at = 0
        for extent in extents:
            assert extent.offset == at
            assert extent.state is ExtentState.DATA or not any(view[at : extent.end])
            at = extent.end
        assert at == image.size_bytes
        return bytes(data)
    finally:
        await image.close()


# --- one file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 8, 32, 256])
@pytest.mark.parametrize("sector", [512, 4096])
async def test_every_state_of_a_block(tmp_path: Path, block: int, sector: int):
    states = [FULL, BlockState.NOT_PRESENT, BlockState.ZERO, FULL, BlockState.UNDEFINED, BlockState.UNMAPPED]
    size = (len(states) if block < 32 else 2) * block * MIB - block * MIB + 3 * sector
    made = MadeVhdx(size, block * MIB, sector)
    for number in range(made.geometry.blocks):
        made.blocks[number] = Block(states[number], noise(number, 5 * sector) if states[number] == FULL else b"")
    made.write(tmp_path / "d.vhdx")
    image = await VhdxImage.open(tmp_path / "d.vhdx")
    assert image.logical_sector_bytes == sector
    for number, each in made.blocks.items():
        head = bytearray(min(6 * sector, size - number * block * MIB))
        await image.read(number * block * MIB, memoryview(head))
        assert head == each.data.ljust(6 * sector, b"\0")[: len(head)]
    await image.close()


async def test_blocks_may_lie_in_any_order_and_states_without_data_may_keep_an_offset(tmp_path: Path):
    made = MadeVhdx(4 * MIB)
    made.blocks = {3: Block(FULL, noise(3)), 0: Block(FULL, noise(0)), 2: Block(FULL, noise(2))}
    made.entries[1] = 4 * MIB | BlockState.UNMAPPED  # where block 3 is: it was given up
    assert await content(made.write(tmp_path / "d.vhdx")) == noise(0) + bytes(MIB) + noise(2) + noise(3)


async def test_the_last_block_need_not_be_there_as_a_whole(tmp_path: Path):
    made = MadeVhdx(MIB + 512)
    made.blocks[1] = Block(FULL, noise(1, 512))
    path = made.write(tmp_path / "d.vhdx")
    with path.open("r+b") as file:
        file.truncate(made.places[1] + 512)
    assert await content(path) == bytes(MIB) + noise(1, 512)
    with path.open("r+b") as file:
        file.truncate(made.places[1] + 511)
    with pytest.raises(StoreCorrupt, match="ends before the last payload block"):
        await VhdxImage.open(path)


async def test_the_second_chunk_is_behind_a_bitmap_slot(tmp_path: Path):
    made = MadeVhdx(5 << 30)
    made.blocks = {4095: Block(FULL, noise(1)), 4096: Block(FULL, noise(2)), 5119: Block(FULL, noise(3))}
    image = await VhdxImage.open(made.write(tmp_path / "d.vhdx"))
    for number, block in made.blocks.items():
        found = bytearray(MIB)
        await image.read(number * MIB, memoryview(found))
        assert found == block.data
    await image.close()


async def test_the_largest_disk_is_opened_without_much_memory(tmp_path: Path):
    """64 TiB in blocks of 1 MiB: a table of 513 MiB, all hole here."""
    made = MadeVhdx(64 << 40, 32 * MIB)
    image = await VhdxImage.open(made.write(tmp_path / "d.vhdx"))
    assert image.size_bytes == 64 << 40
    await image.close()


async def test_holes_of_the_hosts_file_are_holes_of_the_disk(tmp_path: Path):
    made = MadeVhdx(4 * MIB, 2 * MIB)
    made.blocks = {0: Block(FULL, noise(0, 64 * KIB)), 1: Block(FULL)}
    image = await VhdxImage.open(made.write(tmp_path / "d.vhdx"))
    data = [e for e in await image.extents(0, image.size_bytes) if e.state is ExtentState.DATA]
    assert sum(extent.length for extent in data) <= 128 * KIB
    await image.close()


# --- parents ------------------------------------------------------------------------------------------------------


def chain(folder: Path, sector: int = 512) -> MadeVhdx:
    """A disk in three files, in every state that a block can have in them."""
    size = 6 * MIB + 8 * sector
    base = MadeVhdx(size, MIB, sector)
    base.blocks = {number: Block(FULL, noise(number)) for number in (0, 1, 2, 3, 6)}
    base.write(folder / "base.vhdx")
    middle = MadeVhdx(size, MIB, sector, parent=base, pairs={"relative_path": "base.vhdx"})
    middle.blocks = {
        0: Block(PARTIAL, noise(10), frozenset({0, 1, 7, 100, 255})),
        1: Block(FULL, noise(11)),
        2: Block(BlockState.ZERO),
        4: Block(PARTIAL, noise(14), frozenset({3})),
    }
    middle.write(folder / "parent.vhdx")
    top = MadeVhdx(size, MIB, sector, parent=middle, pairs=RELATIVE)
    top.blocks = {
        0: Block(PARTIAL, noise(20), frozenset({1, 2, 254})),
        3: Block(BlockState.UNMAPPED),
        4: Block(PARTIAL, noise(24), frozenset(range(0, 256, 2))),
        5: Block(BlockState.UNDEFINED),
        6: Block(PARTIAL, noise(26), frozenset({1, 7})),
    }
    top.write(folder / "top.vhdx")
    return top


@pytest.mark.parametrize("sector", [512, 4096])
async def test_a_chain_reads_as_its_files_together(tmp_path: Path, sector: int):
    top = chain(tmp_path, sector)
    assert await content(tmp_path / "top.vhdx", step=700 * sector) == top.content()
    assert top.parent is not None
    assert await content(tmp_path / "parent.vhdx") == top.parent.content()


async def test_a_parent_that_has_changed_is_refused(tmp_path: Path):
    top = chain(tmp_path)
    assert top.parent is not None
    top.parent.data_write_guid = uuid.UUID(int=99)
    top.parent.write(tmp_path / "parent.vhdx")
    with pytest.raises(StoreCorrupt, match="00000063: it was changed since"):
        await VhdxImage.open(tmp_path / "top.vhdx")


async def test_the_second_linkage_counts_too(tmp_path: Path):
    top = chain(tmp_path)
    assert top.parent is not None
    top.parent.data_write_guid, old = uuid.UUID(int=99), top.parent.data_write_guid
    top.pairs = top.pairs | {"parent_linkage": f"{{{old}}}", "parent_linkage2": f"{{{top.parent.data_write_guid}}}"}
    top.write(tmp_path / "top.vhdx")
    top.parent.write(tmp_path / "parent.vhdx")
    assert await content(tmp_path / "top.vhdx") == top.content()


@pytest.mark.parametrize(
    ("pairs", "tried"),
    [
        ({"relative_path": ".\\lost.vhdx"}, ["lost.vhdx"]),
        ({"relative_path": "..\\secret.vhdx"}, ["secret.vhdx (not looked at: it is outside of"]),
        ({"relative_path": "link.vhdx"}, ["link.vhdx (not looked at: it is outside of"]),
        ({"relative_path": "loop.vhdx"}, ["loop.vhdx"]),
        ({"relative_path": "fifo"}, ["fifo"]),
        ({"relative_path": "n" * 300}, ["n" * 300]),
        ({"relative_path": "C:\\lost.vhdx", "absolute_win32_path": "D:\\vms\\gone.vhdx"}, ["in/gone.vhdx"]),
        ({"volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\vms\\gone.vhdx"}, ["in/gone.vhdx"]),
        ({"absolute_win32_path": "/etc/passwd"}, ["in/passwd"]),
    ],
)
async def test_a_missing_parent_is_named_with_what_was_tried(tmp_path: Path, pairs: dict[str, str], tried: list[str]):
    folder = tmp_path / "in"
    folder.mkdir()
    base = MadeVhdx(MIB)
    base.write(tmp_path / "secret.vhdx")
    (folder / "link.vhdx").symlink_to(tmp_path / "secret.vhdx")
    (folder / "loop.vhdx").symlink_to(folder / "loop.vhdx")
    os.mkfifo(folder / "fifo")
    MadeVhdx(MIB, parent=base, pairs=pairs).write(folder / "child.vhdx")
    with pytest.raises(NotFound) as raised:
        await VhdxImage.open(folder / "child.vhdx")
    assert "parent of" in str(raised.value)
    for path in tried:
        assert path in str(raised.value)


async def test_a_parent_in_a_folder_below_or_beside_by_its_windows_name_is_found(tmp_path: Path):
    base = MadeVhdx(MIB, blocks={0: Block(FULL, noise(1))})
    (tmp_path / "below").mkdir()
    base.write(tmp_path / "below" / "base.vhdx")
    base.write(tmp_path / "beside.vhdx")
    for pairs in ({"relative_path": "below\\base.vhdx"}, {"absolute_win32_path": "\\\\?\\c:\\vms\\beside.vhdx"}):
        MadeVhdx(MIB, parent=base, pairs=pairs).write(tmp_path / "child.vhdx")
        assert await content(tmp_path / "child.vhdx") == noise(1)


async def test_a_file_that_is_its_own_ancestor_is_refused(tmp_path: Path):
    one = MadeVhdx(MIB)
    two = MadeVhdx(MIB, parent=one, pairs={"relative_path": "1.vhdx"})
    one.parent, one.pairs = two, {"relative_path": "2.vhdx"}
    one.write(tmp_path / "1.vhdx")
    two.write(tmp_path / "2.vhdx")
    with pytest.raises(StoreCorrupt, match="twice among its parents"):
        await VhdxImage.open(tmp_path / "1.vhdx")


async def test_a_chain_that_is_too_long_is_refused(tmp_path: Path):
    below = MadeVhdx(MIB)
    below.write(tmp_path / "0.vhdx")
    for number in range(1, 65):
        below = MadeVhdx(MIB, parent=below, pairs={"relative_path": f"{number - 1}.vhdx"})
        below.write(tmp_path / f"{number}.vhdx")
    assert await content(tmp_path / "63.vhdx") == bytes(MIB)
    with pytest.raises(StoreCorrupt, match="more than 63 parents"):
        await VhdxImage.open(tmp_path / "64.vhdx")


@pytest.mark.parametrize("other", [MadeVhdx(2 * MIB), MadeVhdx(MIB, sector_bytes=4096)])
async def test_a_parent_of_another_shape_is_refused(tmp_path: Path, other: MadeVhdx):
    other.write(tmp_path / "parent.vhdx")
    MadeVhdx(MIB, parent=other, pairs=RELATIVE).write(tmp_path / "child.vhdx")
    with pytest.raises(StoreCorrupt, match="its parent"):
        await VhdxImage.open(tmp_path / "child.vhdx")


# --- a log in use -------------------------------------------------------------------------------------------------

LOG_GUID = uuid.UUID(int=5)


def dirty(*, torn: bool = False) -> MadeVhdx:
    """Two entries that the file's table does not have yet: block 1 at its place, block 0 at that of block 2."""
    made = MadeVhdx(4 * MIB, log_guid=LOG_GUID)
    made.blocks = {0: Block(FULL, noise(0)), 1: Block(FULL, noise(1)), 2: Block(FULL, noise(2))}
    at = {number: (4 + index) * MIB for index, number in enumerate(made.blocks)}
    made.entries = {0: at[0] | FULL, 1: 0, 2: 0}

    def page(*entries: int) -> bytes:
        return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(4096, b"\0")

    size = 7 * MIB
    first = LogEntry(8, 0, LOG_GUID, size, size, (Page(BAT_AT, page(at[0] | FULL, at[1] | FULL)),))
    second = LogEntry(
        9, 0, LOG_GUID, size, size + MIB, (Page(BAT_AT, page(at[2] | FULL, at[1] | FULL)), Zeroes(at[2] + 8192, 4096))
    )
    made.log = [first, second]
    return made


async def test_a_log_is_replayed_in_memory_and_the_file_stays_as_it_is(tmp_path: Path):
    path = dirty().write(tmp_path / "d.vhdx")
    before = path.read_bytes()
    zeroed = noise(2)[:8192] + bytes(4096) + noise(2)[12288:]
    assert await content(path) == zeroed + noise(1) + bytes(2 * MIB)
    assert path.read_bytes() == before


async def test_a_torn_entry_is_not_replayed(tmp_path: Path):
    made = dirty()
    path = made.write(tmp_path / "d.vhdx")
    spoil(path, LOG_AT + made.log[0].length + 5000, b"torn")
    assert await content(path) == noise(0) + noise(1) + bytes(2 * MIB)


async def test_a_log_replaces_the_region_table_and_metadata_too(tmp_path: Path):
    made = MadeVhdx(2 * MIB, log_guid=LOG_GUID)
    made.blocks[0] = Block(FULL, noise(0))
    path = made.write(tmp_path / "d.vhdx")
    raw = path.read_bytes()
    places = [*layout.REGION_TABLE_OFFSETS, METADATA_AT]
    pages = tuple(Page(at + more, raw[at + more : at + more + 4096]) for at in places for more in range(0, 65536, 4096))
    made.log = [LogEntry(1, 0, LOG_GUID, made.file_bytes, made.file_bytes, pages)]
    made.write(path)
    for at in places:
        spoil(path, at, bytes(65536))
    assert await content(path) == noise(0) + bytes(MIB)


async def test_a_log_in_use_without_entries_is_refused(tmp_path: Path):
    made = dirty()
    made.log = []
    with pytest.raises(StoreCorrupt, match="no valid sequence"):
        await VhdxImage.open(made.write(tmp_path / "d.vhdx"))


async def test_a_file_that_was_cut_off_after_its_log_was_written_is_refused(tmp_path: Path):
    path = dirty().write(tmp_path / "d.vhdx")
    with path.open("r+b") as file:
        file.truncate(6 * MIB)
    with pytest.raises(StoreCorrupt, match="cut off"):
        await VhdxImage.open(path)


# --- what must be refused -----------------------------------------------------------------------------------------


def made_for_damage() -> MadeVhdx:
    made = MadeVhdx(4 * MIB)
    made.blocks = {0: Block(FULL, noise(0)), 1: Block(FULL, noise(1))}
    return made


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (100 * MIB | FULL, "ends before a payload block"),
        (BAT_AT | FULL, "which something else has"),
        (METADATA_AT | FULL, "which something else has"),
        (LOG_AT | FULL, "which something else has"),
        (0 | FULL, "which something else has"),
        (4 * MIB | FULL, "which something else has"),  # block 0's place
        (4 * MIB | PARTIAL, "state that it cannot have"),
        (4, "state that it cannot have"),
        (5, "state that it cannot have"),
        (5 * MIB | FULL | 8, "reserved bits"),
        (5 * MIB | FULL | 1 << 19, "reserved bits"),
        (1 << 63 | FULL, "beyond any file"),
    ],
    ids=["end of file", "BAT", "metadata", "log", "headers", "twice", "partial", "4", "5", "bit 3", "bit 19", "far"],
)  # fmt: skip
async def test_a_block_that_cannot_be_there_is_refused(tmp_path: Path, entry: int, what: str):
    made = made_for_damage()
    made.entries[1] = entry
    path = made.write(tmp_path / "d.vhdx")
    with pytest.raises(StoreCorrupt, match=what) as raised:
        await VhdxImage.open(path)
    assert str(raised.value).startswith(str(path))


async def test_blocks_that_overlap_in_part_are_refused(tmp_path: Path):
    made = MadeVhdx(8 * MIB, 2 * MIB)
    made.blocks = {0: Block(FULL, noise(0)), 1: Block(FULL, noise(1))}
    made.entries[1] = 5 * MIB | FULL
    with pytest.raises(StoreCorrupt, match="which something else has"):
        await VhdxImage.open(made.write(tmp_path / "d.vhdx"))


async def test_bitmaps_that_cannot_be_are_refused(tmp_path: Path):
    alone = MadeVhdx(5 << 30)
    alone.entries[4096] = 13 * MIB | FULL
    with pytest.raises(StoreCorrupt, match="sector bitmap block 0 in a state"):
        await VhdxImage.open(alone.write(tmp_path / "alone.vhdx"))
    for entry, what in (
        (0, "without a sector bitmap"),
        (4, "bitmap block 0 in a state"),
        (5 * MIB | FULL, "something else"),
    ):
        top = chain(tmp_path)
        top.entries[4096] = entry
        with pytest.raises(StoreCorrupt, match=what):
            await VhdxImage.open(top.write(tmp_path / "top.vhdx"))
    top = chain(tmp_path)
    top.entries[7] = 5 * MIB | FULL
    with pytest.raises(StoreCorrupt, match="beyond the end of the disk"):
        await VhdxImage.open(top.write(tmp_path / "top.vhdx"))


async def test_one_good_copy_of_header_and_region_table_is_enough(tmp_path: Path):
    for at in (*layout.HEADER_OFFSETS, *layout.REGION_TABLE_OFFSETS):
        path = made_for_damage().write(tmp_path / "d.vhdx")
        spoil(path, at + 100, b"xxxx")
        assert await content(path) == noise(0) + noise(1) + bytes(2 * MIB)


async def test_no_good_copy_is_not(tmp_path: Path):
    for places in (layout.HEADER_OFFSETS, layout.REGION_TABLE_OFFSETS):
        path = made_for_damage().write(tmp_path / "d.vhdx")
        for at in places:
            spoil(path, at + 100, b"xxxx")
        with pytest.raises(StoreCorrupt):
            await VhdxImage.open(path)


async def test_two_region_tables_that_differ_are_refused(tmp_path: Path):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    regions = layout.parse_region_table(path.read_bytes()[192 * KIB : 256 * KIB])
    spoil(path, 256 * KIB, layout.serialize_region_table(regions[::-1]))
    with pytest.raises(StoreCorrupt, match="different"):
        await VhdxImage.open(path)


async def test_a_log_that_ends_beyond_the_file_is_refused(tmp_path: Path):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    far = Header(9, *(uuid.UUID(int=1),) * 2, layout.NO_GUID, 50 * MIB, MIB)
    spoil(path, layout.HEADER_OFFSETS[0], far.serialize())
    with pytest.raises(StoreCorrupt, match="log that ends beyond"):
        await VhdxImage.open(path)


async def test_a_log_over_a_region_is_refused(tmp_path: Path):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    over = Header(9, *(uuid.UUID(int=1),) * 2, layout.NO_GUID, METADATA_AT, MIB)
    spoil(path, layout.HEADER_OFFSETS[0], over.serialize())
    with pytest.raises(StoreCorrupt, match="which something else has"):
        await VhdxImage.open(path)


async def test_a_table_longer_than_its_region_is_refused(tmp_path: Path):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    disk = layout.serialize_metadata(MadeVhdx(1 << 40).disk)
    spoil(path, METADATA_AT, disk)
    with pytest.raises(StoreCorrupt, match="more than its region"):
        await VhdxImage.open(path)


async def test_a_log_of_hostile_length_is_not_read(tmp_path: Path):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    with path.open("r+b") as file:
        file.truncate(4 << 30)
    huge = Header(9, *(uuid.UUID(int=1),) * 2, LOG_GUID, 8 * MIB, 4088 * MIB)
    spoil(path, layout.HEADER_OFFSETS[0], huge.serialize())
    with pytest.raises(NotSupported, match="log of"):
        await VhdxImage.open(path)


@pytest.mark.parametrize("length", [0, 7, 65536, 3 * MIB, 4 * MIB - 1])
async def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, length: int):
    path = made_for_damage().write(tmp_path / "d.vhdx")
    with path.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(StoreCorrupt):
        await VhdxImage.open(path)


async def test_what_is_no_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(InvalidArgument):
            await VhdxImage.open(path)
    with pytest.raises(NotFound):
        await VhdxImage.open(tmp_path / "nothing")
