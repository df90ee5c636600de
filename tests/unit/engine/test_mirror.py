"""Mirrors as users have them: through the engine's operations, on real volume files, across restarts."""

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from engine import proof
from engine.api import MirrorTerms
from engine.copy_job import STRIP_BYTES
from engine.errors import InUse, InvalidArgument, OutOfSpace
from engine.hash_tree import HashTree
from engine.links.local import LocalLink
from engine.proof import Proof, tree_of
from engine.tvol.check import check_file
from tests.support.engine import HeldMover, opened

KIB, MIB = 1 << 10, 1 << 20
SIZE = 24 * MIB


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        yield engine


async def ended(engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def done(engine, job):
    job = await ended(engine, job)
    assert job.state == "Completed", job.message
    return job


async def content(engine, volume: str) -> bytes:
    data = bytearray(SIZE)
    await engine.pool.volume(volume).read(0, memoryview(data))
    return bytes(data)


async def scribble(engine, volume: str, seed: int, writes: int = 40) -> None:
    rng = random.Random(seed)
    for _ in range(writes):
        length = rng.randrange(1, 400) * 512
        await engine.pool.volume(volume).write(
            rng.randrange(0, (SIZE - length) // 512) * 512, memoryview(rng.randbytes(length))
        )


@contextlib.asynccontextmanager
async def writing(engine, volume: str):
    """A host that writes all the time; yields a counter of acknowledged writes."""
    acknowledged = [0]
    ending = asyncio.Event()

    async def host() -> None:
        rng = random.Random(7)
        while not ending.is_set():
            length = rng.choice((512, 4096, 65536))
            offset = rng.randrange(0, (SIZE - length) // 512) * 512
            await engine.pool.volume(volume).write(offset, memoryview(rng.randbytes(length)))
            acknowledged[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(host())
    try:
        yield acknowledged
    finally:
        ending.set()
        await task


async def synchronized(engine) -> None:
    async with asyncio.timeout(60):
        while (await engine.api.replica_show("b")).copy_state != "Synchronized":
            await engine.pool.volume("a").flush()


async def mirrored(engine) -> None:
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    await done(engine, await engine.api.replica_create("a", "b"))


async def test_a_new_replica_has_the_sources_content_and_takes_its_writes(engine):
    await mirrored(engine)
    info = await engine.api.replica_show("b")
    assert (info.copy_state, info.percent_synced) == ("Synchronized", 100)
    assert (info.source, info.target, info.mode, info.sync_type) == ("a", "b", "sync", "Mirror")
    assert (info.lag_seconds, info.lag_bytes, info.reason) == (0.0, 0, "")
    await scribble(engine, "a", 2)
    assert await content(engine, "b") == await content(engine, "a")
    await engine.pool.volume("a").discard(0, SIZE)
    assert await content(engine, "b") == bytes(SIZE)


async def test_the_initial_copy_converges_while_a_host_writes(engine):
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    async with writing(engine, "a") as acknowledged:
        await done(engine, await engine.api.replica_create("a", "b"))
        before = acknowledged[0]
        job = await done(engine, await engine.api.replica_verify("b"))
        assert job.result["identical"]
    assert acknowledged[0] > before
    assert await content(engine, "b") == await content(engine, "a")


async def test_after_a_fracture_only_what_changed_is_copied(engine):
    await mirrored(engine)
    info = await engine.api.replica_fracture("b")
    assert (info.copy_state, info.progress_status) == ("Fractured", "Requires resync")
    assert "resync b" in info.next_action
    before = await content(engine, "a")
    await engine.pool.volume("a").write(8 * MIB, memoryview(b"n" * 512))
    assert await content(engine, "b") == before
    job = await done(engine, await engine.api.replica_resync("b"))
    assert await content(engine, "b") == await content(engine, "a")
    written = job.result["written_bytes"]
    await engine.api.replica_pause("b")
    await engine.pool.volume("a").write(9 * MIB, memoryview(b"n" * 512))
    job = await done(engine, await engine.api.replica_resume("b"))
    assert job.result["written_bytes"] - written <= 256 * 1024
    assert await content(engine, "b") == await content(engine, "a")


async def test_a_mirror_survives_restarts_and_begins_with_a_round(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await mirrored(engine)
        await scribble(engine, "a", 3)
    async with opened(pool) as engine:
        await synchronized(engine)
        await scribble(engine, "a", 4)
        assert await content(engine, "b") == await content(engine, "a")
        await engine.api.replica_fracture("b")
    async with opened(pool) as engine:
        assert (await engine.api.replica_show("b")).copy_state == "Fractured"
        await scribble(engine, "a", 5)
        await done(engine, await engine.api.replica_resync("b"))
        assert (await done(engine, await engine.api.replica_verify("b"))).result["identical"]
    for file in ("a.tvol", "b.tvol"):
        assert not check_file(pool / "volumes" / file).damaged


async def test_an_existing_volume_is_attached_and_equal_data_is_not_written_again(engine):
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    await done(engine, await engine.api.clone_copy("a", None, "b"))
    await engine.pool.volume("b").write(16 * MIB, memoryview(b"x" * 4096))
    job = await done(engine, await engine.api.replica_attach("a", "b"))
    assert job.result["written_bytes"] <= 256 * 1024
    assert await content(engine, "b") == await content(engine, "a")


async def test_a_mirror_whose_target_is_missing_says_so_and_its_source_is_served(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await mirrored(engine)
    (pool / "volumes" / "b.tvol").rename(tmp_path / "b.tvol")
    async with opened(pool) as engine:
        info = await engine.api.replica_show("b")
        assert (info.copy_state, info.source) == ("Invalid", "a")
        await scribble(engine, "a", 9)
        assert (await engine.api.status()).health == "degraded"
    (tmp_path / "b.tvol").rename(pool / "volumes" / "b.tvol")
    async with opened(pool) as engine:
        await synchronized(engine)
        assert await content(engine, "b") == await content(engine, "a")


async def test_a_proof_can_be_checked_again(engine):
    await mirrored(engine)
    job = await done(engine, await engine.api.replica_verify("b"))
    found = Proof.parse(job.result["proof"])
    assert found.identical
    assert found.size_bytes == SIZE
    tree = await tree_of(engine.pool.volume("b").head)
    assert found.holds_for(tree)
    assert job.result["root"] == tree.root().hex()
    assert not found.holds_for(HashTree(SIZE))
    with pytest.raises(InvalidArgument):
        Proof.parse("{}")


async def test_verify_finds_a_target_that_was_changed_behind_the_mirror(engine):
    await mirrored(engine)
    await engine.pool.volume("b").head.write(MIB, memoryview(b"?" * 512))
    job = await ended(engine, await engine.api.replica_verify("b"))
    assert (job.state, job.error) == ("Exception", "IntegrityError")
    info = await engine.api.replica_show("b")
    assert info.copy_state == "Broken"
    await done(engine, await engine.api.replica_resync("b"))
    assert await content(engine, "b") == await content(engine, "a")
    assert (await done(engine, await engine.api.replica_verify("b"))).result["identical"]


@pytest.mark.parametrize("mode", ["sync", "async", "adaptive"])
async def test_what_verify_found_is_not_forgotten_by_a_round_that_was_under_way(engine, monkeypatch, mode):
    """The round began with the point that differs, and ends after that was found."""
    commit, compare = LocalLink.commit_staging, proof.compare
    committing, found = asyncio.Event(), asyncio.Event()

    async def commit_something_else(link, guid):
        await (await link.resume_staging()).write(5 * MIB, memoryview(b"?" * 4096))
        await commit(link, guid)

    async def commit_later(link, guid):
        committing.set()
        await found.wait()
        await commit(link, guid)

    def compare_and_let_go(*sides, **facts):
        asyncio.get_running_loop().call_soon(found.set)
        return compare(*sides, **facts)

    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalLink, "commit_staging", commit_something_else)
        await done(engine, await engine.api.replica_create("a", "b", MirrorTerms(mode)))
    await engine.api.replica_fracture("b")
    await engine.pool.volume("a").write(MIB, memoryview(b"!" * 4096))
    with monkeypatch.context() as patch:
        patch.setattr(LocalLink, "commit_staging", commit_later)
        patch.setattr(proof, "compare", compare_and_let_go)
        await engine.api.replica_resync("b")
        await committing.wait()
        job = await ended(engine, await engine.api.replica_verify("b"))
    assert (job.state, job.error) == ("Exception", "IntegrityError")
    info = await engine.api.replica_show("b")
    assert (info.copy_state, info.next_action) == ("Broken", "twinvol replica resync b")
    await done(engine, await engine.api.replica_resync("b"))
    assert await content(engine, "a") == await content(engine, "b")


async def test_roots_of_all_copies_agree(engine):
    await mirrored(engine)
    await engine.api.snapshot_create("a", "s")
    await done(engine, await engine.api.clone_copy("a", "s", "c"))
    roots = {
        (await done(engine, await engine.api.volume_root(name, snapshot))).result["root"]
        for name, snapshot in (("a", None), ("a", "s"), ("b", None), ("c", None))
    }
    assert len(roots) == 1


async def test_a_paused_first_copy_goes_on_where_it_was(tmp_path):
    held: list[HeldMover] = []

    def hold(mover):
        held.append(HeldMover(mover, strips=2))
        return held[0]

    async with opened(tmp_path / "pool", hold) as engine:
        await engine.api.volume_create("a", SIZE)
        source = engine.pool.volume("a")
        await source.write(0, memoryview(random.Random(1).randbytes(SIZE)))
        job = await engine.api.replica_create("a", "b")
        await held[0].holding.wait()
        paused = await engine.api.replica_pause("b")
        assert paused.copy_state == "Suspended"
        await source.write(0, memoryview(bytes([7]) * 4096))
        held[0].let_go()
        job = await done(engine, await engine.api.replica_resume("b"))
        assert job.result["rounds"] == 3, "the interrupted round twice, and one for what was written since"
        assert job.result["written_bytes"] == SIZE - 2 * STRIP_BYTES + 64 * KIB, "what the ledger has is not sent again"
        assert (await done(engine, await engine.api.replica_verify("b"))).result["identical"]
        assert await content(engine, "a") == await content(engine, "b")


async def size_and_root(engine, volume: str) -> tuple[int, str]:
    job = await done(engine, await engine.api.volume_root(volume))
    return engine.pool.volume(volume).size_bytes, job.result["root"]


async def test_a_mirrored_volume_is_resized_under_its_host_and_the_target_follows(engine):
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    await engine.api.snapshot_create("a", "before")
    before = await done(engine, await engine.api.volume_root("a", "before"))
    await done(engine, await engine.api.replica_create("a", "b"))
    async with writing(engine, "a") as acknowledged:
        assert (await engine.api.volume_resize("a", 2 * SIZE)).size_bytes == 2 * SIZE
        await synchronized(engine)
        await engine.pool.volume("a").write(2 * SIZE - MIB, memoryview(random.Random(2).randbytes(MIB)))
        assert acknowledged[0] > 0
    assert await size_and_root(engine, "a") == await size_and_root(engine, "b")
    assert engine.pool.volume("b").size_bytes == 2 * SIZE
    assert (await done(engine, await engine.api.replica_verify("b"))).result["identical"]
    await engine.api.volume_resize("a", 5 * MIB + 512, shrink=True)
    await synchronized(engine)
    assert await size_and_root(engine, "a") == await size_and_root(engine, "b")
    await engine.api.volume_resize("a", SIZE)
    await synchronized(engine)
    assert await size_and_root(engine, "a") == await size_and_root(engine, "b")
    data = await content(engine, "b")
    assert data[5 * MIB + 512 :] == bytes(SIZE - 5 * MIB - 512), "what was cut off does not come back"
    assert (await done(engine, await engine.api.volume_root("a", "before"))).result == before.result


async def test_a_resize_that_fails_leaves_the_mirror_going(engine, monkeypatch):
    await engine.api.volume_create("a", SIZE)
    await scribble(engine, "a", 1)
    await done(engine, await engine.api.replica_create("a", "b"))
    with pytest.raises(InvalidArgument):
        await engine.api.volume_resize("a", 1 << 62)

    async def no_space(self, size_bytes: int) -> None:
        raise OutOfSpace("the host is full")

    with monkeypatch.context() as fault:
        fault.setattr(type(engine.pool.volume("a").head), "resize", no_space)
        with pytest.raises(OutOfSpace):
            await engine.api.volume_resize("a", 2 * SIZE)
    assert engine.pool.volume("a").size_bytes == SIZE
    await synchronized(engine)
    with pytest.raises(InUse):
        await engine.api.volume_resize("b", 2 * SIZE)
    assert await content(engine, "a") == await content(engine, "b")


@pytest.mark.parametrize("rest", ["replica_pause", "replica_fracture"])
async def test_a_mirror_at_rest_stays_so_and_gets_the_size_later(engine, rest):
    await engine.api.volume_create("a", SIZE)
    await done(engine, await engine.api.replica_create("a", "b"))
    state = (await getattr(engine.api, rest)("b")).copy_state
    await engine.api.volume_resize("a", 2 * SIZE)
    await engine.pool.volume("a").write(2 * SIZE - MIB, memoryview(bytes([9]) * MIB))
    assert (await engine.api.replica_show("b")).copy_state == state
    assert engine.pool.volume("b").size_bytes == SIZE
    again = engine.api.replica_resume if rest == "replica_pause" else engine.api.replica_resync
    await done(engine, await again("b"))
    assert await size_and_root(engine, "a") == await size_and_root(engine, "b")
