"""What initiators see of the engine's changes: a real target and initiator over loopback, in one process."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.exposure import Exposure
from engine.files import real_env
from engine.local_api import LocalApi
from engine.pool import Pool
from engine.replicas import Replicas
from engine.tokens import Tokens
from engine.volume import Identity
from iscsi.initiator.disk import IscsiDisk, Outcome, connect, discover
from iscsi.initiator.errors import CommandFailed, ConnectionLost, LoginRefused
from iscsi.scsi.sense import Asc, SenseKey
from iscsi.server import IscsiServer
from iscsi.target import TargetRegistry
from twinvol.wiring import IscsiExports

MIB = 1 << 20
HOST = "iqn.2026-11.org.example:host"


class Array:
    """A pool served over iSCSI."""

    def __init__(self, pool: Pool, api: LocalApi, portals: list[tuple[str, int]], registry) -> None:
        self.pool = pool
        self.api = api
        self.portals = portals
        self.portal = portals[0]
        self.registry = registry

    async def disk(self, target: str, *, lun: int = 0, initiator: str = HOST, portal: int = 0) -> IscsiDisk:
        return await connect(self.portals[portal], target, lun, initiator_name=initiator)


@asynccontextmanager
async def serving(path: Path, portals=(("127.0.0.1", 1),)):
    env = real_env(2)
    pool = await Pool.open(path, env)
    registry = TargetRegistry()
    server = IscsiServer(registry)
    addresses = [(f"{host}:3260", group) for host, group in portals]
    exports = IscsiExports(
        registry, server, addresses, pool.catalog.save_reservations, Tokens(env.clock), space=pool.space
    )
    exposure = Exposure(pool, exports, "iqn.2026-11.org.twinvol")
    replicas = Replicas(pool, software="twinvol test")
    await replicas.restore()
    await exposure.restore()
    bound = await server.start([(host, 0) for host, _ in portals], [group for _, group in portals])
    try:
        yield Array(pool, LocalApi(pool, exposure, replicas, version="test"), bound, registry)
    finally:
        await server.stop(graceful=False)
        await exports.close()
        await pool.jobs.close()
        await replicas.close()
        await pool.close()
        await env.close()
        env.workers.close()


@pytest.fixture
async def array(tmp_path: Path):
    async with serving(tmp_path / "pool") as array:
        yield array


async def test_an_exposed_volume_is_a_disk_with_its_identity(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True, physical_block_bytes=512)
    assert [target.name for target in await discover(array.portal)] == [info.target]
    async with await array.disk(info.target) as disk:
        assert (disk.size_bytes, disk.physical_block_size) == (4 * MIB, 512)
        assert info.serial.encode() in await disk.vpd_page(0x80)
        assert bytes.fromhex(info.naa) in await disk.vpd_page(0x83)
        await disk.write(4096, b"x" * 8192)
        await disk.flush()
        (session,) = await array.api.session_list()
        assert (session.target, session.initiator) == (info.target, HOST)
    async with await array.disk(info.target) as disk:
        assert await disk.read(4096, 8192) == b"x" * 8192


async def test_an_exposed_snapshot_is_another_disk_and_write_protected(array):
    volume = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(volume.target) as disk:
        await disk.write(0, b"1" * 4096)
        snapshot = await array.api.snapshot_create("v", "s", expose=True)
        await disk.write(0, b"2" * 4096)
        assert Identity.of(snapshot.guid).serial == snapshot.serial != volume.serial
        async with await array.disk(snapshot.target) as frozen:
            assert await frozen.read(0, 4096) == b"1" * 4096
            with pytest.raises(CommandFailed) as refused:
                await frozen.write(0, b"3" * 4096)
            assert refused.value.sense_key == SenseKey.DATA_PROTECT
        assert await disk.read(0, 4096) == b"2" * 4096


async def test_a_resize_under_a_session_is_seen(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await array.api.volume_resize("v", 8 * MIB)
        await disk.refresh()
        assert disk.size_bytes == 8 * MIB
        await disk.write(8 * MIB - 4096, b"x" * 4096)


async def test_a_forced_rollback_under_a_session_shows_the_old_content(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await disk.write(0, b"1" * 4096)
        await array.api.snapshot_create("v", "s")
        await disk.write(0, b"2" * 4096)
        await array.api.snapshot_rollback("v", "s", force=True)
        assert await disk.read(0, 4096) == b"1" * 4096
        await disk.write(0, b"3" * 4096)
        assert await disk.read(0, 4096) == b"3" * 4096


async def test_a_mirror_under_a_session_takes_its_writes(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await disk.write(0, b"1" * MIB)
        job = await array.api.replica_create("v", "r")
        while job.state_number == 4:
            job = await array.api.job_wait(job.job, after_version=job.version)
        assert job.state == "Completed"
        await disk.write(MIB, b"2" * 4096)
        await disk.discard(0, 65536)
        await disk.flush()
        content = bytearray(4 * MIB)
        await array.pool.volume("r").read(0, memoryview(content))
        assert bytes(content) == await disk.read(0, 4 * MIB)


async def test_a_volume_that_becomes_a_target_protects_itself_from_its_sessions_to_come(array):
    await array.api.volume_create("v", 4 * MIB)
    other = await array.api.volume_create("other", 4 * MIB, expose=True)
    job = await array.api.replica_attach("v", "other")
    while job.state_number == 4:
        job = await array.api.job_wait(job.job, after_version=job.version)
    async with await array.disk(other.target) as disk:
        with pytest.raises(CommandFailed) as refused:
            await disk.write(0, b"3" * 4096)
        assert refused.value.sense_key == SenseKey.DATA_PROTECT
        await array.api.replica_fracture("other")
        await disk.write(0, b"3" * 4096)


async def test_removing_a_target_ends_its_sessions_and_lets_the_volume_go(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    disk = await array.disk(info.target)
    writing = asyncio.create_task(disk.write(0, b"x" * 4 * MIB))
    await asyncio.sleep(0)
    await array.api.volume_delete("v", force=True)
    await asyncio.wait([writing])
    assert writing.exception() is None or isinstance(writing.exception(), ConnectionLost)
    with pytest.raises(ConnectionLost):
        await disk.read(0, 4096)
    await disk.close()
    with pytest.raises(LoginRefused):
        await array.disk(info.target)
    assert await array.api.session_list() == []


async def test_the_access_list_decides_who_logs_in_and_who_stays(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    disk = await array.disk(info.target)
    await array.api.target_access(info.target, add=["iqn.2026-11.org.example:other"], remove=[])
    with pytest.raises(ConnectionLost):
        await disk.read(0, 4096)
    await disk.close()
    with pytest.raises(LoginRefused):
        await array.disk(info.target)
    assert await discover(array.portal, initiator_name=HOST) == []
    async with await array.disk(info.target, initiator="iqn.2026-11.org.example:other") as admitted:
        await admitted.read(0, 4096)


async def test_luns_come_and_go_under_a_session(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    await array.api.volume_create("w", 8 * MIB)
    async with await array.disk(info.target) as disk:
        assert await disk.report_luns() == [0]
        await array.api.target_lun_add(info.target, "w", lun=5)
        assert await disk.report_luns() == [0, 5]
        async with await array.disk(info.target, lun=5) as other:
            assert other.size_bytes == 8 * MIB
            await array.api.target_lun_remove(info.target, 5, force=True)
            with pytest.raises(CommandFailed):
                await other.read(0, 4096)
        assert await disk.report_luns() == [0]


async def test_reads_and_writes_go_on_while_the_pool_is_managed(array):
    info = await array.api.volume_create("v", 16 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        going = asyncio.Event()

        async def load():
            number = 0
            while not going.is_set():
                data = number.to_bytes(8, "big") * 512
                await disk.write((number * 4096) % (16 * MIB), data)
                assert await disk.read((number * 4096) % (16 * MIB), 4096) == data
                number += 1
            return number

        loading = asyncio.create_task(load())
        for number in range(10):
            await array.api.snapshot_create("v", f"s{number}", expose=number % 2 == 0)
            await array.api.clone_create("v", f"s{number}", f"c{number}")
        for number in range(10):
            await array.api.volume_delete(f"c{number}")
            await array.api.snapshot_delete("v", f"s{number}")
        going.set()
        assert await loading > 0
    assert (await array.api.status()).health == "ok"


OTHER = "iqn.2026-11.org.example:other"


async def test_a_masked_lun_is_not_there_for_others(array):
    await array.api.volume_create("v", 4 * MIB)
    target = (await array.api.target_create("t")).name
    await array.api.target_lun_add("t", "v", initiators=[HOST])
    async with await array.disk(target) as disk:
        await disk.write(0, b"x" * 4096)
    with pytest.raises(CommandFailed) as refused:
        await array.disk(target, initiator=OTHER)
    assert (refused.value.sense_key, refused.value.asc) == (SenseKey.ILLEGAL_REQUEST, 0x25)
    await array.api.target_lun_mask("t", 0, initiators=[HOST, OTHER])
    async with await array.disk(target, initiator=OTHER) as disk:
        assert await disk.read(0, 4096) == b"x" * 4096
        await array.api.target_lun_mask("t", 0, initiators=[HOST])
        with pytest.raises(CommandFailed) as refused:
            await disk.read(0, 4096)
        assert refused.value.asc == 0x25


async def test_a_target_is_reached_and_told_through_its_portal_groups_only(tmp_path: Path):
    async with serving(tmp_path / "pool", portals=(("127.0.0.1", 1), ("::1", 2))) as array:
        info = await array.api.volume_create("v", 4 * MIB, expose=True)
        (_, first), (_, second) = array.portals
        (found,) = await discover(array.portals[0])
        assert set(found.addresses) == {f"127.0.0.1:{first},1", f"[::1]:{second},2"}
        async with await array.disk(info.target) as one, await array.disk(info.target, portal=1) as two:
            await one.write(0, b"x" * 4096)
            assert await two.read(0, 4096) == b"x" * 4096
            assert f"{info.target},t,0x0002".encode() in await two.vpd_page(0x83)
            assert sorted(session.portal_group for session in await array.api.session_list()) == [1, 2]
            await array.api.target_bind(info.target, portal_groups=[2])
            assert await two.read(0, 4096) == b"x" * 4096
            with pytest.raises(ConnectionLost):
                await one.read(0, 4096)
        with pytest.raises(LoginRefused) as refused:
            await array.disk(info.target)
        assert refused.value.status == 0x0203
        assert await discover(array.portals[0]) == []
        assert len(await discover(array.portals[1])) == 1


# --- persistent reservations


async def registered_keys(disk: IscsiDisk) -> bytes:
    outcome = await disk.execute(bytes.fromhex("5e 00 00000000 00 0400 00 000000000000"), data_in_length=1024)
    return outcome.data[8:]


async def register(disk: IscsiDisk, key: int, *, aptpl: bool = False) -> None:
    data = bytes(8) + key.to_bytes(8, "big") + bytes((0, 0, 0, 0, aptpl, 0, 0, 0))
    outcome = await disk.execute(bytes.fromhex("5f 00 00 0000 00000018 00 000000000000"), data_out=data)
    assert outcome.status == 0


async def test_registrations_stay_with_the_volume_whatever_shows_it(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    await array.api.target_create("other")
    async with await array.disk(info.target) as disk:
        await register(disk, 7)
        snapshot = await array.api.snapshot_create("v", "s", expose=True)
        clone = await array.api.clone_create("v", "s", "c", expose=True)
    for name in (snapshot.target, clone.target):
        async with await array.disk(name) as disk:
            assert await registered_keys(disk) == b""
    await array.api.target_delete(info.target)
    other = await array.api.target_lun_add("other", "v")
    async with await array.disk(other.name) as disk:
        assert await registered_keys(disk) == (7).to_bytes(8, "big")


async def test_what_was_registered_with_aptpl_is_there_after_a_restart_until_the_volume_is_deleted(tmp_path):
    async with serving(tmp_path / "pool") as array:
        info = await array.api.volume_create("v", 4 * MIB, expose=True)
        snapshot = await array.api.snapshot_create("v", "s", expose=True)
        for name in (info.target, snapshot.target):
            async with await array.disk(name) as disk:
                await register(disk, 7, aptpl=True)
    async with serving(tmp_path / "pool") as array:
        for name in (info.target, snapshot.target):
            async with await array.disk(name) as disk:
                assert await registered_keys(disk) == (7).to_bytes(8, "big")
        assert len(await array.pool.catalog.reservations()) == 2
        await array.api.snapshot_delete("v", "s")
        assert list(await array.pool.catalog.reservations()) == [info.volume_id]
        await array.api.volume_delete("v")
        assert await array.pool.catalog.reservations() == {}


async def test_a_disk_whose_reservations_cannot_be_read_is_not_served(tmp_path):
    async with serving(tmp_path / "pool") as array:
        info = await array.api.volume_create("v", 4 * MIB, expose=True)
        await array.pool.catalog.save_reservations(info.volume_id, "{")
    async with serving(tmp_path / "pool") as array:
        status = await array.api.status()
        assert status.health == "degraded"
        assert "persistent reservations" in status.reasons[0]
        with pytest.raises(CommandFailed):
            await array.disk(info.target)


# --- asymmetric access


async def set_group(disk: IscsiDisk, number: int, state: int) -> Outcome:
    """SET TARGET PORT GROUPS for one group; unit attentions are for others."""
    data = bytes((0, 0, 0, 0, state, 0)) + number.to_bytes(2, "big")
    return await disk.execute(bytes.fromhex("a40a 00000000 00000008 0000 00000000"), data_out=data)


async def groups(disk: IscsiDisk) -> list[tuple[int, int]]:
    """Number and state of each target port group of the disk, all of which have one port."""
    outcome = await disk.execute(bytes.fromhex("a30a 00000000 00000100 0000 00000000"), data_in_length=256)
    assert outcome.status == 0
    return [
        (int.from_bytes(outcome.data[at + 2 : at + 4], "big"), outcome.data[at])
        for at in range(4, len(outcome.data), 12)
    ]


async def test_one_disk_by_two_targets_with_states_that_initiators_may_change(tmp_path):
    async with serving(tmp_path / "pool") as array:
        info = await array.api.volume_create("v", 4 * MIB, expose=True)
        other = await array.api.target_create("other")
        await array.api.target_lun_add("other", "v")
        await array.api.target_access_state("other", "standby")
        async with await array.disk(info.target) as one, await array.disk(other.name) as two:
            assert await one.vpd_page(0x80) == await two.vpd_page(0x80)
            assert await groups(one) == await groups(two) == [(1, 0), (2, 2)]
            await one.write(0, b"x" * 4096)
            with pytest.raises(CommandFailed) as refused:
                await two.read(0, 4096)
            assert (refused.value.sense_key, refused.value.asc, refused.value.ascq) == (SenseKey.NOT_READY, 4, 0x0B)
            assert (await set_group(two, 2, 0)).status == 0
            assert await two.read(0, 4096) == b"x" * 4096
            assert [lun.access for lun in (await array.api.target_show("other")).luns] == ["active-optimized"]
            assert (await set_group(two, 3, 0)).status == 2
            await array.api.target_activate("v")
            with pytest.raises(CommandFailed):
                await two.write(0, b"y" * 4096)
            await one.write(0, b"z" * 4096)
            await array.api.target_lun_remove("other", 0, force=True)
            assert await groups(one) == [(1, 0)]
    async with serving(tmp_path / "pool") as array, await array.disk(info.target) as one:
        assert await one.read(0, 4096) == b"z" * 4096


async def test_a_replicas_path_has_the_sources_identity_and_reservations_and_no_data(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    job = await array.api.replica_create("v", "r")
    while job.state_number == 4:
        job = await array.api.job_wait(job.job, after_version=job.version)
    standby = await array.api.target_create("far")
    await array.api.target_lun_add("far", "r", standby=True)
    async with await array.disk(info.target) as one, await array.disk(standby.name) as two:
        assert await two.vpd_page(0x80) == await one.vpd_page(0x80)
        assert bytes.fromhex(info.naa) in await two.vpd_page(0x83)
        await register(one, 7)
        assert await registered_keys(two) == (7).to_bytes(8, "big")
        outcome = await set_group(two, standby.port_group, 0)
        assert (outcome.status, outcome.sense[2:14:10]) == (2, bytes((SenseKey.ILLEGAL_REQUEST, 0x26)))
        for attempt in (two.read(0, 4096), two.write(0, bytes(4096))):
            with pytest.raises(CommandFailed) as refused:
                await attempt
            assert (refused.value.sense_key, refused.value.asc, refused.value.ascq) == (SenseKey.NOT_READY, 4, 0x0B)


async def test_targets_go_while_initiators_change_states(array):
    """Neither waits for the other for ever."""
    info = await array.api.volume_create("v", 4 * MIB, expose=True)

    async def change(disk: IscsiDisk, begun: asyncio.Event) -> None:
        for number in range(1000):
            await set_group(disk, 1, number % 2)
            begun.set()

    for _ in range(5):
        await array.api.target_create("other")
        await array.api.target_lun_add("other", "v")
        disk = await array.disk("iqn.2026-11.org.twinvol:other")
        begun = asyncio.Event()
        changing = asyncio.create_task(change(disk, begun))
        await begun.wait()
        await array.api.target_delete("other", force=True)
        with pytest.raises(ConnectionLost):
            await changing
        await disk.close()
        await array.api.target_access_state("v", "active-optimized")
    async with await array.disk(info.target) as disk:
        await disk.read(0, 4096)


async def test_initiators_are_warned_before_the_pool_is_full(array):
    info = await array.api.volume_create("v", 16 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await disk.write(0, b"x" * 4 * MIB)
        await disk.flush()
        (nexus,) = array.registry.find(info.target).luns[0].nexuses
        await array.api.pool_limit(quota_bytes=64 * MIB, reserve_bytes=0, warn_percent=1)
        assert nexus.unit_attentions == [Asc.MODE_PARAMETERS_CHANGED, Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED]
        assert nexus.fast_device is None
        assert await disk.read(0, 512) == b"x" * 512
        await array.api.pool_limit(quota_bytes=64 * MIB, reserve_bytes=0, warn_percent=100)
        assert nexus.unit_attentions == [Asc.MODE_PARAMETERS_CHANGED], "there is space again: nobody is warned"
