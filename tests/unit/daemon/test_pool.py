"""Opening a pool."""

import asyncio
import fcntl
import os
from dataclasses import replace

import pytest

from engine.errors import InUse, OutOfSpace
from engine.files import RealFileSystem, real_env
from engine.pool import Pool
from tests.support.engine import opened


async def test_a_file_that_a_killed_daemons_copy_still_holds_is_waited_for(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", 1 << 20)
    held = os.open(tmp_path / "pool" / "volumes" / "v.tvol", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    class Letting(RealFileSystem):
        refused = 0

        def open(self, path, /, *, writable):
            try:
                return super().open(path, writable=writable)
            except InUse:
                self.refused += 1
                if self.refused == 3:
                    os.close(held)
                raise

    files = Letting()
    env = replace(real_env(2), files=files)
    pool = await Pool.open(tmp_path / "pool", env)
    assert files.refused == 3
    assert [volume.name for volume in pool.volumes()] == ["v"]
    await pool.close()
    await asyncio.to_thread(env.workers.close)


async def test_a_volume_that_the_catalogue_does_not_take_leaves_nothing(tmp_path, monkeypatch):
    async def full(row):
        raise OutOfSpace("the pool's catalogue cannot be written")

    async with opened(tmp_path / "pool") as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.pool.catalog, "put_volume", full)
            with pytest.raises(OutOfSpace):
                await engine.api.volume_create("v", 1 << 20)
        assert [path for path in (tmp_path / "pool" / "volumes").rglob("*") if path.is_file()] == []
        assert await engine.api.volume_list() == []
        await engine.api.volume_create("v", 1 << 20)
    async with opened(tmp_path / "pool") as engine:
        assert [info.name for info in await engine.api.volume_list()] == ["v"]
