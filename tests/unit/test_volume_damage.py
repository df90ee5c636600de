"""Damage to each structure of a volume file in turn: found by ``check``, refused or repaired by opening, never used."""

import logging
import random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from engine.errors import InUse, MediumError, NotSupported, OutOfSpace, StoreCorrupt, StoreFailed
from engine.tvol import layout
from engine.tvol.check import Severity, check_file
from engine.tvol.file import TvolFile
from engine.tvol.journal import scan
from engine.tvol.recovery import recover
from tests.support.made_volumes import CHUNK, PATH, SIZE, make_volume, used_pages
from tests.support.sim_files import PAGE, Fault, eio, enospc


def check(made):
    return check_file(PATH, files=made.files)


def test_an_undamaged_closed_file_is_clean_and_has_nothing_to_replay():
    report = check(make_volume())
    assert report.findings == []
    assert report.exit_code == 0
    assert not report.replayable
    assert report.counts["nodes"] == 4


def test_a_killed_file_is_clean_with_a_journal_to_replay():
    report = check(make_volume(closed=False))
    assert report.findings == []
    assert report.exit_code == 0
    assert report.replayable


def test_a_file_that_is_open_for_writing_is_in_use():
    made = make_volume()
    made.files.open(PATH, writable=True)
    with pytest.raises(InUse):
        check(made)


def test_checking_changes_nothing():
    made = make_volume(closed=False)
    before = made.files.image(PATH).copy()
    counts = dict(made.files.counts)
    check(made)
    assert made.files.image(PATH).pages == before.pages
    changed = {name for name, count in made.files.counts.items() if counts.get(name) != count}
    assert changed <= {"open", "read"}


@pytest.mark.parametrize("slot", [0, 1])
def test_one_bad_superblock_is_noted_and_the_other_is_used(slot):
    made = make_volume()
    made.flip(layout.SUPERBLOCK_OFFSETS[slot] + 50)
    report = check(made)
    assert [(item.severity, item.where) for item in report.findings] == [(Severity.NOTE, f"superblock {slot}")]
    assert report.exit_code == 0
    assert made.run(made.read_back) == made.contents
    assert check(made).findings == []  # opening for writing has repaired it


def test_two_bad_superblocks_are_damage_and_refused():
    made = make_volume()
    for offset in layout.SUPERBLOCK_OFFSETS:
        made.flip(offset + 50)
    assert check(made).exit_code == 9
    with pytest.raises(StoreCorrupt, match="superblock"):
        made.run(made.read_back)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("root index", "root"),
        ("root stream", "root"),
        ("births", "births"),
        ("map top", "map of node"),
        ("nodes, page", "nodes"),
        ("deadlist", "deadlist"),
        ("slots", "slots"),
    ],
)
def test_a_flipped_bit_in_a_page_is_found_and_refused(part, named):
    pages = make_volume(shared=True).pages(part)
    assert pages
    for page in pages:
        made = make_volume(shared=True)
        made.flip_page(page)
        report = check(made)
        assert report.exit_code == 9
        assert any(f"page {page} " in str(finding) for finding in report.findings)
        with pytest.raises(StoreCorrupt, match=named):
            made.run(made.read_back)


def test_a_flipped_bit_in_a_map_leaf_is_found_and_refused_where_it_maps():
    for page in make_volume(shared=True).pages("map leaf"):
        made = make_volume(shared=True)
        made.flip_page(page)
        report = check(made)
        assert report.exit_code == 9
        assert any(f"page {page} " in str(finding) for finding in report.findings)
        with pytest.raises(MediumError, match="leaf"):
            made.run(made.read_back)


def test_a_wrong_leaf_is_told_once_however_often_a_host_asks(caplog):
    made = make_volume(shared=True)
    for page in made.pages("map leaf"):
        made.flip_page(page)

    async def ask(env):
        store = await TvolFile.open(env, PATH)
        for device in [*store.volumes(), *store.snapshots()] * 5:
            with pytest.raises(MediumError, match="leaf"):
                await device.read(0, memoryview(bytearray(device.size_bytes)))

    with caplog.at_level(logging.ERROR, "engine.tvol.map_reader"):
        made.run(ask)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) > 0


@pytest.mark.parametrize("parts", [("births", "nodes, page"), ("map top", "slots"), ("deadlist", "root stream")])
def test_pages_that_changed_places_are_found_and_refused(parts):
    made = make_volume(shared=True)
    image, places = made.files.image(PATH), [made.pages(part)[0] * layout.PAGE_SIZE for part in parts]
    pages = [image.read(place, layout.PAGE_SIZE) for place in places]
    for place, page in zip(places, reversed(pages), strict=True):
        image.write(place, page)
    assert check(made).exit_code == 9
    with pytest.raises(StoreCorrupt, match="wrong checksum"):
        made.run(made.read_back)


def test_a_superblock_of_another_file_is_found():
    made, other = make_volume(), make_volume()
    offset = layout.SUPERBLOCK_OFFSETS[1]
    theirs = bytearray(other.files.image(PATH).read(offset, layout.SUPERBLOCK_SIZE))
    theirs[40:56] = bytes(16)  # the identity of the family
    theirs[-8:] = layout.checksum64(bytes(theirs[:-8])).to_bytes(8, "little")
    made.files.image(PATH).write(offset, bytes(theirs))
    report = check(made)
    assert report.exit_code == 9
    assert "different families" in str(report.findings[0])


def test_a_flipped_bit_in_a_committed_journal_record_is_found_and_refused():
    made = make_volume(closed=False)
    offset = layout.JOURNAL_FIRST_CHUNK * CHUNK + made.image().superblock.journal_offset
    made.flip(offset + layout.RECORD_HEADER.size + 3)
    report = check(made)
    assert report.exit_code == 9
    assert report.findings[0].where == "journal"
    with pytest.raises(StoreCorrupt, match="journal"):
        made.run(made.read_back)


def journal_of(made):
    """Where the ring begins, its bytes, and the chain of its records: (record, offset behind it)."""
    superblock = made.image().superblock
    start = layout.JOURNAL_FIRST_CHUNK * CHUNK
    ring = memoryview(made.files.image(PATH).read(start, superblock.journal_chunks * CHUNK))
    chain = (superblock.journal_offset, superblock.journal_seq, superblock.incarnation, superblock.journal_previous)
    return start, ring, list(scan(ring, *chain))


def recovered(made, boot_id):
    """How many records count, up to which they are numbered, and where the journal ends."""
    try:
        found = recover(made.files.open(PATH, writable=False), boot_id, writable=False)
    finally:
        made.files.restart_process()
    return found.replayed, found.next_seq, found.journal_offset


def test_a_flipped_bit_anywhere_in_either_copy_of_the_last_commit_loses_nothing():
    made = make_volume(closed=False)
    start, _, records = journal_of(made)
    (first, behind_first), (second, behind_second) = records[-2:]
    assert first.type == second.type == layout.RecordType.COMMIT
    assert behind_first % layout.COMMIT_ALIGNMENT == behind_second % layout.COMMIT_ALIGNMENT == 0
    for boot_id in (made.files.boot_id(), "another boot"):
        replayed, _, _ = recovered(made, boot_id)
        assert replayed > 0
        for byte in range(behind_first - first.length, behind_second, 3):
            made.flip(start + byte, 1 << byte % 8)
            if byte % 8 == 0:
                report = check(made)
                assert [(item.severity, item.where) for item in report.findings] == [(Severity.NOTE, "journal")]
            assert recovered(made, boot_id)[0] == replayed
            made.flip(start + byte, 1 << byte % 8)
    assert check(made).findings == []


def test_a_rotten_copy_of_any_commit_is_passed_over():
    made = make_volume(closed=False)
    start, _, records = journal_of(made)
    expected = [recovered(made, boot_id) for boot_id in (made.files.boot_id(), "another boot")]
    commits = [behind for record, behind in records if record.type == layout.RecordType.COMMIT]
    assert len(commits) >= 4
    for behind in commits[:-1]:
        made.flip(start + behind - 1)
        report = check(made)
        assert [(item.severity, item.where) for item in report.findings] == [(Severity.NOTE, "journal")]
        assert [recovered(made, boot_id) for boot_id in (made.files.boot_id(), "another boot")] == expected
        made.flip(start + behind - 1)


@pytest.mark.parametrize("arrived", [0, 3, 8, 15, 47, 48])
def test_a_commit_of_which_a_power_loss_left_a_part_is_the_end(arrived):
    """The flush that wrote it had not returned."""
    made = make_volume(closed=False)
    start, ring, records = journal_of(made)
    (first, behind_first), (_, behind_second) = records[-2:]
    before = layout.unpack_fields(layout.COMMIT, records[-2][0].payload)[0]
    begin = behind_first - first.length
    for at, end in ((begin, behind_first), (behind_first, behind_second)):
        for byte in range(at + arrived, end):
            if ring[byte]:
                made.flip(start + byte, ring[byte])  # it is zero, as before the record was written
    _, next_seq, _ = recovered(made, "another boot")
    assert next_seq <= before
    made.files.lose_power("nothing")
    assert check(made).findings == []
    assert "vol" in made.run(made.read_back)
    assert check(made).findings == []


def test_a_record_after_the_last_commit_may_be_half_there_after_a_power_loss_but_not_on_the_same_boot():
    """The host read the page for the medium while the record was being copied into it: the first bytes arrived."""
    made = make_volume(closed=False)
    superblock = made.image().superblock
    journal, _, records = journal_of(made)
    record, behind = records[-1]
    items = layout.MAP_ITEM.pack(1, 1, layout.ZERO)
    payload = layout.pack_map(1, items)
    length = layout.record_length(len(payload))
    data, _ = layout.pack_record(
        layout.RecordType.MAP, record.seq + 1, superblock.incarnation, record.checksum, payload, length
    )
    half = layout.RECORD_HEADER.size
    made.files.image(PATH).write(journal + behind, bytes(data[:half]) + bytes(length - half))
    assert check(made).exit_code == 9
    with pytest.raises(StoreCorrupt, match="no kill can tear it"):
        recover(made.files.open(PATH, writable=False), made.files.boot_id(), writable=False)
    made.files.restart_process()
    recover(made.files.open(PATH, writable=False), "another boot", writable=False)


def test_a_file_cut_short_is_found_and_refused():
    made = make_volume()
    made.files.image(PATH).truncate(5 * CHUNK)
    assert check(made).exit_code == 9
    with pytest.raises(StoreCorrupt):
        made.run(made.read_back)


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000, b"TWINVOL\x01" * 5000, bytes(range(256)) * 500])
def test_something_else_is_refused_clearly(content):
    made = make_volume()
    image = made.files.image(PATH)
    image.truncate(0)
    image.write(0, content)
    assert check(made).exit_code == 9
    with pytest.raises(StoreCorrupt, match="superblock"):
        made.run(made.read_back)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 1 << 30), flips=st.integers(1, 4), closed=st.booleans())
def test_random_damage_to_the_metadata_is_never_used_silently(seed, flips, closed):
    """Findings, a clear refusal, or the right content; never a traceback, never other bytes."""
    rng = random.Random(seed)
    made = make_volume(closed=closed, shared=True)
    whole = make_volume(closed=closed, shared=True)
    expected = whole.run(whole.read_back)
    places = [offset + rng.randrange(4096) for offset in layout.SUPERBLOCK_OFFSETS]
    places += [page * layout.PAGE_SIZE + rng.randrange(layout.PAGE_SIZE) for page in used_pages(made.image())]
    for _ in range(flips):
        made.flip(rng.choice(places), 1 << rng.randrange(8))
    report = check(made)
    try:
        found = made.run(made.read_back)
    except (StoreCorrupt, NotSupported, MediumError):
        assert report.damaged
    else:
        assert found == expected
        assert not report.damaged


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 1 << 30))
def test_check_survives_any_garbage(seed):
    """Pages of garbage with right checksums are not made here; random bytes anywhere are."""
    rng = random.Random(seed)
    made = make_volume(closed=rng.random() < 0.5, shared=True)
    image = made.files.image(PATH)
    for _ in range(rng.randint(1, 20)):
        offset = rng.randrange(image.size)
        image.write(offset, rng.randbytes(min(rng.choice((1, 16, 4096, PAGE)), image.size - offset)))
    report = check(made)
    assert report.exit_code in (0, 9)


# --- a full or failing disk -----------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_write_and_leaves_the_file_whole():
    made = make_volume()

    async def fill(env):
        store = await TvolFile.open(env, PATH)
        head = store.volumes()[0]
        made.files.quota_bytes = made.files.used_bytes() + 2 * PAGE
        written = -1

        async def until_full():
            nonlocal written
            for index in range(SIZE // CHUNK):
                written = index
                await head.write(index * CHUNK, memoryview(bytes([index + 1]) * CHUNK))

        with pytest.raises(OutOfSpace):
            await until_full()
        await head.flush()
        made.files.quota_bytes = None
        for index in range(written, SIZE // CHUNK):
            await head.write(index * CHUNK, memoryview(bytes([index + 1]) * CHUNK))
        await store.close()

    made.run(fill)
    assert check(made).findings == []
    content = made.run(made.read_back)["vol"]
    assert content == b"".join(bytes([index + 1]) * CHUNK for index in range(SIZE // CHUNK))


def test_enospc_from_one_write_is_out_of_space_and_nothing_else():
    made = make_volume()

    async def write(env):
        store = await TvolFile.open(env, PATH)
        head = store.volumes()[0]
        made.files.faults.append(Fault("write", enospc, forever=True, where=lambda offset, length: length == CHUNK))
        with pytest.raises(OutOfSpace):
            await head.write(0, memoryview(b"x" * CHUNK))
        made.files.faults.clear()
        await store.close()

    made.run(write)
    assert check(made).findings == []
    assert made.run(made.read_back) == made.contents


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_sync_is_sticky_until_reopened(nth):
    made = make_volume()

    async def fail(env):
        store = await TvolFile.open(env, PATH)
        head = store.volumes()[0]
        await store.snapshot(head, "three")  # so that the write needs a new chunk and a commit record
        await head.write(0, memoryview(b"x" * CHUNK))
        made.files.faults.append(Fault("sync", eio, nth=nth))
        with pytest.raises((StoreFailed, MediumError)):
            await head.flush()
        for _ in range(2):
            with pytest.raises((StoreFailed, MediumError)):
                await head.flush()
            with pytest.raises(StoreFailed):
                await head.write(0, memoryview(b"y" * 512))
        assert not head.try_write(0, memoryview(b"y" * 512))
        with pytest.raises(StoreFailed):
            await store.snapshot(head, "late")

    made.run(fail)
    made.files.faults.clear()
    made.files.lose_power()
    assert check(made).findings == []
    content = made.run(made.read_back)
    assert content.pop("vol")[CHUNK:] == made.contents["vol"][CHUNK:]
    assert content.pop("three") == made.contents.pop("vol")
    assert content == made.contents
