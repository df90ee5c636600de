"""Atomic writes on the real file system: where they go. That they are all or nothing after a crash is shown in
``tests/simulation``."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import OutOfRange
from engine.files import real_env
from engine.stores import AtomicTarget
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.head import ATOMIC_WRITE_BYTES
from engine.units import KIB, MIB

CHUNK = 64 * KIB
SIZE = 4 * MIB


@pytest.fixture
async def store(tmp_path: Path):
    env = real_env()
    path = tmp_path / "v.tvol"
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE, journal_bytes=CHUNK)
    yield made
    await made.close()
    env.workers.close()
    assert not [f for f in check_file(path).findings if f.severity.name == "DAMAGE"]


async def content(device, offset, length):
    data = bytearray(length)
    await device.read(offset, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 4096), (512, 512), (CHUNK - 512, 1024), (0, CHUNK), (3 * CHUNK - 4096, ATOMIC_WRITE_BYTES), (SIZE - 512, 512)],
)
async def test_what_was_written_is_there_and_its_surroundings_stay(store, offset, length):
    head = store.volume("v")
    assert isinstance(head, AtomicTarget)
    await head.write(0, memoryview(b"o" * SIZE))
    await head.write_atomic(offset, memoryview(b"n" * length))
    assert await content(head, 0, SIZE) == b"o" * offset + b"n" * length + b"o" * (SIZE - offset - length)


async def test_a_chunk_that_could_be_written_in_place_is_replaced(store):
    head = store.volume("v")
    await head.write(0, memoryview(b"o" * CHUNK))
    before = head.node.map.lookup(0)
    await head.write_atomic(4096, memoryview(b"n" * 4096))
    assert head.node.map.lookup(0) != before
    await head.flush()


async def test_a_hole_around_an_atomic_write_reads_zero(store):
    head = store.volume("v")
    await head.write_atomic(4096, memoryview(b"n" * 4096))
    assert await content(head, 0, CHUNK) == bytes(4096) + b"n" * 4096 + bytes(CHUNK - 8192)


async def test_atomic_writes_wait_for_overlapping_ones_in_order(store):
    head = store.volume("v")
    await asyncio.gather(*(head.write_atomic(0, memoryview(bytes((number,)) * 2 * CHUNK)) for number in range(1, 9)))
    assert await content(head, 0, 2 * CHUNK) == b"\x08" * 2 * CHUNK


async def test_a_snapshot_keeps_what_was_before(store):
    head = store.volume("v")
    await head.write(0, memoryview(b"o" * CHUNK))
    snapshot = await store.snapshot(head, "s")
    await head.write_atomic(0, memoryview(b"n" * 512))
    assert await content(snapshot, 0, 1024) == b"o" * 1024
    assert await content(head, 0, 1024) == b"n" * 512 + b"o" * 512


async def test_beyond_the_end_is_refused(store):
    with pytest.raises(OutOfRange):
        await store.volume("v").write_atomic(SIZE - 512, memoryview(bytes(1024)))
