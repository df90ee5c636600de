"""Digests and the scrub on the real file system: what is found, what is marked, what a mark means to readers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct

import pytest
from xxhash import xxh3_64_intdigest

from engine.errors import MediumError
from engine.hash_tree import digest_of
from engine.tvol import digests
from engine.tvol.check import check_file
from engine.tvol.check_image import Findings, Loader
from engine.tvol.file import TvolFile
from engine.tvol.layout import DIGESTS_PER_PAGE, PAGE_SIZE
from engine.tvol.scrub import Found
from engine.units import KIB, MIB
from tests.support.made_volumes import used_pages

CHUNK = 64 * KIB
SIZE = 16 * MIB


@pytest.fixture
def env(env):
    """Digests are made by threads here."""
    return dataclasses.replace(env, copier=None)


@pytest.fixture
async def store(env, path):
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE)
    yield made
    await made.close()
    assert not check_file(path).damaged


def pattern(chunk: int, version: int = 0) -> bytes:
    return struct.pack("<II", chunk + 1, version) * (CHUNK // 8)


async def fill(head, first: int, count: int, version: int = 0) -> None:
    for chunk in range(first, first + count):
        await head.write(chunk * CHUNK, memoryview(pattern(chunk, version)))


async def read(device, chunk: int) -> bytes:
    data = bytearray(CHUNK)
    if not device.try_read(chunk * CHUNK, memoryview(data)):
        await device.read(chunk * CHUNK, memoryview(data))
    return bytes(data)


async def scrub(store, *, repair=None, make_only=False, volume="v"):
    """(counts, findings) of one scrub of the whole volume."""
    findings = []

    async def pace(length):
        pass

    head = store.volume(volume)
    scrubber = store.scrubber(head, pace=pace, report=findings.append, repair=repair, make_only=make_only)
    await scrubber.run(0, -(-store.scrub_bytes(head) // CHUNK))
    return scrubber.counts, findings


def rot(path, chunk: int, bit: int = 0) -> None:
    """Flip one bit of a chunk of the file."""
    fd = os.open(path, os.O_RDWR)
    try:
        at = chunk * CHUNK + bit // 8
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1 << bit % 8]), at)
    finally:
        os.close(fd)


def entry(device, index: int) -> int:
    return device.node.map.lookup(index)


async def test_the_first_scrub_makes_digests_and_the_next_verifies_them(store):
    await fill(store.volume("v"), 0, 20)
    counts, findings = await scrub(store)
    assert (counts.made, counts.verified) == (20, 0)
    counts, findings = await scrub(store)
    assert (counts.made, counts.verified, findings) == (0, 20, [])


async def test_snapshots_are_scrubbed_too_each_chunk_once(store):
    head = store.volume("v")
    await fill(head, 0, 8)
    await store.snapshot(head, "a")
    await fill(head, 0, 4, version=1)
    await store.snapshot(head, "b")
    await fill(head, 2, 4, version=2)
    counts, _ = await scrub(store)
    assert counts.made == 8 + 4 + 4
    assert store.digested_chunks == 16


async def test_a_snapshot_that_is_larger_than_its_volume_is_now_is_scrubbed_to_its_end(store, path):
    head = store.volume("v")
    await fill(head, 0, 8)
    last = entry(head, 7)
    await store.snapshot(head, "large")
    await head.resize(2 * CHUNK)
    counts, _ = await scrub(store)
    assert counts.made == 8
    rot(path, last)
    _, findings = await scrub(store)
    assert [(each.found, each.offset) for each in findings] == [(Found.BAD, 7 * CHUNK)]


async def test_a_chunk_with_a_digest_is_redirected_as_if_a_snapshot_shared_it(store):
    head = store.volume("v")
    await fill(head, 0, 2)
    await scrub(store)
    before = entry(head, 0)
    assert head.try_write(0, memoryview(pattern(9, 1))[:4096])
    head.end_pass()
    assert entry(head, 0) != before
    assert await read(head, 0) == pattern(9, 1)[:4096] + pattern(0)[4096:]
    await fill(head, 1, 1, version=1)
    counts, findings = await scrub(store)
    assert (counts.made, counts.verified, findings) == (2, 1, [])  # the first chunk is the base of a partial one
    assert store.digested_chunks == 3


async def test_a_flipped_bit_is_found_marked_and_answers_medium_error(store, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    snapshot = await store.snapshot(head, "s")
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 2), bit=12345)
    counts, (finding,) = await scrub(store)
    assert (counts.bad, counts.verified) == (1, 3)
    assert (finding.found, finding.offset, finding.node) == (Found.BAD, 2 * CHUNK, "s")
    assert finding.expected == digest_of(pattern(2)).hex() != finding.actual
    for device in (head, snapshot):
        with pytest.raises(MediumError, match="marked bad"):
            await read(device, 2)
        assert await read(device, 1) == pattern(1)
    with pytest.raises(MediumError):  # the rest of the chunk is not to be had
        await head.write(2 * CHUNK, memoryview(bytes(512)))
    counts, findings = await scrub(store)
    assert (counts.skipped, counts.bad, findings) == (1, 0, [])


async def test_a_mark_survives_a_restart_and_ends_when_the_chunk_is_overwritten(store, env, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 2))
    await scrub(store)
    await store.close()
    store = await TvolFile.open(env, path)
    head = store.volume("v")
    try:
        assert store.bad_chunks == 1
        with pytest.raises(MediumError):
            await read(head, 2)
        await fill(head, 2, 1, version=1)
        assert await read(head, 2) == pattern(2, 1)
        assert store.bad_chunks == 0
        counts, findings = await scrub(store)
        assert (counts.verified, counts.made, findings) == (3, 1, [])
    finally:
        await store.close()


async def test_a_mark_survives_the_process(store, env, path, tmp_path):
    """What a kill leaves right after the scrub: the file as it is then."""
    head = store.volume("v")
    await fill(head, 0, 4)
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 2))
    await scrub(store)
    copy = tmp_path / "copy.tvol"
    copy.write_bytes(path.read_bytes())
    assert not check_file(copy).damaged
    other = await TvolFile.open(env, copy)
    try:
        assert other.bad_chunks == 1
        with pytest.raises(MediumError):
            await read(other.volume("v"), 2)
    finally:
        await other.close()


@pytest.mark.parametrize("zeroes_known", [True, False])
async def test_a_bad_chunk_is_overwritten_page_by_page(store, path, zeroes_known):
    """Also where no new chunk is known to be zero, as in an encrypted file."""
    head = store.volume("v")
    store._core.allocator._holes_read_zero = zeroes_known
    await fill(head, 0, 4)
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 2))
    await scrub(store)
    assert store.bad_chunks == 1
    for at in range(0, CHUNK, 4 * KIB):
        await head.write(2 * CHUNK + at, memoryview(pattern(2, 1))[at : at + 4 * KIB])
        with pytest.raises(MediumError) if at < CHUNK - 4 * KIB else contextlib.nullcontext():
            await read(head, 2)
    assert await read(head, 2) == pattern(2, 1)
    assert store.bad_chunks == 0


class Elsewhere:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = []

    async def offers(self, volume_id, offset, length, /):
        self.asked.append((offset, length))
        yield self.data


async def test_a_bad_chunk_is_repaired_from_elsewhere(store, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    snapshot = await store.snapshot(head, "s")
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 3), bit=77)
    source = Elsewhere(pattern(3))
    counts, findings = await scrub(store, repair=source)
    assert source.asked == [(3 * CHUNK, CHUNK)]
    assert (counts.bad, counts.repaired) == (1, 1)
    assert [finding.found for finding in findings] == [Found.BAD, Found.REPAIRED]
    assert await read(snapshot, 3) == pattern(3)
    assert store.bad_chunks == 0


async def test_other_bytes_from_elsewhere_repair_nothing_and_a_later_scrub_tries_again(store, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    await scrub(store)
    await head.flush()
    rot(path, entry(head, 3))
    counts, _ = await scrub(store, repair=Elsewhere(pattern(3, 1)))
    assert (counts.bad, counts.repaired, store.bad_chunks) == (1, 0, 1)
    counts, _ = await scrub(store, repair=Elsewhere(pattern(3)))
    assert (counts.repaired, store.bad_chunks) == (1, 0)
    assert await read(head, 3) == pattern(3)


async def test_the_policy_always_leaves_alone_what_has_a_digest(store, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    await scrub(store, make_only=True)
    await fill(head, 4, 3)
    counts, _ = await scrub(store, make_only=True)
    assert (counts.made, counts.verified) == (3, 0)


async def test_digests_survive_a_restart_and_check_data_goes_by_them(store, env, path):
    head = store.volume("v")
    await fill(head, 0, 4)
    await scrub(store)
    chunk = entry(head, 1)
    await store.close()
    report = check_file(path, data=True)
    assert (report.damaged, report.counts["verified_chunks"]) == (False, 4)
    rot(path, chunk, bit=8000)
    report = check_file(path, data=True)
    assert [finding.where for finding in report.findings] == [f"chunk {chunk}"]
    assert report.damaged
    assert not check_file(path).damaged
    store = await TvolFile.open(env, path)
    try:
        counts, _ = await scrub(store)
        assert (counts.verified, counts.bad) == (3, 1)
    finally:
        await store.close()


async def test_a_deleted_snapshot_leaves_its_digests_to_the_head_which_still_redirects(store):
    head = store.volume("v")
    await fill(head, 0, 4)
    snapshot = await store.snapshot(head, "s")
    await scrub(store)
    await store.delete_snapshot(snapshot)
    await store.settled()
    before = entry(head, 0)
    await head.write(0, memoryview(bytes(512)))
    assert entry(head, 0) != before
    counts, findings = await scrub(store)
    assert (counts.verified, counts.made, findings) == (4, 1, [])  # the base of the partial chunk is still there


def rot_page(path, env, wanted: str) -> None:
    """Flip a bit of the first page that is used as ``wanted`` says, in a closed file."""
    file = env.files.open(path, writable=False)
    uses = used_pages(Loader(file, Findings()).load())
    file.close()
    page = next(page for page, where in uses.items() if wanted in where)
    with path.open("r+b") as raw:
        raw.seek(page * PAGE_SIZE + 40)
        byte = raw.read(1)[0]
        raw.seek(page * PAGE_SIZE + 40)
        raw.write(bytes([byte ^ 1]))


async def test_a_rotten_page_of_digests_is_told_and_its_digests_are_made_anew(store, env, path):
    await fill(store.volume("v"), 0, 5)
    await scrub(store)
    await store.close()
    rot_page(path, env, "digest page")
    store = await TvolFile.open(env, path)
    try:
        counts, (finding,) = await scrub(store)
        assert finding.found is Found.DIGESTS_LOST
        assert (counts.verified, counts.made, counts.bad) == (0, 5, 0)
        assert (await scrub(store))[1] == []
    finally:
        await store.close()
    assert check_file(path, data=True).findings == []


async def test_a_rotten_leaf_of_a_map_is_found_by_the_scrub_and_nothing_is_called_verified(env, path):
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE)
    await fill(store.volume("v"), 0, 5)
    await scrub(store)
    await store.close()
    rot_page(path, env, "map leaf")
    store = await TvolFile.open(env, path)
    try:
        counts, (finding,) = await scrub(store)
        assert (finding.found, counts.verified) == (Found.MAP_LOST, 0)
        with pytest.raises(MediumError):
            await store.volume("v").read(0, memoryview(bytearray(CHUNK)))
    finally:
        await store.close()


async def test_a_checkpoint_between_two_digests_of_a_batch_may_displace_their_pages(env, path, monkeypatch):
    """As with more pages of digests than the cache has: the batch has them read again."""
    monkeypatch.setattr(digests, "DIGESTS_PER_PAGE", 1)
    monkeypatch.setattr(digests, "CACHE_PAGES", 20)
    monkeypatch.setattr("engine.tvol.scrub.MAX_DIRTY_PAGES", 16)
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE)
    head = store.volume("v")
    await fill(head, 0, 128)
    assert (await scrub(store))[0].made == 128
    await head.discard(0, 64 * CHUNK)
    await head.flush()
    await store.settled()
    for chunk in range(64, 128, 2):  # to the chunks that are free, which come before the others
        await fill(head, chunk, 1, version=1)
    counts, findings = await scrub(store)
    assert (counts.made, counts.verified, findings) == (32, 32, [])
    counts, findings = await scrub(store)
    assert (counts.made, counts.verified, findings) == (0, 64, [])
    await store.close()


async def test_a_page_of_digests_that_is_wanted_is_not_displaced_by_another_that_is(env, path, monkeypatch):
    monkeypatch.setattr(digests, "CACHE_PAGES", 2)
    pages = [chunk * DIGESTS_PER_PAGE for chunk in range(3)]
    known, file = digests.Digests(), env.files.create(path)
    for number, chunk in enumerate(pages):
        known.put(chunk, bytes([number]) * 16)
    _, captured = known.capture()
    for number, data in captured.items():
        file.write((memoryview(data),), (number + 1) * PAGE_SIZE)
        known.refs[number] = (number + 1, xxh3_64_intdigest(data))
    known.written()  # the first of the three is not in memory, and the second is the next to go
    await known.prepare(file, env.workers, pages[:2])
    assert [known.get(chunk) for chunk in pages[:2]] == [bytes(16), b"\x01" * 16]
    file.close()
