"""Sanitizing a volume of a pool: what refuses it, what it leaves in the volume's file, and what a restart does."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import InvalidState, MediumError
from engine.sanitize import SanitizeMethod, SanitizeOrder, Sanitizer, SanitizeState
from engine.units import MIB
from tests.support.engine import opened
from tests.support.memory_device import MemoryDevice
from tests.support.sanitize_host import SanitizeHost

SIZE = 4 * MIB
SECRET = b"the secret of the house "
BLOCK_ERASE = SanitizeOrder(SanitizeMethod.BLOCK_ERASE)


async def secret_volume(engine):
    await engine.api.volume_create("v", SIZE)
    volume = engine.pool.volume("v")
    await volume.write(0, memoryview((SECRET * (SIZE // len(SECRET) + 1))[:SIZE]))
    await volume.flush()
    return volume


def is_found(engine, volume) -> bool:
    return SECRET in engine.pool.file_of(volume).read_bytes()


@pytest.mark.parametrize(
    "order", [BLOCK_ERASE, SanitizeOrder(SanitizeMethod.OVERWRITE, b"\x55" * 512, passes=2, invert=True)]
)
async def test_nothing_of_it_is_left_in_the_file(tmp_path, monkeypatch, order):
    monkeypatch.setattr("engine.pool_volumes.SPREAD_S", 0.0)
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await volume.sanitizer.start(order)
        assert (await engine.api.volume_show("v")).state == "sanitizing"
        await volume.sanitizer.finished()
        assert volume.sanitizer.state is SanitizeState.NONE
        assert not is_found(engine, volume)
        assert (await engine.api.volume_show("v")).state == "ok"
        assert await engine.pool.catalog.sanitizations() == {}
        told = [event.text for event in await engine.pool.catalog.events(2)]
        assert told == [f"{order.method.value} begins", f"{order.method.value} is done"]


async def test_snapshots_and_clones_refuse_it_until_they_are_gone(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await engine.api.snapshot_create("v", "s")
        with pytest.raises(InvalidState, match="snapshot s"):
            await volume.sanitizer.start(BLOCK_ERASE)
        await engine.api.clone_create("v", "s", "c")
        with pytest.raises(InvalidState, match="shared with"):
            await volume.sanitizer.start(BLOCK_ERASE)
        with pytest.raises(InvalidState, match="shared with"):
            await engine.pool.volume("c").sanitizer.start(BLOCK_ERASE)
        await engine.api.volume_delete("c", force=True)
        await engine.api.snapshot_delete("v", "s")
        await volume.sanitizer.start(BLOCK_ERASE)
        await volume.sanitizer.finished()
        assert not is_found(engine, volume)


async def test_nothing_may_keep_the_data_meanwhile(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await volume.sanitizer.start(BLOCK_ERASE)
        with pytest.raises(InvalidState, match="sanitized"):
            await engine.api.snapshot_create("v", "s")
        with pytest.raises(InvalidState, match="sanitized"):
            await engine.api.volume_resize("v", 2 * SIZE)
        await volume.sanitizer.finished()
        await engine.api.snapshot_create("v", "s")


async def test_a_restart_begins_it_again(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await volume.sanitizer.start(SanitizeOrder(SanitizeMethod.OVERWRITE, b"\x55" * 512))
    async with opened(tmp_path / "pool") as engine:
        volume = engine.pool.volume("v")
        assert volume.sanitizer.state is SanitizeState.RUNNING
        await volume.sanitizer.finished()
        data = bytearray(SIZE)
        await volume.read(0, memoryview(data))
        assert data == b"\x55" * SIZE
        assert not is_found(engine, volume)


async def test_a_failure_outlives_a_restart(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        volume.set_read_only(True)
        await volume.sanitizer.start(BLOCK_ERASE)
        await volume.sanitizer.finished()
        assert volume.sanitizer.state is SanitizeState.FAILED
    async with opened(tmp_path / "pool") as engine:
        volume = engine.pool.volume("v")
        assert (await engine.api.volume_show("v")).state == "sanitize-failed"
        await volume.sanitizer.start(BLOCK_ERASE)
        await volume.sanitizer.finished()
        assert (await engine.api.volume_show("v")).state == "ok"


@pytest.mark.parametrize("record", ["", "[]", '{"method": "melting"}', '{"method": "overwrite", "pattern": "zz"}'])
async def test_a_record_that_cannot_be_read_counts_as_a_failure(tmp_path, record):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await engine.pool.catalog.put_sanitization(volume.volume_id, record)
    async with opened(tmp_path / "pool") as engine:
        assert (await engine.api.volume_show("v")).state == "sanitize-failed"
        sanitizer = engine.pool.volume("v").sanitizer
        assert sanitizer.may_give_up
        await sanitizer.give_up()
        assert (await engine.api.volume_show("v")).state == "ok"


async def test_deleting_the_volume_ends_it(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        volume = await secret_volume(engine)
        await volume.sanitizer.start(SanitizeOrder(SanitizeMethod.OVERWRITE, b"\x55" * 512))
        await engine.api.volume_delete("v", force=True)
        assert await engine.pool.catalog.sanitizations() == {}


def failing() -> tuple[Sanitizer, SanitizeHost]:
    host = SanitizeHost()
    host.error = MediumError("no purge")
    return Sanitizer(MemoryDevice(MIB), host, spread_s=0), host


GIVEN_UP = SanitizeOrder(SanitizeMethod.BLOCK_ERASE, unrestricted_exit=True)


async def test_giving_up_a_failure_does_not_hide_an_operation_that_begins_meanwhile():
    sanitizer, host = failing()
    await sanitizer.start(GIVEN_UP)
    await sanitizer.finished()
    assert sanitizer.state is SanitizeState.FAILED
    host.error, host.gate, host.recording = None, asyncio.Event(), asyncio.Event()
    giving_up = asyncio.create_task(sanitizer.give_up())
    starting = asyncio.create_task(sanitizer.start(BLOCK_ERASE))
    await asyncio.sleep(0)  # both have begun
    host.recording.set()
    await asyncio.gather(giving_up, starting)
    assert sanitizer.state is SanitizeState.RUNNING
    assert host.records[-1] is not None, "a restart takes it up"
    host.gate.set()
    await sanitizer.finished()
    assert (sanitizer.state, host.records[-1]) == (SanitizeState.NONE, None)


async def test_a_failure_is_recorded_before_another_operation_can_begin():
    sanitizer, host = failing()
    at_failure = []
    host.on_change = lambda: at_failure.append(len(host.records)) if sanitizer.state is SanitizeState.FAILED else None
    await sanitizer.start(BLOCK_ERASE)
    await sanitizer.finished()
    assert at_failure == [2]
    with pytest.raises(InvalidState, match="restricted"):
        await sanitizer.give_up()


async def test_an_event_that_cannot_be_kept_fails_no_operation():
    host = SanitizeHost()

    async def tell(severity: str, text: str) -> None:
        raise MediumError("no room for events")

    host.tell = tell
    sanitizer = Sanitizer(MemoryDevice(MIB), host, spread_s=0)
    await sanitizer.start(BLOCK_ERASE)
    await sanitizer.finished()
    assert (sanitizer.state, host.records[-1]) == (SanitizeState.NONE, None)


async def test_what_lives_in_another_tree_of_the_file_refuses_nothing(tmp_path):
    """A flattened clone, with a deleted snapshot that waits because two stand on it."""
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", SIZE)
        await engine.api.clone_create("v", None, "c")
        clone, volume = engine.pool.volume("c"), engine.pool.volume("v")
        await clone.write(0, memoryview(b"c" * MIB))
        job = await engine.api.clone_flatten("c")
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        await engine.api.snapshot_create("c", "fork")
        await clone.write(0, memoryview(b"d" * 4096))
        await engine.api.snapshot_rollback("c", "fork")
        await engine.api.snapshot_delete("c", "fork")
        await clone.head.store.settled()
        await engine.api.snapshot_delete("v", "c")
        await volume.write(0, memoryview((SECRET * (SIZE // len(SECRET) + 1))[:SIZE]))
        await volume.flush()
        await volume.sanitizer.start(BLOCK_ERASE)
        await volume.sanitizer.finished()
        assert volume.sanitizer.state is SanitizeState.NONE
        assert not is_found(engine, volume)
        data = bytearray(MIB)
        await clone.read(0, memoryview(data))
        assert data == b"c" * MIB
        with pytest.raises(InvalidState, match="snapshot before-rollback-1"):
            await clone.sanitizer.start(BLOCK_ERASE)
