"""After a purge no byte that was freed can be found in the volume file, whichever way it was freed."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import MediumError, NotSupported, StoreFailed
from engine.files import RealFile, real_env
from engine.stores import PurgingStore
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

CHUNK = 64 * KIB
SIZE = 4 * MIB
SECRET = b"the secret of the house "


@pytest.fixture
async def store(tmp_path: Path):
    env = real_env()
    made = await TvolFile.create(env, tmp_path / "v.tvol", volume_name="v", size_bytes=SIZE, journal_bytes=CHUNK)
    yield made
    await made.close()
    env.workers.close()


async def fill(head, offset=0, length=SIZE):
    await head.write(offset, memoryview((SECRET * (length // len(SECRET) + 1))[:length]))


def is_found(store) -> bool:
    return SECRET in store.path.read_bytes()


async def test_discarded_data_is_gone(store):
    assert isinstance(store, PurgingStore)
    head = store.volume("v")
    await fill(head)
    await head.flush()
    assert is_found(store)
    await head.discard(0, SIZE)
    await store.purge()
    assert not is_found(store)


async def test_the_data_of_a_deleted_snapshot_is_gone(store):
    head = store.volume("v")
    await fill(head)
    snapshot = await store.snapshot(head, "s")
    await head.write(0, memoryview(bytes(SIZE)))
    await store.delete_snapshot(snapshot)
    await store.purge()
    assert not is_found(store)


async def test_the_chunk_that_an_atomic_write_replaced_is_gone(store):
    head = store.volume("v")
    await fill(head, length=CHUNK)
    await head.write_atomic(0, memoryview(bytes(CHUNK)))
    await store.purge()
    assert not is_found(store)


async def test_chunks_that_were_shared_within_the_volume_are_gone(store):
    head = store.volume("v")
    await fill(head, length=SIZE // 2)
    snapshot = await store.snapshot(head, "s")
    assert await store.share(snapshot, 0, head, SIZE // 2, SIZE // 2) == SIZE // 2
    await store.delete_snapshot(snapshot)
    await head.discard(0, SIZE // 2)
    await store.purge()
    assert is_found(store)
    await head.discard(SIZE // 2, SIZE // 2)
    await store.purge()
    assert not is_found(store)


async def test_a_reader_of_a_freed_chunk_is_waited_for(store):
    head = store.volume("v")
    await fill(head)
    data = bytearray(CHUNK)
    reading = asyncio.ensure_future(head.read(0, memoryview(data)))
    await asyncio.sleep(0)
    await head.discard(0, SIZE)
    await store.purge()
    await reading
    assert data.startswith(SECRET)
    assert not is_found(store)


async def test_without_holes_in_the_host_file_the_data_is_overwritten(store, monkeypatch):
    def no_holes(self, offset, length):
        raise NotSupported("this file system punches no holes")

    monkeypatch.setattr("engine.files.RealFile.punch", no_holes)
    head = store.volume("v")
    await fill(head)
    await head.discard(0, SIZE)
    await store.purge()
    assert not is_found(store)


async def test_a_sync_that_fails_at_the_end_of_a_purge_is_not_forgotten(store, monkeypatch):
    """It may have lost what others wrote: a later flush that succeeded would vouch for that."""
    head = store.volume("v")
    await fill(head)
    await head.flush()
    await head.discard(0, SIZE)
    punch, sync, has_punched = RealFile.punch, RealFile.sync_data, []

    def punch_and_note(self, offset, length, /):
        punch(self, offset, length)
        has_punched.append(offset)

    def fail_once(self):
        if has_punched:
            has_punched.clear()
            raise MediumError("fdatasync: input/output error")
        sync(self)

    monkeypatch.setattr(RealFile, "punch", punch_and_note)
    monkeypatch.setattr(RealFile, "sync_data", fail_once)
    with pytest.raises(StoreFailed):
        await store.purge()
    with pytest.raises(StoreFailed):
        await head.flush()
