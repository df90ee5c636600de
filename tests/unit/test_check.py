"""What ``check`` says of files whose checksums are right and whose contents contradict each other.

A faulty writer makes such files. Here a page is changed and every checksum above it made right again.
"""

import random
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from engine.errors import MediumError, NotSupported, StoreCorrupt
from engine.tvol import layout
from engine.tvol.check import check_file
from tests.support.made_volumes import PATH, make_volume, stored_leaves, used_pages

PAGE = layout.PAGE_SIZE


def change_page(made, page, change):
    """Apply ``change(bytearray)`` to a page and correct its checksum in whoever refers to it, up to the superblocks."""
    image = made.files.image(PATH)
    pages = list(used_pages(made.image()))
    old = image.read(page * PAGE, PAGE)
    new = bytearray(old)
    change(new)
    replace(made, pages, page, old, bytes(new))


def replace(made, pages, page, old, new):
    image = made.files.image(PATH)
    image.write(page * PAGE, new)
    was, now = (struct.pack("<Q", layout.checksum64(data)) for data in (old, new))
    number = struct.pack("<I", page)
    for parent in pages:
        before = image.read(parent * PAGE, PAGE)
        after = corrected(before, number, was, now)
        if after != before:
            replace(made, pages, parent, before, after)
    for offset in layout.SUPERBLOCK_OFFSETS:
        before = image.read(offset, layout.SUPERBLOCK_SIZE)
        after = corrected(before, number, was, now)
        if after != before:
            image.write(offset, after[:-8] + struct.pack("<Q", layout.checksum64(after[:-8])))


def corrected(data, number, was, now):
    """References are (page, checksum) or, in map tops, (page, birth, checksum)."""
    at = data.find(was)
    while at >= 0:
        if number in (data[at - 4 : at], data[at - 8 : at - 4]):
            data = data[:at] + now + data[at + 8 :]
        at = data.find(was, at + 8)
    return data


def words_changed(change):
    def apply(page):
        words = np.frombuffer(page, dtype="<u4").copy()
        change(words)
        page[:] = words.tobytes()

    return apply


def findings(made):
    report = check_file(PATH, files=made.files)
    assert report.exit_code == 9
    return " | ".join(map(str, report.findings))


def leaf_of(made, name):
    image = made.image()
    (node,) = [node for node in image.nodes.values() if node.record.name == name]
    return stored_leaves(image, node)[0]


def newest(entries, below=layout.SLOT_BIT):
    """The highest chunk (or slot, below ``PARTIAL``) that entries name."""
    return int(entries[entries < below].max())


def test_the_helper_alone_damages_nothing():
    made = make_volume()
    (page,) = made.pages("births")
    change_page(made, page, words_changed(lambda words: words.__setitem__(4000, 1)))
    change_page(made, page, words_changed(lambda words: words.__setitem__(4000, 0)))
    assert check_file(PATH, files=made.files).findings == []


def test_a_named_chunk_that_is_free():
    made = make_volume()
    chunk = newest(leaf_of(made, "vol").entries)
    change_page(made, made.pages("births")[0], words_changed(lambda words: words.__setitem__(chunk, 0)))
    assert "names a chunk that is free" in findings(made)


def test_a_chunk_that_nothing_names():
    made = make_volume()
    leaf = leaf_of(made, "vol")
    chunk = newest(leaf.entries)
    at = int(np.flatnonzero(leaf.entries == chunk)[0])
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(at, 0)))
    assert f"nothing refers to them, first {chunk}" in findings(made)


def test_a_chunk_from_the_future():
    made = make_volume()
    chunk = newest(leaf_of(made, "vol").entries)
    change_page(made, made.pages("births")[0], words_changed(lambda words: words.__setitem__(chunk, 99)))
    assert "born in generation 99" in findings(made)


def test_a_chunk_named_twice_in_one_map():
    made = make_volume()
    leaf = leaf_of(made, "copy")
    chunk = newest(leaf.entries)
    other = int(np.flatnonzero(leaf.entries[:20] != chunk)[0])
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(other, chunk)))
    assert f"names chunk {chunk} twice" in findings(made)


def test_a_chunk_of_a_volume_named_by_its_clone():
    made = make_volume()
    chunk = newest(leaf_of(made, "vol").entries)
    leaf = leaf_of(made, "copy")
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(0, chunk)))
    assert "belongs to another node" in findings(made)


def test_an_entry_beyond_all_chunks():
    made = make_volume()
    leaf = leaf_of(made, "vol")
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(3, 1_000_000)))
    assert "entry 3 (chunk 1000000) does not exist" in findings(made)


def test_a_deadlist_that_lacks_a_chunk():
    made = make_volume()
    page = made.pages("deadlist")[0]

    def change(words):
        count = int(np.flatnonzero(words)[-1])
        words[count] = words[count - 1]

    change_page(made, page, words_changed(change))
    text = findings(made)
    assert "deadlist: misses 1 chunks" in text


@pytest.mark.parametrize("field", ["mapped", "own"])
def test_a_wrong_count_in_a_node(field):
    made = make_volume()
    node = next(node for node in made.image().nodes.values() if node.record.name == "vol")
    right = struct.pack("<QQ", node.record.mapped, node.record.own)
    wrong = struct.pack("<QQ", node.record.mapped + (field == "mapped"), node.record.own + (field == "own"))
    for page in made.pages("nodes, page"):
        change_page(made, page, lambda data: data.__setitem__(slice(None), data.replace(right, wrong, 1)))
    assert "its map has" in findings(made)


def partial_of(made, name):
    """A partial chunk that a node names: (leaf, index, chunk, base, mask)."""
    leaf = leaf_of(made, name)
    at = int(np.flatnonzero(leaf.entries >= layout.PARTIAL)[0])
    chunk = int(leaf.entries[at]) - layout.PARTIAL
    return leaf, at, chunk, *made.image().partials[chunk].tolist()


def row_changed(made, chunk, base, mask):
    page = made.pages("partial chunks")[0]
    change_page(made, page, words_changed(lambda words: words.reshape(-1, 2).__setitem__(chunk, (base, mask))))


def test_a_volume_with_partial_chunks_is_sound():
    made = make_volume()
    report = check_file(PATH, files=made.files)
    assert report.findings == []
    assert report.counts["partial_chunks"] >= 3


def test_a_partial_chunk_without_a_row():
    made = make_volume()
    _, _, chunk, _, _ = partial_of(made, "vol")
    row_changed(made, chunk, 0, 0)
    assert "names a partial chunk that is none" in findings(made)
    with pytest.raises(MediumError, match="partial chunk that is none"):
        made.run(made.read_back)


@pytest.mark.parametrize("what", ["metadata", "another chunk", "itself"])
def test_a_partial_chunk_over_a_base_that_is_not_its_own(what):
    made = make_volume()
    _, _, chunk, base, mask = partial_of(made, "vol")
    image = made.image()
    pages = int(np.flatnonzero(image.births == layout.BIRTH_METADATA)[-1])
    other = next(c for c in np.flatnonzero(image.births == 1).tolist() if c != base)
    row_changed(made, chunk, {"metadata": pages, "another chunk": other, "itself": chunk}[what], mask)
    said = {
        "metadata": "names a chunk of metadata",
        "another chunk": "is shared, but not the parent's at this place",
        "itself": "twice",
    }
    assert said[what] in findings(made)


def test_a_row_of_a_chunk_that_is_named_by_its_bare_number():
    made = make_volume()
    chunk = newest(leaf_of(made, "vol").entries)
    row_changed(made, chunk, partial_of(made, "vol")[3], 1)
    assert f"partial chunks: chunk {chunk} is named by its bare number" in findings(made)


def test_a_row_that_nothing_names():
    made = make_volume()
    leaf, at, chunk, base, _ = partial_of(made, "copy")
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(at, base)))
    assert f"partial chunks: chunk {chunk} is not named as a partial chunk" in findings(made)


def test_a_mask_that_is_too_wide():
    made = make_volume()
    _, _, chunk, base, _ = partial_of(made, "vol")
    row_changed(made, chunk, base, 1 << 16 | 1)
    assert "partial chunks: chunk" in findings(made)
    with pytest.raises(StoreCorrupt, match="of the partial chunks"):
        made.run(made.read_back)


def slots_of(made):
    return made.image().slots


def table_changed(made, change):
    change_page(made, made.pages("slots")[0], words_changed(lambda words: change(words.reshape(-1, 2))))


def test_a_volume_with_shared_chunks_is_sound():
    made = make_volume(shared=True)
    assert np.count_nonzero(slots_of(made)[:, 1]) >= 3
    assert check_file(PATH, files=made.files).findings == []


def test_a_slot_that_nothing_names():
    made = make_volume(shared=True)
    used = slots_of(made)[:, 0].max()
    table_changed(made, lambda table: table.__setitem__(len(slots_of(made)) - 1, (used, 1)))
    leaf = leaf_of(made, "copy")
    at = int(leaf.entries.argmax())
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(at, 0)))
    assert "slots: 1 are in use, but nothing refers to them" in findings(made)


def test_a_slot_of_a_chunk_that_is_free():
    made = make_volume(shared=True)
    slot = int(np.flatnonzero(slots_of(made)[:, 1])[0])
    chunk = int(np.flatnonzero(made.image().births == 0)[0])
    table_changed(made, lambda table: table.__setitem__((slot, 0), chunk))
    assert "slots: name a chunk that is free" in findings(made)


def test_a_slot_of_a_chunk_that_does_not_exist():
    made = make_volume(shared=True)
    slot = int(np.flatnonzero(slots_of(made)[:, 1])[0])
    table_changed(made, lambda table: table.__setitem__((slot, 0), 1_000_000))
    assert "slots: name chunk 1000000, which does not exist" in findings(made)


def test_an_entry_that_names_a_free_slot():
    made = make_volume(shared=True)
    slot = int(np.flatnonzero(slots_of(made)[:, 1])[0])
    table_changed(made, lambda table: table.__setitem__((slot, 1), 0))
    assert "names a chunk that is free" in findings(made)
    with pytest.raises(MediumError, match="a slot that is not in use"):
        made.run(made.read_back)


def test_a_slot_named_twice():
    made = make_volume(shared=True)
    leaf = leaf_of(made, "copy")
    slot = newest(leaf.entries, layout.PARTIAL)
    change_page(made, leaf.page, words_changed(lambda words: words.__setitem__(0, slot)))
    assert f"names slot {slot - layout.SLOT_BIT} twice" in findings(made)


def test_a_chunk_that_is_said_to_be_held_by_slots_alone():
    made = make_volume(shared=True)
    image = made.image()
    slot = int(np.flatnonzero(image.slots[:, 1])[0])
    chunk = int(image.slots[slot, 0])
    births = made.pages("births")[0]
    change_page(made, births, words_changed(lambda words: words.__setitem__(chunk, layout.BIRTH_SHARED)))
    assert "by its number that only slots name" in findings(made)


def test_a_map_page_in_a_chunk_of_data():
    made = make_volume()
    page = made.pages("map leaf")[0]
    chunk = page * PAGE // 65536
    change_page(made, made.pages("births")[0], words_changed(lambda words: words.__setitem__(chunk, 1)))
    assert "is not in a chunk of metadata" in findings(made)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 1 << 30))
def test_any_words_under_right_checksums_end_in_findings_or_a_refusal(seed):
    """Neither the checker nor an opening meets them with a traceback; what an opening refuses, the checker finds."""
    rng = random.Random(seed)
    made = make_volume(shared=True)
    page = rng.choice(
        made.pages(rng.choice(["births", "map top", "map leaf", "deadlist", "root stream", "nodes, page", "slots"]))
    )

    def change(data):
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(200) * 4
            data[at : at + 4] = rng.choice([rng.randbytes(4), rng.randrange(40).to_bytes(4, "little"), b"\xff" * 4])

    change_page(made, page, change)
    report = check_file(PATH, files=made.files)
    try:
        made.run(made.read_back)
    except (StoreCorrupt, NotSupported, MediumError):
        assert report.damaged
