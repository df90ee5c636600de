"""Replicas that take the place of their sources: the same disk for initiators, at every crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from engine.api import DeviceIoInfo
from engine.errors import EngineError, InUse, InvalidState, MediumError
from engine.volume import Identity
from tests.support.engine import PREFIX, Engine, opened

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 2 * MIB


async def finished(engine: Engine, job) -> None:
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    assert job.error is None, job


async def content(engine: Engine, name: str) -> bytes:
    volume = engine.pool.volume(name)
    data = bytearray(volume.size_bytes)
    await volume.read(0, memoryview(data))
    return bytes(data)


async def clone_with_replica(engine: Engine) -> None:
    """``c``, exposed, is a linked clone of ``a@s``; ``own`` is its replica, ``path`` a standby path to it by that."""
    await engine.api.volume_create("a", SIZE)
    await engine.pool.volume("a").write(0, memoryview(os.urandom(SIZE)))
    await engine.api.snapshot_create("a", "s")
    await engine.api.clone_create("a", "s", "c", expose=True)
    await engine.pool.volume("c").write(MIB, memoryview(os.urandom(8192)))
    await finished(engine, await engine.api.replica_create("c", "own"))
    await engine.api.target_create("path")
    await engine.api.target_lun_add("path", "own", standby=True)
    await engine.pool.catalog.save_reservations(engine.pool.volume("c").device_id, "a document")


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await clone_with_replica(engine)
        yield engine


async def shown_as(engine: Engine, serial: str) -> set[str]:
    """The volumes that are shown as that disk, by paths that can be used."""
    luns = [lun for target in await engine.api.target_list() for lun in target.luns]
    return {lun.volume for lun in luns if lun.serial == serial and not lun.standby}


async def test_the_replica_is_the_disk_that_its_source_was(engine, tmp_path: Path):
    before = await engine.api.volume_show("c")
    expected = await content(engine, "c")
    await engine.api.schedule_set("c", 3600, keep_last=3)
    info = await engine.api.replica_promote("own")
    assert (info.serial, info.naa, info.target, info.lun) == (before.serial, before.naa, before.target, 0)
    assert await content(engine, "own") == expected
    await engine.pool.volume("own").write(0, memoryview(b"on it goes" * 51 + b"!!"))
    source = await engine.api.volume_show("c")
    assert (source.target, source.read_only) == (None, False)
    assert source.serial != before.serial
    assert await engine.api.replica_list() == []
    assert [each.volume for each in await engine.api.schedule_list()] == ["own"]
    assert await shown_as(engine, before.serial) == {"own"}
    shown = engine.exports.shown
    assert shown[f"{PREFIX}:c"][0] is shown[f"{PREFIX}:path"][0] is engine.pool.volume("own")
    assert not [each for each in engine.pool.volume("own").head.store.snapshots() if each.hidden]
    assert await engine.api.clone_list() == [source]
    await engine.api.volume_delete("c")
    await engine.api.volume_delete("a", force=True)
    documents = await engine.pool.catalog.reservations()
    assert documents == {engine.pool.volume("own").device_id: "a document"}, "the reservations have gone with the disk"


async def test_it_is_so_after_a_restart(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await clone_with_replica(engine)
        serial = (await engine.api.volume_show("c")).serial
        promoted = await engine.api.replica_promote("own")
        other = await engine.api.volume_show("c")
    async with opened(tmp_path / "pool") as engine:
        assert await engine.api.volume_show("own") == promoted
        assert await engine.api.volume_show("c") == other
        assert await shown_as(engine, serial) == {"own"}
        await engine.api.volume_delete("own", force=True)
        assert await engine.pool.catalog.reservations() == {}
        assert (await engine.api.volume_show("c")).serial == other.serial


async def test_what_initiators_have_done_is_told_of_the_volume_that_they_did_it_with(engine, monkeypatch):
    done = DeviceIoInfo("", None, 1, 2, 3, 4, [])

    def io() -> dict[str, DeviceIoInfo]:
        shown = {volume.device_id for luns in engine.exports.shown.values() for volume in luns.values()}
        return dict.fromkeys(shown, done)

    monkeypatch.setattr(engine.exports, "io", io)
    assert [each.volume for each in engine.exposure.io()] == ["c"], "a standby path is its source's"
    await engine.api.replica_promote("own")
    assert [each.volume for each in engine.exposure.io()] == ["own"]
    await engine.api.target_create("again")
    await engine.api.target_lun_add("again", "c")
    assert [each.volume for each in engine.exposure.io()] == ["c", "own"]


async def test_its_lineage_says_where_it_comes_from(engine):
    ids = {name: engine.pool.volume(name).volume_id for name in ("c", "own")}
    identities = engine.pool.catalog.identities
    await engine.api.replica_promote("own")
    (made,) = await identities.lineage(ids["c"])
    first, promoted = await identities.lineage(ids["own"])
    assert first == made
    assert (made.number, made.point, promoted.number, promoted.lossless) == (1, None, 2, True)
    assert promoted.point is not None
    assert await identities.released(ids["c"]) == (2, promoted.guid)
    assert await identities.released(ids["own"]) is None
    await finished(engine, await engine.api.replica_create("own", "next"))
    await engine.api.replica_promote("next")
    lineage = await identities.lineage(engine.pool.volume("next").volume_id)
    assert [each.number for each in lineage] == [1, 2, 3]
    assert lineage[:2] == [first, promoted]


async def test_what_is_used_otherwise_is_refused(engine):
    engine.exports.log_in(f"{PREFIX}:c")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.replica_promote("own")
    engine.exports.logged_in.clear()
    await engine.api.group_create("g", ["c"])
    with pytest.raises(InUse, match="group g"):
        await engine.api.replica_promote("own")
    await engine.api.group_delete("g")
    await finished(engine, await engine.api.replica_create("c", "second"))
    with pytest.raises(InUse, match="replica second"):
        await engine.api.replica_promote("own")
    await engine.api.replica_detach("second")
    await engine.api.replica_fracture("own")
    with pytest.raises(InvalidState, match="Synchronized"):
        await engine.api.replica_promote("own")
    await finished(engine, await engine.api.replica_resync("own"))
    engine.exports.log_in(f"{PREFIX}:c")
    await engine.api.replica_promote("own", force=True)


async def test_a_catalogue_that_cannot_be_written_leaves_everything_as_it_was(engine, monkeypatch):
    before = await engine.api.volume_show("c")

    async def full(*arguments, **named):
        raise MediumError("the pool's catalogue cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pool.catalog.identities, "promote", full)
        with pytest.raises(MediumError):
            await engine.api.replica_promote("own")
    assert await engine.api.volume_show("c") == before
    assert engine.exports.shown[f"{PREFIX}:c"][0] is engine.pool.volume("c")
    await engine.pool.volume("c").write(0, memoryview(b"x" * 512))
    while (await engine.api.replica_show("own")).copy_state != "Synchronized":
        await engine.pool.volume("c").flush()
    assert await content(engine, "own") == await content(engine, "c")
    await engine.api.replica_promote("own")


async def test_a_cancellation_comes_too_late_for_what_the_catalogue_has(tmp_path: Path, monkeypatch):
    """Its thread goes on: what it has recorded then is not taken back, and the mirror does not come back."""
    async with opened(tmp_path / "pool") as engine:
        await clone_with_replica(engine)
        serial = (await engine.api.volume_show("c")).serial
        promote, begun = engine.pool.catalog.identities.promote, asyncio.Event()

        async def in_its_thread(*arguments, **named):
            begun.set()
            return await asyncio.shield(promote(*arguments, **named))

        monkeypatch.setattr(engine.pool.catalog.identities, "promote", in_its_thread)
        promotion = asyncio.create_task(engine.api.replica_promote("own"))
        await begun.wait()
        promotion.cancel()
        await asyncio.wait([promotion])
        assert await shown_as(engine, serial) == {"own"}
        assert engine.exports.shown[f"{PREFIX}:c"][0] is engine.pool.volume("own")
    async with opened(tmp_path / "pool") as engine:
        assert await shown_as(engine, serial) == {"own"}
        assert await engine.api.replica_list() == []
        assert not engine.pool.volume("own").read_only


async def test_while_it_is_decided_nobody_brings_the_mirror_back(tmp_path: Path, monkeypatch):
    """What it records of itself after that would have the old disk overwrite the new one at the next start."""
    async with opened(tmp_path / "pool") as engine:
        await clone_with_replica(engine)
        promote, decided, told = engine.pool.catalog.identities.promote, asyncio.Event(), asyncio.Event()

        async def late(*arguments, **named):
            ids = await promote(*arguments, **named)
            decided.set()
            await told.wait()
            return ids

        monkeypatch.setattr(engine.pool.catalog.identities, "promote", late)
        mirror = engine.replicas.running("own")
        promotion = asyncio.create_task(engine.api.replica_promote("own"))
        await decided.wait()
        for ask in (engine.api.replica_resync, engine.replicas.detach, engine.api.replica_pause):
            with pytest.raises(InvalidState, match="promoted"):
                await ask("own")
        with contextlib.suppress(EngineError):
            await mirror.resync()
        told.set()
        await promotion
        await mirror.thin(0)
    async with opened(tmp_path / "pool") as engine:
        assert await engine.api.replica_list() == []
        assert not engine.pool.volume("own").read_only


async def test_at_every_crash_there_is_one_disk_with_the_identity(tmp_path: Path, monkeypatch):
    """The pool as it lies there before and after each of the catalogue's transactions, opened by another daemon."""
    async with opened(tmp_path / "pool") as engine:
        await clone_with_replica(engine)
        serial = (await engine.api.volume_show("c")).serial
        expected = await content(engine, "c")
        copies: list[Path] = []
        run = engine.pool.catalog._run

        def copy() -> None:
            copies.append(tmp_path / f"crash-{len(copies)}")
            shutil.copytree(tmp_path / "pool", copies[-1])

        async def copied(work):
            copy()
            found = await run(work)
            copy()
            return found

        monkeypatch.setattr(engine.pool.catalog, "_run", copied)
        monkeypatch.setattr(engine.pool.catalog.identities, "_run", copied)
        await engine.api.replica_promote("own")
        monkeypatch.undo()
    assert len(copies) >= 6
    outcomes = set()
    for path in copies:
        async with opened(path) as engine:
            (name,) = await shown_as(engine, serial)
            outcomes.add(name)
            assert await content(engine, name) == expected
            infos = await engine.api.volume_list()
            assert len({info.serial for info in infos}) == len({info.naa for info in infos}) == len(infos)
            for lun in [lun for luns in engine.exports.shown.values() for lun in luns.values()]:
                assert lun is engine.pool.volume(name)
            promoted = name == "own"
            assert (await engine.api.replica_list() == []) == promoted
            hidden = [each for each in engine.pool.volume("own").head.store.snapshots() if each.hidden]
            assert not (promoted and hidden), "what the mirror kept is gone"
            assert Identity.of(engine.pool.volume(name).device_id).serial == serial
    assert outcomes == {"c", "own"}
