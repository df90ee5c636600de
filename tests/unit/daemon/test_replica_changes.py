"""Restoring a source from its replica, reversing, other modes, aborting: through the engine's API."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from engine.errors import InUse, InvalidArgument, InvalidState, NotFound
from engine.mirror_terms import MirrorTerms
from tests.support.engine import PREFIX, Engine, opened
from tests.unit.daemon.test_failover import two
from tests.unit.daemon.test_peers import MIB, SIZE, content, fill, finished, synchronized, until

if TYPE_CHECKING:
    from pathlib import Path

ASYNC = MirrorTerms("async", rpo_s=60.0)


async def done(engine: Engine, job):
    job = await finished(engine, job)
    assert job.state == "Completed", job
    return job.result


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE, expose=True)
        await fill(engine, "v", 0, 3 * MIB)
        yield engine


async def frozen_content(engine: Engine, name: str, snapshot: str) -> bytes:
    view = bytearray(SIZE)
    await engine.pool.snapshot(engine.pool.volume(name), snapshot).read(0, memoryview(view))
    return bytes(view)


async def test_a_source_is_rolled_to_the_newest_point_of_its_replica_without_copying(engine):
    await done(engine, await engine.api.replica_create("v", "r", ASYNC))
    then = await content(engine, "v")
    await fill(engine, "v", MIB, 2 * MIB)
    ruined = await content(engine, "v")
    plan = await engine.api.replica_restore_plan("r")
    assert (plan.direction, plan.copied_bytes, plan.compares_all) == ("r -> v", 0, False)
    assert 4096 <= plan.lost_bytes <= 2 * MIB
    assert await content(engine, "v") == ruined, "a plan changes nothing"
    result = await done(engine, await engine.api.replica_restore("r"))
    assert result == {"replica": "r", "point": plan.point, "copied_bytes": 0, "kept_as": "before-rollback-1"}
    assert await content(engine, "v") == then
    assert await frozen_content(engine, "v", "before-rollback-1") == ruined
    info = await engine.api.replica_show("r")
    assert (info.copy_state, info.progress_status) == ("Restored", "Completed")
    assert "resync" in info.next_action
    assert engine.pool.volume("r").read_only, "the target is still the replica's"
    await fill(engine, "v", 3 * MIB)
    await done(engine, await engine.api.replica_resync("r"))
    assert await content(engine, "r") == await content(engine, "v")
    assert (await done(engine, await engine.api.replica_verify("r")))["identical"]


async def test_an_older_point_and_what_a_fractured_target_was_given_come_back_by_delta(engine):
    await done(engine, await engine.api.replica_create("v", "r", MirrorTerms("async", rpo_s=60.0, points=3)))
    oldest, then = (await engine.api.replica_points("r"))[0].guid, await content(engine, "v")
    for points, at in ((2, 0), (3, 2 * MIB)):
        await fill(engine, "v", at)
        await engine.api.replica_resync("r")
        await until(lambda points=points: len(engine.replicas.points("r")) == points)
    plan = await engine.api.replica_restore_plan("r", oldest)
    result = await done(engine, await engine.api.replica_restore("r", oldest))
    assert await content(engine, "v") == then
    assert 0 < result["copied_bytes"] <= plan.copied_bytes <= 4 * MIB
    await engine.api.replica_fracture("r")
    await fill(engine, "r", 5 * MIB)
    await fill(engine, "v", 6 * MIB)
    wanted = await content(engine, "r")
    result = await done(engine, await engine.api.replica_restore("r"))
    assert await content(engine, "v") == wanted
    assert result["kept_as"] == "before-rollback-2"
    await done(engine, await engine.api.replica_resync("r"))
    assert await content(engine, "r") == wanted


async def test_what_cannot_be_restored_is_refused_and_changes_nothing(engine):
    await done(engine, await engine.api.replica_create("v", "r"))
    before = await content(engine, "v")
    with pytest.raises(NotFound):
        await engine.api.replica_restore("r", "11111111-1111-4111-8111-111111111111")
    engine.exports.sessions = [(f"{PREFIX}:v", "iqn.2026-01.example:host")]
    await synchronized(engine, "r")
    assert await content(engine, "v") == before


async def test_a_restore_that_fails_leaves_the_source_as_it_was_and_can_be_said_again(engine, monkeypatch):
    await done(engine, await engine.api.replica_create("v", "r"))
    await engine.api.replica_fracture("r")
    await fill(engine, "r", 0, 4 * MIB)
    before, wanted = await content(engine, "v"), await content(engine, "r")

    async def fails(*_, **__):
        raise InvalidState("the copy", "cut off", "whole")

    with monkeypatch.context() as patch:
        patch.setattr("engine.restore.copy_extents", fails)
        job = await finished(engine, await engine.api.replica_restore("r"))
        assert "cut off" in job.message
    assert await content(engine, "v") == before
    info = await engine.api.replica_show("r")
    assert (info.copy_state, info.progress_status) == ("Fractured", "Requires resync")
    store = engine.pool.volume("v").head.store
    assert store.staging(engine.pool.volume("v").volume_id) is None
    await done(engine, await engine.api.replica_restore("r"))
    assert await content(engine, "v") == wanted


async def test_a_kill_within_a_restore_leaves_the_one_or_the_other(tmp_path: Path, monkeypatch):
    """The pool as it lies there at each step, opened by another daemon."""
    copies: list[Path] = []

    def lie(when: str) -> None:
        copies.append(tmp_path / f"crash-{len(copies)}-{when}")
        shutil.copytree(tmp_path / "pool", copies[-1])

    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE)
        await fill(engine, "v", 0, 3 * MIB)
        await done(engine, await engine.api.replica_create("v", "r"))
        await engine.api.replica_fracture("r")
        await fill(engine, "r", MIB, 5 * MIB)
        before, wanted = await content(engine, "v"), await content(engine, "r")
        store = type(engine.pool.volume("v").head.store)
        for call in ("begin_staging", "snapshot", "commit_staging"):

            def lying(real, call):
                async def around(self, *args, **kwargs):
                    lie(f"before-{call}")
                    found = await real(self, *args, **kwargs)
                    lie(f"after-{call}")
                    return found

                return around

            monkeypatch.setattr(store, call, lying(getattr(store, call), call))
        await done(engine, await engine.api.replica_restore("r"))
        lie("end")
        monkeypatch.undo()
    assert len(copies) > 6
    for path in copies:
        async with opened(path) as engine:
            assert await content(engine, "v") in (before, wanted)
            volume = engine.pool.volume("v")
            assert volume.head.store.staging(volume.volume_id) is None, "nothing half copied holds space"
            assert await content(engine, "r") == wanted, "the target is never overwritten by what was to be replaced"
            assert (await engine.api.replica_show("r")).copy_state in ("Fractured", "Restored")
            await done(engine, await engine.api.replica_restore("r"))
            assert await content(engine, "v") == wanted


async def test_a_source_is_restored_from_a_peer(tmp_path: Path):
    async with two(tmp_path, mode="async", rpo_s=60.0, points=2) as pools:
        a = pools.a
        point, then = (await a.api.replica_points("r"))[0].guid, await content(a, "v")
        await fill(a, "v", 0, 7 * MIB)
        await a.api.replica_resync("r")
        await until(lambda: len(a.replicas.points("r")) == 2)
        plan = await a.api.replica_restore_plan("r", point)
        assert plan.direction == "b:r -> v"
        result = await done(a, await a.api.replica_restore("r", point))
        assert await content(a, "v") == then
        assert result["copied_bytes"] <= plan.copied_bytes <= 2 * MIB
        await done(a, await a.api.replica_resync("r"))
        assert await content(pools.b, "r") == then


async def test_reversed_the_target_is_the_disk_and_the_source_its_replica(engine, tmp_path: Path):
    await done(engine, await engine.api.replica_create("v", "r"))
    before = await engine.api.volume_show("v")
    info = await engine.api.replica_reverse("r")
    assert (info.name, info.source, info.target) == ("r", "r", "v")
    await synchronized(engine, "r")
    after = await engine.api.volume_show("r")
    assert (after.serial, after.target, after.read_only) == (before.serial, before.target, False)
    assert engine.pool.volume("v").read_only
    written = engine.replicas.info("r").written_bytes
    assert written == 0, "nothing is copied for it"
    await fill(engine, "r", 6 * MIB)
    await synchronized(engine, "r")
    assert await content(engine, "v") == await content(engine, "r")
    await engine.api.replica_reverse("r")
    await synchronized(engine, "r")
    assert (await engine.api.volume_show("v")).serial == before.serial
    await fill(engine, "v", 7 * MIB)
    await synchronized(engine, "r")
    assert await content(engine, "v") == await content(engine, "r")


async def test_it_is_reversed_after_a_restart_too(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE, expose=True)
        await fill(engine, "v", 0)
        await done(engine, await engine.api.replica_create("v", "r"))
        await engine.api.replica_reverse("r")
        await fill(engine, "r", MIB)
    async with opened(tmp_path / "pool") as engine:
        info = await engine.api.replica_show("r")
        assert (info.source, info.target) == ("r", "v")
        await synchronized(engine, "r")
        assert await content(engine, "v") == await content(engine, "r")


async def test_the_mode_of_a_running_mirror_changes_and_what_was_not_chosen_stays(engine):
    await done(engine, await engine.api.replica_create("v", "r", MirrorTerms(points=4, latency_budget_s=2.0)))
    info = await engine.api.replica_mode("r", ASYNC)
    assert (info.mode, info.rpo_seconds) == ("async", 60.0)
    await synchronized(engine, "r")
    await fill(engine, "v", 5 * MIB)
    info = await engine.api.replica_mode("r", MirrorTerms("adaptive"))
    assert (info.mode, info.rpo_seconds, info.latency_budget_seconds) == ("adaptive", 60.0, 2.0)
    await until(lambda: engine.replicas.info("r").exact)
    assert await content(engine, "r") == await content(engine, "v")
    info = await engine.api.replica_mode("r", MirrorTerms("sync"))
    assert (info.mode, info.rpo_seconds) == ("sync", None)
    await synchronized(engine, "r")
    await fill(engine, "v", 6 * MIB)
    assert await content(engine, "r") == await content(engine, "v")
    assert engine.replicas.running("r").policy.points_max == 4


async def test_the_mode_is_known_after_a_restart_and_at_the_peer(tmp_path: Path):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        await a.api.replica_mode("r", ASYNC)
        await synchronized(a, "r")
        await until(lambda: b.replicas.info("r").mode == "async")
        await fill(a, "v", 5 * MIB)
        await done(b, await b.api.replica_failover("r"))
        assert (await b.api.replica_show("r")).mode == "async"
        await synchronized(b, "r")
        assert await content(a, "v") == await content(b, "r")
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(opened(tmp_path / "b"))
        assert b.replicas.info("r").mode == "async"


async def test_a_shown_target_is_not_to_be_replaced_again_and_again(engine):
    await done(engine, await engine.api.replica_create("v", "r"))
    await engine.api.target_create("shown")
    await engine.api.target_lun_add("shown", "r")
    with pytest.raises(InUse, match="shown"):
        await engine.api.replica_mode("r", ASYNC)
    with pytest.raises(InvalidArgument, match="RPO"):
        MirrorTerms("sync", rpo_s=1.0)
    assert engine.replicas.info("r").mode == "sync"


async def test_hosts_that_a_failed_copy_has_stopped_go_on_when_the_mode_changes(tmp_path: Path):
    terms = {"failed_copy_stops_host_io": True, "latency_budget_s": 0.2}
    async with two(tmp_path, **terms) as pools:
        a = pools.a
        pools.cut()
        await until(lambda: a.replicas.info("r").host_io_stopped)
        await a.api.replica_mode("r", ASYNC)
        await asyncio.wait_for(fill(a, "v", 3 * MIB), 10)
        pools.heal()
        await synchronized(a, "r")


async def test_a_copy_is_aborted_and_begun_anew(engine, monkeypatch):
    held, began = asyncio.Event(), asyncio.Event()

    async def slow(self, _guid):
        began.set()
        await held.wait()

    with monkeypatch.context() as patch:
        patch.setattr("engine.links.local.LocalLink.commit_staging", slow)
        await engine.api.replica_create("v", "r")
        await began.wait()
        aborting = asyncio.ensure_future(engine.api.replica_abort("r"))
        await asyncio.sleep(0)
        engine.replicas.running("r")._run_task.cancel()
        info = await aborting
    assert (info.copy_state, info.progress_status) == ("Aborted", "Requires resync")
    volume = engine.pool.volume("r")
    assert volume.head.store.staging(volume.volume_id) is None
    await done(engine, await engine.api.replica_resync("r"))
    assert await content(engine, "r") == await content(engine, "v")
    with pytest.raises(InvalidState, match="copying"):
        await engine.api.replica_abort("r")
