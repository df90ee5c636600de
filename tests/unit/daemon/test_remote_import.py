"""Importing a LUN, quiet or written to, from our own target over loopback; the medium is in memory."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineError, InvalidArgument, PermissionDenied
from engine.units import KIB, MIB
from iscsi.initiator import connect
from tests.support.engine import opened
from tests.support.iscsi_link import TARGET
from tests.support.memory_device import MemoryDevice
from tests.unit.daemon.test_interchange import done
from tests.unit.initiator.test_disk import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.api import JobInfo
    from tests.support.engine import Engine

SIZE = 8 * MIB + 512


class WrittenTo(MemoryDevice):
    """Somebody writes to it whenever ``passes`` says: once for each beginning of a pass over it, while it is read."""

    def __init__(self, size_bytes: int, passes: int) -> None:
        super().__init__(size_bytes)
        self.left = passes
        self.writes = 0

    async def read(self, offset: int, view: memoryview, /) -> None:
        await super().read(offset, view)
        if offset == 0 and self.left:
            self.left -= 1
            self.writes += 1
            # Behind the reader, and before it: one is missed by this pass, the other is not.
            for at in (0, 5 * MIB):
                await self.write(at, memoryview(bytes([self.writes]) * 512))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with opened(tmp_path / "pool") as engine:
        yield engine


async def filled(device: MemoryDevice) -> MemoryDevice:
    for at, length in ((0, 100 * KIB), (3 * MIB, MIB), (5 * MIB, 64 * KIB), (SIZE - 512, 512)):
        await device.write(at, memoryview(random.Random(at).randbytes(length)))
    device.calls.clear()
    return device


async def content(engine: Engine, name: str) -> bytes:
    found = bytearray(engine.pool.volume(name).size_bytes)
    await engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


def url(portal: tuple[str, int], user: str = "") -> str:
    return f"iscsi://{user}{portal[0]}:{portal[1]}/{TARGET}/0"


async def ended(engine: Engine, job: JobInfo) -> JobInfo:
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def test_a_quiet_lun_is_imported_without_its_holes(engine: Engine):
    device = await filled(MemoryDevice(SIZE))
    async with serving(device) as (portal, _):
        job = await done(engine, await engine.api.volume_import(url(portal), "v"))
    assert await content(engine, "v") == device.data
    assert (job.result["format"], job.result["logical_sector_bytes"]) == ("raw", 512)
    read = sum(length for name, _, length in device.calls if name == "read")
    assert read <= 2 * 2 * MIB, "two readings of what the target maps"
    assert (await engine.api.volume_space("v")).mapped_bytes < 2 * MIB


async def test_a_lun_that_comes_to_rest_is_imported_as_it_is_then(engine: Engine):
    device = await filled(WrittenTo(SIZE, passes=3))
    async with serving(device) as (portal, _):
        job = await done(engine, await engine.api.volume_import(url(portal), "v"))
    assert device.writes == 3
    assert await content(engine, "v") == device.data
    assert job.result["root"] == (await done(engine, await engine.api.volume_root("v"))).result["root"]


async def test_a_lun_that_is_always_written_to_is_told_and_gone_on_with_later(engine: Engine):
    device = await filled(WrittenTo(SIZE, passes=1000))
    async with serving(device) as (portal, _):
        job = await ended(engine, await engine.api.volume_import(url(portal), "v"))
        assert (job.state, job.error) == ("Exception", "InvalidState")
        assert "being written to: " in job.message
        assert "writers are stopped" in job.message
        assert await engine.api.volume_list() == []
        assert (await engine.api.status()).interrupted_copies == ["v"]
        device.left = 0
        again = await done(engine, await engine.api.volume_import(url(portal), "v"))
        assert again.total_bytes
    assert await content(engine, "v") == device.data


async def test_an_import_that_lost_its_target_goes_on(engine: Engine):
    device = await filled(MemoryDevice(SIZE))
    async with serving(device) as (portal, server):
        job = await engine.api.volume_import(url(portal), "v")
        await server.stop(graceful=False)
        job = await ended(engine, job)
        assert job.state == "Exception"
        assert str(portal[1]) in job.message
    async with serving(device) as (portal, _):
        await done(engine, await engine.api.volume_import(url(portal), "v"))
    assert await content(engine, "v") == device.data


async def test_what_cannot_be_reached_is_told_without_the_secret(engine: Engine):
    with pytest.raises(EngineError, match="iscsi://u@127"):
        await engine.api.volume_import("iscsi://u%geheim@127.0.0.1:1/iqn.2026-11.org.x:y/0", "v")
    with pytest.raises(InvalidArgument, match="come together"):
        await engine.api.volume_import("iscsi://u@127.0.0.1:1/iqn.2026-11.org.x:y/0", "v")
    with pytest.raises(InvalidArgument):
        await engine.api.volume_import("nbd://127.0.0.1/x", "v")
    with pytest.raises(InvalidArgument, match="format is raw"):
        await engine.api.volume_import("iscsi://127.0.0.1:1/iqn.2026-11.org.x:y/0", "v", format="vhdx")
    async with serving(MemoryDevice(SIZE)) as (portal, _):
        with pytest.raises(PermissionDenied):
            await engine.api.volume_import(url(portal).replace(TARGET, "iqn.2026-11.org.x:y"), "v")
    for job in await engine.api.job_list():
        assert "geheim" not in str(job)


async def test_what_a_target_says_of_its_blocks(engine: Engine):
    device = await filled(MemoryDevice(SIZE))
    async with serving(device) as (portal, _), await connect(portal, TARGET) as disk:
        found = await disk.mapped(0, SIZE)
        at = 0
        for offset, length, mapped in found:
            assert offset == at
            assert mapped or not any(device.data[offset : offset + length])
            at += length
        assert at == SIZE
        assert [mapped for _, _, mapped in found] == [True, False, True, False, True, False, True]
        assert await disk.mapped(MIB, 512) == [(MIB, 512, False)]
