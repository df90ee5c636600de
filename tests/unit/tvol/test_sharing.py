"""Chunks shared within a family: what a share is to its users, on the real file system."""

import asyncio
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidArgument, InvalidState, MediumError, NotFound, NotSupported, OutOfRange
from engine.stores import Extent, ExtentState
from engine.tvol import claims, layout, superblock
from engine.tvol.births import Births
from engine.tvol.check import check_file
from engine.tvol.check_image import Findings
from engine.tvol.check_journal import Replay
from engine.tvol.chunk_map import ChunkMap
from engine.tvol.file import TvolFile
from engine.tvol.layout import LEAF_ENTRIES, LayoutError, NodeKind
from engine.tvol.nodes import Node
from engine.tvol.space import _claims_of_leaves
from engine.tvol.tree import Family
from engine.units import KIB, MIB
from tests.support.made_volumes import make_volume

CHUNK = 64 * KIB
SIZE = 64 * MIB


@pytest.fixture
async def store(env, path):
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE)
    yield made
    await made.close()
    assert check_file(path).findings == []


def pattern(chunk: int) -> bytes:
    return struct.pack("<I", chunk + 1) * (CHUNK // 4)


async def fill(head, first: int, count: int) -> None:
    for chunk in range(first, first + count):
        await head.write(chunk * CHUNK, memoryview(pattern(chunk)))


async def chunk_at(device, chunk: int) -> bytes:
    data = bytearray(CHUNK)
    if not device.try_read(chunk * CHUNK, memoryview(data)):
        await device.read(chunk * CHUNK, memoryview(data))
    return bytes(data)


def entry(head, chunk: int) -> int:
    return head.node.map.lookup(chunk)


async def shared_once(store):
    """Chunks 0 to 3 of the volume at 8 to 11 too, and nothing else that holds them."""
    head = store.volume("v")
    await fill(head, 0, 4)
    source = await store.snapshot(head, "s", hidden=True)
    assert await store.share(source, 0, head, 8 * CHUNK, 4 * CHUNK) == 4 * CHUNK
    await store.delete_snapshot(source)
    await store.settled()
    return head


# --- what it does ---------------------------------------------------------------------------------------------------


async def test_a_range_appears_elsewhere_without_new_chunks(store):
    head = store.volume("v")
    await fill(head, 0, 100)
    source = await store.snapshot(head, "s")
    before = store.info().chunks - store.info().metadata_bytes // CHUNK
    assert await store.share(source, 10 * CHUNK, head, 500 * CHUNK, 80 * CHUNK) == 80 * CHUNK
    for chunk in range(80):
        assert await chunk_at(head, 500 + chunk) == pattern(10 + chunk)
    assert store.info().chunks - store.info().metadata_bytes // CHUNK == before
    whole = bytearray(90 * CHUNK)
    await head.read(495 * CHUNK, memoryview(whole))
    assert whole[5 * CHUNK : 85 * CHUNK] == b"".join(pattern(10 + chunk) for chunk in range(80))
    assert not any(whole[: 5 * CHUNK])


async def test_holes_and_zeroes_are_shared_as_such(store):
    head = store.volume("v")
    await fill(head, 0, 12)
    await head.discard(2 * CHUNK, CHUNK)
    await head.write_zeroes(3 * CHUNK, CHUNK)
    source = await store.snapshot(head, "s")
    await store.share(source, 0, head, 6 * CHUNK, 6 * CHUNK)
    assert await head.extents(6 * CHUNK, 6 * CHUNK) == [
        Extent(6 * CHUNK, 2 * CHUNK, ExtentState.DATA),
        Extent(8 * CHUNK, CHUNK, ExtentState.HOLE),
        Extent(9 * CHUNK, CHUNK, ExtentState.ZERO),
        Extent(10 * CHUNK, 2 * CHUNK, ExtentState.DATA),
    ]


async def test_another_volume_of_the_family_and_a_share_of_a_share(store):
    head = store.volume("v")
    await fill(head, 0, 4)
    source = await store.snapshot(head, "s")
    clone = await store.clone(source, "c")
    await clone.discard(0, SIZE)
    await store.share(source, 0, clone, 20 * CHUNK, 4 * CHUNK)
    second = await store.snapshot(clone, "t")
    await store.share(second, 21 * CHUNK, head, 30 * CHUNK, 2 * CHUNK)
    assert [await chunk_at(clone, 20 + n) for n in range(4)] == [pattern(n) for n in range(4)]
    assert [await chunk_at(head, 30 + n) for n in range(2)] == [pattern(1), pattern(2)]


async def test_a_partial_chunk_over_a_bad_one_is_not_shared_and_takes_no_space(store):
    head = store.volume("v")
    await fill(head, 0, 1)
    base = entry(head, 0)
    await store.snapshot(head, "s")
    await head.write(0, memoryview(b"p" * 4096))
    source = await store.snapshot(head, "source")
    await store._core.begin_sharing()
    store._core.family.births.mark(base, bad=True)
    free = store._core.allocator.free_count, store._core.allocator.end
    with pytest.raises(MediumError):
        await store.share(source, 0, head, CHUNK, CHUNK)
    assert (store._core.allocator.free_count, store._core.allocator.end) == free
    store._core.family.births.mark(base, bad=False)


async def test_it_is_there_after_reopening(env, store, path):
    head = await shared_once(store)
    await head.flush()
    await store.close()
    again = await TvolFile.open(env, path)
    assert [await chunk_at(again.volume("v"), 8 + n) for n in range(4)] == [pattern(n) for n in range(4)]
    await again.close()


async def test_scattered_chunks_take_several_records(store):
    head = store.volume("v")
    for chunk in range(600):
        await head.write((chunk * 7 % 600) * CHUNK, memoryview(pattern(chunk * 7 % 600)[:4096]))
    source = await store.snapshot(head, "s")
    before = store._core.journal.next_seq
    assert await store.share(source, 0, head, 0x180 * CHUNK, 600 * CHUNK) == 600 * CHUNK
    assert store._core.journal.next_seq - before > 2
    for chunk in range(600):
        data = bytearray(4096)
        await head.read((0x180 + chunk) * CHUNK, memoryview(data))
        assert data == pattern(chunk)[:4096]


# --- who may write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [0, 8])
async def test_a_write_to_either_side_goes_elsewhere(store, writer):
    head = await shared_once(store)
    assert head.try_write(writer * CHUNK + 4096, memoryview(b"x" * 512))
    head.end_pass()
    await head.write((writer + 1) * CHUNK, memoryview(b"y" * 512))
    other = 8 - writer
    assert [await chunk_at(head, other + n) for n in range(4)] == [pattern(n) for n in range(4)]
    expected = bytearray(pattern(0))
    expected[4096 : 4096 + 512] = b"x" * 512
    assert await chunk_at(head, writer) == expected
    expected = bytearray(pattern(1))
    expected[:512] = b"y" * 512
    assert await chunk_at(head, writer + 1) == expected


async def test_the_last_holder_writes_in_place_again_once_that_is_durable(store):
    head = await shared_once(store)
    place = entry(head, 0)
    await head.discard(8 * CHUNK, CHUNK)
    assert store._core.family.births.view[place] < 0
    await head.flush()
    assert head.try_write(0, memoryview(b"x" * 512))
    head.end_pass()
    assert entry(head, 0) == place
    assert (await chunk_at(head, 0))[:512] == b"x" * 512


async def test_a_chunk_outlives_its_first_holder(store):
    head = await shared_once(store)
    await head.discard(0, 4 * CHUNK)
    await head.flush()
    await fill(head, 40, 20)
    assert [await chunk_at(head, 8 + n) for n in range(4)] == [pattern(n) for n in range(4)]
    free = store.info().free_chunks
    await head.discard(8 * CHUNK, 4 * CHUNK)
    await head.flush()
    await store.settled()
    assert store.info().free_chunks == free + 4


# --- what others see ------------------------------------------------------------------------------------------------


async def test_space_counts_a_shared_chunk_where_its_last_claim_is(store):
    head = await shared_once(store)
    assert (await store.space(head)).mapped_bytes == 8 * CHUNK
    assert (await store.space(head)).unique_bytes == 4 * CHUNK
    source = await store.snapshot(head, "t")
    clone = await store.clone(source, "c")
    await clone.write(0, memoryview(pattern(9)))
    assert (await store.space(clone)).unique_bytes == CHUNK
    await store.share(source, 8 * CHUNK, clone, 30 * CHUNK, 2 * CHUNK)
    assert (await store.space(clone)).unique_bytes == CHUNK
    await head.discard(0, 16 * CHUNK)
    assert (await store.space(source)).unique_bytes == 0  # it has two children
    await store.delete_volume(clone)
    await store.settled()
    assert (await store.space(source)).unique_bytes == 4 * CHUNK


async def test_a_snapshot_that_goes_while_its_claims_are_gathered_is_no_rot(env, tmp_path):
    span, path = LEAF_ENTRIES * CHUNK, tmp_path / "wide.tvol"
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=3 * span)
    head = store.volume("v")

    async def write_everywhere() -> None:
        for offset in range(0, 3 * span, span):
            await head.write(offset, memoryview(pattern(1)))

    await write_everywhere()
    await store.snapshot(head, "s")
    await store.close()
    store = await TvolFile.open(env, path)
    head, (snapshot,) = store.volume("v"), store.snapshots()
    gathering = _claims_of_leaves(store._core, snapshot.node, 0)
    assert len(await anext(gathering)) == 1
    await store.delete_snapshot(snapshot)
    await store.settled()
    for _ in range(8):
        await write_everywhere()
        await head.discard(0, 3 * span)
        await store._core.checkpointer.run()
    assert [part async for part in gathering] == []
    await store.close()


async def test_changed_compares_chunks_not_their_claims(store):
    head = store.volume("v")
    await fill(head, 0, 4)
    old = await store.snapshot(head, "old")
    await head.discard(0, 4 * CHUNK)
    await store.share(old, 0, head, 0, 2 * CHUNK)
    await store.share(old, 0, head, 3 * CHUNK, CHUNK)
    new = await store.snapshot(head, "new")
    assert [(item.offset, item.length, item.state) async for item in store.changed(old, new)] == [
        (2 * CHUNK, CHUNK, ExtentState.HOLE),
        (3 * CHUNK, CHUNK, ExtentState.DATA),
    ]


async def test_what_is_there_already_takes_no_slot(store):
    head = store.volume("v")
    await fill(head, 0, 4)
    source = await store.snapshot(head, "s")
    assert await store.share(source, 0, head, 0, 4 * CHUNK) == 4 * CHUNK
    assert store._core.family.claims.count == 0


# --- refusals and bounds --------------------------------------------------------------------------------------------


async def test_refusals(env, store, tmp_path):
    head = store.volume("v")
    source = await store.snapshot(head, "s")
    for arguments in ((512, 0, CHUNK), (0, 512, CHUNK), (0, 0, 512)):
        with pytest.raises(InvalidArgument):
            await store.share(source, arguments[0], head, arguments[1], arguments[2])
    for arguments in ((SIZE, 0, CHUNK), (0, SIZE, CHUNK), (-CHUNK, 0, CHUNK), (0, -CHUNK, CHUNK)):
        with pytest.raises(OutOfRange):
            await store.share(source, arguments[0], head, arguments[1], arguments[2])
    assert await store.share(source, 0, head, 0, 0) == 0
    other = await TvolFile.create(env, tmp_path / "o.tvol", volume_name="o", size_bytes=SIZE)
    with pytest.raises(NotFound):
        await store.share(source, 0, other.volume("o"), 0, CHUNK)
    await other.close()
    await store.delete_snapshot(source)
    with pytest.raises(NotFound):
        await store.share(source, 0, head, 0, CHUNK)


async def test_a_snapshot_being_made_is_no_source(store):
    head = store.volume("v")
    flip = store.flip(head, "s")
    with pytest.raises(InvalidState):
        await store.share(flip.snapshot, 0, head, 0, CHUNK)
    await store.seal(flip)


async def test_a_full_table_shares_as_much_as_fits(store, monkeypatch):
    head = store.volume("v")
    await fill(head, 0, 8)
    await head.discard(CHUNK, CHUNK)
    source = await store.snapshot(head, "s")
    monkeypatch.setattr(claims, "MAX_SLOTS", 3)
    assert await store.share(source, 0, head, 16 * CHUNK, 8 * CHUNK) == 4 * CHUNK
    assert await store.share(source, 4 * CHUNK, head, 20 * CHUNK, 4 * CHUNK) == 0
    await head.discard(16 * CHUNK, CHUNK)
    assert await store.share(source, 4 * CHUNK, head, 20 * CHUNK, 4 * CHUNK) == CHUNK
    assert await chunk_at(head, 20) == pattern(4)


async def test_programs_without_the_feature_refuse_the_file(env, store, path, monkeypatch):
    def features():
        with path.open("rb") as file:
            slots = [layout.Superblock.parse(file.read(4096)) for _ in layout.SUPERBLOCK_OFFSETS]
        return [slot.incompatible for slot in slots]

    head = store.volume("v")
    await fill(head, 0, 1)
    source = await store.snapshot(head, "s")
    assert features() == [1, 1]
    await store.share(source, 0, head, CHUNK, CHUNK)
    assert features() == [5, 5]  # though no checkpoint was asked for since
    await store.close()
    monkeypatch.setattr(superblock, "KNOWN_FEATURES", 0)
    with pytest.raises(NotSupported, match="0x5"):
        await TvolFile.open(env, path)


async def test_writes_during_a_share_wait_for_it_and_win(store):
    head = store.volume("v")
    await fill(head, 0, 4)
    source = await store.snapshot(head, "s")
    sharing = asyncio.ensure_future(store.share(source, 0, head, 8 * CHUNK, 4 * CHUNK))
    await asyncio.sleep(0)
    assert not head.try_write(9 * CHUNK, memoryview(b"z" * CHUNK))
    await asyncio.gather(sharing, head.write(9 * CHUNK, memoryview(b"z" * CHUNK)))
    assert await chunk_at(head, 8) == pattern(0)
    assert await chunk_at(head, 9) == b"z" * CHUNK


# --- the record -----------------------------------------------------------------------------------------------------

ITEM = (4, 2, 7, 100)


def test_share_record_is_literally():
    payload = layout.pack_share(3, layout.SHARE_ITEM.pack(*ITEM) + layout.SHARE_ITEM.pack(9, 5, 0, 1))
    assert payload.hex() == (
        "0300000002000000" + "04000000020000000700000064000000" + "09000000050000000000000001000000"
    )
    node, items = layout.unpack_share(payload)
    index, slots, chunks = claims.expand_share(items)
    assert node == 3
    assert index.tolist() == [4, 5, 9, 10, 11, 12, 13]
    assert slots.tolist() == [7, 8, 0, 0, 0, 0, 0]
    assert chunks.tolist() == [100, 101, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "items",
    [
        [],
        [(4, 0, 7, 100)],
        [(4, 4097, 7, 100)],
        [ITEM, (5, 1, 20, 200)],
        [ITEM, (6, 1, 8, 200)],
        [(4, 2, layout.MAX_SLOTS - 1, 100)],
        [(4, 2, 7, layout.MAX_CHUNKS - 1)],
        [(4, 2, 7, 1)],
        [(layout.MAX_VOLUME_CHUNKS - 1, 2, 7, 100)],
        [(0xFFFFFFFF, 2, 7, 100)],
    ],
)
def test_share_records_that_cannot_be_are_refused(items):
    with pytest.raises(LayoutError):
        layout.unpack_share(layout.pack_share(3, b"".join(layout.SHARE_ITEM.pack(*item) for item in items)))


def test_a_share_record_of_the_wrong_length_is_refused():
    with pytest.raises(LayoutError):
        layout.unpack_share(layout.pack_share(3, layout.SHARE_ITEM.pack(*ITEM))[:-1])


numbers = st.integers(0, 40) | st.integers(0, 0xFFFF_FFFF) | st.sampled_from([4095, 4096, 8191, 1 << 28, 1 << 31])
records = st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4).map(
    lambda items: layout.pack_share(1, b"".join(layout.SHARE_ITEM.pack(*item) for item in items))
)


MADE = make_volume(shared=True)


@settings(max_examples=400, deadline=None)
@given(st.lists(records, min_size=1, max_size=3))
def test_any_share_record_is_applied_or_refused(payloads):
    """By recovery and by the checker alike; and what was applied is what the maps say."""
    births = Births(np.array([0xFFFF_FFFF] * 2 + [1] * 30 + [0] * 4, np.uint32))
    family = Family(births, CHUNK)
    family.claims.in_use = True
    family.add(Node(1, NodeKind.HEAD, ChunkMap.empty(8192), size_bytes=8192 * CHUNK, volume_id="v"), None)
    for payload in payloads:
        try:
            family.apply(layout.RecordType.SHARE, payload)
        except LayoutError:
            break
    entries = np.concatenate([leaf.chunks() for leaf in family.node(1).map.leaves])
    assert family.node(1).mapped == len(entries) == len(np.unique(entries))
    chunks, times = np.unique(family.claims.chunks_of(entries), return_counts=True)
    assert (births.claims_on(chunks) == times + 1).all()
    image, findings = MADE.image(), Findings()
    Replay(image, findings).run(
        [layout.Record(layout.RecordType.SHARE, seq, 0, 64, payload) for seq, payload in enumerate(payloads, 1)]
    )


async def test_the_table_on_disk_is_literally(env, store, path):
    head = await shared_once(store)
    places = [entry(head, n) for n in range(4)]
    assert [entry(head, 8 + n) & 0xFFFF_FFFF for n in range(4)] == [0x8000_0000 + n for n in range(4)]
    await store.close()
    births = head.node.generation or store._core.family.generation
    table = np.array([[place, births] for place in places], "<u4").tobytes().ljust(layout.PAGE_SIZE, b"\0")
    assert table in path.read_bytes()
