"""The pure parts of the store: deadlists, births, the allocator's stages, the journal's ring."""

import sys
import threading
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engine.errors import OutOfSpace
from engine.files import RealFileSystem
from engine.tvol import allocator as allocator_module
from engine.tvol.allocator import Allocator, runs
from engine.tvol.births import Births
from engine.tvol.deadlist import Deadlist, ReclaimQueue, pack_buckets, unpack_buckets
from engine.tvol.journal import Journal, scan
from engine.tvol.layout import RecordType

CHUNK = 65536


@pytest.fixture
def file(tmp_path: Path):
    opened = RealFileSystem().create(tmp_path / "f")
    yield opened
    opened.close()


def dead(**buckets):
    found = Deadlist()
    for birth, chunks in buckets.items():
        found.extend(int(birth[1:]), chunks)
    return found


def test_a_deadlist_gives_up_its_buckets_above_a_generation():
    found = dead(b1=[10, 11], b5=[12], b7=[13, 14])
    assert found.count_above(4) == 3
    assert [bucket.tolist() for bucket in found.take_above(4)] == [[12], [13, 14]]
    found.absorb(dead(b1=[20], b2=[21]))
    assert {birth: bucket.tolist() for birth, bucket in found.buckets.items()} == {1: [10, 11, 20], 2: [21]}


def test_a_captured_deadlist_does_not_see_later_entries():
    found = dead(b3=[1, 2])
    captured = found.capture()
    found.add(3, 99)
    stored = unpack_buckets(array("I", b"".join(pack_buckets(captured))), 1)
    assert stored.buckets == {3: array("I", [1, 2])}


@pytest.mark.parametrize(("stream", "count"), [([1, 5, 10], 1), ([1, 1, 10, 11], 1), ([1], 1)])
def test_deadlist_streams_whose_counts_do_not_add_up_are_refused(stream, count):
    with pytest.raises(ValueError, match="bucket"):
        unpack_buckets(array("I", stream), count)


def test_births_grow_and_tell_which_pages_changed():
    births = Births(np.zeros(10, np.uint32))
    births.set(5000, 3)
    assert births.count == 5001
    assert births.pages.dirty == {0, 1}
    assert births.with_birth(3).tolist() == [5000]
    births.free(np.array([5000], np.uint32))
    assert births.view[5000] == 0
    assert len(births.page_bytes(1)) == (5001 - 4096) * 4


def test_a_captured_page_of_a_table_stays_what_it_was():
    births = Births(np.zeros(3 * 4096, np.uint32))
    births.set(5, 7)
    births.set(5000, 7)
    assert births.pages.capture() == [0, 1]
    births.free(np.array([5], np.uint32))
    births.set(6000, 8)
    births.set_run(4096, 3, 8)
    first, second = (np.frombuffer(births.pages.take(page), np.uint32) for page in (0, 1))
    assert first[5] == 7
    assert (second[5000 - 4096], second[6000 - 4096], second[0]) == (7, 0, 0)
    assert births.pages.dirty == {0, 1}
    assert births.view[5] == 0


def test_the_reclaim_queue_gives_its_claims_in_order_and_keeps_what_was_captured():
    queue = ReclaimQueue()
    queue.append(array("I", range(10)))
    queue.append(array("I", [90, 91]))
    assert queue.take(4).tolist() == [0, 1, 2, 3]
    captured = queue.parts()
    assert queue.take(7).tolist() == [4, 5, 6, 7, 8, 9, 90]
    assert [each for words, start, end in captured for each in words[start:end]] == [4, 5, 6, 7, 8, 9, 90, 91]
    assert queue.take(9).tolist() == [91]
    assert len(queue) == 0


def test_freed_chunks_wait_for_their_record_and_for_who_may_use_them(file):
    births = Births(np.full(3, 0xFFFFFFFF, np.uint32))
    allocator = Allocator(file, births, CHUNK)
    chunks = [allocator.take(whole=True)[0] for _ in range(3)]
    assert chunks == [3, 4, 5]
    allocator.defer(7, 2, array("I", chunks))
    assert not allocator.release(6, None), "the record is not durable"
    assert not allocator.release(7, 2), "operation 2 was in flight when they were freed"
    assert allocator.release(7, 3)
    assert allocator.take(whole=False) == (3, False), "its content is unknown"


def test_a_partial_write_prefers_chunks_that_read_zero(file):
    births = Births(np.array([9, 9, 9, 0, 0], np.uint32))
    allocator = Allocator(file, births, CHUNK)
    assert allocator.take(whole=True) == (3, False)
    punched = allocator.next_dirty(10)
    assert punched.tolist() == [4]
    allocator.cleaned(punched, zero=True)
    assert allocator.take(whole=False) == (4, True)
    assert allocator.take(whole=False) == (5, True), "never used: beyond the end of the file"


def test_chunks_that_read_zero_end_where_the_format_ends(file, monkeypatch):
    """The file has grown beyond that, and still no number is given out that no map can name."""
    monkeypatch.setattr(allocator_module, "MAX_CHUNKS", 6)
    allocator = Allocator(file, Births(np.array([9, 9, 9, 0], np.uint32)), CHUNK)
    assert [allocator.take_blank() for _ in range(2)] == [4, 5], "not the one of unknown content"
    with pytest.raises(OutOfSpace):
        allocator.take_blank()
    assert allocator.take(whole=True) == (3, False)


class Grants:
    """A room that grants three chunks and no more."""

    epoch = 1
    left = 3

    def grant(self, wanted, unit):
        granted, self.left = self.left * unit, 0
        return granted

    def refusal(self, path):
        return OutOfSpace(f"{path}: no room")


def test_whole_chunks_are_taken_together_or_not_at_all(file):
    births = Births(np.array([9, 9, 9, 0, 0], np.uint32))
    allocator = Allocator(file, births, CHUNK, Grants())
    assert allocator.take_whole(4) == [3, 4, 5, 6], "what is free, then what was never used"
    with pytest.raises(OutOfSpace):
        allocator.take_whole(2)
    assert allocator.take_whole(1) == [7], "given back"
    with pytest.raises(OutOfSpace):
        allocator.take_whole(1)


def test_runs_are_ascending_and_bounded():
    assert runs(array("I", [9, 3, 4, 5, 6, 11]), 3) == [(3, 3), (6, 1), (9, 1), (11, 1)]
    assert runs(array("I"), 3) == []


def test_the_journal_wraps_with_pads_and_reads_back_from_its_head(file):
    ring = 65536
    file.truncate(CHUNK + ring)
    journal = Journal(file, CHUNK, ring, incarnation=4, offset=0, seq=1, previous=0)
    kept = []
    for number in range(300):
        payload = bytes([number % 256]) * (number % 700)
        if not journal.has_room(2 * len(payload) + 128):
            _, journal.head, offset, seq, previous = kept[-1]
            start = (offset, seq, 4, previous)
            kept = []
        seq = journal.append(RecordType.MAP, payload)
        tip = journal.tip()
        kept.append((payload, tip.position, tip.offset, seq + 1, tip.previous))
    data = bytearray(ring)
    file.read_into((memoryview(data),), CHUNK)
    found = [record for record, _ in scan(memoryview(data), *start)]
    assert [r.payload for r in found if r.type == RecordType.MAP] == [payload for payload, *_ in kept]
    assert all(b.seq == a.seq + 1 for a, b in pairwise(found))


def test_the_record_after_a_commit_begins_in_a_new_sector(file):
    file.truncate(CHUNK * 2)
    journal = Journal(file, CHUNK, CHUNK, incarnation=1, offset=0, seq=1, previous=0)
    for _ in range(20):
        journal.append(RecordType.MAP, b"x" * 20)
        journal.commit(journal.last_seq)
        assert journal.tip().offset % 512 == 0


def test_commits_of_a_worker_and_records_of_the_loop_make_one_chain(file):
    """Threads take turns as often as the interpreter lets them; what each appended is there, one behind the other."""
    ring, records, commits = 1 << 20, 2000, 300
    file.truncate(CHUNK + ring)
    journal = Journal(file, CHUNK, ring, incarnation=1, offset=0, seq=1, previous=0)
    tips = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        worker = threading.Thread(target=lambda: [journal.commit(1) for _ in range(commits)])
        worker.start()
        for number in range(records):
            journal.append(RecordType.MAP, bytes([number % 256]) * 50)
            tips.append(journal.tip())
        worker.join()
    finally:
        sys.setswitchinterval(before)
    data = bytearray(ring)
    file.read_into((memoryview(data),), CHUNK)
    found = [(record, end) for record, end in scan(memoryview(data), 0, 1, 1, 0)]
    assert sum(record.type == RecordType.MAP for record, _ in found) == records
    assert sum(record.type == RecordType.COMMIT for record, _ in found) == 2 * commits
    ends = {(record.seq, end, record.checksum) for record, end in found}
    assert {(tip.last_seq, tip.offset, tip.previous) for tip in tips} <= ends


def test_no_commit_follows_what_ended_the_journal_or_fills_it_up(file):
    ring = 4096
    file.truncate(CHUNK + ring)
    journal = Journal(file, CHUNK, ring, incarnation=1, offset=0, seq=1, previous=0)
    assert [journal.commit(0) for _ in range(5)] == [True] * 4 + [False], "full: 1024 bytes each"
    journal.head = journal.position
    assert journal.mark_failed()
    assert not journal.commit(0)
