"""The pool's quota and reserve: what is granted, what is told, and that volumes work as promised beyond them."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import InvalidArgument, MediumError, OutOfSpace
from engine.files import HostSpace
from engine.pool_space import PoolSpace, SpaceLimits, SpaceState
from engine.units import GIB, KIB, MIB
from tests.support.engine import opened

CHUNK = 64 * KIB


class Here:
    """Workers that run a call at once."""

    async def run(self, call, /):
        await asyncio.sleep(0)
        return call()


class Host:
    """A file system that a test fills."""

    def __init__(self, *, total: int = 64 * GIB, free: int = 32 * GIB, used: int = GIB) -> None:
        self.total, self.free, self.used = total, free, used
        self.measured = 0
        self.broken = False

    def __call__(self) -> HostSpace:
        self.measured += 1
        if self.broken:
            raise MediumError("the host does not answer")
        return HostSpace(self.total, self.free, self.used)


class Story:
    def __init__(self) -> None:
        self.states: list[SpaceState] = []

    async def __call__(self, state: SpaceState, text: str) -> None:
        assert "%" in text
        self.states.append(state)


async def watched(host: Host, **limits: int | None) -> tuple[PoolSpace, Story]:
    story = Story()
    space = PoolSpace(SpaceLimits(**limits), Here(), host, story)
    await space.measure()
    return space, story


async def test_the_quota_is_never_granted_beyond_however_many_ask():
    space, _ = await watched(Host(), quota_bytes=GIB + 100 * MIB)
    granted = 0
    while given := space.grant(16 * MIB, CHUNK):
        granted += given
    assert 100 * MIB - CHUNK < granted <= 100 * MIB
    assert "quota" in str(space.refusal("v"))


async def test_what_is_granted_counts_until_it_was_measured():
    host = Host()
    space, _ = await watched(host, quota_bytes=GIB + MIB)
    first = space.grant(MIB, CHUNK)
    assert first == MIB // 8, "little is left: nobody gets much of it"
    epoch = space.epoch
    host.used += CHUNK  # of the grant one chunk was written
    await space.measure()
    assert space.epoch > epoch, "the rest of the grant is void"
    assert space.left_bytes == MIB - CHUNK


async def test_grants_during_a_measurement_are_counted_on_top_of_it():
    host = Host()
    space, _ = await watched(host, quota_bytes=GIB + MIB)
    measuring = asyncio.ensure_future(space.measure())
    await asyncio.sleep(0)
    given = space.grant(MIB, CHUNK)
    await measuring
    assert space.left_bytes == MIB - given


async def test_the_reserve_stays_free_on_the_host():
    host = Host(free=300 * MIB)
    space, _ = await watched(host, reserve_bytes=299 * MIB)
    assert space.left_bytes == MIB
    host.free = 299 * MIB
    await space.measure()
    assert space.grant(MIB, CHUNK) == 0
    assert "reserve" in str(space.refusal("v"))
    host.free = 0
    assert not await space.measure()


@pytest.mark.parametrize(("total", "reserve"), [(64 * MIB, MIB), (64 * GIB, 256 * MIB)])
async def test_the_default_reserve_goes_by_the_file_system(total: int, reserve: int):
    space, _ = await watched(Host(total=total))
    assert space.reserve_bytes == reserve


async def test_thresholds_are_told_once_each_way_with_hysteresis():
    host = Host(used=0)
    space, story = await watched(host, quota_bytes=1000 * MIB)
    for used in (799, 801, 799, 801, 760, 749, 999, 1000, 1000, 999, 985, 900, 0):
        host.used = used * MIB
        await space.measure()
    ok, low, full = SpaceState.OK, SpaceState.LOW, SpaceState.FULL
    assert story.states == [low, ok, low, full, low, ok]


async def test_many_who_wait_share_a_measurement_that_began_after_they_asked():
    host = Host()
    space, _ = await watched(host)
    begun = host.measured
    await asyncio.gather(*(space.measure() for _ in range(50)))
    assert host.measured - begun <= 2


async def test_a_host_that_does_not_answer_leaves_the_last_word():
    host = Host()
    space, _ = await watched(host, quota_bytes=GIB + MIB)
    space.grant(CHUNK, CHUNK)
    host.broken = True
    await space.measure()
    assert space.left_bytes == MIB - CHUNK, "and what was granted since still counts"


@pytest.mark.parametrize(
    "limits", [{"quota_bytes": 0}, {"reserve_bytes": -1}, {"warn_percent": 0}, {"warn_percent": 101}]
)
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(InvalidArgument):
        SpaceLimits(**limits).check()


# --- a pool at its quota --------------------------------------------------------------------------------------------


async def fill(engine, volume: str) -> int:
    """Write whole MiB until the pool is full; how many there are."""
    for count in range(64):
        try:
            await engine.pool.volume(volume).write(count * MIB, memoryview(bytes([count + 1]) * MIB))
        except OutOfSpace:
            return count
    raise AssertionError("the quota was not kept")


async def limit(engine, quota: int | None) -> None:
    await engine.api.pool_limit(quota_bytes=quota, reserve_bytes=0, warn_percent=80)


async def test_at_its_quota_a_pool_goes_on_with_what_needs_no_space(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        api = engine.api
        await api.volume_create("v", 64 * MIB)
        used = (await api.pool_space()).used_bytes
        await limit(engine, used + 10 * MIB)
        count = await fill(engine, "v")
        assert 8 <= count <= 10
        volume = engine.pool.volume("v")
        info = await api.pool_space()
        assert info.used_bytes <= used + 10 * MIB + 2 * MIB, "payload within the quota, metadata beside it"
        status = await api.status()
        assert (status.health, status.space.state) == ("degraded", "full")
        # In place, in and beside the fast path; flush; snapshots made and deleted.
        assert volume.try_write(0, memoryview(b"x" * 4096))
        volume.end_pass()
        await volume.write(4096, memoryview(b"y" * MIB), fua=True)
        for number in range(5):
            await api.snapshot_create("v", f"s{number}")
        with pytest.raises(OutOfSpace):
            await volume.write(0, memoryview(b"z" * MIB))  # a snapshot has what is there
        with pytest.raises(OutOfSpace):
            await api.volume_create("w", MIB)
        for number in range(5):
            await api.snapshot_delete("v", f"s{number}")
        await volume.head.store.settled()
        await volume.write(0, memoryview(b"z" * MIB))
        # Discard gives room for others.
        await volume.discard(0, 4 * MIB)  # more than metadata took beyond the quota meanwhile
        await volume.write(32 * MIB, memoryview(b"n" * MIB))
        data = bytearray(MIB)
        await volume.read(4 * MIB, memoryview(data))
        assert data == bytes([5]) * MIB
        await limit(engine, None)
        await volume.write(40 * MIB, memoryview(b"m" * (8 * MIB)))
        assert (await api.status()).health == "ok"
        told = [
            event.severity for event in await api.event_list() if event.subject == "pool" and "set to" not in event.text
        ]
        assert told[0] in ("warning", "error")
        assert told[-1] == "info"


async def test_limits_stay_with_the_pool(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.pool_limit(quota_bytes=100 * MIB, reserve_bytes=5 * MIB, warn_percent=70)
    async with opened(tmp_path / "pool") as engine:
        info = await engine.api.pool_space()
        assert (info.quota_bytes, info.reserve_bytes, info.warn_percent) == (100 * MIB, 5 * MIB, 70)
        with pytest.raises(InvalidArgument):
            await engine.api.pool_limit(quota_bytes=0, reserve_bytes=None, warn_percent=80)
