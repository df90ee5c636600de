"""Clones: flattened under their users, cloned again, deleted in every order that is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from typing import TYPE_CHECKING

import pytest

from engine.copy_job import STRIP_BYTES
from engine.errors import InUse, InvalidState, OutOfSpace
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from tests.support.engine import HeldMover, opened

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
SIZE = 24 * MIB + 20 * KIB


@pytest.fixture
async def engine(tmp_path):
    async with opened(tmp_path / "pool") as made:
        yield made
    check(tmp_path / "pool")


async def finished(engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def content(engine, name: str) -> bytes:
    volume = engine.pool.volume(name)
    data = bytearray(volume.size_bytes)
    await volume.read(0, memoryview(data))
    return bytes(data)


async def frozen_content(engine, name: str, snapshot: str) -> bytes:
    frozen = engine.pool.snapshot(engine.pool.volume(name), snapshot)
    data = bytearray(frozen.size_bytes)
    await frozen.read(0, memoryview(data))
    return bytes(data)


async def scribble(engine, name: str, seed: int, times: int = 60) -> None:
    rng, volume = random.Random(seed), engine.pool.volume(name)
    for _ in range(times):
        length = rng.choice((4, 64, 200, 512)) * KIB
        offset = rng.randrange(0, (volume.size_bytes - length) // 4096) * 4096
        await volume.write(offset, memoryview(rng.randbytes(length)))
    await volume.write_zeroes(4 * MIB, MIB)
    await volume.write(8 * MIB, memoryview(bytes(MIB)))  # zeroes that take space
    await volume.discard(12 * MIB, MIB)
    await volume.write(volume.size_bytes - 12 * KIB, memoryview(rng.randbytes(12 * KIB)))


async def family(engine) -> None:
    """``a`` with a snapshot ``s``, changed since; ``c`` is a clone of it, and changed too."""
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    await engine.api.snapshot_create("a", "s")
    await scribble(engine, "a", 2, times=5)
    await engine.api.clone_create("a", "s", "c")
    await scribble(engine, "c", 3, times=5)


def check(pool: Path) -> None:
    """All files of a closed pool."""
    for path in (pool / "volumes").glob("*.tvol"):
        report = check_file(path)
        assert not report.damaged, report.findings


async def reclaimed(engine, name: str) -> None:
    await engine.pool.volume(name).head.store.settled()


async def test_a_flattened_clone_depends_on_nothing_and_its_origin_can_go(engine):
    await family(engine)
    before, origin = await content(engine, "c"), await frozen_content(engine, "a", "s")
    with pytest.raises(InUse, match="linked clones"):
        await engine.api.snapshot_delete("a", "s")
    job = await finished(engine, await engine.api.clone_flatten("c"))
    assert job.error is None
    assert 0 < job.result["copied_bytes"] == job.total_bytes
    assert await content(engine, "c") == before
    assert await frozen_content(engine, "a", "s") == origin
    assert (await engine.api.volume_show("c")).origin is None
    with pytest.raises(InvalidState, match="of its own"):
        await engine.api.clone_flatten("c")
    used = engine.pool.volume("c").head.store.info
    free = used().free_chunks
    await engine.api.snapshot_delete("a", "s")
    await reclaimed(engine, "c")
    assert used().free_chunks > free, "nothing waits for the clone"
    await engine.api.volume_delete("a")
    await reclaimed(engine, "c")
    assert await content(engine, "c") == before


async def test_its_users_write_on_while_it_is_flattened(engine):
    await family(engine)
    volume, rng = engine.pool.volume("c"), random.Random(7)
    expected = bytearray(await content(engine, "c"))
    job = await engine.api.clone_flatten("c")
    while job.finished_at is None:
        offset, length = rng.randrange(0, SIZE // 4096 - 64) * 4096, rng.choice((4096, 65536, 200 * KIB))
        data = rng.randbytes(length)
        if rng.random() < 0.7:
            await volume.write(offset, memoryview(data))
        else:
            data = bytes(length)
            await volume.discard(offset, length)
        expected[offset : offset + length] = data
        if rng.random() < 0.05:
            await engine.api.snapshot_create("c", f"s{job.version}-{rng.random():.9f}"[:20])
        job = await engine.api.job_show(job.job)
    assert job.error is None
    assert await content(engine, "c") == expected
    for snapshot in await engine.api.snapshot_list("c"):
        await engine.api.snapshot_delete("c", snapshot.name)
    await reclaimed(engine, "c")
    await engine.api.volume_delete("a", force=True)
    assert await content(engine, "c") == expected


async def test_a_clone_leaves_with_all_its_snapshots_and_what_they_share_is_copied_once(engine):
    await family(engine)
    expected = {}
    for number in range(6):
        if number == 3:
            await engine.api.snapshot_rollback("c", "s1")  # a branch stays
        await engine.api.snapshot_create("c", f"s{number}")
        expected[f"s{number}"] = await content(engine, "c")
        await scribble(engine, "c", 20 + number, times=3)
        for offset in range(0, SIZE - 64 * KIB, 2 * MIB):  # partial chunks over what is inherited
            await engine.pool.volume("c").write(offset + 4 * KIB * number, memoryview(os.urandom(4 * KIB)))
    await engine.api.snapshot_delete("c", "s1")  # hidden until one of its two children is left
    del expected["s1"]
    now, origin = await content(engine, "c"), await frozen_content(engine, "a", "s")
    before = await engine.api.clone_flatten_preview("c")
    assert (before.origin, sorted(before.snapshots)) == ("a@s", ["before-rollback-1", *sorted(expected)])
    assert 0 < before.copied_bytes <= SIZE + 64 * KIB
    space = engine.pool.volume("c").head.store.family_space
    used = (await space()).used_bytes
    job = await finished(engine, await engine.api.clone_flatten("c"))
    assert job.error is None
    assert job.result["copied_bytes"] <= before.copied_bytes
    assert (await space()).used_bytes - used <= before.copied_bytes, "one copy serves all"
    assert (await engine.api.volume_show("c")).origin is None
    assert await content(engine, "c") == now
    for name, data in expected.items():
        assert await frozen_content(engine, "c", name) == data
    assert await frozen_content(engine, "a", "s") == origin
    with pytest.raises(InvalidState, match="of its own"):
        await engine.api.clone_flatten_preview("c")
    await engine.api.volume_delete("a", force=True)
    await reclaimed(engine, "c")
    await engine.api.volume_create("other", SIZE)
    await scribble(engine, "other", 1)
    for name in ("s0", "s4", "s3"):
        await engine.api.snapshot_delete("c", name)
        await reclaimed(engine, "c")
        del expected[name]
        for left, data in expected.items():
            assert await frozen_content(engine, "c", left) == data
    assert await content(engine, "c") == now


async def test_readers_of_its_snapshots_do_not_notice(engine):
    """What they have in memory of a snapshot's map is replaced under them."""
    await family(engine)
    await engine.api.snapshot_create("c", "old")
    await scribble(engine, "c", 9, times=3)
    old = await frozen_content(engine, "c", "old")
    await finished(engine, await engine.api.clone_flatten("c"))
    await engine.api.volume_delete("a", force=True)
    await reclaimed(engine, "c")
    await engine.api.clone_create("c", None, "d")  # in the same file: it takes what the origin has left
    await engine.pool.volume("d").write(0, memoryview(os.urandom(SIZE)))
    assert await frozen_content(engine, "c", "old") == old


async def test_a_clone_of_a_clone_of_a_clone(engine):
    await family(engine)
    contents = {}
    for parent, child in (("c", "d"), ("d", "e"), ("e", "f")):
        await engine.api.clone_create(parent, None, child)
        await scribble(engine, child, ord(child), times=4)
        contents[child] = await content(engine, child)
    with pytest.raises(InUse, match="e"):
        await engine.api.volume_delete("d", force=True)
    await finished(engine, await engine.api.clone_flatten("e"))
    assert (await engine.api.volume_show("e")).origin is None
    assert (await engine.api.volume_show("f")).origin == "e@f", "f has left with e, whose clone it is"
    await engine.api.volume_delete("d", force=True)
    await engine.api.volume_delete("c", force=True)
    await engine.api.volume_delete("a", force=True)
    with pytest.raises(InUse, match="linked clones"):
        await engine.api.snapshot_delete("e", "f")
    await finished(engine, await engine.api.clone_flatten("f"))
    await engine.api.snapshot_delete("e", "f")
    await reclaimed(engine, "e")
    for name in ("e", "f"):
        assert await content(engine, name) == contents[name]


async def test_cancelled_and_interrupted_it_goes_on_with_the_rest(tmp_path):
    held = []

    def hold(mover):
        held.append(HeldMover(mover, strips=2 - len(held)))
        return held[-1]

    async with opened(tmp_path / "pool", hold) as engine:
        await engine.api.volume_create("a", SIZE)
        await engine.pool.volume("a").write(0, memoryview(os.urandom(SIZE)))
        await engine.api.clone_create("a", None, "c")
        before = await content(engine, "c")
        job = await engine.api.clone_flatten("c")
        await held[0].holding.wait()
        with pytest.raises(InUse, match=f"job {job.job}"):
            await engine.api.volume_delete("c")
        assert (await engine.api.job_cancel(job.job)).state == "Terminated"
        assert (await engine.api.volume_show("c")).origin == "a@c"
        assert await content(engine, "c") == before
    async with opened(tmp_path / "pool", hold) as engine:
        job = await engine.api.clone_flatten("c")
        await held[1].holding.wait()
        assert (await engine.api.job_show(job.job)).total_bytes <= SIZE - 2 * STRIP_BYTES
    async with opened(tmp_path / "pool") as engine:
        assert (await engine.api.job_show(job.job)).state == "Exception"
        job = await finished(engine, await engine.api.clone_flatten("c"))
        assert job.total_bytes <= SIZE - 3 * STRIP_BYTES, "what was copied is not copied again"
        assert job.error is None
        assert await content(engine, "c") == before
    async with opened(tmp_path / "pool") as engine:
        assert (await engine.api.volume_show("c")).origin is None
        await engine.api.volume_delete("a", force=True)
        assert await content(engine, "c") == before
    check(tmp_path / "pool")


async def test_the_file_and_not_the_catalogue_says_what_a_clone_depends_on(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await family(engine)
    with contextlib.closing(sqlite3.connect(tmp_path / "pool" / "catalog.sqlite")) as catalogue, catalogue:
        catalogue.execute("UPDATE volumes SET origin = ''")  # as a crash right after the cloning leaves it
    async with opened(tmp_path / "pool") as engine:
        assert (await engine.api.volume_show("c")).origin == "a@s"
        with pytest.raises(InUse, match="linked clones"):
            await engine.api.snapshot_delete("a", "s")


async def test_a_volume_that_becomes_smaller_meanwhile(tmp_path):
    held = []

    def hold(mover):
        held.append(HeldMover(mover, strips=2))
        return held[-1]

    async with opened(tmp_path / "pool", hold) as engine:
        await engine.api.volume_create("a", SIZE)
        await engine.pool.volume("a").write(0, memoryview(os.urandom(SIZE)))
        await engine.api.clone_create("a", None, "c")
        before = await content(engine, "c")
        job = await engine.api.clone_flatten("c")
        await held[0].holding.wait()
        await engine.api.volume_resize("c", 10 * MIB + 4 * KIB, shrink=True)
        held[0].let_go()
        assert (await finished(engine, job)).error is None
        await engine.api.volume_resize("c", 12 * MIB)
        assert await content(engine, "c") == before[: 10 * MIB + 4 * KIB] + bytes(2 * MIB - 4 * KIB)
    check(tmp_path / "pool")


async def test_a_clone_leaves_its_family_by_a_mirror(engine):
    """With its snapshots left behind: what it is now is a volume of a file of its own."""
    await family(engine)
    await engine.api.snapshot_create("c", "old")
    await finished(engine, await engine.api.replica_create("c", "own"))
    await scribble(engine, "c", 11, times=3)
    expected = await content(engine, "c")
    assert (await finished(engine, await engine.api.replica_verify("own"))).result["identical"]
    await engine.api.replica_detach("own")
    await engine.api.volume_delete("c", force=True)
    await engine.api.volume_delete("a", force=True)
    own = await engine.api.volume_show("own")
    assert (own.origin, own.read_only) == (None, False)
    assert await content(engine, "own") == expected
    await scribble(engine, "own", 12, times=3)


async def test_a_clone_is_flattened_by_one_job_at_a_time(engine):
    await family(engine)
    outcomes = await asyncio.gather(*(engine.api.clone_flatten("c") for _ in range(2)), return_exceptions=True)
    (job,) = [each for each in outcomes if not isinstance(each, Exception)]
    (error,) = [each for each in outcomes if isinstance(each, Exception)]
    assert isinstance(error, InUse)
    assert (await finished(engine, job)).error is None


async def test_what_a_job_is_about_to_read_is_not_deleted(engine):
    await family(engine)
    starting = asyncio.create_task(engine.api.clone_flatten("c"))
    await asyncio.sleep(0)
    with pytest.raises(InUse, match="flatten"):
        await engine.api.volume_delete("c")
    assert (await finished(engine, await starting)).error is None


async def test_a_clone_that_fails_leaves_no_snapshot(engine, monkeypatch):
    await engine.api.volume_create("a", SIZE)

    async def full(*arguments, **options):
        raise OutOfSpace("no space for metadata")

    monkeypatch.setattr(TvolFile, "clone", full)
    with pytest.raises(OutOfSpace):
        await engine.api.clone_create("a", None, "c")
    assert await engine.api.snapshot_list("a") == []
