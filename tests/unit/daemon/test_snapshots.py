"""Snapshots in the engine's API: holds, branches, schedules, pruning, writable views. The clock is moved by hand."""

import asyncio
import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from engine.api import SnapshotInfo
from engine.errors import AlreadyExists, InUse, InvalidArgument, MediumError, NotFound
from engine.tvol.file import TvolFile
from tests.support.engine import PREFIX, Engine, opened

MIB = 1 << 20
HOUR, DAY = 3600.0, 86400.0
NOON = datetime.datetime(2026, 11, 21, 12, 0, 1, tzinfo=datetime.UTC).timestamp()


class HandClock:
    """A wall clock and a true one, both moved by hand."""

    def __init__(self, wall: float = NOON) -> None:
        self.wall = wall
        self.true = 1000.0

    def monotonic(self):
        return self.true

    def boottime(self):
        return self.true

    def time(self):
        return self.wall

    def preemptions(self):
        return 0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.true += seconds


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def engine(tmp_path: Path, clock):
    async with opened(tmp_path / "pool", clock=clock) as engine:
        await engine.api.volume_create("v", 4 * MIB)
        yield engine


async def write(engine: Engine, volume: str, offset: int, data: bytes) -> None:
    await engine.pool.volume(volume).write(offset, memoryview(data))


async def names(engine: Engine) -> list[str]:
    return [info.name for info in await engine.api.snapshot_list("v")]


# --- holds and descriptions -----------------------------------------------------------------------------------------


async def test_a_hold_refuses_every_way_to_delete_and_names_its_owner(engine, clock):
    await engine.api.snapshot_create("v", "s", description="before the upgrade")
    held = await engine.api.snapshot_hold("v", "s", "backup", expires_at=clock.wall + DAY)
    assert (held.description, [hold.owner for hold in held.holds]) == ("before the upgrade", ["backup"])
    for attempt in (
        engine.api.snapshot_delete("v", "s", force=True),
        engine.api.snapshot_delete_preview("v", ["s"], force=True),
        engine.api.volume_delete("v", force=True),
    ):
        with pytest.raises(InUse, match=r"v@s is held by backup.*snapshot release v s"):
            await attempt
    with pytest.raises(NotFound):
        await engine.api.snapshot_release("v", "s", "somebody")
    clock.passes(DAY)
    assert (await engine.api.snapshot_show("v", "s")).holds == []
    await engine.api.volume_delete("v", force=True)


async def test_holds_and_descriptions_survive_a_restart_and_a_lost_catalogue(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", MIB)
        await engine.api.snapshot_create("v", "s", description="gold")
        await engine.api.snapshot_hold("v", "s", "backup")
    for path in pool.glob("catalog.sqlite*"):
        path.unlink()
    async with opened(pool) as engine:
        info = await engine.api.snapshot_show("v", "s")
        assert (info.description, [hold.owner for hold in info.holds]) == ("gold", ["backup"])
        await engine.api.snapshot_release("v", "s", "backup")
        await engine.api.snapshot_describe("v", "s", "")
        assert (await engine.api.snapshot_show("v", "s")).description == ""
        await engine.api.snapshot_delete("v", "s")


# --- branches -------------------------------------------------------------------------------------------------------


async def test_what_a_rollback_leaves_is_shown_as_a_branch(engine):
    for name in ("a", "b", "c"):
        await engine.api.snapshot_create("v", name)
    await engine.api.snapshot_rollback("v", "a")
    await engine.api.snapshot_create("v", "d")
    listed = {info.name: (info.parent, info.branch) for info in await engine.api.snapshot_list("v")}
    kept = "before-rollback-1"
    assert listed == {"a": (None, None), "b": ("a", kept), "c": ("b", kept), kept: ("c", kept), "d": ("a", None)}
    await engine.api.snapshot_rollback("v", "b")  # from a branch: what was the line becomes one
    listed = {info.name: (info.parent, info.branch) for info in await engine.api.snapshot_list("v")}
    again = "before-rollback-2"
    assert listed == {
        "a": (None, None),
        "b": ("a", None),
        "c": ("b", kept),
        kept: ("c", kept),
        "d": ("a", again),
        again: ("d", again),
    }
    assert (await engine.api.snapshot_show("v", "d")).branch == again
    await engine.api.snapshot_delete("v", "c")
    assert (await engine.api.snapshot_show("v", kept)).parent == "b"


async def test_a_clone_has_no_part_in_its_origins_tree(engine):
    await engine.api.snapshot_create("v", "a")
    await engine.api.clone_create("v", "a", "c")
    await engine.api.snapshot_create("c", "x")
    (info,) = await engine.api.snapshot_list("c")
    assert (info.parent, info.branch) == (None, None)


# --- pruning and schedules ------------------------------------------------------------------------------------------


async def test_a_schedule_makes_one_snapshot_a_slot_and_prunes(engine, clock):
    await engine.api.snapshot_create("v", "mine")
    info = await engine.api.schedule_set("v", 3600, keep_last=2)
    assert (info.next_at, info.problem) == (NOON - 1 + HOUR, None)
    await engine.api.upkeep.tick()
    assert await names(engine) == ["mine"]
    for _ in range(4):
        clock.passes(HOUR)
        await engine.api.upkeep.tick()
        await engine.api.upkeep.tick()
    assert await names(engine) == ["mine", "auto-2026-11-21-150001", "auto-2026-11-21-160001"]
    assert [info.scheduled for info in await engine.api.snapshot_list("v")] == [False, True, True]
    await engine.api.schedule_remove("v")
    with pytest.raises(NotFound):
        await engine.api.schedule_remove("v")
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    assert len(await names(engine)) == 3


async def test_missed_turns_make_one_snapshot(tmp_path: Path, clock):
    async with opened(tmp_path / "pool", clock=clock) as engine:
        await engine.api.volume_create("v", MIB)
        await engine.api.schedule_set("v", 60, keep_last=100)
    clock.passes(40 * DAY)
    async with opened(tmp_path / "pool", clock=clock) as engine:
        assert [info.volume for info in await engine.api.schedule_list()] == ["v"]
        await engine.api.upkeep.tick()
        await engine.api.upkeep.tick()
        assert await names(engine) == ["auto-2026-12-31-120001"]


async def test_a_clock_that_goes_back_neither_repeats_nor_silences_nor_loses(engine, clock):
    await engine.api.schedule_set("v", 3600, keep_last=1, hourly=2)
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    clock.wall -= 2  # over the border of a slot
    await engine.api.upkeep.tick()
    assert await names(engine) == ["auto-2026-11-21-130001"]
    clock.wall -= 10 * DAY
    await engine.api.upkeep.tick()
    assert await names(engine) == ["auto-2026-11-21-130001", "auto-2026-11-11-125959"]
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    assert await names(engine) == ["auto-2026-11-11-125959", "auto-2026-11-11-135959"]


async def test_two_snapshots_of_one_second_have_two_names(engine, clock):
    await engine.api.schedule_set("v", 3600, keep_last=9)
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    clock.wall -= 3 * HOUR
    await engine.api.upkeep.tick()
    clock.passes(3 * HOUR)
    await engine.api.upkeep.tick()
    assert await names(engine) == ["auto-2026-11-21-130001", "auto-2026-11-21-100001", "auto-2026-11-21-130001-2"]


async def test_a_schedule_that_fails_says_so_and_goes_on(engine, clock):
    await engine.api.schedule_set("v", 3600, keep_last=1)
    volume = engine.pool.volume("v")
    usable = volume.require_usable

    def not_now():
        raise InUse("not now")

    volume.require_usable = not_now
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    assert "the schedule of volume v failed: not now" in (await engine.api.status()).reasons
    assert (await engine.api.schedule_list())[0].problem == "not now"
    volume.require_usable = usable
    await engine.api.upkeep.tick()
    assert await names(engine) == []
    clock.passes(HOUR)
    await engine.api.upkeep.tick()
    assert (await engine.api.status()).health == "ok"
    assert len(await names(engine)) == 1


async def test_pruning_says_what_goes_and_why_and_how_much_comes_back(engine, clock):
    for number in range(5):
        await write(engine, "v", number * 65536, bytes([number + 1]) * 65536)
        await engine.api.schedule_set("v", 3600, keep_last=9)
        clock.passes(HOUR)
        await engine.api.upkeep.tick()
        await write(engine, "v", number * 65536, b"\xff" * 65536)
    await engine.api.snapshot_create("v", "mine")
    auto = (await names(engine))[:-1]
    await engine.api.snapshot_hold("v", auto[0], "backup")
    await engine.api.snapshot_expose("v", auto[1])
    plan = await engine.api.snapshot_prune("v", keep_last=1, dry_run=True)
    assert [(each.stays, each.reasons) for each in plan.snapshots] == [
        (True, ["held by backup"]),
        (True, [f"exposed at {PREFIX}:v.snap.{auto[1]}"]),
        (False, []),
        (False, []),
        (True, ["last"]),
        (True, ["made by hand"]),
    ]
    before = (await engine.api.volume_space("v")).family.used_bytes
    done = await engine.api.snapshot_prune("v", keep_last=1)
    assert replace(done, dry_run=True) == plan
    await engine.pool.volume("v").head.store.settled()
    assert before - (await engine.api.volume_space("v")).family.used_bytes == plan.freed_bytes == 2 * 65536
    assert await names(engine) == [*auto[:2], auto[4], "mine"]
    with pytest.raises(InvalidArgument):
        await engine.api.snapshot_prune("v", keep_last=-1)
    assert [each.stays for each in (await engine.api.snapshot_prune("v")).snapshots] == [True] * 4
    await engine.api.snapshot_prune("v", keep_last=1, manual=True)
    assert await names(engine) == [*auto[:2], "mine"]


async def test_pruning_a_volume_without_a_schedule_needs_numbers(engine):
    with pytest.raises(InvalidArgument, match="no schedule"):
        await engine.api.snapshot_prune("v")
    with pytest.raises(InvalidArgument):
        await engine.api.schedule_set("v", 59, keep_last=1)
    with pytest.raises(InvalidArgument):
        await engine.api.schedule_set("v", 3600)


async def test_a_deleted_volume_leaves_no_schedule(engine, clock):
    await engine.api.schedule_set("v", 3600, keep_last=1)
    await engine.api.volume_delete("v")
    await engine.api.volume_create("v", MIB)
    assert await engine.api.schedule_list() == []


# --- writable views -------------------------------------------------------------------------------------------------


async def view_of(engine: Engine) -> bytearray:
    (view,) = engine.pool.views()
    data = bytearray(512)
    await view.read(0, memoryview(data))
    return data


async def test_a_writable_view_is_there_while_it_is_shown(engine):
    await write(engine, "v", 0, b"1" * 512)
    await engine.api.snapshot_create("v", "s")
    await write(engine, "v", 0, b"2" * 512)
    shown = await engine.api.snapshot_expose("v", "s", writable=True)
    assert (shown.view_target, shown.view_lun, shown.target) == (f"{PREFIX}:v.view.s", 0, None)
    assert await view_of(engine) == b"1" * 512
    await engine.pool.views()[0].write(0, memoryview(b"3" * 512))
    assert [info.name for info in await engine.api.volume_list()] == ["v"]
    assert await engine.api.clone_list() == []
    assert (await engine.api.target_show("v.view.s")).luns[0].volume == "v@s"
    with pytest.raises(NotFound):
        await engine.api.volume_show("v@s")
    with pytest.raises(AlreadyExists):
        await engine.api.snapshot_expose("v", "s", writable=True)
    with pytest.raises(InUse, match="writable view"):
        await engine.api.snapshot_delete("v", "s")
    with pytest.raises(InUse, match="writable view"):
        await engine.api.volume_delete("v")
    hidden = await engine.api.snapshot_unexpose("v", "s", writable=True)
    assert hidden.view_target is None
    assert engine.pool.views() == []
    assert await engine.api.target_list() == []
    await engine.api.snapshot_expose("v", "s", writable=True)
    assert await view_of(engine) == b"1" * 512, "what was written to a view is gone with it"


@pytest.mark.parametrize("how", ["target", "lun", "snapshot", "volume"])
async def test_a_view_goes_with_what_it_needs(engine, how):
    await engine.api.snapshot_create("v", "s")
    await engine.api.snapshot_expose("v", "s", writable=True)
    await engine.api.snapshot_expose("v", "s")
    match how:
        case "target":
            await engine.api.target_delete("v.view.s")
        case "lun":
            await engine.api.target_lun_remove("v.view.s", 0)
        case "snapshot":
            await engine.api.snapshot_delete("v", "s", force=True)
        case "volume":
            await engine.api.volume_delete("v", force=True)
    assert engine.pool.views() == []
    assert await engine.pool.catalog.schedules.views() == {}


async def test_a_view_expires_but_not_because_a_clock_was_set(engine, clock):
    await engine.api.snapshot_create("v", "s")
    shown = await engine.api.snapshot_expose("v", "s", writable=True, expires_at=clock.wall + DAY)
    assert shown.view_expires_at == clock.wall + DAY
    engine.exports.log_in(f"{PREFIX}:v.view.s")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.snapshot_unexpose("v", "s", writable=True)
    clock.wall += 7 * DAY
    await engine.api.upkeep.tick()
    assert len(engine.pool.views()) == 1
    clock.passes(DAY)
    await engine.api.upkeep.tick()
    assert engine.pool.views() == []
    assert await engine.api.target_list() == []


async def test_views_survive_a_restart_and_those_that_nobody_sees_do_not(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await engine.api.volume_create("v", MIB)
        for name in ("s", "t"):
            await engine.api.snapshot_create("v", name)
            await engine.api.snapshot_expose("v", name, writable=True)
        await engine.pool.views()[0].write(0, memoryview(b"x" * 512))
        # A crash after the LUN has gone and before its view has.
        engine.exposure.when_unshown = None
        await engine.api.target_delete("v.view.t")
        assert len(engine.pool.views()) == 2
    async with opened(pool) as engine:
        assert [view.name for view in engine.pool.views()] == ["v@s"]
        assert await view_of(engine) == b"x" * 512
        assert list(engine.exports.shown) == [f"{PREFIX}:v.view.s"]
        await engine.api.snapshot_delete("v", "t")


async def test_a_view_that_cannot_be_shown_is_not_left_behind(engine):
    await engine.api.snapshot_create("v", "s")

    async def fails(*_args):
        raise InvalidArgument("no room for a target")

    engine.exposure.expose, expose = fails, engine.exposure.expose
    with pytest.raises(InvalidArgument, match="no room"):
        await engine.api.snapshot_expose("v", "s", writable=True)
    engine.exposure.expose = expose
    assert engine.pool.views() == []
    await engine.api.snapshot_delete("v", "s")


async def test_a_group_snapshot_with_a_view_is_deleted_by_force_only(engine):
    await engine.api.group_create("g", ["v"])
    await engine.api.group_snapshot_create("g", "s")
    await engine.api.snapshot_expose("v", "s", writable=True)
    with pytest.raises(InUse, match="writable views"):
        await engine.api.group_snapshot_delete("g", "s")
    await engine.api.group_snapshot_delete("g", "s", force=True)
    assert (engine.pool.views(), await names(engine)) == ([], [])


async def test_an_exposed_snapshot_is_unexposed(engine):
    await engine.api.snapshot_create("v", "s")
    assert (await engine.api.snapshot_expose("v", "s")).target == f"{PREFIX}:v.snap.s"
    with pytest.raises(AlreadyExists):
        await engine.api.snapshot_expose("v", "s")
    with pytest.raises(NotFound):
        await engine.api.snapshot_unexpose("v", "s", writable=True)
    assert (await engine.api.snapshot_unexpose("v", "s")).target is None
    with pytest.raises(NotFound):
        await engine.api.snapshot_unexpose("v", "s")
    with pytest.raises(InvalidArgument):
        await engine.api.snapshot_expose("v", "s", writable=True, expires_at=1.0)


async def test_a_view_in_a_family_without_its_key_keeps_no_other_from_expiring(tmp_path: Path, clock):
    pool, key = tmp_path / "pool", tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(b"k" * 32)
    async with opened(pool, clock=clock) as engine:
        await engine.api.volume_create("secret", MIB, key_source=f"file:{key}")
        await engine.api.volume_create("v", MIB)
        for volume in ("secret", "v"):
            await engine.api.snapshot_create(volume, "s")
            await engine.api.snapshot_expose(volume, "s", writable=True, expires_at=clock.wall + HOUR)
    hidden = key.rename(tmp_path / "elsewhere")
    async with opened(pool, clock=clock) as engine:
        clock.passes(2 * HOUR)
        await engine.api._views.expire()
        assert engine.pool.views() == []
        assert [target.name for target in await engine.api.target_list()] == [f"{PREFIX}:secret.view.s"]
    hidden.rename(key)
    async with opened(pool, clock=clock) as engine:
        assert [view.name for view in engine.pool.views()] == ["secret@s"]
        clock.passes(2 * HOUR)
        await engine.api.upkeep.tick()
        assert engine.pool.views() == []


async def test_a_view_that_could_not_be_discarded_is_at_the_next_turn_and_the_others_at_once(
    engine, clock, monkeypatch
):
    for name in ("s", "t"):
        await engine.api.snapshot_create("v", name)
        await engine.api.snapshot_expose("v", name, writable=True, expires_at=clock.wall + HOUR)
    real = engine.pool.delete_volume
    refused = []

    async def delete_volume(volume):
        if not refused:
            refused.append(volume.name)
            raise MediumError("not now")
        await real(volume)

    monkeypatch.setattr(engine.pool, "delete_volume", delete_volume)
    clock.passes(2 * HOUR)
    await engine.api.upkeep.tick()
    assert [view.name for view in engine.pool.views()] == refused
    await engine.api.upkeep.tick()
    assert engine.pool.views() == []


async def test_a_deletion_with_a_view_gives_back_what_was_said(engine):
    await write(engine, "v", 0, b"x" * 65536)
    await engine.api.snapshot_create("v", "s")
    await engine.api.snapshot_expose("v", "s", writable=True)
    said = await engine.api.volume_delete_preview("v", force=True)
    assert said.removed_file_bytes == (await engine.api.volume_space("v")).file_bytes
    await engine.api.volume_delete("v", force=True)
    assert list((engine.pool.path / "volumes").glob("*.tvol")) == []


async def test_a_snapshot_that_goes_while_it_is_looked_at_is_not_found(engine):
    for number in range(8):
        await engine.api.snapshot_create("v", f"s{number}")
        looks = (engine.api.snapshot_show("v", f"s{number}") for _ in range(4))
        *found, _ = await asyncio.gather(*looks, engine.api.snapshot_delete("v", f"s{number}"), return_exceptions=True)
        assert {type(each) for each in found} <= {SnapshotInfo, NotFound}, found


async def test_pruning_goes_on_when_a_snapshot_goes_meanwhile(engine):
    for number in range(130):
        await engine.api.snapshot_create("v", f"s{number}")
    info, _ = await asyncio.gather(
        engine.api.snapshot_prune("v", keep_last=1, manual=True, dry_run=True),
        engine.api.snapshot_delete("v", "s128"),
    )
    assert [each.name for each in info.snapshots if each.stays] == ["s129"]


async def test_what_a_family_does_not_let_go_at_the_start_keeps_no_pool_closed(tmp_path: Path, monkeypatch):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        for name in ("v", "w"):
            await engine.api.volume_create(name, 4 * MIB)
        for number in range(2):
            await write(engine, "v", number * 2 * MIB, b"x" * 65536)
        assert (await engine.api.snapshot_diff("v", None, None, limit=1)).point is not None

    async def refuses(*_args):
        raise MediumError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(TvolFile, "delete_snapshot", refuses)
        async with opened(pool) as engine:
            assert [info.state for info in await engine.api.volume_list()] == ["ok", "ok"]
    async with opened(pool) as engine:
        assert engine.pool.volume("v").head.store.snapshots() == []


async def test_pruning_goes_on_when_one_that_it_deletes_goes_meanwhile(engine):
    for number in range(6):
        await engine.api.snapshot_create("v", f"s{number}")
    deletions = [engine.api.snapshot_delete("v", f"s{number}") for number in (1, 2, 3)]
    info, *_ = await asyncio.gather(engine.api.snapshot_prune("v", keep_last=1, manual=True), *deletions)
    assert [each.name for each in info.snapshots if each.stays] == ["s5"]
    assert await names(engine) == ["s5"]


async def test_the_schedule_of_a_volume_without_its_key_is_listed_with_the_reason(tmp_path: Path, clock):
    pool, key = tmp_path / "pool", tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(b"k" * 32)
    async with opened(pool, clock=clock) as engine:
        await engine.api.volume_create("secret", MIB, key_source=f"file:{key}")
        await engine.api.schedule_set("secret", 3600, keep_last=2)
    key.unlink()
    async with opened(pool, clock=clock) as engine:
        clock.passes(2 * HOUR)
        await engine.api.upkeep.tick()
        (info,) = await engine.api.schedule_list()
        assert (info.volume, info.keep_last) == ("secret", 2)
        assert info.problem is not None
        assert info.problem.startswith("not served: encrypted, and no key")
