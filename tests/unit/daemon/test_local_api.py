"""The engine's operations on a real pool in a temporary folder."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from engine.errors import AlreadyExists, InUse, InvalidArgument, NotFound, StoreCorrupt
from tests.support.engine import PREFIX, Engine, HeldMover, opened

MIB = 1 << 20


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        yield engine


async def write(engine: Engine, volume: str, offset: int, data: bytes) -> None:
    await engine.pool.volume(volume).write(offset, memoryview(data))


async def read(engine: Engine, volume: str, offset: int, length: int) -> bytes:
    view = bytearray(length)
    await engine.pool.volume(volume).read(offset, memoryview(view))
    return bytes(view)


async def test_an_exposed_volume_has_a_target_of_its_name(engine):
    info = await engine.api.volume_create("disk-1", 64 * MIB, expose=True, physical_block_bytes=512)
    assert (info.target, info.lun, info.state) == (f"{PREFIX}:disk-1", 0, "ok")
    assert (info.size_bytes, info.physical_block_bytes, Path(info.file).name) == (64 * MIB, 512, "disk-1.tvol")
    assert engine.exports.shown[f"{PREFIX}:disk-1"][0] is engine.pool.volume("disk-1")
    assert await engine.api.volume_list() == [info]


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "A", "a b", "ä", "a/b", "../x", "a_b", "a" * 65, "a\n"], ids=lambda name: repr(name)
)
async def test_bad_names_are_refused(engine, name):
    with pytest.raises(InvalidArgument):
        await engine.api.volume_create(name, MIB)


@pytest.mark.parametrize("name", ["a", "0", "a.b-c", "a" * 64])
async def test_good_names_are_taken(engine, name):
    assert (await engine.api.volume_create(name, MIB)).name == name


@pytest.mark.parametrize("size", [0, -512, 511, 4097])
async def test_sizes_that_make_no_sense_are_refused(engine, size):
    with pytest.raises(InvalidArgument):
        await engine.api.volume_create("v", size)
    assert await engine.api.volume_list() == []


@pytest.mark.parametrize("options", [{"chunk_bytes": 4096}, {"physical_block_bytes": 1024}])
async def test_other_choices_are_refused(engine, options):
    with pytest.raises(InvalidArgument):
        await engine.api.volume_create("v", MIB, **options)


async def test_a_name_is_taken_once(engine):
    await engine.api.volume_create("v", MIB)
    with pytest.raises(AlreadyExists):
        await engine.api.volume_create("v", MIB)
    with pytest.raises(NotFound):
        await engine.api.volume_show("w")


async def test_volumes_targets_and_snapshots_survive_a_restart(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        volume = await engine.api.volume_create("v", MIB, expose=True, write_cache=False)
        await write(engine, "v", 4096, b"x" * 512)
        await engine.api.snapshot_create("v", "s", expose=True)
        (snapshot,) = await engine.api.snapshot_list("v")
        await engine.api.target_create("more", initiators=["iqn.2026-11.org.example:a"], portal_groups=[2])
        await engine.api.target_lun_add("more", "v", lun=7, initiators=["iqn.2026-11.org.example:b"])
    async with opened(pool) as engine:
        again = await engine.api.volume_show("v")
        assert (again.serial, again.naa, again.target, again.write_cache) == (
            volume.serial,
            volume.naa,
            volume.target,
            False,
        )
        assert await engine.api.snapshot_list("v") == [snapshot]
        assert await read(engine, "v", 4096, 512) == b"x" * 512
        assert engine.exports.access[f"{PREFIX}:more"] == ("iqn.2026-11.org.example:a",)
        assert engine.exports.shown[f"{PREFIX}:more"][7].name == "v"
        assert engine.exports.shown[f"{PREFIX}:v.snap.s"][0].guid == snapshot.guid


async def test_resize_grows_and_shrinks_only_when_told(engine):
    await engine.api.volume_create("v", 2 * MIB)
    assert (await engine.api.volume_resize("v", 4 * MIB)).size_bytes == 4 * MIB
    with pytest.raises(InvalidArgument, match="--shrink"):
        await engine.api.volume_resize("v", MIB)
    assert (await engine.api.volume_resize("v", MIB, shrink=True)).size_bytes == MIB


async def test_rollback_brings_back_the_snapshot_and_keeps_what_was(engine):
    await engine.api.volume_create("v", MIB, expose=True)
    await write(engine, "v", 0, b"1" * 512)
    await engine.api.snapshot_create("v", "s")
    await write(engine, "v", 0, b"2" * 512)
    await engine.api.snapshot_rollback("v", "s")
    assert await read(engine, "v", 0, 512) == b"1" * 512
    assert len(await engine.api.snapshot_list("v")) == 2
    engine.exports.log_in(f"{PREFIX}:v")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.snapshot_rollback("v", "s")
    await engine.api.snapshot_rollback("v", "s", force=True)


async def test_a_linked_clone_starts_as_its_snapshot_and_goes_its_own_way(engine):
    await engine.api.volume_create("v", MIB)
    await write(engine, "v", 0, b"1" * 512)
    await engine.api.snapshot_create("v", "s")
    await write(engine, "v", 0, b"2" * 512)
    clone = await engine.api.clone_create("v", "s", "c", expose=True)
    assert (clone.origin, clone.target) == ("v@s", f"{PREFIX}:c")
    assert await read(engine, "c", 0, 512) == b"1" * 512
    await write(engine, "c", 0, b"3" * 512)
    assert await read(engine, "v", 0, 512) == b"2" * 512
    assert [info.name for info in await engine.api.clone_list()] == ["c"]
    now = await engine.api.clone_create("v", None, "now")
    assert now.origin == "v@now"
    assert await read(engine, "now", 0, 512) == b"2" * 512


async def test_deleting_is_refused_while_something_holds_the_volume(engine):
    await engine.api.volume_create("v", MIB, expose=True)
    await engine.api.snapshot_create("v", "s")
    with pytest.raises(InUse, match="snapshots"):
        await engine.api.volume_delete("v")
    await engine.api.clone_create("v", "s", "c")
    for attempt in (engine.api.volume_delete("v", force=True), engine.api.snapshot_delete("v", "s")):
        with pytest.raises(InUse, match="c"):
            await attempt
    await engine.api.volume_delete("c")
    engine.exports.log_in(f"{PREFIX}:v")
    await engine.api.snapshot_delete("v", "s")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.volume_delete("v")
    await engine.api.volume_delete("v", force=True)
    assert await engine.api.target_list() == []
    assert list((engine.pool.path / "volumes").glob("**/*.tvol")) == []
    await engine.api.volume_create("v", MIB, expose=True)


async def test_diff_lists_changed_extents_by_pages(engine):
    await engine.api.volume_create("v", 4 * MIB)
    await engine.api.snapshot_create("v", "a")
    for chunk in (0, 2, 5):
        await write(engine, "v", chunk * 65536, b"x" * 512)
    await engine.api.snapshot_create("v", "b")
    diff = await engine.api.snapshot_diff("v", "a", "b")
    assert [(extent.offset, extent.length) for extent in diff.extents] == [
        (0, 65536),
        (2 * 65536, 65536),
        (5 * 65536, 65536),
    ]
    assert (diff.changed_bytes, diff.next_offset) == (3 * 65536, None)
    page = await engine.api.snapshot_diff("v", "a", None, limit=2)
    assert page.next_offset == 5 * 65536
    rest = await engine.api.snapshot_diff("v", "a", None, offset=page.next_offset)
    assert [extent.offset for extent in rest.extents] == [5 * 65536]


async def test_space_counts_volume_and_snapshots(engine):
    await engine.api.volume_create("v", 4 * MIB)
    await write(engine, "v", 0, b"x" * 65536)
    await engine.api.snapshot_create("v", "a")
    space = await engine.api.volume_space("v")
    assert (space.mapped_bytes, space.unique_bytes) == (65536, 0)
    assert [(each.name, each.mapped_bytes) for each in space.snapshots] == [("a", 65536)]


async def test_space_says_what_is_shared_pinned_and_reclaimable(engine):
    api, chunk = engine.api, 65536
    await api.volume_create("v", 4 * MIB)
    await write(engine, "v", 0, b"1" * 4 * chunk)
    await api.snapshot_create("v", "a")
    await write(engine, "v", 0, b"2" * 2 * chunk)
    await api.snapshot_create("v", "b")
    await write(engine, "v", chunk, b"3" * 2 * chunk)
    a, b = await api.snapshot_list("v")
    assert (a.mapped_bytes, a.unique_bytes, a.shared_bytes) == (4 * chunk, 2 * chunk, 2 * chunk)
    assert (a.pinned_bytes, a.reclaimable_bytes) == (3 * chunk, 2 * chunk)
    assert (b.mapped_bytes, b.unique_bytes, b.shared_bytes) == (4 * chunk, chunk, 3 * chunk)
    assert (b.pinned_bytes, b.reclaimable_bytes) == (2 * chunk, chunk)
    space = await api.volume_space("v")
    assert (space.mapped_bytes, space.unique_bytes, space.shared_bytes) == (4 * chunk, 2 * chunk, 2 * chunk)
    assert (space.pinned_bytes, space.reclaimable_bytes) == (4 * chunk, 8 * chunk)
    assert space.family.used_bytes == 8 * chunk


async def test_a_preview_of_a_deletion_deletes_nothing_and_refuses_what_the_deletion_would(engine):
    api, chunk = engine.api, 65536
    await api.volume_create("v", 4 * MIB)
    for number in range(5):
        await write(engine, "v", 0, bytes([number]) * 2 * chunk)
        await api.snapshot_create("v", f"s{number}")
    some = await api.snapshot_delete_preview("v", ["s1%s3"])
    assert (some.snapshots, some.freed_bytes) == (["s1", "s2", "s3"], 6 * chunk)
    assert (await api.snapshot_delete_preview("v", ["s4", "%s1"])).snapshots == ["s0", "s1", "s4"]
    assert (await api.snapshot_delete_preview("v", ["s4"])).freed_bytes == 0, "the volume has it all"
    whole = await api.volume_delete_preview("v", force=True)
    assert whole.freed_bytes == 10 * chunk
    assert whole.removed_file_bytes == (await api.volume_space("v")).file_bytes
    assert len(await api.snapshot_list("v")) == 5
    with pytest.raises(InvalidArgument):
        await api.snapshot_delete_preview("v", ["s3%s1"])
    with pytest.raises(NotFound):
        await api.snapshot_delete_preview("v", ["s3%s9"])
    with pytest.raises(InUse):
        await api.volume_delete_preview("v")
    await api.clone_create("v", "s2", "c")
    with pytest.raises(InUse):
        await api.snapshot_delete_preview("v", ["s1%s3"])
    assert (await api.volume_delete_preview("c")).removed_file_bytes is None


async def test_luns_are_masked_and_targets_bound_to_portal_groups(engine):
    await engine.api.volume_create("v", MIB)
    first = "iqn.2026-11.org.example:a"
    target = await engine.api.target_create("t", portal_groups=[2])
    assert (target.portal_groups, target.portals) == ([2], ["127.0.0.2:3260"])
    target = await engine.api.target_lun_add("t", "v", initiators=[first.upper(), first])
    assert target.luns[0].initiators == [first]
    assert engine.exports.masks[target.name, 0] == (first,)
    target = await engine.api.target_lun_mask("t", 0, initiators=[])
    assert (target.luns[0].initiators, engine.exports.masks[target.name, 0]) == ([], ())
    with pytest.raises(NotFound):
        await engine.api.target_lun_mask("t", 1, initiators=[first])
    with pytest.raises(InvalidArgument):
        await engine.api.target_lun_mask("t", 0, initiators=["no name"])
    with pytest.raises(InvalidArgument, match="there are portals in 1, 2"):
        await engine.api.target_bind("t", portal_groups=[3])
    target = await engine.api.target_bind("t", portal_groups=[])
    assert (target.portal_groups, len(target.portals), engine.exports.groups[target.name]) == ([], 2, ())


async def test_targets_take_luns_and_access_lists(engine):
    await engine.api.volume_create("v", MIB)
    target = await engine.api.target_create("t")
    assert target.name == f"{PREFIX}:t"
    for _ in range(2):
        target = await engine.api.target_lun_add("t", "v")
    assert [(lun.lun, lun.volume) for lun in target.luns] == [(0, "v"), (1, "v")]
    with pytest.raises(AlreadyExists):
        await engine.api.target_lun_add("t", "v", lun=1)
    with pytest.raises(InvalidArgument):
        await engine.api.target_lun_add("t", "v", lun=256)
    with pytest.raises(NotFound):
        await engine.api.target_lun_remove("t", 9)
    target = await engine.api.target_lun_remove("t", 0)
    assert [lun.lun for lun in target.luns] == [1]
    await engine.api.target_access("t", add=["iqn.2026-11.org.example:B"], remove=[])
    assert engine.exports.access[target.name] == ("iqn.2026-11.org.example:b",)
    with pytest.raises(InvalidArgument):
        await engine.api.target_access("t", add=["no name"], remove=[])
    with pytest.raises(InvalidArgument, match="everybody"):
        await engine.api.target_access("t", add=[], remove=["iqn.2026-11.org.example:b"])
    assert (await engine.api.target_access("t", add=[], remove=[], admit_all=True)).initiators == []
    assert engine.exports.access[target.name] == ()
    with pytest.raises(NotFound):
        await engine.api.target_access("t", add=[], remove=["iqn.2026-11.org.example:c"])
    engine.exports.log_in(target.name)
    with pytest.raises(InUse):
        await engine.api.target_delete("t")
    assert (await engine.api.target_show("t")).sessions == 1
    assert [session.tsih for session in await engine.api.session_list("t")] == [1]
    await engine.api.target_delete("t", force=True)
    with pytest.raises(NotFound):
        await engine.api.target_show("t")


async def test_a_damaged_family_is_shown_with_its_reason_and_does_not_keep_others_away(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("good", MIB, expose=True)
        bad = await engine.api.volume_create("bad", MIB, expose=True)
        await engine.api.snapshot_create("bad", "s", expose=True)
    (pool / "volumes" / "bad.tvol").unlink()
    (pool / "volumes" / "bad.tvol").write_bytes(b"garbage" * 4096)
    async with opened(pool) as engine:
        infos = {info.name: info for info in await engine.api.volume_list()}
        assert (infos["good"].state, infos["bad"].state) == ("ok", "damaged")
        assert infos["bad"].reason
        assert infos["bad"].serial == bad.serial
        with pytest.raises(StoreCorrupt, match="twinvol check"):
            await engine.api.volume_space("bad")
        with pytest.raises(AlreadyExists):
            await engine.api.volume_create("bad", MIB)
        status = await engine.api.status()
        assert status.health == "degraded"
        assert any("bad.tvol" in reason for reason in status.reasons)
        assert any(f"{PREFIX}:bad" in reason for reason in status.reasons)
        with pytest.raises(StoreCorrupt):
            await engine.api.volume_delete("bad")
        await engine.api.volume_delete("bad", force=True)
        assert not (pool / "volumes" / "bad.tvol").exists()
        assert [target.name for target in await engine.api.target_list()] == [f"{PREFIX}:good"]
        assert (await engine.api.status()).health == "ok"
    (pool / "volumes" / "good.tvol").unlink()
    async with opened(pool) as engine:
        assert "missing" in (await engine.api.volume_show("good")).reason
        await engine.api.volume_delete("good", force=True)
        assert (await engine.api.status()).health == "ok"


async def test_status_counts(engine):
    await engine.api.volume_create("v", MIB, expose=True)
    await engine.api.snapshot_create("v", "s")
    status = await engine.api.status()
    assert (status.health, status.reasons) == ("ok", [])
    assert (status.volumes, status.snapshots, status.targets, status.provisioned_bytes) == (1, 1, 1, MIB)
    assert [event.text for event in await engine.api.event_list()] == [
        f"created with {MIB} bytes",
        "snapshot s created",
    ]


async def test_a_second_opener_is_refused_naming_the_process(tmp_path: Path):
    async with opened(tmp_path / "pool"):
        with pytest.raises(InUse, match=f"process {os.getpid()}"):
            async with opened(tmp_path / "pool"):
                pass


async def test_a_folder_with_other_files_is_no_pool(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidArgument, match="no pool"):
        async with opened(tmp_path):
            pass
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["letter.txt"]


async def finished(engine: Engine, job: int):
    info = await engine.api.job_show(job)
    while info.state_number not in (7, 8, 10):
        info = await engine.api.job_wait(job, after_version=info.version)
    return info


@pytest.mark.parametrize("snapshot", ["s", None])
async def test_a_full_clone_is_whole_verified_and_of_its_own_family(engine, snapshot):
    await engine.api.volume_create("v", 4 * MIB)
    await write(engine, "v", MIB, b"1" * 70_144)
    await engine.api.snapshot_create("v", "s")
    if snapshot is not None:
        await write(engine, "v", MIB, b"2" * 512)
    job = await finished(engine, (await engine.api.clone_copy("v", snapshot, "c", expose=True)).job)
    assert (job.state, job.result["volume"], len(job.result["root"])) == ("Completed", "c", 32)
    clone = await engine.api.volume_show("c")
    assert (clone.origin, clone.target) == (None, f"{PREFIX}:c")
    assert Path(clone.file).name == "c.tvol"
    assert await read(engine, "c", MIB, 70_144) == b"1" * 70_144
    assert [each.name for each in await engine.api.snapshot_list("v")] == ["s"]
    await engine.api.volume_delete("v", force=True)


async def test_a_cancelled_full_clone_leaves_nothing(engine):
    await engine.api.volume_create("v", 64 * MIB)
    for offset in range(0, 64 * MIB, MIB):
        await write(engine, "v", offset, b"1" * MIB)
    job = await engine.api.clone_copy("v", None, "c")
    with pytest.raises(AlreadyExists):
        await engine.api.volume_create("c", MIB)
    with pytest.raises(InUse, match=f"job {job.job}"):
        await engine.api.volume_delete("v", force=True)
    await engine.api.job_wait(job.job, after_version=job.version)
    assert (await engine.api.job_cancel(job.job)).state == "Terminated"
    assert list((engine.pool.path / "volumes").glob("**/c.*")) == []
    assert (await engine.api.volume_show("v")).snapshots == 0
    await engine.api.volume_create("c", MIB)


async def test_a_full_clone_cancelled_while_it_is_published_is_whole(engine, monkeypatch: pytest.MonkeyPatch):
    await engine.api.volume_create("v", MIB)
    put_volume = engine.pool.catalog.put_volume
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def held(row) -> None:
        reached.set()
        await let_go.wait()
        await put_volume(row)

    monkeypatch.setattr(engine.pool.catalog, "put_volume", held)
    job = await engine.api.clone_copy("v", None, "c")
    await reached.wait()
    cancelling = asyncio.create_task(engine.api.job_cancel(job.job))
    for _ in range(5):
        await asyncio.sleep(0)
    let_go.set()
    assert (await cancelling).state == "Completed"
    assert (await engine.api.volume_show("c")).state == "ok"
    await engine.api.volume_delete("c")
    assert list((engine.pool.path / "volumes").glob("**/c.*")) == []
    await engine.api.volume_create("c", MIB)


async def test_an_interrupted_full_clone_goes_on_when_asked_again(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", 128 * MIB)
        for offset in range(0, 128 * MIB, MIB):
            await write(engine, "v", offset, os.urandom(4096) * 256)
        job = await engine.api.clone_copy("v", None, "c")
        while not job.done_bytes:
            await asyncio.sleep(0)
            job = await engine.api.job_show(job.job)
        assert job.state == "Running"
    async with opened(pool) as engine:
        assert [info.name for info in await engine.api.volume_list()] == ["v"]
        assert (await engine.api.job_show(job.job)).state == "Exception"
        assert (await engine.api.status()).interrupted_copies == ["c"]
        again = await engine.api.clone_copy("v", None, "c")
        first = again.done_bytes
        while not first and again.state_number == 4:
            again = await engine.api.job_wait(again.job, after_version=again.version)
            first = again.done_bytes
        assert first >= job.done_bytes, "what the ledger has is not copied again"
        assert (await finished(engine, again.job)).state == "Completed"
        assert await read(engine, "c", 127 * MIB, MIB) == await read(engine, "v", 127 * MIB, MIB)
        assert await engine.api.snapshot_list("v") == []


async def test_an_interrupted_full_clone_can_be_discarded(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", 64 * MIB)
        for offset in range(0, 64 * MIB, MIB):
            await write(engine, "v", offset, b"1" * MIB)
        await engine.api.clone_copy("v", None, "c")
        with pytest.raises(NotFound):
            await engine.api.volume_delete("c")
    async with opened(pool) as engine:
        if (await engine.api.status()).interrupted_copies:
            await engine.api.volume_delete("c", force=True)
        assert (await engine.api.status()).interrupted_copies == []
        assert list((pool / "volumes").glob("**/c.*")) == []
        assert (await engine.api.volume_space("v")).snapshots == []


async def test_a_volume_that_has_the_name_of_an_interrupted_copy_is_deleted_itself(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool, lambda mover: HeldMover(mover, 1)) as engine:
        await engine.api.volume_create("v", 64 * MIB)
        for offset in range(0, 64 * MIB, MIB):
            await write(engine, "v", offset, b"1" * MIB)
        await engine.api.clone_copy("v", None, "c")
        await engine.pool.env.mover.holding.wait()
    async with opened(pool) as engine:
        assert (await engine.api.status()).interrupted_copies == ["c"]
        await engine.api.clone_create("v", None, "c")
        await engine.api.volume_delete("c")
        assert [info.name for info in await engine.api.volume_list()] == ["v"]
        assert (await engine.api.status()).interrupted_copies == ["c"]
        await engine.api.volume_delete("c")
        assert (await engine.api.status()).interrupted_copies == []


async def test_of_two_deletions_one_finds_nothing_any_more(engine):
    await engine.api.volume_create("v", MIB)
    await engine.api.snapshot_create("v", "s")
    outcomes = await asyncio.gather(
        *(engine.api.volume_delete("v", force=True) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["NoneType", "NotFound"]


async def test_of_two_deletions_of_a_damaged_file_one_finds_nothing_any_more(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", MIB)
    (pool / "volumes" / "v.tvol").write_bytes(b"no volume")
    async with opened(pool) as engine:
        outcomes = await asyncio.gather(
            *(engine.api.volume_delete("v", force=True) for _ in range(2)), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in outcomes) == ["NoneType", "NotFound"]


async def test_a_volume_that_goes_while_the_status_is_asked_for(engine, monkeypatch):
    await engine.api.volume_create("v", MIB)
    measure = engine.pool.space.measure

    async def measure_late():
        monkeypatch.undo()
        await engine.api.volume_delete("v")
        return await measure()

    monkeypatch.setattr(engine.pool.space, "measure", measure_late)
    status = await engine.api.status()
    assert (status.volumes, status.health) == (0, "ok")


async def test_a_file_that_is_gone_under_the_daemon_takes_nothing_in_status(engine):
    await engine.api.volume_create("v", MIB)
    before = (await engine.api.status()).stored_bytes
    (engine.pool.path / "volumes" / "v.tvol").unlink()
    assert (before > 0, (await engine.api.status()).stored_bytes) == (True, 0)
    assert (await engine.api.volume_space("v")).file_bytes == 0


async def test_a_copy_of_a_volume_file_is_not_served_beside_its_original(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", MIB)
        await write(engine, "v", 0, b"original" * 64)
    shutil.copy(pool / "volumes" / "v.tvol", pool / "volumes" / "a.tvol")
    async with opened(pool) as engine:
        assert [info.name for info in await engine.api.volume_list()] == ["v"]
        assert Path((await engine.api.volume_show("v")).file).name == "v.tvol"
        assert await read(engine, "v", 0, 512) == b"original" * 64
        (reason,) = (await engine.api.status()).reasons
        assert "a.tvol" in reason
        assert "copy" in reason


async def test_volumes_are_found_again_without_the_catalogue(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        before = await engine.api.volume_create("v", MIB)
        await engine.api.snapshot_create("v", "s")
        await engine.api.clone_create("v", "s", "c")
    for file in pool.glob("catalog.sqlite*"):
        file.unlink()
    async with opened(pool) as engine:
        assert [info.name for info in await engine.api.volume_list()] == ["c", "v"]
        assert (await engine.api.volume_show("v")).serial == before.serial
        assert [info.name for info in await engine.api.snapshot_list("v")] == ["s"]


async def test_what_cannot_be_shown_leaves_neither_target_nor_lun_behind(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB)
        await engine.api.target_create("t")
        show = engine.exports.add_volume

        def refuse(*arguments: object) -> None:
            raise StoreCorrupt("persistent reservations", "no JSON")

        engine.exports.add_volume = refuse
        with pytest.raises(StoreCorrupt):
            await engine.api.target_lun_add("t", "v")
        with pytest.raises(StoreCorrupt):
            await engine.api.volume_create("w", MIB, expose=True)
        engine.exports.add_volume = show
        assert [(target.name, target.luns) for target in await engine.api.target_list()] == [(f"{PREFIX}:t", [])]
        assert [row.luns for row in await engine.pool.catalog.targets()] == [()]
        (lun,) = (await engine.api.target_lun_add("t", "v")).luns
        assert (lun.lun, lun.state) == (0, "ok")


async def test_a_target_of_a_locked_volume_says_its_name_and_why(tmp_path: Path):
    pool, key = tmp_path / "pool", tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(b"k" * 32)
    async with opened(pool) as engine:
        await engine.api.volume_create("secret", MIB, expose=True, key_source=f"file:{key}")
    key.unlink()
    async with opened(pool) as engine:
        (target,) = await engine.api.target_list()
        assert target.luns[0].volume == "secret"
        assert target.luns[0].state.startswith("not served: volume secret: encrypted, and no key")
        assert any(
            f"{PREFIX}:secret LUN 0 is not served: volume secret" in line
            for line in (await engine.api.status()).reasons
        )


async def test_a_volume_goes_though_one_of_its_snapshots_goes_meanwhile(engine):
    await engine.api.volume_create("v", MIB)
    for name in ("a", "b", "c"):
        await engine.api.snapshot_create("v", name)
    others = [engine.api.snapshot_delete("v", name) for name in ("b", "c")]
    await asyncio.gather(engine.api.volume_delete("v", force=True), *others)
    assert list((engine.pool.path / "volumes").glob("*.tvol")) == []


async def test_a_snapshot_that_comes_while_its_volume_is_deleted_leaves_no_file_without_a_volume(engine):
    await engine.api.volume_create("v", MIB)
    await engine.api.snapshot_create("v", "late")  # as a schedule may, after those that there were have been deleted
    with pytest.raises(InUse, match="late"):
        await engine.pool.delete_volume(engine.pool.volume("v"))
    assert [info.name for info in await engine.api.volume_list()] == ["v"]
    await engine.api.volume_delete("v", force=True)
    assert list((engine.pool.path / "volumes").glob("*.tvol")) == []


@pytest.mark.parametrize("what", ["volume", "snapshot"])
async def test_a_lun_that_is_added_while_what_it_shows_is_deleted_goes_with_it(engine, what):
    await engine.api.volume_create("v", MIB)
    await engine.api.target_create("t")
    await engine.api.snapshot_create("v", "s")
    snapshot = "s" if what == "snapshot" else None
    deletion = engine.api.snapshot_delete("v", "s") if snapshot else engine.api.volume_delete("v", force=True)
    await asyncio.gather(deletion, engine.api.target_lun_add("t", "v", snapshot=snapshot), return_exceptions=True)
    (target,) = await engine.api.target_list()
    assert target.luns == []
    assert (await engine.api.status()).health == "ok"


async def test_the_point_of_a_full_clone_that_is_whole_goes_though_a_crash_came_between(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", MIB)
        head = engine.pool.volume("v").head
        await head.store.snapshot(head, "full-clone.c", hidden=True)  # what the crash would leave
        await engine.api.volume_create("c", MIB)
    async with opened(pool) as engine:
        assert engine.pool.volume("v").head.store.snapshots() == []
