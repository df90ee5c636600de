"""``check --repair`` of files whose checksums are right and whose structures contradict each other: partial chunks,
slots, births, deadlists and the reclaim queue, each changed in turn, are brought to what the maps say, or refused."""

import asyncio
import random
import struct

import numpy as np
import pytest

from engine.errors import StoreCorrupt
from engine.tvol import layout
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.repair import repair_file
from tests.support.made_volumes import CHUNK, PATH, MadeVolume, make_volume
from tests.support.sim_files import SimFileSystem
from tests.unit.test_check import change_page, leaf_of, newest, partial_of, row_changed, table_changed, words_changed


def births_changed(made, chunk, birth):
    change_page(made, made.pages("births")[0], words_changed(lambda words: words.__setitem__(chunk, birth)))


def row_that_nothing_names(made):
    leaf, at, _, base, _ = partial_of(made, "copy")
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(at, base)))


def births_of_a_base(made):
    by_slots = made.image().slots[:, 0]  # of those an opening says itself that they hold nothing
    births_changed(made, next(base for base in bases(made) if base < layout.SLOT_BIT and base not in by_slots), 0)


def bases(made):
    """What the partial chunks of the volume and its clone stand on."""
    found = []
    for name in ("vol", "copy"):
        entries = leaf_of(made, name).entries
        chunks = entries[entries >= layout.PARTIAL] - np.uint32(layout.PARTIAL)
        found += made.image().partials[chunks, 0].tolist()
    return found


def births_of_a_partial_chunk(made):
    births_changed(made, partial_of(made, "vol")[2], layout.BIRTH_FREE)


def chunk_that_nothing_names(made):
    births_changed(made, int(np.flatnonzero(made.image().births == 0)[0]), 1)


def chunk_said_to_be_held_by_slots(made):
    births_changed(made, newest(leaf_of(made, "vol").entries), layout.BIRTH_SHARED)


def chunk_held_by_slots_that_are_gone(made):
    births_changed(made, int(np.flatnonzero(made.image().births == 0)[0]), layout.BIRTH_SHARED)


def slot_that_nothing_names(made):
    leaf = leaf_of(made, "copy")
    at = int(np.flatnonzero((leaf.entries >= layout.SLOT_BIT) & (leaf.entries < layout.PARTIAL))[0])
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(at, 0)))


def deadlist_that_has_another_chunk(made):
    page = made.pages("deadlist")[0]
    change_page(made, page, words_changed(lambda words: words.__setitem__(np.flatnonzero(words)[-1], 40)))


def counters(made):
    node = next(node for node in made.image().nodes.values() if node.record.name == "vol")
    right = struct.pack("<QQ", node.record.mapped, node.record.own)
    wrong = struct.pack("<QQ", node.record.mapped + 3, node.record.own + 1)
    for page in made.pages("nodes, page"):
        change_page(made, page, lambda data: data.__setitem__(slice(None), data.replace(right, wrong, 1)))


async def contents(env, path):
    store = await TvolFile.open(env, path)
    found = {}
    for device in [*store.volumes(), *store.snapshots()]:
        buffer = bytearray(device.size_bytes)
        await device.read(0, memoryview(buffer))
        found[device.name] = bytes(buffer)
    await store._housekeeper.idle()
    await store.close()
    return found


def lay_down(made, path):
    """The simulated file on the machine's file system."""
    image = made.files.image(PATH)
    path.write_bytes(image.read(0, image.size))


@pytest.mark.parametrize(
    "damage",
    [
        births_of_a_base,
        births_of_a_partial_chunk,
        chunk_that_nothing_names,
        chunk_said_to_be_held_by_slots,
        chunk_held_by_slots_that_are_gone,
        deadlist_that_has_another_chunk,
        counters,
    ],
)
def test_it_is_brought_to_what_the_maps_say(env, path, damage):
    made = make_volume(shared=True)
    damage(made)
    lay_down(made, path)
    assert check_file(path).damaged
    repaired = asyncio.run(repair_file(env, path))
    assert repaired.mended or damage is deadlist_that_has_another_chunk
    assert check_file(path).findings == []
    assert asyncio.run(contents(env, path)) == made.contents
    assert check_file(path).findings == []


@pytest.mark.parametrize("damage", [row_that_nothing_names, slot_that_nothing_names])
def test_what_no_map_names_any_more_is_freed(env, path, damage):
    made = make_volume(shared=True)
    damage(made)
    lay_down(made, path)
    before = check_file(path)
    assert before.damaged
    asyncio.run(repair_file(env, path))
    assert check_file(path).findings == []
    found = asyncio.run(contents(env, path))
    assert {name: data for name, data in found.items() if name != "copy"} == {
        name: data for name, data in made.contents.items() if name != "copy"
    }
    after = check_file(path)
    assert after.findings == []
    assert after.counts["reclaim_queue"] == 0
    told = ("slots", "partial_chunks")
    assert sum(after.counts[name] for name in told) < sum(before.counts[name] for name in told)


def test_a_partial_chunk_without_a_row_is_refused(env, path):
    made = make_volume(shared=True)
    row_changed(made, partial_of(made, "vol")[2], 0, 0)
    lay_down(made, path)
    with pytest.raises(StoreCorrupt, match=r"v\.tvol: a map names a partial chunk that is none"):
        asyncio.run(repair_file(env, path))
    assert path.read_bytes() == made.files.image(PATH).read(0, made.files.image(PATH).size)


def test_a_slot_of_a_chunk_that_does_not_exist_is_refused(env, path):
    made = make_volume(shared=True)
    slot = int(np.flatnonzero(made.image().slots[:, 1])[0])
    table_changed(made, lambda table: table.__setitem__((slot, 0), 1_000_000))
    lay_down(made, path)
    with pytest.raises(StoreCorrupt):
        asyncio.run(repair_file(env, path))
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]


async def reclaim_halfway(env):
    """A checkpoint with partial chunks and bases in the queue, and a deleted clone that is being reclaimed; then more
    records, of reclaiming too."""
    store = await TvolFile.create(env, PATH, volume_name="v", size_bytes=20 * CHUNK, journal_bytes=4 * CHUNK)
    head, core = store.volume("v"), store._core
    await store._housekeeper.stop()
    await head.write(0, memoryview(b"1" * 20 * CHUNK))
    one = await store.snapshot(head, "one")
    for index in range(8):
        await head.write(index * CHUNK, memoryview(b"2" * 4096))
    two = await store.snapshot(head, "two")
    await head.write(0, memoryview(b"3" * 6 * CHUNK))
    three = await store.snapshot(head, "three")
    await head.write(3 * CHUNK, memoryview(b"4" * 4096))
    clone = await store.clone(three, "c")
    await store.share(three, 0, clone, 15 * CHUNK, 3 * CHUNK)
    for index in range(4, 14, 2):
        await clone.write(index * CHUNK, memoryview(b"5" * 4096))
    await clone.write(9 * CHUNK, memoryview(b"6" * CHUNK))
    await clone.write(16 * CHUNK, memoryview(b"7" * 4096))
    await store.delete_snapshot(one)
    await store.delete_snapshot(two)
    await store.delete_volume(clone)
    await head.flush()
    for node in (one.node, two.node, clone.node):
        core.log(layout.RecordType.MERGE, layout.NODE_ID.pack(node.id))
    await core.checkpointer.run()
    await head.write(CHUNK, memoryview(b"8" * CHUNK))
    await head.flush()


@pytest.mark.parametrize("lost", [("births",), ("reclaim queue",), ("births", "reclaim queue")])
def test_while_deleted_nodes_are_being_reclaimed(env, path, lost):
    made = MadeVolume(SimFileSystem(random.Random(1)))
    made.run(reclaim_halfway)
    image = made.image()
    assert {claim for claim in image.reclaim.tolist() if image.partials[claim, 1]}
    assert any(node.record.flags & layout.NodeFlag.RECLAIMING for node in image.nodes.values())
    lay_down(made, path)
    assert check_file(path).findings == []
    expected = asyncio.run(contents(env, path))
    for page in [made.pages(part)[0] for part in lost]:
        made.flip_page(page)
    path.unlink()
    lay_down(made, path)
    asyncio.run(repair_file(env, path))
    assert asyncio.run(contents(env, path)) == expected
    report = check_file(path)
    assert report.findings == []
    assert report.counts["reclaim_queue"] == report.counts["slots"] == 0
