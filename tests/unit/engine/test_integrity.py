"""Scrubs as jobs of a pool: recorded by range, paused, gone on with after a restart, repaired from a mirror."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from engine import integrity
from engine.errors import InUse, InvalidArgument, InvalidState, MediumError
from engine.tvol.check import check_file
from tests.support.engine import Engine, opened

if TYPE_CHECKING:
    from pathlib import Path

    from engine.api import JobInfo

MIB = 1 << 20
CHUNK = 65536
LEAF = 4096 * CHUNK
SIZE = 3 * LEAF
"""Three ranges."""


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE)
        yield engine


def data(seed: int) -> bytes:
    return bytes([seed]) * CHUNK


async def write(engine: Engine, index: int, seed: int, volume: str = "v") -> None:
    await engine.pool.volume(volume).write(index * CHUNK, memoryview(data(seed)))


async def read(engine: Engine, index: int, volume: str = "v") -> bytes:
    view = bytearray(CHUNK)
    await engine.pool.volume(volume).read(index * CHUNK, memoryview(view))
    return bytes(view)


async def ended(engine: Engine, job: JobInfo) -> JobInfo:
    while job.state_number not in (7, 8, 10):
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def first_range(engine: Engine, run: int) -> None:
    """Return when a run has recorded the volume's first range."""
    volume_id = engine.pool.volume("v").volume_id
    done = {}
    while done.get(0, (0, 0))[0] < run:
        done = (await engine.pool.catalog.scrubs.ranges()).get(volume_id, {})


async def rot(engine: Engine, index: int, volume: str = "v") -> None:
    """Flip a bit of what the volume has there, in the file."""
    device = engine.pool.volume(volume)
    await device.flush()
    chunk = engine.pool.store_of(device).volume(volume).node.map.lookup(index)
    with engine.pool.file_of(device).open("r+b") as file:
        file.seek(chunk * CHUNK + 4711)
        byte = file.read(1)[0]
        file.seek(chunk * CHUNK + 4711)
        file.write(bytes([byte ^ 4]))


async def test_a_scrub_is_a_job_and_tells_when_each_range_was_verified(engine):
    for index in (0, 1, 5000, 9000):
        await write(engine, index, index % 250)
    before = await engine.api.volume_scrub_show("v")
    assert (before.state, before.verified_at, before.ranges, before.policy) == ("never", None, [], "lazy")
    job = await ended(engine, await engine.api.volume_scrub("v"))
    assert (job.kind, job.state, job.done_bytes, job.total_bytes) == ("scrub", "Completed", SIZE, SIZE)
    info = await engine.api.volume_scrub_show("v")
    assert (info.state, info.new_digests, info.verified_chunks, info.bad_chunks) == ("finished", 4, 0, 0)
    assert [(each.offset, each.length) for each in info.ranges] == [(at, LEAF) for at in range(0, SIZE, LEAF)]
    assert info.verified_at == min(each.verified_at for each in info.ranges) >= info.started_at
    assert (await engine.api.volume_show("v")).verified_at == info.verified_at
    await ended(engine, await engine.api.volume_scrub("v"))
    info = await engine.api.volume_scrub_show("v")
    assert (info.new_digests, info.verified_chunks, info.file_digests) == (0, 4, 4)


async def test_rot_ends_the_job_as_a_mismatch_and_is_in_status_events_and_the_volume(engine):
    for index in range(4):
        await write(engine, index, index)
    await ended(engine, await engine.api.volume_scrub("v"))
    await rot(engine, 2)
    job = await ended(engine, await engine.api.volume_scrub("v"))
    assert (job.state, job.error) == ("Exception", "IntegrityError")
    assert "extent 131072+65536" in job.message
    info = await engine.api.volume_scrub_show("v")
    assert (info.state, info.bad_chunks, info.verified_chunks, info.file_bad_chunks) == ("finished", 1, 3, 1)
    status = await engine.api.status()
    assert status.health == "degraded"
    assert "1 bad chunk" in status.reasons[0]
    event = (await engine.api.event_list())[-1]
    assert (event.severity, event.subject) == ("error", "volume v")
    assert "has rotted" in event.text
    assert (await engine.api.volume_show("v")).bad_chunks == 1
    with pytest.raises(MediumError):
        await read(engine, 2)
    await write(engine, 2, 9)
    assert await read(engine, 2) == data(9)
    assert (await engine.api.status()).health == "ok"


async def test_a_bad_chunk_is_repaired_from_the_other_side_of_its_mirror(engine):
    for index in range(4):
        await write(engine, index, index + 1)
    await ended(engine, await engine.api.replica_create("v", "r"))
    for volume in ("v", "r"):
        await ended(engine, await engine.api.volume_scrub(volume))
    for volume in ("v", "r"):
        await rot(engine, 1, volume)
        job = await ended(engine, await engine.api.volume_scrub(volume))
        assert job.state == "Completed", job
        assert (job.result["bad"], job.result["repaired"]) == (1, 1)
        assert await read(engine, 1, volume) == data(2)
    assert (await engine.api.status()).health == "ok"


async def test_a_paused_scrub_goes_on_with_what_it_has_not_done(engine, monkeypatch):
    for index in (0, 5000, 5001, 9000):
        await write(engine, index, 1)
    await ended(engine, await engine.api.volume_scrub("v"))
    await engine.api.volume_scrub("v", rate_bytes_s=1)
    with pytest.raises(InUse, match="being scrubbed by job"):
        await engine.api.volume_scrub("v")
    with pytest.raises(InUse, match="being read"):
        await engine.api.volume_delete("v")
    await first_range(engine, run=2)  # the first piece is free; the second range waits for its budget
    info = await engine.api.volume_scrub_pause("v")
    assert (info.state, info.job, info.verified_chunks) == ("paused", None, 1)
    with pytest.raises(InvalidState):
        await engine.api.volume_scrub_pause("v")
    await ended(engine, await engine.api.volume_scrub("v", rate_bytes_s=1 << 30))
    info = await engine.api.volume_scrub_show("v")
    assert (info.state, info.verified_chunks) == ("finished", 4)


async def test_a_scrub_that_the_end_of_the_daemon_interrupts_goes_on_with_the_next(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE)
        for index in (0, 5000, 9000):
            await write(engine, index, 1)
        await engine.api.volume_scrub("v", rate_bytes_s=CHUNK)
        await first_range(engine, run=1)
    async with opened(tmp_path / "pool") as engine:
        info = await engine.api.volume_scrub_show("v")
        assert info.state == "running"
        job = await ended(engine, await engine.api.job_show(info.job))
        assert job.state == "Completed"
        assert 0 < job.result["made"] == 3
        assert engine.pool.store_of(engine.pool.volume("v")).digested_chunks == 3


async def test_the_policy_always_digests_what_is_new_once_the_file_is_quiet(engine, monkeypatch):
    monkeypatch.setattr(integrity, "QUIET_S", 0.0)
    await engine.api.volume_digests("v", "always")
    assert (await engine.api.volume_show("v")).digests == "always"
    volume = engine.pool.volume("v")
    store = engine.pool.store_of(volume)
    for count in (3, 5):
        for index in range(count):
            await write(engine, index, count)
        await engine.pool.integrity._look(volume)
        assert store.digested_chunks == count
        passed = engine.pool.integrity._seen[volume.volume_id].passed_at
    for _ in range(3):
        await engine.pool.integrity._look(volume)
    settled = engine.pool.integrity._seen[volume.volume_id].passed_at
    for _ in range(3):
        await engine.pool.integrity._look(volume)
    assert engine.pool.integrity._seen[volume.volume_id].passed_at == settled >= passed, "nothing new, nothing done"
    with pytest.raises(InvalidArgument):
        await engine.api.volume_digests("v", "sometimes")


async def test_the_policy_survives_a_restart_and_goes_with_the_volume(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE)
        await engine.api.volume_digests("v", "always")
        await ended(engine, await engine.api.volume_scrub("v"))
    async with opened(tmp_path / "pool") as engine:
        info = await engine.api.volume_scrub_show("v")
        assert (info.policy, info.state, len(info.ranges)) == ("always", "finished", 3)
        await engine.api.volume_delete("v")
        await engine.api.volume_create("v", SIZE)
        assert (await engine.api.volume_scrub_show("v")).policy == "lazy"
        assert await engine.pool.catalog.scrubs.records() == {}


async def test_what_the_file_holds_after_it_all_is_clean(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE, chunk_bytes=4 * CHUNK)
        await engine.pool.volume("v").write(0, memoryview(os.urandom(2 * MIB)))
        await engine.api.snapshot_create("v", "s")
        await engine.pool.volume("v").write(MIB, memoryview(os.urandom(4096)))
        await ended(engine, await engine.api.volume_scrub("v"))
        path = engine.pool.file_of(engine.pool.volume("v"))
    report = check_file(path, data=True)
    assert report.findings == []
    assert report.counts["verified_chunks"] == 9


async def test_an_encrypted_volume_is_checked_without_its_key_and_repaired_from_a_plain_mirror(tmp_path: Path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE, key_source=f"file:{key}")
        await engine.api.volume_create("r", SIZE)
        for index in range(3):
            await write(engine, index, index + 1)
        await ended(engine, await engine.api.replica_attach("v", "r"))
        await ended(engine, await engine.api.volume_scrub("v"))
        await rot(engine, 1)
        job = await ended(engine, await engine.api.volume_scrub("v"))
        assert (job.state, job.result["bad"], job.result["repaired"]) == ("Completed", 1, 1)
        assert await read(engine, 1) == data(2)
        path = engine.pool.file_of(engine.pool.volume("v"))
    report = check_file(path, data=True)
    assert (report.findings, report.counts["verified_chunks"]) == ([], 3)


async def test_a_policy_that_is_set_during_a_scrub_stays_and_two_scrubs_at_once_are_one(engine, tmp_path: Path):
    for number in range(3):
        await write(engine, number * LEAF // CHUNK, 1)
    begun = await asyncio.gather(*(engine.api.volume_scrub("v") for _ in range(2)), return_exceptions=True)
    assert [type(each).__name__ for each in begun] == ["JobInfo", "InUse"]
    assert (await engine.api.volume_digests("v", "always")).state == "running"
    assert (await ended(engine, begun[0])).state == "Completed"
    assert (await engine.api.volume_scrub_show("v")).policy == "always"
    stored = await engine.pool.catalog.scrubs.records()
    assert [record["policy"] for record in stored.values()] == ["always"]
