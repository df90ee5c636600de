"""The activity log: what is marked across openings, what is cleaned when, what damage costs."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from engine.activity_log import BLOCK_BYTES, HYSTERESIS, REGION_BYTES, REGIONS_PER_BLOCK, ActivityLog
from engine.control_files import AioControlFiles
from engine.errors import MediumError
from engine.stores import Extent
from tests.support.sim_control_files import SimControlFiles
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimLoop, SimWorkers

if TYPE_CHECKING:
    from pathlib import Path

GUIDS = [f"0000000{n}-0000-4000-8000-000000000000" for n in range(9)]
SIZE = 10 * REGION_BYTES + 512
FILES = AioControlFiles()


def region(number: int, count: int = 1) -> Extent:
    return Extent(number * REGION_BYTES, count * REGION_BYTES)


async def of_a_point(path: Path, guid: str = GUIDS[0], size: int = SIZE) -> ActivityLog:
    """A log of a disk that is that point."""
    log = await ActivityLog.begin(FILES, path, "a disk", size)
    await log.add_point(guid, size)
    await log.keep_points({guid})
    return log


async def reopened(log: ActivityLog) -> ActivityLog:
    await log.close()
    again = await ActivityLog.open(FILES, log.path)
    assert again is not None
    return again


async def test_of_a_new_disk_nothing_is_known(tmp_path):
    log = await ActivityLog.begin(FILES, tmp_path / "log", "a disk", SIZE)
    assert (log.points, log.marked()) == ({}, [Extent(0, SIZE)])
    log = await reopened(log)
    assert (log.disk, log.size_bytes, log.points, log.marked()) == ("a disk", SIZE, {}, [Extent(0, SIZE)])
    await log.close()


async def test_what_was_marked_is_marked_after_any_end(tmp_path):
    log = await of_a_point(tmp_path / "log")
    assert log.marked() == []
    await log.mark(REGION_BYTES - 512, 1024, host=True)
    await log.mark(SIZE - 512, 512, host=False)
    again = await ActivityLog.open(FILES, log.path)  # as after a kill: nothing was closed
    assert again is not None
    assert again.marked() == [region(0, 2), Extent(10 * REGION_BYTES, 512)]
    assert again.points == {GUIDS[0]: SIZE}
    await again.close()
    await log.close()


async def test_a_mark_is_there_when_mark_now_says_so(tmp_path):
    log = await of_a_point(tmp_path / "log")
    assert not log.mark_now(0, 512, host=True)
    await asyncio.gather(*(log.mark(at * REGION_BYTES, 512, host=True) for at in range(4)))
    assert log.mark_now(0, 4 * REGION_BYTES, host=True)
    log = await reopened(log)
    assert log.marked() == [region(0, 4)]
    await log.close()


async def test_marks_of_hosts_outlast_some_points_and_those_of_rounds_none(tmp_path):
    log = await of_a_point(tmp_path / "log")
    await log.mark(0, 512, host=True)
    await log.mark(5 * REGION_BYTES, 512, host=False)
    for number in range(1, HYSTERESIS + 2):
        assert log.marked()[0] == region(0)
        await log.add_point(GUIDS[number], SIZE)
        assert region(5) in log.marked() or number > 1  # it still speaks of the older point
        await log.keep_points({GUIDS[number]})
        assert region(5) not in log.marked()
    assert log.marked() == []
    log = await reopened(log)
    assert (log.marked(), list(log.points)) == ([], [GUIDS[HYSTERESIS + 1]])
    await log.close()


async def test_nothing_is_cleaned_while_an_older_point_is_kept(tmp_path):
    log = await of_a_point(tmp_path / "log")
    await log.mark(0, 512, host=False)
    await log.add_point(GUIDS[1], SIZE)
    await log.keep_points(set(GUIDS[:2]))
    assert log.marked() == [region(0)]
    await log.keep_points(())
    assert (log.points, log.marked()) == ({}, [region(0)])
    await log.close()


async def test_a_round_and_what_it_starts_from_survive(tmp_path):
    log = await of_a_point(tmp_path / "log")
    await log.freeze(GUIDS[7])
    await log.begin_staging(SIZE - 512)
    log = await reopened(log)
    assert (log.frozen, log.staging_bytes, log.newest) == (GUIDS[7], SIZE - 512, GUIDS[0])
    await log.add_point(GUIDS[1], SIZE - 512)
    assert (log.frozen, log.staging_bytes) == (None, None)
    assert log.points == {GUIDS[0]: SIZE, GUIDS[1]: SIZE - 512}
    await log.close()


@pytest.mark.parametrize("damage", [b"\xff" * 40, b""], ids=["rot", "cut off"])
async def test_a_block_that_cannot_be_read_is_all_marked(tmp_path, damage):
    size = (REGIONS_PER_BLOCK + 3) * REGION_BYTES
    log = await of_a_point(tmp_path / "log", size=size)
    await log.mark(REGIONS_PER_BLOCK * REGION_BYTES, 512, host=True)
    await log.close()
    content = bytearray(log.path.read_bytes())
    if damage:
        content[2 * BLOCK_BYTES + 100 : 2 * BLOCK_BYTES + 140] = damage  # the first block; the second is whole
        expected = [region(0, REGIONS_PER_BLOCK + 1)]
    else:
        del content[2 * BLOCK_BYTES :]
        expected = [Extent(0, size)]
    log.path.write_bytes(content)
    again = await ActivityLog.open(FILES, log.path)
    assert again is not None
    assert (again.marked(), again.points) == (expected, {GUIDS[0]: size})
    await again.close()


async def test_the_newer_whole_slot_counts(tmp_path):
    log = await of_a_point(tmp_path / "log")
    for guid in GUIDS[1:3]:
        await log.add_point(guid, SIZE)
    await log.close()
    content = bytearray(log.path.read_bytes())
    newest = max((0, 1), key=lambda slot: int.from_bytes(content[slot * BLOCK_BYTES + 8 :][:8], "little"))
    content[newest * BLOCK_BYTES + 60] ^= 1  # as torn: the write before it was the last that was durable
    log.path.write_bytes(content)
    again = await ActivityLog.open(FILES, log.path)
    assert again is not None
    assert list(again.points) == GUIDS[:2]
    await again.close()


async def test_garbage_is_no_log(tmp_path):
    path = tmp_path / "log"
    rng = random.Random(5)
    for content in (b"", b"TVAL", rng.randbytes(100), rng.randbytes(3 * BLOCK_BYTES), b"TVAL\1\0" + b"\xff" * 9000):
        path.write_bytes(content)
        assert await ActivityLog.open(FILES, path) is None


async def test_points_without_end_are_not_kept(tmp_path):
    log = await of_a_point(tmp_path / "log")
    for number in range(40):
        await log.add_point(f"{number:036}", SIZE)
    assert len(log.points) == 16
    assert next(iter(log.points)) == GUIDS[0]
    assert log.newest == f"{39:036}"
    await log.close()


@pytest.mark.parametrize("failed", [False, True], ids=["killed before the sync", "the sync failed"])
@pytest.mark.parametrize("seed", range(20))
def test_what_an_opening_finds_is_durable_before_anything_goes_by_it(tmp_path, seed, failed):
    """Marks, and that no point is known any more, from a process that wrote them and did not make them durable."""
    rng, path = random.Random(seed), tmp_path / "log"
    files = SimFileSystem(rng)

    def run(work):
        loop = SimLoop()
        found = loop.run_until_complete(work(SimControlFiles(files, SimWorkers(loop, rng))))
        files.restart_process()
        return found

    async def write(control) -> None:
        log = await ActivityLog.begin(control, path, "a disk", SIZE)
        await log.add_point(GUIDS[0], SIZE)
        await log.keep_points({GUIDS[0]})
        file = log._file

        async def sync() -> None:
            if failed:
                file._file._lose_some()
            raise MediumError("the sync")

        file.sync = sync
        with pytest.raises(MediumError):
            await log.mark(rng.randrange(10) * REGION_BYTES, 512, host=True)
        with pytest.raises(MediumError):
            await log.keep_points(())

    async def look(control):
        log = await ActivityLog.open(control, path)
        return log.points, log.marked()

    run(write)
    found = run(look)
    assert found[0] == {}
    assert len(found[1]) == 1
    files.lose_power()
    assert run(look) == found
