"""One file's part in a group snapshot: flipped, promised, and decided on by somebody else."""

import pytest

from engine.errors import InvalidArgument, InvalidState, StoreFailed
from engine.stores import GroupStore
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

CHUNK = 64 * KIB


@pytest.fixture
async def store(env, path):
    made = await TvolFile.create(env, path, volume_name="v", size_bytes=MIB)
    yield made
    await made.close()
    assert check_file(path).findings == []


async def reopened(store: TvolFile, env, path) -> TvolFile:
    await store.close()
    assert check_file(path).findings == []
    return await TvolFile.open(env, path)


async def promised(store: TvolFile, name: str = "s"):
    await store.prepare_flips(1)
    assert store.ready_to_flip(1)
    flip = store.flip(store.volume("v"), name)
    await store.prepare([flip])
    return flip.snapshot


def test_the_native_store_can_take_part(store):
    assert isinstance(store, GroupStore)


async def test_a_promised_snapshot_is_seen_only_when_it_is_accepted(store):
    head = store.volume("v")
    await head.write(0, memoryview(b"a" * CHUNK))
    snapshot = await promised(store)
    await head.write(0, memoryview(b"b" * CHUNK))
    assert store.snapshots() == []
    assert store.prepared() == [snapshot]
    with pytest.raises(InvalidState):
        await store.clone(snapshot, "c")
    with pytest.raises(InvalidState):
        await store.delete_snapshot(snapshot)
    with pytest.raises(InvalidState):
        await store.delete_volume(head)
    await store.accept([snapshot])
    assert store.snapshots() == [snapshot]
    assert store.prepared() == []
    data = bytearray(CHUNK)
    await snapshot.read(0, memoryview(data))
    assert data == b"a" * CHUNK
    with pytest.raises(InvalidState):
        await store.accept([snapshot])


async def test_a_promise_outlives_the_process_and_a_flip_without_one_does_not(env, path):
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=MIB)
    guid = (await promised(store, "kept")).guid
    store.flip(store.volume("v"), "lost")
    store = await reopened(store, env, path)
    assert store.snapshots() == []
    assert [snapshot.guid for snapshot in store.prepared()] == [guid]
    await store.accept(store.prepared())
    store = await reopened(store, env, path)
    assert [snapshot.name for snapshot in store.snapshots()] == ["kept"]
    assert store.prepared() == []
    await store.close()


async def test_the_room_that_is_made_for_flips_is_all_the_room_that_they_ask_for(store, monkeypatch):
    just_enough = 3 * store._tree_pages()
    monkeypatch.setattr(store._core.pages, "headroom", lambda: just_enough)
    await store.prepare_flips(3)
    assert store.ready_to_flip(3)
    assert not store.ready_to_flip(4)


async def test_more_flips_than_the_journal_can_ever_hold_are_refused(env, path):
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=MIB, journal_bytes=CHUNK)
    await store.prepare_flips(4)
    with pytest.raises(InvalidArgument, match="journal"):
        await store.prepare_flips(64)
    await store.close()


async def test_a_dropped_one_is_gone_and_its_name_is_free(store):
    await store.drop([await promised(store)])
    assert store.prepared() == []
    await store.settled()
    await store.accept([await promised(store)])


async def test_content_is_replaced_once_and_not_under_somebody_who_has_written_since(store):
    head = store.volume("v")
    await head.write(0, memoryview(b"a" * 512))
    first = await store.snapshot(head, "first")
    await head.write(0, memoryview(b"b" * 512))
    kept = await store.snapshot(head, "kept")
    await store.replace_content(head, first, kept)
    data = bytearray(512)
    await head.read(0, memoryview(data))
    assert data == b"a" * 512
    await head.write(0, memoryview(b"c" * 512))
    await store.replace_content(head, first, kept)
    await head.read(0, memoryview(data))
    assert data == b"c" * 512


async def test_a_replacement_that_fails_ends_the_store(env, path, monkeypatch):
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=MIB)
    head = store.volume("v")
    first = await store.snapshot(head, "first")
    await head.write(0, memoryview(b"b" * 512))
    kept = await store.snapshot(head, "kept")

    async def full(**named):
        from engine.errors import OutOfSpace

        raise OutOfSpace("full")

    monkeypatch.setattr(store._core, "make_room", full)
    with pytest.raises(StoreFailed):
        await store.replace_content(head, first, kept)
    with pytest.raises(StoreFailed):
        await head.write(0, memoryview(b"c" * 512))
    await store.close()
