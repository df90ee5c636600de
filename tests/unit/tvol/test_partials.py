"""Partial chunks on the real file system: what they cost, where they lie, and when they end."""

import asyncio
from pathlib import Path

import pytest

from engine.encryption import Encryption
from engine.files import RealFile, real_env
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import PAGES_OF_CHUNK, SLOT_BIT
from engine.tvol.layout_encryption import EncryptionRecord
from engine.tvol.partials import CHUNK_MASK, PARTIAL_SCALAR
from engine.units import CHUNK_SIZES, KIB

CHUNKS = 12


KEYED = Encryption(EncryptionRecord(bytes(16), 10, 1, 1, bytes(72), "file:/key"), bytes(range(64)))


@pytest.fixture(
    params=[*((unit, None) for unit in CHUNK_SIZES), (CHUNK_SIZES[0], KEYED)], ids=["64K", "256K", "64K-encrypted"]
)
async def store(request, tmp_path: Path):
    """A volume that is written and shared with a snapshot, whose writes go through the coroutine."""
    env, (unit, encryption) = real_env(), request.param
    path = tmp_path / "v.tvol"
    made = await TvolFile.create(
        env,
        path,
        volume_name="v",
        size_bytes=CHUNKS * unit,
        chunk_bytes=unit,
        journal_bytes=4 * unit,
        encryption=encryption,
    )
    head = made.volume("v")
    await head.write(0, memoryview(b"o" * CHUNKS * unit))
    await made.snapshot(head, "s")
    yield made
    await made.close()
    await env.close()
    assert not check_file(path).findings


def mask(store, index: int) -> int:
    """Of the partial chunk that the volume has there; 0 for none."""
    entry = store.volume("v").node.map.lookup(index)
    return store._core.family.claims.partials.mask(entry & CHUNK_MASK) if PARTIAL_SCALAR <= entry < 0 else 0


async def content(device, offset: int, length: int) -> bytes:
    data = bytearray(length)
    await device.read(offset, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize("length", [512, 4 * KIB, 16 * KIB, 20 * KIB])
async def test_reads_served_together_find_what_each_finds_alone(store, length):
    head, unit = store.volume("v"), store.chunk_bytes
    await head.write(4 * KIB, memoryview(b"p" * 8 * KIB))  # a partial chunk, and one of the head's own
    await head.write(unit, memoryview(b"n" * unit))
    await head.discard(2 * unit, unit)
    offsets = [0, 2 * KIB, 4 * KIB, unit, 2 * unit - 512, 2 * unit, 3 * unit, (CHUNKS - 1) * unit]
    step = length + 48
    together = bytearray(b"?" * (len(offsets) + 3) * step)
    for beyond in (CHUNKS * unit - length + 512, CHUNKS * unit, 100, -512):
        asked = [*offsets, beyond, 0]
        assert head.try_read_each(asked, memoryview(together), step, length) == len(offsets)
    for number, offset in enumerate(offsets):
        alone = bytearray(length)
        assert head.try_read(offset, memoryview(alone))
        assert together[number * step :][:step] == alone + b"?" * 48


@pytest.mark.parametrize("has_page", [True, False])
async def test_reads_served_together_end_with_the_volume_also_within_a_page(store, has_page):
    head, unit = store.volume("v"), store.chunk_bytes
    page, end = unit // PAGES_OF_CHUNK, CHUNKS * unit - 512
    await head.write(CHUNKS * unit - (page if has_page else 2 * page), memoryview(b"p" * page))
    await head.resize(end)
    view = memoryview(bytearray(4 * page))
    assert head.try_read_each([end - page + 512], view, page, page) == 0
    assert head.try_read_each([end - page + 512, end - 512, end], view, 512, 512) == 2
    assert bytes(view[:1024]) == (b"p" if has_page else b"o") * 1024


async def test_reads_served_together_find_pages_of_a_base_that_is_shared(store):
    """By a copy that moved no data: its place is in a slot then."""
    head, unit = store.volume("v"), store.chunk_bytes
    page = unit // PAGES_OF_CHUNK
    assert await store.share(store.snapshots()[0], 0, head, 4 * unit, 2 * unit) == 2 * unit
    await head.write(5 * unit + page, memoryview(b"p" * page))
    entry = head.node.map.lookup(5)
    assert PARTIAL_SCALAR <= entry < 0
    assert store._core.family.claims.partials.base(entry & CHUNK_MASK) > SLOT_BIT
    view = memoryview(bytearray(3 * 512))
    assert head.try_read_each([5 * unit, 5 * unit + page, 5 * unit + 2 * page], view, 512, 512) == 3
    assert bytes(view) == b"o" * 512 + b"p" * 512 + b"o" * 512


async def test_a_page_is_written_alone(store, monkeypatch):
    head, unit = store.volume("v"), store.chunk_bytes
    page = unit // PAGES_OF_CHUNK
    written = []
    write = RealFile.write
    monkeypatch.setattr(
        RealFile, "write", lambda self, buffers, at: written.append(sum(map(len, buffers))) or write(self, buffers, at)
    )
    await head.write(3 * page, memoryview(b"n" * page))
    assert max(written) == page
    assert mask(store, 0) == 1 << 3
    assert await content(head, 0, unit) == b"o" * 3 * page + b"n" * page + b"o" * (unit - 4 * page)
    assert await content(store.snapshots()[0], 0, unit) == b"o" * unit


async def test_a_sector_takes_the_rest_of_its_page_along(store):
    head, page = store.volume("v"), store.chunk_bytes // PAGES_OF_CHUNK
    await head.write(page + 512, memoryview(b"n" * 512))
    assert mask(store, 0) == 1 << 1
    assert await content(head, page, page) == b"o" * 512 + b"n" * 512 + b"o" * (page - 1024)


async def test_the_last_pages_are_copied_and_the_base_ends(store):
    head, unit = store.volume("v"), store.chunk_bytes
    page = unit // PAGES_OF_CHUNK
    for number in range(11):
        await head.write(number * page, memoryview(b"n" * page))
        assert mask(store, 0) == (1 << number + 1) - 1
    await head.write(11 * page, memoryview(b"n" * page))
    assert mask(store, 0) == 0
    assert store._core.family.claims.partials.count == 0
    assert await content(head, 0, unit) == b"n" * 12 * page + b"o" * 4 * page


async def test_a_shared_partial_chunk_hands_its_pages_on(store):
    head, page = store.volume("v"), store.chunk_bytes // PAGES_OF_CHUNK
    await head.write(page, memoryview(b"1" * page))
    second = await store.snapshot(head, "second")
    await head.write(2 * page, memoryview(b"2" * page))
    assert mask(store, 0) == 0b110
    assert await content(head, 0, 4 * page) == b"o" * page + b"1" * page + b"2" * page + b"o" * page
    assert await content(second, 0, 4 * page) == b"o" * page + b"1" * page + b"o" * 2 * page
    await store.delete_snapshot(second)
    await store.settled()
    assert store._core.family.claims.partials.count == 1


async def test_a_sequential_write_lies_contiguously_and_needs_no_base(store):
    head, unit = store.volume("v"), store.chunk_bytes
    for offset in range(0, CHUNKS * unit, 256 * KIB):
        await head.write(offset, memoryview(b"n" * 256 * KIB))
    entries = [head.node.map.lookup(index) for index in range(CHUNKS)]
    each = 256 * KIB // unit  # between two writes the file may have grown its metadata
    for first in range(0, CHUNKS, each):
        assert entries[first : first + each] == list(range(entries[first], entries[first] + each))
    assert min(entries) > 1


async def test_concurrent_flushes_share_their_syncs(store, monkeypatch):
    head, syncs = store.volume("v"), []
    sync = RealFile.sync_data
    monkeypatch.setattr(RealFile, "sync_data", lambda self: syncs.append(1) or sync(self))
    await head.write(0, memoryview(b"n" * 4096))
    await asyncio.gather(*(head.flush() for _ in range(50)))
    assert len(syncs) <= 4
