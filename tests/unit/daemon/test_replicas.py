"""Synchronous replicas of volumes of one pool, through the engine's API."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from engine.api import ReplicaInfo
from engine.errors import AlreadyExists, InUse, InvalidArgument, InvalidState, NotFound, OutOfSpace, WriteProtected
from engine.proof import Proof
from engine.sanitize import SanitizeMethod, SanitizeOrder
from engine.tvol.head import NativeHead
from tests.support.engine import PREFIX, Engine, opened

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE, expose=True)
        await write(engine, "v", 0, b"before" * 1024)
        yield engine


async def write(engine: Engine, volume: str, offset: int, data: bytes) -> None:
    await engine.pool.volume(volume).write(offset, memoryview(data))


async def content(engine: Engine, volume: str) -> bytes:
    view = bytearray(engine.pool.volume(volume).size_bytes)
    await engine.pool.volume(volume).read(0, memoryview(view))
    return bytes(view)


async def finished(engine: Engine, job) -> ReplicaInfo | None:
    while job.state_number not in (7, 8, 10):
        job = await engine.api.job_wait(job.job, after_version=job.version)
    assert job.state == "Completed", job
    return job


async def test_a_replica_is_made_synchronized_and_follows_every_write(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    info = await engine.api.replica_show("r")
    assert (info.source, info.target, info.mode, info.sync_type) == ("v", "r", "sync", "Mirror")
    assert (info.copy_state, info.progress_status, info.percent_synced) == ("Synchronized", "Completed", 100)
    assert (info.lag_seconds, info.lag_bytes, info.reason) == (0.0, 0, "")
    await write(engine, "v", MIB, os.urandom(4096))
    await engine.pool.volume("v").discard(0, 4096)
    assert await content(engine, "r") == await content(engine, "v")
    assert await engine.api.replica_list() == [info]
    assert (await engine.api.status()).replicas == 1
    assert await engine.api.snapshot_list("v") == [], "common points are nobody's business"


async def test_an_atomic_write_is_one_at_the_replica_too(engine, monkeypatch):
    await finished(engine, await engine.api.replica_create("v", "r"))
    seen = []
    original = NativeHead.write_atomic

    async def watched(self, offset, data, /, *, fua=False):
        seen.append((self.name, offset, len(data)))
        await original(self, offset, data, fua=fua)

    monkeypatch.setattr(NativeHead, "write_atomic", watched)
    await engine.pool.volume("v").write_atomic(MIB - 4096, memoryview(os.urandom(8192)))
    assert sorted(seen) == [("r", MIB - 4096, 8192), ("v", MIB - 4096, 8192)]
    assert await content(engine, "r") == await content(engine, "v")


async def test_a_mirror_keeps_its_source_from_being_sanitized(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    with pytest.raises(InvalidState, match="shared with"):
        await engine.pool.volume("v").sanitizer.start(SanitizeOrder(SanitizeMethod.BLOCK_ERASE))
    assert (await content(engine, "v")).startswith(b"before")


async def test_the_target_is_write_protected_except_while_fractured(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    assert (await engine.api.volume_show("r")).state == "read-only"
    with pytest.raises(WriteProtected):
        await write(engine, "r", 0, bytes(512))
    assert (await engine.api.replica_fracture("r")).copy_state == "Fractured"
    await write(engine, "r", 0, b"mine" * 128)
    await write(engine, "v", 2 * MIB, b"yours" * 512 * 8)
    await finished(engine, await engine.api.replica_resync("r"))
    assert await content(engine, "r") == await content(engine, "v")
    with pytest.raises(WriteProtected):
        await write(engine, "r", 0, bytes(512))


async def test_pause_and_resume(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    assert (await engine.api.replica_pause("r")).copy_state == "Suspended"
    await write(engine, "v", 3 * MIB, b"x" * 4096)
    with pytest.raises(WriteProtected):
        await write(engine, "r", 0, bytes(512))
    await finished(engine, await engine.api.replica_resume("r"))
    assert await content(engine, "r") == await content(engine, "v")


async def test_verify_yields_a_proof_document(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    job = await finished(engine, await engine.api.replica_verify("r"))
    document = Proof.parse(job.result["proof"])
    assert (document.identical, document.source.root, document.software) == (True, job.result["root"], "twinvol test")
    assert json.loads(job.result["proof"])["size_bytes"] == SIZE


async def test_a_replica_survives_a_restart_and_is_synchronized_again(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", SIZE)
        await finished(engine, await engine.api.replica_create("v", "r"))
        await write(engine, "v", MIB, b"x" * 4096)
    async with opened(pool) as engine:
        with pytest.raises(WriteProtected):
            await write(engine, "r", 0, bytes(512))
        while (await engine.api.replica_show("r")).copy_state != "Synchronized":
            await engine.pool.volume("v").flush()
        await write(engine, "v", 2 * MIB, b"y" * 4096)
        assert await content(engine, "r") == await content(engine, "v")


async def test_detaching_leaves_two_volumes(engine):
    await finished(engine, await engine.api.replica_create("v", "r"))
    before = await content(engine, "v")
    await engine.api.replica_detach("r")
    await write(engine, "v", 0, b"new" * 512)
    await write(engine, "r", MIB, b"own" * 512)
    assert (await content(engine, "r"))[:MIB] == before[:MIB]
    with pytest.raises(NotFound):
        await engine.api.replica_show("r")
    await engine.api.volume_delete("r")
    await engine.api.volume_delete("v")


async def test_attach_overwrites_an_existing_volume(engine):
    await engine.api.volume_create("other", SIZE, expose=True)
    await write(engine, "other", 5 * MIB, b"lost" * 1024)
    await finished(engine, await engine.api.replica_attach("v", "other", name="pair"))
    assert await content(engine, "other") == await content(engine, "v")
    assert (await engine.api.replica_show("pair")).target == "other"


async def test_one_whose_job_cannot_be_recorded_is_none(engine, monkeypatch):
    async def full(*arguments, **named):
        raise OutOfSpace("the pool's catalogue cannot be written")

    await engine.api.volume_create("other", SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(engine.pool.catalog, "add_job", full)
        with pytest.raises(OutOfSpace):
            await engine.api.replica_create("v", "r")
        with pytest.raises(OutOfSpace):
            await engine.api.replica_attach("v", "other")
    assert await engine.api.replica_list() == []
    assert await engine.pool.catalog.mirrors() == []
    assert [volume.name for volume in await engine.api.volume_list()] == ["other", "v"]
    await write(engine, "other", 0, b"its own again" * 512)
    await write(engine, "v", 0, b"no mirror" * 512)
    await finished(engine, await engine.api.replica_create("v", "r"))


async def test_what_holds_a_replicas_ends_is_refused(engine):
    await engine.api.volume_create("small", MIB)
    await engine.api.volume_create("other", SIZE, expose=True)
    await finished(engine, await engine.api.replica_create("v", "r"))
    for attempt, kind in (
        (engine.api.replica_create("v", "r"), AlreadyExists),
        (engine.api.replica_create("nothing", "n"), NotFound),
        (engine.api.replica_create("r", "n"), InUse),
        (engine.api.replica_attach("other", "r"), AlreadyExists),
        (engine.api.replica_attach("other", "r", name="n"), InUse),
        (engine.api.replica_attach("v", "v", name="n"), InvalidArgument),
        (engine.api.replica_attach("v", "small", name="n"), InvalidArgument),
        (engine.api.volume_delete("v", force=True), InUse),
        (engine.api.volume_delete("r", force=True), InUse),
        (engine.api.volume_resize("r", 2 * SIZE), InUse),
    ):
        with pytest.raises(kind):
            await attempt
    assert [info.name for info in await engine.api.volume_list()] == ["other", "r", "small", "v"]
    engine.exports.log_in(f"{PREFIX}:other")
    with pytest.raises(InUse):
        await engine.api.replica_attach("v", "other")
    await engine.api.snapshot_create("r", "point")
    with pytest.raises(InUse):
        await engine.api.snapshot_rollback("r", "point")


async def test_a_replica_whose_volume_is_damaged_is_shown_with_its_reason(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", SIZE)
        await finished(engine, await engine.api.replica_create("v", "r"))
    (pool / "volumes" / "r.tvol").write_bytes(b"garbage" * 100)
    async with opened(pool) as engine:
        info = await engine.api.replica_show("r")
        assert (info.copy_state, info.percent_synced) == ("Invalid", 0)
        status = await engine.api.status()
        assert any("replica r" in reason for reason in status.reasons)
        await write(engine, "v", 0, bytes(512))
        await engine.api.replica_detach("r")
        assert await engine.api.replica_list() == []


async def test_a_replica_of_an_encrypted_volume_is_encrypted(engine, tmp_path: Path):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(32))
    await engine.api.volume_create("secret", MIB, key_source=f"file:{key}")
    await write(engine, "secret", 0, b"what nobody may read" * 1024)
    await finished(engine, await engine.api.replica_create("secret", "r"))
    info = await engine.api.volume_show("r")
    assert info.encryption == f"file:{key}"
    assert await content(engine, "r") == await content(engine, "secret")
    await engine.pool.volume("r").flush()
    assert b"what nobody may read" not in await asyncio.to_thread(Path(info.file).read_bytes)


async def test_a_rollback_that_waited_while_its_volume_got_a_mirror_is_refused(engine):
    await engine.api.snapshot_create("v", "s")
    await write(engine, "v", 0, b"after!" * 1024)
    await engine.api.volume_create("r", SIZE)
    async with engine.pool._changing:
        rollback = asyncio.create_task(engine.api.snapshot_rollback("v", "s"))
        await asyncio.sleep(0)
        await finished(engine, await engine.api.replica_attach("v", "r"))
    with pytest.raises(InvalidState, match="mirror"):
        await rollback
    assert (await content(engine, "v"))[:6] == (await content(engine, "r"))[:6] == b"after!"


async def test_a_mirror_begins_after_a_switch_of_its_sources_content_not_within(engine):
    source = engine.pool.volume("v")
    await engine.api.volume_create("r", SIZE)
    async with source.quiesced():
        job = await engine.api.replica_attach("v", "r")
        job = await engine.api.job_wait(job.job, after_version=job.version, timeout_s=0.5)
        assert (job.state, source.taps) == ("Running", ())
    await finished(engine, job)


async def test_a_rollback_that_waited_while_its_volume_became_a_target_is_refused(engine):
    await engine.api.volume_create("r", SIZE)
    await engine.api.snapshot_create("r", "s")
    async with engine.pool._changing:
        rollback = asyncio.create_task(engine.api.snapshot_rollback("r", "s"))
        await asyncio.sleep(0)
        await finished(engine, await engine.api.replica_attach("v", "r"))
    with pytest.raises(InUse, match="target of replica r"):
        await rollback
    assert await content(engine, "v") == await content(engine, "r")


async def test_the_target_of_a_replica_that_cannot_run_is_still_its_own(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", SIZE)
        await finished(engine, await engine.api.replica_create("v", "r"))
        await engine.api.snapshot_create("r", "s")
    (pool / "volumes" / "v.tvol").write_bytes(bytes(4096))
    async with opened(pool) as engine:
        with pytest.raises(InUse, match="target of replica r"):
            await engine.api.snapshot_rollback("r", "s")
        with pytest.raises(WriteProtected):
            await write(engine, "r", 0, b"x" * 512)
        await engine.api.replica_detach("r")
        await write(engine, "r", 0, b"x" * 512)
