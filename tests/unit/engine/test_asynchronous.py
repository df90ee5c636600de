"""Asynchronous and adaptive mirrors as users have them: through the engine's operations, on real volume files."""

import asyncio
import random
from pathlib import Path

import pytest

from engine import modes
from engine.api import MirrorTerms
from engine.errors import InUse, MediumError, NotFound, WriteProtected
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.tvol.check import check_file
from tests.support.engine import PREFIX, opened

MIB = 1 << 20
SIZE = 16 * MIB
POLL_S = 0.05
RPO_S = 600.0
"""Kept by any machine; tests ask for recovery points."""


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("a", SIZE)
        await scribble(engine, 1)
        yield engine


async def done(engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    assert job.state == "Completed", job.message
    return job


async def scribble(engine, seed: int, writes: int = 20) -> None:
    rng = random.Random(seed)
    for _ in range(writes):
        length = rng.randrange(1, 400) * 512
        offset = rng.randrange(0, (SIZE - length) // 512) * 512
        await engine.pool.volume("a").write(offset, memoryview(rng.randbytes(length)))


async def content(engine, device) -> bytes:
    data = bytearray(SIZE)
    await device.read(0, memoryview(data))
    return bytes(data)


async def until(engine, condition) -> None:
    """Wait for what the mirror does by itself; it has the machine meanwhile."""
    async with asyncio.timeout(100):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_S)


async def followed(engine) -> None:
    """The target has what the source has now."""
    async with asyncio.timeout(60):
        while not await equal(engine)():
            await engine.api.replica_resync("b")
            await asyncio.sleep(POLL_S)


def shows(engine, **wanted):
    async def condition() -> bool:
        info = await engine.api.replica_show("b")
        return all(getattr(info, name) == value for name, value in wanted.items())

    return condition


def equal(engine):
    async def condition() -> bool:
        return await content(engine, engine.pool.volume("a")) == await content(engine, engine.pool.volume("b"))

    return condition


async def test_an_asynchronous_mirror_follows_by_itself_and_hosts_wait_for_nothing(engine):
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    info = await engine.api.replica_show("b")
    assert (info.mode, info.copy_state, info.exact, info.rpo_seconds, info.promise) == (
        "async",
        "Synchronized",
        False,
        RPO_S,
        "kept",
    )
    assert info.lag_seconds is not None
    assert engine.pool.volume("a").taps == (), "nothing stands in the way of writes"
    await scribble(engine, 2)
    await followed(engine)
    assert (await done(engine, await engine.api.replica_verify("b"))).result["identical"]


async def test_a_source_that_is_not_written_costs_no_rounds(engine):
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    before, snapshots = await engine.api.replica_show("b"), engine.pool.volume("a").head.store.snapshots()

    async def younger_than_its_point() -> bool:
        await engine.api.replica_resync("b")
        info = await engine.api.replica_show("b")
        return info.lag_seconds < engine.pool.env.clock.time() - info.point_at - 0.5

    await until(engine, younger_than_its_point)
    info = await engine.api.replica_show("b")
    assert (info.rounds, info.point_at) == (before.rounds, before.point_at)
    assert engine.pool.volume("a").head.store.snapshots() == snapshots


async def test_recovery_points_stay_are_shown_and_do_not_change_while_replication_goes_on(engine):
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S, points=2)))
    first = (await engine.api.replica_points("b"))[0]
    shown = await engine.api.replica_expose("b", first.guid)
    assert shown.target.startswith(f"{PREFIX}:b.snap.mirror-")
    device = engine.pool.volume("b").head.store.snapshot_with(engine.pool.volume("b").volume_id, first.guid)
    before = await content(engine, device)
    for seed in range(3, 7):
        await scribble(engine, seed)
        await followed(engine)
    points = await engine.api.replica_points("b")
    assert [point.guid for point in points].count(first.guid) == 1, "one that is shown stays beyond the limits"
    assert len(points) <= 3
    assert await content(engine, device) == before
    with pytest.raises(WriteProtected):
        await device.write(0, memoryview(bytes(512)))
    with pytest.raises(InUse, match="replica unexpose"):
        await engine.api.replica_detach("b")
    await engine.api.replica_unexpose("b", first.guid)
    with pytest.raises(NotFound):
        await engine.api.replica_unexpose("b", first.guid)
    with pytest.raises(NotFound):
        await engine.api.replica_expose("b", "no such point")
    await engine.api.replica_detach("b")
    assert await content(engine, engine.pool.volume("b")) == await content(engine, engine.pool.volume("a"))


async def test_the_target_itself_is_not_shown_while_its_content_is_replaced(engine):
    await engine.api.volume_create("b", SIZE, expose=True)
    with pytest.raises(InUse, match="lun remove"):
        await engine.api.replica_attach("a", "b", MirrorTerms("async", rpo_s=RPO_S))
    await engine.api.target_delete("b")
    await done(engine, await engine.api.replica_attach("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    await engine.api.target_create("t")
    with pytest.raises(InUse, match="replica expose b"):
        await engine.api.target_lun_add("t", "b")
    await engine.api.replica_fracture("b")
    await engine.api.target_lun_add("t", "b")
    with pytest.raises(InUse, match="lun remove"):
        await engine.api.replica_resync("b")


async def test_it_goes_on_after_a_restart_and_an_exposed_point_is_still_there(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("a", SIZE)
        await scribble(engine, 1)
        await done(
            engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S, points_age_s=3600.0))
        )
        point = await engine.api.replica_expose("b")
        await engine.api.replica_pause("b")
    async with opened(tmp_path / "pool") as engine:
        info = await engine.api.replica_show("b")
        assert (info.copy_state, info.mode, info.rpo_seconds) == ("Suspended", "async", RPO_S)
        await scribble(engine, 2)
        await done(engine, await engine.api.replica_resume("b"))
        await followed(engine)
        assert point.guid in [each.guid for each in await engine.api.replica_points("b")]
    for file in ("a.tvol", "b.tvol"):
        assert not check_file(tmp_path / "pool" / "volumes" / file).damaged


async def test_it_survives_a_target_that_fails_and_goes_on_by_itself(engine, monkeypatch):
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=3.0)))

    async def refused(self):
        raise MediumError("the way to the target is cut")

    with monkeypatch.context() as patch:
        patch.setattr(LocalLink, "connect", refused)
        await until(engine, shows(engine, copy_state="Broken"))
        info = await engine.api.replica_show("b")
        assert "cut" in info.reason
        assert "by itself" in info.next_action
        await scribble(engine, 5)
        await until(engine, shows(engine, promise="broken"))
        assert any("RPO" in line or "Broken" in line for line in (await engine.api.status()).reasons)
    await until(engine, shows(engine, copy_state="Synchronized"))
    await followed(engine)
    texts = [event.text for event in await engine.api.event_list()]
    assert any("the RPO is broken: lag" in text for text in texts)
    assert any("answers again" in text for text in texts)


async def test_a_target_that_is_away_holds_back_no_space_and_only_what_changed_is_copied_then(engine):
    await engine.pool.volume("a").write(0, memoryview(b"o" * MIB))
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    await engine.api.replica_pause("b")
    volume, mirror = engine.pool.volume("a"), engine.replicas._mirrors["b"]
    store = volume.head.store
    for seed in range(3):
        await volume.write(0, memoryview(bytes([seed + 1]) * MIB))
        points = store.snapshots(volume.volume_id)
        assert await store.freed_by(points) > 0
        await mirror.thin(0)
        assert await store.freed_by(store.snapshots(volume.volume_id)) == 0
        assert len(store.snapshots(volume.volume_id)) == 1
    before = (await engine.api.replica_show("b")).written_bytes
    await volume.write(8 * MIB, memoryview(b"x" * 512))
    await done(engine, await engine.api.replica_resume("b"))
    await followed(engine)
    assert (await engine.api.replica_show("b")).written_bytes - before <= 4 * MIB
    assert not list((engine.pool.path / "ledgers").glob("*.changed-*")), "a note that is of no use is removed"


async def test_a_paused_or_resized_source_is_followed(engine):
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    await engine.api.volume_resize("a", SIZE + MIB)

    async def larger() -> bool:
        await engine.api.replica_resync("b")
        return engine.pool.volume("b").size_bytes == SIZE + MIB

    await until(engine, larger)


async def test_hosts_go_on_beside_a_mirror_whose_rounds_take_longer_than_its_promise(engine, monkeypatch):
    """It has nothing to wait for then; that must not keep everything else waiting."""
    monkeypatch.setattr(modes, "SHORTEST", 0.0)
    monkeypatch.setattr(modes, "HEADROOM", 0.0)  # no round is fast enough
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=1.0)))
    await scribble(engine, 2)
    await until(engine, equal(engine))
    await engine.api.replica_detach("b")


async def test_a_mirror_that_is_cancelled_ends_whatever_is_raised_in_place_of_that(engine, monkeypatch):
    """When a process ends all is cancelled at once: a write waits for its mirror even so, and gets its error."""
    waiting = asyncio.Event()

    async def cycle(mirror, cadence):
        try:
            waiting.set()
            await asyncio.Event().wait()
        finally:
            raise MediumError("raised instead")

    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("async", rpo_s=RPO_S)))
    await engine.api.replica_pause("b")
    monkeypatch.setattr(Mirror, "_cycle", cycle)
    await engine.api.replica_resume("b")
    await waiting.wait()
    run = engine.replicas.running("b")._run_task
    run.cancel()
    await asyncio.wait([run], timeout=10)
    assert run.cancelled()


async def test_an_adaptive_mirror_leaves_for_a_late_target_and_comes_back(engine, monkeypatch):
    terms = {"rpo_s": 2.0, "latency_budget_s": 2.0, "hold_down_s": 0.0}
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("adaptive", **terms)))
    assert (await engine.api.replica_show("b")).exact
    held = asyncio.Event()

    async def late(self, write):
        await held.wait()
        raise MediumError("too late")

    with monkeypatch.context() as patch:
        patch.setattr(LocalLink, "apply_now", lambda self, write: None)
        patch.setattr(LocalLink, "apply", late)
        async with asyncio.timeout(30):
            await engine.pool.volume("a").write(0, memoryview(b"w" * 4096))  # returns, whatever the target does
        info = await engine.api.replica_show("b")
        assert (info.copy_state, info.exact) == ("Unsynchronized", False)
        assert "did not answer within" in info.reason
    held.set()
    await until(engine, shows(engine, exact=True))
    await until(engine, equal(engine))
    assert (await engine.api.replica_show("b")).switches >= 3
    texts = [event.text for event in await engine.api.event_list()]
    assert any("asynchronous for 0 s at least" in text for text in texts)


async def test_the_lag_of_a_mirror_that_was_synchronous_begins_when_it_left(engine, monkeypatch):
    """Not at its last recovery point: what the target got after that it has, as long as it does not lose power."""
    clock, later = engine.pool.env.clock, 0.0
    real = clock.boottime
    monkeypatch.setattr(type(clock), "boottime", lambda self: real() + later)
    await done(engine, await engine.api.replica_create("a", "b", MirrorTerms("adaptive", rpo_s=RPO_S)))
    later = 10 * RPO_S  # without a recovery point

    async def fails(self, *_):
        raise MediumError("gone")

    monkeypatch.setattr(LocalLink, "apply_now", lambda self, write: None)
    monkeypatch.setattr(LocalLink, "apply", fails)
    monkeypatch.setattr(LocalLink, "connect", fails)
    await engine.pool.volume("a").write(0, memoryview(b"w" * 4096))
    figures = engine.replicas.running("b").figures
    assert not figures.is_exact
    assert figures.lag_s < RPO_S
    assert figures.point_lag_s > 9 * RPO_S
    assert (await engine.api.replica_show("b")).promise == "kept"
    figures.reached(-1)  # another opening of the target's store
    assert figures.lag_s > 9 * RPO_S
