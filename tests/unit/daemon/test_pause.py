"""Pausing a target as an administrator does it: a real initiator waits and sees no error; the pause always ends."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import InvalidArgument, InvalidState, NotFound, TimedOut
from tests.support.engine import PREFIX, opened
from tests.unit.daemon.test_wiring import serving

MIB = 1 << 20
TARGET = f"{PREFIX}:v"


@pytest.fixture
async def array(tmp_path: Path):
    async with serving(tmp_path / "pool") as array:
        yield array


async def test_an_initiator_waits_and_sees_no_error(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk, await array.disk(info.target) as other:
        await disk.write(0, b"1" * 4096)
        paused = await array.api.target_pause("v")
        assert (paused.state, paused.sessions) == ("paused", 2)
        writing = asyncio.create_task(disk.write(0, b"2" * 4096))
        flushing = asyncio.create_task(other.flush())
        reading = asyncio.create_task(other.read(4096, 256 * 1024))
        await array.api.snapshot_create("v", "s", expose=True)
        await array.api.volume_resize("v", 8 * MIB)
        async with await array.disk(f"{info.target}.snap.s") as snapshot:
            assert await snapshot.read(0, 4096) == b"1" * 4096, "other targets are served"
        assert not any(task.done() for task in (writing, flushing, reading))
        assert (await array.api.target_resume("v")).state == "ok"
        await asyncio.gather(writing, flushing, reading)
        assert await disk.read(0, 4096) == b"2" * 4096
        async with await array.disk(f"{info.target}.snap.s") as snapshot:
            assert await snapshot.read(0, 4096) == b"1" * 4096, "what was held came after the pause"


async def test_a_pause_ends_by_itself(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await array.api.target_pause("v", timeout_s=0.05)
        await disk.write(0, b"1" * 4096)
        assert (await array.api.target_show("v")).state == "ok"
        with pytest.raises(InvalidState, match="no longer"):
            await array.api.target_resume("v")
    events = [(event.severity, event.text) for event in await array.api.event_list()]
    assert ("warning", "the pause ended by its timeout") in events


async def test_a_pause_is_refused_or_ended_with_its_target(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB, expose=True)
        with pytest.raises(NotFound):
            await engine.api.target_pause("w")
        for timeout_s in (0.0, -1.0, 3601.0, float("nan")):
            with pytest.raises(InvalidArgument):
                await engine.api.target_pause("v", timeout_s=timeout_s)
        with pytest.raises(InvalidState):
            await engine.api.target_resume("v")
        first = await engine.api.target_pause("v", timeout_s=60)
        second = await engine.api.target_pause("v", timeout_s=600)
        assert second.resumes_at > first.resumes_at
        assert engine.exports.paused == {TARGET}
        await engine.api.target_delete("v")
        await engine.api.target_create("v")
        assert (await engine.api.target_show("v")).state == "ok"


async def test_a_pause_that_is_renewed_while_it_begins_is_one(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB, expose=True)
        may_end = asyncio.Event()

        async def pause_target(name: str) -> None:
            await may_end.wait()

        engine.exports.pause_target = pause_target
        first = asyncio.create_task(engine.api.target_pause("v", timeout_s=60))
        second = asyncio.create_task(engine.api.target_pause("v", timeout_s=600))
        await asyncio.sleep(0)
        may_end.set()
        assert [info.state for info in await asyncio.gather(first, second)] == ["paused", "paused"]


async def test_a_pause_that_its_commands_outlast_is_none(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB, expose=True)
        over = asyncio.Event()
        resume = engine.exports.resume_target

        async def pause_target(name: str) -> None:
            await over.wait()

        def resume_target(name: str) -> None:
            resume(name)
            over.set()

        engine.exports.pause_target = pause_target
        engine.exports.resume_target = resume_target
        with pytest.raises(TimedOut):
            await engine.api.target_pause("v", timeout_s=0.01)
        assert (await engine.api.target_show("v")).state == "ok"
