"""In which state targets offer a disk: set, kept across a restart, bounded by what a replica may be."""

import asyncio
from pathlib import Path

import pytest

from engine.access_state import SETTABLE, AccessState
from engine.errors import InUse, InvalidArgument, InvalidState, NotFound
from tests.support.engine import PREFIX, Engine, opened

MIB = 1 << 20
STANDBY, UNAVAILABLE, OPTIMIZED = AccessState.STANDBY, AccessState.UNAVAILABLE, AccessState.ACTIVE_OPTIMIZED


async def a_disk_by_two_targets(engine: Engine) -> str:
    """Targets v and other show the volume v; its id."""
    info = await engine.api.volume_create("v", 4 * MIB, expose=True)
    await engine.api.target_create("other")
    await engine.api.target_lun_add("other", "v", lun=3)
    return info.volume_id


async def a_replica(engine: Engine) -> tuple[str, str]:
    """Volume v, shown by target v, with its replica r; their ids."""
    source = await engine.api.volume_create("v", 4 * MIB, expose=True)
    job = await engine.api.replica_create("v", "r")
    while job.state_number == 4:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    await engine.api.target_create("standby")
    return source.volume_id, (await engine.api.volume_show("r")).volume_id


@pytest.mark.parametrize("state", SETTABLE)
async def test_a_state_is_set_and_survives_a_restart(tmp_path: Path, state: AccessState):
    async with opened(tmp_path / "pool") as engine:
        volume_id = await a_disk_by_two_targets(engine)
        numbers = [(await engine.api.target_show(name)).port_group for name in ("v", "other")]
        assert len(set(numbers)) == 2
        info = await engine.api.target_access_state("other", state.label)
        assert [(lun.lun, lun.access, lun.standby) for lun in info.luns] == [(3, state.label, False)]
        assert engine.exports.states[volume_id, numbers[1]] is state
        assert engine.exports.states[volume_id, numbers[0]] is OPTIMIZED
    async with opened(tmp_path / "pool") as engine:
        assert [(await engine.api.target_show(name)).port_group for name in ("v", "other")] == numbers
        assert engine.exports.states == {(volume_id, numbers[0]): OPTIMIZED, (volume_id, numbers[1]): state}


async def test_what_is_no_state_or_no_lun_is_refused(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await a_disk_by_two_targets(engine)
        for state in ("offline", "transitioning", "", "Standby"):
            with pytest.raises(InvalidArgument):
                await engine.api.target_access_state("v", state)
        with pytest.raises(NotFound):
            await engine.api.target_access_state("v", "standby", lun=1)
        with pytest.raises(NotFound):
            await engine.api.target_access_state("nobody", "standby")


async def test_one_lun_or_all_and_a_new_start_when_shown_again(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await a_disk_by_two_targets(engine)
        await engine.api.volume_create("w", MIB)
        await engine.api.target_lun_add("other", "w")
        info = await engine.api.target_access_state("other", "standby", lun=3)
        assert [lun.access for lun in info.luns] == ["active-optimized", "standby"]
        info = await engine.api.target_access_state("other", "unavailable")
        assert [lun.access for lun in info.luns] == ["unavailable", "unavailable"]
        await engine.api.target_lun_remove("other", 3)
        info = await engine.api.target_lun_add("other", "v", lun=3)
        assert [lun.access for lun in info.luns] == ["unavailable", "active-optimized"]
        await engine.api.target_delete("other")
        assert await engine.pool.catalog.access_states() == {}


async def test_activating_one_target_makes_the_others_standby_in_one_step(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        volume_id = await a_disk_by_two_targets(engine)
        await engine.api.target_create("third")
        await engine.api.target_lun_add("third", "v")
        await engine.api.target_access_state("third", "unavailable")
        numbers = [(await engine.api.target_show(name)).port_group for name in ("v", "other", "third")]
        engine.exports.steps.clear()
        info = await engine.api.target_activate("other")
        assert [lun.access for lun in info.luns] == ["active-optimized"]
        states = dict(zip(numbers, (STANDBY, OPTIMIZED, UNAVAILABLE), strict=True))
        assert engine.exports.steps == [(volume_id, states)]
        await engine.api.target_activate("v", lun=0)
        assert engine.exports.states[volume_id, numbers[1]] is STANDBY
        with pytest.raises(NotFound):
            await engine.api.target_activate("v", lun=1)


async def test_port_group_numbers_are_given_anew_when_free(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        numbers = [(await engine.api.target_create(name)).port_group for name in ("a", "b", "c")]
        await engine.api.target_delete("b")
        assert (await engine.api.target_create("d")).port_group == numbers[1]


async def test_a_replica_is_a_standby_path_under_its_sources_identity(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        source_id, _ = await a_replica(engine)
        info = await engine.api.target_lun_add("standby", "r", standby=True)
        (lun,) = info.luns
        serial = (await engine.api.volume_show("v")).serial
        assert (lun.volume, lun.serial, lun.access, lun.standby) == ("r", serial, "standby", True)
        assert engine.exports.states[source_id, info.port_group] is STANDBY
        for state in ("active-optimized", "active-non-optimized"):
            with pytest.raises(InvalidState):
                await engine.api.target_access_state("standby", state)
        with pytest.raises(InvalidState):
            await engine.api.target_activate("standby")
        await engine.api.target_access_state("standby", "unavailable")
        await engine.api.target_access_state("standby", "standby")
        with pytest.raises(InUse, match="target lun remove"):
            await engine.api.replica_detach("r")
        assert (await engine.api.volume_show("r")).target is None
        engine.exports.log_in(f"{PREFIX}:standby")  # somebody has the path; nobody uses the replica by it
        await engine.api.replica_fracture("r")
        job = await engine.api.replica_resync("r")
        while job.state_number == 4:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        engine.exports.logged_in.clear()
    async with opened(tmp_path / "pool") as engine:
        assert engine.exports.states[source_id, info.port_group] is STANDBY
        await engine.api.target_lun_remove("standby", 0)
        await engine.api.replica_detach("r")


async def test_a_standby_path_is_a_replicas_and_by_another_target(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await a_replica(engine)
        await engine.api.volume_create("w", MIB)
        with pytest.raises(InvalidState, match="no replica"):
            await engine.api.target_lun_add("standby", "w", standby=True)
        await engine.api.snapshot_create("r", "s")
        with pytest.raises(InvalidArgument):
            await engine.api.target_lun_add("standby", "r", snapshot="s", standby=True)
        with pytest.raises(InvalidArgument, match="another target"):
            await engine.api.target_lun_add("v", "r", standby=True)
        await engine.api.target_lun_add("standby", "r", standby=True)
        with pytest.raises(InvalidArgument, match="another target"):
            await engine.api.target_lun_add("standby", "v")


async def test_the_standby_path_is_there_while_the_source_is_damaged(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        source_id, replica_id = await a_replica(engine)
        await engine.api.target_lun_add("standby", "r", standby=True)
        path = Path((await engine.api.volume_show("v")).file)
    await asyncio.to_thread(path.write_bytes, b"no volume file" * 1000)
    async with opened(tmp_path / "pool") as engine:
        shown = engine.exports.shown[f"{PREFIX}:standby"][0]
        assert shown.volume_id == replica_id
        (lun,) = (await engine.api.target_show("standby")).luns
        assert (lun.access, lun.state) == ("standby", "ok")
        assert [key[0] for key in engine.exports.states] == [source_id]
        with pytest.raises(InvalidState):
            await engine.api.target_access_state("standby", "active-optimized")
        await engine.api.volume_delete("v", force=True)
        assert (await engine.api.target_show("standby")).luns == []
        assert source_id in engine.exports.forgotten


async def test_a_device_that_is_withheld_is_unavailable_until_released(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        volume_id = await a_disk_by_two_targets(engine)
        await engine.api.target_access_state("other", "standby")
        await engine.exposure.access.withhold(volume_id, "its replica may have been promoted")
        assert set(engine.exports.states.values()) == {UNAVAILABLE}
        status = await engine.api.status()
        assert (status.health, "may have been promoted" in status.reasons[0]) == ("degraded", True)
        with pytest.raises(InvalidState):
            await engine.exports.keeper(volume_id, {1: OPTIMIZED}, lambda: asyncio.sleep(0))
        info = await engine.api.target_access_state("v", "active-non-optimized")
        assert [lun.access for lun in info.luns] == ["unavailable"]
        assert set(engine.exports.states.values()) == {UNAVAILABLE}
        await engine.exposure.access.release(volume_id)
        assert sorted(state.label for state in engine.exports.states.values()) == ["active-non-optimized", "standby"]


async def test_what_an_initiator_asks_for_is_durable_before_it_takes_effect(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        volume_id = await a_disk_by_two_targets(engine)
        number = (await engine.api.target_show("other")).port_group
        kept = {}

        async def apply() -> None:
            kept.update(await engine.pool.catalog.access_states())

        await engine.exports.keeper(volume_id, {number: STANDBY}, apply)
        assert kept == {(f"{PREFIX}:other", volume_id): STANDBY}
        assert [lun.access for lun in (await engine.api.target_show("other")).luns] == ["standby"]


async def test_a_state_that_is_set_while_its_lun_goes_is_not_that_of_the_next_one(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB, expose=True)
        save, may_save = engine.pool.catalog.set_access_states, asyncio.Event()

        async def slow(states):
            await may_save.wait()
            await save(states)

        remove, gone = engine.exports.remove_lun, asyncio.Event()

        async def remove_lun(target, lun):
            await remove(target, lun)
            gone.set()

        engine.pool.catalog.set_access_states, engine.exports.remove_lun = slow, remove_lun
        setting = asyncio.create_task(engine.api.target_access_state("v", "standby"))
        late = asyncio.create_task(engine.api.target_access_state("v", "unavailable"))
        removing = asyncio.create_task(engine.api.target_lun_remove("v", 0, force=True))
        await gone.wait()
        may_save.set()
        await asyncio.gather(setting, late, removing)
        assert await engine.pool.catalog.access_states() == {}
        (lun,) = (await engine.api.target_lun_add("v", "v")).luns
        assert lun.access == "active-optimized"
