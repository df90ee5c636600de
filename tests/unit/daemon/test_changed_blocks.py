"""Diffs for backup tools: in pages, about one instant, with digests."""

import random
from pathlib import Path

import pytest
import xxhash

from engine.changed_blocks import IDLE_S, MAX_POINTS
from engine.errors import InvalidArgument, InvalidState, NotFound
from tests.support.engine import Engine, opened

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 64 * KIB


class HandClock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self):
        return self.now

    monotonic = boottime = time

    def preemptions(self):
        return 0


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def engine(tmp_path: Path, clock):
    async with opened(tmp_path / "pool", clock=clock) as engine:
        await engine.api.volume_create("v", 8 * MIB)
        yield engine


async def write(engine: Engine, offset: int, data: bytes) -> None:
    await engine.pool.volume("v").write(offset, memoryview(data))


def points(engine: Engine) -> list[str]:
    return [each.name for each in engine.pool.volume("v").head.store.snapshots() if each.hidden]


async def all_of(engine: Engine, older: str | None, newer: str | None, **options):
    page = await engine.api.snapshot_diff("v", older, newer, **options)
    found = [*page.extents]
    while page.next_offset is not None:
        options |= {"offset": page.next_offset, "point": page.point}
        page = await engine.api.snapshot_diff("v", older, newer, **options)
        found += page.extents
    return found


async def test_allocated_and_changed_ranges_say_what_is_there(engine):
    await write(engine, 0, b"a" * CHUNK)
    await write(engine, 3 * CHUNK, b"b" * CHUNK)
    await engine.pool.volume("v").write_zeroes(5 * CHUNK, CHUNK)
    await engine.api.snapshot_create("v", "s")
    await write(engine, 7 * CHUNK, b"c" * CHUNK)
    await engine.pool.volume("v").discard(3 * CHUNK, CHUNK)
    allocated = await engine.api.snapshot_diff("v", None, "s")
    assert [(each.offset // CHUNK, each.length // CHUNK, each.state) for each in allocated.extents] == [
        (0, 1, "data"),
        (3, 1, "data"),
        (5, 1, "zero"),
    ]
    assert (allocated.size_bytes, allocated.changed_bytes, allocated.point) == (8 * MIB, 3 * CHUNK, None)
    changed = await engine.api.snapshot_diff("v", "s", None)
    assert [(each.offset // CHUNK, each.length // CHUNK, each.state) for each in changed.extents] == [
        (3, 1, "hole"),
        (7, 1, "data"),
    ]
    assert points(engine) == []


async def test_pages_of_a_volume_are_about_one_instant(engine):
    for chunk in range(0, 100, 2):
        await write(engine, chunk * CHUNK, bytes([chunk + 1]) * CHUNK)
    await engine.api.snapshot_create("v", "s")
    for chunk in (0, 10, 20, 30, 40):
        await write(engine, chunk * CHUNK, b"x" * CHUNK)
    page = await engine.api.snapshot_diff("v", "s", None, limit=2)
    assert page.next_offset == 20 * CHUNK
    assert points(engine) == [page.point]
    await engine.pool.volume("v").discard(0, 8 * MIB)
    await write(engine, 50 * CHUNK, b"later" * 1024)
    found = [*page.extents]
    while page.next_offset is not None:
        page = await engine.api.snapshot_diff("v", "s", None, offset=page.next_offset, limit=2, point=page.point)
        found += page.extents
    assert [(each.offset // CHUNK, each.state) for each in found] == [(chunk, "data") for chunk in (0, 10, 20, 30, 40)]
    assert points(engine) == []


async def test_digests_are_those_of_the_bytes(engine):
    rng = random.Random(7)
    image = bytearray(8 * MIB)
    for _ in range(40):
        offset = rng.randrange(8 * MIB // 512) * 512
        data = rng.randbytes(min(8 * MIB - offset, 512 * rng.randrange(1, 500)))
        image[offset : offset + len(data)] = data
        await write(engine, offset, data)
    assert {each.digests for each in await all_of(engine, None, None)} == {None}
    found = await all_of(engine, None, None, digests=True, limit=3)
    assert len(found) > 6
    for extent in found:
        assert extent.offset // MIB == (extent.offset + extent.length - 1) // MIB
        content = image[extent.offset : extent.offset + extent.length]
        assert extent.digests == [
            xxhash.xxh3_128_hexdigest(content[at : at + CHUNK]) for at in range(0, len(content), CHUNK)
        ]
        image[extent.offset : extent.offset + extent.length] = bytes(extent.length)
    assert not any(image), "all that was written is in some extent"
    assert points(engine) == []


async def test_a_point_that_nobody_asks_for_goes(engine, clock):
    for chunk in (0, 2, 4):
        await write(engine, chunk * CHUNK, b"x" * CHUNK)
    page = await engine.api.snapshot_diff("v", None, None, limit=1)
    clock.now += IDLE_S
    await engine.api.upkeep.tick()
    page = await engine.api.snapshot_diff("v", None, None, offset=page.next_offset, limit=1, point=page.point)
    clock.now += IDLE_S + 1
    await engine.api.upkeep.tick()
    assert points(engine) == []
    with pytest.raises(NotFound, match="begin again"):
        await engine.api.snapshot_diff("v", None, None, offset=page.next_offset, point=page.point)


async def test_a_point_ends_with_the_daemon_and_with_its_volume(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB)
        await write(engine, 0, b"x" * 512)
        await write(engine, 4 * CHUNK, b"x" * 512)
        page = await engine.api.snapshot_diff("v", None, None, limit=1)
        assert points(engine) == [page.point]
    async with opened(tmp_path / "pool") as engine:
        assert points(engine) == []
        page = await engine.api.snapshot_diff("v", None, None, limit=1)
        await engine.api.volume_delete("v")
        await engine.api.volume_create("v", MIB)
        with pytest.raises(NotFound):
            await engine.api.snapshot_diff("v", None, None, offset=page.next_offset, point=page.point)


async def test_points_are_limited(engine):
    for chunk in (0, 2):
        await write(engine, chunk * CHUNK, b"x" * CHUNK)
    await engine.api.snapshot_create("v", "s")
    await engine.api.snapshot_create("v", "t")
    for chunk in (0, 2):
        await write(engine, chunk * CHUNK, b"y" * CHUNK)
    for _ in range(MAX_POINTS):
        page = await engine.api.snapshot_diff("v", "s", None, limit=1)
    with pytest.raises(InvalidState):
        await engine.api.snapshot_diff("v", "s", None)
    await engine.api.snapshot_diff("v", "s", "t")
    await engine.api.snapshot_delete("v", "s")
    with pytest.raises(NotFound):
        await engine.api.snapshot_diff("v", "s", None, offset=page.next_offset, point=page.point)


@pytest.mark.parametrize("options", [{"offset": -1}, {"limit": 0}, {"point": "diff.1"}])
async def test_pages_that_make_no_sense(engine, options):
    await engine.api.snapshot_create("v", "s")
    with pytest.raises(InvalidArgument):
        await engine.api.snapshot_diff("v", None, "s", **options)


async def test_a_page_begins_anywhere_without_walking_what_is_before(engine):
    for chunk in range(20):
        await write(engine, chunk * CHUNK, b"x" * CHUNK)
    await engine.api.snapshot_create("v", "s")
    for offset in (0, 512, CHUNK, 5 * CHUNK + 4096, 20 * CHUNK - 512, 20 * CHUNK, 8 * MIB, 9 * MIB):
        page = await engine.api.snapshot_diff("v", None, "s", offset=offset)
        expected = [(offset, 20 * CHUNK - offset)] if offset < 20 * CHUNK else []
        assert [(each.offset, each.length) for each in page.extents] == expected
