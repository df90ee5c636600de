"""A volume file on the real file system: what its users rely on, one behaviour each."""

import asyncio

import pytest

from engine.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    InvalidState,
    NotFound,
    OutOfRange,
    StoreCorrupt,
    StoreFailed,
    WriteProtected,
)
from engine.stores import Extent, ExtentState
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import LEAF_ENTRIES
from engine.units import KIB, MIB

CHUNK = 64 * KIB
SIZE = 4 * MIB


@pytest.fixture
async def store(env, path):
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE, journal_bytes=CHUNK)
    yield made
    await made.close()
    assert not [f for f in check_file(path).findings if f.severity.name == "DAMAGE"]


async def content(device, offset=0, length=None):
    data = bytearray(device.size_bytes - offset if length is None else length)
    await device.read(offset, memoryview(data))
    return bytes(data)


async def put(head, offset, data):
    await head.write(offset, memoryview(data))


async def test_what_was_written_reads_back_after_reopening(env, store, path):
    head = store.volume("v")
    await put(head, 512, b"a" * 200 * KIB)
    await store.close()
    again = await TvolFile.open(env, path)
    try:
        assert again.incarnation == store.incarnation + 1
        assert again.volume("v").volume_id == head.volume_id
        assert await content(again.volume("v"), 0, 201 * KIB) == b"\0" * 512 + b"a" * 200 * KIB + b"\0" * 512
    finally:
        await again.close()


async def test_the_fast_tier_writes_new_chunks_and_overwrites_them(store):
    head = store.volume("v")
    assert head.try_write(8 * KIB, memoryview(b"n" * 4 * KIB))
    assert head.try_write(8 * KIB, memoryview(b"o" * 4 * KIB))
    assert head.try_write(256 * KIB, memoryview(b"p" * 256 * KIB))
    head.end_pass()
    view = bytearray(16 * KIB)
    await head.read(0, memoryview(view))
    assert view == b"\0" * 8 * KIB + b"o" * 4 * KIB + b"\0" * 4 * KIB
    assert await content(head, 256 * KIB, 256 * KIB) == b"p" * 256 * KIB


async def test_the_fast_tier_reads_holes_and_across_chunks(store):
    head = store.volume("v")
    await put(head, CHUNK - 512, b"x" * 1024)
    view = bytearray(b"?" * 3 * CHUNK)
    assert head.try_read(0, memoryview(view))
    assert view == (b"\0" * (CHUNK - 512) + b"x" * 1024).ljust(3 * CHUNK, b"\0")


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 100), (SIZE, 512), (-512, 512), (SIZE - 512, 1024)])
async def test_extents_outside_or_unaligned_are_refused(store, offset, length):
    head = store.volume("v")
    assert not head.try_write(offset, memoryview(bytes(length)))
    assert not head.try_read(offset, memoryview(bytearray(length)))
    with pytest.raises(OutOfRange):
        await head.write(offset, memoryview(bytes(length)))
    with pytest.raises(OutOfRange):
        await head.read(offset, memoryview(bytearray(length)))


async def test_extents_tell_data_zeroes_and_holes_apart(store):
    head = store.volume("v")
    await put(head, 0, b"d" * CHUNK)
    await head.write_zeroes(CHUNK, CHUNK)
    await put(head, 3 * CHUNK, b"d" * 512)
    assert await head.extents(512, 5 * CHUNK) == [
        Extent(512, CHUNK - 512, ExtentState.DATA),
        Extent(CHUNK, CHUNK, ExtentState.ZERO),
        Extent(2 * CHUNK, CHUNK, ExtentState.HOLE),
        Extent(3 * CHUNK, CHUNK, ExtentState.DATA),
        Extent(4 * CHUNK, CHUNK + 512, ExtentState.HOLE),
    ]


async def test_discard_zeroes_the_edges_and_returns_whole_chunks_to_the_host(store, path):
    head = store.volume("v")
    await put(head, 0, b"d" * MIB)
    await head.flush()
    before = path.stat().st_blocks
    await head.discard(512, MIB - 1024)
    await head.flush()
    await store.settled()
    assert await content(head, 0, MIB) == b"d" * 512 + b"\0" * (MIB - 1024) + b"d" * 512
    assert (await store.space(head)).mapped_bytes == 2 * CHUNK
    # The host's own metadata is counted too, and may have grown by a block or two.
    assert path.stat().st_blocks <= before - (MIB - 3 * CHUNK) // 512


async def test_growing_and_shrinking(store):
    head = store.volume("v")
    await put(head, 0, b"d" * SIZE)
    await head.resize(MIB + 512)
    with pytest.raises(OutOfRange):
        await put(head, MIB + 512, b"x" * 512)
    await head.resize(SIZE)
    assert await content(head) == (b"d" * (MIB + 512)).ljust(SIZE, b"\0")
    with pytest.raises(InvalidArgument):
        await head.resize(1000)
    with pytest.raises(InvalidArgument):
        await head.resize((1 << 46) + 512)


async def test_a_snapshot_keeps_its_content_and_refuses_writes(store):
    head = store.volume("v")
    await put(head, 0, b"1" * MIB)
    snapshot = await store.snapshot(head, "s")
    await put(head, 4 * KIB, b"2" * 512)
    assert head.try_write(CHUNK, memoryview(b"2" * CHUNK))
    await head.discard(2 * CHUNK, CHUNK)
    assert await content(snapshot, 0, MIB) == b"1" * MIB
    assert not snapshot.try_write(0, memoryview(bytes(512)))
    with pytest.raises(WriteProtected):
        await snapshot.write(0, memoryview(bytes(512)))
    assert [(e.offset, e.length, e.state) async for e in store.changed(snapshot, head)] == [
        (0, 2 * CHUNK, ExtentState.DATA),
        (2 * CHUNK, CHUNK, ExtentState.HOLE),
    ]
    assert [e async for e in store.changed(None, snapshot)] == [Extent(0, MIB)]


async def test_writes_in_flight_at_the_flip_are_in_the_snapshot_and_later_ones_are_not(store):
    head = store.volume("v")
    before = [asyncio.create_task(put(head, n * MIB, b"b" * MIB)) for n in range(4)]
    await asyncio.sleep(0)
    freezing = asyncio.create_task(store.snapshot(head, "s"))
    await asyncio.sleep(0)
    after = [asyncio.create_task(put(head, n * MIB, b"a" * 512)) for n in range(4)]
    await asyncio.gather(*before, *after)
    assert await content(await freezing) == b"b" * SIZE
    assert await content(head) == (b"a" * 512 + b"b" * (MIB - 512)) * 4


async def test_a_clone_shares_space_and_goes_its_own_way(store):
    head = store.volume("v")
    await put(head, 0, b"o" * MIB)
    snapshot = await store.snapshot(head, "s")
    clone = await store.clone(snapshot, "c")
    await put(clone, 0, b"c" * CHUNK)
    assert await content(head, 0, MIB) == b"o" * MIB
    assert await content(clone, 0, MIB) == b"c" * CHUNK + b"o" * (MIB - CHUNK)
    assert (await store.space(clone)).unique_bytes == CHUNK
    with pytest.raises(AlreadyExists):
        await store.clone(snapshot, "c")
    with pytest.raises(InUse, match="linked clones: c"):
        await store.delete_volume(head)
    await store.delete_snapshot(snapshot)
    await store.settled()
    assert await content(clone, 0, MIB) == b"c" * CHUNK + b"o" * (MIB - CHUNK)


async def test_rollback_keeps_what_was_and_later_snapshots(store):
    head = store.volume("v")
    await put(head, 0, b"1" * CHUNK)
    first = await store.snapshot(head, "first")
    await put(head, 0, b"2" * CHUNK)
    await store.snapshot(head, "second")
    await put(head, 0, b"3" * CHUNK)
    head = await store.rollback(head, first)
    assert await content(head, 0, CHUNK) == b"1" * CHUNK
    assert [s.name for s in store.snapshots()] == ["first", "second", "before-rollback-1"]
    assert await content(store.snapshot_named(head.volume_id, "before-rollback-1"), 0, CHUNK) == b"3" * CHUNK


async def test_of_a_snapshot_that_is_deleted_before_it_is_durable_nobody_is_told(store):
    """It would be told as deleted first, and then as created."""
    told = []
    store.on_snapshot = lambda snapshot, verb: told.append((snapshot.name, verb))
    making = asyncio.create_task(store.snapshot(store.volume("v"), "s"))
    while not store.snapshots():  # noqa: ASYNC110 - those that are sealed
        await asyncio.sleep(0)
    assert not making.done(), "sealed, and not durable yet"
    await store.delete_snapshot(store.snapshots()[0])
    await making
    assert not told
    kept = await store.snapshot(store.volume("v"), "s")
    await store.delete_snapshot(kept)
    assert told == [("s", "created"), ("s", "deleted")]


async def test_deleting_snapshots_gives_their_space_back(store):
    head = store.volume("v")
    for letter in b"abcd":
        await put(head, 0, bytes([letter]) * MIB)
        await store.snapshot(head, chr(letter))
    await put(head, 0, b"e" * MIB)
    middle = store.snapshot_named(head.volume_id, "b")
    assert (await store.space(middle)).unique_bytes == MIB
    for snapshot in store.snapshots():
        await store.delete_snapshot(snapshot)
    await store.settled()
    info = store.info()
    assert info.nodes == 1
    assert info.free_chunks * CHUNK >= 4 * MIB
    assert await content(head, 0, MIB) == b"e" * MIB
    with pytest.raises(InvalidState):
        await middle.read(0, memoryview(bytearray(512)))
    with pytest.raises(NotFound):
        await store.space(middle)


async def test_deleting_a_volume_takes_its_snapshots_and_leaves_its_clone_parent(store):
    head = store.volume("v")
    await put(head, 0, b"o" * MIB)
    clone = await store.clone(await store.snapshot(head, "s"), "c")
    await put(clone, 0, b"c" * MIB)
    await store.snapshot(clone, "cs")
    await store.delete_volume(clone)
    await store.settled()
    assert [h.name for h in store.volumes()] == ["v"]
    assert [s.name for s in store.snapshots()] == ["s"]
    with pytest.raises(InvalidState):
        await put(clone, 0, b"x" * 512)


async def test_staging_survives_reopening_and_becomes_the_content_in_one_step(env, store, path):
    head = store.volume("v")
    await put(head, 0, b"o" * MIB)
    base = await store.snapshot(head, "base")
    staging = await store.begin_staging(head, base)
    await put(staging, 0, b"n" * CHUNK)
    with pytest.raises(InvalidState):
        await store.begin_staging(head, None)
    assert await content(head, 0, CHUNK) == b"o" * CHUNK
    await store.close()
    again = await TvolFile.open(env, path)
    try:
        head = again.volume("v")
        staging = again.staging(head.volume_id)
        assert staging is not None
        head, point = await again.commit_staging(staging, "point", guid="g-1")
        await again.settled()
        assert await content(head, 0, MIB) == b"n" * CHUNK + b"o" * (MIB - CHUNK)
        assert (point.guid, point.name) == ("g-1", "point")
        assert again.staging(head.volume_id) is None
        await put(head, 0, b"x" * CHUNK)
        assert await content(point, 0, CHUNK) == b"n" * CHUNK
    finally:
        await again.close()


async def test_an_aborted_staging_area_leaves_nothing(store):
    head = store.volume("v")
    staging = await store.begin_staging(head, None)
    await put(staging, 0, b"n" * MIB)
    await store.abort_staging(staging)
    await store.settled()
    assert (store.staging(head.volume_id), store.info().nodes) == (None, 1)


async def test_a_second_opener_is_refused(env, store, path):
    with pytest.raises(InUse):
        await TvolFile.open(env, path)
    with pytest.raises(InUse):
        await TvolFile.open(env, path, writable=False)


async def test_open_for_reading_changes_nothing(env, store, path):
    await put(store.volume("v"), 0, b"d" * MIB)
    await store.close()
    before = path.read_bytes()
    reader = await TvolFile.open(env, path, writable=False)
    assert await content(reader.volume("v"), 0, MIB) == b"d" * MIB
    with pytest.raises(StoreFailed, match="reading only"):
        await put(reader.volume("v"), 0, bytes(512))
    await reader.close()
    assert path.read_bytes() == before


async def test_a_broken_first_superblock_slot_loses_nothing_and_is_healed(env, store, path):
    await put(store.volume("v"), 0, b"d" * MIB)
    await store.close()
    with path.open("r+b") as file:
        file.write(b"garbage")
    again = await TvolFile.open(env, path)
    assert await content(again.volume("v"), 0, MIB) == b"d" * MIB
    await again.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"garbage")
    again = await TvolFile.open(env, path)
    assert await content(again.volume("v"), 0, MIB) == b"d" * MIB
    await again.close()


async def test_a_file_without_a_superblock_is_refused_with_where_and_why(env, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"x" * MIB)
    with pytest.raises(StoreCorrupt, match=r"superblock.*no magic"):
        await TvolFile.open(env, other)
    with pytest.raises(NotFound):
        await TvolFile.open(env, tmp_path / "missing")


async def test_creating_refuses_what_makes_no_sense(env, path):
    for arguments in ({"size_bytes": 100}, {"size_bytes": 0}, {"chunk_bytes": 4096}, {"journal_bytes": 1000}):
        with pytest.raises(InvalidArgument):
            await TvolFile.create(env, path, **({"volume_name": "v", "size_bytes": MIB} | arguments))
        assert not path.exists()


async def test_devices_of_a_closed_store_are_refused(store):
    head = store.volume("v")
    await store.close()
    assert not head.try_read(0, memoryview(bytearray(512)))
    assert head.try_read_each([0, 512], memoryview(bytearray(1024)), 512, 512) == 0
    for attempt in (head.read(0, memoryview(bytearray(512))), put(head, 0, bytes(512)), head.flush()):
        with pytest.raises(StoreFailed):
            await attempt


async def test_without_a_write_cache_a_write_is_durable_when_it_returns(store):
    head = store.volume("v")
    head.write_cache = False
    assert not head.try_write(0, memoryview(bytes(512)))
    await asyncio.gather(*(put(head, n * CHUNK, b"w" * CHUNK) for n in range(8)))
    assert await content(head, 0, 8 * CHUNK) == b"w" * 8 * CHUNK


async def test_larger_chunks(env, tmp_path):
    store = await TvolFile.create(
        env,
        tmp_path / "l.tvol",
        volume_name="v",
        size_bytes=SIZE,
        chunk_bytes=256 * KIB,
        journal_bytes=256 * KIB,
    )
    head = store.volume("v")
    await put(head, 4 * KIB, b"1" * MIB)
    snapshot = await store.snapshot(head, "s")
    await put(head, 0, b"2" * 512)
    assert await content(snapshot, 0, 8 * KIB) == b"\0" * 4 * KIB + b"1" * 4 * KIB
    await store.close()
    assert not [f for f in check_file(tmp_path / "l.tvol").findings if f.severity.name == "DAMAGE"]


async def test_a_write_that_the_fast_tier_declines_for_a_leaf_takes_no_chunk(env, path):
    """It spans two leaves of the map, and after reopening only the first has been read."""
    boundary = LEAF_ENTRIES * CHUNK
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=2 * boundary)
    head = store.volume("v")
    for offset in (0, boundary):
        await head.write(offset, memoryview(b"a" * 4096))
    await store.close()
    store = await TvolFile.open(env, path)
    head, allocator = store.volume("v"), store._core.allocator
    await head.read(0, memoryview(bytearray(4096)))
    await store.settled()
    used = allocator.end - allocator.free_count
    assert not head.try_write(boundary - 4096, memoryview(b"b" * 8192))
    assert allocator.end - allocator.free_count == used
    await store.close()
