"""Leases of the copy loop: what is taken, written whole and published, in how many records."""

import random
from pathlib import Path

import pytest

from engine.files import real_env
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import RecordType
from engine.units import KIB, MIB

UNIT = 64 * KIB
SIZE = 300 * MIB
"""More than one leaf of the map."""


@pytest.fixture
async def store(tmp_path: Path):
    env, path = real_env(2), tmp_path / "v.tvol"
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE)
    yield made
    await made.close()
    await env.close()
    assert not check_file(path).findings


async def content(device, offset: int, length: int) -> bytes:
    data = bytearray(length)
    await device.read(offset, memoryview(data))
    return bytes(data)


async def move(head, offset: int, data: bytes, written=None) -> None:
    """Write an extent by a lease and publish ``written``, or all of it."""
    lease = await head.lease_write(offset, len(data))
    try:
        lease.write(0, memoryview(data))
        await lease.publish([(0, len(data))] if written is None else written)
    finally:
        lease.release()


async def test_a_strip_of_new_chunks_is_one_record(store, monkeypatch):
    head, data = store.volume("v"), random.Random(1).randbytes(4 * MIB)
    records, append = [], store._core.journal.append
    monkeypatch.setattr(
        store._core.journal, "append", lambda kind, payload: records.append(kind) or append(kind, payload)
    )
    for number, offset in enumerate(
        (0, 256 * MIB - 2 * MIB), 1
    ):  # within a leaf of the map, and over the border of two
        await move(head, offset, data)
        assert records.count(RecordType.MAP) == number
        assert await content(head, offset, len(data)) == data


async def test_where_chunks_lie_apart_all_are_published(store):
    head, rng = store.volume("v"), random.Random(2)
    for index in range(0, 200, 2):
        await head.write(index * UNIT, memoryview(rng.randbytes(UNIT)))
    for index in range(0, 200, 2):
        await head.discard(index * UNIT, UNIT)
    await head.flush()  # the free chunks are used first, in whatever order
    await move(head, 0, rng.randbytes(33 * UNIT))
    await store.snapshot(head, "s")
    data = rng.randbytes(200 * UNIT)
    expected = bytearray(await content(head, 0, len(data)))
    written = [(3 * UNIT, UNIT), (7 * UNIT, 9 * UNIT), (100 * UNIT, 100 * UNIT)]
    await move(head, 0, data, written)
    for at, length in written:
        expected[at : at + length] = data[at : at + length]
    assert await content(head, 0, len(data)) == expected


async def test_what_is_published_survives_a_kill_with_its_snapshot(store, tmp_path):
    head, rng = store.volume("v"), random.Random(3)
    old, new = rng.randbytes(2 * MIB), rng.randbytes(2 * MIB)
    await move(head, 0, old)
    await store.snapshot(head, "s")
    await move(head, 0, new)
    (tmp_path / "w.tvol").write_bytes((tmp_path / "v.tvol").read_bytes())
    again = await TvolFile.open(store._core.env, tmp_path / "w.tvol")
    assert await content(again.volume("v"), 0, len(new)) == new
    assert await content(again.snapshots()[0], 0, len(old)) == old
    await again.close()
