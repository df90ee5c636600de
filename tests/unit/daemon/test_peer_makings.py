"""What is asked for at a peer and comes to nothing leaves nothing there; encrypted volumes stay encrypted there."""

from __future__ import annotations

import asyncio
import os
import uuid
from dataclasses import replace

import pytest

from engine.catalog_peers import PeerTargetRow
from engine.errors import AlreadyExists, InUse, InvalidArgument, NotFound, NotSupported, OutOfSpace, PeerUnreachable
from tests.support.engine import opened
from tests.unit.daemon.test_peers import LISTEN, MIB, connected, content, fill, finished, pair, synchronized, until


async def nothing_left(source, target) -> None:
    async def is_gone() -> bool:
        await source.replicas.tend()
        return not [row for row in await target.api.volume_list() if row.name != "v"]

    await until(is_gone)
    assert await target.api.replica_list() == []
    assert source.replicas.makings.abandoned == {}
    assert await source.pool.catalog.peers.makings() == {}


async def test_a_catalogue_that_takes_no_mirror_leaves_no_volume_at_the_peer(tmp_path, monkeypatch):
    async with pair(tmp_path) as (source, target, _):

        async def put_mirror(row) -> None:
            raise OutOfSpace("no room for a row")

        with monkeypatch.context() as patch:
            patch.setattr(source.pool.catalog, "put_mirror", put_mirror)
            with pytest.raises(OutOfSpace):
                await source.api.replica_create("v", "r", peer="target")
        assert await source.api.replica_list() == []
        await nothing_left(source, target)
        await finished(source, await source.api.replica_create("v", "r", peer="target"))
        await synchronized(source, "r")


async def test_a_catalogue_that_takes_nothing_has_asked_for_nothing(tmp_path, monkeypatch):
    async with pair(tmp_path) as (source, target, _):

        async def begin_making(replica_id, peer) -> None:
            raise OutOfSpace("no room for a row")

        monkeypatch.setattr(source.pool.catalog.peers, "begin_making", begin_making)
        with pytest.raises(OutOfSpace):
            await source.api.replica_create("v", "r", peer="target")
        assert await target.api.replica_list() == []


async def test_a_crash_in_between_and_an_answer_that_is_lost(tmp_path, monkeypatch):
    async with pair(tmp_path) as (source, target, proxy):
        await source.replicas.create_at_peer("r", source.pool.volume("v"), "target", "sync")
        assert [row.name for row in await target.api.volume_list()] == ["r"]
        await source.replicas.makings.restore()  # as the next start does
        proxy.cut()
        await source.replicas.tend()
        await connected(source, "target")
        await nothing_left(source, target)
        await target.api.volume_create("v", MIB)
        with pytest.raises(AlreadyExists):
            await source.api.replica_create("v", "v", peer="target")
        await nothing_left(source, target)


async def test_what_is_still_being_made_when_it_is_abandoned_goes_as_well(tmp_path, monkeypatch):
    """The connection that asked for it is gone, and the next one says that nobody wants it."""
    async with pair(tmp_path) as (source, target, _):
        makes, go_on = asyncio.Event(), asyncio.Event()
        create_volume = target.pool.create_volume

        async def slowly(*args, **options):
            makes.set()
            await go_on.wait()
            return await create_volume(*args, **options)

        monkeypatch.setattr(target.pool, "create_volume", slowly)
        incoming, policies = target.replicas.incoming, replace(source.pool.row(source.pool.volume("v")), name="r")
        row = PeerTargetRow(str(uuid.uuid4()), "source", "r", "", "v", "sync")
        made = asyncio.ensure_future(incoming.create(row, policies, MIB, 65536))
        await makes.wait()
        abandoned = asyncio.ensure_future(incoming.abandon("source", row.replica_id))
        await asyncio.wait([abandoned], timeout=0.1)
        go_on.set()
        await asyncio.gather(made, abandoned)
        await nothing_left(source, target)


async def test_a_catalogue_of_the_peers_that_takes_no_volume_keeps_none(tmp_path, monkeypatch):
    async with pair(tmp_path) as (source, target, _):
        tables = target.pool.catalog.peers
        put_target = tables.put_target

        async def put(row) -> None:
            if row.volume_id:
                raise OutOfSpace("no room for a row")
            await put_target(row)

        with monkeypatch.context() as patch:
            patch.setattr(tables, "put_target", put)
            with pytest.raises(OutOfSpace):
                await source.api.replica_create("v", "r", peer="target")
            await nothing_left(source, target)
        await finished(source, await source.api.replica_create("v", "r", peer="target"))


async def test_what_was_a_whole_copy_is_never_deleted(tmp_path):
    async with pair(tmp_path) as (source, target, _):
        await finished(source, await source.api.replica_create("v", "r", peer="target"))
        await synchronized(source, "r")
        (row,) = await source.pool.catalog.mirrors()
        source.replicas.makings.failed(row.target_id, "target")
        await source.replicas.tend()
        assert [info.name for info in await target.api.volume_list()] == ["r"]


async def test_an_encrypted_volume_has_an_encrypted_replica_with_a_key_of_the_peers(tmp_path):
    keys = {}
    for side in ("source", "target"):
        keys[side] = tmp_path / f"{side}.key"
        keys[side].write_bytes(os.urandom(32))
        keys[side].chmod(0o600)
    async with pair(tmp_path) as (source, target, _):
        await source.api.volume_create("secret", 4 * MIB, key_source=f"file:{keys['source']}")
        await source.pool.volume("secret").write(MIB, memoryview(b"known plain text" * 4096))
        with pytest.raises(NotSupported, match="twinvol peer key"):
            await source.api.replica_create("secret", "r", peer="target")
        with pytest.raises(InvalidArgument):
            await target.api.peer_key("source", "no source")
        with pytest.raises(NotFound):
            await target.api.peer_key("nobody", None)
        info = await target.api.peer_key("source", f"file:{keys['target']}")
        assert info.key_source == f"file:{keys['target']}"
        await finished(source, await source.api.replica_create("secret", "r", peer="target"))
        await synchronized(source, "r")
        await fill(source, "secret", 0)
        assert await content(target, "r") == await content(source, "secret")
        assert target.pool.key_source(target.pool.volume("r")) == f"file:{keys['target']}"
        file = target.pool.file_of(target.pool.volume("r"))
        await target.pool.volume("r").head.flush()
        assert b"known plain text" not in file.read_bytes()
        await finished(source, await source.api.replica_create("v", "plain", peer="target"))
        assert target.pool.key_source(target.pool.volume("plain")) is None
        assert (await target.api.peer_key("source", None)).key_source is None
    async with opened(tmp_path / "target", peer=LISTEN) as target:
        assert target.pool.key_source(target.pool.volume("r")) is not None


async def test_a_key_that_is_not_there_is_told(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    async with pair(tmp_path) as (source, target, _):
        await source.api.volume_create("secret", MIB, key_source=f"file:{key}")
        await target.api.peer_key("source", f"file:{tmp_path / 'gone'}")
        with pytest.raises((NotFound, PeerUnreachable)):
            await source.api.replica_create("secret", "r", peer="target")
        await nothing_left(source, target)


async def test_a_volume_of_the_peers_is_attached_when_it_was_offered_and_equal_blocks_are_not_sent(tmp_path):
    async with pair(tmp_path) as (source, target, proxy):
        await fill(source, "v", 0, 5 * MIB, 9 * MIB)
        await target.api.volume_create("theirs", source.pool.volume("v").size_bytes)
        await target.pool.volume("theirs").write(0, memoryview(await content(source, "v")))
        await target.pool.volume("theirs").write(9 * MIB, memoryview(os.urandom(4096)))
        for volume in ("theirs", "none"):
            with pytest.raises(NotFound):
                await source.api.replica_attach("v", volume, peer="target")
        assert (await target.api.peer_offer("source", "theirs")).offers == ["theirs"]
        before = proxy.forward_bytes
        await finished(source, await source.api.replica_attach("v", "theirs", name="r", peer="target"))
        await synchronized(source, "r")
        assert proxy.forward_bytes - before < MIB
        await fill(source, "v", MIB)
        assert await content(target, "theirs") == await content(source, "v")
        with pytest.raises(InUse):
            await target.api.volume_delete("theirs")
        await source.api.replica_detach("r")
        await target.pool.volume("theirs").write(0, memoryview(b"its own again..." * 32))
        assert [info.name for info in await target.api.volume_list()] == ["theirs"]
        assert (await target.api.peer_offer("source", "theirs", withdraw=True)).offers == []
        with pytest.raises(NotFound):
            await source.api.replica_attach("v", "theirs", name="r", peer="target")


async def test_what_cannot_be_attached_is_refused_and_stays(tmp_path, monkeypatch):
    async with pair(tmp_path) as (source, target, _):
        await target.api.volume_create("other-size", MIB)
        await target.api.volume_create("shown", source.pool.volume("v").size_bytes, expose=True)
        await target.api.volume_create("fine", source.pool.volume("v").size_bytes)
        for volume in ("other-size", "shown", "fine"):
            await target.api.peer_offer("source", volume)
        with pytest.raises(InvalidArgument):
            await source.api.replica_attach("v", "other-size", peer="target")
        with pytest.raises(InUse):
            await source.api.replica_attach("v", "shown", peer="target")

        async def put_mirror(row) -> None:
            raise OutOfSpace("no room for a row")

        monkeypatch.setattr(source.pool.catalog, "put_mirror", put_mirror)
        with pytest.raises(OutOfSpace):
            await source.api.replica_attach("v", "fine", peer="target")
        await target.api.peer_offer("source", "fine", withdraw=True)  # nor does that make it one to be deleted

        async def is_free() -> bool:
            await source.replicas.tend()
            return await target.api.replica_list() == []

        await until(is_free)
        assert len(await target.api.volume_list()) == 3
        await target.pool.volume("fine").write(0, memoryview(bytes(512)))
