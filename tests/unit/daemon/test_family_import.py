"""Copies of volume files, taken in as other volumes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from engine.errors import AlreadyExists, InUse, InvalidArgument, MediumError, NotFound, OutOfSpace
from engine.tvol import file_copy
from engine.tvol.check import check_file
from tests.support.engine import Engine, opened

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 4 * MIB


async def finished(engine: Engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def content(engine: Engine, name: str, snapshot: str | None = None) -> bytes:
    volume = engine.pool.volume(name)
    device = volume if snapshot is None else engine.pool.snapshot(volume, snapshot)
    data = bytearray(device.size_bytes)
    await device.read(0, memoryview(data))
    return bytes(data)


async def family(pool: Path) -> Path:
    """The file of a closed pool with ``a``, its snapshot ``s``, a clone ``c`` of that, and what the engine keeps for
    itself: a mirror's points and a view."""
    async with opened(pool) as engine:
        await engine.api.volume_create("a", SIZE)
        volume = engine.pool.volume("a")
        await volume.write(0, memoryview(os.urandom(2 * MIB)))
        await engine.api.snapshot_create("a", "s", description="the first one")
        await volume.write(MIB, memoryview(os.urandom(MIB)))
        await engine.api.clone_create("a", "s", "c")
        await engine.pool.volume("c").write(3 * MIB, memoryview(os.urandom(8192)))
        await engine.api.snapshot_expose("a", "s", writable=True)
        assert (await finished(engine, await engine.api.replica_create("a", "mirror"))).error is None
        return engine.pool.file_of(volume)


async def identities(engine: Engine) -> list[str]:
    found = []
    for info in await engine.api.volume_list():
        found += [info.volume_id, info.serial, *(each.guid for each in await engine.api.snapshot_list(info.name))]
    return found


async def test_a_copied_family_is_taken_in_with_all_snapshots_as_another_one(tmp_path: Path):
    pool = tmp_path / "pool"
    copy = shutil.copy(await family(pool), tmp_path / "copy.tvol")
    before = copy.read_bytes()
    async with opened(pool) as engine:
        job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True))
        assert (job.error, job.result["volumes"]) == (None, ["new.a", "new.c"])
        for old in ("a", "c"):
            assert await content(engine, f"new.{old}") == await content(engine, old)
        assert await content(engine, "new.a", "s") == await content(engine, "a", "s")
        (snapshot,) = await engine.api.snapshot_list("new.a")
        assert snapshot.description == "the first one"
        assert (await engine.api.volume_show("new.c")).origin == "new.a@s"
        store = engine.pool.volume("new.a").head.store
        assert [each.name for each in store.snapshots()] == ["s"], "what the engine kept for itself is gone"
        assert [each.name for each in store.volumes()] == ["new.a", "new.c"]
        found = await identities(engine)
        assert len(set(found)) == len(found)
        await engine.pool.volume("new.a").write(0, memoryview(b"x" * 4096))
        shown = await engine.api.volume_list()
    assert copy.read_bytes() == before
    async with opened(pool) as engine:
        assert await engine.api.volume_list() == shown
        assert await identities(engine) == found
        assert (await content(engine, "new.a"))[:4096] == b"x" * 4096
    for path in (pool / "volumes").glob("*.tvol"):
        assert not check_file(path).findings


async def test_a_copy_beside_its_original_is_refused_and_taken_in_from_there(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("a", SIZE)
        await engine.pool.volume("a").write(0, memoryview(b"a" * 4096))
    copy = shutil.copy(pool / "volumes" / "a.tvol", pool / "volumes" / "b.tvol")
    async with opened(pool) as engine:
        (reason,) = (await engine.api.status()).reasons
        assert "the same volume as a.tvol" in reason
        assert f"volume import NAME --from {copy} --new-identity" in reason
        job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True, expose=True))
        assert job.result["volumes"] == ["new"]
        assert await content(engine, "new") == await content(engine, "a")
        assert (await engine.api.volume_show("new")).target is not None


async def test_what_cannot_be_taken_in_leaves_nothing(tmp_path: Path):
    pool, image = tmp_path / "pool", tmp_path / "image"
    path = await family(pool)
    copy = shutil.copy(path, tmp_path / "copy.tvol")
    image.write_bytes(bytes(MIB))
    async with opened(pool) as engine:
        with pytest.raises(InvalidArgument, match="--new-identity"):
            await engine.api.volume_import(str(copy), "new")
        with pytest.raises(InvalidArgument, match="no volume file"):
            await engine.api.volume_import("iscsi://host/iqn.2026-11.org.example:x/0", "new", new_identity=True)
        with pytest.raises(NotFound):
            await engine.api.volume_import(str(tmp_path / "missing"), "new", new_identity=True)
        with pytest.raises(AlreadyExists):
            await engine.api.volume_import(str(copy), "a", new_identity=True)
        job = await finished(engine, await engine.api.volume_import(str(image), "new", new_identity=True))
        assert job.error == "StoreCorrupt"
        job = await finished(engine, await engine.api.volume_import(str(path), "new", new_identity=True))
        assert (job.error, "open" in job.message) == (InUse.__name__, True)
        await engine.api.volume_create("new.c", SIZE)
        job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True))
        assert job.error == "AlreadyExists"
        assert engine.pool.interrupted() == []
        assert sorted(each.name for each in engine.pool.volumes()) == ["a", "c", "mirror", "new.c"]
        await engine.api.volume_delete("new.c")
        job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True))
        assert job.error is None


async def test_what_the_catalogue_does_not_take_whole_leaves_nothing(tmp_path: Path, monkeypatch):
    pool = tmp_path / "pool"
    copy = shutil.copy(await family(pool), tmp_path / "copy.tvol")
    async with opened(pool) as engine:
        put, rows = engine.pool.catalog.put_volume, []

        async def once(row) -> None:
            rows.append(row)
            if len(rows) > 1:
                raise OutOfSpace("the pool's catalogue cannot be written")
            await put(row)

        with monkeypatch.context() as patch:
            patch.setattr(engine.pool.catalog, "put_volume", once)
            job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True))
        assert job.error == "OutOfSpace"
        assert not [info.name for info in await engine.api.volume_list() if info.name.startswith("new")]
        assert not list((pool / "volumes").rglob("new*"))
    async with opened(pool) as engine:
        assert (await engine.api.status()).reasons == []
        job = await finished(engine, await engine.api.volume_import(str(copy), "new", new_identity=True))
        assert job.result["volumes"] == ["new.a", "new.c"]


def test_a_file_that_becomes_shorter_while_it_is_copied(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_copy, "_FICLONE", 0)  # no host can do that
    monkeypatch.setattr(file_copy, "_COPY_BYTES", 4096)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8 * 4096))
    with pytest.raises(MediumError, match="shorter"):
        file_copy.copy_file(source, tmp_path / "copy", lambda done, total: os.truncate(source, 4096))
    assert not (tmp_path / "copy").exists()
