"""FailedCopyStopsHostIO: what hosts see when a synchronous mirror loses its target, and how it ends."""

from __future__ import annotations

import os

import pytest

from engine.api import MirrorTerms
from engine.errors import InvalidArgument, WritesHeld
from engine.units import MIB
from iscsi.scsi.sense import Asc, Effect, SenseKey, sense_for
from tests.support.engine import opened
from tests.unit.daemon.test_disk_targets import SIZE, a_volume, an_array, attach, content, is_in

STOPS = {"failed_copy_stops_host_io": True}


async def refused(engine) -> None:
    """Every way to write, and none to read."""
    volume = engine.pool.volume("v")
    data = memoryview(os.urandom(4096))
    assert not volume.try_write(0, data)
    for work in (
        volume.write(0, data),
        volume.write(0, data, fua=True),
        volume.write_atomic(0, data),
        volume.write_zeroes(0, 4096),
        volume.discard(0, 65536),
        volume.flush(),
    ):
        with pytest.raises(WritesHeld) as error:
            await work
        sense = sense_for(error.value, Effect.WRITE)
        assert (sense.key, sense.asc) == (SenseKey.NOT_READY, Asc.NOT_READY_OPERATION_IN_PROGRESS)
    assert len(await content(engine)) == SIZE


async def test_hosts_stop_until_it_is_synchronized_again(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array, **STOPS)
        volume = engine.pool.volume("v")
        await volume.write(0, memoryview(b"acknowledged!!!!" * 32))
        await array.stop()
        with pytest.raises(WritesHeld):
            await volume.write(MIB, memoryview(b"never acknowledged" * 256)[:4096])
        info = await is_in(engine, "Broken")
        assert (info.failed_copy_stops_host_io, info.host_io_stopped) == (True, True)
        await refused(engine)
        assert array.device.data[:512] == b"acknowledged!!!!" * 32
        await array.start()
        assert not (await is_in(engine, "Synchronized")).host_io_stopped
        await volume.write(MIB, memoryview(b"acknowledged now" * 256))
        await volume.flush()
        assert array.device.data[:SIZE] == await content(engine)


async def test_a_restart_lets_nobody_write_before_it_is_synchronized(tmp_path):
    async with an_array() as array:
        async with opened(tmp_path / "pool") as engine:
            await a_volume(engine)
            await attach(engine, array, **STOPS)
        await array.stop()
        for _ in range(2):
            async with opened(tmp_path / "pool") as engine:
                await refused(engine)
                await is_in(engine, "Broken")
                await refused(engine)
        await array.start()
        async with opened(tmp_path / "pool") as engine:
            await is_in(engine, "Synchronized")
            await engine.pool.volume("v").write(0, memoryview(bytes(512)))


@pytest.mark.parametrize("verb", ["pause", "fracture", "detach"])
async def test_the_administrator_may_go_on_without(tmp_path, verb):
    async with an_array() as array:
        async with opened(tmp_path / "pool") as engine:
            await a_volume(engine)
            await attach(engine, array, **STOPS)
            await array.stop()
            with pytest.raises(WritesHeld):
                await engine.pool.volume("v").write(0, memoryview(bytes(512)))
            await is_in(engine, "Broken")
            await getattr(engine.api, f"replica_{verb}")("r")
            await engine.pool.volume("v").write(0, memoryview(b"alone!!!" * 64))
        async with opened(tmp_path / "pool") as engine:
            await engine.pool.volume("v").write(512, memoryview(b"alone!!!" * 64))


async def test_a_first_copy_that_fails_stops_nobody(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        array.device.fast = False
        array.device.errors["write"] = WritesHeld("the array takes nothing")
        await engine.api.replica_attach("v", array.url(), MirrorTerms(**STOPS), name="r")
        await engine.pool.volume("v").write(0, memoryview(bytes(512)))
        assert not (await is_in(engine, "Broken")).host_io_stopped
        await engine.pool.volume("v").write(0, memoryview(bytes(512)))


async def test_two_mirrors_of_one_volume_each_stop_it(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array, **STOPS)
        volume = engine.pool.volume("v")
        volume.hold_writes("another", "for a reason")
        with pytest.raises(WritesHeld, match="for a reason"):
            await volume.write(0, memoryview(bytes(512)))
        volume.let_writes_go("another")
        await volume.write(0, memoryview(bytes(512)))


@pytest.mark.parametrize("mode", ["async", "adaptive"])
async def test_only_synchronous_mirrors_can(tmp_path, mode):
    async with opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        with pytest.raises(InvalidArgument):
            await engine.api.replica_create("v", "r", MirrorTerms(mode, **STOPS))
        await engine.api.replica_create("v", "r", MirrorTerms(**STOPS))
        assert (await is_in(engine, "Synchronized")).failed_copy_stops_host_io
